"""A training run's configuration as plain values, nested or by dotted name.

Imports nothing heavy, so that the command line can name its options at once.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from ino.train.config import TrainConfig


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain values, for YAML and JSON."""
    plain = dataclasses.asdict(config)
    for section in plain.values():
        if isinstance(section, dict):
            section.update({k: list(v) for k, v in section.items() if isinstance(v, tuple)})
    return plain


def from_dict(plain: dict[str, Any]) -> TrainConfig:
    """The configuration that `to_dict` wrote."""
    sections = {}
    for section in dataclasses.fields(TrainConfig):
        value = plain[section.name]
        if isinstance(value, dict):
            build: Any = section.default_factory
            value = build(**{k: _frozen(k, v) for k, v in value.items()})
        sections[section.name] = value
    return TrainConfig(**sections)


_LISTS = ("root", "eval_sequences")
"""Fields that hold a list; other sequences are pairs of numbers."""


def _frozen(name: str, value: Any) -> Any:
    return tuple(value) if isinstance(value, list) and name not in _LISTS else value


def flatten(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested sections: ("model.arch", "vit_tiny")."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def field_names() -> list[str]:
    """The dotted names of all fields: "model.arch"."""
    return [name for name, _ in flatten(to_dict(TrainConfig()))]
