"""Readers for releases on ResNets: CRW, VFS, DUL, TimeCycle, ContCorr, MAST and CorrFlow."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from ino.errors import CheckpointError
from ino.models.checkpoints import load_exactly
from ino.models.dense import Reading
from ino.models.resnets import (
    MastBackbone,
    MastNetwork,
    RectifiedConv,
    Renormalize,
    ResNetBackbone,
    build_resnet,
)

Weights = dict[str, Tensor]


class Part(NamedTuple):
    """A module before or after the ResNet."""

    prefix: str
    """Of the names of its tensors."""
    build: Callable[[], nn.Module]
    dim: int | None = None
    """Of its output; None: that of its input."""


def _crw_names(weights: Weights, source: Path) -> Weights:
    """Its older networks had padding as a module before each convolution."""
    return {re.sub(r"(conv[12])\.1\.weight$", r"\1.weight", k): w for k, w in weights.items()}


def _without_time(weights: Weights, source: Path) -> Weights:
    """Convolutions without the dimension of time, which is 1 long."""
    for key, value in weights.items():
        if value.ndim == 5 and value.shape[2] != 1:
            raise CheckpointError(
                f"{source}: {key} is {tuple(value.shape)}, expected a third dimension of 1; give "
                "the release of TimeCycle"
            )
    # Its last convolution has two further dimensions of 1 for space, which stay.
    return {key: w.squeeze(2) if w.ndim == 5 else w for key, w in weights.items()}


def _vfs_names(weights: Weights, source: Path) -> Weights:
    """Torchvision's names of tensors that VFS's training names after mmcv's modules."""
    weights = {_torchvision_name(key): value for key, value in weights.items()}
    if "fc.weight" in weights:
        raise CheckpointError(
            f"{source} is a ResNet with a classifier (fc), which VFS does not have; read it by "
            "timm:resnet50@FILE or timm:resnet18@FILE"
        )
    return weights


def _torchvision_name(key: str) -> str:
    if not key.startswith("backbone."):
        return key
    key = key.removeprefix("backbone.").replace("downsample.conv.", "downsample.0.")
    key = key.replace("downsample.bn.", "downsample.1.")
    return re.sub(r"conv(\d)\.bn\.", r"bn\1.", re.sub(r"conv(\d)\.conv\.", r"conv\1.", key))


class ResNetRelease(NamedTuple):
    """What decides how a release on a ResNet is read.

    `extra` matches names of tensors that it is known to have and inference does not read; `adapt`
    gives the release's tensors the names and shapes that are read here.
    """

    name: str
    prefix: str
    extra: str
    num_stages: int
    normalize: bool
    reading: Reading
    reflect: bool = False
    adapt: Callable[[Weights, Path], Weights] | None = None
    opening: Part | None = None
    closing: Part | None = None


PREFIXED = (
    ResNetRelease(
        name="CRW",
        prefix="encoder.model.",
        extra=r"selfsim_fc\.\d+\.(weight|bias)",
        num_stages=3,
        normalize=True,
        reading=Reading(protocol="crw"),
        reflect=True,
        adapt=_crw_names,
    ),
    ResNetRelease(
        name="DUL",
        prefix="fast_net.backbone.",
        extra=r"fast_net\.emb_q\..+",
        num_stages=4,
        normalize=True,
        reading=Reading(protocol="dul"),
    ),
    ResNetRelease(
        name="TimeCycle",
        prefix="encoderVideo.",
        extra=r"(afterconv3_trans|afterconv4_trans|linear2)\.(weight|bias)",
        num_stages=3,
        normalize=True,
        reading=Reading(protocol="timecycle"),
        adapt=_without_time,
        closing=Part("afterconv1.", lambda: RectifiedConv(1024, 512), dim=512),
    ),
    ResNetRelease(
        name="ContCorr",
        prefix="gray_encoder.",
        extra=r"(rgb_encoder|decoder)\..+",
        num_stages=4,
        normalize=False,
        reading=Reading(
            protocol="contcorr",
            colours="lab-8bit",
            mean=(128.0, 128.0, 128.0),
            std=(128.0, 128.0, 128.0),
        ),
        opening=Part("normalize.", Renormalize),
    ),
)
"""Those whose tensors are told by their prefix."""

VFS = ResNetRelease(
    name="VFS",
    prefix="",
    extra=r"img_head\..+|iteration",
    num_stages=3,
    normalize=False,
    reading=Reading(protocol="vfs"),
    adapt=_vfs_names,
)
"""ResNet-18 or -50, under torchvision's names or those of its training."""

MAST = Reading(protocol="mast", colours="lab", mean=(50.0, 0.0, 0.0), std=(50.0, 127.0, 127.0))
CORRFLOW = Reading(protocol="corrflow", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
_STRIDES = (4, 8, 8, 8)


def read_resnet(weights: Weights, *, release: ResNetRelease, source: Path) -> ResNetBackbone:
    """The backbone of CRW, DUL, TimeCycle, ContCorr or VFS.

    Raises:
        CheckpointError: the tensors are not exactly those of the release.
    """
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    if release.adapt is not None:
        weights = release.adapt(weights, source)
    opening = _load_part(release.opening, weights, source=source)
    closing = _load_part(release.closing, weights, source=source)
    return ResNetBackbone(
        _load_resnet(weights, release, source=source),
        num_stages=release.num_stages,
        strides=_STRIDES[: release.num_stages],
        reading=release.reading,
        opening=opening,
        closing=closing,
        closing_dim=release.closing.dim if release.closing else None,
        normalize=release.normalize,
    )


def read_mast(weights: Weights, *, reading: Reading, source: Path) -> MastBackbone:
    """The backbone of MAST or CorrFlow, which have the same network.

    Raises:
        CheckpointError: the tensors are not exactly those of the release.
    """
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    network = MastNetwork()
    load_exactly(network, _with_counts(network, weights), source=source)
    return MastBackbone(network, reading=reading)


def _load_resnet(weights: Weights, release: ResNetRelease, *, source: Path) -> ResNet:
    """The release's ResNet; what is left in `weights` beside it must be known."""
    own = {
        key.removeprefix(release.prefix): value
        for key, value in weights.items()
        if not re.fullmatch(release.extra, key)
    }
    depth = 50 if "layer1.0.conv3.weight" in own else 18
    resnet = build_resnet(
        depth, unit_stages=range(3, release.num_stages + 1), reflect=release.reflect
    )
    if release.num_stages < 4 and not any(key.startswith("layer4.") for key in own):
        resnet.layer4 = nn.Identity()  # left out by code that does not run it
    load_exactly(resnet, _with_counts(resnet, own), source=source)
    return resnet


def _load_part(part: Part | None, weights: Weights, *, source: Path) -> nn.Module | None:
    """Builds a part of its tensors, which it takes out of `weights`."""
    if part is None:
        return None
    module = part.build()
    own = {key: weights.pop(key) for key in list(weights) if key.startswith(part.prefix)}
    own = {key.removeprefix(part.prefix): value for key, value in own.items()}
    load_exactly(module, own, source=source)
    return module


def _with_counts(module: nn.Module, weights: Weights) -> Weights:
    """The weights with batch normalisation's counters, which old files lack and nothing reads."""
    counts = (name for name in module.state_dict() if name.endswith("num_batches_tracked"))
    return {name: torch.tensor(0) for name in counts} | weights
