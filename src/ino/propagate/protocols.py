"""Named protocols of mask propagation: every choice that decides a published number.

A protocol says what is computed; how fast that happens is the business of `affinity`. The
normalisation of the input (mean and standard deviation) belongs to the backbone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from ino.errors import ConfigError

Size = tuple[int, int]
"""Height and width, pixels."""

Window = Literal["square"]
Feedback = Literal["soft"]
MaskDown = Literal["bilinear-align-corners"]
MaskUp = Literal["bilinear-stride"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The choices of one protocol.

    Attributes:
        name: the protocol's name.
        layer: block whose features are read, counted from 1; the final norm is applied.
        short_side: pixels of the shorter side of the network's input; None keeps the video's size.
        size_multiple: both sides of the input are rounded down to a multiple of this many pixels;
            None takes the backbone's stride. Frames are resized, never cropped.
        fixed_sizes: (video's size, input's size) pairs that take precedence where `short_side` is
            None.
        topk: context positions that label a query, over all context frames together.
        num_context: frames before the query that serve as context beside the reference frame.
        window: shape of the neighbourhood that context positions come from.
        radius: of the window, feature positions: |dy| <= radius and |dx| <= radius; None: no
            window. It holds for the reference frame too.
        temperature: T in the weights exp(cosine similarity / T).
        feedback: what later frames take as a frame's labels; `soft`: its probabilities.
        mask_down: how a given mask becomes labels of feature positions;
            `bilinear-align-corners`: of its one-hot form, corners aligned.
        mask_up: how probabilities become labels of pixels; `bilinear-stride`: bilinearly to stride
            times the feature grid (corners not aligned), argmax, nearest to the video's size.
        normalize_output: shift and scale each enlarged channel to 0..1 before the argmax where its
            maximum is positive.
    """

    name: str
    layer: int
    short_side: int | None
    size_multiple: int | None
    fixed_sizes: tuple[tuple[Size, Size], ...]
    topk: int
    num_context: int
    window: Window
    radius: int | None
    temperature: float
    feedback: Feedback
    mask_down: MaskDown
    mask_up: MaskUp
    normalize_output: bool

    def __post_init__(self) -> None:
        _check_values(self.name, vars(self))


_LEAST = {"layer": 1, "topk": 1, "num_context": 0, "short_side": 1, "size_multiple": 1, "radius": 0}
_OPTIONAL = ("short_side", "size_multiple", "radius")
_CHOICES = {"window": Window, "feedback": Feedback, "mask_down": MaskDown, "mask_up": MaskUp}


def _check_values(name: str, values: Mapping[str, Any]) -> None:
    """Raises ConfigError for the first value that its field cannot have."""
    for field, value in values.items():
        expected = None
        if field in _LEAST:
            expected = _expect_count(value, least=_LEAST[field], optional=field in _OPTIONAL)
        elif field in _CHOICES and value not in get_args(_CHOICES[field]):
            expected = f"one of {', '.join(get_args(_CHOICES[field]))}"
        elif field == "temperature" and not (_is_number(value) and 0 < value < math.inf):
            expected = "a number above 0"
        elif field == "normalize_output" and not isinstance(value, bool):
            expected = "true or false"
        elif field == "fixed_sizes" and not isinstance(value, tuple):
            expected = "a tuple of pairs of sizes, which can only be set from Python"
        if expected is not None:
            raise ConfigError(f"protocol {name}: {field} must be {expected}, but is {value!r}")


def _expect_count(value: Any, *, least: int, optional: bool) -> str | None:
    """What a count must be, where this value is not it."""
    if value is None and optional:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return None
    return f"a whole number, {least} or more" + (", or none" if optional else "")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_INO_DAVIS = Protocol(
    name="ino-davis",
    layer=7,
    short_side=480,
    size_multiple=None,
    fixed_sizes=(),
    topk=5,
    num_context=10,
    window="square",
    radius=40,
    temperature=0.1,
    feedback="soft",
    mask_down="bilinear-align-corners",
    mask_up="bilinear-stride",
    normalize_output=True,
)

PROTOCOLS = {
    "ino-davis": _INO_DAVIS,
    # The authors' comment means the 0..1 step for DAVIS only, but their code, and so their
    # YouTube-VOS score, always applies it; the paper is silent.
    "ino-ytvos": replace(
        _INO_DAVIS,
        name="ino-ytvos",
        short_side=None,
        fixed_sizes=(((1080, 1920), (720, 1280)), ((816, 1920), (720, 1280))),
        num_context=20,
        radius=50,
    ),
}
"""The protocols by name."""


def get_protocol(name: str, /, **overrides: Any) -> Protocol:
    """The protocol of that name, with single fields replaced.

    Args:
        name: one of `PROTOCOLS`.
        overrides: values by field, as in `Protocol`; None is a value, not "as it was".

    Raises:
        ConfigError: the name or a field is unknown, or a value is out of range.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"unknown protocol {name!r}; choose one of {', '.join(PROTOCOLS)}")
    options = [field.name for field in fields(Protocol) if field.name != "name"]
    for field in overrides:
        if field not in options:
            raise ConfigError(f"a protocol has no {field!r}; it has {', '.join(options)}")
    # Before a protocol is built, so that a value of a wrong type gets the same clear answer.
    _check_values(name, overrides)
    return replace(PROTOCOLS[name], **overrides)
