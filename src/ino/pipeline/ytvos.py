"""YouTube-VOS from the data set to a checked submission, or to scores where the truth is at hand.

Masks are given where objects first appear and carried through all frames; those of the frames that
the server asks for are written. A run that was killed goes on where it stopped.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ino.data.frame_folder import image_size
from ino.data.label_png import is_whole_png, read_labels, write_labels
from ino.data.ytvos import YtvosSplit, YtvosVideo, read_ytvos_split
from ino.errors import ConfigError, DatasetError, MaskError
from ino.evaluate.submission import check_masks
from ino.evaluate.submission_report import SubmissionReport
from ino.evaluate.ytvos import YtvosScores, score_split
from ino.evaluate.ytvos_tables import write_csv, write_json
from ino.pipeline.carrying import carry_masks
from ino.pipeline.resuming import note_finished, open_folder, read_finished
from ino.pipeline.settings import OnFrame, settings_text
from ino.pipeline.submission import pack_submission
from ino.propagate.protocols import Protocol
from ino.propagate.tracker import Tracker
from ino.train.folder_lock import folder_lock

_log = logging.getLogger(__name__)


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
        seen: file that says which categories are seen (see `ino.data.ytvos_categories`).
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
        _log.warning(
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
        write_json(scores, out / "scores.json", protocol=dataclasses.asdict(protocol))
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
        carry_video(video, predictions / video.name, tracker=tracker, on_frame=on_frame)
        note_finished(out, video.name)
    return num_skipped


def video_is_whole(video: YtvosVideo, folder: Path) -> bool:
    """Whether all masks are there, and whole still."""
    size = image_size(video.first_annotation)
    return all(is_whole_png(folder / f"{frame}.png", size=size) for frame in video.submitted)


def carry_video(video: YtvosVideo, folder: Path, *, tracker: Tracker, on_frame: OnFrame) -> None:
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
    with closing(carry_masks(video.frames, masks, tracker=tracker)) as results:
        for path, labels in results:
            if f"{path.stem}.png" in wanted:
                write_labels(folder / f"{path.stem}.png", labels)
            on_frame()
    for stale in folder.glob("*.png"):
        if stale.name not in wanted and not stale.name.startswith("."):
            stale.unlink()  # of an earlier result that this one overwrites
