# The two commands of the README: `make demo` and `make test`. Each sets itself up and then works
# offline.
SHELL := /bin/bash
ifeq ($(shell command -v uv),)
UV := .uv/bin/uv
else
UV := uv
endif
RUN := .venv/bin
READY := .venv/.ready
WORKERS ?= 2
# Compiling torch and the rest anew in each of the many processes would take most of the time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-real test-gpu gpu check format clean

demo: $(READY)
	$(RUN)/ino demo --out demo --overwrite

test: $(READY)
	OMP_NUM_THREADS=1 $(RUN)/pytest -n $(WORKERS) --dist worksteal --durations 10 -m "not real and not slow and not gpu"

test-real: $(READY)
	$(RUN)/pytest -m "real or slow"

test-gpu: $(READY)
	$(RUN)/pytest -m gpu

# What a GPU does, in four minutes, and, with PACK=FOLDER, what it learns in MINUTES more. With
# PYTHON=python3 it needs neither uv nor .venv (docs/scaling.md); QUICK=1 takes tiny sizes.
OUT ?= runs/gpu-results
RUN_OUT ?= runs/gpu
DEVICE ?= auto
MINUTES ?= 9
ifdef PYTHON
gpu:
else
gpu: PYTHON := $(RUN)/python
gpu: $(READY)
endif
	PYTHONPATH=src $(PYTHON) benchmarks/gpu.py measure --out $(OUT) --device $(DEVICE) \
	  $(if $(QUICK),--quick)
	$(if $(PACK),PYTHONPATH=src $(PYTHON) benchmarks/gpu.py train --pack $(PACK) --out $(OUT) \
	  --run $(RUN_OUT) --device $(DEVICE) --minutes $(MINUTES) $(if $(QUICK),--quick))

check: $(READY)
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/pyright
	$(RUN)/pytest -q tests/test_layers.py

format: $(READY)
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .

$(READY): pyproject.toml | $(UV)
	$(UV) sync --quiet
	touch $@

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/python -m pip install --quiet uv

uv: ;

clean:
	rm -rf .venv .uv demo runs .pytest_cache .ruff_cache .hypothesis
