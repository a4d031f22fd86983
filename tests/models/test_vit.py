"""The backbone against the released code's features and against its own invariants."""

import copy
import zlib
from functools import cache
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ino.errors import ConfigError
from ino.models.load import load_backbone
from ino.models.vit import (
    VisionTransformer,
    build_vit,
    interpolate_positions,
    sincos_positions,
)


@pytest.fixture
def tiny48(golden):
    vit = VisionTransformer(embed_dim=48, depth=4, num_heads=3).eval()
    weights = {key: torch.from_numpy(value) for key, value in golden("vit_tiny48_weights").items()}
    vit.load_state_dict(weights)
    return vit


@pytest.mark.parametrize("size", ["64x64", "48x104"])
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_every_block_equals_the_released_code(golden, tiny48, size, masked):
    numbers = golden(f"vit_tiny48_{size}")
    images = torch.from_numpy(numbers["x_f16"])
    mask = torch.from_numpy(numbers["mask"]) if masked else None
    expected = numbers["layers_mask" if masked else "layers_nomask"]
    for index, layer in enumerate(expected):
        tokens = tiny48(images, mask, num_blocks=index + 1).numpy()
        np.testing.assert_allclose(tokens, layer, atol=1e-5)


@pytest.mark.parametrize("size", ["64x64", "48x104"])
def test_positions_equal_the_released_code(golden, tiny48, size):
    numbers = golden(f"vit_tiny48_{size}")
    rows, columns = (int(side) // 8 for side in size.split("x"))
    positions = interpolate_positions(tiny48.pos_embed, rows=rows, columns=columns)
    np.testing.assert_allclose(positions.detach(), numbers["pos_embed_used"], atol=1e-6)


@torch.no_grad()
def test_kept_positions_follow_the_parameter(tiny48):
    vit = copy.deepcopy(tiny48)
    images = torch.zeros(1, 3, 48, 104)
    before = vit(images)
    assert torch.equal(vit(images), before)
    vit.pos_embed.mul_(1.5)
    changed = vit(images)
    assert not torch.allclose(changed, before)
    other = copy.deepcopy(vit)
    other.pos_embed.div_(1.5)
    assert torch.allclose(other(images), before, atol=1e-5)
    assert torch.equal(vit(images), changed)


@pytest.mark.parametrize(
    ("size", "batch", "seed"), [("64x64", 2, 20), ("224x224", 1, 21), ("120x208", 1, 22)]
)
@torch.no_grad()
def test_twelve_blocks_of_formula_weights(golden, size, batch, seed):
    numbers = golden("vit_tiny8_formula_weights")
    vit = build_vit("vit_tiny").eval()
    assert set(numbers["keys"]) == set(vit.state_dict())
    vit.load_state_dict({k: formula_weight(k, v.shape) for k, v in vit.state_dict().items()})
    height, width = (int(side) for side in size.split("x"))
    drawn = np.random.RandomState(seed).standard_normal((batch, 3, height, width))
    images = torch.from_numpy(drawn.astype(np.float16).astype(np.float32))
    num_tokens = height * width // 64
    mask = torch.from_numpy(np.random.RandomState(seed + 100).rand(batch, num_tokens) < 0.3)
    outputs: list[torch.Tensor] = []
    for block in vit.blocks:
        block.register_forward_hook(lambda *given: outputs.append(given[-1]))
    for name, token_mask in (("nomask", None), ("mask", mask)):
        outputs.clear()
        last = vit(images, token_mask)
        assert torch.equal(last, vit.norm(outputs[-1]))
        for index, output in enumerate(outputs):
            tokens = vit.norm(output).numpy()
            expected = numbers[f"{size}_{name}_cls"][index]
            np.testing.assert_allclose(tokens[:, 0], expected, atol=1e-5)
            expected = numbers[f"{size}_{name}_tok_slice"][index]
            step = max(1, num_tokens // 8)
            np.testing.assert_allclose(tokens[:, 1:][:, ::step, :16], expected, atol=1e-5)


@cache
def formula_weight(key: str, shape: torch.Size) -> torch.Tensor:
    """The weights that golden/README.md gives as a formula of their name."""
    state = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)
    drawn = state.standard_normal(tuple(shape)).astype(np.float32)
    if key.endswith("weight") and "norm" in key:
        return torch.from_numpy(1 + 0.02 * drawn)
    return torch.from_numpy((0.02 if len(shape) == 1 else 0.05) * drawn)


@torch.no_grad()
def test_masked_patches_do_not_reach_the_result():
    vit = build_vit("vit_nano").eval()
    images = torch.randn(1, 3, 64, 64)
    mask = torch.zeros(1, 64, dtype=torch.bool)
    mask[0, 9] = True  # row 1, column 1
    changed = images.clone()
    changed[..., 8:16, 8:16] += 1
    torch.testing.assert_close(vit(images, mask), vit(changed, mask))
    assert (vit(images) - vit(changed)).abs().max() > 1e-3


@torch.no_grad()
def test_timm_reads_the_same_features():
    vit = build_vit("vit_nano").eval()
    images = torch.randn(1, 3, 40, 72)
    maps = vit.forward_intermediates(
        images, indices=[6], norm=True, stop_early=True, intermediates_only=True
    )
    ours = vit(images, num_blocks=7)[:, 1:].transpose(1, 2).unflatten(2, (5, 9))
    torch.testing.assert_close(maps[0], ours)


def test_initial_weights_follow_the_released_statistics():
    vit = build_vit("vit_small", drop_path=0.1)
    for name, parameter in vit.named_parameters():
        if "norm" in name or name.endswith("bias"):
            continue
        expected = 0.0415 if name == "patch_embed.proj.weight" else 0.02
        assert abs(parameter.std().item() - expected) < 0.0025, name
    assert sum(parameter.numel() for parameter in vit.parameters()) == 21394176
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in vit.blocks]
    np.testing.assert_allclose(rates, np.linspace(0, 0.1, 12), atol=1e-6)


def test_sines_and_cosines_tell_how_far_positions_are_apart():
    torch.manual_seed(0)
    noise = build_vit("vit_nano")
    torch.manual_seed(0)
    vit = build_vit("vit_nano", positions="sincos", position_grid_side=8)
    for name, value in noise.state_dict().items():
        assert torch.equal(value, vit.state_dict()[name]) == (name != "pos_embed")
    assert torch.equal(vit.pos_embed[:, :1], noise.pos_embed[:, :1])
    assert vit.pos_embed.requires_grad
    named: Any = load_backbone("random:vit_nano/8+sincos", seed=0)
    assert torch.equal(named.vit.pos_embed, vit.pos_embed)
    with pytest.raises(ConfigError, match="unknown architecture"):
        load_backbone("random:resnet18+sincos")
    grid = sincos_positions(8, dim=96).unflatten(0, (8, 8))
    below, right = grid[1, 0] @ grid[3, 0], grid[0, 1] @ grid[0, 3]
    torch.testing.assert_close(below, grid[4, 6] @ grid[6, 6])  # wherever they are
    torch.testing.assert_close(below, right)
    near = (grid.flatten(0, 1) @ grid[3, 4]).argsort(descending=True)[:5]
    assert set(near.tolist()) == {28, 20, 27, 29, 36}  # row 3, column 4, and its neighbors


@pytest.mark.parametrize(("arch", "patch_size"), [("vit_huge", 8), ("vit_tiny", 7)])
def test_unknown_architectures_are_refused(arch, patch_size):
    with pytest.raises(ConfigError, match="choose"):
        build_vit(arch, patch_size=patch_size)


@torch.no_grad()
def test_attention_in_bf16_is_that_of_fp32_whatever_computes_it(monkeypatch):
    torch.manual_seed(0)
    vit = build_vit("vit_nano").eval()
    images = torch.randn(2, 3, 64, 64)
    fused = Mock(wraps=F.scaled_dot_product_attention)
    monkeypatch.setattr(F, "scaled_dot_product_attention", fused)
    exact = vit(images)
    assert fused.call_count == 12
    with torch.autocast("cpu", torch.bfloat16):
        found = vit(images)
    assert fused.call_count == 12
    assert (found - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("read", [[], [3], [0, 5, 15]])
def test_outputs_are_those_of_all_positions_wherever_they_are_read(read):
    vit = build_vit("vit_nano", drop_path=0.5).train()
    images = torch.randn(3, 3, 32, 32)
    positions = torch.tensor(read, dtype=torch.int64).expand(3, -1)
    gradients = []
    for only_read in (False, True):
        torch.manual_seed(1)  # drop path
        tokens = (
            vit(images, read=positions)
            if only_read
            else vit(images)[:, [0, *(i + 1 for i in read)]]
        )
        gradients.append(torch.autograd.grad(tokens.square().sum(), [*vit.blocks.parameters()]))
        gradients[-1] += (tokens,)
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_activation_checkpointing_changes_no_number():
    vit = build_vit("vit_nano", drop_path=0.5).train()
    images = torch.randn(2, 3, 32, 32)
    found = []
    for recompute in (False, True):
        vit.set_grad_checkpointing(recompute)
        torch.manual_seed(1)
        tokens = vit(images, read=torch.zeros(2, 1, dtype=torch.int64))
        found.append(
            (tokens, *torch.autograd.grad(tokens.square().sum(), [*vit.blocks.parameters()]))
        )
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)
