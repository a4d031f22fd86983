"""Named protocols of mask propagation: every choice that decides a published number.

A protocol says what is computed; how fast that happens is the business of `affinity` and its
neighbours. The colours that a network sees, their mean and deviation, belong to the backbone.
"""

from dataclasses import fields, replace
from typing import Any

from ino.errors import ConfigError
from ino.propagate.choices import (
    Border,
    MaskDown,
    MasksAt,
    MaskUp,
    Recent,
    Size,
    WindowShape,
)
from ino.propagate.protocol import Protocol
from ino.propagate.protocol_checks import check_values

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
