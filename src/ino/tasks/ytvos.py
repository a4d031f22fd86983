"""J and F of predicted masks on a split of YouTube-VOS, for seen and unseen categories.

The rule of the benchmark: the scores of an object are averaged over the annotated frames after the
one that it enters with, then over the objects of seen and of unseen categories; the overall number
is the mean of the four. The split must hold annotations of later frames, as `train` and one's own
videos do; those of `valid` are known to its server only. Predictions are read from disk, a frame at
a time.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ino import __version__
from ino.data.label_maps import (
    is_whole_png,
    read_labels,
    read_raw_labels,
    resolve_void,
    write_labels,
)
from ino.data.video import image_size
from ino.data.ytvos import SeenCategories, YtvosSplit, YtvosVideo, read_ytvos_split, seen_categories
from ino.errors import ConfigError, DatasetError, MaskError
from ino.propagate.protocols import Protocol
from ino.propagate.tracker import Tracker
from ino.system import folder_lock, write_text
from ino.tables import write_rows
from ino.tasks.results import (
    OnFrame,
    note_finished,
    open_folder,
    propagate_masks,
    read_finished,
    settings_text,
)
from ino.tasks.scoring import FrameTask, score_tasks, split_frames
from ino.tasks.submission import SubmissionReport, check_masks, pack_submission


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
        seen: file that says which categories are seen (see `ino.data.ytvos`).
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


# Scores on YouTube-VOS as a printed table, as CSV files and as JSON. Nothing is computed.


def global_scores(scores: YtvosScores) -> dict[str, float | None]:
    """The means over objects as fractions, under the names of the benchmark; None where there is no
    object to take them over.

    `J&F-All` and the two before it do not tell seen from unseen.
    """
    return {
        "Overall": scores.overall,
        "J-Seen": scores.j_seen,
        "J-Unseen": scores.j_unseen,
        "F-Seen": scores.f_seen,
        "F-Unseen": scores.f_unseen,
        "J-All": scores.j_all,
        "F-All": scores.f_all,
        "J&F-All": scores.jf_all,
    }


def print_scores(scores: YtvosScores, console: Console) -> None:
    """Prints a row an object, the means below, in percent, and what told seen from unseen."""
    rows = Table(box=SIMPLE_HEAD, collapse_padding=True)
    rows.add_column("Video")
    rows.add_column("Object", justify="right")
    rows.add_column("Category")
    for name in ("Seen", "Frames", "J&F", "J", "F"):
        rows.add_column(name, justify="right")
    for one in scores.objects:
        seen = {True: "yes", False: "no", None: "-"}[one.is_seen]
        values = ((one.j + one.f) / 2, one.j, one.f)
        about = (one.video, str(one.object_id), one.category or "-", seen, str(one.num_frames))
        rows.add_row(*about, *map(_percent, values))
    console.print(rows)
    means = Table(box=SIMPLE_HEAD, collapse_padding=True)
    totals = global_scores(scores)
    for name in totals:
        means.add_column(name.replace("-", "\n"), justify="right")
    means.add_row(*map(_percent, totals.values()))
    console.print(means)
    console.print(describe_seen(scores), soft_wrap=True, highlight=False)


def describe_seen(scores: YtvosScores) -> str:
    """One line: what counts as seen, and why a number is missing."""
    if not any(one.category for one in scores.objects):
        return "meta.json tells no categories, so there are means over all objects only"
    if scores.seen_source is None:
        return (
            "nothing tells which categories are seen, so there are means over all objects only: "
            "--seen FILE or train/meta.json would"
        )
    groups = {True: "seen", False: "unseen", None: "without a category"}
    counts = [
        f"{count} {word}"
        for is_seen, word in groups.items()
        if (count := sum(one.is_seen is is_seen for one in scores.objects)) or is_seen is not None
    ]
    text = f"seen: {scores.seen_source}; objects: {', '.join(counts)}"
    return text if scores.overall is not None else f"{text}; Overall needs both kinds"


def write_csv(scores: YtvosScores, folder: Path, *, split: str = "valid") -> tuple[Path, Path]:
    """Writes the means and the scores of objects, fractions with three decimals.

    A number that does not exist is left empty.

    Args:
        scores: of one split.
        folder: an existing folder; files of the same names are replaced.
        split: named in the file names.

    Returns:
        The paths of global_results-<split>.csv and per-object_results-<split>.csv.

    Raises:
        OutputError: a file cannot be written.
    """
    totals = global_scores(scores)
    whole = folder / f"global_results-{split}.csv"
    write_rows(whole, [list(totals), [_fraction(value) for value in totals.values()]])
    single = folder / f"per-object_results-{split}.csv"
    head = ["Video", "Object", "Category", "Seen", "Frames", "J-Mean", "F-Mean"]
    seen = {True: "yes", False: "no", None: ""}
    rows = [
        [
            *(one.video, str(one.object_id), one.category or "", seen[one.is_seen]),
            *(str(one.num_frames), _fraction(one.j), _fraction(one.f)),
        ]
        for one in scores.objects
    ]
    write_rows(single, [head, *rows])
    return whole, single


def write_json(scores: YtvosScores, path: Path, *, protocol: Mapping[str, Any] | None) -> None:
    """All scores in full precision, with the version of this software and how masks were made.

    Args:
        scores: of one split.
        path: where the file will be; an existing one is replaced.
        protocol: the settings of the propagation, or None where they are not known.

    Raises:
        OutputError: the file cannot be written.
    """
    content = {
        "software": {"name": "ino", "version": __version__},
        "protocol": None if protocol is None else dict(protocol),
        "seen": scores.seen_source,
        "global": global_scores(scores),
        "objects": [asdict(score) for score in scores.objects],
    }
    text = json.dumps(content, indent=2, default=str) + "\n"
    write_text(path, text)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _fraction(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


# YouTube-VOS from the data set to a checked submission, or to scores where the truth is at hand.
#
# Masks are given where objects first appear and carried through all frames; those of the frames
# that the server asks for are written. A run that was killed goes on where it stopped.


_LOG = logging.getLogger("ino")


@dataclass(frozen=True)
class YtvosResult:
    """What a run made.

    `scores` is None where later frames are not annotated; `submission` is None where only some
    videos were done, for the server takes all or nothing.
    """

    num_videos: int
    num_skipped: int
    report: SubmissionReport
    submission: Path | None
    scores: YtvosScores | None


def evaluate_ytvos(
    root: Path,
    *,
    out: Path,
    tracker: Tracker,
    split: str = "valid",
    videos: Sequence[str] | None = None,
    seen: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_frame: OnFrame = lambda: None,
) -> YtvosResult:
    """Carries the given masks of a split through its videos, packs, checks and scores the result.

    Writes `predictions/VIDEO/FRAME.png`, `finished.txt` with the videos that are done, and
    `settings.json`; `submission.zip` where all videos are done; CSV files and `scores.json` where
    frames are annotated in which no object enters.

    Args:
        root: the data set (see `ino.data.ytvos.read_ytvos_split`).
        out: folder of the results.
        tracker: carries the masks.
        split: name of the split's folder.
        videos: the ones to do; all where None.
        seen: file that says which categories are seen (see `ino.data.ytvos`).
        settings: stored beside the protocol, such as the name of the weights.
        resume: go on with what is in the folder, if it was made with the same settings.
        overwrite: accept a folder that holds something, and do all anew.
        on_frame: called after each frame, those of skipped videos too.

    Raises:
        DatasetError: the data set is not as its layout says.
        ConfigError: `resume` and `overwrite` are both given.
        OutputError: the folder holds something and neither is on, it was made with other settings,
            another process has it, or it cannot be written.
        MaskError: the masks cannot be handed in, because something changed them.
    """
    found = read_ytvos_split(root, split=split, videos=videos)
    return evaluate_split(
        found,
        out=out,
        tracker=tracker,
        seen=seen,
        settings=settings,
        resume=resume,
        overwrite=overwrite,
        on_frame=on_frame,
    )


def evaluate_split(
    split: YtvosSplit,
    *,
    out: Path,
    tracker: Tracker,
    seen: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_frame: OnFrame = lambda: None,
) -> YtvosResult:
    """As `evaluate_ytvos`, for a split that was read already."""
    if resume and overwrite:
        raise ConfigError("--resume keeps what is in the folder and --overwrite does not: give one")
    if split.frames_folder == split.folder:
        _LOG.warning(
            "%s is not there: masks are carried through the frames of %s alone",
            split.folder.with_name(f"{split.name}_all_frames"),
            split.folder,
        )
    chosen = {
        **(settings or {}),
        "split": str(split.folder),
        "frames": str(split.frames_folder),
    }
    text = settings_text(tracker.protocol, chosen)
    with folder_lock(out, command="ino evaluate ytvos"):
        open_folder(out, text, resume=resume, overwrite=overwrite)
        num_skipped = _propagate_all(split, out, tracker=tracker, on_frame=on_frame)
        report, submission, scores = finish_split(split, out, protocol=tracker.protocol, seen=seen)
    return YtvosResult(len(split.videos), num_skipped, report, submission, scores)


def finish_split(
    split: YtvosSplit,
    out: Path,
    *,
    protocol: Protocol,
    seen: Path | None = None,
    workers: int | None = None,
) -> tuple[SubmissionReport, Path | None, YtvosScores | None]:
    """Packs, checks and scores the masks of a split that are all there.

    Args:
        split: that was carried.
        out: folder of the results, with `predictions`.
        protocol: by which that was done.
        seen: as for `evaluate_ytvos`.
        workers: processes that score, as for `score_davis`.

    Returns:
        What the check found, submission.zip where the split is whole, scores where there is truth.

    Raises:
        MaskError: the masks cannot be handed in.
    """
    predictions = out / "predictions"
    submission = out / "submission.zip" if split.is_whole else None
    if submission is not None:
        pack_submission(predictions, split.videos, submission)
    report = check_masks(submission or predictions, split)
    if report.num_faults:
        raise MaskError(
            f"{submission or predictions} cannot be handed in ({report.counts()}): "
            f"{'; '.join(report.lines())}"
        )
    scores = None
    if any(video.has_truth for video in split.videos):
        scores = score_split(predictions, split, seen=seen, workers=workers)
        write_csv(scores, out, split=split.name)
        write_json(scores, out / "scores.json", protocol=protocol.as_dict())
    return report, submission, scores


def _propagate_all(split: YtvosSplit, out: Path, *, tracker: Tracker, on_frame: OnFrame) -> int:
    """Does the videos that are not done yet, and counts the others."""
    predictions = out / "predictions"
    predictions.mkdir(exist_ok=True)
    num_skipped = 0
    for video in split.videos:
        if video.name in read_finished(out) and video_is_whole(video, predictions / video.name):
            num_skipped += 1
            for _ in video.frames:
                on_frame()
            continue
        propagate_video(video, predictions / video.name, tracker=tracker, on_frame=on_frame)
        note_finished(out, video.name)
    return num_skipped


def video_is_whole(video: YtvosVideo, folder: Path) -> bool:
    """Whether all masks are there, and whole still."""
    size = image_size(video.first_annotation)
    return all(is_whole_png(folder / f"{frame}.png", size=size) for frame in video.submitted)


def propagate_video(
    video: YtvosVideo, folder: Path, *, tracker: Tracker, on_frame: OnFrame
) -> None:
    """Carries the masks of one video through it and writes the ones that are asked for."""
    folder.mkdir(exist_ok=True)
    size = image_size(video.frames[0])
    positions = {path.stem: position for position, path in enumerate(video.frames)}
    masks = {}
    for frame in sorted(set(video.entries.values()), key=positions.__getitem__):
        given = video.annotations[frame]
        if (found := image_size(given)) != size:
            raise DatasetError(
                f"{given} is {found[0]}x{found[1]} (height x width), but the frames of the video "
                f"are {size[0]}x{size[1]}: copy both from the same release"
            )
        masks[positions[frame]] = read_labels(given)
    wanted = {f"{frame}.png" for frame in video.submitted}
    with closing(propagate_masks(video.frames, masks, tracker=tracker)) as results:
        for path, labels in results:
            if f"{path.stem}.png" in wanted:
                write_labels(folder / f"{path.stem}.png", labels)
            on_frame()
    for stale in folder.glob("*.png"):
        if stale.name not in wanted and not stale.name.startswith("."):
            stale.unlink()  # of an earlier result that this one overwrites
