"""Recipes: YAML files that set fields of a training run, by name or by path.

The command line takes a recipe as options that come before those given, so that a value is checked
the same way wherever it is written; programs take it as a configuration.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from ino.argument_words import plain_words
from ino.errors import ConfigError
from ino.plain_yaml import named_file, read_yaml, yaml_names
from ino.train.config import TrainConfig
from ino.train.config_dict import field_names, flatten, from_dict

FOLDER = Path(__file__).parent.parent / "recipes"
"""Where the named recipes are."""


def recipe_names() -> list[str]:
    """Names of the recipes that come with ino."""
    return yaml_names(FOLDER)


def read_recipe(name: str) -> dict[str, Any]:
    """What a recipe sets, by dotted field: {"model.arch": "vit_tiny"}.

    Args:
        name: one of `recipe_names()`, or the path of a YAML file.

    Raises:
        ConfigError: there is no such recipe, it is no YAML, or it has a key that is not known or is
            there twice.
    """
    path = named_file(name, FOLDER, what="recipe")
    content = read_yaml(path, what="recipe", holds="sections such as model and data")
    known_keys = field_names()
    flat = dict(flatten(content))
    for key in flat:
        if key not in known_keys:
            raise ConfigError(f"the recipe {path} has the unknown key {key}; see ino train --help")
    return flat


def load_recipe(name: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration of a recipe; fields that it leaves out have their defaults.

    Args:
        name: one of `recipe_names()`, or the path of a YAML file.
        overrides: options as on the command line, such as `--optim.lr=0.001`.

    Raises:
        ConfigError: see `read_recipe`; or a value is not of its field's type.
    """
    parser = ArgumentParser(exit_on_error=False)
    add_config_arguments(parser)
    try:
        return config_of(parser.parse_args([*recipe_arguments(name), *overrides]))
    except ArgumentError as error:
        raise ConfigError(f"the recipe {name} cannot be used: {plain_words(error)}") from error


def recipe_arguments(name: str) -> list[str]:
    """What a recipe sets, as options of the command line: ["--model.arch=vit_tiny"].

    Raises:
        ConfigError: see `read_recipe`.
    """
    return as_options(read_recipe(name))


def as_options(values: Mapping[str, Any]) -> list[str]:
    """Values by dotted field as options of the command line."""
    return [f"--{key}={_as_text(value)}" for key, value in values.items()]


def add_config_arguments(parser: ArgumentParser) -> None:
    """Adds every field of a training run as an option: --optim.lr."""
    parser.add_class_arguments(TrainConfig, nested_key=None, fail_untyped=False)


def config_of(options: Namespace) -> TrainConfig:
    """The configuration among parsed options, added by `add_config_arguments`."""
    values = {name: options[name] for name in TrainConfig.__dataclass_fields__}
    return from_dict({n: v.as_dict() if isinstance(v, Namespace) else v for n, v in values.items()})


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
