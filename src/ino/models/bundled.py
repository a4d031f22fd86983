"""Weights that come with ino, by name: folders as `ino export` writes them.

A better training replaces them with one command (docs/models.md); nothing here changes then.
"""

from pathlib import Path

FOLDER = Path(__file__).parent.parent / "weights"
"""Where the named weights are."""

DEFAULT = "ino_vitt8"
"""What `ino segment` takes unless told."""


def bundled_names() -> list[str]:
    """Names of the weights that come with ino."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def bundled_folder(name: str) -> Path | None:
    """The folder of the weights of this name; None where none come with ino under it."""
    return FOLDER / name if name in bundled_names() else None
