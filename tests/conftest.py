"""Where tests find golden numbers and real footage, and what keeps them repeatable."""

import os
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch

import type_checks

# Before anything of ino is imported.
jaxtyping.jaxtyped = type_checks.checked

if not torch.cuda.is_available():
    # Before Triton is imported: its kernels then run in its interpreter.
    os.environ["TRITON_INTERPRET"] = "1"

TESTS = Path(__file__).parent
SHARED = TESTS.parent.parent / "shared"


def _shared_folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs the folder shared/{name} beside the checkout")
    return folder


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """Golden numbers that are too large for the project."""
    return _shared_folder("golden")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real footage: DAVIS sequences, clips for pretraining, published masks."""
    return _shared_folder("data")


@pytest.fixture(scope="session")
def golden():
    """Loads tests/golden/NAME.npz as a dictionary of arrays; float16 inputs come as float32."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(TESTS / "golden" / f"{name}.npz") as arrays:
            return {
                key: value.astype(np.float32) if value.dtype == np.float16 else value
                for key, value in arrays.items()
            }

    return load


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> None:
    """Indexes of videos do not go to the user's own cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
