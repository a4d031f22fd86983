"""YAML files and options as pydantic models, with errors that name the key, the rule and the value;
and the one reader of JSON.

Recipes, protocols and experiment files are children of `Model`: ranges and choices are types,
combinations are validators, descriptions are the attributes' docstrings. YAML is read as version
1.2 has it (`off` is text, only true and false are truth values), without aliases and merge keys.
"""

import difflib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ino.errors import ConfigError
from ino.system import read_file

_MAX_YAML = 1 << 18  # bytes, which take seconds
_MAX_DEPTH = 64  # lists and maps in each other, far from Python's limit of recursion


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
        where: where the values come from, such as "the recipe FILE"; empty for the command line.

    Raises:
        ConfigError: a key is unknown or missing, or a value breaks a rule; says which.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        reason = _first_fault(error, kind, values)
        raise ConfigError(f"{where}: {reason}" if where else reason) from error


def _first_fault(error: ValidationError, kind: type[BaseModel], values: Mapping[str, Any]) -> str:
    """What is wrong with the first wrong value: "optim.lr must be at least 0, but is -3"."""
    found = [(_path(one, values), one) for one in error.errors(include_url=False)]
    outermost = found[0][0]
    # A union has errors of each member: those furthest inside are of the member that was meant.
    path, first = max(
        (one for one in found if one[0][: len(outermost)] == outermost),
        key=lambda one: len(one[0]),
    )
    name = _dotted(path)
    match first["type"]:
        case "extra_forbidden":
            return f"unknown key {name}; {_suggestion(path, kind)}"
        case "missing":
            return f"{name} is missing"
        case "value_error":
            text = str(first.get("ctx", {}).get("error"))
            separator = " " if text.startswith("must ") else ": "
            return f"{name}{separator}{text}" if name else text
    rules = dict.fromkeys(_rule(one) for other, one in found if other == path)
    shown = first["input"] if isinstance(first["input"], int | float) else repr(first["input"])
    text = str(shown) if len(str(shown)) <= 80 else f"{str(shown)[:80]}..."
    return f"{name or 'the content'} must be {' or '.join(rules)}, but is {text}"


def _path(error: Any, values: Any) -> tuple[str | int, ...]:
    """Keys and indices that lead to a value, without pydantic's names of union members."""
    path = []
    for place, part in enumerate(error["loc"], start=1):
        try:
            values = values[part]
        except (LookupError, TypeError):
            if error["type"] != "missing" or place < len(error["loc"]):
                continue
        path.append(part)
    return tuple(path)


def _dotted(path: tuple[str | int, ...]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")


def _suggestion(path: tuple[str | int, ...], kind: type[BaseModel]) -> str:
    """Which keys there are in place of the last one, or the one that was probably meant."""
    models = [kind]
    for part in path[:-1]:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        models = [one for field in fields for one in _models(field.annotation)] or models
    known = [name for model in models for name in model.model_fields]
    near = difflib.get_close_matches(str(path[-1]), known, n=1)
    if near:
        return f"did you mean {_dotted((*path[:-1], near[0]))}?"
    return f"known are {', '.join(known)}"


def _models(kind: Any) -> list[type[BaseModel]]:
    """The models in a type, such as the one of `dict[str, Row]`."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for member in get_args(kind) for model in _models(member)]


_RULES = {
    "string_pattern_mismatch": "timm:NAME",
    "string_too_short": "text of {min_length} or more characters",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "greater_than_equal": "at least {ge:g}",
    "less_than_equal": "at most {le:g}",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "keys and values",
    "mapping": "keys and values",
    "model": "keys and values",
    "none": "null",
}
"""What a value must be, by pydantic's types of errors or their first words; others have pydantic's
own words."""


def _rule(error: Any) -> str:
    kind = error["type"]
    if words := _RULES.get(kind) or _RULES.get(kind.partition("_")[0]):
        return words.format(**error.get("ctx", {}))
    return re.sub(r"^(Input|Value) should be (a valid )?", "", error["msg"])


class _Loader(yaml.SafeLoader):
    """Plain YAML 1.2: no aliases, no merge keys, no key twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise _fault(f"alias *{event.anchor} is not allowed: write the value out", event)
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _fault(f"it is more than {_MAX_DEPTH} levels deep", self.peek_event())
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and "\0" in node.value:
            raise _fault("a text holds the character NUL", node)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise _fault("the merge key << is not allowed: write the keys out", key)
            if key.tag != "tag:yaml.org,2002:str":
                shown = key.value if isinstance(key, yaml.ScalarNode) else "that is a list or map"
                raise _fault(f"the key {shown} is no name: put it in quotes", key)
            if key.value in seen:
                raise _fault(f"the key {key.value!r} is there twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _fault(problem: str, place: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


for _tag, _pattern, _begins in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9]\d*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.\d+|(0|[1-9]\d*)(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.inf|\.nan",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})$"), _begins
    )


def read_yaml(path: Path, *, what: str, holds: str = "keys and values") -> dict[str, Any]:
    """The keys and values of a file.

    Args:
        path: of the file.
        what: what the file is called in messages, such as "recipe".
        holds: what the file should hold, for messages.

    Raises:
        ConfigError: it cannot be read, is not YAML, has aliases, merge keys or a key twice, or
            holds no keys.
    """
    try:
        content = yaml.load(read_file(path, max_bytes=_MAX_YAML).decode("utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"the {what} {path} cannot be read: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"the {what} {path}{line} cannot be used: {problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).replace(' in "<unicode string>"', "").split())
        raise ConfigError(f"the {what} {path} cannot be used: {reason}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"the {what} {path} must hold {holds}")
    return content


def read_json(path: Path) -> Any:
    """The value of a JSON file, see `parse_json`.

    Raises:
        OSError: it cannot be read, see `ino.system.read_file`.
        ValueError: it is not such JSON.
    """
    return parse_json(read_file(path).decode("utf-8"))


def parse_json(text: str) -> Any:
    """The value of a JSON text of at most 64 levels, whose numbers are finite, without NUL.

    Raises:
        ValueError: it is anything else.
    """
    if "\\u0000" in text:
        raise ValueError("a text holds the character NUL")
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"it is more than {_MAX_DEPTH} levels deep") from None
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    if level:
        raise ValueError(f"it is more than {_MAX_DEPTH} levels deep")
    return value


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is no finite number")
    return number


def yaml_value(text: str) -> Any:
    """The value of a YAML text; the text itself if it is not valid YAML."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return text


def yaml_names(folder: Path) -> list[str]:
    """Names of the YAML files in a folder of ino's own, without their suffix."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def named_file(name: str, folder: Path, *, what: str) -> Path:
    """The file of that name in a folder of ino's own, or else the file at that path.

    Args:
        name: one of `yaml_names(folder)`, or the path of a YAML file.
        folder: folder of the files that come with ino.
        what: what such a file is called in messages, such as "recipe".

    Raises:
        ConfigError: there is none.
    """
    own = folder / f"{name}.yaml"
    path = own if own.is_file() else Path(name)
    if not path.is_file():
        known = ", ".join(yaml_names(folder))
        raise ConfigError(f"there is no {what} {name!r}; give one of {known} or a YAML file")
    return path
