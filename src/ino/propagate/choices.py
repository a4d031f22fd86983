"""The choices that a protocol of mask propagation has for its fields."""

from typing import Literal

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

WindowShape = Literal["square", "circle", "closed-circle"]
"""Offsets (dy, dx) in a window of radius r: max(|dy|, |dx|) <= r; the distance < r; it <= r."""

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
