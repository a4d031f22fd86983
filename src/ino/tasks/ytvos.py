"""Evaluation on YouTube-VOS: propagation, a zip file for its server, and scores if possible.

The mask of an object is given in the first frame in which it appears and is propagated through all
frames. Masks are written for the frames that the server evaluates.

The rule of the benchmark: the scores of an object are averaged over the annotated frames after the
one that it enters with, then over the objects of seen and of unseen categories; the overall number
is the mean of the four. The split must hold annotations of later frames, as `train` and one's own
videos do; those of `valid` are known to its server only.
"""

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Unpack

import numpy as np
from jaxtyping import Float
from rich.console import Console

from ino.data.images import image_size
from ino.data.label_maps import read_raw_labels, resolve_void
from ino.data.ytvos import SeenCategories, YtvosSplit, YtvosVideo, read_ytvos_split, seen_categories
from ino.errors import DatasetError, MaskError
from ino.propagate.protocols import Protocol
from ino.propagate.tracker import Tracker
from ino.tables import fraction, percent, print_table, write_csv, write_json
from ino.tasks.results import (
    OnFrame,
    RunOptions,
    check_annotation_size,
    masks_are_whole,
    propagate_masks,
    propagated,
)
from ino.tasks.scoring import FramesToScore, score_sequences
from ino.tasks.submission import SubmissionReport, check_submission, pack_submission


@dataclass(frozen=True)
class YtvosResult:
    """The result of `evaluate_ytvos`.

    Attributes:
        num_videos: videos of the split that were asked for.
        num_skipped: videos among them that were finished before.
        report: what the check of the masks found.
        submission: path of submission.zip; None if only some videos of the split were asked for.
        scores: None if no frames are annotated after those in which objects enter.
    """

    num_videos: int
    num_skipped: int
    report: SubmissionReport
    submission: Path | None
    scores: "YtvosScores | None"


def evaluate_ytvos(
    root: Path | str,
    *,
    out: Path | str,
    tracker: Tracker,
    split: str = "valid",
    videos: Sequence[str] | None = None,
    seen: Path | str | None = None,
    **options: Unpack[RunOptions],
) -> YtvosResult:
    """Propagates the given masks of a split, packs, checks and scores the result.

    Writes `predictions/VIDEO/FRAME.png`, `finished.txt` with the videos that are done, and
    `settings.json`; `submission.zip` where all videos are done; CSV files and `scores.json` where
    frames are annotated in which no object enters. A run that was killed can be resumed.

    Args:
        root: the data set.
        out: folder of the results.
        tracker: propagates the masks.
        split: name of its folder.
        videos: those of the split to do; all where None.
        seen: file that says which categories are seen (see `ino.data.ytvos`).
        options: see `ino.tasks.results.RunOptions`.

    Raises:
        DatasetError: the data set is not as its layout says.
        ConfigError: see `ino.tasks.results.propagated`.
        OutputError: the same.
        MaskError: the written masks are not a valid submission, as something has changed them.
    """
    out = Path(out)
    found = read_ytvos_split(root, split=split, videos=videos)
    warning = ""
    if found.frames_folder == found.folder:
        whole = found.folder.with_name(f"{found.name}_all_frames")
        warning = (
            f"{whole} is not there: masks are propagated through the frames of {found.folder} alone"
        )
    with propagated(
        found.videos,
        out=out,
        task="ytvos",
        protocol=tracker.protocol,
        choices={"split": str(found.folder), "frames": str(found.frames_folder)},
        propagate=partial(propagate_video, tracker=tracker),
        is_whole=video_is_whole,
        warning=warning,
        **options,
    ) as (_, num_skipped):
        report, submission, scores = finish_split(found, out, protocol=tracker.protocol, seen=seen)
    return YtvosResult(len(found.videos), num_skipped, report, submission, scores)


def propagate_video(
    video: YtvosVideo,
    predictions: Path,
    *,
    tracker: Tracker,
    on_frame: OnFrame = lambda: None,
) -> None:
    """Propagates the given masks of a video, into `predictions`/VIDEO/FRAME.png for the frames
    that the server asks for.

    Raises:
        DatasetError: a mask is of another size than the frames.
        VideoError: a frame is broken or of another size than the first.
    """
    positions = {path.stem: position for position, path in enumerate(video.frames)}
    given = {positions[frame]: video.annotations[frame] for frame in video.entries.values()}
    for position, path in given.items():
        check_annotation_size(path, video.frames[position])
    folder, wanted = predictions / video.name, set(video.submitted)
    propagate_masks(video.frames, given, folder, tracker=tracker, wanted=wanted, on_frame=on_frame)
    for stale in folder.glob("*.png"):
        if stale.stem not in wanted and not stale.name.startswith("."):
            stale.unlink()  # of an earlier result that this one overwrites


def video_is_whole(video: YtvosVideo, predictions: Path) -> bool:
    """Whether the masks of all submitted frames exist and are intact PNG files."""
    size = image_size(video.first_annotation)
    return masks_are_whole(predictions / video.name, video.submitted, size=size)


def finish_split(
    split: YtvosSplit,
    out: Path,
    *,
    protocol: Protocol,
    seen: Path | str | None = None,
    workers: int | None = None,
) -> tuple[SubmissionReport, Path | None, "YtvosScores | None"]:
    """Packs, checks and scores the masks of a split that are all there.

    Args:
        split: that was propagated.
        out: folder of the results, with `predictions`.
        protocol: of the propagation.
        seen: as for `evaluate_ytvos`.
        workers: see `ino.tasks.scoring.score_sequences`.

    Returns:
        What the check found, submission.zip where the split is whole, scores where there is truth.

    Raises:
        MaskError: the masks cannot be handed in.
    """
    predictions = out / "predictions"
    submission = out / "submission.zip" if split.is_whole else None
    if submission is not None:
        asked = {video.name: video.submitted for video in split.videos}
        pack_submission(predictions, asked, submission)
    report = check_submission(submission or predictions, split)
    if report.num_faults:
        raise MaskError(
            f"{submission or predictions} cannot be handed in ({report.counts()}): "
            f"{'; '.join(report.lines())}"
        )
    scores = None
    if any(video.has_truth for video in split.videos):
        scores = score_ytvos(predictions, split, seen=seen, workers=workers)
        scores.write(out, split=split.name, protocol=protocol)
    return report, submission, scores


def score_ytvos(
    predictions: Path | str,
    split: YtvosSplit,
    *,
    seen: Path | str | None = None,
    workers: int | None = None,
) -> "YtvosScores":
    """J and F of every object of a split whose later frames are annotated.

    Args:
        predictions: folder with one folder per video, which holds an indexed PNG for each annotated
            frame; files beyond them are not read.
        split: see `ino.data.ytvos.read_ytvos_split`.
        seen: file that says which categories are seen (see `ino.data.ytvos`).
        workers: see `ino.tasks.scoring.score_sequences`.

    Raises:
        ConfigError: `workers` is below 1.
        DatasetError: no frame is annotated beyond those that objects enter with.
        MaskError: predictions are missing, broken, of another size than the annotation, or hold
            objects that the video does not have.
    """
    predictions, seen = Path(predictions), None if seen is None else Path(seen)
    scored = [video for video in split.videos if video.has_truth]
    if not scored:
        raise DatasetError(
            f"{split.folder / 'Annotations'} holds only the frames that objects enter with, so "
            "nothing can be scored here: hand the masks in to the server of YouTube-VOS"
        )
    categories = seen_categories(
        split.folder.parent, videos=[video.name for video in scored], file=seen
    )
    frames = [_frames_to_score(video, predictions / video.name) for video in scored]
    with closing(score_sequences(predictions, frames, workers=workers)) as results:
        objects = [
            one
            for video, scores in zip(scored, results, strict=True)
            for one in _object_scores(video, scores, seen=categories)
        ]
    is_told = any(one.is_seen is not None for one in objects)
    return YtvosScores(tuple(objects), categories.source if categories and is_told else None)


def _scored_frames(video: YtvosVideo) -> list[str]:
    """The annotated frames after the first object's first one."""
    first = min(list(video.annotations).index(frame) for frame in video.entries.values())
    return list(video.annotations)[first + 1 :]


def _frames_to_score(video: YtvosVideo, folder: Path) -> FramesToScore:
    first = read_raw_labels(video.first_annotation)
    return FramesToScore(
        video.name,
        pairs=tuple(
            (video.annotations[frame], folder / f"{frame}.png") for frame in _scored_frames(video)
        ),
        objects=tuple(video.entries),
        is_binary=resolve_void(first) is not first,  # 0 and 255: one object, in all annotations
    )


def _object_scores(
    video: YtvosVideo, scores: Float[np.ndarray, "2 objects frames"], *, seen: SeenCategories | None
) -> "list[YtvosObjectScore]":
    """Of each object over the frames after the one that it enters with, if there are any."""
    order = {frame: position for position, frame in enumerate(video.annotations)}
    frames = [order[frame] for frame in _scored_frames(video)]
    found = []
    for label, entry in video.entries.items():
        after = [place for place, frame in enumerate(frames) if frame > order[entry]]
        if not after:
            continue  # it enters with the last annotated frame
        j, f = (fmean(values[after]) for values in scores[:, label - 1])
        category = video.categories.get(label)
        is_seen = None if seen is None or category is None else category in seen.names
        found.append(YtvosObjectScore(video.name, label, category, is_seen, len(after), j, f))
    return found


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
    """The scores of all objects, by video and number.

    `seen_source` describes where the list of seen categories comes from; None if there is none.
    """

    objects: tuple[YtvosObjectScore, ...]
    seen_source: str | None

    def means(self) -> dict[str, float | None]:
        """The means over objects, 0..1, under the names of the benchmark; None for an empty group.

        `Overall` is the mean of the next four scores, by which YouTube-VOS ranks methods. `J-All`,
        `F-All` and `J&F-All` are means over all objects, seen or not.
        """
        four = {
            f"{score}-{group}": _mean(
                getattr(one, score.lower()) for one in self.objects if one.is_seen is is_seen
            )
            for score in ("J", "F")
            for group, is_seen in (("Seen", True), ("Unseen", False))
        }
        numbers = [value for value in four.values() if value is not None]
        j, f = fmean(one.j for one in self.objects), fmean(one.f for one in self.objects)
        return {
            "Overall": fmean(numbers) if len(numbers) == len(four) else None,
            **four,
            "J-All": j,
            "F-All": f,
            "J&F-All": (j + f) / 2,
        }

    def print_table(self, console: Console) -> None:
        """Prints one row per object, the means below, in percent, and what told seen from
        unseen."""
        rows = [["Video", "Object", "Category", "Seen", "Frames", "J&F", "J", "F"]]
        for one in self.objects:
            about = (one.video, str(one.object_id), one.category or "-", _SEEN[one.is_seen] or "-")
            numbers = map(percent, ((one.j + one.f) / 2, one.j, one.f))
            rows.append([*about, str(one.num_frames), *numbers])
        print_table(rows, console, num_texts=4)
        means = self.means()
        headings = [name.replace("-", "\n") for name in means]
        print_table([headings, [*map(percent, means.values())]], console, num_texts=0)
        console.print(self.describe_seen(), soft_wrap=True, highlight=False, markup=False)

    def describe_seen(self) -> str:
        """One line: what counts as seen, and why a number is missing."""
        if not any(one.category for one in self.objects):
            return "meta.json tells no categories, so there are means over all objects only"
        if self.seen_source is None:
            return (
                "nothing tells which categories are seen, so there are means over all objects "
                "only: --seen FILE or train/meta.json would"
            )
        groups = {True: "seen", False: "unseen", None: "without a category"}
        counts = [
            f"{count} {word}"
            for is_seen, word in groups.items()
            if (count := sum(one.is_seen is is_seen for one in self.objects)) or is_seen is not None
        ]
        text = f"seen: {self.seen_source}; objects: {', '.join(counts)}"
        return text if self.means()["Overall"] is not None else f"{text}; Overall needs both kinds"

    def write(self, folder: Path, *, split: str, protocol: Protocol | None) -> None:
        """Writes global_results-<split>.csv and per-object_results-<split>.csv, fractions with
        three decimals, and scores.json with all numbers in full precision.

        Args:
            folder: an existing folder; files of the same names are replaced.
            split: named in the file names.
            protocol: of the propagation, or None where it is not known.

        Raises:
            OutputError: a file cannot be written.
        """
        means = self.means()
        write_csv(
            folder / f"global_results-{split}.csv", [list(means), [*map(fraction, means.values())]]
        )
        rows = [["Video", "Object", "Category", "Seen", "Frames", "J-Mean", "F-Mean"]]
        for one in self.objects:
            about = (one.video, str(one.object_id), one.category or "", _SEEN[one.is_seen])
            rows.append([*about, str(one.num_frames), fraction(one.j), fraction(one.f)])
        write_csv(folder / f"per-object_results-{split}.csv", rows)
        content = {
            "protocol": None if protocol is None else protocol.as_dict(),
            "seen": self.seen_source,
            "global": means,
            "objects": [asdict(one) for one in self.objects],
        }
        write_json(folder / "scores.json", content)


_SEEN = {True: "yes", False: "no", None: ""}


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return fmean(numbers) if numbers else None
