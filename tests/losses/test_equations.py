"""Losses against the equations written out, by hand, by numerical gradients and by properties."""

import math

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
from oracles import objective as oracle

SHAPES = [(2, 1, 1, 3), (4, 2, 3, 5), (6, 3, 2, 4)]


def drawn(*shape, positive=False):
    values = torch.randn(*shape, dtype=torch.float64)
    return torch.softmax(values, dim=-1) if positive else values.requires_grad_()


@pytest.mark.parametrize(("time", "batch", "crops", "classes"), SHAPES)
def test_out_generative_terms_equal_the_equations(time, batch, crops, classes):
    targets = drawn(time, batch, classes, positive=True)
    student, local = drawn(time, batch, classes), drawn(time, crops, batch, classes)
    g2g = global_to_global_loss(by_pairs(targets), by_pairs(student), temperature=0.1)
    l2g = local_to_global_loss(by_pairs(targets), by_pairs(local), temperature=0.1)
    terms = oracle.out_generative(targets, student, local, 0.1)
    means = [torch.stack(values).mean() for values in terms]
    for found, expected in zip((g2g, l2g), means, strict=True):
        torch.testing.assert_close(found, expected)
    found = torch.autograd.grad(g2g + l2g, (student, local), retain_graph=True)
    expected = torch.autograd.grad(sum(means), (student, local), retain_graph=True)
    torch.testing.assert_close(found, expected)
    joint = torch.stack(terms[0] + terms[1]).mean()
    weights = joint_weights(num_local=crops)
    torch.testing.assert_close(weights[0] * g2g + weights[1] * l2g, joint)


@pytest.mark.parametrize(("time", "batch", "masked", "classes"), SHAPES)
def test_in_generative_terms_equal_the_equations(time, batch, masked, classes):
    targets = drawn(time, batch, masked, classes, positive=True)
    student = drawn(time, batch, masked, classes)
    pairs = [
        (
            masked_prediction_loss(targets, student, temperature=0.1),
            oracle.masked_prediction(targets, student, 0.1),
        ),
        (affinity_loss(targets, student), oracle.affinity(targets, student, 0.04, 0.1)),
    ]
    for found, expected in pairs:
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad(x, student, retain_graph=True) for x in (found, expected)]
        torch.testing.assert_close(*gradients)

    assert by_pairs(torch.arange(6.0)).tolist() == [[0, 3], [1, 4], [2, 5]]


def test_global_to_global_by_hand():
    """Targets that are certain; the student says 3/4 and 1/4: -(log 3/4 + log 1/4) / 2."""
    targets = torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])
    student = torch.tensor([[[[0.75, 0.25]], [[0.25, 0.75]]]]).log()
    loss = global_to_global_loss(targets, student, temperature=1.0)
    assert loss.item() == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)


def test_local_to_global_by_hand():
    """One crop a frame and targets that disagree: the mean over both is that of even odds."""
    targets = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    student = torch.tensor([[[[[0.75, 0.25]]], [[[0.5, 0.5]]]]]).log()
    loss = local_to_global_loss(targets, student, temperature=1.0)
    expected = -(math.log(0.75) + math.log(0.25) + 2 * math.log(0.5)) / 4
    assert loss.item() == pytest.approx(expected)


def test_affinity_by_hand():
    """Orthogonal tokens that stay: the teacher's row is softmax(1/tau, 0)."""
    tokens = torch.eye(2)[None, None].expand(2, 1, 2, 2)
    loss = affinity_loss(tokens, tokens, teacher_temperature=0.5, student_temperature=1.0)
    goal = math.exp(2) / (math.exp(2) + 1)
    student = math.e / (math.e + 1)
    expected = -(goal * math.log(student) + (1 - goal) * math.log(1 - student))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_affinity_does_not_see_the_length_of_tokens_and_is_zero_for_one_frame():
    tokens = drawn(3, 2, 4, 5)
    torch.testing.assert_close(affinity_loss(tokens, tokens * 7), affinity_loss(tokens, tokens))
    single = affinity_loss(tokens[:1], tokens[:1])
    assert single.item() == 0
    assert torch.autograd.grad(single, tokens)[0].abs().max() == 0


def test_numerical_gradients():
    targets = drawn(2, 2, 3, 4, positive=True)
    student = drawn(2, 2, 3, 4)
    for loss in (
        lambda s: masked_prediction_loss(targets, s, temperature=0.5),
        lambda s: affinity_loss(targets, s, student_temperature=0.5),
        lambda s: global_to_global_loss(targets, s, temperature=0.5),
    ):
        assert torch.autograd.gradcheck(loss, student)


@pytest.mark.parametrize("update", ["step", "group"])
def test_targets_and_centres_equal_the_definition(update):
    logits, center = drawn(3, 2, 4).detach(), torch.randn(4, dtype=torch.float64)
    targets, moved = centered_targets(logits, center, temperature=0.04, momentum=0.9, update=update)
    expected = center.clone()
    for index, group in enumerate(logits):
        for row, found in zip(group, targets[index], strict=True):
            torch.testing.assert_close(found, oracle.target(row, expected, 0.04))
        if update == "group":
            expected = 0.9 * expected + 0.1 * group.mean(dim=0)
    if update == "step":
        expected = 0.9 * center + 0.1 * logits.flatten(0, 1).mean(dim=0)
    torch.testing.assert_close(moved, expected)


def test_the_centre_takes_the_mean_over_processes():
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
