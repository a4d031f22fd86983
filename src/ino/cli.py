"""The command `ino`: a command is a typed function, which cyclopts makes options and help of.

A command checks, calls and prints; the work is done in the modules that it imports in its body, so
that help and wrong arguments are answered without loading them. The options of `ino train` and
`ino sweep` also hold every field of `ino.train.config`.
"""

import errno
import inspect
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO, Union, get_args, get_origin

from cyclopts import App, Group, Parameter
from cyclopts.exceptions import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnusedCliTokensError,
)
from cyclopts.help import ColumnSpec, DefaultFormatter, NameRenderer
from cyclopts.help.specs import DescriptionColumn
from rich.console import Console

from ino import __version__
from ino.errors import ConfigError, InoError, MaskError, StoppedError, VideoError

if TYPE_CHECKING:
    from ino.data.video_index import VideoIndex
    from ino.models.backbone import Backbone
    from ino.propagate.protocols import Protocol
    from ino.propagate.tracker import Tracker
    from ino.tasks.label_tracker import LabelTracker
    from ino.tasks.submission import SubmissionReport

_LOG = logging.getLogger("ino")

Network = Literal["student", "teacher"]
Overwrite = Annotated[bool, Parameter(help="Write into a folder that holds something.")]
Resume = Annotated[bool, Parameter(help="Keep what was made with the same settings; do the rest.")]
Seen = Annotated[
    Path | None,
    Parameter(
        help="YouTube-VOS: seen categories, one per line, or a meta.json.",
        show_default="train/meta.json",
    ),
]
OnlyThese = Annotated[list[str] | None, Parameter(help="Only these.")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Tracking:
    """The network and the protocol by which a command propagates.

    Attributes:
        weights: A run, an export, a checkpoint (ours, DINO, CRW, ...), ino_vitt8, color,
            random:MODEL or timm:MODEL[@FILE].
        network: Which network of a file with both (default: the one that its authors evaluate).
        protocol: ino-davis, ino-ytvos, dino, dinov3, crw, vfs, dul, mast, corrflow, contcorr,
            timecycle or ino-near.
        set: Replace fields of the protocol.
        device: auto, cpu, cuda or mps.
        precision: Precision of the network; bf16 is faster on devices that compute in it.
    """

    weights: str
    network: Network | None = None
    protocol: str | None = "ino-davis"
    set: Annotated[list[str] | None, Parameter(metavar="FIELD=VALUE...")] = None
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"

    def load(self) -> "tuple[Backbone, Protocol, dict[str, Any]]":
        """The backbone, the protocol, and what settings.json records about them.

        Raises:
            InoError: weights, protocol or device cannot be used.
        """
        from ino.propagate.protocols import get_protocol

        overrides = dict(_field_and_value(text) for text in self.set or [])
        if self.protocol is not None:  # mistakes are reported before the weights are read
            get_protocol(self.protocol, **overrides)

        from ino.models.backbone import choose_device
        from ino.models.load import load_backbone
        from ino.tasks.results import fingerprint

        backbone = load_backbone(self.weights, network=self.network)
        protocol = get_protocol(self.protocol or backbone.protocol, **overrides)
        if self.weights == "color" and "layer" in overrides:
            _LOG.warning("color has only one layer: --set layer changes nothing")
        settings = {
            "weights": self.weights,
            **fingerprint(self.weights),
            "network": self.network,
            "device": str(choose_device(self.device)),
            "precision": self.precision,
        }
        return backbone, protocol, settings

    def tracker(self) -> "tuple[Tracker, dict[str, Any]]":
        """A tracker of masks, and what settings.json records about it."""
        from ino.propagate.tracker import Tracker

        backbone, protocol, settings = self.load()
        where = {"device": settings["device"], "precision": self.precision}
        return Tracker(backbone, protocol=protocol, **where), settings

    def label_tracker(self, input_size: int) -> "tuple[LabelTracker, dict[str, Any]]":
        """The same for joints and parts; `input_size` is a side in pixels, 0 for the protocol's."""
        from ino.tasks.label_tracker import LabelTracker

        backbone, protocol, settings = self.load()
        where = {"device": settings["device"], "precision": self.precision}
        return LabelTracker(backbone, protocol, input_size=input_size or None, **where), settings

    def describe(self, protocol: "Protocol") -> str:
        """What results were made with, for the screen."""
        from ino.propagate.protocols import describe_protocol

        return f"weights {self.weights}; protocol {describe_protocol(protocol)}"


@dataclass(frozen=True, kw_only=True)
class YtvosTracking(Tracking):
    """The same, with the protocol for YouTube-VOS."""

    protocol: str | None = "ino-ytvos"


@dataclass(frozen=True, kw_only=True)
class SegmentTracking(Tracking):
    """The same, with the weights that come with ino and the protocol that suits the weights."""

    weights: str = "ino_vitt8"
    protocol: Annotated[str | None, Parameter(show_default="the one that suits the weights")] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DavisSplit:
    """Sequences of DAVIS, or of a data set in its layout.

    Attributes:
        year: 2016 or 2017.
        split: Name of the list of sequences.
        resolution: Folder of that name.
    """

    year: int = 2017
    split: str = "val"
    resolution: str = "480p"
    sequences: OnlyThese = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Work:
    """How much of an experiment is done, and where.

    Attributes:
        only: Only these rows.
        is_list: Show the table and how far each row is, and do nothing.
        jobs: Processes that share the rows.
        devices: Devices of the processes in turn, as in cuda:0,cuda:1 (default: all GPUs with
            several --jobs, else auto).
    """

    only: Annotated[list[str] | None, Parameter(name="--rows", metavar="LABEL...")] = None
    is_list: Annotated[bool, Parameter(name="--list", negative=())] = False
    jobs: int = 1
    devices: Annotated[str | None, Parameter(metavar="NAME,...")] = None


def _field_and_value(text: str) -> tuple[str, Any]:
    """A field of a protocol and its value from FIELD=VALUE."""
    name, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f"--set {text} must be FIELD=VALUE, as in --set short_side=240")
    return name, None if value.lower() == "none" else _yaml(value, where=f"--set {text}")


def demo(
    *,
    out: Path = Path("demo"),
    overwrite: Overwrite = False,
    seed: int = 0,
    steps: int | None = None,
) -> None:
    """Run the whole story on generated video: learn, propagate, score, report.

    Masks are propagated through clips that the network has not seen and scored beside raw color
    and an untrained network; report.html shows it all.

    Args:
        out: Folder of the results.
        seed: Seed of video, weights and training.
        steps: Training steps (default: as many as take about a minute).
    """
    from ino.demo.demo import run_demo

    report = run_demo(out, seed=seed, num_steps=steps, overwrite=overwrite)
    print(f"open {report}")


def train(
    recipe: str,
    /,
    *,
    out: Annotated[Path | None, Parameter(show_default="runs/RECIPE")] = None,
    resume: Annotated[bool, Parameter(help="Continue the run in the folder.")] = False,
    print_config: bool = False,
    fields: dict[str, Any],
) -> None:
    """Learn from unlabeled video by a recipe.

    Every field can be set, as in --data.root FOLDER --optim.lr 0.001.
    `ino train RECIPE --help` shows the recipe's own values.

    Args:
        recipe: Name of a recipe or path of a YAML file.
        out: Folder of the run.
        print_config: Print the whole configuration as YAML and end.
    """
    from ino.train.config import load_recipe, resolve, to_yaml

    config = load_recipe(recipe, fields)
    if print_config:
        print(to_yaml(resolve(config)), end="")
        return

    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from ino.pretrain import pretrain

    out = out or Path("runs") / Path(recipe).stem
    checkpoint = pretrain(config, out=out, resume=resume)
    rank_zero_only(print)(f"last checkpoint: {checkpoint}")


def index(
    roots: list[Path],
    /,
    *,
    index: Annotated[Path | None, Parameter(show_default="in the user's cache")] = None,
    broken: Path | None = None,
) -> None:
    """Say what videos there are: number, hours, sizes, frame rates, and which are broken.

    Only headers are read, each once; ino train uses what was found.

    Args:
        roots: Folders, videos or lists, as for --data.root of ino train.
        index: File that keeps what was found.
        broken: File to write the broken videos to, one per line.
    """
    from ino.data.video_index import (
        default_index,
        index_videos,
        wide_video_remark,
        write_faults,
    )

    file = index or default_index(roots)
    started = time.perf_counter()
    with _progress("headers", is_kept=False) as advance:
        found = index_videos(
            roots, file=file, on_found=lambda number: advance(0, total=number), on_header=advance
        )
    seconds = time.perf_counter() - started
    Console().print(_index_table(found))
    for reason in list(found.faults.values())[:3]:
        print(f"broken: {reason}")
    if len(found.faults) > 3:
        print(f"and {len(found.faults) - 3} more" + ("" if broken else "; see --broken FILE"))
    if broken:
        write_faults(found, broken)
    if remark := wide_video_remark(found):
        print(remark)
    headers = "header" if found.num_read == 1 else "headers"
    print(f"{found.num_read} {headers} read in {seconds:.1f} s; kept in {file}", flush=True)
    if len(found.faults) == len(found):
        raise VideoError(f"none of the videos can be used ({len(found)}): give others")


def _index_table(found: "VideoIndex") -> Any:
    """What an index holds, as a table of rich."""
    import numpy as np
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    is_usable = np.ones(len(found), bool)
    is_usable[list(found.faults)] = False
    seconds, sizes = found.seconds[is_usable], found.sizes[is_usable]
    table = Table("", "", "", box=SIMPLE_HEAD, show_header=False)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("videos", str(int(is_usable.sum())), "")
    table.add_row("broken", str(len(found.faults)), "")
    table.add_row("hours", f"{seconds.sum() / 3600:.2f}", "")
    if len(seconds):
        low, middle, high = np.percentile(seconds, [5, 50, 95])
        table.add_row("median seconds", f"{middle:.1f}", f"5% to 95%: {low:.1f} to {high:.1f}")
    for name, values in (
        ("width x height", [f"{width}x{height}" for height, width in sizes.tolist()]),
        ("frames per second", [f"{fps:.3g}" for fps in found.fps[is_usable]]),
    ):
        kinds, counts = np.unique(values, return_counts=True)
        for place in np.argsort(-counts, kind="stable")[:5]:
            table.add_row(name, str(kinds[place]), f"{100 * counts[place] / len(values):.0f}%")
            name = ""
        if len(kinds) > 5:
            table.add_row("", f"{len(kinds) - 5} others", "")
    return table


def sweep(
    file: str,
    /,
    *,
    out: Annotated[Path | None, Parameter(show_default="sweeps/FILE")] = None,
    work: Work = Work(),
    base: str | None = None,
    steps: int | None = None,
    seeds: Annotated[str | None, Parameter(metavar="N,N,...")] = None,
    davis: Path | None = None,
    year: int | None = None,
    split: str | None = None,
    sequences: OnlyThese = None,
    protocol: str | None = None,
    short_side: Annotated[str | None, Parameter(metavar="PIXELS,...")] = None,
    radius: int | None = None,
    network: Network | None = None,
    fields: dict[str, list[str]],
) -> int:
    """Train and score the rows of an experiment; print one table.

    If it is stopped, the same command continues where it was.
    Fields of all runs can be set as in ino train, such as --data.root FOLDER;
    several values of a field are rows of their own.

    Args:
        file: Name of an experiment or path of a YAML file.
        out: Folder of the results.
        base: Recipe that every run starts from.
        steps: Length of each run, with schedules of the same length.
        seeds: Seeds of each row.
        davis: Data set to score on.
        year: 2016 or 2017.
        split: Name of the list of sequences.
        protocol: How masks are propagated.
        short_side: Short side of the frames, one or several; scales the radius.
        radius: Radius of the window, in feature positions.
        network: Which network of each run.
    """
    from ino.experiments import read_experiment, run_experiment

    experiment = read_experiment(
        file,
        base=base,
        steps=steps,
        seeds=seeds,
        roots={"davis": davis},
        overrides={
            "year": year,
            "split": split,
            "sequences": sequences,
            "protocol": protocol,
            "short_side": short_side,
            "radius": radius,
            "network": network,
        },
        vary=fields,
    )
    return run_experiment(experiment, out=out or Path("sweeps") / Path(file).stem, **vars(work))


def plot(runs: list[Path], /, *, out: Path = Path("curves.png")) -> None:
    """Plot the curves of runs: losses, targets, features, rates, speed and scores.

    Args:
        runs: Folders of runs.
        out: PNG, PDF or SVG.
    """
    from ino.report.curves import plot_runs

    print(f"curves in {plot_runs(runs, out=out)}")


def _image_size(_: type, tokens: Sequence[Any]) -> tuple[int, int]:
    """Height and width in pixels of HEIGHTxWIDTH."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", tokens[0].value)
    if found is None:
        raise ValueError("give height and width in pixels, as in 480x848")
    return int(found[1]), int(found[2])


def export(
    run: Path,
    /,
    *,
    out: Path,
    network: Network = "student",
    layer: Annotated[
        int | Literal["all"] | None, Parameter(show_default="7, as ino-davis reads")
    ] = None,
    precision: Literal["fp32", "fp16"] = "fp32",
    image_size: Annotated[
        tuple[int, int] | None, Parameter(converter=_image_size, n_tokens=1, metavar="HxW")
    ] = None,
    onnx: bool = False,
    protocol: str = "ino-davis",
    license_name: Annotated[str, Parameter(name="--license")] = "",
    data: str = "",
    overwrite: Overwrite = False,
) -> None:
    """Write a network of a run as files that others load: ino, timm and hubs.

    The files are model.safetensors, config.json and README.md; nothing is uploaded.

    Args:
        run: Folder of a run, or a checkpoint.
        out: Folder to write.
        network: Which network of the run.
        layer: Last block, or all.
        precision: Precision of the stored weights.
        image_size: Size in pixels, such as 480x848, for which position embeddings are stored, so
            that timm's features equal ours there (default: the size they were trained for).
        onnx: Also write features.onnx and propagation.onnx for --image-size (extra onnx).
        protocol: The one that suits these weights, for the card and for ino segment.
        license_name: License of the weights, for the card.
        data: What the network learned from, in your words, for the card.
    """
    from rich.filesize import decimal

    from ino.export import export_run

    written = export_run(
        run,
        out=out,
        network=network,
        layer=layer,
        precision=precision,
        image_size=image_size,
        onnx=onnx,
        suits=protocol,
        license_name=license_name,
        data=data,
        overwrite=overwrite,
    )
    for path in written:
        print(f"{path} ({decimal(path.stat().st_size)})")


def segment(
    video: Path,
    /,
    *,
    mask: Annotated[list[str], Parameter(metavar="[FRAME=]PNG...")],
    resize_mask: bool = False,
    overlay: bool = True,
    correct: bool = False,
    both_ways: bool = False,
    check_every: int = 0,
    out: Annotated[Path | None, Parameter(show_default="segments/VIDEO")] = None,
    overwrite: Overwrite = False,
    tracking: SegmentTracking = SegmentTracking(),
) -> None:
    """Propagate masks through a video: indexed PNGs and an overlay video.

    Args:
        video: Video file or folder of images.
        mask: Indexed PNG of frame 0, FRAME=PNG for another frame, or a folder of FRAME.png.
        resize_mask: Fit masks to the size of the video.
        overlay: Write overlay.mp4.
        correct: Later masks also correct the objects of earlier ones.
        both_ways: Also propagate masks backward: the nearest mask decides, and holds all visible
            objects.
        check_every: Frames between two checks that warn of objects whose masks, propagated back,
            do not recover their reference (0: never).
        out: Folder of the results.
    """
    paths = mask_paths(mask)

    from ino.data.label_maps import read_labels

    masks = {number: read_labels(path) for number, path in paths.items()}
    tracker, settings = tracking.tracker()
    settings |= {
        "video": str(video),
        "masks": {number: str(path) for number, path in paths.items()},
        "resize_mask": resize_mask,
    }

    from ino.data.video import read_info
    from ino.tasks.segment import resize_masks, segment_video

    info = read_info(video)
    out = out or Path("segments") / _name_of(video)
    if resize_mask:
        masks = resize_masks(masks, size=(info.height, info.width))
    print(tracking.describe(tracker.protocol))
    with _progress("frames", info.num_frames) as advance:
        count = segment_video(
            video,
            masks,
            out=out,
            tracker=tracker,
            settings=settings,
            overlay=overlay,
            correct=correct,
            both_ways=both_ways,
            check_every=check_every,
            overwrite=overwrite,
            on_frame=advance,
        )
    print(f"{count} masks in {out / 'masks'}")


def _name_of(video: Path) -> str:
    """What a video is called: its file or folder, or the folder of a pattern of images."""
    from ino.data.video import is_pattern

    if is_pattern(video):
        return video.parent.resolve().name
    return video.resolve().stem if video.name in ("", "..") else video.stem


def mask_paths(given: Sequence[str]) -> dict[int, Path]:
    """Files of masks by frame number from `PNG`, `FRAME=PNG` and folders of `FRAME.png`.

    Raises:
        MaskError: something names no file, or two files are for one frame.
    """
    paths: dict[int, Path] = {}
    for frame, path in _frames_and_masks(given):
        if frame in paths:
            raise MaskError(f"{paths[frame]} and {path} are both for frame {frame}; give one")
        paths[frame] = path
    return dict(sorted(paths.items()))


def _frames_and_masks(given: Sequence[str]) -> Iterator[tuple[int, Path]]:
    for text in given:
        frame, separator, name = text.partition("=")
        if not text or (separator and not name):
            raise MaskError(f"--mask {text!r} names no file: give PNG, FRAME=PNG or a folder")
        if separator and frame.isdecimal():
            yield int(frame), Path(name)
        elif (folder := Path(text)).is_dir():
            numbered = sorted(path for path in folder.glob("*.png") if path.stem.isdecimal())
            if not numbered:
                raise MaskError(f"{folder} holds no masks named by frame numbers, as 00000.png")
            yield from ((int(path.stem), path) for path in numbered)
        else:
            yield 0, Path(text)


def davis(
    *,
    root: Path,
    chosen: DavisSplit = DavisSplit(),
    out: Path = Path("davis"),
    overwrite: Overwrite = False,
    resume: Resume = False,
    tracking: Tracking,
) -> None:
    """Propagate the first masks of DAVIS-2016 or DAVIS-2017 and score the result.

    Args:
        root: Folder that holds JPEGImages.
        out: Folder of the results.
    """
    loaded = tracking.tracker()

    from ino.data.davis import read_davis
    from ino.tasks.davis import evaluate_davis

    output = {"out": out, "overwrite": overwrite, "resume": resume}
    _evaluate(read_davis, evaluate_davis, root, tracking, loaded, output, **vars(chosen))


def ytvos(
    *,
    root: Path,
    split: str = "valid",
    videos: OnlyThese = None,
    seen: Seen = None,
    out: Path = Path("ytvos"),
    overwrite: Overwrite = False,
    resume: Resume = False,
    tracking: YtvosTracking,
) -> None:
    """Propagate the given masks of YouTube-VOS, pack and check submission.zip, score if possible.

    Scores need a split whose later frames are annotated.

    Args:
        root: Folder that holds the split.
        split: Name of the split's folder.
        out: Folder of the results.
    """
    tracker, settings = tracking.tracker()

    from ino.data.ytvos import read_ytvos_split
    from ino.tasks.ytvos import evaluate_split

    data = read_ytvos_split(root, split=split, videos=videos)
    with _progress("frames", sum(len(video.frames) for video in data.videos)) as advance:
        result = evaluate_split(
            data,
            out=out,
            tracker=tracker,
            seen=seen,
            settings=settings,
            resume=resume,
            overwrite=overwrite,
            on_frame=advance,
        )
    if result.scores is not None:
        result.scores.print_table(Console())
    print(tracking.describe(tracker.protocol))
    if result.num_skipped:
        print(f"{result.num_skipped} of {result.num_videos} videos were done before")
    if result.scores is None:
        print(
            f"no scores: {data.folder / 'Annotations'} holds only the frames that objects enter "
            "with; the server of YouTube-VOS scores submission.zip"
        )
    _print_report(result.report, result.submission or out / "predictions")
    if result.submission is None:
        print("no submission.zip: it needs all videos; continue with --resume, without --videos")
    print(f"results in {out}")


def jhmdb(
    *,
    root: Path,
    split: int = 1,
    joint_topk: int = 5,
    input_size: int = 320,
    out: Path = Path("jhmdb"),
    overwrite: Overwrite = False,
    resume: Resume = False,
    tracking: Tracking,
) -> None:
    """Propagate the first joints of JHMDB's test videos and score PCK@0.1 and @0.2.

    Args:
        root: Folder that holds Rename_Images.
        split: 1, 2 or 3.
        joint_topk: Positions that give a joint (CRW: 3).
        input_size: Side of the square input in pixels, 320 as in papers; 0: by protocol.
        out: Folder of the results.
    """
    loaded = tracking.label_tracker(input_size)

    from ino.data.jhmdb import read_jhmdb
    from ino.tasks.jhmdb import JointMaps, evaluate_jhmdb

    output = {"out": out, "overwrite": overwrite, "resume": resume}
    evaluate = partial(evaluate_jhmdb, maps=JointMaps(topk=joint_topk))
    _evaluate(read_jhmdb, evaluate, root, tracking, loaded, output, split=split)


def vip(
    *,
    root: Path,
    split: str = "val",
    input_size: int = 560,
    out: Path = Path("vip"),
    overwrite: Overwrite = False,
    resume: Resume = False,
    tracking: Tracking,
) -> None:
    """Propagate the first part labels of a VIP split and score the mean IoU.

    Args:
        root: Folder that holds Images.
        split: Name of the list of videos.
        input_size: Side of the square input in pixels, 560 as in papers; 0: by protocol.
        out: Folder of the results.
    """
    loaded = tracking.label_tracker(input_size)

    from ino.data.vip import read_vip
    from ino.tasks.vip import evaluate_vip

    output = {"out": out, "overwrite": overwrite, "resume": resume}
    _evaluate(read_vip, evaluate_vip, root, tracking, loaded, output, split=split)


def _evaluate(
    read: Callable[..., Sequence[Any]],
    evaluate: Callable[..., Any],
    root: Path,
    tracking: Tracking,
    loaded: tuple[Any, dict[str, Any]],
    output: Mapping[str, Any],
    **choice: Any,
) -> None:
    """Propagates and scores the chosen part of a data set, then shows the scores."""
    tracker, settings = loaded
    settings = settings | {"root": str(root)}
    num_frames = sum(len(video.frames) for video in read(root, **choice))
    with _progress("frames", num_frames) as advance:
        scores = evaluate(
            root, tracker=tracker, settings=settings, on_frame=advance, **choice, **output
        )
    scores.print_table(Console())
    size = getattr(tracker, "input_size", None)
    print(tracking.describe(tracker.protocol) + (f"; input {size}x{size}" if size else ""))
    print(f"results in {output['out']}")


def suite(
    file: str,
    /,
    *,
    out: Annotated[Path | None, Parameter(show_default="suites/FILE")] = None,
    work: Work = Work(),
    weights_dir: Path | None = None,
    davis: Path | None = None,
    ytvos: Path | None = None,
    jhmdb: Path | None = None,
    vip: Path | None = None,
    sequences: OnlyThese = None,
    short_side: int | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
) -> int:
    """Propagate and score the rows of an experiment; print one table with published numbers.

    A row has weights, a protocol and a data set. If it is stopped, the same command continues
    where it was.

    Args:
        file: Name of an experiment or path of a YAML file.
        out: Folder of the results.
        weights_dir: Folder of the files that rows name.
        davis: Root of DAVIS, for rows with data: davis.
        ytvos: Root of YouTube-VOS, for rows with data: ytvos.
        jhmdb: Root of JHMDB, for rows with data: jhmdb.
        vip: Root of VIP, for rows with data: vip.
        short_side: Short side of the frames of every row without square input; scales the radius.
        precision: Precision of every row.
    """
    from ino.experiments import read_experiment, run_experiment

    experiment = read_experiment(
        file,
        weights_dir=weights_dir,
        roots={"davis": davis, "ytvos": ytvos, "jhmdb": jhmdb, "vip": vip},
        overrides={"sequences": sequences, "short_side": short_side, "precision": precision},
    )
    out = out or Path("suites") / Path(file).stem
    return run_experiment(experiment, out=out, may_train=False, **vars(work))


def compare(
    a: Path,
    b: Path,
    /,
    *,
    root: Annotated[Path | None, Parameter(show_default="as A was evaluated")] = None,
    out: Annotated[Path | None, Parameter(show_default="A_and_B")] = None,
    overwrite: Overwrite = False,
    num: int = 3,
    frames: int = 5,
) -> None:
    """Compare two evaluations on DAVIS sequence by sequence.

    Pictures of the largest differences, a scatter plot of J&F and a table, as PNGs and one page.

    Args:
        a: Folder of an evaluation, or of a row of a suite.
        b: Another one.
        root: Folder that holds JPEGImages.
        out: Folder of the results.
        num: Sequences shown that are best for A, and for B.
        frames: Frames shown of each sequence.
    """
    from ino.report.comparison import compare_evaluations
    from ino.tables import print_table

    out = out or Path(f"{a.name}_and_{b.name}")
    comparison = compare_evaluations(
        a, b, out=out, root=root, num_shown=num, num_frames=frames, overwrite=overwrite
    )
    print_table(comparison.lines(), Console(), caption="percent")
    for note in comparison.notes():
        print(note)
    print(f"look at {out / 'comparison.html'}")


def strips(
    results: list[str],
    /,
    *,
    root: Path,
    out: Path = Path("strips.png"),
    sequences: OnlyThese = None,
    frames: list[int] | None = None,
    num_frames: int = 5,
    truth: bool = True,
    split: str = "valid",
    resolution: str = "480p",
    height: int = 180,
) -> None:
    """Plot the masks of methods side by side, as in Figures 3 and 4 of the paper.

    Rows are sequences and methods, columns are frames of DAVIS or YouTube-VOS.

    Args:
        results: Folders of evaluations or of masks SEQUENCE/FRAME.png; NAME=FOLDER names one.
        root: Folder of the data set.
        out: PNG or JPEG.
        frames: Numbers of the frames to show (default: --num-frames of them, evenly).
        num_frames: Frames per sequence.
        truth: Begin with a row of the annotations.
        split: YouTube-VOS: name of the split's folder.
        resolution: DAVIS: folder of that name.
        height: Height of each frame in pixels.
    """
    from ino.report.strips import plot_strips

    path = plot_strips(
        results,
        root=root,
        out=out,
        sequences=sequences,
        frames=frames,
        num_frames=num_frames,
        truth=truth,
        split=split,
        resolution=resolution,
        height=height,
    )
    print(f"strips in {path}")


def score(
    predictions: Path,
    /,
    *,
    root: Path,
    layout: Literal["davis", "ytvos"] = "davis",
    chosen: DavisSplit = DavisSplit(),
    seen: Seen = None,
    out: Path | None = None,
    workers: int | None = None,
) -> None:
    """Score masks made by anything: PREDICTIONS/SEQUENCE/FRAME.png.

    With --layout ytvos, --split is the name of a folder (default: valid).

    Args:
        predictions: Folder with one folder per sequence.
        root: Folder that holds JPEGImages; with ytvos, the split.
        layout: Layout of the data set.
        out: Folder for CSV and JSON (default: none).
        workers: Processes (default: as many as the number of frames is worth).
    """
    from ino.system import new_folder

    split = chosen.split
    if layout == "davis":
        from ino.tasks.davis import score_davis

        scores = score_davis(predictions, root, workers=workers, **vars(chosen))
    else:
        from ino.tasks.ytvos import score_ytvos

        for name in ("year", "resolution"):
            if getattr(chosen, name) != getattr(DavisSplit, name):
                _LOG.warning("--%s has no meaning with --layout ytvos and is skipped", name)
        if split == DavisSplit.split and not (root / split).is_dir():
            split = "valid"
        scores = score_ytvos(
            predictions, root, split=split, videos=chosen.sequences, seen=seen, workers=workers
        )
    scores.print_table(Console())
    if out is not None:
        new_folder(out, overwrite=True)
        scores.write(out, split=split, protocol=None)
        print(f"results in {out}")


def check(
    predictions: Path, /, *, root: Path, split: str = "valid", videos: OnlyThese = None
) -> None:
    """Check a submission to YouTube-VOS.

    Every mask that is asked for must be there, nothing else, and each must be an indexed PNG of the
    right size and objects. The exit status is 2 if there are faults.

    Args:
        predictions: Zip file, or folder with one folder per video.
        root: Folder that holds the split.
        split: Name of the split's folder.
    """
    from ino.data.ytvos import read_ytvos_split
    from ino.tasks.submission import check_masks

    data = read_ytvos_split(root, split=split, videos=videos)
    with _progress("videos", len(data.videos)) as advance:
        report = check_masks(predictions, data, on_video=lambda _: advance())
    _print_report(report, predictions)
    if report.num_faults:
        raise MaskError(
            f"{predictions} cannot be handed in ({report.counts()}): mend what is listed above and "
            "check again"
        )


def _print_report(report: "SubmissionReport", checked: Path) -> None:
    for line in report.lines():
        print(line)
    print(f"checked {checked}: {report.counts()}")


@contextmanager
def _progress(
    what: str, total: int | None = None, *, is_kept: bool = True
) -> Iterator[Callable[..., None]]:
    """Shows a bar; call what it yields after each of the `total`, 0 or None where it is not known.

    What ends before the first of them leaves no bar above its message, nor does one not `is_kept`.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (what, MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    hidden = not is_kept and not console.is_interactive  # its end would write an empty line
    with Progress(*columns, console=console, transient=not is_kept, disable=hidden) as bar:
        task = bar.add_task(what, total=total or None)

        def advance(num: int = 1, *, total: int | None = None) -> None:
            bar.update(task, advance=num, total=total)

        try:
            yield advance
        except BaseException:
            if not bar.tasks[task].completed:
                bar.live.transient = True
                bar.live.stop()
                bar.disable = True  # or its own end writes an empty line to what is no terminal
            raise


def build_app(arguments: Sequence[str] = ()) -> App:
    """The command line for these arguments: only a chosen command gets the fields of a run.

    Raises:
        ConfigError: `train` is followed by a recipe that cannot be used.
    """
    app = App(
        name="ino",
        help="Dense features from unlabeled video, and masks propagated through a video.",
        version=__version__,
        help_format="markdown",
        default_parameter=Parameter(
            allow_repeating=True,
            consume_multiple=(1, None),
            json_list=False,
            negative_iterable=(),
        ),
    )
    evaluate = App(name="evaluate", help="Propagate the given masks of a data set and score them.")
    for function in (davis, ytvos, jhmdb, vip):
        evaluate.command(function)
    app.command(evaluate)
    for function in (demo, index, plot, export, segment, compare, strips, score, check):
        app.command(function)
    experiments = f"Experiments: {_names_in('experiment_files')}."
    evaluate.command(suite, help_epilogue=experiments)
    recipes = f"Recipes: {_names_in('recipes')}."
    command, recipe = [*arguments, "-", "-"][:2]
    for function, words in ((train, recipes), (sweep, experiments)):
        if command == function.__name__:
            named = recipe if command == "train" and not recipe.startswith("-") else None
            function = _with_fields(function, named)
        app.command(function, help_format="plaintext", help_epilogue=words)
    return app


def _names_in(folder: str) -> str:
    """The names of the YAML files that come with ino."""
    return ", ".join(sorted(path.stem for path in (Path(__file__).parent / folder).glob("*.yaml")))


def _with_fields(command: Callable[..., Any], recipe: str | None) -> Callable[..., Any]:
    """The command with an option for each field of a training run in place of `fields`.

    Args:
        command: `train`, or `sweep`, where a field may have several values.
        recipe: whose values the help shows; None for those of `TrainConfig`.
    """
    from ino.train.config import TrainConfig, flatten, load_recipe, resolve, to_dict

    config = flatten(to_dict(resolve(load_recipe(recipe) if recipe else TrainConfig())))
    options = dict(_field_options(config, is_sweep=command is sweep))

    @wraps(command)
    def with_fields(*arguments: Any, **given: Any) -> Any:
        fields: dict[str, Any] = {}
        for name, option in options.items():
            if (value := given.pop(option.name, None)) is None:
                continue
            if command is train and isinstance(value, list):
                value = _items(value)
            elif command is train and name not in config:
                value = _yaml(value, where=f"--{name}")
            if name.endswith("+"):
                name = name.removesuffix("+")
                value = [*fields.get(name, config[name]), *value]
            fields |= flatten({name: value})
        return command(*arguments, **given, fields=fields)

    own = list(inspect.signature(command).parameters.values())[:-1]
    with_fields.__signature__ = inspect.Signature([*own, *options.values()])  # type: ignore
    return with_fields


def _field_options(
    config: Mapping[str, Any], *, is_sweep: bool
) -> Iterator[tuple[str, inspect.Parameter]]:
    """The fields by name; of one run, hidden, also whole sections and NAME+, which adds to a list.

    Args:
        config: the value of each field.
        is_sweep: each field may have several values, and none is shown.
    """
    from ino.train.config import config_fields

    sections = dict.fromkeys(name.partition(".")[0] for name in config if "." in name)
    for section in sections if not is_sweep else ():
        yield section, _option(section, str, show=False)
    for name, field in config_fields().items():
        words = {"metavar": _metavar(field.type), "help": field.description}
        kind = list[str] if is_sweep or "..." in words["metavar"] else str
        if not is_sweep and config[name] not in ("", []):
            value = config[name]
            words["show_default"] = value if isinstance(value, str) else json.dumps(value)
        yield name, _option(name, kind, **words)
        if not is_sweep and kind is not str:
            yield f"{name}+", _option(f"{name}+", kind, show=False)


def _option(name: str, kind: Any, **words: Any) -> inspect.Parameter:
    """The option --NAME of a field, also by the name that earlier versions had."""
    from ino.train.config import RENAMED

    names = [f"--{name}", *(f"--{old}" for old, new in RENAMED.items() if new == name)]
    group = _section(name.partition(".")[0]) if "." in name else None
    hint = Annotated[kind | None, Parameter(name=names, group=group, **words)]
    key = "field_" + re.sub(r"\W", "_", name.replace("+", "_more"))
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)


@cache
def _section(name: str) -> Group:
    """The part of the help with the fields of a section, whose long names stay whole."""
    names = ColumnSpec(renderer=NameRenderer(max_width=42), style="cyclopts.name", max_width=42)
    return Group(name, help_formatter=DefaultFormatter(column_specs=(names, DescriptionColumn)))


def _metavar(kind: Any) -> str:
    """How a value is written in the help: INT, paper|released, TEXT... for a list."""
    origin, members = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "|".join(map(str, members))
    if origin is Annotated:
        return _metavar(members[0])
    if origin in (Union, UnionType):
        return "|".join(_metavar(one) for one in members if one is not NoneType)
    names = {int: "INT", float: "FLOAT", bool: "true|false", list: "TEXT...", tuple: "LOW HIGH..."}
    return names.get(origin or kind, "TEXT")


def _items(words: list[str]) -> list[Any]:
    """The words, or the items of one list of YAML."""
    if len(words) == 1 and words[0].startswith("["):
        with suppress(ConfigError):
            return _yaml(words[0])
    return words


def _yaml(text: str, *, where: str = "it") -> Any:
    """The value of a text.

    Raises:
        ConfigError: it is no YAML.
    """
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{where[:100]} has no value of YAML: give a number, a word, true, false, null, "
            "[a, b] or {key: value}"
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    0; 1 if rows of an experiment failed or nobody reads the output any more; 2 for what the user
    can mend; 130 if stopped by Ctrl-C; 75 if training was saved and stopped by SIGTERM or SIGUSR1,
    to be resumed.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _show_log_and_warnings()
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except (InoError, StoppedError) as error:
        _say(error)
        return error.status if isinstance(error, StoppedError) else 2
    except KeyboardInterrupt:
        _say(f"stopped{_how_to_resume(arguments)}")
        return 130
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _is_closed(sys.stdout):
            return 1
        if error.errno in (None, errno.EBADF, errno.EFAULT):  # of a library; a fault of ours
            raise
        named = "" if error.filename is None else f" {str(error.filename)[:200]!r}"
        _say(
            f"cannot read or write{named} ({error.strerror}): check the path, its permissions and "
            "the space on the disk"
        )
    except Exception as error:
        if not _lacks_memory(error):
            raise
        _say(
            "the memory does not hold this work: take smaller frames (--set short_side=...), a "
            "smaller batch or a device with more memory"
        )
    return 2


def _run(arguments: list[str]) -> int:
    """Parses, calls and returns the exit status.

    Raises:
        ConfigError: the arguments do not fit the command; says where its help is.
        Exception: of the command.
    """
    app = build_app(arguments)
    try:
        command, bound, _ = app.parse_args(arguments, print_error=False, exit_on_error=False)
        if command.__name__ == "help_print" and not {"-h", "--help"} & set(arguments):
            chain, apps, _ = app.parse_commands(arguments)
            raise UnknownCommandError(app=apps[-1], command_chain=chain, unused_tokens=[])
    except CycloptsError as error:
        chosen = " ".join(["ino", *(error.command_chain or ())])
        raise ConfigError(f"{_reason(error, chosen)} ({chosen} --help shows more)") from error
    return command(*bound.args, **bound.kwargs) or 0


def _reason(error: CycloptsError, chosen: str) -> str:
    """What is wrong with the arguments of the chosen command, in one sentence."""
    if isinstance(error, UnknownCommandError):
        known = ", ".join(name for name in error.app or () if not name.startswith("-"))
        given = "".join(f", not {token!r}" for token in (error.unused_tokens or ())[:1])
        return f"{chosen} needs one of {known}{given}"
    if isinstance(error, UnusedCliTokensError):
        return f"{chosen} does not take {' '.join(error.unused_tokens or ())[:80]!r}"
    error.verbose = False
    text, argument = str(error).removesuffix("."), error.argument
    if isinstance(error, MissingArgumentError) and argument is not None:
        if argument.tokens or error.keyword:
            return f"{error.keyword or argument.name} needs a value"
        _, question, better = text.partition(" Did you mean ")
        return f"{chosen} needs {argument.name}{';' + question.lower() + better if better else ''}"
    if isinstance(error, CoercionError) and error.msg is None and error.token and argument:
        kinds = _metavar(argument.hint).replace("|", " or ").replace("INT", "a whole number")
        return f"{error.token.keyword or argument.name} takes {kinds}, not {error.token.value!r}"
    return text


def _say(words: object) -> None:
    print(f"ino: {' '.join(str(words).split())}", file=sys.stderr)


def _how_to_resume(arguments: Sequence[str]) -> str:
    """What follows `stopped` for commands that keep what is done."""
    command = " ".join(arguments[:2])
    if command.startswith("sweep ") or command == "evaluate suite":
        return "; what is done is kept: start the same command again to continue"
    if command.startswith("evaluate "):
        return "; what is done is kept: continue with --resume"
    return ""


def _is_closed(stream: TextIO) -> bool:
    """Whether a pipe has lost its reader; then the stream leads nowhere, for a quiet end."""
    try:
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return True
    return False


def _lacks_memory(error: Exception) -> bool:
    """Whether it is one of the ways in which Python, OpenCV and torch say so."""
    words = str(error).lower()
    signs = ("out of memory", "insufficient memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(sign in words for sign in signs)


def _show_log_and_warnings() -> None:
    """Shows warnings of ino as lines like those of errors; other libraries keep their own ways."""
    if not _LOG.handlers:
        handler = _Screen()
        handler.setFormatter(logging.Formatter("ino: %(message)s"))
        _LOG.addHandler(handler)
        _LOG.propagate = False
    warnings.showwarning = _show_warning


class _Screen(logging.StreamHandler):
    """Writes to the stderr of the moment: a progress bar puts its own in place, above the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any
) -> None:
    """A warning of ino as a line like those of errors, others with the line that they are from."""
    if category is UserWarning and Path(__file__).parent in Path(filename).parents:
        _LOG.warning("%s", message)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))
