"""How results were made, stored beside them."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ino import __version__
from ino.errors import ConfigError
from ino.files import write_text
from ino.models.bundled import bundled_folder
from ino.models.checkpoints import find_checkpoint
from ino.models.exported import exported_weights, is_exported
from ino.models.timm_models import split_weights
from ino.propagate.protocols import Protocol, get_protocol

OnFrame = Callable[[], None]
"""Called after each frame."""


def sized_protocol(
    name: str,
    /,
    *,
    short_side: int | None,
    layer: int | None = None,
    radius: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Protocol:
    """A named protocol for frames of another size; its radius covers the same part of a frame.

    Args:
        name: one of `ino.propagate.protocols`.
        short_side: pixels; None for the protocol's own size.
        layer: block whose features are read; None for the protocol's own.
        radius: feature positions, taken as it is; None: scaled with `short_side`.
        overrides: other fields. Here None is a value, and a short side leaves the radius as it is.

    Raises:
        ConfigError: the name or a field is unknown, one is given twice, or a value is out of range.
    """
    chosen = dict(overrides or {})
    given = {"short_side": short_side, "layer": layer, "radius": radius}
    given = {field: value for field, value in given.items() if value is not None}
    if twice := [field for field in given if field in chosen]:
        raise ConfigError(f"{twice[0]} is given twice, by itself and under set; keep one")
    usual, fields = get_protocol(name), chosen | given
    if short_side is not None and usual.radius is not None and usual.short_side is not None:
        get_protocol(name, short_side=short_side)  # what cannot be is told of before it is used
        fields.setdefault("radius", max(1, round(usual.radius * short_side / usual.short_side)))
    return get_protocol(name, **fields)


def write_settings(path: Path, protocol: Protocol, settings: Mapping[str, Any] | None) -> None:
    """Stores how results were made: protocol, settings and version."""
    write_text(path, settings_text(protocol, settings))


def settings_text(protocol: Protocol, settings: Mapping[str, Any] | None) -> str:
    """What `write_settings` writes: two results were made alike where these are equal."""
    content = {
        "version": __version__,
        **(settings or {}),
        "protocol": dataclasses.asdict(protocol),
    }
    return json.dumps(content, indent=2, default=str) + "\n"


def fingerprint(weights: str) -> dict[str, str]:
    """What tells one file of weights from another, so that a resumed run notices a change."""
    if weights == "color":  # as a row of a suite may be called, and so a folder at hand
        return {}
    _, path = split_weights(weights)
    if path is None and (given := bundled_folder(weights) or Path(weights)).exists():
        path = exported_weights(given) if is_exported(given) else find_checkpoint(given)
    if path is None or not path.is_file():
        return {}  # a name such as `color`
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"checkpoint": str(path), "sha256": digest}
