"""YAML files and options as pydantic models, with errors that name the key, the rule and the value.

Recipes, protocols and experiment files are children of `Model`: ranges and choices are types,
combinations are validators, descriptions are the attributes' docstrings. YAML is read as version
1.2 has it (`off` is text, only true and false are truth values), without aliases and merge keys.
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ino.errors import ConfigError

_MAX_CHARACTERS = 80
"""How much of a value a message repeats."""


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
        reason = one_sentence(error, kind)
        raise ConfigError(f"{where}: {reason}" if where else reason) from error


def one_sentence(error: ValidationError, kind: type[BaseModel]) -> str:
    """A message about the first invalid value: "optim.lr must be at least 0, but is -3".

    Args:
        error: from pydantic.
        kind: the model that was validated; it gives the names of the keys.
    """
    found = [(*_locate(one["loc"], kind), one) for one in error.errors(include_url=False)]
    outermost = found[0][0]
    # A union has errors of each member: those furthest inside are of the member that was meant.
    name, model, first = max(
        (
            one
            for one in found
            if one[0] == outermost or one[0].startswith((f"{outermost}.", f"{outermost}["))
        ),
        key=lambda one: len(one[0]),
    )
    match first["type"]:
        case "extra_forbidden":
            return f"unknown key {name}; {_suggestion(name, model)}"
        case "missing":
            return f"{name} is missing"
        case "value_error":
            text = str(first.get("ctx", {}).get("error"))
            separator = " " if text.startswith("must ") else ": "
            return f"{name}{separator}{text}" if name else text
    rules = dict.fromkeys(_rule(one) for other, _, one in found if other == name)
    shown = first["input"] if isinstance(first["input"], int | float) else repr(first["input"])
    if len(text := str(shown)) > _MAX_CHARACTERS:
        text = f"{text[:_MAX_CHARACTERS]}..."
    return f"{name or 'the content'} must be {' or '.join(rules)}, but is {text}"


_RULES = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "text",
    "string_too_short": "text of {min_length} or more characters",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "dict_type": "keys and values",
    "mapping_type": "keys and values",
    "model_type": "keys and values",
    "greater_than_equal": "at least {ge:g}",
    "less_than_equal": "at most {le:g}",
    "none_required": "null",
}
"""What a value must be, by pydantic's types of errors; other types have pydantic's own words."""


def _rule(error: Any) -> str:
    if words := _RULES.get(error["type"]):
        return words.format(**error.get("ctx", {}))
    return re.sub(r"^(Input|Value) should be (a valid )?", "", error["msg"])


def _suggestion(name: str, model: type[BaseModel] | None) -> str:
    known = list(model.model_fields) if model else []
    section, _, key = name.rpartition(".")
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f"did you mean {f'{section}.' if section else ''}{near[0]}?"
    return f"known are {', '.join(known)}"


def _locate(location: tuple[int | str, ...], kind: Any) -> tuple[str, type[BaseModel] | None]:
    """The dotted name of a value, without pydantic's names of union members, and the model that
    has its last key."""
    name, model = "", None
    for part in location:
        kind, is_union = _member(kind, part)
        if is_union:
            continue
        if isinstance(part, int):
            name += f"[{part}]"
            kind = next(iter(get_args(kind)), Any)
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            name, model = f"{name}.{part}", kind
            field = kind.model_fields.get(part)
            kind = field.annotation if field else Any
        elif get_origin(kind) in (dict, Mapping):
            name += f".{part}"
            kind = get_args(kind)[1]
        else:
            break  # within a value that no type of ours describes
    return name.removeprefix("."), model


def _member(kind: Any, part: int | str) -> tuple[Any, bool]:
    """What a type means to the next part of a location: itself without wrapping, or, if it is a
    union whose member the part names, that member."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) not in (Union, UnionType):
        return kind, False
    members = [one for one in get_args(kind) if one is not NoneType]
    if len(members) == 1:
        return _member(members[0], part)
    named = (one for one in members if _name_of(one) == str(part).partition("[")[0])
    return next(named, Any), True


def _name_of(kind: Any) -> str:
    return getattr(get_origin(kind) or kind, "__name__", "")


class _Loader(yaml.SafeLoader):
    """Plain YAML 1.2: no aliases, no merge keys, no key twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise _fault(f"alias *{event.anchor} is not allowed: write the value out", event)
        return super().compose_node(parent, index)

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
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
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
