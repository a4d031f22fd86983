"""The commands `evaluate jhmdb` and `evaluate vip`."""

from collections.abc import Callable
from typing import Any

from jsonargparse import Namespace

from ino.cli.tracking import backbone_of, describe, progress


def evaluate_jhmdb(options: Namespace) -> int:
    """Carries the first joints of JHMDB's test videos and scores the result."""
    from ino.data.jhmdb import read_jhmdb
    from ino.tasks.jhmdb import JointMaps
    from ino.tasks.jhmdb import evaluate_jhmdb as evaluate

    chosen = options.evaluate.jhmdb
    maps = JointMaps(topk=chosen.joint_topk)
    return _evaluate(chosen, read=read_jhmdb, evaluate=evaluate, maps=maps)


def evaluate_vip(options: Namespace) -> int:
    """Carries the first part labels of a VIP split and scores the result."""
    from ino.data.vip import read_vip
    from ino.tasks.vip import evaluate_vip as evaluate

    return _evaluate(options.evaluate.vip, read=read_vip, evaluate=evaluate)


def _evaluate(
    chosen: Namespace,
    *,
    read: Callable[..., Any],
    evaluate: Callable[..., Any],
    **options: Any,
) -> int:
    backbone, protocol, settings = backbone_of(chosen)

    from rich.console import Console

    from ino.tasks.label_tracker import LabelTracker

    tracker = LabelTracker(
        backbone,
        protocol,
        device=settings["device"],
        precision=settings["precision"],
        input_size=chosen.input_size or None,
    )
    num_frames = sum(len(video.frames) for video in read(chosen.root, split=chosen.split))
    with progress("frames", num_frames) as advance:
        scores = evaluate(
            chosen.root,
            out=chosen.out,
            tracker=tracker,
            split=chosen.split,
            settings=settings | {"root": str(chosen.root)},
            resume=chosen.resume,
            overwrite=chosen.overwrite,
            on_frame=advance,
            **options,
        )
    scores.print_table(Console())
    size = f"{tracker.input_size}x{tracker.input_size}" if tracker.input_size else "by protocol"
    print(f"{describe(chosen, protocol)}\ninput {size}; results in {chosen.out}")
    return 0
