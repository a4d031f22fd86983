"""What a protocol of mask propagation decides: its fields.

The choices of each are in `choices`, the values that are refused in `protocol_checks`, and named
protocols in `protocols`.
"""

from dataclasses import dataclass

from ino.propagate.choices import (
    Border,
    Entry,
    Feedback,
    GridNormalization,
    MaskDown,
    MasksAt,
    MaskUp,
    Matching,
    Recent,
    Rounding,
    Size,
    WindowShape,
)
from ino.propagate.protocol_checks import check_combination, check_values


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
