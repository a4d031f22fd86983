"""A term of the user's own: what it is given, that it teaches, and what is wrong with one."""

import json

import pytest
import torch

from ino.errors import ConfigError, TrainingError
from ino.models.weights import read_checkpoint
from ino.train.extra import find_extra
from ino.train.loop import train

MODULE = """
import torch

seen = []

def spread(student, teacher):
    seen.append((student, teacher))
    if student.global_class is None:
        return None
    mean = torch.softmax(student.global_class / 0.1, dim=-1).flatten(0, -2).mean(dim=0)
    return (mean * mean.log()).sum()

def rows(student, teacher):
    return torch.zeros(4, 2)

def number(student, teacher):
    return 1.0

def lost(student, teacher):
    given = student.local_class if student.global_class is None else student.global_class
    return given.sum() * float("nan")

def broken(student, teacher):
    return student.nothing

other = 3
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A working folder with a module of its own name."""
    name = f"own_{tmp_path.name.replace('-', '_')[-20:]}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


def test_a_term_teaches_and_is_logged(config, here, tmp_path):
    config.run.max_steps, config.run.accumulate, config.masking.probability = 2, 2, 1.0
    config.optim.warmup_epochs = 0.0
    plain = read_checkpoint(train(config, out=tmp_path / "plain"))
    config.loss.extra = f"{here}:spread"
    content = read_checkpoint(train(config, out=tmp_path / "run"))
    names = [k for k, v in content["student"].items() if not torch.equal(v, plain["student"][k])]
    assert len(names) > 30
    one, two = (json.loads(x) for x in (tmp_path / "run/log.jsonl").read_text().splitlines())
    without = json.loads((tmp_path / "plain/log.jsonl").read_text().splitlines()[0])
    assert -3.5 < one["extra_spread"] < 0
    assert one["loss"] == pytest.approx(without["loss"] + one["extra_spread"], abs=1e-5)
    assert two["extra_spread"] != one["extra_spread"]
    # Two groups of clips, each with a part of local crops and one of global crops.
    seen = find_extra(config.loss.extra, weight=1.0).function.__globals__["seen"]
    (local, _), (whole, teacher) = seen[:2]
    assert (local.global_class, local.patch, whole.local_class) == (None, None, None)
    assert local.local_class.shape == (4, 2, 1, 32)
    assert whole.global_class.shape == teacher.global_class.shape == (4, 1, 32)
    assert whole.patch.shape == teacher.patch.shape == (4, 1, whole.patch.shape[2], 32)
    assert whole.global_class.requires_grad
    assert not teacher.patch.requires_grad
    # A weight of 0 leaves the numbers of the run as they are.
    config.loss.extra_weight = 0.0
    again = read_checkpoint(train(config, out=tmp_path / "again"))
    for name, value in plain["student"].items():
        assert torch.equal(again["student"][name], value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("spread", "must be module:function, but is 'spread'"),
        ("nowhere_at_all:spread", "module nowhere_at_all cannot be imported .* put nowhere_at_all"),
        ("{}:spraed", "has no function spraed; it has spread"),
        ("{}:other", "has no function other"),
        ("{}:rows", r"must return a scalar .* but returned a tensor of shape \(4, 2\)"),
        ("{}:number", "but returned float"),
        ("{}:broken", r"failed at own_.*py, line \d+ \(AttributeError: .*nothing"),
    ],
)
def test_terms_that_cannot_be_used(config, here, tmp_path, text, words):
    config.loss.extra = text.format(here)
    with pytest.raises(ConfigError, match=words):
        train(config, out=tmp_path / "run")


def test_a_term_that_is_no_number_is_named(config, here, tmp_path):
    config.loss.extra = f"{here}:lost"
    with pytest.raises(TrainingError, match="the term extra_lost is nan at step 4"):
        train(config, out=tmp_path / "run")
