"""Losses, gradients and centres of `variant: released` against the released code, in float64."""

import numpy as np
import pytest
import torch

from ino.losses import (
    affinity_loss,
    by_pairs,
    centered_targets,
    global_to_global_loss,
    joint_weights,
    local_to_global_loss,
    masked_prediction_loss,
)

TOLERANCE = {"f64": 1e-10, "f32": 1e-5}


@pytest.fixture
def numbers(golden):
    return golden("losses")


def tensors(numbers, precision, *names):
    dtype = torch.float64 if precision == "f64" else torch.float32
    found = [torch.from_numpy(numbers[name]) for name in names]
    return [value if value.dtype == torch.bool else value.to(dtype) for value in found]


def start_center(numbers, precision, center):
    [drawn] = tensors(numbers, precision, "center0")
    return drawn[0] if center == "rand" else torch.zeros_like(drawn[0])


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("center", ["zero", "rand"])
@pytest.mark.parametrize("crops", ["full", "g2g"])
def test_out_generative(numbers, precision, center, crops):
    names = ("teacher_cls", "student_cls_global", "student_cls_local")
    teacher, student, local = tensors(numbers, precision, *names)
    student.requires_grad_()
    local.requires_grad_()
    num_local = 8
    targets, moved = centered_targets(
        by_pairs(teacher),
        start_center(numbers, precision, center),
        temperature=0.04,
        update="group",
    )
    g2g = global_to_global_loss(targets, by_pairs(student), temperature=0.1)
    crops_of_pairs = by_pairs(local.unflatten(1, (num_local, -1)))
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
def test_masked_prediction(numbers, precision, center):
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
def test_affinity(numbers, precision):
    teacher, student, leaf = masked_tokens(numbers, precision)
    loss = affinity_loss(teacher, student)
    loss.backward()
    key, tolerance = f"aff_{precision}", TOLERANCE[precision]
    np.testing.assert_allclose(loss.item(), numbers[f"{key}_loss"], atol=tolerance)
    np.testing.assert_allclose(leaf.grad, numbers[f"{key}_grad"], atol=tolerance)


def test_affinity_of_all_positions(numbers):
    teacher, student = tensors(numbers, "f64", "teacher_hw", "student_hw")
    expected = numbers["aff_fullmask_f64_loss"]
    np.testing.assert_allclose(affinity_loss(teacher, student).item(), expected, atol=1e-10)
