"""The command `ino`: a command is a typed function, which cyclopts makes options and help of.

A command checks, calls and prints; the work is done in the modules that it imports in its body, so
that help and wrong arguments are answered without loading them. The options of `ino train` and
`ino sweep` also hold every field of `ino.train.config`.
"""

import difflib
import errno
import inspect
import io
import json
import logging
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from cyclopts import App, Parameter
from cyclopts.exceptions import CycloptsError, UnknownCommandError, UnusedCliTokensError
from cyclopts.help import ColumnSpec, DefaultFormatter, NameRenderer
from cyclopts.help.specs import DescriptionColumn
from rich.console import Console

from ino import __version__
from ino.errors import ConfigError, InoError, MaskError, StoppedError, VideoError
from ino.progress import progress
from ino.tables import print_table, shown

if TYPE_CHECKING:
    from ino.adaptation import Adaptation

ADAPTED = ".adapted"
"""In the folder of a result, that of the weights that `ino segment --adapt` made."""

MOST_ADAPTED = 5
"""Videos that `ino segment --adapt` looks at, of many."""

_LOG = logging.getLogger("ino")

T = TypeVar("T")

Network = Literal["student", "teacher"]
Precision = Literal["fp32", "bf16"]
Quality = Literal["fast", "default", "best"]
Out = Annotated[Path, Parameter(help="Folder of the results.")]
Overwrite = Annotated[bool, Parameter(help="Write into a folder that holds something.")]
OnlyThese = Annotated[list[str] | None, Parameter(help="Only these.")]
Seen = Annotated[
    Path | None,
    Parameter(
        help="YouTube-VOS: seen categories, one per line, or a meta.json.",
        show_default="train/meta.json",
    ),
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Tracking:
    """The network and the protocol by which a command propagates.

    Attributes:
        weights: A run, an export, a checkpoint (ours, DINO, CRW, ...), ino_vitt8, a public name
            (see ino weights), color, random:MODEL or timm:MODEL[@FILE].
        network: Which network of a file with both (default: the one that its authors evaluate).
        protocol: ino-davis, ino-ytvos, dino, dinov3, crw, vfs, dul, mast, corrflow, contcorr,
            timecycle, ino-near, ino-fast, ino-default, ino-best, rsp, cropmae, rvm or diff-zvos,
            or one of cropmae-vip, rvm-vip and diff-zvos-mose.
        set: Replace fields of the protocol.
        device: auto, cpu, cuda or mps.
        precision: Precision of the network; bf16 is faster on devices that compute in it.
    """

    weights: str
    network: Network | None = None
    protocol: str | None = "ino-davis"
    set: Annotated[list[str] | None, Parameter(metavar="FIELD=VALUE...")] = None
    device: str = "auto"
    precision: Precision | None = "fp32"

    def load(self, kind: Callable[..., T]) -> tuple[T, dict[str, Any]]:
        """A tracker of this kind, and what settings.json records about it.

        Raises:
            InoError: weights, protocol, device or an option cannot be used.
        """
        from ino.models.backbone import choose_device
        from ino.models.load import load_backbone
        from ino.propagate.protocols import get_protocol
        from ino.tasks.results import fingerprint

        fields = dict(map(_field_and_value, self.set or []))
        if self.protocol is not None:  # mistakes are reported before the weights are read
            get_protocol(self.protocol, **fields)
        backbone = load_backbone(self.weights, network=self.network)
        protocol = self.choose(backbone.protocol, fields)
        if self.weights == "color" and "layer" in fields:
            _LOG.warning("color has only one layer: --set layer changes nothing")
        where = {"device": str(choose_device(self.device)), "precision": self.precision}
        settings = {"weights": self.weights, **fingerprint(self.weights), "network": self.network}
        return kind(backbone, protocol=protocol, **where), settings | where

    def choose(self, suits: str, fields: dict[str, Any]) -> Any:
        """The protocol, for weights that the protocol `suits` suits, with these fields replaced."""
        from ino.propagate.protocols import get_protocol

        return get_protocol(self.protocol or suits, **fields)

    def print_choices(self, tracker: Any) -> None:
        """Says by what network and protocol a tracker propagates."""
        from ino.propagate.protocols import describe_protocol

        size = getattr(tracker, "input_size", None)
        input_size = f"; input {size}x{size}" if size else ""
        _say(f"weights {self.weights}; protocol {describe_protocol(tracker.protocol)}{input_size}")


@dataclass(frozen=True, kw_only=True)
class YtvosTracking(Tracking):
    """The same, with the protocol for YouTube-VOS."""

    protocol: str | None = "ino-ytvos"


@dataclass(frozen=True, kw_only=True)
class SegmentTracking(Tracking):
    """The same, with the weights that come with ino and the protocol that suits the weights."""

    weights: str = "ino_vitt8"
    protocol: Annotated[str | None, Parameter(show_default="the one that suits the weights")] = None
    quality: Annotated[
        Quality | None,
        Parameter(
            help="In place of a protocol: fast for a quick look, best for the best masks.",
            show_default="default",
        ),
    ] = None
    precision: Annotated[
        Precision | None, Parameter(show_default="bf16 where it is quick; with --protocol fp32")
    ] = None

    def load(self, kind: Callable[..., T]) -> tuple[T, dict[str, Any]]:
        """See `Tracking.load`.

        Raises:
            ConfigError: both a protocol and a quality are given.
        """
        from ino.propagate.tracker import usual_precision

        self.check_choice()
        quality = None if self.protocol else self.quality or "default"
        precision = self.precision or usual_precision(quality, self.device)
        tracker, settings = super(SegmentTracking, replace(self, precision=precision)).load(kind)
        return tracker, settings | {"quality": quality}

    def check_choice(self) -> None:
        """Raises a ConfigError if both a protocol and a quality are given."""
        if self.protocol is not None and self.quality is not None:
            raise ConfigError(
                f"both --protocol {self.protocol} and --quality {self.quality} are given: a "
                "protocol is exact, and a quality chooses one; give either"
            )

    def choose(self, suits: str, fields: dict[str, Any]) -> Any:
        """See `Tracking.choose`."""
        from ino.propagate.protocols import protocol_for

        if self.protocol is not None:
            return super().choose(suits, fields)
        return protocol_for(suits, self.quality or "default", **fields)

    def adapt(
        self,
        videos: Sequence[Path],
        *,
        masks: Sequence[str] | None,
        out: Path,
        steps: int = 0,
        overwrite: bool = False,
        on_progress: Callable[[str, int], None] = lambda what, total: None,
    ) -> "Adaptation":
        """See `ino.adapt`, for the protocol that this chooses."""
        from ino.adaptation import adapt
        from ino.models.load import load_backbone

        fields = dict(map(_field_and_value, self.set or []))
        suits = load_backbone(self.weights, network=self.network).protocol
        with (
            progress("learning", is_kept=False) as learned,
            progress("judging", is_kept=False) as judged,
        ):
            bars = {"learning": learned, "judging": judged}

            def advance(what: str, total: int) -> None:
                bars[what](1, total=total)
                on_progress(what, total)

            return adapt(
                videos,
                weights=self.weights,
                out=out,
                masks=masks,
                protocol=self.choose(suits, fields),
                network=self.network,
                steps=steps,
                device=self.device,
                overwrite=overwrite,
                on_progress=advance,
            )

    def print_choices(self, tracker: Any) -> None:
        """Also says that there are better weights than the small ones that come with ino."""
        super().print_choices(tracker)
        if self.weights == "ino_vitt8":
            _say(
                "these weights come with ino and are small; public ones, which are fetched once, "
                "score higher and take longer: see ino weights"
            )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Results:
    """Where the results of an evaluation go.

    Attributes:
        out: Folder of the results.
        overwrite: Write into a folder that holds something.
        resume: Keep what was made with the same settings; do the rest.
    """

    out: Annotated[Path | None, Parameter(show_default="the command's name")] = None
    overwrite: bool = False
    resume: bool = False


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


def _say(text: object) -> None:
    """Prints one line."""
    print(shown(text), flush=True)


def _field_and_value(text: str) -> tuple[str, Any]:
    """A field of a protocol and its value from FIELD=VALUE."""
    from ino.schema import yaml_value

    name, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f"--set {text} must be FIELD=VALUE, as in --set short_side=240")
    return name, None if value.lower() == "none" else yaml_value(value)


def demo(
    *,
    out: Out = Path("demo"),
    overwrite: Overwrite = False,
    seed: int = 0,
    steps: int | None = None,
) -> None:
    """Run the whole story on generated video: learn, propagate, score, report.

    Masks are propagated through clips that the network has not seen and scored beside raw color
    and an untrained network; report.html shows it all.

    Args:
        seed: Seed of video, weights and training.
        steps: Training steps (default: as many as take about a minute).
    """
    from ino.demo.demo import run_demo

    report = run_demo(out, seed=seed, num_steps=steps, overwrite=overwrite)
    _say(f"open {report}")


def train(
    recipe: str,
    /,
    *,
    out: Annotated[Path | None, Parameter(show_default="runs/RECIPE")] = None,
    resume: Annotated[bool, Parameter(help="Continue the run in the folder.")] = False,
    print_config: Annotated[bool, Parameter(negative=())] = False,
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

    from ino.pretraining import pretrain

    out = out or Path("runs") / Path(recipe).stem
    checkpoint = pretrain(config, out=out, resume=resume)
    rank_zero_only(_say)(f"last checkpoint: {checkpoint}")
    rank_zero_only(_say)(f"next: ino segment VIDEO --mask FIRST.png --weights {out}")


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
    from ino.data import video_index

    file = index or video_index.default_index(roots)
    started = time.perf_counter()
    with progress("headers", is_kept=False) as advance:
        found = video_index.index_videos(
            roots, file=file, on_progress=lambda num_more, total: advance(num_more, total=total)
        )
    seconds = time.perf_counter() - started
    print_table(video_index.summarize(found), Console())
    for reason in list(found.faults.values())[:3]:
        _say(f"broken: {reason}")
    if len(found.faults) > 3:
        _say(f"and {len(found.faults) - 3} more" + ("" if broken else "; see --broken FILE"))
    if broken:
        video_index.write_faults(found, broken)
    if remark := video_index.wide_video_remark(found):
        _say(remark)
    headers = "header" if found.num_read == 1 else "headers"
    _say(f"{found.num_read} {headers} read in {seconds:.1f} s; kept in {file}")
    if len(found.faults) == len(found):
        raise VideoError(f"none of the videos can be used ({len(found)}): give others")


def weights() -> None:
    """List the weights that have names: those that come with ino, and public ones.

    Public weights are fetched through timm when they are first used, and kept; after that no
    network is needed.
    """
    from ino.models.load import PUBLIC, bundled_folder, list_weights, load_backbone

    headings = ["--weights", "trained on", "license", "here", "million parameters", "protocol"]
    rows = [[*headings, "DAVIS-2017\nJ&F, published"]]
    for name in list_weights():
        backbone = load_backbone(name)
        num_parameters = sum(tensor.numel() for tensor in backbone.parameters())
        size, folder = f"{num_parameters / 1e6:.0f}", bundled_folder(name)
        assert folder is not None
        own = json.loads((folder / "config.json").read_text(encoding="utf-8"))["ino"]
        rows.append([name, "video", own["license"], "in ino", size, backbone.protocol, "-"])
    for name, one in PUBLIC.items():
        score = "-" if one.published is None else f"{one.published:.1f}"
        size, here = str(one.parameters), "yes" if one.is_here else "no"
        rows.append([name, one.trained_on, one.license, here, size, one.reading.protocol, score])
    print_table(rows, Console(), num_texts=4)


def sweep(
    file: str,
    /,
    *,
    out: Annotated[Out | None, Parameter(show_default="sweeps/FILE")] = None,
    work: Work = Work(),
    base: str | None = None,
    steps: int | None = None,
    seeds: Annotated[str | None, Parameter(metavar="N,N,...")] = None,
    curve: Annotated[str | None, Parameter(metavar="N,N,...")] = None,
    judge: Annotated[list[str] | None, Parameter(metavar="VIDEO...")] = None,
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
        base: Recipe that every run starts from.
        steps: Length of each run, with schedules of the same length.
        seeds: Seeds of each row.
        curve: Steps after which each run is scored as well; plots the learning curve.
        judge: Videos without labels on which J&F is predicted as well.
        davis: Data set to score on.
        year: 2016 or 2017.
        split: Name of the list of sequences.
        protocol: How masks are propagated.
        short_side: Short side of the frames, one or several; scales the radius.
        radius: Radius of the window, in feature positions.
        network: Which network of each run.
    """
    from ino.experiments.rows import read_experiment
    from ino.experiments.run import run_experiment

    experiment = read_experiment(
        file,
        base=base,
        steps=steps,
        seeds=seeds,
        curve=curve,
        judge=judge,
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

    _say(f"curves in {plot_runs(runs, out=out)}")


def _image_size(_: Any, tokens: Sequence[Any]) -> tuple[int, int]:
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
    layer: int | Literal["all"] | None = None,
    precision: Literal["fp32", "fp16"] = "fp32",
    image_size: Annotated[
        tuple[int, int] | None, Parameter(converter=_image_size, n_tokens=1, metavar="HxW")
    ] = None,
    onnx: bool = False,
    protocol: str = "ino-davis",
    license_name: Annotated[str, Parameter(name="--license", show_default=False)] = "",
    data: Annotated[str, Parameter(show_default=False)] = "",
    overwrite: Overwrite = False,
) -> None:
    """Write a network of a run as files that others load: ino, timm and hubs.

    The files are model.safetensors, config.json and README.md; nothing is uploaded.

    Args:
        run: Folder of a run, or a checkpoint.
        out: Folder to write.
        network: Which network of the run.
        layer: Last block, or all (default: 7, as ino-davis reads, or the last if there are fewer).
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
        _say(f"{path} ({decimal(path.stat().st_size)})")


def segment(
    videos: Annotated[list[str], Parameter(metavar="VIDEO...")],
    /,
    *,
    mask: Annotated[list[str], Parameter(metavar="[FRAME=]MASK...")],
    resize_mask: bool = False,
    start: Annotated[str | None, Parameter(name="--from", metavar="FRAME")] = None,
    end: Annotated[str | None, Parameter(name="--to", metavar="FRAME")] = None,
    region: Annotated[str | None, Parameter(metavar="X0,Y0,X1,Y1")] = None,
    overlay: bool = True,
    fps: float | None = None,
    value_range: Annotated[tuple[float, float] | None, Parameter(metavar="LOW HIGH")] = None,
    correct: bool = False,
    both_ways: bool = False,
    check_every: int = 0,
    adapt: bool = False,
    save: Annotated[list[str] | None, Parameter(metavar="FORMAT...")] = None,
    jobs: int = 1,
    out: Annotated[Out | None, Parameter(show_default="segments/VIDEO")] = None,
    overwrite: Annotated[
        bool, Parameter(help="Start anew, also in a folder that holds something.")
    ] = False,
    tracking: SegmentTracking = SegmentTracking(),
) -> int:
    """Propagate masks through videos: indexed PNGs and an overlay video.

    What was stopped continues when the same command is started again, and what is finished stays.
    Several videos may be shared by several processes and machines: start the same command in each.

    Args:
        videos: Video file or folder of images; several, a folder of videos, or a text file with one
            per line; or a stream: rtsp://..., http://..., udp://... or /dev/video0.
        mask: PNG, npy, npz, TIFF, labelme, COCO, YouTube-VIS, CVAT or Label Studio; a folder of
            FRAME.png; or typed: box=x0,y0,x1,y1, polygon=x,y,x,y,x,y,... or points=x,y,-x,y (-x
            where the object is not), NAME:box=... for a name. FRAME= before it: its number from 0,
            or its name in a folder of images. For several videos, a folder of VIDEO.png or
            VIDEO/FRAME.png, or a file that names them.
        resize_mask: Fit masks to the size of the video.
        start: First frame that is computed: its number from 0, its name in a folder of images, or a
            time such as 1:23.5.
        end: Last frame that is computed, in the same way.
        region: Compute only this part of each frame, in pixels.
        overlay: Write overlay.mp4.
        fps: Frames per second of the overlay (default: those of the video).
        value_range: In images of more than 8 bits, the values that become 0 and 255 (default: what
            the values of all frames span).
        correct: Has no effect any more: all masks are references, also for earlier frames.
        both_ways: Has no effect any more: several masks, or one of a later frame, are always
            propagated forward and backward.
        check_every: Frames between two checks that warn of objects whose masks, propagated back,
            do not recover their reference (0: never).
        adapt: First fit the weights to the footage, see ino adapt.
        save: Also write these formats, see ino convert --help.
        jobs: Processes that share the videos and the cores.
    """
    from ino.data.video import is_video, video_name
    from ino.propagate.tracker import Tracker
    from ino.tasks.batch import Choices, Job, find_jobs, segment_job, segment_many, stop_on_signal
    from ino.tasks.convert import check_formats
    from ino.tasks.live import is_stream, segment_stream
    from ino.tasks.segment import is_finished, suggestions

    check_formats(save or [])
    if jobs < 1:
        raise ConfigError(f"--jobs is {jobs}; it must be 1 or more")
    choices = Choices(
        resize=resize_mask,
        overlay=overlay,
        fps=fps,
        value_range=value_range,
        start=start,
        end=end,
        region=None if region is None else _four_numbers(region),
        correct=correct,
        both_ways=both_ways,
        check_every=check_every,
        save=tuple(save or ()),
        overwrite=overwrite,
    )
    if any(map(is_stream, videos)):
        plain = Choices(resize=resize_mask, overlay=overlay, overwrite=overwrite)
        if len(videos) > 1 or choices != plain or adapt:
            raise ConfigError(
                "a stream is segmented alone, and only with --mask, --resize-mask, --no-overlay, "
                "--out and the choice of weights: leave out the rest"
            )
        tracker, settings = tracking.load(Tracker)
        tracking.print_choices(tracker)
        out = out or Path("segments") / "stream"
        with stop_on_signal():
            segment_stream(
                videos[0],
                mask,
                out=out,
                tracker=tracker,
                settings=settings,
                resize=resize_mask,
                overlay=overlay,
                overwrite=overwrite,
                say=_say,
            )
        return 0
    paths = [Path(video) for video in videos]
    video = paths[0]
    is_list = video.is_file() and video.suffix.lower() in (".txt", ".csv", ".list")
    if len(paths) > 1 or is_list or (video.is_dir() and not is_video(video)):
        found = find_jobs(paths, mask)
        out = out or Path("segments")
        if adapt:
            several = found[:: math.ceil(len(found) / MOST_ADAPTED)]
            masks = {one.video: one.masks[0] for one in several if one.masks}
            tracking, _ = _adapted(tracking, masks, out / ADAPTED)
        make_tracker = partial(tracking.load, Tracker)
        if jobs == 1:
            loaded = make_tracker()
            tracking.print_choices(loaded[0])
            make_tracker = partial(tuple, loaded)
        with stop_on_signal():
            outcomes = segment_many(found, out, choices, make_tracker, num_processes=jobs)
        rows = [["video", "result", "frames"]]
        rows += [[one.name, one.status, str(one.num_frames)] for one in outcomes]
        print_table(rows, Console(), num_texts=2)
        return int(any(one.status == "failed" for one in outcomes))
    if jobs > 1:
        _LOG.warning("--jobs is of no use for one video")
    out = out or Path("segments") / video_name(video)
    if adapt:
        tracking, _ = _adapted(tracking, {video: mask[0]}, out / ADAPTED)
    tracker, settings = tracking.load(Tracker)
    tracking.print_choices(tracker)
    was_finished = is_finished(out) and not overwrite
    with stop_on_signal():
        count = segment_job(
            Job(video_name(video), video, tuple(mask)),
            out,
            replace(choices, resume=not overwrite),
            tracker,
            settings,
            say=_say,
            progress=progress,
        )
    before = ", finished before: --overwrite starts anew" if was_finished else ""
    _say(f"{count} masks in {out / 'masks'}{before}")
    if following := suggestions(out):
        _say(f"to improve them, draw one of these frames next: {', '.join(following)}")
    return 0


def _adapted(
    tracking: SegmentTracking,
    masks: Mapping[Path, str],
    out: Path,
    on_progress: Callable[[str, int], None] = lambda what, total: None,
) -> tuple[SegmentTracking, str]:
    """With weights that suit these videos and masks, or as it was where nothing can be learned; and
    which of the two, in words."""
    tracking.check_choice()
    try:
        found = tracking.adapt(
            list(masks),
            masks=list(masks.values()),
            out=out,
            overwrite=True,
            on_progress=on_progress,
        )
    except (VideoError, MaskError) as error:
        note = f"the weights are not adapted: {error}"
        _LOG.warning(note)
        return tracking, note
    _print_adaptation(found)
    if not found.helped:
        return tracking, found.in_words()
    return replace(tracking, weights=str(out), network=None), found.in_words()


def _four_numbers(region: str) -> tuple[int, int, int, int]:
    """The numbers of --region.

    Raises:
        ConfigError: they are others.
    """
    parts = region.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(f"--region {region!r} is not understood: give X0,Y0,X1,Y1 in pixels")
    left, top, right, bottom = map(int, parts)
    return left, top, right, bottom


def judge(
    videos: Annotated[list[Path], Parameter(metavar="VIDEO...")],
    /,
    *,
    weights: Annotated[list[str] | None, Parameter(show_default="ino_vitt8")] = None,
    network: Network | None = None,
    protocol: Annotated[
        list[str] | None, Parameter(show_default="the one that suits the weights")
    ] = None,
    mask: Annotated[list[str] | None, Parameter(metavar="[FRAME=]MASK...")] = None,
    result: Annotated[list[Path] | None, Parameter(metavar="RESULT...")] = None,
    frames: int = 12,
    short_side: int = 240,
    device: str = "auto",
    save: Annotated[Path | None, Parameter(metavar="FILE")] = None,
) -> None:
    """Rank weights and protocols, or results, on videos without labels.

    Predicts the J&F in percent that masks reach, with an interval that holds nine times of ten, and
    says whether the best one differs from the second by more than noise.

    Args:
        videos: Video files or folders of images.
        weights: One or several, as for ino segment.
        network: Which network of a file with both (default: the one that its authors evaluate).
        protocol: One or several names; each is tried with all weights.
        mask: The mask of each video in their order, as for ino segment (default: none; regions that
            stand out are followed, and intervals are wider).
        result: In place of weights: folders of ino segment, or of one PNG mask per frame, of a
            single video.
        frames: The most frames of a video to judge, about 8 per second.
        short_side: Frames are reduced to this, in pixels.
        device: auto, cpu, cuda or mps.
        save: Also write everything that was measured, as JSON.
    """
    from ino.system import atomic_path
    from ino.tasks.judge import judge_many, judge_results

    sizes = {"num_frames": frames, "short_side": short_side}
    if result is not None and (weights or protocol or mask or network or len(videos) > 1):
        raise ConfigError(
            "--result judges results of one video: give one video, and leave out --weights, "
            "--network, --protocol and --mask"
        )
    with atomic_path(save) if save else nullcontext() as file:
        if file:
            file.touch()  # what cannot be written fails now, and not after hours
        if result is not None:
            ranking = judge_results(result, videos[0], **sizes)
        else:
            with progress("judging", is_kept=False) as advance:
                ranking = judge_many(
                    videos,
                    weights=weights or ["ino_vitt8"],
                    protocols=protocol or [None],
                    masks=mask,
                    network=network,
                    device=device,
                    on_progress=lambda total: advance(1, total=total),
                    **sizes,
                )
        if file:
            file.write_text(json.dumps(ranking.as_dict(), indent=2) + "\n", encoding="utf-8")
    rows = [["weights or result", "protocol", "predicted J&F", "from", "to"]]
    for one in ranking.rows:
        numbers = [f"{100 * value:.1f}" for value in (one.score, one.low, one.high)]
        rows.append([one.name, one.protocol or "-", *numbers])
    print_table(rows, Console(), num_texts=2)
    if ranking.difference is not None:
        _say(ranking.difference.in_words())


def adapt(
    videos: Annotated[list[Path], Parameter(metavar="VIDEO...")],
    /,
    *,
    mask: Annotated[list[str] | None, Parameter(metavar="[FRAME=]MASK...")] = None,
    weights: str = "ino_vitt8",
    network: Network | None = None,
    protocol: Annotated[
        str | None, Parameter(show_default="the one that suits the weights")
    ] = None,
    quality: Annotated[Quality | None, Parameter(show_default="default")] = None,
    steps: int = 0,
    device: str = "auto",
    out: Annotated[Path, Parameter(help="Folder of the weights.")] = Path("runs/adapted"),
    overwrite: Overwrite = False,
) -> None:
    """Make weights suit your own footage better, without labels.

    Fits a linear map to the network's features in several ways and predicts J&F of each, as ino
    judge does. The weights stay as they were unless one of these is predicted to be better by 1.5
    points. In either case --weights takes the folder that is written.

    Args:
        videos: Video files or folders of images, of a second or more.
        mask: The mask of each video in their order, as for ino segment. Without masks only large
            differences are told from noise.
        weights: One of ino's ViTs, as for ino segment.
        network: Which network of a file with both (default: the one that its authors evaluate).
        protocol: The one that the weights will be used with.
        quality: In place of a protocol, as for ino segment.
        steps: Let the network also learn on from the footage, by about so many steps (200: two to
            four minutes on two cores).
        device: auto, cpu, cuda or mps.
    """
    tracking = SegmentTracking(
        weights=weights, network=network, protocol=protocol, quality=quality, device=device
    )
    tracking.check_choice()
    _print_adaptation(tracking.adapt(videos, masks=mask, out=out, steps=steps, overwrite=overwrite))
    _say(f"--weights {out} takes them")


def _print_adaptation(found: "Adaptation") -> None:
    """The table of what was tried, and what was kept."""
    rows = [["network", "predicted J&F", "from", "to", "better by", "from", "to"]]
    for one in found.rows:
        numbers = [one.score, one.low, one.high, *one.difference]
        texts = [f"{100 * value:.1f}" for value in numbers]
        rows.append([one.name, *texts[:3], *(texts[3:] if one is not found.rows[0] else "---")])
    print_table(rows, Console(), num_texts=1)
    _say(found.in_words())


def convert(
    result: Path,
    /,
    *,
    to: Annotated[list[str], Parameter(metavar="FORMAT...")],
    video: Path | None = None,
    fps: float | None = None,
    out: Annotated[Out | None, Parameter(show_default="RESULT")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write masks in the formats of other programs.

    Formats: png-per-object, coco, coco-images (with the frames), ytvis, mots, cvat, mask-video,
    overlay-video, cutout-video (WebM with alpha), cutout-png, tiff, npz, csv (areas, centroids and
    boxes).

    Args:
        result: Folder of ino segment, or any folder of indexed PNGs, one per frame.
        to: One or several formats.
        video: Video of the masks (default: the one that RESULT was made of).
        fps: Frames per second of videos (default: those of the video).
    """
    from ino.tasks.convert import convert_result

    for path in convert_result(
        result, to, out=out or result, video=video, fps=fps, overwrite=overwrite
    ):
        _say(path)


def frame(
    video: Path,
    frames: list[str],
    /,
    *,
    out: Annotated[Out | None, Parameter(show_default="frames/VIDEO")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write frames of a video as PNGs to draw masks on.

    Save each mask under the name of its frame in another folder, and pass that folder to --mask.

    Args:
        video: Video file or folder of images.
        frames: Numbers of frames from 0, names of images, or times such as 1:23.5.
    """
    from ino.data.video import video_name
    from ino.tasks.convert import write_frames

    out = out or Path("frames") / video_name(video)
    for path in write_frames(video, frames, out=out, overwrite=overwrite):
        _say(path)


def web(
    video: Path | None = None,
    /,
    *,
    folder: list[Path] | None = None,
    host: str = "localhost",
    port: int = 8484,
    max_upload: float = 4.0,
    out: Annotated[Path, Parameter(help="Folder of the workspaces.")] = Path("workspaces"),
    tracking: SegmentTracking = SegmentTracking(),
) -> None:
    """Open a page to draw, watch, correct and take away masks (extra web).

    What is done is kept in the folder of the workspaces and continues there. The page begins with
    the quality fast, or with the one of --quality; with --protocol there is none to choose.

    Args:
        video: Video file or folder of images to begin with.
        folder: Folders whose videos may be opened by path (default: the current folder).
        host: Address to listen on; beyond localhost, visitors need the token that is printed.
        port: Port to listen on; 0 takes any that is free.
        max_upload: Size limit of uploaded videos, in GB.
    """
    try:
        from ino.web.server import serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise ConfigError("ino web needs the extra web: uv sync --extra web") from error

    tracking.check_choice()

    def make_tracker(quality: str) -> tuple[Any, dict[str, Any]]:
        from ino.propagate.tracker import Tracker

        chosen = tracking if tracking.protocol else replace(tracking, quality=quality)
        return chosen.load(Tracker)

    def make_adapted(
        quality: str,
        video: Path,
        mask: str,
        out: Path,
        on_progress: Callable[[str, int], None],
    ) -> tuple[Any, dict[str, Any], str]:
        from ino.propagate.tracker import Tracker

        chosen = tracking if tracking.protocol else replace(tracking, quality=quality)
        chosen, note = _adapted(chosen, {video: mask}, out, on_progress)
        return (*chosen.load(Tracker), note)

    if not 0 < max_upload < 1e6:
        raise ConfigError(f"--max-upload is in GB and more than 0, but it is {max_upload}")
    serve(
        out,
        folders=folder or [Path()],
        make_tracker=make_tracker,
        make_adapted=make_adapted,
        quality=None if tracking.protocol else tracking.quality or "fast",
        video=video,
        host=host,
        port=port,
        max_upload=int(max_upload * (1 << 30)),
        say=_say,
    )


def davis(
    *,
    root: Path,
    chosen: DavisSplit = DavisSplit(),
    results: Results = Results(),
    tracking: Tracking,
) -> None:
    """Propagate the first masks of DAVIS-2016 or DAVIS-2017 and score the result.

    Args:
        root: Folder that holds JPEGImages.
    """
    from ino.propagate.tracker import Tracker
    from ino.tasks.davis import DavisScores, evaluate_davis

    def remarks(scores: DavisScores | None, out: Path) -> Iterator[str]:
        if scores is None:
            yield f"no scores: later frames of {chosen.split} are not annotated; " + (
                f"the server of DAVIS scores {out / 'submission.zip'}"
                if chosen.sequences is None
                else "submission.zip for the server of DAVIS needs all sequences"
            )

    choice = vars(chosen)
    _evaluate("davis", evaluate_davis, root, results, tracking, Tracker, remarks=remarks, **choice)


def ytvos(
    *,
    root: Path,
    split: str = "valid",
    videos: OnlyThese = None,
    seen: Seen = None,
    results: Results = Results(),
    tracking: YtvosTracking,
) -> None:
    """Propagate the given masks of YouTube-VOS, pack and check submission.zip, score if possible.

    Scores need a split whose later frames are annotated.

    Args:
        root: Folder that holds the split.
        split: Name of the split's folder.
    """
    from ino.propagate.tracker import Tracker
    from ino.tasks.ytvos import YtvosResult, evaluate_ytvos

    def remarks(result: YtvosResult, out: Path) -> Iterator[str]:
        if result.num_skipped:
            yield f"{result.num_skipped} of {result.num_videos} videos were done before"
        if result.scores is None:
            yield (
                f"no scores: {root / split / 'Annotations'} holds only the frames that objects "
                "enter with; the server of YouTube-VOS scores submission.zip"
            )
        yield from result.report.summary(result.submission or out / "predictions").split("\n")
        if result.submission is None:
            yield "no submission.zip: it needs all videos; continue with --resume, without --videos"

    choice = {"split": split, "videos": videos, "seen": seen}
    _evaluate("ytvos", evaluate_ytvos, root, results, tracking, Tracker, remarks=remarks, **choice)


def jhmdb(
    *,
    root: Path,
    split: int = 1,
    joint_topk: int = 5,
    input_size: int = 320,
    results: Results = Results(),
    tracking: Tracking,
) -> None:
    """Propagate the first joints of JHMDB's test videos and score PCK@0.1 and @0.2.

    Args:
        root: Folder that holds Rename_Images.
        split: 1, 2 or 3.
        joint_topk: Positions that give a joint (CRW: 3).
        input_size: Side of the square input in pixels, 320 as in papers; 0: by protocol.
    """
    from ino.tasks.jhmdb import evaluate_jhmdb, joint_maps
    from ino.tasks.label_tracker import LabelTracker

    tracker = partial(LabelTracker, input_size=input_size or None)
    choice = {"split": split, "maps": joint_maps(tracking.protocol or "", topk=joint_topk)}
    _evaluate("jhmdb", evaluate_jhmdb, root, results, tracking, tracker, **choice)


def vip(
    *,
    root: Path,
    split: str = "val",
    input_size: Annotated[int | None, Parameter(show_default="560, but 0 for cropmae, rvm")] = None,
    results: Results = Results(),
    tracking: Tracking,
) -> None:
    """Propagate the first part labels of a VIP split and score the mean IoU.

    Args:
        root: Folder that holds Images.
        split: Name of the list of videos.
        input_size: Side of the square input in pixels, 560 as in most papers; 0: by protocol.
    """
    from ino.propagate.protocols import protocol_on
    from ino.tasks.label_tracker import LabelTracker
    from ino.tasks.vip import evaluate_vip

    name = protocol_on(tracking.protocol or "", "vip")
    tracking = replace(tracking, protocol=name or None)
    if input_size is None:
        input_size = 0 if name.endswith("-vip") else 560
    tracker = partial(LabelTracker, input_size=input_size or None)
    _evaluate("vip", evaluate_vip, root, results, tracking, tracker, split=split)


def _evaluate(
    name: str,
    evaluate: Callable[..., Any],
    root: Path,
    results: Results,
    tracking: Tracking,
    kind: Callable[..., Any],
    *,
    remarks: Callable[[Any, Path], Iterable[str]] = lambda result, out: (),
    **choice: Any,
) -> None:
    """Propagates and scores the chosen part of a data set, then shows the scores."""
    tracker, settings = tracking.load(kind)
    if name != "ytvos":  # which stores the folders of the split
        settings["root"] = str(root)
    out = results.out or Path(name)
    with progress("frames") as advance:
        result = evaluate(
            root,
            out=out,
            tracker=tracker,
            settings=settings,
            resume=results.resume,
            overwrite=results.overwrite,
            on_start=lambda number: advance(0, total=number),
            on_frame=advance,
            **choice,
        )
    if scores := getattr(result, "scores", result):
        scores.print_table(Console())
    tracking.print_choices(tracker)
    for remark in remarks(result, out):
        _say(remark)
    _say(f"results in {out}")


def suite(
    file: str,
    /,
    *,
    out: Annotated[Out | None, Parameter(show_default="suites/FILE")] = None,
    work: Work = Work(),
    weights_dir: Path | None = None,
    davis: Path | None = None,
    ytvos: Path | None = None,
    jhmdb: Path | None = None,
    vip: Path | None = None,
    sequences: OnlyThese = None,
    short_side: int | None = None,
    precision: Precision | None = None,
) -> int:
    """Propagate and score the rows of an experiment; print one table with published numbers.

    A row has weights, a protocol and a data set. If it is stopped, the same command continues
    where it was.

    Args:
        file: Name of an experiment or path of a YAML file.
        weights_dir: Folder of the files that rows name.
        davis: Root of DAVIS, for rows with data: davis.
        ytvos: Root of YouTube-VOS, for rows with data: ytvos.
        jhmdb: Root of JHMDB, for rows with data: jhmdb.
        vip: Root of VIP, for rows with data: vip.
        short_side: Short side of the frames of every row without square input; scales the radius.
        precision: Precision of every row.
    """
    from ino.experiments.rows import read_experiment
    from ino.experiments.run import run_experiment

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
    out: Annotated[Out | None, Parameter(show_default="A_and_B")] = None,
    overwrite: Overwrite = False,
    num: int = 3,
    frames: int = 5,
) -> None:
    """Compare two evaluations on DAVIS sequence by sequence.

    Pictures of the largest differences, a scatter plot of J&F and a table, as PNGs and one page.

    Args:
        a: Folder of an evaluation, or of a row of an experiment.
        b: Another one.
        root: Folder that holds JPEGImages.
        num: Sequences shown that are best for A, and for B.
        frames: Frames shown of each sequence.
    """
    from ino.report.comparison import compare_evaluations

    out = out or Path(f"{a.name}_and_{b.name}")
    comparison = compare_evaluations(
        a, b, out=out, root=root, num_shown=num, num_frames=frames, overwrite=overwrite
    )
    print_table(comparison.lines(), Console(), caption="percent")
    for note in comparison.notes():
        _say(note)
    _say(f"look at {out / 'comparison.html'}")


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
    _say(f"strips in {path}")


def score(
    predictions: Path,
    /,
    *,
    root: Path,
    layout: Literal["davis", "ytvos"] = "davis",
    chosen: DavisSplit = DavisSplit(),
    seen: Seen = None,
    data_size: Annotated[
        tuple[int, int] | None, Parameter(converter=_image_size, n_tokens=1, metavar="HxW")
    ] = None,
    out: Path | None = None,
    workers: int | None = None,
) -> None:
    """Score masks made by anything: PREDICTIONS/SEQUENCE/FRAME.png.

    With --layout ytvos, --split is the name of a folder (default: valid).

    Args:
        predictions: Folder with one folder per sequence.
        root: Folder that holds JPEGImages; with ytvos, the split.
        layout: Layout of the data set.
        data_size: Size at which the method takes the data set, such as 480x880 of RSP; annotations
            are resized to it by nearest neighbor (default: their own).
        out: Folder for CSV and JSON (default: none).
        workers: Number of processes (default: chosen by the number of frames).
    """
    from ino.system import new_folder

    split = chosen.split
    if layout == "davis":
        from ino.tasks.davis import score_davis

        scores = score_davis(
            predictions, root, workers=workers, data_size=data_size, **vars(chosen)
        )
    else:
        from ino.data.ytvos import read_ytvos_split
        from ino.tasks.ytvos import score_ytvos

        for name in ("year", "resolution"):
            if getattr(chosen, name) != getattr(DavisSplit, name):
                _LOG.warning("--%s has no meaning with --layout ytvos and is skipped", name)
        if data_size is not None:
            _LOG.warning("--data-size has no meaning with --layout ytvos and is skipped")
        if split == DavisSplit.split and not (root / split).is_dir():
            split = "valid"
        data = read_ytvos_split(root, split=split, videos=chosen.sequences)
        scores = score_ytvos(predictions, data, seen=seen, workers=workers)
    scores.print_table(Console())
    if out is not None:
        new_folder(out, overwrite=True)
        scores.write(out, split=split, protocol=None)
        _say(f"results in {out}")


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
    from ino.tasks.submission import check_submission

    data = read_ytvos_split(root, split=split, videos=videos)
    with progress("videos", len(data.videos)) as advance:
        report = check_submission(predictions, data, on_video=advance)
    for line in report.summary(predictions).split("\n"):
        _say(line)
    if report.num_faults:
        raise MaskError(
            f"{predictions} cannot be handed in ({report.counts()}): mend what is listed above and "
            "check again"
        )


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
    for function in (
        demo,
        index,
        plot,
        export,
        frame,
        segment,
        judge,
        adapt,
        convert,
        web,
        compare,
        strips,
        score,
        check,
        weights,
    ):
        app.command(function)
    experiments = f"Experiments: {_names_in('experiments')}."
    evaluate.command(suite, help_epilogue=experiments)
    recipes = f"Recipes: {_names_in('recipes')}."
    command, recipe = [*arguments, "-", "-"][:2]
    # The names of fields are long and stay whole.
    names = ColumnSpec(renderer=NameRenderer(max_width=42), style="cyclopts.name", max_width=42)
    wide = DefaultFormatter(column_specs=(names, DescriptionColumn))
    for function, argument, words in (
        (train, "RECIPE", recipes),
        (sweep, "FILE", experiments),
    ):
        if command == function.__name__:
            named = recipe if command == "train" and not recipe.startswith("-") else None
            function = _with_fields(function, named)
        app.command(
            function,
            usage=f"Usage: ino {function.__name__} {argument} [OPTIONS]",
            help_format="plaintext",
            help_formatter=wide,
            help_epilogue=words,
        )
    return app


def _names_in(folder: str) -> str:
    """The names of the YAML files that come with ino."""
    return ", ".join(sorted(path.stem for path in (Path(__file__).parent / folder).glob("*.yaml")))


def _with_fields(command: Callable[..., Any], recipe: str | None) -> Callable[..., Any]:
    """The command with an option for each field of a training run in place of `fields`.

    `train` also has whole sections (--optim "{lr: 1}") and --NAME+, which adds to a list; in
    `sweep`, each field may have several values.

    Args:
        command: `train` or `sweep`.
        recipe: whose values the help of `train` shows; None for those of `TrainConfig`.
    """
    from ino.schema import yaml_value
    from ino.train.config import (
        RENAMED,
        TrainConfig,
        config_fields,
        flatten,
        load_recipe,
        resolve,
        to_dict,
    )

    config = flatten(to_dict(resolve(load_recipe(recipe) if recipe else TrainConfig())))
    is_sweep = command is sweep
    sections = dict.fromkeys(name.partition(".")[0] for name in config if "." in name)
    options = {} if is_sweep else {name: _option(name, show=False) for name in sections}
    for name, field in config_fields().items():
        words = {"metavar": _metavar(field.type), "help": field.description}
        is_list = "..." in words["metavar"]
        if not is_sweep and config[name] not in ("", []):
            value = config[name]
            words["show_default"] = value if isinstance(value, str) else json.dumps(value)
        options[name] = _option(name, is_list=is_list or is_sweep, **words)
        if is_list and not is_sweep:
            options[f"{name}+"] = _option(f"{name}+", is_list=True, show=False)
        for old in (old for old, new in RENAMED.items() if new == name):
            options[old] = _option(old, is_list=is_list or is_sweep, show=False)

    @wraps(command)
    def with_fields(*arguments: Any, **given: Any) -> Any:
        fields: dict[str, Any] = {}
        for name, option in options.items():
            value = given.pop(option.name, None)
            if value is None:
                continue
            if name in sections:
                value = yaml_value(value)
            elif not is_sweep and len(value) == 1 and value[0].startswith("["):
                items = yaml_value(value[0])
                value = items if isinstance(items, list) else value
            if name.endswith("+"):
                name = name.removesuffix("+")
                value = [*fields.get(name, config[name]), *value]
            fields |= flatten({name: value})
        return command(*arguments, **given, fields=fields)

    own = list(inspect.signature(command).parameters.values())[:-1]
    with_fields.__signature__ = inspect.Signature([*own, *options.values()])  # type: ignore
    return with_fields


def _option(name: str, *, is_list: bool = False, **words: Any) -> inspect.Parameter:
    """The option --NAME of a field."""
    group = name.partition(".")[0] if "." in name else None
    kind = list[str] if is_list else str
    hint = Annotated[kind | None, Parameter(name=f"--{name}", group=group, **words)]
    key = "field_" + re.sub(r"\W", "_", name.replace("+", "_more"))
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    0; 1 if rows of an experiment failed or nobody reads the output any more; 2 for what the user
    can mend; 130 if stopped by Ctrl-C; 75 if training was saved and stopped by SIGTERM or SIGUSR1,
    to be resumed.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):  # a letter that a screen cannot show becomes another
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not _LOG.handlers:
        _LOG.addHandler(_Screen())
        _LOG.propagate = False
    try:
        with _image_warnings():
            status = _run(arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        _LOG.error("stopped%s", _how_to_resume(arguments))
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 1
        reason = _reason(error)
        if reason is None:
            raise
        _LOG.error("%s", reason)
        return error.status if isinstance(error, StoppedError) else 2


@contextmanager
def _image_warnings() -> Iterator[None]:
    """Shows what Pillow warns of as one line; other warnings stay as they are."""
    show = warnings.showwarning

    def show_ours(message: Any, category: Any, filename: str, *args: Any, **kwargs: Any) -> None:
        if "PIL" in Path(filename).parts:
            _LOG.warning("an image has damaged metadata, which are skipped: %s", message)
        else:
            show(message, category, filename, *args, **kwargs)

    warnings.showwarning = show_ours
    try:
        yield
    finally:
        warnings.showwarning = show


def _run(arguments: list[str]) -> int:
    """Parses, calls and returns the exit status.

    Raises:
        ConfigError: the arguments do not fit the command; says where its help is.
        Exception: of the command.
    """
    app = build_app(arguments)
    words = [word for word in arguments if word not in ("-h", "--help")]
    if words != arguments:  # other options need not be parsed for help
        app.help_print(words)
        return 0
    try:
        command, bound, _ = app.parse_args(arguments, print_error=False, exit_on_error=False)
        if command.__name__ == "help_print":
            chain, apps, _ = app.parse_commands(arguments)
            raise UnknownCommandError(app=apps[-1], command_chain=chain, unused_tokens=[])
    except CycloptsError as error:
        chosen = " ".join(["ino", *(error.command_chain or ())])
        if isinstance(error, UnknownCommandError):
            known = sorted(name for name in error.app or () if not name.startswith("-"))
            given = (error.unused_tokens or [""])[0]
            near = difflib.get_close_matches(given, known, n=1)
            hint = f"did you mean {near[0]}" if near else f"give one of {', '.join(known)}"
            reason = (
                f"there is no command {given!r}; {hint}"
                if given
                else f"a command is missing; {hint}"
            )
        elif isinstance(error, UnusedCliTokensError):
            reason = f"{chosen} does not take {' '.join(error.unused_tokens or ())[:80]!r}"
        else:
            error.verbose = False
            reason = str(error).removesuffix(".")
        raise ConfigError(f"{reason} ({chosen} --help shows more)") from error
    return command(*bound.args, **bound.kwargs) or 0


def _reason(error: Exception) -> str | None:
    """What the user can mend, or None if it is a fault of the program."""
    if isinstance(error, InoError | StoppedError):
        return str(error)
    # Without a number, or with one of these, it comes from a library.
    if isinstance(error, OSError) and error.errno not in (None, errno.EBADF, errno.EFAULT):
        named = "" if error.filename is None else f" {str(error.filename)[:200]!r}"
        return (
            f"cannot read or write{named} ({error.strerror}): check the path, its permissions and "
            "the space on the disk"
        )
    words = str(error).lower()  # of Python, OpenCV and torch
    signs = ("out of memory", "insufficient memory", "can't allocate memory")
    if isinstance(error, MemoryError) or any(sign in words for sign in signs):
        return (
            "the memory does not hold this work: take smaller frames (--set short_side=...), a "
            "smaller batch or a device with more memory"
        )
    return None


def _how_to_resume(arguments: Sequence[str]) -> str:
    """What follows `stopped` for commands that keep what is done."""
    command = " ".join(arguments[:2])
    if command.startswith(("sweep ", "segment ")) or command == "evaluate suite":
        return "; what is done is kept: start the same command again to continue"
    if command.startswith("evaluate "):
        return "; what is done is kept: continue with --resume"
    return ""


def _nobody_reads() -> bool:
    """Whether stdout has lost its reader; then it leads nowhere, for a quiet end."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


class _Screen(logging.StreamHandler):
    """A line per message on the stderr of the moment, which a progress bar puts above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        return f"ino: {shown(' '.join(super().format(record).split()))}"
