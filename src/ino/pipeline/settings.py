"""How results were made, stored beside them."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ino import __version__
from ino.files import atomic_path
from ino.propagate.protocols import Protocol

OnFrame = Callable[[], None]
"""Called after each frame."""


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
