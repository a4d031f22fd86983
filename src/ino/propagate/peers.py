"""Propagation in MAST, CorrFlow, TimeCycle, ContCorr and later methods, where it differs from
`affinity`.

Holds their settings, and two ways to weight labels other than by the top k of all context frames.
`window_labels` (MAST, CorrFlow): one softmax over all positions of the windows in all context
frames; in old frames MAST moves the windows to where a coarse search expects the query.
`averaged_labels` (TimeCycle, ContCorr): each context frame labels the query by itself, without a
window, and the results are averaged. Similarities are taken for some queries at a time, so those of
all pairs of positions are never stored. Feature maps are channels last.

`DistanceMatcher` (diff-zvos) finds the top k by other measures than dot products.

The settings of the context, of label feedback and of sizes are applied in `memory`, `propagator`,
`features` and `tracker`.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from pydantic import BeforeValidator, ConfigDict, Field
from torch import Tensor

from ino.kernels.topk import DEFAULT_MAX_BYTES, Candidates, FeatureMap, Window, WindowShape
from ino.schema import Model

MUTUAL_EPSILON = 1e-5
"""What ContCorr adds to the largest affinity of a row or column before it divides by it."""

_TILE = 16
"""Queries along a side of a tile, at most."""

_EXCLUDED = -1e10
"""CorrFlow's similarity of what is left out; where nothing else is there, all count alike."""

# Counts beyond the limit are slips of the hand, and memory would not hold them.
Count = Annotated[int, Field(ge=0, le=100_000)]
Positive = Annotated[int, Field(ge=1, le=100_000)]


def _as_ascending(value: Any) -> tuple[int, ...]:
    is_list = isinstance(value, (list, tuple)) and all(type(one) is int for one in value)
    if not is_list or sorted(set(value)) != list(value):
        raise ValueError(f"give ascending whole numbers, as in [0, 5], or [], not {value!r}")
    return tuple(value)


def _as_size(value: Any) -> tuple[Any, Any]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"give height and width in pixels, as in [480, 880], not {value!r}")
    return (value[0], value[1])


Size = tuple[int, int]
"""Height and width, pixels."""

SomeSize = Annotated[tuple[Positive, Positive], BeforeValidator(_as_size)]
"""Height and width, pixels; a list will do."""

Nearest = Literal["nearest", "nearest-exact"]
"""Nearest neighbor of pixel x of N among n: floor(x n / N), as OpenCV's INTER_NEAREST; or floor((x
+ 1/2) n / N), as Pillow and the INTER_NEAREST_EXACT of OpenCV 5, which round alike at ties."""


class PeerSettings(Model):
    """Protocol fields that only single methods set: MAST, CorrFlow, TimeCycle, ContCorr, RSP,
    CropMAE, RVM and diff-zvos (and CRW's --norm_mask).

    The defaults are those of all other protocols.
    """

    model_config = ConfigDict(strict=True)

    data_size: SomeSize | None = None
    """Height and width, pixels, to which frames and masks of any size are brought by nearest
    neighbor before all else, as where a data set was resized on disk; scores are taken at this
    size. None: the video's own."""
    input_size: SomeSize | None = None
    """Height and width of the network's input, pixels, for videos of any size, where `short_side`
    is None. None: other fields say."""
    long_side: Positive | None = None
    """Pixels of the longer side of the input, where `short_side` and `input_size` are None."""
    input_resize: Literal["linear", "linear-float", "lanczos", "area"] = "linear"
    """How frames become input of the network: bilinearly in whole numbers or, `linear-float`, in
    real ones (of RGB), by Pillow's Lanczos filter, or by OpenCV's averages of areas."""
    normalize_features: bool = True
    """Divide features by their length, so that similarities are cosines, else dot products."""
    similarity: Literal["cosine", "euclidean", "l1"] = "cosine"
    """Of two features, where matching is topk. `cosine`: their dot product, the cosine of the
    angle between normalized features. `euclidean`, `l1`: minus their distance in that norm."""
    matching: Literal["topk", "window", "per-frame", "mutual"] = "topk"
    """How similarities become weights. `topk`: a softmax over the best k positions of all context
    frames. `window`: a softmax over all positions of the windows in all context frames.
    `per-frame`: a softmax over all positions of each frame, of which the largest k weights are used
    without normalizing them again; the results are averaged over the frames. `mutual`: as
    `per-frame`, after multiplying each similarity s by s / (largest of its query) and by s /
    (largest of its key)."""
    kept: Annotated[tuple[Count, ...], BeforeValidator(_as_ascending)] = (0,)
    """Frames that stay in the context for good, by their distance from the reference frame; 0 is
    the reference frame itself."""
    context_step: Positive = 1
    """Distance in frames between two of the recent context frames; the latest one is t - 1."""
    reference_passed_on: bool = False
    """Predict a reference frame from itself, too: the result and what the last frames pass on is
    that prediction, not the given labels."""
    border: Literal["left-out", "empty", "repeated"] = "left-out"
    """Window positions outside the frame. `left-out`: they are ignored. `empty`: they have
    similarity 0 and no label. `repeated`: they have the labels of the frame's edge, but positions
    of similarity exactly 0, which all of them are, count only if there are no others."""
    realign_after: Positive | None = None
    """Age in frames beyond which the window in a context frame is moved to where a coarse search
    expects the query; None: never."""
    realign_radius: Count = 12
    """Radius of the coarse search, in steps."""
    realign_dilation: Positive = 4
    """Its longest step, feature positions; a frame of age a takes a // `realign_after` + 1."""
    realign_corners: bool = True
    """Read moved windows with corners aligned, as torch did before version 1.3. If not, position x
    of n is read at x n / (n - 1) - 1/2, which is what MAST's code gives in a later torch."""
    grid_normalization: Literal["none", "channels", "positions", "positions-fed-back"] = "none"
    """Min-max normalization of labels on the feature grid. `none`: none. `channels`: of each
    channel over all positions; later frames are given the normalized labels. `positions`: of each
    position over its channels, in the result and in the labels of a reference, but not in the
    labels that other frames contribute as context (CRW's option --norm_mask).
    `positions-fed-back`: in these, too (RVM's option)."""
    feedback: Literal["soft", "hard", "refined"] = "soft"
    """The labels that a frame contributes as context: its soft labels on the feature grid, its
    label map reduced to the grid as a given mask is (`hard`), or the values of pixels that follow
    the optical flow, averaged over each feature (`refined`; as `hard` where a mask is given)."""
    masks_at: Literal["video", "input"] = "video"
    """Whether masks are reduced to the feature grid, and channels compared, at the video's size or
    at the size of the network's input."""
    mask_to_input: Nearest = "nearest-exact"
    """How a given mask goes to the size of the input, where `masks_at` is input."""
    mask_from_input: Nearest = "nearest"
    """How the result comes back from it."""


class _Tile(NamedTuple):
    """Queries of a rectangle; their windows reach a rectangle of keys of a padded map."""

    rows: slice
    columns: slice
    radius: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    def keys(self, padded: Shaped[Tensor, "rows columns n"]) -> Shaped[Tensor, "keys n"]:
        rows, columns = (
            slice(span.start, span.stop + 2 * self.radius) for span in (self.rows, self.columns)
        )
        return padded[rows, columns].flatten(0, 1)

    def within(self, device: torch.device) -> Bool[Tensor, "keys queries"]:
        """Whether a key lies in the window of a query."""
        row, column = (
            (torch.arange(side + 2 * self.radius, device=device)[:, None] - self.radius)
            .sub(torch.arange(side, device=device))
            .abs()
            .le(self.radius)
            for side in self.shape
        )
        return (row[:, None, :, None] & column[None, :, None, :]).flatten(0, 1).flatten(1, 2)


def _tiles(height: int, width: int, *, radius: int, side: int) -> Iterator[_Tile]:
    rows, columns = (
        [slice(start, min(start + side, length)) for start in range(0, length, side)]
        for length in (height, width)
    )
    return (_Tile(*spans, radius) for spans in itertools.product(rows, columns))


def _around(radius: int) -> list[int]:
    """Padding of a map for `F.pad`."""
    return [0, 0, radius, radius, radius, radius]


@torch.no_grad()
def window_labels(
    query: Float[Tensor, "height width dim"],
    keys: Sequence[Float[Tensor, "height width dim"]],
    labels: Sequence[Float[Tensor, "height width channel"]],
    ages: Sequence[int],
    *,
    settings: PeerSettings,
    radius: int,
    temperature: float,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Float[Tensor, "height width channel"]:
    """Labels of the query: sum over j of softmax_j(f(i) . f(j) / T) p(j).

    j runs over a square window in every context frame.

    Args:
        query: features of the frame to label.
        keys: features of its context frames, at least one.
        labels: soft labels of the context frames.
        ages: distance of each context frame from the query, in frames.
        settings: `border` and the `realign_` fields are read.
        radius: of the window, in feature positions.
        temperature: T, above 0.
        max_bytes: limit on the memory of the similarities of one tile (at least one query); other
            values change the result by rounding only.
    """
    height, width, _ = query.shape
    frames = _windows(query, keys, labels, ages, settings=settings, radius=radius)
    exists = F.pad(torch.ones_like(query[..., :1], dtype=torch.bool), _around(radius))
    side, bytes_per_pair = _TILE, len(keys) * query.element_size()
    while side > 1 and bytes_per_pair * (side * (side + 2 * radius)) ** 2 > max_bytes:
        side //= 2
    result = query.new_empty(height, width, labels[0].shape[-1])
    for tile in _tiles(height, width, radius=radius, side=side):
        queries = query[tile.rows, tile.columns].flatten(0, 1)
        counts = tile.within(query.device)
        if settings.border == "left-out":
            counts &= tile.keys(exists)
        logits = [frame.similarities(queries, tile, counts) / temperature for frame in frames]
        # Places come first, which decides the order of the sum: the released codes' in float32.
        weights = torch.cat(logits).softmax(dim=0).split([len(one) for one in logits])
        summed = [frame.sum_labels(one, tile) for frame, one in zip(frames, weights, strict=True)]
        result[tile.rows, tile.columns] = torch.stack(summed).sum(dim=0).view(*tile.shape, -1)
    return result


class _FixedWindows:
    """A context frame whose windows lie around the queries."""

    def __init__(self, features: Tensor, labels: Tensor, *, radius: int, border: str) -> None:
        self._excludes_zero = border == "repeated"
        self._features = F.pad(features, _around(radius))
        if self._excludes_zero:
            repeated = F.pad(labels.permute(2, 0, 1)[None], [radius] * 4, mode="replicate")
            self._labels = repeated[0].permute(1, 2, 0)
        else:
            self._labels = F.pad(labels, _around(radius))

    def similarities(
        self,
        queries: Float[Tensor, "queries dim"],
        tile: _Tile,
        counts: Bool[Tensor, "places queries"],
    ) -> Float[Tensor, "places queries"]:
        """Dot products; -inf where a key does not count for a query."""
        similarity = tile.keys(self._features) @ queries.T
        if self._excludes_zero:
            similarity.masked_fill_(similarity == 0, _EXCLUDED)
        return similarity.masked_fill_(~counts, -math.inf)

    def sum_labels(
        self, weights: Float[Tensor, "places queries"], tile: _Tile
    ) -> Float[Tensor, "queries channel"]:
        """The labels of the windows' places, weighted and summed."""
        return weights.T @ tile.keys(self._labels)


class _MovedWindows:
    """A context frame whose windows were moved; beyond the frame all is 0.

    Places lie between features, so similarities and labels are interpolated bilinearly there.
    Similarities are linear in the key: dot products are interpolated in place of features.
    """

    def __init__(
        self,
        features: Float[Tensor, "height width dim"],
        labels: Float[Tensor, "height width channel"],
        *,
        offsets: Float[Tensor, "height width 2"],
        label_offsets: Float[Tensor, "height width 2"],
        aligned: bool,
    ) -> None:
        self._features, self._labels = features, labels
        self._offsets, self._label_offsets = offsets, label_offsets
        self._aligned = aligned

    def similarities(
        self, queries: Float[Tensor, "queries dim"], tile: _Tile, _: Tensor
    ) -> Float[Tensor, "places queries"]:
        """Dot products with what lies at the places of the windows."""
        box, corners = self._corners(self._offsets, tile)
        similarity = queries @ self._features[box].flatten(0, 1).T
        result = similarity.new_zeros(len(queries), (2 * tile.radius + 1) ** 2)
        for position, share in corners:
            result += share * similarity.gather(1, position)
        return result.T

    def sum_labels(
        self, weights: Float[Tensor, "places queries"], tile: _Tile
    ) -> Float[Tensor, "queries channel"]:
        """The labels of the windows' places, weighted and summed."""
        box, corners = self._corners(self._label_offsets, tile)
        labels = self._labels[box].flatten(0, 1)
        shares = weights.new_zeros(weights.shape[1], len(labels))
        for position, share in corners:
            shares.scatter_add_(1, position, share * weights.T)
        return shares @ labels

    def _corners(
        self, offsets: Float[Tensor, "height width 2"], tile: _Tile
    ) -> tuple[
        tuple[slice, slice],
        list[tuple[Int64[Tensor, "queries places"], Float[Tensor, "queries places"]]],
    ]:
        """A box that holds all features around the places of the tile's windows and, for each of
        the four around a place, its number in the box and its share."""
        spans = []
        for axis, queries in enumerate((tile.rows, tile.columns)):
            length = offsets.shape[axis]
            start = torch.arange(queries.start, queries.stop).to(offsets)
            start = start.view(-1, 1) if axis == 0 else start.view(1, -1)
            step = torch.arange(-tile.radius, tile.radius + 1).to(offsets)
            center = (start + offsets[tile.rows, tile.columns, axis]).flatten()
            place = center[:, None] + step  # (queries, 2 radius + 1)
            if not self._aligned and length > 1:
                place = place * (length / (length - 1)) - 0.5
            before = place.floor()
            position = torch.stack([before, before + 1]).long()
            share = torch.stack([before + 1 - place, place - before])
            share = share * ((position >= 0) & (position < length))  # 0 outside the frame
            position = position.clamp(0, length - 1)
            span = slice(int(position.min()), int(position.max()) + 1)
            spans.append((span, position - span.start, share))
        (rows, row, row_share), (columns, column, column_share) = spans
        width = columns.stop - columns.start
        corners = [
            (
                (row[y][:, :, None] * width + column[x][:, None]).flatten(1),
                (row_share[y][:, :, None] * column_share[x][:, None]).flatten(1),
            )
            for y, x in itertools.product(range(2), range(2))
        ]
        return (rows, columns), corners


def _windows(
    query: Tensor,
    keys: Sequence[Tensor],
    labels: Sequence[Tensor],
    ages: Sequence[int],
    *,
    settings: PeerSettings,
    radius: int,
) -> list[_FixedWindows | _MovedWindows]:
    """The context frames, with windows moved where they are old."""
    after = math.inf if settings.realign_after is None else settings.realign_after
    offsets = {
        number: expected_offsets(
            query,
            keys[number],
            radius=settings.realign_radius,
            dilation=int(min(settings.realign_dilation, age // after + 1)),
        )
        for number, age in enumerate(ages)
        if age > after
    }
    return [
        _MovedWindows(
            key,
            label,
            offsets=offsets[number],
            # MAST's code reads the labels of all moved windows where the latest frame has its own.
            label_offsets=offsets[max(offsets)],
            aligned=settings.realign_corners,
        )
        if number in offsets
        else _FixedWindows(key, label, radius=radius, border=settings.border)
        for number, (key, label) in enumerate(zip(keys, labels, strict=True))
    ]


def expected_offsets(
    query: Float[Tensor, "height width dim"],
    key: Float[Tensor, "height width dim"],
    *,
    radius: int,
    dilation: int,
) -> Float[Tensor, "height width 2"]:
    """Expected (dy, dx) under a softmax over the dilated window, feature positions.

    The window has 2 radius + 1 places along each axis, `dilation` positions apart. Places outside
    the frame count with similarity 0, as in the released code of MAST.
    """
    offsets = query.new_empty(*query.shape[:2], 2)
    # Positions that are `dilation` apart see each other only, so each class of them is a problem
    # of its own with a window that is not dilated.
    starts = (range(min(dilation, length)) for length in query.shape[:2])
    for row, column in itertools.product(*starts):
        rest = slice(row, None, dilation), slice(column, None, dilation)
        offsets[rest] = dilation * _undilated_offsets(query[rest], key[rest], radius=radius)
    return offsets


def _undilated_offsets(
    query: Float[Tensor, "height width dim"],
    key: Float[Tensor, "height width dim"],
    *,
    radius: int,
) -> Float[Tensor, "height width 2"]:
    result = query.new_empty(*query.shape[:2], 2)
    padded = F.pad(key, _around(radius))
    for tile in _tiles(*query.shape[:2], radius=radius, side=_TILE):
        similarity = tile.keys(padded) @ query[tile.rows, tile.columns].flatten(0, 1).T
        weights = similarity.masked_fill_(~tile.within(query.device), -math.inf).softmax(dim=0)
        # One axis after the other: a sum of all places at once would lose the weak ones in float32.
        weights = weights.view(*(length + 2 * radius for length in tile.shape), *tile.shape)
        for axis, length in enumerate(tile.shape):
            along = weights.sum(dim=1 - axis)  # (places, rows, columns)
            place = torch.arange(-radius, length + radius, device=query.device)[:, None]
            offset = (place - torch.arange(length, device=query.device)).to(query)
            offset = offset.unsqueeze(2 - axis)
            result[tile.rows, tile.columns, axis] = (along * offset).sum(dim=0)
    return result


@torch.no_grad()
def averaged_labels(
    query: Float[Tensor, "height width dim"],
    keys: Sequence[Float[Tensor, "height width dim"]],
    labels: Sequence[Float[Tensor, "height width channel"]],
    copies: Sequence[int],
    *,
    topk: int,
    temperature: float,
    mutual: bool,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Float[Tensor, "height width channel"]:
    """Labels of the query, averaged over context frames.

    Each frame gives the sum over j of w(i, j) p(j), where w(i, j) = softmax_j(a(i, j) / T) for the
    k largest and 0 for others; the k are not normalised again, so the sum of labels stays below 1.

    Args:
        query: features of the frame to label.
        keys: features of its context frames.
        labels: theirs.
        copies: how often each frame counts in the average.
        topk: k; if a frame has fewer positions, all of them.
        temperature: T, above 0.
        mutual: if False, a is the dot product s. If True, a = s * s / (max_j s + e) * s / (max_i s
            + e), which favors mutual nearest neighbors, and every position whose weight equals the
            k-th largest is used, as in the released code of ContCorr.
        max_bytes: limit on the memory of the affinities of one block of queries (at least one).
    """
    height, width, dim = query.shape
    queries = query.reshape(-1, dim)
    blocks = queries.split(max(1, max_bytes // (3 * query.element_size() * len(queries))))
    total = queries.new_zeros(len(queries), labels[0].shape[-1])
    for key, label, count in zip(keys, labels, copies, strict=True):
        flat, table = key.reshape(-1, dim), label.flatten(0, 1)
        k = min(topk, len(flat))
        largest = torch.empty(0)
        if mutual:
            largest = functools.reduce(
                torch.maximum, ((block @ flat.T).amax(dim=0) for block in blocks)
            )
        summed = []
        for block in blocks:
            affinity = block @ flat.T
            if mutual:
                of_query = affinity / (affinity.amax(dim=1, keepdim=True) + MUTUAL_EPSILON)
                affinity = affinity * of_query * (affinity / (largest + MUTUAL_EPSILON))
            weights = (affinity / temperature).softmax(dim=1)
            best, position = weights.topk(k, dim=1, sorted=mutual)
            if mutual:
                summed.append(weights.masked_fill(weights < best[:, -1:], 0) @ table)
            else:
                summed.append(F.embedding_bag(position, table, mode="sum", per_sample_weights=best))
        total += count * torch.cat(summed)
    return (total / sum(copies)).view(height, width, -1)


class DistanceMatcher:
    """Finds the top-k positions by the distance of features, as `TiledMatcher` does by cosine.

    Similarities are minus the distance. One row of queries is compared at a time with the rows of
    one key map that its windows reach.
    """

    def __init__(self, *, topk: int, window: Window, norm: Literal["euclidean", "l1"]) -> None:
        """A matcher that has seen no frame.

        Args:
            topk: positions kept for each query and group.
            window: where a query looks.
            norm: of the difference of two features.
        """
        self._topk = topk
        self._window = window
        self._power = 1.0 if norm == "l1" else 2.0
        self._size: Size = (0, 0)

    def prepare(self, features: Float[Tensor, "height width dim"]) -> FeatureMap:
        """What the matcher keeps of a frame; all frames have one size."""
        self._size = (features.shape[0], features.shape[1])
        return FeatureMap(features.flatten(0, 1), None)

    def restore(self, exact: Float[Tensor, "tokens dim"], height: int, width: int) -> FeatureMap:
        """What `prepare` gave for a frame of that size, from its `exact` part."""
        return self.prepare(exact.unflatten(0, (height, width)))

    def match(
        self,
        query: FeatureMap,
        keys: Sequence[FeatureMap],
        groups: Sequence[Sequence[int]],
        *,
        windowed: bool = True,
    ) -> list[Candidates]:
        """The best positions of each group; see `TiledMatcher.match`."""
        window = self._window if windowed else Window(None)
        found = [self._nearest(query.exact, key.exact, window) for key in keys]
        results = []
        for group in groups:
            similarity = torch.cat([found[number].similarity for number in group], dim=1)
            position = torch.cat(
                [found[number].position + i * len(query.exact) for i, number in enumerate(group)],
                dim=1,
            )
            best, place = similarity.topk(min(self._topk, similarity.shape[1]), dim=1)
            results.append(Candidates(best, position.gather(1, place)))
        return results

    def _nearest(
        self, query: Float[Tensor, "tokens dim"], key: Float[Tensor, "tokens dim"], window: Window
    ) -> Candidates:
        """The best positions of one key map."""
        (height, width), reach = self._size, window.radius
        column = torch.arange(width, device=query.device)
        similarities, positions = [], []
        for row in range(height):
            first = 0 if reach is None else max(0, row - reach)
            last = height if reach is None else min(height, row + reach + 1)
            similarity = -torch.cdist(
                query[row * width : (row + 1) * width],
                key[first * width : last * width],
                p=self._power,
                compute_mode="donot_use_mm_for_euclid_dist",  # which is 0 only up to 3e-4
            )
            if reach is not None:
                down = (torch.arange(first, last, device=query.device) - row)[None, :, None]
                right = (column - column[:, None])[:, None]
                inside = _is_inside(down, right, radius=reach, shape=window.shape)
                similarity = similarity.masked_fill(~inside.flatten(1), -math.inf)
            best, place = similarity.topk(min(self._topk, similarity.shape[1]), dim=1)
            similarities.append(F.pad(best, (0, self._topk - best.shape[1]), value=-math.inf))
            positions.append(F.pad(place + first * width, (0, self._topk - place.shape[1])))
        return Candidates(torch.cat(similarities), torch.cat(positions))


def _is_inside(
    down: Int64[Tensor, "..."], right: Int64[Tensor, "..."], *, radius: int, shape: WindowShape
) -> Bool[Tensor, "..."]:
    """Whether offsets lie in a window; see `WindowShape`."""
    if shape == "square":
        return torch.maximum(down.abs(), right.abs()) <= radius
    return down**2 + right**2 <= radius**2 - (shape == "circle")
