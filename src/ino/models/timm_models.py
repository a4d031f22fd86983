"""Models of timm by name: random, fetched, or with weights of a file."""

import difflib
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
from torch import Tensor, nn

from ino.data.views import IMAGENET_MEAN, IMAGENET_STD
from ino.errors import CheckpointError, ConfigError
from ino.models.checkpoints import NetworkName, choose_network, load_exactly, networks_in
from ino.models.dense import Reading
from ino.models.timm_backbone import TimmBackbone
from ino.models.weight_files import load_plain

TIMM = "timm:"
"""Before the names of models of timm."""

HUBS = ("hf-hub:", "hf_hub:")
"""Before the names of models that a hub describes, as timm writes them."""

_STRIDES = (8, 16, 32)
_FLEXIBLE = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
"""What makes timm's families take inputs of any size, one after the other."""
_DINO_POSITIONS = re.compile(r"vit_\w+_patch(8_224|16_224|14)(_dinov2\.|_dinov2$|\.dino$)")
"""Models whose authors interpolate positions as our ViT does; timm's own resampling differs."""
_EXTRA = re.compile(r"(head|fc|classifier|pre_logits|head_dist)\..+|decoder_.+|mask_token")
"""Tensors of known releases that features do not need: classifiers, and MAE's decoder."""


def split_weights(text: str) -> tuple[str, Path | None]:
    """What comes before and after the first @ of timm:MODEL@FILE; all of any other text."""
    named, separator, file = text.partition("@")
    if not (separator and text.startswith(TIMM)):
        return text, None
    return named, Path(file)


def build_timm(
    name: str,
    *,
    pretrained: bool = False,
    weights: Path | None = None,
    network: NetworkName | None = None,
    stride: int | None = None,
    reading: Reading | None = None,
) -> TimmBackbone:
    """A model of timm, in evaluation mode.

    Args:
        name: as timm knows it, as in vit_small_patch14_dinov2.lvd142m.
        pretrained: fetch its weights from the network; random ones if not.
        weights: a file of weights in place of those.
        network: which of a file's two; None for the teacher. A file of one warns.
        stride: that a convolutional network is to have in the end, by dilation; None for its own.
        reading: of the input; None for that of timm's configuration.

    Raises:
        ConfigError: the model is unknown or has no spatial features, or no such stride.
        CheckpointError: the weights cannot be used or fetched.
    """
    _check_name(name, pretrained=pretrained)
    if stride not in (None, *_STRIDES):
        raise ConfigError(f"stride {stride} of {name} is not supported; choose 8, 16 or 32")
    model = _create(name, pretrained=pretrained, stride=stride).eval()
    if weights is not None:
        _load_file(model, weights, name=name, network=network)
    config = getattr(model, "pretrained_cfg", {})
    if reading is None:
        reading = Reading(
            mean=config.get("mean") or IMAGENET_MEAN,
            std=config.get("std") or IMAGENET_STD,
            protocol="dinov3" if "dinov" in name else "dino",
        )
    backbone = TimmBackbone(
        model,
        name=name,
        reading=reading,
        dino_positions=_DINO_POSITIONS.match(name) is not None and hasattr(model, "blocks"),
    )
    return backbone.eval()


def _check_name(name: str, *, pretrained: bool) -> None:
    if ":" in name:  # a model that its hub describes, such as hf-hub:timm/resnet18.a1_in1k
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise ConfigError(
            f"timm has no model {architecture!r}"
            + (f"; near to it are {', '.join(near)}" if near else "; see timm.list_models()")
        )
    tags = [one.partition(".")[2] for one in timm.list_pretrained(architecture)]
    if tag and tag not in tags:
        raise ConfigError(
            f"timm has no weights {tag!r} of {architecture}; it has {', '.join(tags) or 'none'}"
        )
    if pretrained and not tags:
        raise ConfigError(
            f"timm has no weights of {architecture}; give a file, timm:{architecture}@FILE, or "
            f"take random ones, random:{architecture}"
        )


def _create(name: str, *, pretrained: bool, stride: int | None) -> nn.Module:
    """The model as the first of `_FLEXIBLE` that its family understands makes it."""
    chosen: dict[str, Any] = {} if stride is None else {"output_stride": stride}
    needs_hub = pretrained or ":" in name
    with _hub_or_its_cache() if needs_hub else nullcontext():
        for options in _FLEXIBLE:
            try:
                return timm.create_model(
                    name, pretrained=pretrained, num_classes=0, **options, **chosen
                )
            except TypeError as error:  # before anything is built or fetched
                if "unexpected keyword argument" not in str(error):
                    raise
            except Exception as error:  # timm's hubs fail in many ways, of several libraries
                if stride is not None and isinstance(error, AssertionError | NotImplementedError):
                    break  # families that have the option for their own stride alone
                if not pretrained:
                    raise
                reason = (str(error) or type(error).__name__).splitlines()[0][:200]
                raise CheckpointError(
                    f"the weights of {name} could not be fetched ({reason}): check the network, or "
                    f"give a file, timm:{name}@FILE, or take random weights, random:{name}"
                ) from error
    raise ConfigError(
        f"the stride of {name} cannot be chosen; leave /{stride} away, or take a convolutional "
        "model such as resnet50"
    )


def _load_file(model: nn.Module, path: Path, *, name: str, network: NetworkName | None) -> None:
    """Loads a file key by key, under timm's names or those that timm's family converts from."""
    content = load_plain(path)
    networks = {key: held for key, held in networks_in(content).items() if isinstance(held, dict)}
    held = choose_network(networks or {"": content}, network=network, usual="teacher", source=path)
    weights = {
        key.removeprefix("module."): value
        for key, value in held.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    expected = model.state_dict().keys()
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None and not expected <= weights.keys():
        try:
            weights = dict(convert(weights, model))
        # What timm's conversions end in that look for tensors of their family.
        except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            first = ", ".join(list(weights)[:3]) or "none"
            raise CheckpointError(
                f"{path} holds no weights of {name}: the first of its tensors are {first}; give a "
                "file of this model, or the model of this file"
            ) from error
    weights = {k: v for k, v in weights.items() if k in expected or not _EXTRA.fullmatch(k)}
    load_exactly(model, weights, source=path)


@contextmanager
def _hub_or_its_cache() -> Iterator[None]:
    """Where no way leads to the hub, its library looks into its cache only: at once, in silence."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _is_reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _is_reachable(address: str) -> bool:
    if getproxies():  # they know names that this machine does not
        return True
    try:
        socket.getaddrinfo(urlsplit(address).hostname, 443)
    except OSError:
        return False
    return True
