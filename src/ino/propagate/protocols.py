"""The choices that a protocol of mask propagation has for its fields."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from ino.errors import ConfigError
from ino.kernels.topk import WindowShape

Size = tuple[int, int]
"""Height and width, pixels."""

Rounding = Literal["down", "long-side-down", "long-side-up", "none", "crop", "square"]
"""Which sides of the input become multiples of a number, and in which direction; or both become
multiples by cutting off what is over at the right and the bottom; or both become `short_side`."""

Matching = Literal["topk", "window", "per-frame", "mutual"]
"""How similarities become weights: a softmax over the best k positions of all context frames; one
over all positions of all windows; one over all positions of each frame alone, whose largest k
weights count as they are, averaged over the frames; or the last after each similarity s was
multiplied by s / (its query's largest) and s / (its key's largest)."""

Border = Literal["left-out", "empty", "repeated"]
"""What positions of a window do that lie outside the frame: they do not count; they count with
similarity 0 and without labels; or they have the labels of the frame's edge, but whatever has
similarity exactly 0, so all of them, counts only where nothing else does."""

Recent = Literal["after-reference", "reference-again", "padded"]
"""Which of the last frames serve beside those kept: those that are not kept; all, so that kept ones
among them count a second time; or always equally many, missing ones copies of the reference."""

Entry = Literal["plain", "weighted"]
"""Labels `new` of sum s that enter replace p by (1 - s) p, beside them `new` or s times `new`."""

GridNormalization = Literal["none", "channels", "positions"]
"""Labels on the feature grid are not scaled; each channel is scaled to 0..1, which later frames
take over; or at each position its channels are, in the result and in the labels of a reference, but
not in what other frames pass on."""

Feedback = Literal["soft", "hard"]
"""Later frames take a frame's labels on the feature grid, or its mask reduced like a given one."""

MasksAt = Literal["video", "input"]
"""The size at which masks are reduced to the feature grid and results compared."""

MaskDown = Literal["bilinear-align-corners", "linear", "nearest", "strided", "averaged-ids"]
"""One-hot maps to the feature grid: bilinearly with corners aligned; bilinearly as OpenCV does,
corners not aligned; the label map by nearest neighbour; its pixel at the top left of each feature;
or bilinearly averaged numbers of the objects, fractions cut off."""

MaskUp = Literal["bilinear-stride", "bilinear", "bilinear-align-corners", "nearest"]
"""Channels to pixels: bilinearly to stride times the grid and, after the argmax, by nearest
neighbour to the size of masks; or straight to that size in one of three ways."""


# Values that a field of a protocol cannot have, and fields that do not go together.


_LEAST = {
    "layer": 1,
    "topk": 0,
    "num_context": 0,
    "context_step": 1,
    "short_side": 1,
    "size_multiple": 1,
    "radius": 0,
    "realign_after": 1,
    "realign_radius": 0,
    "realign_dilation": 1,
}
_MOST = 100_000
"""Counts beyond it are slips of the hand, and memory would not hold them."""
_OPTIONAL = ("layer", "short_side", "size_multiple", "radius", "realign_after")
_SWITCHES = (
    "normalize_features",
    "reference_passed_on",
    "reference_windowed",
    "realign_corners",
    "normalize_output",
    "keep_given",
)
_CHOICES = {
    "rounding": Rounding,
    "matching": Matching,
    "recent": Recent,
    "window": WindowShape,
    "border": Border,
    "grid_normalization": GridNormalization,
    "feedback": Feedback,
    "entry": Entry,
    "masks_at": MasksAt,
    "mask_down": MaskDown,
    "mask_up": MaskUp,
}


def check_values(name: str, values: Mapping[str, Any]) -> None:
    """Raises ConfigError for the first value that its field cannot have.

    Args:
        name: the protocol's.
        values: by field; not all fields need be there.
    """
    for field, value in values.items():
        expected = None
        if field in _LEAST:
            expected = _expect_count(value, least=_LEAST[field], optional=field in _OPTIONAL)
        elif field in _CHOICES and value not in get_args(_CHOICES[field]):
            expected = f"one of {', '.join(get_args(_CHOICES[field]))}"
        elif field == "temperature" and not (_is_number(value) and 0 < value < math.inf):
            expected = "a number above 0"
        elif field == "temperature" and not 1e-30 <= value <= 1e30:
            expected = "a number from 1e-30 to 1e30"  # float32 holds no more
        elif field in _SWITCHES and not isinstance(value, bool):
            expected = "true or false"
        elif field == "fixed_sizes" and not isinstance(value, tuple):
            expected = "a tuple of pairs of sizes, which can only be set from Python"
        elif field == "kept" and not _is_ascending(value):
            expected = "ascending whole numbers, 0 or more, as in [0, 5], or []"
        if expected is not None:
            raise ConfigError(f"protocol {name}: {field} must be {expected}, but is {value!r}")


def check_combination(name: str, values: Mapping[str, Any]) -> None:
    """Raises ConfigError where single values are possible but not together.

    Args:
        name: the protocol's.
        values: of all fields.
    """
    for field, expected, where, wrong in _combinations(values):
        if wrong:
            raise ConfigError(
                f"protocol {name}: {field} must be {expected} {where}, but is {values[field]!r}"
            )


def _combinations(values: Mapping[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Field, what it must be, where that holds, and whether it is not so."""
    matching, topk, radius = (values[field] for field in ("matching", "topk", "radius"))
    here = f"where matching is {matching}"
    rules = [("radius", "1 or more", "in a circle", values["window"] == "circle" and radius == 0)]
    if matching == "window":
        rules += [
            ("topk", "0", here, topk != 0),
            ("radius", "a whole number", here, radius is None),
            ("window", "square", here, values["window"] != "square"),
            ("reference_windowed", "true", here, not values["reference_windowed"]),
        ]
    else:
        rules += [
            ("topk", "1 or more", here, topk == 0),
            ("border", "left-out", here, values["border"] != "left-out"),
            ("realign_after", "none", here, values["realign_after"] is not None),
        ]
    if matching in ("per-frame", "mutual"):
        rules.append(("radius", "none", here, radius is not None))
    realigned, alone = values["realign_after"] is not None, 0 not in values["kept"]
    square, crop = (values["rounding"] == kind for kind in ("square", "crop"))
    hard = values["feedback"] == "hard"
    return [
        *rules,
        (
            "reference_passed_on",
            "false",
            "where feedback is hard",
            hard and values["reference_passed_on"],
        ),
        (
            "border",
            "empty",
            "where realign_after is set",
            realigned and values["border"] != "empty",
        ),
        ("num_context", "1 or more", "where kept has no 0", alone and not values["num_context"]),
        ("short_side", "set", "where rounding is square", square and values["short_side"] is None),
        ("masks_at", "input", "where rounding is crop", crop and values["masks_at"] != "input"),
    ]


def _expect_count(value: Any, *, least: int, optional: bool) -> str | None:
    """What a count must be, where this value is not it."""
    if (value is None and optional) or _is_count(value, least=least):
        return None
    is_larger = _is_count(value, least=least, most=None)
    numbers = f"from {least} to {_MOST}" if is_larger else f"{least} or more"
    return f"a whole number, {numbers}" + (", or none" if optional else "")


def _is_count(value: Any, *, least: int, most: int | None = _MOST) -> bool:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return is_whole and value >= least and (most is None or value <= most)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_ascending(value: Any) -> bool:
    """Whether it is a tuple of different counts in order."""
    if not (isinstance(value, tuple) and all(_is_count(one, least=0) for one in value)):
        return False
    return sorted(set(value)) == list(value)


# What a protocol of mask propagation decides: its fields.
#
# The choices of each are in `choices`, the values that are refused in `protocol_checks`, and named
# protocols in `protocols`.


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The choices of one protocol.

    Attributes:
        name: the protocol's name.
        layer: block whose features are read, counted from 1; the final norm is applied. None: the
            last one.
        short_side: pixels of the shorter side of the network's input; None keeps the video's size.
        size_multiple: what sides of the input are made multiples of, pixels; None takes the
            backbone's stride. Frames are resized, and cropped only by the rounding `crop`.
        rounding: which sides, and in which direction. What is still no multiple of the backbone's
            stride is rounded down to one.
        fixed_sizes: (video's size, input's size) pairs that take precedence where `short_side` is
            None.
        normalize_features: divide features by their length, so that similarities are cosines; if
            not, they are dot products.
        matching: how similarities become weights.
        topk: context positions that label a query: over all context frames together, or in each
            frame; 0 where `matching` is `window`, since all positions count there.
        kept: the frames that stay in the context for good, by their distance from the reference
            frame; 0 is the reference frame itself.
        num_context: frames before the query that serve as context beside those.
        context_step: frames from one of them to the one before it; the last is the frame just
            before the query.
        recent: which of them.
        reference_passed_on: whether a reference frame is predicted, too, from itself: then the
            result and what the last frames pass on is that prediction, not the given labels.
        window: shape of the neighbourhood that context positions come from.
        radius: of the window, feature positions; None: no window.
        reference_windowed: whether the window holds for the reference frame too.
        border: what positions of a window do that lie outside the frame.
        realign_after: age in frames beyond which the window in a context frame is moved to where a
            coarse search expects the query; None: never.
        realign_radius: of the coarse search's window, in steps.
        realign_dilation: the longest step of it, feature positions; a frame of age a takes
            a // `realign_after` + 1.
        realign_corners: whether a moved window is read with corners aligned, as torch did before
            version 1.3.
        temperature: T in the weights exp(similarity / T).
        grid_normalization: whether labels on the feature grid are scaled to 0..1, and how.
        feedback: what later frames take as a frame's labels.
        entry: how the labels of new objects enter.
        masks_at: the size at which masks are reduced and results compared.
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
    normalize_features: bool
    matching: Matching
    topk: int
    kept: tuple[int, ...]
    num_context: int
    context_step: int
    recent: Recent
    reference_passed_on: bool
    window: WindowShape
    radius: int | None
    reference_windowed: bool
    border: Border
    realign_after: int | None
    realign_radius: int
    realign_dilation: int
    realign_corners: bool
    temperature: float
    grid_normalization: GridNormalization
    feedback: Feedback
    entry: Entry
    masks_at: MasksAt
    mask_down: MaskDown
    mask_up: MaskUp
    normalize_output: bool
    keep_given: bool

    def __post_init__(self) -> None:
        check_values(self.name, vars(self))
        check_combination(self.name, vars(self))


# Named protocols of mask propagation: every choice that decides a published number.
#
# A protocol says what is computed; how fast that happens is the business of `affinity` and its
# neighbours. The colours that a network sees, their mean and deviation, belong to the backbone.


__all__ = [
    "PROTOCOLS",
    "Border",
    "MaskDown",
    "MaskUp",
    "MasksAt",
    "Protocol",
    "Recent",
    "Size",
    "WindowShape",
    "get_protocol",
    "replaced_fields",
]

_INO_DAVIS = Protocol(
    name="ino-davis",
    layer=7,
    short_side=480,
    size_multiple=None,
    rounding="down",
    fixed_sizes=(),
    normalize_features=True,
    matching="topk",
    topk=5,
    kept=(0,),
    num_context=10,
    context_step=1,
    recent="after-reference",
    reference_passed_on=False,
    window="square",
    radius=40,
    reference_windowed=True,
    border="left-out",
    realign_after=None,
    realign_radius=12,
    realign_dilation=4,
    realign_corners=True,
    temperature=0.1,
    grid_normalization="none",
    feedback="soft",
    entry="plain",
    masks_at="video",
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

_MAST = replace(
    _INO_DAVIS,
    name="mast",
    layer=None,
    short_side=None,
    rounding="none",
    normalize_features=False,
    matching="window",
    topk=0,
    kept=(0, 5),
    num_context=3,
    context_step=2,
    radius=12,
    border="empty",
    realign_after=15,
    temperature=1.0,
    feedback="hard",
    masks_at="input",
    mask_down="strided",
    mask_up="bilinear",
    normalize_output=False,
)

_DINOV3 = replace(
    _DINO,
    name="dinov3",
    short_side=960,
    size_multiple=16,
    rounding="long-side-up",
    window="closed-circle",
    temperature=0.2,
    mask_up="nearest",
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
    "dinov3": _DINOV3,
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
    "mast": _MAST,
    "corrflow": replace(
        _MAST,
        name="corrflow",
        size_multiple=8,
        rounding="crop",
        kept=(),
        num_context=1,
        context_step=1,
        radius=6,
        border="repeated",
        realign_after=None,
        mask_down="averaged-ids",
    ),
    "contcorr": replace(
        _DINO,
        name="contcorr",
        short_side=560,
        normalize_features=False,
        matching="mutual",
        radius=None,
        temperature=1.0,
    ),
    "timecycle": replace(
        _INO_DAVIS,
        name="timecycle",
        layer=None,
        short_side=320,
        rounding="square",
        matching="per-frame",
        num_context=7,
        recent="padded",
        reference_passed_on=True,
        radius=None,
        temperature=512**-0.5,  # of the 512 dimensions of its features
        grid_normalization="channels",
        masks_at="input",
        mask_down="linear",
        mask_up="bilinear",
        normalize_output=False,
    ),
    # Nobody's but ours: for features of little training, which go wrong where they look far.
    "ino-near": replace(_DINOV3, name="ino-near", short_side=480, radius=6, mask_up="bilinear"),
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
    if isinstance(overrides.get("kept"), list):  # of YAML
        overrides["kept"] = tuple(overrides["kept"])
    # Before a protocol is built, so that a value of a wrong type gets the same clear answer.
    check_values(name, overrides)
    return replace(PROTOCOLS[name], **overrides)


def describe_protocol(protocol: Protocol) -> str:
    """A line for people: the fields that are looked at first, then those that were replaced.

    All fields of a protocol belong into files, by `dataclasses.asdict`.
    """
    shown = ("layer", "short_side", "topk", "num_context", "window", "radius", "temperature")
    values = vars(protocol)
    fields_shown = ", ".join(f"{name} {_as_given(values[name])}" for name in shown)
    replaced = replaced_fields(protocol)
    how = f"with {', '.join(replaced)}" if replaced else "as named"
    return f"{protocol.name} ({fields_shown}), {how}"


def replaced_fields(protocol: Protocol) -> list[str]:
    """What a protocol has otherwise than the one of its name, for people: a field each."""
    named = vars(PROTOCOLS.get(protocol.name, protocol))
    return [
        f"{name} {_as_given(value)} in place of {_as_given(named[name])}"
        for name, value in vars(protocol).items()
        if value != named[name]
    ]


def _as_given(value: Any) -> str:
    """A value as `--set` takes it."""
    return "none" if value is None else str(value)
