"""Readers for releases on ResNets: CRW, VFS, DUL, TimeCycle, ContCorr, MAST and CorrFlow."""

import re
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
    Renormalize,
    ResNetBackbone,
    build_resnet,
)


class ResNetRelease(NamedTuple):
    """What decides how a release on a ResNet is read.

    `extra` matches names of tensors that it is known to have and inference does not read.
    """

    name: str
    prefix: str
    extra: str
    num_stages: int
    normalize: bool
    reading: Reading
    reflect: bool = False


RESNET_RELEASES = (
    ResNetRelease(
        name="CRW",
        prefix="encoder.model.",
        extra=r"selfsim_fc\.\d+\.(weight|bias)",
        num_stages=3,
        normalize=True,
        reading=Reading(protocol="crw"),
        reflect=True,
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
    ),
)
VFS = ResNetRelease(
    name="VFS",
    prefix="",
    extra=r"img_head\..+|iteration",
    num_stages=3,
    normalize=False,
    reading=Reading(protocol="vfs"),
)
_MAST_READING = Reading(
    protocol="mast", colours="lab", mean=(50.0, 0.0, 0.0), std=(50.0, 127.0, 127.0)
)
_CORRFLOW_READING = Reading(protocol="corrflow", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
_STRIDES = (4, 8, 8, 8)


def read_resnet(weights: dict[str, Tensor], *, name: str, source: Path) -> ResNetBackbone:
    """The backbone of CRW, DUL, TimeCycle or ContCorr.

    Raises:
        CheckpointError: the tensors are not exactly those of the release.
    """
    release = next(one for one in RESNET_RELEASES if one.name == name)
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    opening = closing = closing_dim = None
    if name == "CRW":  # its older networks had padding as a module before each convolution
        weights = {
            re.sub(r"(conv[12])\.1\.weight$", r"\1.weight", k): v for k, v in weights.items()
        }
    if name == "TimeCycle":
        weights = {key: _without_time(value, key, source) for key, value in weights.items()}
        projection = nn.Conv2d(1024, 512, 1, bias=False)
        _load_part(projection, weights, prefix="afterconv1.", source=source)
        closing, closing_dim = nn.Sequential(projection, nn.ReLU()), 512
    if name == "ContCorr":
        opening = Renormalize()
        _load_part(opening, weights, prefix="normalize.", source=source)
    return ResNetBackbone(
        _load_resnet(weights, release, source=source),
        num_stages=release.num_stages,
        strides=_STRIDES[: release.num_stages],
        reading=release.reading,
        opening=opening,
        closing=closing,
        closing_dim=closing_dim,
        normalize=release.normalize,
    )


def read_vfs(weights: dict[str, Tensor], *, name: str, source: Path) -> ResNetBackbone:
    """The backbone of VFS, ResNet-18 or -50, under torchvision's names or those of its training.

    Raises:
        CheckpointError: the tensors are not exactly those of the release.
    """
    weights = {_torchvision_name(key): value for key, value in weights.items()}
    if "fc.weight" in weights:
        raise CheckpointError(
            f"{source} is a ResNet with a classifier (fc), which {name} does not have; read it by "
            "timm:resnet50@FILE or timm:resnet18@FILE"
        )
    return ResNetBackbone(
        _load_resnet(weights, VFS, source=source),
        num_stages=VFS.num_stages,
        strides=_STRIDES[: VFS.num_stages],
        reading=VFS.reading,
    )


def read_mast(weights: dict[str, Tensor], *, name: str, source: Path) -> MastBackbone:
    """The backbone of MAST or CorrFlow, which have the same network.

    Raises:
        CheckpointError: the tensors are not exactly those of the release.
    """
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    network = MastNetwork()
    load_exactly(network, _with_counts(network, weights), source=source)
    return MastBackbone(network, reading=_MAST_READING if name == "MAST" else _CORRFLOW_READING)


def _load_resnet(weights: dict[str, Tensor], release: ResNetRelease, *, source: Path) -> ResNet:
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


def _load_part(module: nn.Module, weights: dict[str, Tensor], *, prefix: str, source: Path) -> None:
    """Loads the tensors of a prefix and takes them out of `weights`."""
    part = {key: weights.pop(key) for key in list(weights) if key.startswith(prefix)}
    load_exactly(module, {k.removeprefix(prefix): v for k, v in part.items()}, source=source)


def _with_counts(module: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with batch normalisation's counters, which old files lack and nothing reads."""
    counts = (name for name in module.state_dict() if name.endswith("num_batches_tracked"))
    return {name: torch.tensor(0) for name in counts} | weights


def _without_time(value: Tensor, key: str, source: Path) -> Tensor:
    """A convolution's weights without the dimension of time, which is 1 long."""
    if value.ndim != 5:
        return value
    if value.shape[2] != 1:
        raise CheckpointError(
            f"{source}: {key} is {tuple(value.shape)}, expected a third dimension of 1; give the "
            "release of TimeCycle"
        )
    # Its last convolution has two further dimensions of 1 for space, which stay.
    return value.squeeze(2)


def _torchvision_name(key: str) -> str:
    """Of a tensor that VFS's training names after mmcv's modules."""
    key = key.removeprefix("module.")
    if not key.startswith("backbone."):
        return key
    key = key.removeprefix("backbone.").replace("downsample.conv.", "downsample.0.")
    key = key.replace("downsample.bn.", "downsample.1.")
    return re.sub(r"conv(\d)\.bn\.", r"bn\1.", re.sub(r"conv(\d)\.conv\.", r"conv\1.", key))
