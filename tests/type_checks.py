"""What jaxtyping's import hook puts around ino's functions while tests run.

Its own decorator wraps every function, and checks all arguments twice in each call. Here only
functions with shapes in their signature are wrapped, for the names of axes to hold from one
argument to the next and for the result, and each value is checked once. Functions within functions
are left alone, as checking code is compiled anew with each of them, at each call of the outer one.
"""

import dataclasses
import functools
import inspect
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import beartype

_jaxtyped = jaxtyping.jaxtyped


def checked(*, typechecker: Any) -> Any:
    """A decorator of functions and dataclasses, in the place of `jaxtyping.jaxtyped`."""
    del typechecker  # beartype
    return _checked


def _checked(what: Any) -> Any:
    if inspect.isclass(what):
        if dataclasses.is_dataclass(what) and "__init__" in vars(what):
            what.__init__ = _checked_function(what.__init__)
        return what
    return what if "<locals>" in what.__qualname__ else _checked_function(what)


def _checked_function(function: Any) -> Any:
    hints = inspect.get_annotations(function)
    for name, hint in hints.items():
        if not _is_known(hint, function.__globals__):
            function.__annotations__[name] = Any
    shapes = [dim for hint in hints.values() for dim in _shapes(hint)]
    found = beartype(function)
    if not shapes:
        return found
    if any("{" in dim for dim in shapes):  # names of arguments
        return _jaxtyped(found, typechecker=None)

    @functools.wraps(function)
    def in_context(*args: Any, **kwargs: Any) -> Any:
        with _jaxtyped("context"):
            return found(*args, **kwargs)

    return in_context


def _is_known(hint: Any, namespace: dict[str, Any]) -> bool:
    """Whether the classes that an annotation names as text are there already."""

    def function(value: Any) -> None: ...

    function.__annotations__ = {"value": hint}
    try:
        get_type_hints(function, namespace, include_extras=True)
    except NameError:
        return False
    return True


def _shapes(hint: Any) -> list[str]:
    """The shapes in an annotation, at any depth."""
    if isinstance(hint, str):
        return [hint] if '"' in hint or "'" in hint else []
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return [hint.dim_str]
    return [shape for part in get_args(hint) for shape in _shapes(part)]
