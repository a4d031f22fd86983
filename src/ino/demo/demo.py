"""The whole story on generated video: learn without labels, carry masks, score, show.

Everything but the seconds follows from the seed. Generated video is no benchmark: it shows that the
parts work together, not how well they do on footage.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ino.data.davis import VideoSequence, read_davis
from ino.data.video import image_size, read_image
from ino.demo.synthetic import SyntheticClip, generate_clip, write_davis_layout, write_videos
from ino.models.load import DEFAULT, Backbone, load_backbone
from ino.propagate.features import FeatureExtractor
from ino.propagate.protocols import Protocol, get_protocol
from ino.propagate.tracker import Tracker
from ino.report import page
from ino.report.sections import (
    Method,
    Section,
    curve_section,
    feature_colors,
    feature_section,
    film_section,
    labelled_picture,
    score_table,
    sequence_strips,
    telling_sequences,
    write_report,
)
from ino.system import atomic_path, new_folder
from ino.tasks.davis import evaluate_davis
from ino.train.config import TrainConfig, load_recipe
from ino.train.log import LOG_NAME
from ino.train.loop import train

NUM_VIDEOS = 48
NUM_HELD_OUT = 6
NUM_FRAMES = 24
HELD_OUT_SEED = 1_000_000
"""Seeds of held-out clips start here, those of videos to learn from at 0."""

PROTOCOL = {"short_side": 192, "radius": 12, "num_context": 4}
"""Changes to ino-davis for small frames, the same for every row."""


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
    videos, held_out = work / "videos", work / "held-out"
    with _stage("generate video", seconds, console):
        first = seed * num_videos
        write_videos({f"{i:03d}": _clip(first + i) for i in range(num_videos)}, videos)
        first = HELD_OUT_SEED + seed * num_held_out
        write_davis_layout({f"clip-{i}": _clip(first + i) for i in range(num_held_out)}, held_out)
    with _stage("learn", seconds, console):
        config = _config(videos, seed=seed, num_steps=num_steps)
        train(config, out=work / "run")
    protocol = get_protocol("ino-davis", **PROTOCOL)
    untrained = f"random:{config.model.arch}/{config.model.patch_size}"
    rows = {
        "raw colour": ("the pixels of each 8x8 patch", load_backbone("color")),
        "untrained": ("the network with random weights", load_backbone(untrained, seed=seed)),
        "learned": ("the network after learning", load_backbone(work / "run")),
        "out of the box": (f"{DEFAULT}, which comes with ino", load_backbone(DEFAULT)),
    }
    methods = []
    for name, (about, backbone) in rows.items():
        with _stage(f"carry masks, {name}", seconds, console):
            folder = work / name.replace(" ", "-")
            tracker = Tracker(backbone, protocol=protocol)
            scores = evaluate_davis(
                held_out, out=folder, tracker=tracker, settings={"weights": name}
            )
            methods.append(Method(name, about, scores, folder / "predictions"))
    report = out / "report.html"
    with _stage("draw", seconds, console):
        sequences = read_davis(held_out)
        networks = {name: rows[name][1] for name in ("untrained", "learned", "out of the box")}
        sections = _sections(sequences, methods, networks, protocol, log=work / "run" / LOG_NAME)
        lead = _lead(num_videos, num_held_out, seconds["learn"])
        write_report(
            report, title="Learning from video without labels", lead=lead, sections=sections
        )
        _write_picture(out / "filmstrip.png", sequences, methods)
    _print(methods, seconds, console)
    return report


def _numbered_folder(out: Path) -> Path:
    """A new folder in `out`, so that an earlier demo's files are neither mixed in nor lost."""
    number = 1
    while (folder := out / f"files-{number}").exists():
        number += 1
    folder.mkdir()
    return folder


def _clip(seed: int) -> SyntheticClip:
    return generate_clip(seed, num_frames=NUM_FRAMES)


def _config(videos: Path, *, seed: int, num_steps: int | None) -> TrainConfig:
    config = load_recipe("demo")
    config.data.root = [str(videos)]
    config.run.seed = seed
    config.run.max_steps = num_steps or 0
    return config


@contextmanager
def _stage(name: str, seconds: dict[str, float], console: Console) -> Iterator[None]:
    console.print(f"{name} ...")
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def _lead(num_videos: int, num_held_out: int, seconds: float) -> list[str]:
    return [
        page.paragraph(
            f"For {seconds:.0f} s a small network learned from {num_videos} generated videos "
            "without labels. Then the masks of the first frames of "
            f"{num_held_out} other clips were carried through these clips by comparing features. "
            f"The last row is {DEFAULT}, which comes with ino and learned from footage, never from "
            "such clips."
        ),
        page.paragraph(
            "Generated video is no benchmark. The page shows that the parts work together; what "
            "learning is worth on footage is measured elsewhere.",
            soft=True,
        ),
    ]


def _sections(
    sequences: list[VideoSequence],
    methods: list[Method],
    networks: Mapping[str, Backbone],
    protocol: Protocol,
    *,
    log: Path,
) -> list[Section]:
    telling = next(iter(telling_sequences(methods)))
    shown = next(one for one in sequences if one.name == telling)
    last = len(shown.frames) - 1
    size = image_size(shown.frames[0])
    frames = [read_image(shown.frames[t], size=size) for t in (0, last // 2, last)]
    colours = {name: _colours(net, protocol, frames) for name, net in networks.items()}
    how = (
        "J&F in percent over the held-out clips: how well regions (J) and contours (F) meet the "
        "truth. The rows differ in the features that are compared and in nothing else."
    )
    return [
        Section("Scores", [page.paragraph(how), score_table(methods)]),
        Section("Masks that were carried", film_section(sequences, methods)),
        Section("Learning", curve_section(log)),
        Section(
            "Features as colours",
            [
                page.paragraph("Equal colours in a row mean similar features."),
                feature_section(frames, colours),
            ],
        ),
        Section(
            "Your own video",
            [
                page.code(
                    [
                        "ino segment VIDEO --mask FIRST_FRAME.png",
                        "ino train tiny --data.root FOLDER_OF_VIDEOS --out runs/mine",
                        "ino segment VIDEO --mask FIRST_FRAME.png --weights runs/mine "
                        "--protocol ino-near",
                    ]
                )
            ],
        ),
    ]


@torch.no_grad()
def _colours(backbone: Backbone, protocol: Protocol, frames: list[np.ndarray]) -> list[np.ndarray]:
    extract = FeatureExtractor(backbone, protocol=protocol, device="cpu")
    return feature_colors([extract(frame).numpy() for frame in frames])


def _write_picture(path: Path, sequences: list[VideoSequence], methods: list[Method]) -> None:
    """The picture of the README: the clip whose score by the best method is the median."""
    chosen = telling_sequences(methods)
    name = next((name for name, what in chosen.items() if what == "Median"), next(iter(chosen)))
    sequence = next(one for one in sequences if one.name == name)
    _, strips = sequence_strips(sequence, methods)
    with atomic_path(path) as temporary:
        cv2.imwrite(str(temporary), labelled_picture(strips)[..., ::-1])


def _print(methods: list[Method], seconds: Mapping[str, float], console: Console) -> None:
    table = Table("features", title="held-out clips, percent")
    for heading in ("J&F", "J", "F"):
        table.add_column(heading, justify="right")
    for method in methods:
        scores = method.scores
        numbers = (scores.jf_mean, scores.j_mean, scores.f_mean)
        table.add_row(method.name, *(f"{100 * number:.1f}" for number in numbers))
    console.print(table)
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    console.print(f"{spent}; {sum(seconds.values()):.0f} s in all")
