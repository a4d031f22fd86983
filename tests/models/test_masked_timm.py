"""Networks of timm as students: what is masked, what is read, and which are refused."""

import copy

import pytest
import torch

from ino.data.views import IMAGENET_MEAN, IMAGENET_STD
from ino.errors import ConfigError
from ino.models.masked_timm import MaskedTimm, timm_stride

NAMES = {  # pixels per token, length of a token
    "test_vit": (16, 64),
    "test_vit2": (16, 64),  # no class token, a register
    "eva02_tiny_patch14_224": (14, 192),  # RoPE
    "test_resnet/8": (8, 96),
    "test_convnext": (32, 64),
}


@pytest.fixture(scope="module", params=NAMES)
def masked(request):
    """Name and network, whose batch normalization knows its inputs."""
    torch.manual_seed(0)
    network = MaskedTimm(f"timm:{request.param}")
    side = 4 * network.patch_size
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain mean
    with torch.no_grad():
        network(torch.randn(4, 3, side, side))
        network.mask_token.normal_()
    return request.param, network.eval()


@torch.no_grad()
def test_masked_pixels_do_not_reach_the_network_but_the_token_does(masked):
    name, network = masked
    stride, dim = NAMES[name]
    assert (network.patch_size, network.embed_dim, timm_stride(f"timm:{name}")) == (
        stride,
        dim,
        stride,
    )
    images = torch.randn(2, 3, 3 * stride, 4 * stride)
    mask = torch.zeros(2, 12, dtype=torch.bool)
    tokens = network(images)
    assert tokens.shape == (2, 13, dim)
    torch.testing.assert_close(network(images, mask), tokens)
    everywhere = ~mask
    token_alone = network(images, everywhere)
    torch.testing.assert_close(network(torch.randn_like(images), everywhere), token_alone)
    other = copy.deepcopy(network)
    other.mask_token.normal_()
    assert (other(images, everywhere) - token_alone).abs().max() > 1e-3
    torch.testing.assert_close(other(images), tokens)


@torch.no_grad()
def test_masked_positions_are_those_of_the_tokens(masked):
    """Pixels of a cell matter if another one is masked, and not at all if it is itself."""
    _, network = masked
    stride = network.patch_size
    images = torch.randn(1, 3, 3 * stride, 4 * stride)
    changed = images.clone()
    middle = slice(stride + stride // 4, 2 * stride - stride // 4)
    changed[:, :, middle, 2 * stride + stride // 4 : 3 * stride - stride // 4] += 3.0
    masks = torch.zeros(2, 12, dtype=torch.bool)
    masks[0, 6] = masks[1, 5] = True  # row 1, column 2; and another
    hidden, seen = (
        (network(changed, m[None]) - network(images, m[None])).abs().max() for m in masks
    )
    assert seen > 1e-3
    assert hidden < 1e-5


@torch.no_grad()
def test_only_tokens_that_are_asked_for(masked):
    _, network = masked
    side = 4 * network.patch_size
    images, read = torch.randn(2, 3, side, side), torch.tensor([[1, 5], [0, 15]])
    tokens = network(images)
    found = network(images, read=read)
    torch.testing.assert_close(found[:, 0], tokens[:, 0])
    torch.testing.assert_close(found[1, 1:], tokens[1, [1, 16]])
    torch.testing.assert_close(network(images, read=read[:, :0]), tokens[:, :1])


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_resnet"])
def test_tokens_are_timm_s(name):
    network = MaskedTimm(f"timm:{name}").eval()
    side = 3 * network.patch_size
    pixels = torch.rand(1, 3, side, side)
    ours, theirs = (
        (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        for mean, std in ((IMAGENET_MEAN, IMAGENET_STD), (network.mean, network.std))
    )
    features = network.network.forward_features(theirs)
    if name == "test_resnet":
        features = features.flatten(2).transpose(1, 2)
    if name != "test_vit":
        features = features[:, -9:]  # without registers
        features = torch.cat([features.mean(dim=1, keepdim=True), features], dim=1)
    torch.testing.assert_close(network(ours), features, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("timm:vit_tiny_patch16_225", "near to it are vit_tiny_patch16_224"),
        ("timm:mixer_s16_224", "takes no images of other sizes.*; take a ViT"),
        ("timm:test_coatnet", "takes no images of other sizes"),
        ("timm:xcit_nano_12_p16_224", "cannot be masked: its stem gives more than one tensor"),
        ("timm:test_resnet/7", "stride 7 of test_resnet is not supported"),
        ("timm:test_vit/8", "stride of test_vit cannot be chosen"),
    ],
)
def test_networks_that_cannot_be_masked(arch, words):
    with pytest.raises(ConfigError, match=words):
        MaskedTimm(arch)


def test_crops_that_a_network_refuses():
    network = MaskedTimm("timm:test_vit")
    network.check_side(32, field="views.local_size")
    with pytest.raises(ConfigError, match=r"views\.local_size must be a multiple of 16.*but is 40"):
        network.check_side(40, field="views.local_size")
