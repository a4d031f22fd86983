"""The commands `evaluate jhmdb` and `evaluate vip`."""

from typing import Any

from jsonargparse import Namespace

from ino.cli.tracking import backbone_of, progress


def evaluate_jhmdb(options: Namespace) -> int:
    """Carries the first joints of JHMDB's test videos and scores the result."""
    chosen = options.evaluate.jhmdb
    carrier, settings = _carrier_of(chosen)

    from rich.console import Console

    from ino.data.jhmdb import read_jhmdb
    from ino.evaluate.dense_tables import print_pose
    from ino.pipeline.jhmdb import evaluate_jhmdb as evaluate
    from ino.propagate.joint_maps import JointMaps

    num_frames = sum(len(video.frames) for video in read_jhmdb(chosen.root, split=chosen.split))
    with progress("frames", num_frames) as advance:
        scores = evaluate(
            chosen.root,
            out=chosen.out,
            carrier=carrier,
            split=chosen.split,
            maps=JointMaps(topk=chosen.joint_topk),
            settings=settings,
            overwrite=chosen.overwrite,
            on_frame=advance,
        )
    print_pose(scores, Console())
    _print_origin(chosen, carrier)
    return 0


def evaluate_vip(options: Namespace) -> int:
    """Carries the first part labels of a VIP split and scores the result."""
    chosen = options.evaluate.vip
    carrier, settings = _carrier_of(chosen)

    from rich.console import Console

    from ino.data.vip import read_vip
    from ino.evaluate.dense_tables import print_parts
    from ino.pipeline.vip import evaluate_vip as evaluate

    num_frames = sum(len(video.frames) for video in read_vip(chosen.root, split=chosen.split))
    with progress("frames", num_frames) as advance:
        scores = evaluate(
            chosen.root,
            out=chosen.out,
            carrier=carrier,
            split=chosen.split,
            settings=settings,
            overwrite=chosen.overwrite,
            on_frame=advance,
        )
    print_parts(scores, Console())
    _print_origin(chosen, carrier)
    return 0


def _carrier_of(chosen: Namespace) -> tuple[Any, dict[str, Any]]:
    backbone, protocol, settings = backbone_of(chosen)

    from ino.pipeline.soft_labels import Carrier

    carrier = Carrier(
        backbone,
        protocol,
        device=settings["device"],
        precision=settings["precision"],
        input_size=chosen.input_size or None,
    )
    return carrier, settings | {"root": str(chosen.root)}


def _print_origin(chosen: Namespace, carrier: Any) -> None:
    fields = ", ".join(f"{name} {value}" for name, value in vars(carrier.protocol).items())
    size = f"{carrier.input_size}x{carrier.input_size}" if carrier.input_size else "by protocol"
    print(f"weights {chosen.weights}; input {size}; protocol {fields}\nresults in {chosen.out}")
