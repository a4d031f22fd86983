"""What the parser of options says, in plain words.

It covers a value of the wrong type, and arguments and commands that are missing; other messages
stay as they are.
"""

import re
from collections.abc import Iterable

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
