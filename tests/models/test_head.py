"""The projection head against the released code: outputs and gradients."""

import numpy as np
import pytest
import torch

from ino.models.vit import ProjectionHead


@pytest.fixture
def numbers(golden):
    return golden("dinohead")


@pytest.fixture
def gain(numbers):
    """The golden head has gains; ours are fixed at 1, so the test applies them to its logits."""
    return torch.from_numpy(numbers["w.last_layer.weight_g"][:, 0])


@pytest.fixture
def head(numbers):
    head = ProjectionHead(48, out_dim=96, hidden_dim=64, bottleneck_dim=32)
    released = {key.removeprefix("w."): value for key, value in numbers.items() if key[:2] == "w."}
    del released["last_layer.weight_g"]
    released["last_layer.weight"] = released.pop("last_layer.weight_v")
    head.load_state_dict({key: torch.from_numpy(value) for key, value in released.items()})
    return head


def test_outputs_and_gradients_equal_the_released_code(numbers, head, gain):
    inputs = torch.from_numpy(numbers["x"]).requires_grad_()
    logits = head(inputs) * gain
    np.testing.assert_allclose(logits.detach(), numbers["y"], atol=1e-5)
    logits.backward(torch.from_numpy(numbers["gy"]))
    np.testing.assert_allclose(inputs.grad, numbers["gx"], atol=1e-5)
    for name, parameter in head.named_parameters():
        expected = numbers["grad." + name.replace("last_layer.weight", "last_layer.weight_v")]
        np.testing.assert_allclose(parameter.grad, expected, atol=1e-5, err_msg=name)


def test_more_dimensions_are_kept(numbers, head, gain):
    logits = head(torch.from_numpy(numbers["x3"])) * gain
    np.testing.assert_allclose(logits.detach(), numbers["y3"], atol=1e-5)


def test_logits_are_cosines_in_full_precision_under_autocast(head):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(torch.randn(4, 48) * 100)
    assert logits.dtype == torch.float32
    assert logits.abs().max() <= 1 + 1e-6


def test_the_length_of_the_last_rows_does_not_matter(numbers, head):
    inputs = torch.from_numpy(numbers["x"])
    before = head(inputs)
    with torch.no_grad():
        head.last_layer.weight *= 3
    torch.testing.assert_close(head(inputs), before)
