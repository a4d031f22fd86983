"""Values that a field of a protocol cannot have, and fields that do not go together."""

import math
from collections.abc import Mapping
from typing import Any, get_args

from ino.errors import ConfigError
from ino.propagate import choices

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
    "rounding": choices.Rounding,
    "matching": choices.Matching,
    "recent": choices.Recent,
    "window": choices.WindowShape,
    "border": choices.Border,
    "grid_normalization": choices.GridNormalization,
    "feedback": choices.Feedback,
    "entry": choices.Entry,
    "masks_at": choices.MasksAt,
    "mask_down": choices.MaskDown,
    "mask_up": choices.MaskUp,
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
