"""Backbones by name or file: what `--weights` and `load_backbone` take.

Weights that come with ino are folders as `ino export` writes them.
"""

import re
from pathlib import Path

import timm
import torch

from ino.errors import CheckpointError
from ino.models.backbone import (
    HUBS,
    OUR_LAYER,
    TIMM,
    Backbone,
    ColorBackbone,
    Reading,
    VitBackbone,
    build_timm,
    split_weights,
    std_of_run,
)
from ino.models.files import load_plain
from ino.models.peers import KNOWN, read_release
from ino.models.vit import ARCHITECTURES, build_vit
from ino.models.weights import (
    FORMAT,
    NetworkName,
    find_checkpoint,
    is_exported,
    read_exported,
    read_vit_backbone,
    warn_single_network,
)

BUNDLED = Path(__file__).parent.parent / "weights"
"""Where the named weights are."""

DEFAULT = "ino_vitt8"
"""What `ino segment` takes unless told."""


def list_weights() -> list[str]:
    """Names of the weights that come with ino, which `load_backbone` and `Tracker` take."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))


def bundled_folder(name: str) -> Path | None:
    """The folder of the bundled weights of this name; None if there are none."""
    return BUNDLED / name if name in list_weights() else None


_RANDOM = "random:"
_STRIDE = re.compile(r"(.+?)(?:/(\d+))?")


def load_backbone(
    name: str | Path, *, network: NetworkName | None = None, seed: int = 0
) -> Backbone:
    """A backbone by name or from a file, in evaluation mode.

    Args:
        name: one of

            - a path: a checkpoint, the folder of a run, an export of `ino export`, or a release
              that `ino.models.peers` can read (INO, DINO, iBOT, DINOv2, DINOv3, CRW, VFS, ...);
            - `ino_vitt8`, the weights that come with ino;
            - `color`, raw color;
            - `random:ARCH/PATCH`, our ViT with random weights, such as `random:vit_tiny/8`, or
              `random:MODEL`, a model of timm with random weights;
            - `timm:MODEL` or `MODEL`, a model of timm with downloaded weights, or
              `timm:MODEL@FILE`, with the weights in a file. MODEL may be `hf-hub:OWNER/NAME`, and a
              convolutional model may end with its stride, as in `resnet50/8`.
        network: which network of a file that has two; None for the one that its authors evaluate:
            the teacher of DINO and iBOT, the student of others. Logs a warning if the weights are
            those of a single network (not for `color` and random weights).
        seed: of random weights.

    Raises:
        CheckpointError: the file cannot be used or holds the other network only, or weights cannot
            be fetched.
        ConfigError: the architecture is unknown or has no spatial features.
    """
    text = str(name)
    if text == "color":
        return ColorBackbone()
    if text.startswith(_RANDOM):
        return _random(text.removeprefix(_RANDOM), seed=seed)
    if text.startswith((TIMM, *HUBS)):
        return _timm(text, network=network)
    path = bundled_folder(text) or Path(name)
    if path.exists():
        return _from_file(path, network=network)
    if _is_timm_model(text):
        return _timm(TIMM + text, network=network)
    raise CheckpointError(
        f"{name} is neither a file or folder nor a known name; give a checkpoint ({KNOWN}), the "
        "folder of a run, ino_vitt8, color, random:vit_tiny/8 or timm:MODEL"
    )


def _random(text: str, *, seed: int) -> Backbone:
    model, stride = _split(text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model in ARCHITECTURES or not _is_timm_model(model):
            return VitBackbone(build_vit(model, patch_size=stride or 8)).eval()
        return build_timm(model, stride=stride)


def _timm(text: str, *, network: NetworkName | None) -> Backbone:
    named, file = split_weights(text)
    model, stride = _split(named.removeprefix(TIMM))
    if file is None:
        warn_single_network(text, network)
    return build_timm(model, pretrained=file is None, weights=file, network=network, stride=stride)


def _from_file(path: Path, *, network: NetworkName | None) -> Backbone:
    if is_exported(path):
        return _exported(path, network=network)
    path = find_checkpoint(path)
    content = load_plain(path)
    if content.get("format") != FORMAT:
        return read_release(content, source=path, network=network)
    vit = read_vit_backbone(content, source=path, network=network or "student")
    return VitBackbone(vit, std=std_of_run(content["config"].get("variant"))).eval()


def _exported(path: Path, *, network: NetworkName | None) -> Backbone:
    exported = read_exported(path)
    if not exported.network:
        warn_single_network(path, network)
    elif network not in (None, exported.network):
        raise CheckpointError(
            f"{path} holds the {exported.network} of a run and no {network}: ask for the "
            f"{exported.network}, or export the {network}"
        )
    reading = Reading(std=exported.std, protocol=exported.protocol, layer=OUR_LAYER)
    return VitBackbone(exported.vit, reading=reading).eval()


def _split(text: str) -> tuple[str, int | None]:
    """A model's name and the number behind its last slash."""
    if match := _STRIDE.fullmatch(text):
        return match[1], int(match[2]) if match[2] else None
    return text, None


def _is_timm_model(text: str) -> bool:
    return timm.is_model(_split(text)[0].partition(".")[0])
