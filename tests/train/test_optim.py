"""Schedules; steps that are taken or not as the device says; clipping; the loss scale of fp16."""

import copy

import numpy as np
import pytest
import torch

from ino.errors import ConfigError
from ino.models.student_teacher import StudentTeacher
from ino.models.vit import ProjectionHead, build_vit
from ino.train.config import OptimConfig
from ino.train.optim import (
    Schedules,
    build_optimizer,
    clip_gradients,
    cosine_schedule,
    set_rates,
    take_step,
)

YES, NO = torch.tensor(True), torch.tensor(False)


@pytest.fixture
def model():
    head = ProjectionHead(96, out_dim=12, hidden_dim=16, bottleneck_dim=8)
    return StudentTeacher(build_vit("vit_nano"), head)


@pytest.fixture
def optimizer(model):
    optimizer = build_optimizer(model.student)
    set_rates(optimizer, lr=0.1, weight_decay=0.5)
    return optimizer


def give_gradients(model, value: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.student.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * value


def state_of(model, optimizer) -> list[torch.Tensor]:
    moments = [value for entry in optimizer.state.values() for value in entry.values()]
    return [value.clone() for value in [*model.student.parameters(), *moments]]


def test_a_step_that_is_not_taken_leaves_parameters_moments_and_count(model, optimizer):
    give_gradients(model, 1.0)
    take_step(optimizer, where=YES, scaler=None)
    before = state_of(model, optimizer)
    give_gradients(model, float("nan"))
    take_step(optimizer, where=NO, scaler=None)
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(model, optimizer), strict=True))
    give_gradients(model, 2.0)
    take_step(optimizer, where=YES, scaler=None)
    assert not torch.equal(before[0], state_of(model, optimizer)[0])


def test_it_is_adamw(model, optimizer):
    plain_model = copy.deepcopy(model)
    plain = build_optimizer(plain_model.student)
    groups = [{"params": g["params"], "decayed": g["decayed"]} for g in plain.param_groups]
    plain = torch.optim.AdamW(groups, fused=False, foreach=False)
    set_rates(plain, lr=0.1, weight_decay=0.5)
    for value in (1.0, 3.0):
        give_gradients(model, value)
        give_gradients(plain_model, value)
        take_step(optimizer, where=YES, scaler=None)
        plain.step()
    parameters = zip(model.student.parameters(), plain_model.student.parameters(), strict=True)
    for found, expected in parameters:
        torch.testing.assert_close(found, expected)


def test_the_loss_scale_falls_when_gradients_overflow_and_steps_are_those_without(model, optimizer):
    twin = copy.deepcopy(model)
    twin_optimizer = build_optimizer(twin.student)
    set_rates(twin_optimizer, lr=0.1, weight_decay=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    scaler.scale(torch.zeros(()))
    give_gradients(model, float("inf"))
    scaler.unscale_(optimizer)
    take_step(optimizer, where=NO, scaler=scaler)
    assert scaler.get_scale() == 128.0
    give_gradients(model, 128.0)
    scaler.unscale_(optimizer)
    take_step(optimizer, where=YES, scaler=scaler)
    give_gradients(twin, 1.0)
    take_step(twin_optimizer, where=YES, scaler=None)
    for found, expected in zip(model.student.parameters(), twin.student.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_teacher_follows_only_where_it_should(model):
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1)
    teacher = list(model.teacher.parameters())
    before = [parameter.clone() for parameter in teacher]
    model.update_teacher(0.75, where=NO)
    assert all(torch.equal(new, old) for new, old in zip(teacher, before, strict=True))
    model.update_teacher(0.75, where=YES)
    for new, old in zip(teacher, before, strict=True):
        torch.testing.assert_close(new, old + 0.25)


def test_each_gradient_is_clipped_by_itself():
    first, second = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3))
    first.grad, second.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0, 0.0])
    norm = clip_gradients([first, second, torch.nn.Parameter(torch.zeros(1))], max_norm=2.0)
    torch.testing.assert_close(norm, torch.tensor(26.0).sqrt())
    torch.testing.assert_close(first.grad, torch.tensor([1.2, 1.6]), atol=1e-5, rtol=0)
    assert torch.equal(second.grad, torch.tensor([0.0, 1.0, 0.0]))


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
