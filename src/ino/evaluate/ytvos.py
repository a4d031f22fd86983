"""J and F of predicted masks on a split of YouTube-VOS, for seen and unseen categories.

The rule of the benchmark: the scores of an object are averaged over the annotated frames after the
one that it enters with, then over the objects of seen and of unseen categories; the overall number
is the mean of the four. The split must hold annotations of later frames, as `train` and one's own
videos do; those of `valid` are known to its server only. Predictions are read from disk, a frame at
a time.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from jaxtyping import Float

from ino.data.label_png import read_raw_labels, resolve_void
from ino.data.ytvos import YtvosSplit, YtvosVideo, read_ytvos_split
from ino.data.ytvos_categories import SeenCategories, seen_categories
from ino.errors import ConfigError, DatasetError, MaskError
from ino.evaluate.frame_tasks import FrameTask, score_tasks, split_frames


@dataclass(frozen=True)
class YtvosObjectScore:
    """J and F of one object, means over its scored frames in 0..1.

    `category` is None where meta.json tells none, `is_seen` where nothing tells what is seen.
    """

    video: str
    object_id: int
    category: str | None
    is_seen: bool | None
    num_frames: int
    j: float
    f: float


@dataclass(frozen=True)
class YtvosScores:
    """The scores of all objects, by video and number; each mean is over objects, in 0..1.

    A mean is None where there is no object to take it over. `seen_source` says in words what told
    seen from unseen; None where nothing did.
    """

    objects: tuple[YtvosObjectScore, ...]
    seen_source: str | None

    @property
    def overall(self) -> float | None:
        """G, the mean of the four numbers below: the number that YouTube-VOS ranks by."""
        four = (self.j_seen, self.j_unseen, self.f_seen, self.f_unseen)
        numbers = [one for one in four if one is not None]
        return fmean(numbers) if len(numbers) == len(four) else None

    @property
    def j_seen(self) -> float | None:
        return _mean(one.j for one in self.objects if one.is_seen is True)

    @property
    def j_unseen(self) -> float | None:
        return _mean(one.j for one in self.objects if one.is_seen is False)

    @property
    def f_seen(self) -> float | None:
        return _mean(one.f for one in self.objects if one.is_seen is True)

    @property
    def f_unseen(self) -> float | None:
        return _mean(one.f for one in self.objects if one.is_seen is False)

    @property
    def j_all(self) -> float:
        return fmean(one.j for one in self.objects)

    @property
    def f_all(self) -> float:
        return fmean(one.f for one in self.objects)

    @property
    def jf_all(self) -> float:
        """The mean of J and F over all objects, seen or not."""
        return (self.j_all + self.f_all) / 2


def score_ytvos(
    predictions: Path,
    root: Path,
    *,
    split: str = "valid",
    videos: Sequence[str] | None = None,
    seen: Path | None = None,
    workers: int | None = None,
    on_video: Callable[[str], None] | None = None,
) -> YtvosScores:
    """J and F of every object of a split whose later frames are annotated.

    Args:
        predictions: folder with a folder a video, which holds an indexed PNG for each annotated
            frame; files beyond them are not read.
        root: the data set (see `ino.data.ytvos.read_ytvos_split`).
        split: name of its folder.
        videos: the ones to score; all where None.
        seen: file that says which categories are seen (see `ino.data.ytvos_categories`).
        workers: processes that share the frames, as for `score_davis`.
        on_video: called with the name of each video once it is scored, in order.

    Raises:
        ConfigError: `workers` is below 1.
        DatasetError: the split is incomplete, or no frame is annotated beyond those that objects
            enter with.
        MaskError: predictions are missing, broken, of another size than the annotation, or hold
            objects that the video does not have.
    """
    found = read_ytvos_split(root, split=split, videos=videos)
    return score_split(predictions, found, seen=seen, workers=workers, on_video=on_video)


def score_split(
    predictions: Path,
    split: YtvosSplit,
    *,
    seen: Path | None = None,
    workers: int | None = None,
    on_video: Callable[[str], None] | None = None,
) -> YtvosScores:
    """As `score_ytvos`, for a split that was read already."""
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is at least 1, but it is {workers}")
    scored = [video for video in split.videos if video.has_truth]
    if not scored:
        raise DatasetError(
            f"{split.folder / 'Annotations'} holds only the frames that objects enter with, so "
            "nothing can be scored here: hand the masks in to the server of YouTube-VOS"
        )
    _check_complete(scored, predictions)
    categories = seen_categories(
        split.folder.parent, videos=[video.name for video in scored], file=seen
    )
    tasks = [task for video in scored for task in _tasks(video, predictions / video.name)]
    objects: list[YtvosObjectScore] = []
    with closing(score_tasks(tasks, workers=workers)) as results:
        for video, (name, scores) in zip(scored, results, strict=True):
            objects += _means(video, scores, seen=categories)
            if on_video is not None:
                on_video(name)
    told = any(one.is_seen is not None for one in objects)
    return YtvosScores(tuple(objects), categories.source if categories and told else None)


def _scored_frames(video: YtvosVideo) -> list[str]:
    """The annotated frames after the first object's first one."""
    first = min(list(video.annotations).index(frame) for frame in video.entries.values())
    return list(video.annotations)[first + 1 :]


def _check_complete(videos: Iterable[YtvosVideo], predictions: Path) -> None:
    if not predictions.is_dir():
        raise MaskError(f"{predictions} is not a folder: give the folder of the predicted masks")
    for video in videos:
        folder, frames = predictions / video.name, _scored_frames(video)
        if missing := [frame for frame in frames if not (folder / f"{frame}.png").is_file()]:
            raise MaskError(
                f"{video.name} lacks the predictions of {len(missing)} of {len(frames)} frames, "
                f"the first of them {folder / missing[0]}.png: predict every annotated frame"
            )


def _tasks(video: YtvosVideo, folder: Path) -> list[FrameTask]:
    first = read_raw_labels(video.first_annotation)
    return split_frames(
        video.name,
        [(video.annotations[frame], folder / f"{frame}.png") for frame in _scored_frames(video)],
        objects=tuple(video.entries),
        is_binary=resolve_void(first) is not first,  # 0 and 255: one object, in all annotations
    )


def _means(
    video: YtvosVideo, scores: Float[np.ndarray, "2 objects frames"], *, seen: SeenCategories | None
) -> list[YtvosObjectScore]:
    """Of each object over the frames after the one that it enters with, if there are any."""
    order = {frame: position for position, frame in enumerate(video.annotations)}
    frames = [order[frame] for frame in _scored_frames(video)]
    means = []
    for label, entry in video.entries.items():
        after = [place for place, frame in enumerate(frames) if frame > order[entry]]
        if not after:
            continue  # it enters with the last annotated frame
        j, f = (fmean(values[after]) for values in scores[:, label - 1])
        category = video.categories.get(label)
        is_seen = None if seen is None or category is None else category in seen.names
        means.append(YtvosObjectScore(video.name, label, category, is_seen, len(after), j, f))
    return means


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return fmean(numbers) if numbers else None
