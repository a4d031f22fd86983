"""Schedules against the released code and by hand."""

import numpy as np
import pytest

from ino.errors import ConfigError
from ino.train.config import OptimConfig
from ino.train.optim import Schedules, cosine_schedule


@pytest.mark.parametrize("run", ["charades", "kinetics", "default", "tiny"])
def test_schedules_equal_the_released_code(golden, run):
    numbers = golden("schedules")
    lr, min_lr, warmup, epochs, steps, batch, length, devices, wd, wd_end, momentum = numbers[
        f"{run}_config"
    ].tolist()
    schedules = Schedules(
        OptimConfig(
            epochs=int(epochs),
            lr=lr,
            min_lr=min_lr,
            warmup_epochs=warmup,
            weight_decay=wd,
            weight_decay_end=wd_end,
            teacher_momentum=momentum,
        ),
        steps_per_epoch=int(steps),
        frames_per_step=int(batch * length * devices),
    )
    found = np.array([schedules.at(step) for step in range(int(epochs * steps))])
    for column, name in enumerate(("lr", "wd", "momentum")):
        np.testing.assert_allclose(found[:, column], numbers[f"{run}_{name}"], atol=1e-12)


def test_a_schedule_that_starts_at_epoch_one_holds_its_last_value():
    config = OptimConfig(epochs=2, first_epoch=1, warmup_epochs=0.0)
    schedules = Schedules(config, steps_per_epoch=3, frames_per_step=1024)
    plain = Schedules(
        OptimConfig(epochs=2, warmup_epochs=0.0), steps_per_epoch=3, frames_per_step=1024
    )
    assert [schedules.at(step) for step in range(3)] == [plain.at(step) for step in (3, 4, 5)]
    assert {schedules.at(step) for step in (2, 3, 5)} == {plain.at(5)}


def test_cosine_by_hand():
    values = cosine_schedule(1.0, 0.0, num_steps=6, warmup_steps=2)
    half = np.sqrt(0.5) / 2
    np.testing.assert_allclose(values, [0, 1, 1, 0.5 + half, 0.5, 0.5 - half])


def test_a_warm_up_longer_than_the_run_is_cut():
    assert len(cosine_schedule(1.0, 0.0, num_steps=3, warmup_steps=5)) == 3


def test_a_run_of_more_steps_than_any_takes_is_refused():
    with pytest.raises(ConfigError, match=r"optim\.epochs is 100000000000, .* at most 100000000"):
        Schedules(OptimConfig(epochs=10**11), steps_per_epoch=3, frames_per_step=8)
