"""The commands for YouTube-VOS: evaluate ytvos, check, and score --layout ytvos."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from ino.cli.tracking import describe, progress, tracker_of
from ino.errors import MaskError

if TYPE_CHECKING:
    from ino.tasks.submission import SubmissionReport

_LOG = logging.getLogger("ino")


def evaluate(options: Namespace) -> int:
    """Carries the given masks of a split, packs and checks them, and scores where it can."""
    chosen = options.evaluate.ytvos
    tracker, settings = tracker_of(chosen)

    from rich.console import Console

    from ino.data.ytvos import read_ytvos_split
    from ino.tasks.ytvos import evaluate_split

    split = read_ytvos_split(chosen.root, split=chosen.split, videos=chosen.videos)
    with progress("frames", sum(len(video.frames) for video in split.videos)) as advance:
        result = evaluate_split(
            split,
            out=chosen.out,
            tracker=tracker,
            seen=chosen.seen,
            settings=settings,
            resume=chosen.resume,
            overwrite=chosen.overwrite,
            on_frame=advance,
        )
    if result.scores is not None:
        result.scores.print_table(Console())
    print(describe(chosen, tracker.protocol))
    if result.num_skipped:
        print(f"{result.num_skipped} of {result.num_videos} videos were done before")
    if result.scores is None:
        print(
            f"no scores: {split.folder / 'Annotations'} holds only the frames that objects enter "
            "with; the server of YouTube-VOS scores submission.zip"
        )
    _print_report(result.report, result.submission or chosen.out / "predictions")
    if result.submission is None:
        print("no submission.zip: it needs all videos; go on with --resume and without --videos")
    print(f"results in {chosen.out}")
    return 0


def check(options: Namespace) -> int:
    """Checks a submission; whoever calls sees faults by the exit status."""
    chosen = options.check

    from ino.data.ytvos import read_ytvos_split
    from ino.tasks.submission import check_masks

    split = read_ytvos_split(chosen.root, split=chosen.split, videos=chosen.videos)
    with progress("videos", len(split.videos)) as advance:
        report = check_masks(chosen.predictions, split, on_video=lambda _: advance())
    _print_report(report, chosen.predictions)
    if report.num_faults:
        raise MaskError(
            f"{chosen.predictions} cannot be handed in ({report.counts()}): mend what is listed "
            "above and check again"
        )
    return 0


def score(options: Namespace) -> int:
    """Scores folders of masks of a split whose later frames are annotated."""
    chosen = options.score
    for name, default in (("year", 2017), ("resolution", "480p")):
        if chosen[name] != default:
            _LOG.warning("--%s has no meaning with --layout ytvos and is skipped", name)

    from rich.console import Console

    from ino.system import new_folder
    from ino.tasks.ytvos import score_ytvos

    split = chosen.split
    if split == "val" and not (chosen.root / split).is_dir():
        split = "valid"  # the option's default is the name of DAVIS
    scores = score_ytvos(
        chosen.predictions,
        chosen.root,
        split=split,
        videos=chosen.sequences,
        seen=chosen.seen,
        workers=chosen.workers,
    )
    scores.print_table(Console())
    if chosen.out is not None:
        new_folder(chosen.out, overwrite=True)
        scores.write(chosen.out, split=split, protocol=None)
        print(f"results in {chosen.out}")
    return 0


def _print_report(report: "SubmissionReport", checked: Path) -> None:
    for line in report.lines():
        print(line)
    print(f"checked {checked}: {report.counts()}")
