"""Two whole training iterations of `variant: released` against the released code."""

import numpy as np
import pytest
import torch

from ino.losses import Objective
from ino.models.student_teacher import StudentTeacher, Views
from ino.models.vit import ProjectionHead, VisionTransformer
from ino.train.config import OptimConfig
from ino.train.optim import Schedules, build_optimizer, clip_gradients, set_rates

pytestmark = pytest.mark.real


@pytest.fixture
def numbers(shared_golden):
    names = ("weights", "inputs", "forward", "grads_it0", "student_after_it0", "result", "final")
    return {name: dict(np.load(shared_golden / f"step_{name}.npz")) for name in names}


def ours(name: str) -> str:
    """Our name of a released parameter."""
    name = name.removeprefix("module.").replace("headlist.headlist.0", "head")
    return name.replace("last_layer.weight_v", "last_layer.weight")


def load(network: torch.nn.Module, weights: dict, prefix: str) -> None:
    released = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    gain = released.pop("headlist.headlist.0.last_layer.weight_g")
    np.testing.assert_array_equal(gain, 1.0)
    network.load_state_dict({ours(k): torch.from_numpy(v) for k, v in released.items()})


def assert_parameters(network: torch.nn.Module, expected: dict, prefix: str, atol: float) -> None:
    for name, parameter in network.named_parameters():
        released = prefix + name.replace("head.", "headlist.headlist.0.")
        released = released.replace("last_layer.weight", "last_layer.weight_v")
        np.testing.assert_allclose(parameter.detach(), expected[released], atol=atol, err_msg=name)


def step_views(inputs: dict, iteration: int) -> Views:
    crops = torch.from_numpy(inputs["global_f16"][iteration].astype(np.float32))[:, 0]
    local = torch.from_numpy(inputs["local_f16"][iteration].astype(np.float32))
    masked = torch.from_numpy(inputs["mask"][iteration]).nonzero()[:, 0]
    return Views(crops, local, masked.expand(crops.shape[1], -1))


def test_two_iterations(numbers):
    model = StudentTeacher(
        VisionTransformer(embed_dim=48, depth=4, num_heads=3),
        ProjectionHead(48, out_dim=96, hidden_dim=64, bottleneck_dim=32),
    ).train()
    load(model.student, numbers["weights"], "student.")
    load(model.teacher, numbers["weights"], "teacher.")
    objective = Objective(
        num_classes=96,
        num_local=2,
        center_update="group",
        out_mean="joint",
        affinity_on="logits",
    )
    optimizer = build_optimizer(model.student)
    schedules = Schedules(
        OptimConfig(
            epochs=3,
            lr=0.05,
            warmup_epochs=1.0,
            weight_decay=2.0,
            weight_decay_end=8.0,
            teacher_momentum=0.9,
            first_epoch=1,
        ),
        steps_per_epoch=2,
        frames_per_step=8,
    )
    result = numbers["result"]
    for iteration in (0, 1):
        lr, weight_decay, momentum = schedules.at(iteration)
        expected = result[f"it{iteration}_lr_wd_groups"]
        np.testing.assert_allclose([lr, weight_decay], expected[0], rtol=1e-6)
        assert expected[1].tolist() == pytest.approx([lr, 0.0])
        assert momentum == pytest.approx(result["momentum"][iteration])
        set_rates(optimizer, lr=lr, weight_decay=weight_decay)
        views = step_views(numbers["inputs"], iteration)
        student, teacher = model(views, role="student"), model(views, role="teacher")
        if iteration == 0:
            check_forward(numbers, student, teacher)
        targets = objective.targets(teacher.global_class, teacher.patch)
        terms = objective(targets, *student)
        objective.update_centers(targets)
        check_losses(result, iteration, terms, objective)
        terms.loss.backward()
        if iteration == 0:
            check_gradients(numbers["grads_it0"], model.student)
        clip_gradients(model.student.parameters(), max_norm=0.02)
        optimizer.step()
        optimizer.zero_grad()
        if iteration == 0:
            assert_parameters(model.student, numbers["student_after_it0"], "", atol=2e-5)
        model.update_teacher(momentum)
    assert_parameters(model.student, numbers["final"], "student.", atol=2e-5)
    assert_parameters(model.teacher, numbers["final"], "teacher.", atol=2e-5)


def check_forward(numbers, student, teacher):
    forward, mask = numbers["forward"], numbers["inputs"]["mask"][0]

    def close(found, expected):
        np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5)

    close(teacher.global_class.flatten(0, 1), forward["teacher_cls"])
    close(student.global_class.flatten(0, 1), forward["student_cls_global"])
    close(student.local_class.flatten(0, 2), forward["student_cls_local"])
    close(teacher.patch.flatten(0, 1), forward["teacher_hw"][:, mask])
    close(student.patch.flatten(0, 1), forward["student_hw_global"][:, mask])


def check_losses(result, iteration, terms, objective):
    key, num_local = f"it{iteration}", 2
    out = (2 * terms.g2g + 4 * num_local * terms.l2g) / (2 + 4 * num_local)
    for found, name in ((out, "loss_cfdino"), (terms.masked, "loss_mim")):
        assert found.item() == pytest.approx(float(result[f"{key}_{name}"]), abs=1e-5)
    assert terms.affinity.item() == pytest.approx(float(result[f"{key}_loss_affine"]), abs=1e-5)
    assert terms.loss.item() == pytest.approx(float(result[f"{key}_loss"]), abs=2e-5)
    for found, name in ((objective.class_center, "cls"), (objective.patch_center, "hw")):
        np.testing.assert_allclose(found, result[f"{key}_center_{name}"][0], atol=1e-5)


def check_gradients(expected, student):
    gradients = {ours(name): value for name, value in expected.items()}
    for name, parameter in student.named_parameters():
        np.testing.assert_allclose(parameter.grad, gradients[name], atol=1e-5, err_msg=name)
