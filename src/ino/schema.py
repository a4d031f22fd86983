"""YAML files and options as pydantic models, with errors that name the key, the value and the rule.

Recipes, protocols and experiment files are children of `Model`: ranges and choices are types,
combinations are validators, descriptions are the attributes' docstrings.
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ino.errors import ConfigError

_MOST_SHOWN = 80
"""Characters of a value that a message repeats."""


class Model(BaseModel):
    """Values that are checked when they are given; unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
    )


M = TypeVar("M", bound=BaseModel)


def checked(kind: type[M], values: Mapping[str, Any], *, where: str = "") -> M:
    """The model with these values.

    Args:
        kind: the model.
        values: by key, as YAML has them.
        where: they come from, such as "the recipe FILE"; empty for the command line.

    Raises:
        ConfigError: a key is unknown or missing, or a value breaks a rule; says which.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        reason = one_sentence(error, kind)
        raise ConfigError(f"{where}: {reason}" if where else reason) from error


def one_sentence(error: ValidationError, kind: type[BaseModel]) -> str:
    """What is wrong with the first wrong value, such as `optim.lr must be greater than 0, but is
    -3`.

    Args:
        error: of pydantic.
        kind: the model that was to be filled; it knows the names of the keys.
    """
    found = error.errors(include_url=False)
    first = found[0]
    kind_of = first["type"]
    names, model = _names(first["loc"], kind)
    name = ".".join(names)
    if kind_of == "extra_forbidden":
        known = list(model.model_fields)
        near = difflib.get_close_matches(names[-1], known, n=1)
        prefix = "".join(f"{one}." for one in names[:-1])
        hint = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(known)}"
        return f"unknown key {name}; {hint}"
    if kind_of == "missing":
        return f"{name} is missing"
    if kind_of == "value_error":
        text = str(first.get("ctx", {}).get("error"))
        separator = " " if text.startswith("must ") else ": "
        return f"{name}{separator}{text}" if name else text
    # A union has one error per member; all are about the same value.
    same = [one for one in found if _names(one["loc"], kind)[0] == names]
    rules = dict.fromkeys(_rule(one["msg"]) for one in same)
    return f"{name or 'the content'} must be {' or '.join(rules)}, but is {_shown(first['input'])}"


def _rule(message: str) -> str:
    for begin in ("Input should be ", "Value should be "):
        message = message.removeprefix(begin)
    return message.split(", unable to parse")[0].removeprefix("a valid ")


def _names(
    location: tuple[int | str, ...], kind: type[BaseModel]
) -> tuple[list[str], type[BaseModel]]:
    """Keys and indices on the way to a value, without pydantic's names of union members, and the
    last model on the way."""
    names: list[str] = []
    model = kind
    inside = True
    for one in location:
        if isinstance(one, int):
            names[-1:] = [f"{names[-1] if names else ''}[{one}]"]
        elif inside:
            names.append(one)
            field = model.model_fields.get(one)
            annotation = field.annotation if field else None
            inside = False
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                inside, model = True, annotation
    return names, model


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


class _Loader(yaml.SafeLoader):
    """Plain YAML: no aliases, no merge keys, no key twice, and 1e-3 is a number."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"alias *{event.anchor} is not allowed: write the value out",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(
                    problem="the merge key << is not allowed: write the keys out",
                    problem_mark=key.start_mark,
                )
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value} is no name: put it in quotes",
                    problem_mark=key.start_mark,
                )
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def read_yaml(path: Path, *, what: str, holds: str = "keys and values") -> dict[str, Any]:
    """The keys and values of a file.

    Args:
        path: of the file.
        what: it is called in messages, such as "recipe".
        holds: what it should hold, for messages.

    Raises:
        ConfigError: it cannot be read, is not YAML, has aliases, merge keys or a key twice, or
            holds no keys.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"the {what} {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ConfigError(
            f"the {what} {path} cannot be used: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"the {what} {path} must hold {holds}")
    return content


def yaml_names(folder: Path) -> list[str]:
    """Names of the YAML files in a folder of ino's own, without their suffix."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def named_file(name: str, folder: Path, *, what: str) -> Path:
    """The file of that name in a folder of ino's own, or else the file at that path.

    Args:
        name: one of `yaml_names(folder)`, or the path of a YAML file.
        folder: with ino's own.
        what: such a file is called in messages, such as "recipe".

    Raises:
        ConfigError: there is none.
    """
    own = folder / f"{name}.yaml"
    path = own if own.is_file() else Path(name)
    if not path.is_file():
        known = ", ".join(yaml_names(folder))
        raise ConfigError(f"there is no {what} {name!r}; give one of {known} or a YAML file")
    return path
