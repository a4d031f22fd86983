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

Rounding = Literal["down", "long-side-down", "long-side-up", "none"]
"""Which sides of the input become multiples of a number, and in which direction."""

WindowShape = Literal["square", "circle", "closed-circle"]
"""Offsets (dy, dx) in a window of radius r: max(|dy|, |dx|) <= r; the distance < r; it <= r."""

Recent = Literal["after-reference", "reference-again", "padded"]
"""Which of the last frames serve beside a reference: those after it; the reference too, a second
time, as long as it is one of them; or always equally many, missing ones copies of the reference."""

Entry = Literal["plain", "weighted"]
"""Labels `new` of sum s that enter replace p by (1 - s) p, beside them `new` or s times `new`."""

Feedback = Literal["soft"]

MaskDown = Literal["bilinear-align-corners", "linear", "nearest"]
"""One-hot maps to the feature grid: bilinearly with corners aligned; bilinearly as OpenCV does,
corners not aligned; or the label map by nearest neighbour."""

MaskUp = Literal["bilinear-stride", "bilinear", "bilinear-align-corners", "nearest"]
"""Channels to pixels: bilinearly to stride times the grid and, after the argmax, by nearest
neighbour to the video's size; or straight to the video's size in one of three ways."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The choices of one protocol.

    Attributes:
        name: the protocol's name.
        layer: block whose features are read, counted from 1; the final norm is applied. None: the
            last one.
        short_side: pixels of the shorter side of the network's input; None keeps the video's size.
        size_multiple: what sides of the input are made multiples of, pixels; None takes the
            backbone's stride. Frames are resized, never cropped.
        rounding: which sides, and in which direction. What is still no multiple of the backbone's
            stride is rounded down to one.
        fixed_sizes: (video's size, input's size) pairs that take precedence where `short_side` is
            None.
        topk: context positions that label a query, over all context frames together.
        num_context: frames before the query that serve as context beside the reference frame.
        recent: which of them.
        window: shape of the neighbourhood that context positions come from.
        radius: of the window, feature positions; None: no window.
        reference_windowed: whether the window holds for the reference frame too.
        temperature: T in the weights exp(cosine similarity / T).
        feedback: what later frames take as a frame's labels; `soft`: its probabilities.
        entry: how the labels of new objects enter.
        mask_down: how a given mask becomes labels of feature positions.
        mask_up: how probabilities become labels of pixels.
        normalize_output: shift and scale each enlarged channel to 0..1 before the argmax where its
            maximum is positive.
        keep_given: return the first mask as it was given, not as the feature grid shows it.
    """

    name: str
    layer: int | None
    short_side: int | None
    size_multiple: int | None
    rounding: Rounding
    fixed_sizes: tuple[tuple[Size, Size], ...]
    topk: int
    num_context: int
    recent: Recent
    window: WindowShape
    radius: int | None
    reference_windowed: bool
    temperature: float
    feedback: Feedback
    entry: Entry
    mask_down: MaskDown
    mask_up: MaskUp
    normalize_output: bool
    keep_given: bool

    def __post_init__(self) -> None:
        _check_values(self.name, vars(self))
        if self.window == "circle" and self.radius == 0:
            raise ConfigError(
                f"protocol {self.name}: radius must be 1 or more in a circle, but is 0"
            )


_LEAST = {"layer": 1, "topk": 1, "num_context": 0, "short_side": 1, "size_multiple": 1, "radius": 0}
_OPTIONAL = ("layer", "short_side", "size_multiple", "radius")
_SWITCHES = ("reference_windowed", "normalize_output", "keep_given")
_CHOICES = {
    "rounding": Rounding,
    "recent": Recent,
    "window": WindowShape,
    "feedback": Feedback,
    "entry": Entry,
    "mask_down": MaskDown,
    "mask_up": MaskUp,
}


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
        elif field in _SWITCHES and not isinstance(value, bool):
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
    rounding="down",
    fixed_sizes=(),
    topk=5,
    num_context=10,
    recent="after-reference",
    window="square",
    radius=40,
    reference_windowed=True,
    temperature=0.1,
    feedback="soft",
    entry="plain",
    mask_down="bilinear-align-corners",
    mask_up="bilinear-stride",
    normalize_output=True,
    keep_given=True,
)

_DINO = replace(
    _INO_DAVIS,
    name="dino",
    layer=None,
    size_multiple=64,
    rounding="long-side-down",
    num_context=7,
    radius=12,
    mask_down="nearest",
)

_CRW = replace(
    _INO_DAVIS,
    name="crw",
    layer=None,
    short_side=None,
    rounding="none",
    topk=10,
    num_context=20,
    recent="padded",
    window="circle",
    radius=12,
    reference_windowed=False,
    temperature=0.05,
    mask_down="linear",
    mask_up="bilinear",
    normalize_output=False,
    keep_given=False,
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
    "dino": _DINO,  # iBOT's too
    "dinov3": replace(
        _DINO,
        name="dinov3",
        short_side=960,
        size_multiple=16,
        rounding="long-side-up",
        window="closed-circle",
        temperature=0.2,
        mask_up="nearest",
    ),
    "crw": _CRW,
    # The radius is that of its ResNet-18; its ResNet-50 takes 18.
    "vfs": replace(
        _CRW,
        name="vfs",
        short_side=480,
        recent="reference-again",
        reference_windowed=True,
        temperature=0.07,
        mask_down="nearest",
        normalize_output=True,
        keep_given=True,
    ),
    "dul": replace(
        _CRW,
        name="dul",
        entry="weighted",
        mask_down="bilinear-align-corners",
        mask_up="bilinear-align-corners",
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
