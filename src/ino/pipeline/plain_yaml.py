"""YAML files that people write: read with errors that say where a key is wrong."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ino.errors import ConfigError


def read_yaml(path: Path, *, what: str) -> dict[str, Any]:
    """The keys and values of a file.

    Args:
        path: of the file.
        what: it is called in messages, such as "sweep".

    Raises:
        ConfigError: it is no YAML, holds no keys, or a key is there twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        twice = next(_keys_given_twice(yaml.compose(text, yaml.SafeLoader)), None)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ConfigError(f"the {what} {path} is not YAML: {error}") from error
    if twice is not None:
        raise ConfigError(f"the {what} {path} has {twice} twice: give each label and field once")
    if not isinstance(content, dict):
        raise ConfigError(f"the {what} {path} must hold keys such as rows")
    return content


def check_keys(content: Any, kind: type, *, where: str, prefix: str = "") -> None:
    """Checks that all keys are fields of a dataclass.

    Args:
        content: what should be keys and values.
        kind: the dataclass.
        where: such as "the sweep FILE".
        prefix: of the keys, with a dot at its end.

    Raises:
        ConfigError: a key is unknown, or there are none; the message names the fields.
    """
    if not isinstance(content, dict):
        raise ConfigError(f"{where} must hold keys and values under {prefix.rstrip('.')}")
    known = [one.name for one in dataclasses.fields(kind)]
    for key in content:
        if key not in known:
            raise ConfigError(
                f"{where} has the unknown key {prefix}{key}; it may have "
                f"{', '.join(prefix + name for name in known)}"
            )


def _keys_given_twice(node: yaml.Node | None) -> Iterator[str]:
    """Keys that YAML itself would silently overwrite."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if str(key.value) in seen:  # a key may be a list, which the loader refuses
                yield str(key.value)
            seen.add(str(key.value))
            yield from _keys_given_twice(value)
