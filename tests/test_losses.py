"""Losses by the paper's equations as loops, by hand, by golden numbers and by properties."""

import math

import numpy as np
import pytest
import torch

from ino.losses import (
    Objective,
    affinity_loss,
    centered_targets,
    frame_pairs,
    global_to_global_loss,
    joint_weights,
    local_to_global_loss,
    masked_prediction_loss,
)
from oracles import objective as oracle

SHAPES = [(2, 1, 1, 3), (4, 2, 3, 5), (6, 3, 2, 4)]  # (time, batch, crops or masked, classes)


def sampled(*shape, positive=False):
    values = torch.randn(*shape, dtype=torch.float64)
    return torch.softmax(values, dim=-1) if positive else values.requires_grad_()


def assert_equal_gradients(found, expected, leaves):
    torch.testing.assert_close(found, expected)
    first, second = (torch.autograd.grad(x, leaves, retain_graph=True) for x in (found, expected))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize(("time", "batch", "crops", "classes"), SHAPES)
def test_out_generative_terms_equal_the_equations(time, batch, crops, classes):
    targets = sampled(time, batch, classes, positive=True)
    student, local = sampled(time, batch, classes), sampled(time, crops, batch, classes)
    g2g = global_to_global_loss(frame_pairs(targets), frame_pairs(student), temperature=0.1)
    l2g = local_to_global_loss(frame_pairs(targets), frame_pairs(local), temperature=0.1)
    terms = oracle.out_generative(targets, student, local, 0.1)
    assert_equal_gradients(g2g, torch.stack(terms[0]).mean(), [student])
    assert_equal_gradients(l2g, torch.stack(terms[1]).mean(), [local])
    weights = joint_weights(num_local=crops)
    joint = torch.stack(terms[0] + terms[1]).mean()
    torch.testing.assert_close(weights[0] * g2g + weights[1] * l2g, joint)


@pytest.mark.parametrize(("time", "batch", "masked", "classes"), SHAPES)
def test_in_generative_terms_equal_the_equations(time, batch, masked, classes):
    targets = sampled(time, batch, masked, classes, positive=True)
    student = sampled(time, batch, masked, classes)
    found = masked_prediction_loss(targets, student, temperature=0.1)
    assert_equal_gradients(found, oracle.masked_prediction(targets, student, 0.1), [student])
    found = affinity_loss(targets, student)
    assert_equal_gradients(found, oracle.affinity(targets, student, 0.04, 0.1), [student])


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize(("time", "batch", "masked", "classes"), SHAPES)
def test_the_objective_equals_the_equations(variant, time, batch, masked, classes):
    """Two steps of the whole: targets, terms, their sum, its gradients, and where centers move."""
    options = {}
    if variant == "released":
        options = {"center_update": "group", "out_mean": "joint", "affinity_on": "logits"}
    objective = Objective(num_classes=classes, num_local=3, **options).double()
    centers = {"class": torch.zeros(classes).double(), "patch": torch.zeros(classes).double()}
    for _ in range(2):
        teacher = {
            "class": sampled(time, batch, classes).detach(),
            "patch": sampled(time, batch, masked, classes).detach(),
        }
        student = (
            sampled(time, batch, classes),
            sampled(time, 3, batch, classes),
            sampled(time, batch, masked, classes),
        )
        targets = objective.targets(teacher["class"], teacher["patch"])
        terms = objective(targets, *student)
        objective.update_centers(targets)
        expected, centers = oracle.objective(teacher, student, centers, variant=variant)
        for name, value in expected.items():
            torch.testing.assert_close(getattr(terms, name), value, msg=name)
        assert_equal_gradients(terms.loss, expected["loss"], list(student))
        torch.testing.assert_close(objective.class_center, centers["class"])
        torch.testing.assert_close(objective.patch_center, centers["patch"])


def test_centers_stay_where_a_step_is_not_taken():
    objective = Objective(num_classes=3, num_local=0)
    targets = objective.targets(torch.ones(2, 1, 3), torch.ones(2, 1, 4, 3))
    objective.update_centers(targets, where=torch.tensor(False))
    assert objective.class_center.tolist() == objective.patch_center.tolist() == [0, 0, 0]
    objective.update_centers(targets, where=torch.tensor(True))
    torch.testing.assert_close(objective.class_center, torch.full((3,), 0.1))
    torch.testing.assert_close(objective.patch_center, torch.full((3,), 0.1))


def test_frames_are_paired_half_a_clip_apart():
    assert frame_pairs(torch.arange(6.0)).tolist() == [[0, 3], [1, 4], [2, 5]]


def test_global_to_global_by_hand():
    """Targets that are certain; the student says 3/4 and 1/4: -(log 3/4 + log 1/4) / 2."""
    targets = torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])
    student = torch.tensor([[[[0.75, 0.25]], [[0.25, 0.75]]]]).log()
    loss = global_to_global_loss(targets, student, temperature=1.0)
    assert loss.item() == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)


def test_local_to_global_by_hand():
    """One crop per frame and targets that disagree: the mean over both is that of even odds."""
    targets = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    student = torch.tensor([[[[[0.75, 0.25]]], [[[0.5, 0.5]]]]]).log()
    loss = local_to_global_loss(targets, student, temperature=1.0)
    expected = -(math.log(0.75) + math.log(0.25) + 2 * math.log(0.5)) / 4
    assert loss.item() == pytest.approx(expected)


def test_masked_prediction_by_hand():
    """Two frames of one masked position: targets 1/2 and 1, of which the student says 3/4."""
    targets = torch.tensor([[[[0.5, 0.5]]], [[[1.0, 0.0]]]])
    student = torch.tensor([[[[0.75, 0.25]]], [[[0.75, 0.25]]]]).log()
    loss = masked_prediction_loss(targets, student, temperature=1.0)
    assert loss.item() == pytest.approx(-(1.5 * math.log(0.75) + 0.5 * math.log(0.25)) / 2)


def test_affinity_by_hand():
    """Orthogonal tokens that stay: the teacher's row is softmax(1/tau, 0)."""
    tokens = torch.eye(2)[None, None].expand(2, 1, 2, 2)
    loss = affinity_loss(tokens, tokens, teacher_temperature=0.5, student_temperature=1.0)
    goal = math.exp(2) / (math.exp(2) + 1)
    student = math.e / (math.e + 1)
    expected = -(goal * math.log(student) + (1 - goal) * math.log(1 - student))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_affinity_ignores_the_length_of_tokens_and_is_zero_for_one_frame():
    tokens = sampled(3, 2, 4, 5)
    torch.testing.assert_close(affinity_loss(tokens, tokens * 7), affinity_loss(tokens, tokens))
    single = affinity_loss(tokens[:1], tokens[:1])
    assert single.item() == 0
    assert torch.autograd.grad(single, tokens)[0].abs().max() == 0


def test_numerical_gradients():
    targets = sampled(2, 2, 3, 4, positive=True)
    student = sampled(2, 2, 3, 4)
    for loss in (
        lambda s: masked_prediction_loss(targets, s, temperature=0.5),
        lambda s: affinity_loss(targets, s, student_temperature=0.5),
        lambda s: global_to_global_loss(targets, s, temperature=0.5),
    ):
        assert torch.autograd.gradcheck(loss, student)


@pytest.mark.parametrize("update", ["step", "group"])
def test_targets_and_centers_equal_the_definition(update):
    logits, center = sampled(3, 2, 4).detach(), torch.randn(4, dtype=torch.float64)
    found = centered_targets(logits, center, temperature=0.04, momentum=0.9, update=update)
    torch.testing.assert_close(found, oracle.centered(logits, center, update=update))


def test_the_center_takes_the_mean_over_processes():
    logits = torch.ones(1, 2, 3)
    _, moved = centered_targets(
        logits, torch.zeros(3), temperature=1.0, momentum=0.5, reduce_mean=lambda mean: mean + 1
    )
    assert moved.tolist() == [1.0, 1.0, 1.0]


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[[[1e4, -1e4, 0.0]]]])
    targets, _ = centered_targets(logits, torch.zeros(3), temperature=0.04)
    loss = masked_prediction_loss(targets, -logits, temperature=0.1)
    assert torch.isfinite(targets).all()
    assert torch.isfinite(loss)


def test_no_term_counts_with_weight_zero():
    assert joint_weights(num_local=8, weight_l2g=0.0) == (1, 0)
    assert joint_weights(num_local=8, weight_g2g=0.0) == (0, 1)
    assert joint_weights(num_local=8, weight_g2g=0.0, weight_l2g=0.0) == (0, 0)


# `variant: released` against numbers of the released code, in float64

TOLERANCE = {"f64": 1e-10, "f32": 1e-5}


@pytest.fixture
def numbers(golden):
    return golden("losses")


def tensors(numbers, precision, *names):
    dtype = torch.float64 if precision == "f64" else torch.float32
    found = [torch.from_numpy(numbers[name]) for name in names]
    return [value if value.dtype == torch.bool else value.to(dtype) for value in found]


def start_center(numbers, precision, center):
    [values] = tensors(numbers, precision, "center0")
    return values[0] if center == "rand" else torch.zeros_like(values[0])


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("center", ["zero", "rand"])
@pytest.mark.parametrize("crops", ["full", "g2g"])
def test_golden_out_generative(numbers, precision, center, crops):
    names = ("teacher_cls", "student_cls_global", "student_cls_local")
    teacher, student, local = tensors(numbers, precision, *names)
    student.requires_grad_()
    local.requires_grad_()
    num_local = 8
    targets, moved = centered_targets(
        frame_pairs(teacher),
        start_center(numbers, precision, center),
        temperature=0.04,
        update="group",
    )
    g2g = global_to_global_loss(targets, frame_pairs(student), temperature=0.1)
    crops_of_pairs = frame_pairs(local.unflatten(1, (num_local, -1)))
    l2g = local_to_global_loss(targets, crops_of_pairs, temperature=0.1)
    weights = joint_weights(num_local=num_local) if crops == "full" else (1.0, 0.0)
    loss = weights[0] * g2g + weights[1] * l2g
    loss.backward()
    key, tolerance = f"out_{crops}_center{center}_{precision}", TOLERANCE[precision]
    np.testing.assert_allclose(loss.item(), numbers[f"{key}_loss"], atol=tolerance)
    np.testing.assert_allclose(student.grad, numbers[f"{key}_grad_global"], atol=tolerance)
    np.testing.assert_allclose(moved, numbers[f"{key}_center_after"][0], atol=tolerance)
    if crops == "full":
        np.testing.assert_allclose(local.grad, numbers[f"{key}_grad_local"], atol=tolerance)


def masked_tokens(numbers, precision):
    teacher, student, mask = tensors(numbers, precision, "teacher_hw", "student_hw", "mask")
    time, batch = teacher.shape[:2]
    mask = mask[:, 0]

    def at_mask(tokens):
        return tokens[mask].unflatten(0, (time, batch, -1))

    student.requires_grad_()
    return at_mask(teacher), at_mask(student), student


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("center", ["zero", "rand"])
def test_golden_masked_prediction(numbers, precision, center):
    teacher, student, leaf = masked_tokens(numbers, precision)
    targets, moved = centered_targets(
        teacher, start_center(numbers, precision, center), temperature=0.04, update="group"
    )
    loss = masked_prediction_loss(targets, student, temperature=0.1)
    loss.backward()
    key, tolerance = f"mim_center{center}_{precision}", TOLERANCE[precision]
    np.testing.assert_allclose(loss.item(), numbers[f"{key}_loss"], atol=tolerance)
    np.testing.assert_allclose(leaf.grad, numbers[f"{key}_grad"], atol=tolerance)
    np.testing.assert_allclose(moved, numbers[f"{key}_center_after"][0], atol=tolerance)


@pytest.mark.parametrize("precision", ["f64", "f32"])
def test_golden_affinity(numbers, precision):
    teacher, student, leaf = masked_tokens(numbers, precision)
    loss = affinity_loss(teacher, student)
    loss.backward()
    key, tolerance = f"aff_{precision}", TOLERANCE[precision]
    np.testing.assert_allclose(loss.item(), numbers[f"{key}_loss"], atol=tolerance)
    np.testing.assert_allclose(leaf.grad, numbers[f"{key}_grad"], atol=tolerance)


def test_golden_affinity_of_all_positions(numbers):
    teacher, student = tensors(numbers, "f64", "teacher_hw", "student_hw")
    expected = numbers["aff_fullmask_f64_loss"]
    np.testing.assert_allclose(affinity_loss(teacher, student).item(), expected, atol=1e-10)
