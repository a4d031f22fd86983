"""Numbers that are not finite: skipped, gone back from, explained."""

import copy
import json
import math

import pytest
import torch

from ino.errors import TrainingError
from ino.models.weights import read_checkpoint
from ino.train import loop
from ino.train.loop import diagnosis, train


@pytest.fixture
def inject(monkeypatch):
    """Puts a NaN into one pixel of the local crops of some steps."""
    original = loop.sample_views

    def at(*steps):
        def broken(*args, step, **kwargs):
            views = original(*args, step=step, **kwargs)
            if step in steps:
                views.local_crops[0, 0, 0, 0, 0, 0] = float("nan")
            return views

        monkeypatch.setattr(loop, "sample_views", broken)

    return at


def flat(state) -> list:
    return torch.utils._pytree.tree_leaves(state)


def assert_equal(first, second) -> None:
    for key in ("student", "teacher", "objective", "optimizer"):
        for one, other in zip(flat(first[key]), flat(second[key]), strict=True):
            assert one == other if not isinstance(one, torch.Tensor) else torch.equal(one, other)


def test_a_bad_step_changes_nothing_but_the_rates(config, tmp_path, inject):
    config.run.max_steps = 3
    before = read_checkpoint(train(config, out=tmp_path / "before"))
    inject(3)
    config.run.max_steps = 4
    after = read_checkpoint(train(config, out=tmp_path / "after"))
    for content in (before, after):
        content["optimizer"]["param_groups"] = []  # the rates that were set for the step
    assert_equal(before, after)
    assert before["objective"]["class_center"].abs().max() > 0
    line = json.loads((tmp_path / "after" / "log.jsonl").read_text().splitlines()[3])
    assert line["skipped"] == 1
    assert line["l2g"] is None


def test_a_run_goes_on_after_bad_steps(config, tmp_path, inject):
    inject(2, 4, 5)
    content = read_checkpoint(train(config, out=tmp_path / "run"))
    assert all(value.isfinite().all() for value in content["student"].values())
    lines = [json.loads(x) for x in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [0, 0, 1, 0, 1, 2, 0, 0]


def test_five_bad_steps_go_back_to_the_last_checkpoint_with_later_clips(
    config, tmp_path, inject, caplog
):
    config.run.save_every = 2
    inject(3, 4, 5, 6, 7)
    config.run.max_steps = 8
    config.optim.epochs = 5
    back = []
    original = loop.restore_checkpoint
    loop_restore = lambda run, path: back.append(path.name) or original(run, path)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "restore_checkpoint", loop_restore)
        config.run.max_steps = 10
        end = read_checkpoint(train(config, out=tmp_path / "run"))
    assert back == ["step_00000002.pt"]
    assert "l2g is nan at step 7, and 5 steps in a row" in caplog.text
    assert end["step"] == 10
    # A run that is killed on the way, also between the bad steps, ends the same.
    for stop in (5, 8):
        short = copy.deepcopy(config)
        short.run.max_steps = stop
        train(short, out=tmp_path / str(stop))
        (tmp_path / str(stop) / "checkpoints" / f"step_{stop:08d}.pt").unlink()
        resumed = train(config, out=tmp_path / str(stop), resume=True)
        assert_equal(end, read_checkpoint(resumed))


def test_numbers_that_stay_bad_stop_the_run_with_a_diagnosis(config, tmp_path, inject):
    config.optim.epochs = 8
    inject(*range(4, 16))
    with pytest.raises(TrainingError) as stopped:
        train(config, out=tmp_path / "run")
    message = str(stopped.value)
    assert "the term l2g is nan at step 13, and 5 steps in a row" in message
    assert "again after going back to step_00000003.pt, which is whole" in message
    assert "lr " in message
    assert "gradient norm nan" in message
    assert "optim.lr" in message
    (left,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert read_checkpoint(left)["step"] == 3


def test_without_a_checkpoint_bad_steps_stop_the_run(config, tmp_path, inject):
    inject(*range(8))
    with pytest.raises(TrainingError, match=r"at step 4, .*no checkpoint to go back to"):
        train(config, out=tmp_path / "run")


def test_a_learning_rate_that_breaks_the_weights_ends_in_words(config, tmp_path):
    config.optim.lr, config.optim.epochs, config.optim.clip_grad = 1e38, 12, 0.0
    config.optim.warmup_epochs = 0.0
    with pytest.raises(TrainingError, match=r"at step \d+, .*\(lr .*lower optim\.lr"):
        train(config, out=tmp_path / "run")


def test_gradients_are_named_where_the_loss_is_finite():
    numbers = dict.fromkeys(("loss", "g2g", "l2g", "masked", "affinity"), 1.0)
    numbers |= {"grad_norm": math.inf, "skipped": 5.0, "lr": 0.1}
    assert diagnosis(numbers, step=7).startswith("the norm of the gradients is inf at step 7")
