"""Backbones by name or file: what `--weights` and `load_backbone` take.

Weights that come with ino are folders as `ino export` writes them.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
    create_timm,
    split_stride,
    split_weights,
    std_of_run,
)
from ino.models.files import load_plain
from ino.models.masked_timm import MaskedTimm, timm_backbone
from ino.models.peers import KNOWN, read_release
from ino.models.vit import ARCHITECTURES, Positions, VisionTransformer, build_vit
from ino.models.weights import (
    FORMAT,
    ExportedTimm,
    NetworkName,
    are_tensors,
    exported_weights,
    find_checkpoint,
    is_exported,
    load_exactly,
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
            - `random:ARCH/PATCH`, our ViT with random weights, such as `random:vit_tiny/8`, with
              `+sincos` at the end as `model.positions` makes it, or `random:MODEL`, a model of
              timm with random weights;
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
    model, stride = split_stride(text)
    positions: Positions = "learned"
    if text.endswith("+sincos") and text.partition("/")[0].removesuffix("+sincos") in ARCHITECTURES:
        (model, stride), positions = split_stride(text.removesuffix("+sincos")), "sincos"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model in ARCHITECTURES or not _is_timm_model(model):
            vit = build_vit(model, patch_size=stride or 8, positions=positions)
            return VitBackbone(vit).eval()
        return build_timm(model, stride=stride)


def _timm(text: str, *, network: NetworkName | None) -> Backbone:
    named, file = split_weights(text)
    model, stride = split_stride(named.removeprefix(TIMM))
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
    trained = read_trained(content, source=path, network=network or "student")
    return backbone_of(trained, variant=content["config"].get("variant"))


def read_trained(
    content: Mapping[str, Any], *, source: Path, network: NetworkName = "student"
) -> VisionTransformer | MaskedTimm:
    """The backbone in the content of a run's checkpoint, ino's or timm's, in evaluation mode.

    Raises:
        CheckpointError: the checkpoint is of another version, or damaged.
        ConfigError: its architecture is unknown.
    """
    config = content.get("config")
    model = config.get("model") if isinstance(config, dict) else None
    arch, weights = model.get("arch") if isinstance(model, dict) else None, content.get(network)
    if not (isinstance(arch, str) and arch.startswith(TIMM) and are_tensors(weights)):
        return read_vit_backbone(content, source=source, network=network)
    prefix = "backbone."
    own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    masked = MaskedTimm(arch)
    load_exactly(masked, own, source=source)
    return masked.eval()


def backbone_of(trained: VisionTransformer | MaskedTimm, *, variant: str | None) -> Backbone:
    """Features of a network that was trained here by a variant, as they are evaluated."""
    if isinstance(trained, MaskedTimm):
        return timm_backbone(trained.network, arch=trained.arch, mean=trained.mean, std=trained.std)
    return VitBackbone(trained, std=std_of_run(variant)).eval()


def _exported(path: Path, *, network: NetworkName | None) -> Backbone:
    exported = read_exported(path)
    if isinstance(exported, ExportedTimm):
        if network not in (None, exported.network):
            raise _other_network(path, exported.network, network)
        arch, model_stride = exported.arch, split_stride(exported.arch.removeprefix(TIMM))
        model = create_timm(model_stride[0], stride=model_stride[1])
        load_exactly(model, exported.weights, source=exported_weights(path))
        backbone = timm_backbone(model, arch=arch, mean=exported.mean, std=exported.std)
        backbone.protocol = exported.protocol
        return backbone
    if not exported.network:
        warn_single_network(path, network)
    elif network not in (None, exported.network):
        raise _other_network(path, exported.network, network)
    reading = Reading(std=exported.std, protocol=exported.protocol, layer=OUR_LAYER)
    return VitBackbone(exported.vit, reading=reading).eval()


def _other_network(path: Path, held: str, asked: str | None) -> CheckpointError:
    return CheckpointError(
        f"{path} holds the {held} of a run and no {asked}: ask for the {held}, or export the "
        f"{asked}"
    )


def _is_timm_model(text: str) -> bool:
    return timm.is_model(split_stride(text)[0].partition(".")[0])
