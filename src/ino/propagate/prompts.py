"""From a box or a few clicks to a mask, without any supervised model.

Three cues are added as log odds of "object": color (histograms of the whole crop, and local ones),
features of the backbone (a linear discriminant), and how much color changes on the way from the
outside of the box. A total-variation segmentation whose contours follow edges of the image makes a
mask of them. Cues and mask are computed in turn, as in GrabCut. Boxes are tight: some pixel of each
row and column of a box is made object. Without a box the first click starts the same rounds, with
the distance from it in place of the box, at several scales; the mask with the strongest edges is
taken, of it what is connected with the clicks. A later click changes what is similar and
near to it; clicks are applied in their order, and a clicked pixel always keeps its label.

Everything is computed in a crop around the prompt, enlarged where the object is small.
"""

from collections.abc import Iterable, MutableMapping
from functools import cached_property
from numbers import Real
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from ino.data.label_maps import as_labels
from ino.errors import MaskError, PromptError
from ino.models.load import DEFAULT, load_backbone
from ino.propagate.features import FeatureBackbone, FeatureExtractor, as_frame
from ino.propagate.protocols import get_protocol

AREA = 90_000
"""Pixels of the crop that the network sees."""
LARGEST_ZOOM = 2.5
MARGIN, MASK_MARGIN = 0.15, 0.4
"""What a crop shows around a box and around a mask to be corrected, which may be too small, as
fractions of the square root of their areas."""
SMALLEST_MARGIN = 4
"""Pixels of the frame."""
LEVELS, LOCAL_LEVELS, LOCAL_CELLS = 24, 14, 6
"""Of each color channel in the global and in the local histograms, and the latter's rows and
columns."""
CLIP = 3.0
"""Largest log odds of one cue."""
ROUNDS = 4
"""Of estimating cues and mask in turn."""
SHRINKAGE = 0.01
"""Of the discriminant's covariance toward a multiple of the identity."""
GLOBAL_COLOR, LOCAL_COLOR, FEATURES, BARRIER = 0.7, 1.5, 0.7, 0.3
"""Weights of the log odds."""
BEFORE = 0.5
"""Weight of the mask that a click corrects."""
TIGHTNESS = 1.5
"""Log odds that the most likely pixel of each row and each column of a box should reach."""
SMOOTHNESS = 1.0
HELD = 2.0
"""Radius around a click that always gets its label, pixels of the half-size crop."""
STRENGTH, REACH, STEP, DISSIMILAR = 8.0, 0.35, 4.0, 2.0
"""Of a click: largest log odds; how far it reaches, as a fraction of the object's size; how much a
pixel's distance counts beside a change of color by 1 (CIELAB); how much features count."""
FIRST, FIRST_REACH, GROUND_REACH, EXTENT = 2.0, 0.25, 1.5, 2.4
"""Of the first click where only clicks are known: largest log odds; how far it reaches, as a
fraction of the frame's size and at most as a multiple of the distance to the nearest click on
background; size of the object that later clicks assume, as a multiple of that reach."""
SHARES, PREFERENCE = (1.0, 0.5, 0.25), 1.3
"""Of that reach, what is tried for the first click; how much stronger the edges of a mask must be
than those of the one before."""
SURE = 50.0
"""Log odds that nothing outweighs."""

Map = Float[np.ndarray, "rows columns"]
Mask = Bool[np.ndarray, "height width"]


class _Box(NamedTuple):
    """A rectangle of pixels, x1 and y1 exclusive."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def extent(self) -> float:
        """Square root of the area."""
        return float(np.sqrt((self.x1 - self.x0) * (self.y1 - self.y0)))


class _Click(NamedTuple):
    """A pixel and whether it is the object."""

    x: int
    y: int
    is_object: bool


def mask_from_prompt(
    frame: np.ndarray | torch.Tensor,
    *,
    box: Iterable[Any] | None = None,
    points: Iterable[Any] = (),
    mask: np.ndarray | torch.Tensor | None = None,
    backbone: FeatureBackbone | str = DEFAULT,
    features: MutableMapping[Any, Any] | None = None,
) -> Mask:
    """The mask of one object from a box, clicks, or both.

    Clicks are applied in their order: to the mask that the box gave, to `mask` if that is given,
    or else to what the first click on the object gives, whose size the clicks on background bound.
    A click whose pixel has its label already only holds the label there.
    The result is the same for the same input.

    Args:
        frame: uint8 RGB, height x width x 3.
        box: x0, y0, x1, y1 in pixels, x1 and y1 exclusive. Nothing outside it belongs to the
            object, except where a click says so.
        points: x, y in pixels and whether this is the object (True) or background (False).
        mask: height x width, not 0 where the object is: a mask to be corrected by the clicks.
        backbone: computes the features; or what `load_backbone` takes.
        features: a dictionary that keeps the features of this frame between calls; give the same
            one again for the same frame and backbone, to save most of the time of the next click.

    Returns:
        True where the object is, height x width.

    Raises:
        PromptError: nothing is given, only background is clicked, a box or a point is malformed,
            or it lies outside the frame.
        MaskError: the mask is malformed or of another size than the frame.
        VideoError: the frame is not an RGB image.
    """
    frame = as_frame(frame)
    size = (frame.shape[0], frame.shape[1])
    clicks = _as_clicks(points, size)
    limits = None if box is None else _as_box(box, size)
    given = None if mask is None else _as_mask(mask, size)
    if limits is None and given is None and not any(click.is_object for click in clicks):
        raise PromptError(
            "there is no box, no mask and no click on the object: give box=(x0, y0, x1, y1) or at "
            "least one point (x, y, True)"
        )
    around = _region(limits, given, clicks, size)
    crop = _Crop.around(around, size, margin=MARGIN if given is None else MASK_MARGIN)
    features = {} if features is None else features
    if crop not in features:
        features[crop] = _read_features(crop.cut(frame), backbone)
    view = _View(crop.cut(frame), features[crop])
    odds = _Odds(
        view,
        limits and crop.inside(limits),
        crop.inside(around).extent,
    )
    moved = [crop.move(click) for click in clicks]
    if given is not None:
        odds.probability = crop.shrink(given, view.size)
    elif limits is not None:
        odds.fit_box()
    else:
        first = next(number for number, click in enumerate(moved) if click.is_object)
        moved.insert(0, moved.pop(first))
        odds.fit_click(moved[0], ground=[click for click in moved if not click.is_object])
    for number in range(1, len(moved) + 1):
        odds.apply(moved[:number])
    found = crop.enlarge(odds.finish(), frame_size=size)
    if given is not None and not clicks and limits is None:
        found = given
    found = _hold(found, clicks, limits, radius=2 * HELD / crop.zoom)
    return found if limits is not None else _connected(found, clicks, given)


def _as_box(box: object, size: tuple[int, int]) -> _Box:
    """The part of a box inside the frame."""
    wanted = "the box must be four numbers x0, y0, x1, y1 in pixels"
    numbers = _numbers(box)
    if numbers is None or len(numbers) != 4:
        raise PromptError(f"{wanted}, but it is {box!r}")
    x0, y0, x1, y1 = numbers
    if x1 <= x0 or y1 <= y0:
        raise PromptError(f"{wanted} with x0 < x1 and y0 < y1, but it is {box!r}: it is empty")
    height, width = size
    inside = _Box(max(x0, 0), max(y0, 0), min(x1, width), min(y1, height))
    if inside.x1 <= inside.x0 or inside.y1 <= inside.y0:
        raise PromptError(
            f"the box {box!r} lies outside the frame, which is {width} pixels wide and {height} "
            "high; pixels are counted from 0 at the top left"
        )
    return inside


def _as_clicks(points: object, size: tuple[int, int]) -> list[_Click]:
    """Points as clicks inside the frame."""
    if not isinstance(points, Iterable):
        raise PromptError(f"points must be a list of (x, y, is_object), but they are {points!r}")
    height, width = size
    clicks = []
    for point in points:
        numbers = _numbers(point)
        if numbers is None or len(numbers) != 3 or numbers[2] not in (0, 1):
            raise PromptError(
                "a point must be x, y in pixels and True (object) or False (background), but one "
                f"is {point!r}"
            )
        x, y, is_object = numbers
        if not (0 <= x < width and 0 <= y < height):
            raise PromptError(
                f"the point {x:g}, {y:g} lies outside the frame, which is {width} pixels wide and "
                f"{height} high; pixels are counted from 0 at the top left"
            )
        click = _Click(int(x), int(y), bool(is_object))
        if click._replace(is_object=not click.is_object) in clicks:
            raise PromptError(
                f"the point {click.x}, {click.y} is clicked as both object and background; leave "
                "one of the two out"
            )
        clicks.append(click)
    return clicks


def _numbers(given: object) -> list[float] | None:
    """A list of finite numbers; None if it is none."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        return None
    items = list(given)
    if not all(isinstance(item, Real | np.bool_) and np.isfinite(float(item)) for item in items):
        return None
    return [float(item) for item in items]


def _as_mask(mask: object, size: tuple[int, int]) -> Mask:
    """A given mask."""
    found = as_labels(mask) > 0
    if found.shape != size:
        raise MaskError(
            f"the mask is {found.shape[0]}x{found.shape[1]} pixels but the frame is "
            f"{size[0]}x{size[1]}; give a mask of the frame's size"
        )
    return found


def _region(
    limits: _Box | None, given: Mask | None, clicks: list[_Click], size: tuple[int, int]
) -> _Box:
    """What the crop must show: box, mask and clicks; for clicks alone, the whole frame."""
    height, width = size
    boxes = [] if limits is None else [limits]
    if given is not None and given.any():
        boxes.append(_Box(*_bounds(given)))
    if not boxes:
        return _Box(0, 0, width, height)
    boxes += [_Box(click.x, click.y, click.x + 1, click.y + 1) for click in clicks]
    corners = np.array(boxes)
    return _Box(*corners[:, :2].min(axis=0).tolist(), *corners[:, 2:].max(axis=0).tolist())


def _bounds(mask: Mask) -> tuple[int, int, int, int]:
    """The smallest box around a mask."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


class _Crop(NamedTuple):
    """A rectangle of the frame and the size, in pixels, that it is resized to."""

    x0: int
    y0: int
    x1: int
    y1: int
    width: int
    height: int

    @classmethod
    def around(cls, box: _Box, size: tuple[int, int], *, margin: float) -> "_Crop":
        """The crop that shows a box and its surroundings."""
        margin = max(margin * box.extent, SMALLEST_MARGIN)
        x0, y0 = max(0, int(box.x0 - margin)), max(0, int(box.y0 - margin))
        x1 = min(size[1], int(box.x1 + margin + 1))
        y1 = min(size[0], int(box.y1 + margin + 1))
        zoom = min(LARGEST_ZOOM, float(np.sqrt(AREA / ((x1 - x0) * (y1 - y0)))))
        width, height = (max(16, round(side * zoom / 8) * 8) for side in (x1 - x0, y1 - y0))
        return cls(x0, y0, x1, y1, width, height)

    @property
    def zoom(self) -> float:
        """Pixels of the crop per pixel of the frame."""
        across, down = self.width / (self.x1 - self.x0), self.height / (self.y1 - self.y0)
        return float(np.sqrt(across * down))

    def cut(self, frame: np.ndarray) -> np.ndarray:
        part = frame[self.y0 : self.y1, self.x0 : self.x1]
        method = cv2.INTER_AREA if self.zoom < 1 else cv2.INTER_LINEAR
        return cv2.resize(part, (self.width, self.height), interpolation=method)

    def position(self, x: float | int, y: float | int) -> tuple[float, float]:
        """A position in the frame as one at half of the crop's size."""
        across, down = self.width / (self.x1 - self.x0), self.height / (self.y1 - self.y0)
        return (x - self.x0) * across / 2, (y - self.y0) * down / 2

    def move(self, click: _Click) -> _Click:
        """A click in the frame as one at half of the crop's size."""
        x, y = self.position(click.x + 0.5, click.y + 0.5)
        return _Click(
            min(int(x), self.width // 2 - 1), min(int(y), self.height // 2 - 1), click.is_object
        )

    def inside(self, box: _Box) -> _Box:
        """A box of the frame at half of the crop's size."""
        return _Box(*self.position(box.x0, box.y0), *self.position(box.x1, box.y1))

    def shrink(self, mask: Mask, size: tuple[int, int]) -> Map:
        """A mask of the frame as shares of the pixels at half of the crop's size."""
        part = mask[self.y0 : self.y1, self.x0 : self.x1].astype(np.float32)
        return cv2.resize(part, size[::-1], interpolation=cv2.INTER_AREA)

    def enlarge(self, probability: Map, *, frame_size: tuple[int, int]) -> Mask:
        """The mask of the frame."""
        found = np.zeros(frame_size, dtype=bool)
        part = cv2.resize(
            probability, (self.x1 - self.x0, self.y1 - self.y0), interpolation=cv2.INTER_LINEAR
        )
        found[self.y0 : self.y1, self.x0 : self.x1] = part > 0.5
        return found


def _read_features(
    image: np.ndarray, backbone: FeatureBackbone | str
) -> Float[np.ndarray, "rows columns dim"]:
    """Features of a crop at the size that it has, rows x columns x dim."""
    if isinstance(backbone, str):
        backbone = load_backbone(backbone)
    named = getattr(backbone, "protocol", None) or "ino-davis"
    protocol = get_protocol(named) if isinstance(named, str) else named
    protocol = protocol.model_copy(update={"short_side": None, "rounding": "down"})
    return FeatureExtractor(backbone, protocol=protocol)(image).numpy(force=True)


class _View:
    """What the cues read of a crop, at half of its size."""

    def __init__(self, image: np.ndarray, features: np.ndarray) -> None:
        height, width = image.shape[0] // 2, image.shape[1] // 2
        self.image = image
        self.size = (height, width)
        self.lab = _as_lab(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
        self.grid = (features.shape[0], features.shape[1])
        flat = features.reshape(-1, features.shape[2])
        self.features = flat - flat.mean(axis=0)
        self.covariance = self.features.T @ self.features / len(flat)

    @cached_property
    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """See `_steps`."""
        return _steps(self.lab)

    def edge_strength(self, mask: Bool[np.ndarray, "height width"]) -> float:
        """Median change of color across the outline of a mask of the full size of the crop."""
        across, down = _steps(_as_lab(self.image))
        crossed = [across[mask[:, 1:] != mask[:, :-1]], down[mask[1:] != mask[:-1]]]
        outline = np.concatenate(crossed)
        return float(np.median(outline)) if len(outline) else 0.0

    @cached_property
    def cells(self) -> Int[np.ndarray, " pixels"]:
        """Of the global histogram."""
        return _cell_numbers(self._levels(LEVELS), (LEVELS,) * 3)

    @cached_property
    def local_cells(self) -> Int[np.ndarray, " pixels"]:
        """Of the local histogram."""
        height, width = self.size
        rows, columns = np.mgrid[:height, :width].reshape(2, -1) * (LOCAL_CELLS - 1)
        places = [np.rint(rows / height), np.rint(columns / width)]
        return _cell_numbers([*places, *self._levels(LOCAL_LEVELS)], LOCAL_SHAPE)

    def _levels(self, count: int) -> list[np.ndarray]:
        colors = self.lab.reshape(-1, 3)
        lowest = colors.min(axis=0)
        span = max(float((colors.max(axis=0) - lowest).max()), 1.0)
        return list(np.rint((colors - lowest) / span * (count - 1)).T)

    def global_color(self, object_: Map, ground: Map) -> Map:
        """Log odds of each pixel's color in the whole crop."""
        maps = [_histogram(self.cells, weights, (LEVELS,) * 3) for weights in (object_, ground)]
        inside, outside = (counts / max(counts.sum(), 1e-6) for counts in maps)
        least = 2 / self.cells.size
        odds = np.log((inside + least) / (outside + least)).ravel()[self.cells]
        return np.clip(odds, -CLIP, CLIP).reshape(self.size).astype(np.float32)

    def local_color(self, object_: Map, ground: Map) -> Map:
        """Log odds of each pixel's color in its surroundings."""
        inside, outside = (
            _histogram(self.local_cells, weights, LOCAL_SHAPE).ravel()[self.local_cells]
            for weights in (object_, ground)
        )
        odds = np.log((inside + 0.5) / (outside + 0.5))
        return np.clip(odds, -CLIP, CLIP).reshape(self.size).astype(np.float32)

    def discriminant(self, probability: Map) -> Map:
        """Log odds of a linear discriminant of the features."""
        share = cv2.resize(probability, self.grid[::-1], interpolation=cv2.INTER_AREA).ravel()
        total = float(share.mean())
        if not 1e-4 < total < 1 - 1e-4:
            return np.zeros(self.size, dtype=np.float32)
        means = [weights @ self.features / weights.sum() for weights in (share, 1 - share)]
        apart = means[0] - means[1]
        within = self.covariance - total * (1 - total) * np.outer(apart, apart)
        dim = len(apart)
        within = within + (SHRINKAGE * np.trace(within) / dim + 1e-9) * np.eye(dim)
        direction = np.linalg.solve(within, apart)
        odds = (self.features - (means[0] + means[1]) / 2) @ direction
        return np.clip(self._spread(odds), -CLIP, CLIP)

    def similarity(self, x: int, y: int) -> Map:
        """Cosine similarity of each pixel's feature with that of a pixel."""
        unit = self.features / (np.linalg.norm(self.features, axis=1, keepdims=True) + 1e-9)
        (height, width), (rows, columns) = self.size, self.grid
        place = min(y * rows // height, rows - 1) * columns + min(x * columns // width, columns - 1)
        return self._spread(unit @ unit[place])

    def _spread(self, values: np.ndarray) -> Map:
        values = values.reshape(self.grid).astype(np.float32)
        return cv2.resize(values, self.size[::-1], interpolation=cv2.INTER_LINEAR)

    def distance(self, start: Bool[np.ndarray, "rows columns"], *, per_pixel: float) -> Map:
        """Geodesic distance from the pixels of `start`: change of color, and steps, on the way."""
        across, down = (step + per_pixel for step in self.steps)
        found = np.where(start, 0, 1e6).astype(np.float32)
        height, width = self.size
        for _ in range(2):
            for row in range(1, height):
                np.minimum(found[row], found[row - 1] + down[row - 1], out=found[row])
            for row in range(height - 2, -1, -1):
                np.minimum(found[row], found[row + 1] + down[row], out=found[row])
            turned, across_turned = np.ascontiguousarray(found.T), across.T
            for row in range(1, width):
                np.minimum(turned[row], turned[row - 1] + across_turned[row - 1], out=turned[row])
            for row in range(width - 2, -1, -1):
                np.minimum(turned[row], turned[row + 1] + across_turned[row], out=turned[row])
            found = np.ascontiguousarray(turned.T)
        return found


LOCAL_SHAPE = (LOCAL_CELLS, LOCAL_CELLS, LOCAL_LEVELS, LOCAL_LEVELS, LOCAL_LEVELS)


def _as_lab(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def _steps(lab: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Change of color to the right and to the lower neighbor."""
    smooth = cv2.GaussianBlur(lab, (0, 0), 1.0)
    return _norm(smooth[:, 1:] - smooth[:, :-1]), _norm(smooth[1:] - smooth[:-1])


def _norm(colors: np.ndarray) -> Map:
    return np.sqrt((colors**2).sum(axis=-1))


def _cell_numbers(places: list[np.ndarray], shape: tuple[int, ...]) -> Int[np.ndarray, " pixels"]:
    return np.ravel_multi_index([place.astype(int) for place in places], shape)


def _histogram(
    cells: Int[np.ndarray, " pixels"], weights: Map, shape: tuple[int, ...]
) -> np.ndarray:
    """Weights per cell, blurred by 1/4, 1/2, 1/4 along each axis."""
    counts = np.bincount(cells, weights=weights.ravel(), minlength=int(np.prod(shape)))
    counts = counts.reshape(shape).astype(np.float32)
    for axis in range(len(shape)):
        moved = np.moveaxis(counts, axis, 0)
        blurred = moved / 2
        blurred[1:] += moved[:-1] / 4
        blurred[:-1] += moved[1:] / 4
        counts = np.moveaxis(blurred, 0, axis)
    return counts


def _smooth(odds: Map, lab: np.ndarray, *, smoothness: float, rounds: int) -> Map:
    """The soft mask p in 0..1 that minimizes sum(w |grad p|) - sum(odds p).

    The weights w are smaller at edges of the image. This is the convex form of a graph cut, solved
    by the primal-dual method of Chambolle and Pock.
    """
    squares = [((lab[:, 1:] - lab[:, :-1]) ** 2).sum(-1), ((lab[1:] - lab[:-1]) ** 2).sum(-1)]
    scale = max(float(squares[0].mean() + squares[1].mean()), 1e-6)
    across, down = (smoothness * (0.1 + 0.9 * np.exp(-square / scale)) for square in squares)
    found = 1 / (1 + np.exp(-np.clip(odds, -20, 20)))
    ahead = found
    flow_x, flow_y = np.zeros_like(across), np.zeros_like(down)
    rate = np.float32(0.35)
    for _ in range(rounds):
        flow_x = np.clip(flow_x + rate * (ahead[:, 1:] - ahead[:, :-1]), -across, across)
        flow_y = np.clip(flow_y + rate * (ahead[1:] - ahead[:-1]), -down, down)
        pull = odds.copy()
        pull[:, :-1] += flow_x
        pull[:, 1:] -= flow_x
        pull[:-1] += flow_y
        pull[1:] -= flow_y
        moved = np.clip(found + rate * pull, 0, 1)
        ahead, found = 2 * moved - found, moved
    return found.astype(np.float32)


class _Odds:
    """The soft mask of a crop and the log odds it was made of."""

    def __init__(self, view: _View, limits: _Box | None, extent: float) -> None:
        """An empty mask.

        Args:
            view: of the crop.
            limits: the box, in pixels of the view; None if there is none.
            extent: of the object, in pixels of the view.
        """
        self._view = view
        self.probability = np.zeros(view.size, dtype=np.float32)
        self._odds = np.full(view.size, -SURE, dtype=np.float32)
        self._extent = extent
        self._spreads: list[Map | None] = []
        if limits is None:
            self._inside = np.ones(view.size, dtype=bool)
            self._ellipse = np.zeros(view.size, dtype=np.float32)
        else:
            rows, columns = np.mgrid[: view.size[0], : view.size[1]] + 0.5
            across = (2 * columns - limits.x0 - limits.x1) / (limits.x1 - limits.x0)
            down = (2 * rows - limits.y0 - limits.y1) / (limits.y1 - limits.y0)
            self._inside = (abs(across) <= 1) & (abs(down) <= 1)
            self._ellipse = (1.5 - 2.5 * (across**2 + down**2)).astype(np.float32)

    def _cues(self, probability: Map) -> Map:
        view, ground = self._view, 1 - probability
        return (
            GLOBAL_COLOR * view.global_color(probability, ground)
            + LOCAL_COLOR * view.local_color(probability, ground)
            + FEATURES * view.discriminant(probability)
        )

    def fit_box(self) -> None:
        """The mask of a box."""
        view = self._view
        chance = 1 / (1 + np.exp(-np.clip(self._ellipse, -20, 20)))
        self.probability = np.where(self._inside, chance, 0).astype(np.float32)
        barrier = self._barrier()
        for _ in range(ROUNDS):
            odds = self._cues(self.probability) + BARRIER * barrier
            odds = np.where(self._inside, odds, -SURE)
            self._odds = (odds + _missing(odds, self._inside)).astype(np.float32)
            self.probability = _smooth(self._odds, view.lab, smoothness=SMOOTHNESS, rounds=40)

    def fit_click(self, click: _Click, *, ground: list[_Click]) -> None:
        """The mask of one click: near it, in as far as the way there has no edges.

        Clicks on background bound how large the object can be. As one click does not tell how large
        it is, several reaches are tried, and the mask whose outline has the strongest edges is
        taken.
        """
        view = self._view
        bounds = [GROUND_REACH * np.hypot(one.x - click.x, one.y - click.y) for one in ground]
        largest = max(1.0, min([FIRST_REACH * self._extent, *bounds]))
        strongest = -1.0
        for number, share in enumerate(SHARES):
            reach = max(1.0, share * largest)
            grown = self._grow(click, reach=reach)
            mask = self._contour(grown[1]) > 0.5
            middle = click._replace(x=2 * click.x, y=2 * click.y)
            strength = view.edge_strength(_connected(mask, [middle], None)) / PREFERENCE**number
            if strength > strongest:
                strongest, self._extent = strength, EXTENT * reach
                self.probability, self._odds = grown

    def _grow(self, click: _Click, *, reach: float) -> tuple[Map, Map]:
        """The soft mask of a click, and its log odds, if the object reaches about so far."""
        view = self._view
        start = np.zeros(view.size, dtype=bool)
        start[click.y, click.x] = True
        far = view.distance(start, per_pixel=STEP) / (reach * STEP)
        near = FIRST * (2 * np.exp(-(far**2) / 2) - 1)
        held = _held([click], view.size, radius=HELD)
        odds = near
        probability = (1 / (1 + np.exp(-2 * near))).astype(np.float32)
        for _ in range(ROUNDS):
            odds = np.where(held, SURE, self._cues(probability) + near).astype(np.float32)
            probability = _smooth(odds, view.lab, smoothness=SMOOTHNESS, rounds=40)
            probability[held > 0] = 1
        return probability, odds

    def _barrier(self) -> Map:
        """How far each pixel of the box is from its outside, in deviations from the median."""
        if self._inside.all() or not self._inside.any():
            return np.zeros(self._view.size, dtype=np.float32)
        found = self._view.distance(~self._inside, per_pixel=0.3)
        values = found[self._inside]
        return np.clip((found - np.median(values)) / (values.std() + 1e-6), -2, 2)

    def apply(self, clicks: list[_Click]) -> None:
        """Changes the mask by the last of the clicks, unless it agrees; all of them hold."""
        view, last = self._view, clicks[-1]
        agrees = (self.probability[last.y, last.x] > 0.5) == last.is_object
        self._spreads.append(None if agrees else self._spread(last.x, last.y))
        if agrees:
            return
        pull = np.zeros(view.size, dtype=np.float32)
        for wanted, sign in ((True, 1), (False, -1)):
            spreads = [
                spread
                for click, spread in zip(clicks, self._spreads, strict=True)
                if click.is_object is wanted and spread is not None
            ]
            if spreads:
                pull += sign * np.max(spreads, axis=0)
        held = _held(clicks, view.size, radius=HELD)
        chance = np.clip(self.probability + pull, 0, 1)
        chance[held > 0], chance[held < 0] = 1, 0
        before = np.log((self.probability + 0.02) / (1.02 - self.probability))
        odds = BEFORE * np.clip(before, -CLIP, CLIP) + self._cues(chance) + STRENGTH * pull
        odds = np.where(self._inside | (pull > 0.3), odds, -SURE)
        self._odds = np.where(held, SURE * held, odds).astype(np.float32)
        found = _smooth(self._odds, view.lab, smoothness=SMOOTHNESS, rounds=60)
        found[held > 0], found[held < 0] = 1, 0
        self.probability = found

    def _spread(self, x: int, y: int) -> Map:
        """How much a click says about each pixel, 0..1: near it, and similar to it."""
        start = np.zeros(self._view.size, dtype=bool)
        start[y, x] = True
        far = self._view.distance(start, per_pixel=STEP) / (REACH * self._extent * STEP)
        far *= 1 + DISSIMILAR * (1 - self._view.similarity(x, y))
        return np.exp(-(far**2) / 2)

    def finish(self) -> Map:
        """The soft mask at the full size of the crop, whose contours follow its finer edges."""
        return self._contour(self._odds)

    def _contour(self, odds: Map) -> np.ndarray:
        """A soft mask of these log odds, height x width of the crop."""
        image = self._view.image
        size = (image.shape[1], image.shape[0])
        odds = cv2.resize(odds, size, interpolation=cv2.INTER_LINEAR)
        return _smooth(odds, _as_lab(image), smoothness=SMOOTHNESS, rounds=40)


def _missing(odds: Map, inside: Bool[np.ndarray, "rows columns"]) -> Map:
    """What raises the most likely pixels of each row and column of the box to `TIGHTNESS`.

    A box is tight: no row or column of it is without the object.
    """
    added = np.zeros_like(odds)
    for axis in (0, 1):
        highest = odds.max(axis=axis, keepdims=True)
        added += np.clip(TIGHTNESS - highest, 0, None) * np.exp(odds - highest)
    return np.where(inside, added, 0)


def _held(clicks: list[_Click], size: tuple[int, int], *, radius: float) -> np.ndarray:
    """1 around clicks on the object, -1 around those on background, 0 elsewhere.

    Between clicks that are near one another the nearer one counts.
    """
    held = np.zeros(size, dtype=np.int8)
    nearest = np.full(size, max(radius, 1.0), dtype=np.float32)
    for click in clicks:
        rows, columns = np.ogrid[: size[0], : size[1]]
        far = np.hypot(rows - click.y, columns - click.x)
        closer = (far < nearest) | (far == 0) | ((far == nearest) & (held == 0))
        held[closer] = 1 if click.is_object else -1
        nearest[closer] = far[closer]
    return held


def _hold(found: Mask, clicks: list[_Click], limits: _Box | None, *, radius: float) -> Mask:
    """The mask with the clicks' labels, and nothing else outside the box that no click reached."""
    if not found.any() and limits is not None and not clicks:
        found = found.copy()
        x0, y0, x1, y1 = (int(np.floor(limits[0])), int(np.floor(limits[1])), *map(_up, limits[2:]))
        found[y0:y1, x0:x1] = True
    held = _held(clicks, (found.shape[0], found.shape[1]), radius=radius)
    return (found | (held > 0)) & (held >= 0)


def _connected(found: Mask, clicks: list[_Click], given: Mask | None) -> Mask:
    """The parts of a mask that are clicked as object or touch the given mask.

    Color and features alone also find other objects that look the same.
    """
    _, parts = cv2.connectedComponents(found.astype(np.uint8))
    wanted = {int(parts[click.y, click.x]) for click in clicks if click.is_object}
    if given is not None:
        wanted |= set(np.unique(parts[given]).tolist())
    return np.isin(parts, list(wanted - {0}))


def _up(number: float) -> int:
    return int(np.ceil(number))
