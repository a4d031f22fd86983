"""How results were made, stored beside them."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ino import __version__
from ino.files import atomic_path
from ino.models.bundled import bundled_folder
from ino.models.checkpoints import find_checkpoint
from ino.models.exported import exported_weights, is_exported
from ino.models.timm_models import split_weights
from ino.propagate.protocols import Protocol, get_protocol

OnFrame = Callable[[], None]
"""Called after each frame."""


def sized_protocol(name: str, *, short_side: int | None, **overrides: Any) -> Protocol:
    """A named protocol for frames of another size; its radius covers the same part of a frame.

    Args:
        name: one of `ino.propagate.protocols`.
        short_side: pixels; None for the protocol's own size.
        overrides: other fields; a radius among them is taken as it is.

    Raises:
        ConfigError: the name or a field is unknown, or a value is out of range.
    """
    if short_side is None:
        return get_protocol(name, **overrides)
    get_protocol(name, short_side=short_side)  # a size that cannot be is told of before it is used
    usual = get_protocol(name)
    if usual.radius is not None and usual.short_side is not None:
        overrides.setdefault("radius", max(1, round(usual.radius * short_side / usual.short_side)))
    return get_protocol(name, short_side=short_side, **overrides)


def write_settings(path: Path, protocol: Protocol, settings: Mapping[str, Any] | None) -> None:
    """Stores how results were made: protocol, settings and version."""
    with atomic_path(path) as temporary:
        temporary.write_text(settings_text(protocol, settings), encoding="utf-8")


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
    _, path = split_weights(weights)
    if path is None and (given := bundled_folder(weights) or Path(weights)).exists():
        path = exported_weights(given) if is_exported(given) else find_checkpoint(given)
    if path is None or not path.is_file():
        return {}  # a name such as `color`
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"checkpoint": str(path), "sha256": digest}
