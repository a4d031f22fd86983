"""Networks and released checkpoints of other projects, told apart by the names of their tensors.

ViTs: INO, DINO, iBOT, DINOv2, DINOv3. ResNets that keep their resolution: CRW, VFS, DUL, TimeCycle
and ContCorr on timm's ResNet-18 and -50 with stages of stride 1 whose convolutions are not dilated;
MAST and CorrFlow on a narrower ResNet-18 without max-pooling. Each is loaded key by key: a tensor
that is missing, unknown or of another shape is an error, and what a release is known to hold beside
the network that inference runs is named here. How they propagate is in `ino.propagate`.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.resnet import ResNet
from torch import Tensor, nn

from ino.errors import CheckpointError
from ino.models.backbone import (
    OUR_LAYER,
    RELEASED_STD,
    Backbone,
    Reading,
    TimmBackbone,
    VitBackbone,
    build_timm,
    timm_tensors,
)
from ino.models.vit import ARCHITECTURES, VisionTransformer
from ino.models.weights import (
    VIT_ANCHORS,
    NetworkName,
    are_tensors,
    choose_network,
    load_exactly,
    misfits,
    networks_in,
    position_grid_side,
    prefixes_of,
    split_network,
    vit_sizes,
    without_module,
)

Tensors = dict[str, Tensor]

KNOWN = (
    "INO, DINO, iBOT, DINOv2, DINOv3, CRW, VFS, DUL, MAST, CorrFlow, TimeCycle, ContCorr and runs "
    "of ino train"
)
"""The kinds of checkpoints that can be read, for messages."""


def build_resnet(
    depth: int, *, unit_stages: Sequence[int], reflect: bool = False, narrow: bool = False
) -> ResNet:
    """A ResNet without classifier and with random weights.

    Args:
        depth: 18 or 50.
        unit_stages: stages, of 1 to 4, all of whose convolutions get stride 1.
        reflect: padded convolutions reflect the image at its border; zeros if not. The max-pooling
            stays as it is.
        narrow: stage 4 is as wide as stage 3, and there is no max-pooling.
    """
    channels = (64, 128, 256, 256 if narrow else 512)
    resnet = timm.create_model(f"resnet{depth}", num_classes=0, channels=channels)
    assert isinstance(resnet, ResNet)
    for number in unit_stages:
        for module in resnet.get_submodule(f"layer{number}").modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
    for module in resnet.modules():
        if reflect and isinstance(module, nn.Conv2d) and any(module.padding):
            module.padding_mode = "reflect"
    if narrow:
        resnet.maxpool = nn.Identity()
        block: Any = resnet.get_submodule("layer4.0")
        block.downsample = None  # nothing changes size there
    return resnet


class ResNetBackbone(Backbone):
    """Stages of a ResNet as feature maps; inputs have any size of at least a stride.

    Layer n is stage n. The last of the `num_stages` layers is the one that the authors use, so it
    also goes through the module `closing` that they add.
    """

    def __init__(
        self,
        resnet: ResNet,
        *,
        num_stages: int,
        strides: Sequence[int],
        reading: Reading,
        opening: nn.Module,
        closing: nn.Module,
        normalize: bool,
    ) -> None:
        """Args:
        resnet: whose stages after `num_stages` are dropped.
        num_stages: stages that can be read.
        strides: of each of them.
        reading: of the input.
        opening: what images go through first.
        closing: what the last stage's output goes through.
        normalize: features have length 1.
        """
        dims = [int(info["num_chs"]) for info in resnet.feature_info[1 : num_stages + 1]]
        if isinstance(closing, nn.Conv2d):
            dims[-1] = closing.out_channels
        reflects = resnet.conv1.padding_mode == "reflect"  # which needs two features at least
        super().__init__(
            strides=strides,
            dims=dims,
            reading=reading,
            side_multiple=1,
            smallest_side=strides[-1] + reflects,
        )
        stages = (resnet.get_submodule(f"layer{number + 1}") for number in range(num_stages))
        self.opening = opening
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.act1, resnet.maxpool)
        self.stages = nn.ModuleList(stages)
        self.closing = closing
        self.normalize = normalize

    def read(
        self, images: Float[Tensor, "batch 3 height width"], layer: int
    ) -> Float[Tensor, "batch dim rows columns"]:
        features = self.stem(self.opening(images))
        for one in self.stages[:layer]:
            features = one(features)
        if layer == self.num_layers:
            features = self.closing(features)
        return F.normalize(features, dim=1) if self.normalize else features


class Renormalize(nn.Module):
    """Maps images from -1..1 to 0..1 and normalizes them by `mean` and `std`, which are loaded."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 3 height width"]:
        return ((images + 1) / 2 - self.mean.view(3, 1, 1)) / self.std.view(3, 1, 1)


class RectifiedConv(nn.Conv2d):
    """A 1x1 convolution without bias, then ReLU."""

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__(dim_in, dim, 1, bias=False)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, features: Float[Tensor, "batch dim_in rows columns"]
    ) -> Float[Tensor, "batch dim rows columns"]:
        return F.relu(super().forward(features))


class ResNetRelease(NamedTuple):
    """What decides how a release on a ResNet is read.

    Attributes:
        name: of the method.
        mark: matches the beginning of a tensor's name that only this release has.
        num_stages: stages that are read.
        reading: of the input.
        prefix: of the names of the ResNet's tensors.
        extra: matches names of tensors that it is known to have and inference does not read.
        strides: of the stages.
        normalize: features have length 1.
        reflect, narrow: see `build_resnet`.
        rename: patterns in the names of tensors and what replaces them, one after the other.
        opening, closing: what comes before the ResNet and after its last stage, by the name that
            the release gives it.
    """

    name: str
    mark: str
    num_stages: int
    reading: Reading
    prefix: str = ""
    extra: str = r"(?!)"
    strides: tuple[int, ...] = (4, 8, 8, 8)
    normalize: bool = False
    reflect: bool = False
    narrow: bool = False
    rename: tuple[tuple[str, str], ...] = ()
    opening: tuple[str, Callable[[], nn.Module]] = ("opening", nn.Identity)
    closing: tuple[str, Callable[[], nn.Module]] = ("closing", nn.Identity)


_CORRFLOW = ResNetRelease(
    name="CorrFlow",
    mark=r"module\.feature_extraction\.conv1\.0",  # MAST's but for the prefix
    prefix="feature_extraction.",
    num_stages=4,
    strides=(2, 4, 4, 4),
    narrow=True,
    reading=Reading(protocol="corrflow", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    rename=(
        (r"\.conv1\.0\.", ".conv1."),
        (r"\.conv1\.1\.", ".bn1."),
        (r"\.left\.0\.", ".conv1."),
        (r"\.left\.1\.", ".bn1."),
        (r"\.left\.3\.", ".conv2."),
        (r"\.left\.4\.", ".bn2."),
        (r"\.shortcut\.", ".downsample."),
    ),
    closing=("post_convolution", lambda: nn.Conv2d(256, 64, 3, padding=1)),
)

RESNETS = (
    ResNetRelease(
        name="CRW",
        mark=r"(module\.)?encoder\.model\.conv1",
        prefix="encoder.model.",
        extra=r"selfsim_fc\.\d+\.(weight|bias)",
        num_stages=3,
        normalize=True,
        reading=Reading(protocol="crw"),
        reflect=True,
        # Its older networks had padding as a module before each convolution.
        rename=((r"(conv[12])\.1\.weight$", r"\1.weight"),),
    ),
    ResNetRelease(
        name="DUL",
        mark=r"(module\.)?fast_net\.backbone\.conv1",
        prefix="fast_net.backbone.",
        extra=r"fast_net\.emb_q\..+",
        num_stages=4,
        normalize=True,
        reading=Reading(protocol="dul"),
    ),
    ResNetRelease(
        name="TimeCycle",
        mark=r"(module\.)?encoderVideo\.conv1",
        prefix="encoderVideo.",
        extra=r"(afterconv3_trans|afterconv4_trans|linear2)\.(weight|bias)",
        num_stages=3,
        normalize=True,
        reading=Reading(protocol="timecycle"),
        closing=("afterconv1", lambda: RectifiedConv(1024, 512)),
    ),
    ResNetRelease(
        name="ContCorr",
        mark=r"(module\.)?gray_encoder\.conv1",
        prefix="gray_encoder.",
        extra=r"(rgb_encoder|decoder)\..+",
        num_stages=4,
        reading=Reading(
            protocol="contcorr",
            colors="lab-8bit",
            mean=(128.0, 128.0, 128.0),
            std=(128.0, 128.0, 128.0),
        ),
        opening=("normalize", Renormalize),
    ),
    ResNetRelease(
        name="VFS",  # under torchvision's names or those of its training
        mark=r"(module\.)?(backbone\.conv1\.conv\.|layer1\.0\.conv1\.weight)",
        extra=r"img_head\..+|iteration",
        num_stages=3,
        reading=Reading(protocol="vfs"),
        rename=(
            (r"^backbone\.", ""),
            (r"downsample\.conv\.", "downsample.0."),
            (r"downsample\.bn\.", "downsample.1."),
            (r"conv(\d)\.conv\.", r"conv\1."),
            (r"conv(\d)\.bn\.", r"bn\1."),
        ),
    ),
    _CORRFLOW,
    _CORRFLOW._replace(
        name="MAST",
        mark=r"feature_extraction\.conv1\.0",
        reading=Reading(
            protocol="mast", colors="lab", mean=(50.0, 0.0, 0.0), std=(50.0, 127.0, 127.0)
        ),
    ),
)
"""The releases on a ResNet-18 or -50."""


def read_resnet(weights: Tensors, *, release: ResNetRelease, source: Path) -> ResNetBackbone:
    """The backbone of a release on a ResNet.

    Raises:
        CheckpointError: the tensors are not exactly those of the release.
    """
    own: Tensors = {}
    for key, value in weights.items():
        if re.fullmatch(release.extra, key):
            continue
        for pattern, replacement in release.rename:
            key = re.sub(pattern, replacement, key)
        # TimeCycle's convolutions have a dimension of time, which is 1 long.
        has_time = value.ndim == 5 and value.shape[2] == 1
        own[key.removeprefix(release.prefix)] = value.squeeze(2) if has_time else value
    if "fc.weight" in own:
        raise CheckpointError(
            f"{source} is a ResNet with a classifier (fc), which {release.name} does not have"
            f"{timm_advice(weights, source=source)}"
        )
    resnet = build_resnet(
        50 if "layer1.0.conv3.weight" in own else 18,
        unit_stages=range(3, release.num_stages + 1),
        reflect=release.reflect,
        narrow=release.narrow,
    )
    if release.num_stages < 4 and not any(key.startswith("layer4.") for key in own):
        resnet.layer4 = nn.Identity()  # left out by code that does not run it
    for name, build in (release.opening, release.closing):
        resnet.add_module(name, build())
    # Old files lack the counters of batch normalisation, which nothing reads.
    counts = [name for name in resnet.state_dict() if name.endswith("num_batches_tracked")]
    load_exactly(resnet, dict.fromkeys(counts, torch.tensor(0)) | own, source=source)
    return ResNetBackbone(
        resnet,
        num_stages=release.num_stages,
        strides=release.strides[: release.num_stages],
        reading=release.reading,
        opening=resnet.get_submodule(release.opening[0]),
        closing=resnet.get_submodule(release.closing[0]),
        normalize=release.normalize,
    )


_INO = Reading(std=RELEASED_STD, protocol="ino-davis", layer=OUR_LAYER)
_DINO = Reading(std=RELEASED_STD, protocol="dino")
_DINOV2 = Reading(protocol="dinov3")
_DINOV3_NAMES = {
    (384, 12, False): "vit_small_patch16_dinov3_qkvb",
    (384, 12, True): "vit_small_plus_patch16_dinov3_qkvb",
    (768, 12, False): "vit_base_patch16_dinov3_qkvb",
    (1024, 24, False): "vit_large_patch16_dinov3_qkvb",
    (1280, 32, True): "vit_huge_plus_patch16_dinov3_qkvb",
}
"""By width, number of blocks, and whether their MLPs are gated."""

_HEAD = re.compile(r"(mlp\.\d+|last_layer2?)\.\w+")


def read_vit(weights: Tensors, *, source: Path) -> Backbone:
    """The backbone of INO, DINO, iBOT, DINOv2 or DINOv3, or of one of our networks alone.

    Raises:
        CheckpointError: the tensors are not exactly those of the release.
    """
    read = split_network(weights, source)
    for name in read.head:
        if not _HEAD.fullmatch(name):
            raise CheckpointError(
                f"{source} has an unexpected head.{name}: its head is none of INO, DINO or iBOT"
                f"{timm_advice(weights, source=source)}"
            )
    if "storage_tokens" in read.backbone:
        return read_dinov3(dict(read.backbone), source=source)
    if "blocks.0.ls1.gamma" in read.backbone:
        return read_dinov2(read.backbone, given=weights, source=source)
    # Backbones alone are DINO's and iBOT's teachers, which have no mask token, or ours.
    is_ino = is_ino_release(weights) or ("mask_token" in read.backbone and not read.head)
    vit = _build_vit(read.backbone, source=source)
    weights = {"mask_token": torch.zeros_like(vit.mask_token)} | read.backbone
    load_exactly(vit, weights, source=source)
    return VitBackbone(vit, reading=_INO if is_ino else _DINO)


def is_ino_release(names: Iterable[str]) -> bool:
    """Whether these names of tensors are those of a release of INO (its head is `headlist`)."""
    return any("headlist." in name for name in names)


def read_dinov2(weights: Tensors, *, given: Tensors, source: Path) -> VitBackbone:
    """The backbone of DINOv2: its networks of small, base and large width without registers.

    Args:
        weights: of the backbone.
        given: all tensors under the file's names, for advice.
        source: for messages.

    Raises:
        CheckpointError: the tensors are not exactly those of the release.
    """
    for key in ("register_tokens", "blocks.0.mlp.w12.weight"):
        if key in weights:
            raise CheckpointError(
                f"{source} is a DINOv2 network with {key}{timm_advice(given, source=source)}"
            )
    vit = _build_vit(weights, source=source, layer_scale=True)
    load_exactly(vit, weights, source=source)
    return VitBackbone(vit, reading=_DINOV2)


def read_dinov3(weights: Tensors, *, source: Path) -> TimmBackbone:
    """The backbone of a ViT of DINOv3, as timm's model whose heads have a query and value bias.

    Raises:
        CheckpointError: the tensors are not exactly those of the release.
    """
    sizes = vit_sizes(weights, source=source)
    dim, depth = sizes["embed_dim"], sizes["depth"]
    model = _DINOV3_NAMES.get((dim, depth, "blocks.0.mlp.w1.weight" in weights))
    if model is None:
        advice = (
            "; read it by timm:vit_7b_patch16_dinov3@FILE" if (dim, depth) == (4096, 40) else ""
        )
        raise CheckpointError(
            f"{source} is a DINOv3 network of width {dim} with {depth} blocks, which is not known "
            f"here{advice}"
        )
    weights.pop("mask_token", None)
    periods = weights.pop("rope_embed.periods", None)
    backbone = build_timm(model, reading=Reading(protocol="dinov3"))
    converted = {}
    for key, value in weights.items():
        converted |= _dinov3_tensors(key, value, weights, source)
    load_exactly(backbone.network, converted, source=source)
    _take_periods(backbone, periods, source)
    return backbone


def _dinov3_tensors(key: str, value: Tensor, weights: Tensors, source: Path) -> Tensors:
    """The tensors of timm's model that hold one of the release."""
    if key == "storage_tokens":
        return {"reg_token": value}
    if key.endswith("attn.qkv.bias_mask"):
        query, middle, last = value.chunk(3)
        if not (bool((query == 1).all() and (last == 1).all()) and not middle.any()):
            raise CheckpointError(
                f"{source}: {key} is not 1 for queries and values and 0 for keys; give the release "
                "of DINOv3"
            )
        return {}
    if key.endswith("attn.qkv.bias"):
        start = key.removesuffix("qkv.bias")
        if f"{key}_mask" not in weights:
            raise CheckpointError(f"{source} is not whole: missing {key}_mask")
        query, _, last = value.chunk(3)  # the mask makes the keys' bias 0
        return {f"{start}q_bias": query, f"{start}v_bias": last}
    key = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", key)
    key = key.replace("mlp.w1.", "mlp.fc1_g.").replace("mlp.w2.", "mlp.fc1_x.")
    return {key.replace("mlp.w3.", "mlp.fc2."): value}


def _take_periods(backbone: TimmBackbone, periods: Tensor | None, source: Path) -> None:
    """Puts the release's periods of the rotary embedding, rounded to bf16, in place of timm's."""
    own = backbone.network.get_submodule("rope").get_buffer("periods")
    if periods is None:
        raise CheckpointError(f"{source} is not whole: missing rope_embed.periods")
    if periods.shape != own.shape or not torch.allclose(periods.float(), own, rtol=1e-2):
        raise CheckpointError(
            f"{source} has other rope_embed.periods than DINOv3's models; give a release of DINOv3"
        )
    own.copy_(periods)


def _build_vit(weights: Tensors, *, source: Path, layer_scale: bool = False) -> VisionTransformer:
    """A ViT of the sizes that the weights have."""
    if "pos_embed" not in weights:
        raise CheckpointError(f"{source} is a ViT that is not whole: missing pos_embed")
    sizes = vit_sizes(weights, source=source)
    dim = sizes["embed_dim"]
    heads = {known["embed_dim"]: known["num_heads"] for known in ARCHITECTURES.values()}
    if dim not in heads and dim % 64:
        raise CheckpointError(
            f"{source} is a ViT of width {dim}, whose number of heads is not known: expected a "
            f"multiple of 64 or one of {', '.join(map(str, heads))}"
        )
    return VisionTransformer(
        embed_dim=dim,
        num_heads=heads.get(dim, dim // 64),
        depth=sizes["depth"],
        patch_size=sizes["patch_size"],
        position_grid_side=position_grid_side(weights),
        layer_scale=layer_scale,
    )


_TIMM_MODELS: dict[tuple[int, ...], tuple[str, ...]] = {
    (64, 3, 7, 7): ("resnet18", "resnet34", "resnet50", "resnet101"),
    (192, 3, 16, 16): ("vit_tiny_patch16_224",),
    (384, 3, 8, 8): ("vit_small_patch8_224",),
    (384, 3, 16, 16): ("vit_small_patch16_224",),
    (768, 3, 8, 8): ("vit_base_patch8_224",),
    (768, 3, 16, 16): ("vit_base_patch16_224",),
    (1024, 3, 16, 16): ("vit_large_patch16_224",),
    (384, 3, 14, 14): ("vit_small_patch14_reg4_dinov2",),
    (768, 3, 14, 14): ("vit_base_patch14_reg4_dinov2",),
    (1024, 3, 14, 14): ("vit_large_patch14_reg4_dinov2",),
    (1536, 3, 14, 14): ("vit_giant_patch14_reg4_dinov2", "vit_giant_patch14_dinov2"),
}
"""The models that messages suggest, where they fit, by the shape of their first convolution."""


def timm_advice(weights: Tensors, *, source: Path) -> str:
    """The end of a sentence: the model of timm that these weights can be loaded into, if any."""
    for shape in dict.fromkeys(tuple(value.shape) for value in weights.values()):
        for name in _TIMM_MODELS.get(shape, ()):
            with torch.device("meta"):
                model = timm.create_model(name, num_classes=0)
            with suppress(CheckpointError):
                if not misfits(model, timm_tensors(model, weights, name=name, path=source)):
                    return f"; read it by timm:{name}@{source}"
    return ""


def read_release(
    content: dict[str, Any], *, source: Path, network: NetworkName | None = None
) -> Backbone:
    """The backbone of a release, in evaluation mode.

    Args:
        content: of the file.
        source: for messages.
        network: of a file that has a student and a teacher; None for what its authors evaluate:
            the student of INO, the teacher of DINO and iBOT. A file of one network warns.

    Raises:
        CheckpointError: the kind is unknown, its tensors are not exactly those it should have, or
            the file does not hold the network.
    """
    networks = {name: w for name, w in networks_in(content).items() if are_tensors(w)}
    names = next(iter(networks.values()), {})
    for release in RESNETS:
        if any(re.match(release.mark, name) for name in names):
            weights = choose_network(networks, network=network, usual="teacher", source=source)
            return read_resnet(without_module(weights), release=release, source=source).eval()
    if prefixes_of(VIT_ANCHORS, names):
        is_ino = any(is_ino_release(weights) for weights in networks.values())
        usual = "student" if is_ino else "teacher"
        weights = choose_network(networks, network=network, usual=usual, source=source)
        return read_vit(weights, source=source).eval()
    raise CheckpointError(
        f"{source} is of no kind that is known, which are {KNOWN}: its first keys are "
        f"{', '.join(list(names or content)[:3]) or 'none'}, expected such as cls_token, "
        f"encoder.model.conv1.weight or backbone.conv1.conv.weight"
        f"{timm_advice(names, source=source)}"
    )
