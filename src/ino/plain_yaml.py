"""What the parser of options says, in plain words.

It covers a value of the wrong type, and arguments and commands that are missing; other messages
stay as they are.
"""

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from ino.errors import ConfigError

_WRONG_TYPE = re.compile(r'Parser key "(.+?)": Expected an? (.+?)\. Got value: (.*)')
_WRONG_TYPES = re.compile(
    r'Parser key "(.+?)": Does not validate against any of the Union subtypes '
    r"Subtypes: \[(.+?)\] Errors: .* Given value: (.*)"
)
_TYPE = re.compile(r"<class '(\w+)'>|typing\.Literal\[(.+?)\]|NoneType")
_MISSING = re.compile(r"the following arguments are required: (.*)")
_NO_COMMAND = re.compile(r'expected "(?:(\w+)\.)?subcommand" to be one of')
_MOST_SHOWN = 80

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "list": "a list such as [a, b]",
    "dict": "keys and values",
    "NoneType": "none",
}


def plain_words(error: Exception, *, commands: Iterable[str] = ()) -> str:
    """One line that says which value or argument is wrong and what it must be.

    Args:
        error: of the parser.
        commands: all that there are, as `train` and `evaluate davis`.
    """
    text = " ".join(str(error).split())
    if found := _WRONG_TYPE.fullmatch(text) or _WRONG_TYPES.fullmatch(text):
        name, kinds, value = found.groups()
        shown = value if len(value) <= _MOST_SHOWN else f"{value[:_MOST_SHOWN]}..."
        if expected := _type_words(kinds):
            return f"{name} is {shown}; it must be {expected}"
    if found := _MISSING.fullmatch(text):
        *command, _ = found[1].split(", ")[0].split(".")
        missing = [name.rpartition(".")[2] for name in found[1].split(", ")]
        return f"{' '.join(['ino', *command])} needs {' and '.join(missing)}"
    if found := _NO_COMMAND.match(text):
        of = found[1]
        words = [name.split() for name in commands]
        known = [one[-1] for one in words if one[0] == of] if of else [one[0] for one in words]
        return f"{f'ino {of}' if of else 'ino'} needs one of {', '.join(dict.fromkeys(known))}"
    return text


def _type_words(kinds: str) -> str:
    """Types as Python shows them, in words; empty where one has none."""
    found = []
    for match in _TYPE.finditer(kinds):
        name, options = match.groups()
        if options:
            found += [option.strip(" '\"") for option in options.split(",")]
        elif (name or "NoneType") in _WORDS:
            found.append(_WORDS[name or "NoneType"])
        else:
            return ""
    return " or ".join(found)


# YAML files that people write: read with errors that say where a key is wrong.


def yaml_names(folder: Path) -> list[str]:
    """Names of the files in a folder of ino's own, without their ending."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def named_file(name: str, folder: Path, *, what: str) -> Path:
    """The file of that name in a folder of ino's own, or else at that path.

    Args:
        name: one of `yaml_names(folder)`, or the path of a YAML file.
        folder: with ino's own.
        what: such a file is called in messages, such as "sweep".

    Raises:
        ConfigError: there is none.
    """
    path = folder / f"{name}.yaml"
    if not path.exists():
        path = Path(name)
    if not path.is_file():
        known = ", ".join(yaml_names(folder))
        raise ConfigError(f"there is no {what} {name!r}; give one of {known} or a YAML file")
    return path


def read_yaml(path: Path, *, what: str, holds: str = "keys such as rows") -> dict[str, Any]:
    """The keys and values of a file.

    Args:
        path: of the file.
        what: it is called in messages, such as "sweep".
        holds: what it should hold, for messages.

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
        raise ConfigError(f"the {what} {path} has {twice!r} twice: give each label and field once")
    if not isinstance(content, dict):
        raise ConfigError(f"the {what} {path} must hold {holds}")
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


def typed(
    content: Mapping[str, Any], kind: type, *, where: str, skip: Collection[str] = ()
) -> dict[str, Any]:
    """The values of the fields of a dataclass, of the fields' types; those that are None are left
    out of what was given.

    Args:
        content: values by field, as YAML has them.
        kind: the dataclass.
        where: such as "the sweep FILE".
        skip: fields that are not among the values.

    Raises:
        ConfigError: a value is not of its field's type, or a key within one is no text.
    """
    given = {name: value for name, value in content.items() if value is not None}
    if unnamed := next(_keys_without_name(given), None):
        raise ConfigError(f"{where} has the key {unnamed}, which is no name; put it in quotes")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, nested_key="it", skip=set(skip))
    try:
        values = parser.parse_object({"it": given})
    except ArgumentError as error:
        reason = plain_words(error).replace("'it.", "'").replace('"it.', '"').removeprefix("it.")
        raise ConfigError(f"{where} cannot be used: {reason}") from error
    return values["it"].as_dict()


def _keys_without_name(content: Mapping[Any, Any]) -> Iterator[str]:
    """Keys that are numbers or the like, at any depth."""
    for key, value in content.items():
        if not isinstance(key, str):
            yield repr(key)
        if isinstance(value, Mapping):
            yield from _keys_without_name(value)


def _keys_given_twice(node: yaml.Node | None) -> Iterator[str]:
    """Keys that YAML itself would silently overwrite."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if str(key.value) in seen:  # a key may be a list, which the loader refuses
                yield str(key.value)
            seen.add(str(key.value))
            yield from _keys_given_twice(value)
