"""A term of the objective that the user brings: `loss.extra: module:function`.

The function is called with what the student and the teacher gave for a part of a step, and returns
a scalar, which is weighted and added to the loss. A part holds either the local crops or the global
crops of some clips (see `split_views`), so it is called several times per step. It must not change
what it is given.
"""

import importlib
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ino.errors import ConfigError
from ino.models.student_teacher import Logits


@dataclass(frozen=True)
class ExtraTerm:
    """A user's term.

    Attributes:
        text: as the recipe names it, module:function.
        name: in the log, extra_FUNCTION.
        function: takes the student's and the teacher's `Logits`; returns a scalar, or None where a
            part has nothing that it needs.
        weight: of the term in the loss.
    """

    text: str
    name: str
    function: Callable[[Logits, Logits], Any]
    weight: float

    def __call__(self, student: Logits, teacher: Logits) -> Float[Tensor, ""]:
        """The term before weighting; 0 where the function returns None.

        Raises:
            ConfigError: the function fails or returns something else than a scalar.
        """
        given = next(part for part in student if part is not None)
        try:
            found = self.function(student, teacher)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            raise ConfigError(
                f"loss.extra {self.text} failed at {Path(frame.filename).name}, line "
                f"{frame.lineno} ({reason}): mend it, or leave loss.extra out"
            ) from error
        if found is None:
            return given.new_zeros(())
        if not isinstance(found, Tensor) or found.shape != () or not found.is_floating_point():
            what = type(found).__name__
            if isinstance(found, Tensor):
                what = f"a tensor of shape {tuple(found.shape)}, {found.dtype}"
            raise ConfigError(
                f"loss.extra {self.text} must return a scalar tensor of shape () with a floating "
                f"point number, but returned {what}"
            )
        return found.to(torch.promote_types(found.dtype, torch.float32))


def find_extra(text: str, *, weight: float) -> ExtraTerm | None:
    """The term that a recipe names; None for empty text.

    The module is one that is installed or lies in the working folder.

    Raises:
        ConfigError: there is no such module or function, or the text has another form.
    """
    if not text:
        return None
    module_name, separator, function_name = text.partition(":")
    if not (separator and module_name and function_name.isidentifier()):
        raise ConfigError(f"loss.extra must be module:function, but is {text!r}")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # also those of the module's own code
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"loss.extra {text}: the module {module_name} cannot be imported ({reason}): install "
            f"it, or put {module_name.partition('.')[0]}.py into {here}"
        ) from error
    finally:
        sys.path.remove(here)
    function: Any = getattr(module, function_name, None)
    if not callable(function):
        known = [name for name, one in vars(module).items() if callable(one) and name[0] != "_"]
        raise ConfigError(
            f"loss.extra {text}: {module_name} has no function {function_name}; it has "
            f"{', '.join(known[:5]) or 'none'}"
        )
    return ExtraTerm(text, f"extra_{function_name}", function, weight)
