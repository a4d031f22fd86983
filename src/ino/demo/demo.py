"""`ino demo`: trains on generated video, propagates masks, scores them and writes a report.

All results except running times depend on the seed only. Generated video is not a benchmark: it
shows that the parts work together, not how well they work on real video.
"""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.console import Console

from ino.data.davis import VideoSequence, read_davis
from ino.data.images import read_image
from ino.demo.synthetic import SyntheticClip, generate_clip, write_davis_layout, write_videos
from ino.models.backbone import Backbone
from ino.models.load import DEFAULT, load_backbone
from ino.propagate.features import FeatureExtractor
from ino.propagate.protocols import Protocol, get_protocol
from ino.propagate.tracker import Tracker
from ino.report.curves import Panel, plot_curves, read_history
from ino.report.feature_colors import feature_colors
from ino.report.page import write_page
from ino.report.strips import (
    Strip,
    StripGroup,
    draw_strips,
    evenly,
    mask_strips,
    save_picture,
)
from ino.system import new_folder
from ino.tables import print_table
from ino.tasks.davis import DavisScores, evaluate_davis
from ino.train.config import load_recipe, untrained_name
from ino.train.loop import train

NUM_VIDEOS = 48
NUM_HELD_OUT = 6
NUM_FRAMES = 24
NUM_SHOWN = 5
"""Frames of a film strip."""
HELD_OUT_SEED = 1_000_000
"""Seeds of held-out clips start here, those of videos to learn from at 0."""

SMALL_FRAMES = {"short_side": 192, "radius": 12, "num_context": 4}
"""Changes to ino-davis for small frames, the same for every row."""

PANELS = tuple(
    Panel(title, (name,), "nats")
    for name, title in (
        ("loss", "loss"),
        ("g2g", "global to global"),
        ("l2g", "local to global"),
        ("masked", "masked prediction"),
        ("affinity", "affinity"),
    )
)


@dataclass(frozen=True)
class Method:
    """One row of the comparison: its name, what it is, its scores, and the folder of its masks."""

    name: str
    about: str
    scores: DavisScores
    predictions: Path


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    num_steps: int | None = None,
    num_videos: int = NUM_VIDEOS,
    num_held_out: int = NUM_HELD_OUT,
    overwrite: bool = False,
) -> Path:
    """Runs the demo into a folder and gives the path of its report.

    Args:
        out: folder of all results; videos, run and masks go into a new folder in it.
        seed: of videos, weights and training.
        num_steps: of training; those of the recipe `demo` by default.
        num_videos: to learn from.
        num_held_out: clips that are scored.
        overwrite: accept a folder that holds something; an earlier demo's files stay beside.

    Raises:
        OutputError: the folder holds something and `overwrite` is off, or cannot be written.
    """
    console = Console()
    seconds: dict[str, float] = {}
    work = _numbered_folder(new_folder(out, overwrite=overwrite))
    videos, held_out, run = work / "videos", work / "held-out", work / "run"

    with _stage("generate video", seconds, console):
        write_videos(_clips("{:03d}", num_videos, first_seed=seed * num_videos), videos)
        first_seed = HELD_OUT_SEED + seed * num_held_out
        write_davis_layout(_clips("clip-{}", num_held_out, first_seed=first_seed), held_out)

    with _stage("learn", seconds, console):
        changes = {"data.root": [str(videos)], "run.seed": seed, "run.max_steps": num_steps or 0}
        config = load_recipe("demo", changes)
        train(config, out=run)

    protocol = get_protocol("ino-davis", **SMALL_FRAMES)
    random = untrained_name(config.model)
    rows = {
        "raw color": ("the pixels of each 8x8 patch", load_backbone("color")),
        "untrained": ("the network with random weights", load_backbone(random, seed=seed)),
        "learned": ("the network after learning", load_backbone(run)),
        "out of the box": (f"{DEFAULT}, which comes with ino", load_backbone(DEFAULT)),
    }
    methods = []
    for name, (about, backbone) in rows.items():
        with _stage(f"propagate masks, {name}", seconds, console):
            folder = work / name.replace(" ", "-")
            tracker = Tracker(backbone, protocol=protocol, warns=False)
            scores = evaluate_davis(
                held_out, out=folder, tracker=tracker, settings={"weights": name}
            )
            assert scores is not None
            methods.append(Method(name, about, scores, folder / "predictions"))

    with _stage("plot", seconds, console):
        networks = {name: rows[name][1] for name in ("untrained", "learned", "out of the box")}
        strips = film_strips(read_davis(held_out), methods)
        shown = read_davis(held_out, sequences=[next(iter(strips))])[0]
        write_page(
            out / "report.html",
            "demo.html",
            title="Learning from video without labels",
            seconds=seconds["learn"],
            num_videos=num_videos,
            num_held_out=num_held_out,
            default=DEFAULT,
            methods=methods,
            best=best_method(methods),
            strips=strips.values(),
            curves=plot_curves([read_history(run, label="learned")], panels=PANELS),
            features=_feature_strips(shown, networks, protocol),
        )
        median = list(strips.values())[len(strips) // 2]
        picture = draw_strips([dataclasses.replace(median, title="")])
        save_picture(picture, out / "filmstrip.png")
    _print(methods, seconds, console)
    return out / "report.html"


def best_method(methods: list[Method]) -> Method:
    """The one with the best J&F, the first of equals."""
    return max(methods, key=lambda method: method.scores.jf_mean)


def film_strips(sequences: list[VideoSequence], methods: list[Method]) -> dict[str, StripGroup]:
    """The best, the median and the worst sequence of the best method, by name, in this order."""
    names = list(best_method(methods).scores.by_sequence())
    places = {len(names) // 2: "Median", len(names) - 1: "Worst", 0: "Best"}
    by_name = {sequence.name: sequence for sequence in sequences}
    groups = {}
    for place, what in sorted(places.items()):
        sequence = by_name[names[place]]
        groups[sequence.name] = mask_strips(
            sequence,
            {method.name: method.predictions for method in methods},
            evenly(max(len(sequence.frames) - 1, 1), count=NUM_SHOWN),  # the last is not scored
            title=f"{what}: {sequence.name}",
            plain=True,
            remarks={
                method.name: f"{100 * method.scores.by_sequence()[sequence.name]:.1f}"
                for method in methods
            },
        )
    return groups


def _numbered_folder(out: Path) -> Path:
    """A new folder in `out`, so that an earlier demo's files are neither mixed in nor lost."""
    number = 1
    while (folder := out / f"files-{number}").exists():
        number += 1
    folder.mkdir()
    return folder


def _clips(name: str, num_clips: int, *, first_seed: int) -> dict[str, SyntheticClip]:
    return {
        name.format(i): generate_clip(first_seed + i, num_frames=NUM_FRAMES)
        for i in range(num_clips)
    }


@contextmanager
def _stage(name: str, seconds: dict[str, float], console: Console) -> Iterator[None]:
    console.print(f"{name} ...")
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


@torch.no_grad()
def _feature_strips(
    sequence: VideoSequence, networks: dict[str, Backbone], protocol: Protocol
) -> StripGroup:
    """The first, the middle and the last frame, and the features of each network as colors."""
    last = len(sequence.frames) - 1
    frames = [read_image(sequence.frames[t], size=None) for t in (0, last // 2, last)]
    strips = [Strip("Frame", frames)]
    for name, backbone in networks.items():
        extract = FeatureExtractor(backbone, protocol=protocol)
        colors = feature_colors([extract(frame).numpy() for frame in frames])
        strips.append(Strip(name, [_enlarged(*pair) for pair in zip(colors, frames, strict=True)]))
    return StripGroup("", [f"frame {t}" for t in (0, last // 2, last)], strips)


def _enlarged(image: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """The image in the size of the frame, its pixels as blocks."""
    return cv2.resize(image, frame.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def _print(methods: list[Method], seconds: dict[str, float], console: Console) -> None:
    rows = [["features", "J&F", "J", "F"]]
    for method in methods:
        scores = method.scores
        numbers = (scores.jf_mean, scores.j_mean, scores.f_mean)
        rows.append([method.name, *(f"{100 * number:.1f}" for number in numbers)])
    print_table(rows, console, caption="held-out clips, percent")
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    console.print(f"{spent}; {sum(seconds.values()):.0f} s in all")
