"""Backbones by name or file: what `--weights` and `load_backbone` take.

Weights that come with ino are folders as `ino export` writes them.
"""

import difflib
import re
from pathlib import Path
from typing import NamedTuple

import timm
import torch

from ino.errors import CheckpointError
from ino.models.backbone import (
    HUBS,
    OUR_LAYER,
    RELEASED_STD,
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


class PublicWeights(NamedTuple):
    """Weights that others have published, which timm fetches once; later runs need no network.

    Attributes:
        model: its name in timm.
        trained_on: without labels of objects' outlines, all of them.
        parameters: in millions.
        license: of the weights.
        published: J&F in percent on DAVIS-2017 val under its authors' protocol; None where the
            authors name none.
        reading: the input, the protocol and the layer of its authors.
    """

    model: str
    trained_on: str
    parameters: int
    license: str
    published: float | None
    reading: Reading

    @property
    def is_here(self) -> bool:
        """Whether a file of weights was fetched before."""
        from huggingface_hub import try_to_load_from_cache

        config = timm.get_pretrained_cfg(self.model)
        hub = config.hf_hub_id if config else None
        names = ("model.safetensors", "pytorch_model.bin")
        return bool(hub) and any(
            isinstance(try_to_load_from_cache(hub, name), str) for name in names
        )


_DINO = Reading(std=RELEASED_STD, protocol="dino")
_DINOV3 = Reading(protocol="dinov3")

PUBLIC = {
    "dino-s16": PublicWeights(
        "vit_small_patch16_224.dino", "ImageNet", 22, "Apache-2.0", 61.8, _DINO
    ),
    "dino-s8": PublicWeights(
        "vit_small_patch8_224.dino", "ImageNet", 22, "Apache-2.0", 69.9, _DINO
    ),
    "dino-b16": PublicWeights(
        "vit_base_patch16_224.dino", "ImageNet", 86, "Apache-2.0", 62.3, _DINO
    ),
    "dino-b8": PublicWeights("vit_base_patch8_224.dino", "ImageNet", 86, "Apache-2.0", 71.4, _DINO),
    "dinov2-s14": PublicWeights(
        "vit_small_patch14_dinov2.lvd142m", "LVD-142M", 22, "Apache-2.0", None, _DINOV3
    ),
    "dinov2-b14": PublicWeights(
        "vit_base_patch14_dinov2.lvd142m", "LVD-142M", 87, "Apache-2.0", None, _DINOV3
    ),
    "dinov3-s16": PublicWeights(
        "vit_small_patch16_dinov3_qkvb.lvd1689m", "LVD-1689M", 22, "DINOv3 License", 72.7, _DINOV3
    ),
    "dinov3-b16": PublicWeights(
        "vit_base_patch16_dinov3_qkvb.lvd1689m", "LVD-1689M", 86, "DINOv3 License", 77.2, _DINOV3
    ),
    "dinov3-l16": PublicWeights(
        "vit_large_patch16_dinov3_qkvb.lvd1689m", "LVD-1689M", 303, "DINOv3 License", 79.9, _DINOV3
    ),
}
"""Public weights by short name. They are not part of ino; their licenses are their authors'."""


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
            - a short name of `PUBLIC`, such as `dino-s8`: published weights, fetched once, with the
              protocol of their authors;
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
    if public := PUBLIC.get(text):
        warn_single_network(text, network)
        return build_timm(public.model, pretrained=True, reading=public.reading)
    if _is_timm_model(text):
        return _timm(TIMM + text, network=network)
    near = difflib.get_close_matches(text, [*list_weights(), *PUBLIC], n=1)
    raise CheckpointError(
        f"{name} is neither a file or folder nor a known name"
        + (f" (did you mean {near[0]}?)" if near else "")
        + f"; give a checkpoint ({KNOWN}), the folder of a run, ino_vitt8, color, "
        "random:vit_tiny/8, timm:MODEL or a name that ino weights lists"
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
