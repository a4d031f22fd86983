"""The interface that mask propagation relies on."""

import pytest
import torch

from ino.errors import ConfigError
from ino.models.backbone import choose_device
from ino.models.load import load_backbone


@pytest.mark.parametrize("name", ["color", "random:vit_nano/8", "random:vit_nano/16"])
@torch.no_grad()
def test_feature_maps_have_the_stride_s_size(name):
    backbone = load_backbone(name)
    size = (6 * backbone.stride, 9 * backbone.stride)
    features = backbone(torch.randn(2, 3, *size), layer=backbone.num_layers)
    assert features.shape[0] == 2
    assert features.shape[2:] == (6, 9)


@torch.no_grad()
def test_features_lie_where_the_patch_is():
    backbone = load_backbone("color")
    images = torch.zeros(1, 3, 32, 48)
    images[..., 8:16, 24:32] = 1
    energy = backbone(images, layer=1).norm(dim=1)[0]
    assert torch.nonzero(energy).tolist() == [[1, 3]]


@torch.no_grad()
def test_random_weights_follow_their_seed_and_leave_the_generator_alone():
    images = torch.randn(1, 3, 32, 32)
    state = torch.random.get_rng_state()
    first, again = (load_backbone("random:vit_nano/8", seed=1) for _ in range(2))
    other = load_backbone("random:vit_nano/8", seed=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first(images, layer=3), again(images, layer=3))
    assert not torch.equal(first(images, layer=3), other(images, layer=3))


@torch.no_grad()
def test_later_blocks_do_not_run():
    backbone = load_backbone("random:vit_nano/8")
    images = torch.randn(1, 3, 32, 32)
    before = backbone(images, layer=7)
    for block in backbone.vit.blocks[7:]:
        block.forward = None
    assert torch.equal(backbone(images, layer=7), before)


def test_what_propagation_asks_of_a_backbone():
    for name, stride, dim in (("color", 8, 192), ("random:vit_nano/16", 16, 96)):
        backbone = load_backbone(name)
        assert (backbone.stride, backbone.dims[-1]) == (stride, dim)
        assert len(backbone.strides) == len(backbone.dims) == backbone.num_layers
        assert (backbone.colors, backbone.protocol) == ("rgb", "ino-davis")


@pytest.mark.parametrize("layer", [0, 13])
def test_layers_that_do_not_exist(layer):
    with pytest.raises(ConfigError, match="1 to 12"):
        load_backbone("random:vit_nano/8")(torch.zeros(1, 3, 32, 32), layer=layer)


def test_unknown_devices_are_refused():
    with pytest.raises(ConfigError, match="--device cpu"):
        choose_device("abacus")
    assert choose_device("cpu") == torch.device("cpu")
