"""Named protocols of mask propagation: every choice that decides a published number.

`Protocol` has the fields that methods share; those that only single methods set come from
`ino.propagate.peers.PeerSettings`, and those that only the ones of our qualities
set from `OwnSettings`. A protocol says what is computed, not how fast.
Mean, deviation and color space of the network's input belong to the backbone.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from ino.errors import ConfigError
from ino.kernels.topk import WindowShape
from ino.propagate.peers import Count, PeerSettings, Positive, Size
from ino.schema import Model, checked

Quality = Literal["fast", "default", "best"]
"""What a user chooses in place of a protocol."""

MaskDown = Literal[
    "bilinear-align-corners",
    "linear",
    "nearest",
    "nearest-or-most",
    "strided",
    "averaged-ids",
    "area",
]
"""One-hot maps to the feature grid: bilinearly with corners aligned; bilinearly as OpenCV does,
corners not aligned; the label map by nearest neighbor; the same, where an object that would be lost
gets the feature that holds most of it; the pixel at the top left of each feature; bilinearly
averaged numbers of the objects, fractions cut off; or the share of each feature's area."""

MaskUp = Literal["bilinear-stride", "bilinear", "bilinear-align-corners", "nearest"]
"""Channels to pixels: bilinearly to stride times the grid and, after the argmax, by nearest
neighbor to the size of masks; or straight to that size in one of three ways."""


Rounding = Literal[
    "down",
    "long-side-down",
    "long-side-up",
    "short-side-down",
    "width-down",
    "none",
    "crop",
    "square",
]


class OwnSettings(Model):
    """Protocol fields that only `ino-fast`, `ino-default` and `ino-best` set; others keep the
    defaults."""

    attention_side: Annotated[int, Field(ge=2, le=100_000)] | None = None
    """Side, in patches, of the square around it that a patch attends to in the network; None: the
    whole frame. Only for ino's own ViTs and color."""
    color_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of raw color in the similarity of two features."""
    zoom_margin: Count | None = None
    """Features between the box of the objects in the frame before and the edge of what is computed
    of a frame; all else is background. None: everything is computed. Only with `attention_side`."""
    learned_metric: bool = False
    """Transform features by what the first mask tells of the objects, as several annotated frames
    do in `ino.propagate.references`."""
    flow_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share in a pixel's label of the label map of the frame before, moved along the optical flow,
    where the flow is trusted."""


class Protocol(PeerSettings, OwnSettings):
    """The choices of one protocol; `get_protocol` gives a named one with single fields replaced."""

    name: str
    """The protocol's name."""
    layer: Positive | None
    """Block whose features are read, counted from 1, final norm applied; None: the last one."""
    short_side: Positive | None
    """Pixels of the shorter side of the network's input; None keeps the video's size."""
    size_multiple: Positive | None
    """Sides of the input become multiples of this many pixels; None: the backbone's stride."""
    rounding: Rounding
    """How sides become multiples of `size_multiple`: `down` rounds both down, `long-side-down` and
    `long-side-up` round the longer one, `short-side-down` rounds the other one, `none` rounds
    neither, `crop` crops both at the right and the bottom, and `square` makes both sides
    `short_side`. With `width-down` the height is `short_side`, and the width is rounded up to a
    whole number, then down. Afterwards sides are rounded down to multiples of the backbone's
    stride."""
    fixed_sizes: tuple[tuple[Size, Size], ...]
    """(video's size, input's size) pairs that take precedence where `short_side` is None, except
    over `input_size` and `long_side`."""
    topk: Count
    """Context positions that label a query position: over all context frames together (in each
    frame with matching per-frame or mutual); 0 with matching window, where all count."""
    num_context: Count
    """Frames before the query that serve as context beside those in `kept`."""
    recent: Literal["after-reference", "reference-again", "padded"]
    """Which frames these are. `after-reference`: the last ones that are not in `kept`.
    `reference-again`: the last ones; those that are in `kept` too count twice. `padded`: the last
    ones, with copies of the reference frame in place of missing ones, so that there are always
    `num_context`."""
    window: WindowShape
    """Shape of the neighborhood that context positions come from."""
    radius: Count | None
    """Radius of the window, feature positions; None: no window."""
    reference_windowed: bool
    """Whether the window holds for the reference frame too."""
    temperature: float
    """T in the weights exp(similarity / T)."""
    entry: Literal["plain", "weighted"]
    """How the labels `new` of entering objects are written at a position where they sum to s: the
    prediction p becomes (1 - s) p, and the new channels become `new` (`plain`) or s times `new`
    (`weighted`)."""
    mask_down: MaskDown
    """How a given mask becomes labels of feature positions."""
    mask_up: MaskUp
    """How probabilities become labels of pixels."""
    normalize_output: bool
    """Shift and scale each enlarged channel to 0..1 before the argmax where its maximum is
    positive."""
    keep_given: bool
    """Return the first mask as it was given, not as the feature grid shows it."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Protocol":
        here = f"where matching is {self.matching}"
        if self.matching == "window":
            rules = [
                (self.topk == 0, f"topk must be 0 {here}"),
                (self.radius is not None, f"radius must be a whole number {here}"),
                (self.window == "square", f"window must be square {here}"),
                (self.reference_windowed, f"reference_windowed must be true {here}"),
            ]
        else:
            rules = [
                (self.topk > 0, f"topk must be 1 or more {here}"),
                (self.border == "left-out", f"border must be left-out {here}"),
                (self.realign_after is None, f"realign_after must be none {here}"),
            ]
        if self.matching in ("per-frame", "mutual"):
            rules.append((self.radius is None, f"radius must be none {here}"))
        rules += [
            (1e-30 <= self.temperature <= 1e30, "temperature must be a number from 1e-30 to 1e30"),
            (self.window != "circle" or self.radius != 0, "radius must be 1 or more in a circle"),
            (
                0 in self.kept or self.num_context > 0,
                "num_context must be 1 or more where kept has no 0",
            ),
            (
                self.rounding not in ("square", "width-down") or self.short_side is not None,
                f"short_side must be set where rounding is {self.rounding}",
            ),
            (
                self.similarity == "cosine" or self.matching == "topk",
                f"similarity must be cosine {here}",
            ),
            (
                self.data_size is None or not self.flow_share,
                "data_size must be none where flow_share is above 0",
            ),
            (
                self.rounding != "crop" or self.masks_at == "input",
                "masks_at must be input where rounding is crop",
            ),
            (
                self.feedback == "soft" or not self.reference_passed_on,
                f"reference_passed_on must be false where feedback is {self.feedback}",
            ),
            (
                self.masks_at == "video" or not self.flow_share,
                "masks_at must be video where flow_share is above 0",
            ),
            (
                self.normalize_features or not self.learned_metric,
                "normalize_features must be true where learned_metric is",
            ),
            (
                self.zoom_margin is None or self.attention_side is not None,
                "attention_side must be set where zoom_margin is",
            ),
            (
                self.zoom_margin is None or self.matching == "topk",
                "matching must be topk where zoom_margin is set",
            ),
            (
                self.realign_after is None or self.border == "empty",
                "border must be empty where realign_after is set",
            ),
        ]
        for holds, rule in rules:
            if not holds:
                raise ValueError(f"{rule}, but is {getattr(self, rule.split()[0])!r}")
        return self

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, for settings.json; the fields of `PeerSettings` and
        `OwnSettings` come last."""
        values = self.model_dump()
        last = PeerSettings.model_fields | OwnSettings.model_fields
        return {one: values[one] for one in values if one not in last} | values


def _like(protocol: Protocol, **changes: Any) -> Protocol:
    return Protocol.model_validate(dict(protocol) | changes)


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
    entry="plain",
    mask_down="bilinear-align-corners",
    mask_up="bilinear-stride",
    normalize_output=True,
    keep_given=True,
)

# The authors' comment means the 0..1 step for DAVIS only, but their code, and so their YouTube-VOS
# score, always applies it; the paper is silent.
_INO_YTVOS = _like(
    _INO_DAVIS,
    name="ino-ytvos",
    short_side=None,
    fixed_sizes=(((1080, 1920), (720, 1280)), ((816, 1920), (720, 1280))),
    num_context=20,
    radius=50,
)

_DINO = _like(  # iBOT's too
    _INO_DAVIS,
    name="dino",
    layer=None,
    size_multiple=64,
    rounding="long-side-down",
    num_context=7,
    radius=12,
    mask_down="nearest",
)

_DINOV3 = _like(
    _DINO,
    name="dinov3",
    short_side=960,
    size_multiple=16,
    rounding="long-side-up",
    window="closed-circle",
    temperature=0.2,
    mask_up="nearest",
)

_CRW = _like(
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

_VFS = _like(  # the radius is that of its ResNet-18; its ResNet-50 takes 18
    _CRW,
    name="vfs",
    short_side=480,
    recent="reference-again",
    reference_windowed=True,
    temperature=0.07,
    mask_down="nearest",
    normalize_output=True,
    keep_given=True,
)

_DUL = _like(
    _CRW,
    name="dul",
    entry="weighted",
    mask_down="bilinear-align-corners",
    mask_up="bilinear-align-corners",
)

_MAST = _like(
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

_CORRFLOW = _like(
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
)

_CONTCORR = _like(
    _DINO,
    name="contcorr",
    short_side=560,
    normalize_features=False,
    matching="mutual",
    radius=None,
    temperature=1.0,
)

_TIMECYCLE = _like(
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
)

_RSP = _like(_DINO, name="rsp", data_size=(480, 880), topk=7, num_context=30, radius=30)

_CROPMAE = _like(  # SiamMAE's and ToBo's too
    _CRW,
    name="cropmae",
    input_size=(480, 880),
    input_resize="linear-float",
    topk=7,
    radius=20,
    temperature=0.7,
    masks_at="input",
    mask_to_input="nearest",
)

_CROPMAE_VIP = _like(
    _CROPMAE,
    name="cropmae-vip",
    input_size=None,
    long_side=880,
    size_multiple=64,
    rounding="short-side-down",
    topk=10,
    mask_from_input="nearest-exact",
)

_RVM = _like(
    _CROPMAE,
    name="rvm",
    input_resize="lanczos",
    reference_passed_on=True,
    mask_from_input="nearest-exact",
)

_RVM_VIP = _like(_RVM, name="rvm-vip", input_size=(448, 880), topk=10)

_DIFF_ZVOS = _like(
    _DINO,
    name="diff-zvos",
    size_multiple=32,
    topk=15,
    num_context=28,
    radius=15,
    temperature=0.2,
)

_DIFF_ZVOS_MOSE = _like(
    _DIFF_ZVOS,
    name="diff-zvos-mose",
    size_multiple=64,
    rounding="width-down",
    input_resize="area",
    mask_up="bilinear",
)

# Ours, not a published one: for features of little training, which go wrong where they look far.
_INO_NEAR = _like(
    _DINOV3,
    name="ino-near",
    short_side=480,
    radius=6,
    mask_down="nearest-or-most",
    mask_up="bilinear",
)

# Ours, by which `--quality` chooses; docs/benchmarks.md has what each field is worth.
_INO_FAST = _like(
    _INO_NEAR,
    name="ino-fast",
    layer=3,
    mask_down="area",
    feedback="refined",
    attention_side=16,
    zoom_margin=8,
    temperature=0.02,
    color_share=0.6,
    learned_metric=True,
    flow_share=0.8,
)

_INO_DEFAULT = _like(_INO_FAST, name="ino-default", short_side=640, radius=8, zoom_margin=10)

_INO_BEST = _like(_INO_FAST, name="ino-best", short_side=960, radius=12, zoom_margin=14)

_OF_FLOW = ("flow_share", "feedback", "mask_down")
"""How labels follow the optical flow."""

_SMALL_SIDE = 320

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        *(_INO_DAVIS, _INO_YTVOS, _DINO, _DINOV3, _CRW, _VFS, _DUL),
        *(_MAST, _CORRFLOW, _CONTCORR, _TIMECYCLE, _INO_NEAR),
        *(_INO_FAST, _INO_DEFAULT, _INO_BEST),
        *(_RSP, _CROPMAE, _CROPMAE_VIP, _RVM, _RVM_VIP, _DIFF_ZVOS, _DIFF_ZVOS_MOSE),
    )
}
"""The protocols by name."""


def list_protocols() -> list[str]:
    """The names that `get_protocol` and `Tracker` take."""
    return list(PROTOCOLS)


def protocol_on(name: str, data: str) -> str:
    """The protocol by which the authors of a named one evaluate on another data set, such as
    cropmae-vip; the name itself where they do not change anything."""
    there = f"{name}-{data}"
    return there if there in PROTOCOLS else name


def get_protocol(name: str, /, **overrides: Any) -> Protocol:
    """The protocol of that name, with single fields replaced.

    The radius is scaled with `short_side`, so that the window covers the same part of the frame.

    Args:
        name: one of `PROTOCOLS`.
        overrides: values by field of `Protocol`; None is a value, not "as it was". A `radius` given
            here is taken as it is.

    Raises:
        ConfigError: the name or a field is unknown, a value is out of range, or values do not go
            together.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"unknown protocol {name!r}; choose one of {', '.join(PROTOCOLS)}")
    if "name" in overrides:
        raise ConfigError("name is no field that can be replaced: choose a protocol by its name")
    where, usual = f"protocol {name}", PROTOCOLS[name]
    protocol = checked(Protocol, dict(usual) | overrides, where=where)
    if "radius" in overrides or not (usual.radius and usual.short_side and protocol.short_side):
        return protocol
    radius = max(1, round(usual.radius * protocol.short_side / usual.short_side))
    return checked(Protocol, dict(protocol) | {"radius": radius}, where=where)


def protocol_for(name: str, quality: Quality, **overrides: Any) -> Protocol:
    """The protocol of a quality for weights that a named protocol suits.

    For `ino-near` these are `ino-fast`, `ino-default` and `ino-best`, which were chosen for the
    weights that come with ino. For another one, `default` is that protocol itself, `best` takes
    over from `ino-best` how labels follow the optical flow, and `fast` also scales the input to a
    short side of 320 pixels; their scores were not measured.

    Args:
        name: of the protocol that suits the weights.
        quality: fast, default or best.
        overrides: see `get_protocol`.

    Raises:
        ConfigError: the quality is unknown, the protocol cannot follow the flow, or see
            `get_protocol`.
    """
    if quality not in get_args(Quality):
        raise ConfigError(
            f"the quality is {quality!r}; choose one of {', '.join(get_args(Quality))}"
        )
    chosen = PROTOCOLS[f"ino-{quality}"]
    if name == _INO_NEAR.name:
        return get_protocol(chosen.name, **overrides)
    if quality == "default":
        return get_protocol(name, **overrides)
    usual = get_protocol(name)
    if usual.matching != "topk" or usual.masks_at != "video":
        raise ConfigError(
            f"quality {quality} does not go with protocol {name}, which suits these weights; use "
            "quality default or other weights"
        )
    fields: dict[str, Any] = {one: getattr(chosen, one) for one in _OF_FLOW}
    if quality == "fast":
        fields["short_side"] = _SMALL_SIDE
    return get_protocol(name, **fields | overrides)


def fit_layer(protocol: Protocol, strides: Sequence[int]) -> Protocol:
    """The protocol with the last block in place of the one that it names where a ViT has fewer.

    `ino-davis` and `ino-ytvos` read block 7 of 12. A layer that was chosen in place of that of a
    named protocol is left alone, and so are networks whose layers differ in stride.

    Args:
        protocol: any.
        strides: of the layers of the network, in pixels.
    """
    named = PROTOCOLS.get(protocol.name)
    is_named = named is not None and protocol.layer == named.layer
    is_vit = len(strides) > 1 and len(set(strides)) == 1
    if is_named and is_vit and protocol.layer is not None and protocol.layer > len(strides):
        return protocol.model_copy(update={"layer": len(strides)})
    return protocol


def describe_protocol(protocol: Protocol) -> str:
    """One line for the screen: the main fields, then those that differ from the named protocol."""
    shown = ("layer", "short_side", "topk", "num_context", "window", "radius", "temperature")
    fields = ", ".join(f"{name} {_as_given(getattr(protocol, name))}" for name in shown)
    replaced = replaced_fields(protocol)
    how = f"with {', '.join(replaced)}" if replaced else "as named"
    return f"{protocol.name} ({fields}), {how}"


def replaced_fields(protocol: Protocol) -> list[str]:
    """The fields that differ from the named protocol, in words, as in "topk 3 in place of 5"."""
    named = PROTOCOLS.get(protocol.name, protocol).as_dict()
    return [
        f"{field} {_as_given(value)} in place of {_as_given(named[field])}"
        for field, value in protocol.as_dict().items()
        if value != named[field]
    ]


def _as_given(value: Any) -> str:
    """A value as `--set` takes it."""
    return "none" if value is None else str(value)
