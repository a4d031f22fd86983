"""From the configuration of a run to the clips and views of each step.

Which videos are used and how many clips that makes an epoch; the loader, which survives decoding
processes that die; crops, colors and masks of a step. All that is sampled follows from seed, step
and the clip's place in the global batch alone, so any number of processes that share a global
batch, and a run that resumes, see the same views.
"""

import dataclasses
import errno
import json
import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from lightning.fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader

from ino.data.clips import (
    ClipDataset,
    ClipSampler,
    ClipSampling,
    VisitSampler,
    choose_usable,
    clip_generators,
    digest_of,
    motion_weights,
)
from ino.data.masking import sample_blockwise_mask, sample_num_masked, sample_random_mask
from ino.data.shards import ShardClips, expand_shards, is_shards, survey_shards
from ino.data.video_index import (
    VideoIndex,
    default_index,
    find_videos,
    index_videos,
    measure_motion,
    quarantine_all,
    wide_video_remark,
)
from ino.data.views import CropGeometry, make_crops
from ino.errors import ConfigError, InoError, OutputError, TrainingError
from ino.kernels.crops import PLAIN, Photometric
from ino.models.backbone import TIMM
from ino.models.masked_timm import timm_stride
from ino.models.student_teacher import Views
from ino.schema import read_json
from ino.system import available_cores, write_text
from ino.tables import shown
from ino.train.config import DataConfig, ModelConfig, TrainConfig, ViewsConfig
from ino.train.distributed import broadcast_from_first

VIDEOS_NAME = "videos.json"
QUARANTINE_NAME = "quarantine.sqlite"

_MOST_WORKERS = 16
_MOST_DEATHS = 3
_QUIET_BATCHES = 100
"""Batches after which a death of a decoding process no longer counts."""

_LOG = logging.getLogger("ino")


class Source(NamedTuple):
    """The videos of a run."""

    names: list[str]
    """Paths of the videos, or of the tar shards that contain them."""
    num_videos: int
    """Number of usable videos."""
    left_out: dict[str, str]
    """For each unusable video or shard, by its path, the reason."""
    summary: str
    """One line for the screen."""
    remark: str = ""
    """Warning about the aspect ratio of the frames; empty for none."""
    weights: np.ndarray | None = None
    """How often each video is sampled, relative to the others; None for equally often."""


def patch_size_of(model: ModelConfig) -> int:
    """Pixels per token of the backbone of a run."""
    return timm_stride(model.arch) if model.arch.startswith(TIMM) else model.patch_size


def has_shards(data: DataConfig) -> bool:
    """Whether the videos are in tar shards.

    Raises:
        ConfigError: there are no roots.
    """
    if not data.root:
        raise ConfigError("no videos were given; pass --data.root FOLDER")
    return any(map(is_shards, data.root))


def find_source(data: DataConfig, views: ViewsConfig | None = None) -> Source:
    """The videos that can give clips, as a resolved configuration names them.

    Args:
        data: where they are and what a clip is.
        views: crops that should fit in most frames; a remark says if they do not.

    Raises:
        ConfigError: there are no roots, or shards of another machine without `data.shard_videos`,
            or shards or no index with sampling by motion.
        VideoError: there are no videos, or most cannot be used.
        OutputError: the index cannot be written where `data.index` says.
    """
    by_motion = data.sampling == "motion"
    if has_shards(data):
        if by_motion:
            raise ConfigError(
                "data.sampling motion needs videos in folders or lists, but data.root has tar "
                "shards, whose videos are read one after the other: unpack them, or leave "
                "data.sampling at uniform"
            )
        shards, num_videos, faults = survey_shards(
            expand_shards(data.root), num_stated=data.shard_videos
        )
        return Source(shards, num_videos, faults, f"{num_videos} videos in {len(shards)} shards")
    # Unlike Path.expanduser, it leaves the name of an unknown user alone.
    roots = [Path(os.path.expanduser(root)) for root in data.root]  # noqa: PTH111
    if data.index == "off":
        names = find_videos(roots)
        summary = f"{len(names)} videos, whose headers were not read before training"
        return Source(names, len(names), {}, summary)
    index = _index(roots, data.index, motion=by_motion)
    names, seconds, left_out = choose_usable(index, sampling_of(data))
    summary = f"{len(names)} videos, {seconds / 3600:.1f} hours"
    remark = wide_video_remark(index, scale=views.global_scale, ratio=views.ratio) if views else ""
    weights = None
    if by_motion:
        motion = dict(zip(index.names, index.motion.tolist(), strict=True))
        weights = motion_weights([motion[name] for name in names])
        summary += ", sampled by motion"
    return Source(names, len(names), left_out, summary, remark, weights)


def sampling_of(data: DataConfig) -> ClipSampling:
    """Which frames make a clip, as a resolved configuration says."""
    return ClipSampling(
        length=data.clip_length,
        frame_step=data.frame_step or 0,
        fps=data.fps or 0.0,
        clips_per_video=data.clips_per_video,
        avoids_cuts=data.cuts == "avoid",
    )


def count_epoch_clips(data: DataConfig) -> int:
    """Number of clips in an epoch over all processes, before it is cut into batches.

    Raises:
        InoError: see `find_source`.
    """
    return find_source(data).num_videos * data.clips_per_video


def _index(roots: list[Path], name: str, *, motion: bool) -> VideoIndex:
    """The index of the videos; where its usual place cannot be written, one that is not kept."""
    columns = ("{task.description}", MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    # Where nobody sees it move, the bar would leave an empty line.
    hidden = not console.is_interactive
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("", total=None)

        def advance(num_more: int, num_videos: int) -> None:
            bar.update(task, advance=num_more, total=num_videos)

        def index(file: Path | None) -> VideoIndex:
            bar.reset(task, description="headers")
            found = index_videos(roots, file=file, on_progress=advance)
            if motion:
                bar.reset(task, description="motion")
                found = measure_motion(found, file=file, on_progress=advance)
            return found

        if name != "auto":
            return index(Path(name))
        try:
            return index(default_index(roots))
        except OutputError as error:
            _LOG.warning("%s; this time it is not kept", error)
            return index(None)


@dataclass(frozen=True)
class Clips:
    """The clips of one process.

    Attributes:
        loader: yields batches from the position of `order` to the end of the epoch.
        order: which clips come when; holds the position in the epoch.
        digest: hash of the list of videos.
        left_out: for each unusable video, by its path, the reason.
    """

    loader: DataLoader
    order: ClipSampler | ShardClips
    digest: str
    left_out: dict[str, str]


def build_data(config: TrainConfig, fabric: Fabric, *, out: Path, is_quiet: bool = False) -> Clips:
    """Finds the videos, in the first process only, and builds the data loader of this process.

    Videos that turn out to be unusable are recorded in the folder `out` of the run. Their number
    and how long they last is printed, unless it `is_quiet`.

    Raises:
        InoError: see `find_source`.
        ConfigError: an epoch has fewer clips than a step.
    """
    data = config.data
    source = broadcast_from_first(fabric, lambda: find_source(data, config.views))
    if fabric.is_global_zero and not is_quiet:
        num = len(source.left_out)
        left_out = f", {num} left out ({QUARANTINE_NAME} says why)" if num else ""
        line = shown(source.summary + left_out)
        Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)
        if source.remark:
            _LOG.warning("%s", source.remark)
    seed = config.run.seed
    settings: dict[str, Any] = {
        "sampling": sampling_of(data),
        "seed": seed,
        "quarantine": out / QUARANTINE_NAME,
    }
    share: dict[str, Any] = {
        "batch_size": data.batch_size,
        "rank": fabric.global_rank,
        "world_size": fabric.world_size,
    }
    options = _loader_options(config, fabric)
    num_clips = source.num_videos * data.clips_per_video
    sampled = [] if source.weights is None else [source.weights.tobytes().hex()]
    digest = digest_of(source.names + sampled)
    if has_shards(data):
        order = ShardClips(source.names, num_clips=num_clips, **settings, **share)
        loader = DataLoader(order, batch_size=None, **options)  # it gives whole batches
        return Clips(loader, order, digest, source.left_out)
    if data.visits:
        order = VisitSampler(
            len(source.names), clips_per_video=data.clips_per_video, seed=seed, **share
        )
    else:
        order = ClipSampler(num_clips, seed=seed, **share)
    dataset = ClipDataset(source.names, visits=data.visits, weights=source.weights, **settings)
    loader = DataLoader(
        dataset, batch_size=data.batch_size, sampler=order, drop_last=True, **options
    )
    return Clips(loader, order, digest, source.left_out)


def _loader_options(config: TrainConfig, fabric: Fabric) -> dict[str, Any]:
    """How many processes decode, and what they have ready; each decodes in one thread."""
    num_workers = config.data.num_workers
    if num_workers == "auto":
        # On a CPU the cores are for training, which takes many times what decoding does.
        share = available_cores() // config.run.devices
        share = share // 4 if fabric.device.type == "cpu" else share
        num_workers = max(1, min(_MOST_WORKERS, share))
    return {
        "collate_fn": list,
        "num_workers": num_workers,
        "pin_memory": fabric.device.type == "cuda",
        "persistent_workers": num_workers > 0,
        "prefetch_factor": config.data.prefetch if num_workers else None,
    }


def record_videos(clips: Clips, out: Path) -> None:
    """Records the unusable videos in the run's folder, and warns if a resumed run has other videos.

    Raises:
        OutputError: the folder cannot be written to.
    """
    if clips.left_out:
        quarantine_all(out / QUARANTINE_NAME, clips.left_out)
    path = out / VIDEOS_NAME
    now = {"clips_an_epoch": clips.order.num_clips, "digest": clips.digest}
    try:
        before = read_json(path)
    except (OSError, ValueError):
        before = now
    if before != now:
        _LOG.warning(
            "the videos are not those that the run began with (%s clips per epoch then, %s now): "
            "it continues with other clips than it would have had",
            before.get("clips_an_epoch") if isinstance(before, dict) else "other",
            now["clips_an_epoch"],
        )
    write_text(path, json.dumps(now) + "\n")


def batches(clips: Clips, *, first_step: int, num_steps: int) -> Iterator[list[Tensor]]:
    """The clips of each step, from `first_step` to `num_steps` - 1.

    If a decoding process is killed (often for lack of memory), all of them are restarted at the
    current step and decode the same clips again.

    Raises:
        TrainingError: decoding processes died more than three times in short succession.
        InoError: an error of the data set, such as too many unusable videos.
    """
    loader, order = clips.loader, clips.order
    step, num_deaths, last_death = first_step, 0, first_step
    while step < num_steps:
        order.set_position(*divmod(step, order.num_batches))
        try:
            read = _read(loader)
            for batch in order.batches(read) if isinstance(order, VisitSampler) else read:
                yield batch
                step += 1
                if step == num_steps:
                    return
        except InoError as error:
            # A worker process puts its whole traceback into the message.
            kind = type(error)
            raise kind(str(error).rpartition(f"{kind.__name__}: ")[2]) from error
        except (RuntimeError, OSError, EOFError) as error:
            if os.strerror(errno.EMFILE) in str(error) or "ancdata" in str(error):
                raise TrainingError(
                    f"too many files are open at step {step}: allow more with ulimit -n or lower "
                    "data.num_workers, and resume"
                ) from error
            if loader.num_workers == 0 or not _is_death(error):
                raise
            num_deaths = num_deaths + 1 if step - last_death < _QUIET_BATCHES else 1
            last_death = step
            if num_deaths > _MOST_DEATHS:
                raise TrainingError(
                    f"processes that decode died {num_deaths} times near step {step}, maybe for "
                    "want of memory: lower data.num_workers and resume"
                ) from error
            _LOG.warning("a process that decodes died at step %d; all are started again", step)
            loader._iterator = None


def _read(loader: DataLoader) -> Iterator[list[Tensor]]:
    """Batches of a loader whose dead workers show only where a batch is asked for.

    torch raises from a handler of SIGCHLD, that is from any line of the training step. Without the
    handler it finds a dead worker some seconds later, when it waits for a batch.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not (in_main and hasattr(signal, "SIGCHLD")):
        yield from loader
        return
    previous = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    if _is_of_torch(signal.getsignal(signal.SIGCHLD)):
        own = previous is not None and not _is_of_torch(previous)
        signal.signal(signal.SIGCHLD, previous if own else signal.SIG_DFL)
    yield from iterator


def _is_of_torch(handler: object) -> bool:
    return getattr(handler, "__module__", "") == "torch.utils.data._utils.signal_handling"


def _is_death(error: Exception) -> bool:
    """Whether a worker is gone, as torch says it or as its half-sent batch shows; not its error."""
    text = str(error)
    if text.startswith("Caught "):
        return False
    half_sent = (ConnectionError, EOFError, FileNotFoundError)
    return "DataLoader worker (pid" in text or isinstance(error, half_sent)


def seed_drop_path(seed: int, *, step: int, rank: int) -> None:
    """Seeds torch's generators for drop path in a step; every process gets its own seed."""
    words = np.random.SeedSequence([seed, step], spawn_key=(2, rank)).generate_state(2, np.uint32)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))


def sample_views(
    config: TrainConfig,
    clips: Sequence[Tensor],
    *,
    step: int,
    device: torch.device,
    first_clip: int = 0,
) -> Views:
    """The crops (section 3.2) and the masked positions (section 3.3) of a step.

    The number of masked positions is the same in all processes; with `masking.shared`, so are the
    positions.

    Args:
        config: a resolved configuration.
        clips: uint8 frames of each clip.
        step: counted from 0.
        device: where crops are cut.
        first_clip: place of the first clip in the global batch of the step.
    """
    settings = config.views
    streams = clip_generators([config.run.seed, step], num_clips=len(clips), first_clip=first_clip)
    masked = _sample_masked(config, streams, step=step)
    color = Photometric(
        flip=settings.flip,
        jitter=settings.jitter,
        brightness=settings.brightness,
        contrast=settings.contrast,
        saturation=settings.saturation,
        hue=settings.hue,
        grey=settings.grey,
        blur_sigma=settings.blur_sigma,
    )
    clips = [clip.to(device, non_blocking=True) for clip in clips]
    global_crops = make_crops(
        clips,
        geometry=CropGeometry(settings.global_size, settings.global_scale, settings.ratio),
        photometric=color if settings.color_on_global else PLAIN,
        num_crops=1,
        rng=streams,
    )[:, 0]
    local_crops = None
    if settings.num_local and config.loss.l2g > 0:
        local_crops = make_crops(
            clips,
            geometry=CropGeometry(settings.local_size, settings.local_scale, settings.ratio),
            photometric=dataclasses.replace(color, blur=settings.local_blur),
            num_crops=settings.num_local,
            rng=streams,
        )
    return Views(global_crops, local_crops, None if masked is None else masked.to(device))


def _sample_masked(
    config: TrainConfig, streams: Sequence[np.random.Generator], *, step: int
) -> Int[Tensor, "clips masked"] | None:
    """The masked positions of each clip, ascending."""
    masking = config.masking
    shared_rng = np.random.default_rng([config.run.seed, step, 0])
    side = config.views.global_size // patch_size_of(config.model)
    has_in_generative = config.loss.masked > 0 or config.loss.affinity > 0
    num_masked = sample_num_masked(
        shared_rng,
        num_tokens=side * side,
        probability=masking.probability if has_in_generative else 0.0,
        ratio=masking.ratio,
    )
    if not num_masked:
        return None
    sample = sample_blockwise_mask if masking.kind == "blockwise" else sample_random_mask
    masks = [
        sample(rng, rows=side, columns=side, num_masked=num_masked)
        for rng in ([shared_rng] if masking.shared else streams)
    ]
    positions = torch.from_numpy(np.stack([np.flatnonzero(mask) for mask in masks]))
    return positions.expand(len(streams), -1).contiguous()
