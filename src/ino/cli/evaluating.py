"""The commands that end in scores: evaluate and score."""

from jsonargparse import Namespace

from ino.cli.tracking import describe, progress, tracker_of


def evaluate_davis(options: Namespace) -> int:
    """Propagates the first masks of a DAVIS split and scores the result."""
    chosen = options.evaluate.davis
    tracker, settings = tracker_of(chosen)

    from rich.console import Console

    from ino.data.davis import read_davis
    from ino.tasks.davis import evaluate_davis as evaluate

    choice = {name: chosen[name] for name in ("year", "split", "resolution", "sequences")}
    num_frames = sum(len(one.frames) for one in read_davis(chosen.root, **choice))
    with progress("frames", num_frames) as advance:
        scores = evaluate(
            chosen.root,
            out=chosen.out,
            tracker=tracker,
            settings=settings,
            resume=chosen.resume,
            overwrite=chosen.overwrite,
            on_frame=advance,
            **choice,
        )
    scores.print_table(Console())
    print(f"{describe(chosen, tracker.protocol)}\nresults in {chosen.out}")
    return 0


def score(options: Namespace) -> int:
    """Scores folders of masks."""
    chosen = options.score

    from rich.console import Console

    from ino.system import new_folder
    from ino.tasks.davis import score_davis

    choice = {name: chosen[name] for name in ("year", "split", "resolution", "sequences")}
    scores = score_davis(chosen.predictions, chosen.root, workers=chosen.workers, **choice)
    scores.print_table(Console())
    if chosen.out is not None:
        new_folder(chosen.out, overwrite=True)
        scores.write(chosen.out, split=chosen.split, protocol=None)
        print(f"results in {chosen.out}")
    return 0
