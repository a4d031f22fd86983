"""Which videos a run draws its clips from, and how many clips that makes an epoch.

Training and what plans it (lengths, sweeps) count here: by the index, which leaves out videos that
cannot give a clip, or in tar shards.
"""

import dataclasses
import json
import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    PathTable,
    VisitSampler,
    choose_usable,
    clip_streams,
)
from ino.data.masking import sample_masks, sample_num_masked
from ino.data.shards import ShardClips, ShardSchedule, expand_shards, is_shards, survey_shards
from ino.data.video_index import (
    VideoIndex,
    default_index,
    find_videos,
    index_videos,
    quarantine_all,
)
from ino.data.views import CropGeometry, make_crops
from ino.errors import ConfigError, InoError, OutputError, TrainingError
from ino.kernels.crops import PLAIN, Photometric
from ino.models.student_teacher import Views
from ino.system import available_cores, write_text
from ino.train.config import DataConfig, TrainConfig
from ino.train.distributed import of_first

_LOG = logging.getLogger("ino")


def sampling_of(data: DataConfig) -> ClipSampling:
    """Which frames make a clip.

    Args:
        data: of a resolved configuration.
    """
    return ClipSampling(
        length=data.clip_length,
        frame_step=data.frame_step or None,
        fps=data.fps or None,
        clips_per_video=data.clips_per_video,
    )


def has_shards(data: DataConfig) -> bool:
    """Whether the videos are in tar shards.

    Raises:
        ConfigError: there are no roots.
    """
    if not data.root:
        raise ConfigError("no videos were given; pass --data.root FOLDER")
    return any(map(is_shards, data.root))


def find_usable(data: DataConfig) -> tuple[list[str], dict[str, str], str]:
    """The videos, those left out with the reason, and a line on both for the screen.

    Raises:
        VideoError: there are no videos, or most cannot be used.
        OutputError: the index cannot be written where `data.index` says.
    """
    # Unlike Path.expanduser, it leaves the name of an unknown user alone.
    roots = [Path(os.path.expanduser(root)) for root in data.root]  # noqa: PTH111
    if data.index == "off":
        names = find_videos(roots)
        return names, {}, f"{len(names)} videos, none looked at before training"
    usable, seconds, left_out = choose_usable(_index(roots, data.index), sampling_of(data))
    return usable, left_out, f"{len(usable)} videos, {seconds / 3600:.1f} hours"


def find_shards(data: DataConfig) -> tuple[list[str], int, dict[str, str], str]:
    """Shards that hold videos, how many, which shards are broken, and a line for the screen.

    Raises:
        ConfigError: shards of another machine are named without `data.shard_videos`.
        VideoError: a shard does not exist, or no shard holds a video.
    """
    shards, num_videos, faults = survey_shards(
        expand_shards(data.root), num_stated=data.shard_videos
    )
    return shards, num_videos, faults, f"{num_videos} videos in {len(shards)} shards"


def count_epoch(data: DataConfig) -> int:
    """Clips of an epoch, over all processes.

    Args:
        data: of a resolved configuration.

    Raises:
        InoError: see `has_shards`, `find_usable` and `find_shards`.
    """
    num_videos = find_shards(data)[1] if has_shards(data) else len(find_usable(data)[0])
    return num_videos * data.clips_per_video


def _index(roots: list[Path], name: str) -> VideoIndex:
    """The index of the videos; where its usual place cannot be written, one that is not kept."""
    columns = ("headers", MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    # Where nobody sees it move, the bar would leave an empty line.
    hidden = not console.is_interactive
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("", total=None)

        def index(file: Path | None) -> VideoIndex:
            return index_videos(
                roots,
                file=file,
                on_found=lambda num_videos: bar.update(task, total=num_videos, completed=0),
                on_header=lambda num_more: bar.advance(task, num_more),
            )

        if name != "auto":
            return index(Path(name))
        try:
            return index(default_index(roots))
        except OutputError as error:
            _LOG.warning("%s; this time it is not kept", error)
            return index(None)


# The clips of a run, in batches, as its configuration asks.


VIDEOS_NAME = "videos.json"
QUARANTINE_NAME = "quarantine.sqlite"
_MOST_WORKERS = 16


@dataclass(frozen=True)
class Clips:
    """The clips of one process.

    Attributes:
        loader: its batches, from the position of `sampler` to the end of the epoch.
        sampler: says where in an epoch it is.
        digest: differs where the videos do.
        left_out: why videos are known to be of no use, by path.
    """

    loader: DataLoader
    sampler: ClipSampler | VisitSampler | ShardSchedule
    digest: str
    left_out: dict[str, str] = field(default_factory=dict)


def build_data(config: TrainConfig, fabric: Fabric, *, out: Path) -> Clips:
    """The clips of this process; the videos are looked for by the first process alone.

    Args:
        config: of the run.
        fabric: devices and processes.
        out: the run's folder, where videos are named that turn out to be of no use later.

    Raises:
        VideoError: there are no videos, or most cannot be used.
        ConfigError: an epoch has fewer clips than a step.
    """
    data = config.data
    if has_shards(data):
        return _shard_clips(config, fabric, out=out)
    names, left_out, told = of_first(fabric, lambda: find_usable(data))
    _tell(fabric, told, left_out)
    sampling = sampling_of(data)
    dataset = ClipDataset(
        names,
        sampling=sampling,
        seed=config.run.seed,
        quarantine=out / QUARANTINE_NAME,
        visits=data.visits,
    )
    share: dict[str, int] = {
        "batch_size": data.batch_size,
        "seed": config.run.seed,
        "rank": fabric.global_rank,
        "world_size": fabric.world_size,
    }
    sampler = (
        VisitSampler(len(names), clips_per_video=sampling.clips_per_video, **share)
        if data.visits
        else ClipSampler(len(dataset), **share)
    )
    loader = DataLoader(
        dataset,
        batch_size=data.batch_size,
        sampler=sampler,
        collate_fn=list,
        drop_last=True,
        **_loader_options(config, fabric),
    )
    return Clips(loader, sampler, dataset.digest, left_out)


def _shard_clips(config: TrainConfig, fabric: Fabric, *, out: Path) -> Clips:
    """The clips of this process from tar shards, which are read from front to back."""
    data = config.data
    shards, num_videos, faults, told = of_first(fabric, lambda: find_shards(data))
    _tell(fabric, told, faults)
    schedule = ShardSchedule(
        num_videos * data.clips_per_video,
        num_shards=len(shards),
        batch_size=data.batch_size,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    dataset = ShardClips(
        shards,
        schedule=schedule,
        sampling=sampling_of(data),
        seed=config.run.seed,
        quarantine=out / QUARANTINE_NAME,
    )
    # The data set makes whole batches.
    loader = DataLoader(
        dataset, batch_size=None, collate_fn=list, **_loader_options(config, fabric)
    )
    return Clips(loader, schedule, PathTable(shards).digest(), faults)


def record_videos(clips: Clips, out: Path) -> None:
    """Names in the run's folder what is left out, and warns if a resumed run has other videos.

    Raises:
        OutputError: the folder cannot be written to.
    """
    if clips.left_out:
        quarantine_all(out / QUARANTINE_NAME, clips.left_out)
    path = out / VIDEOS_NAME
    now = {"clips_an_epoch": clips.sampler.num_clips, "digest": clips.digest}
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = now
    if before != now:
        _LOG.warning(
            "the videos are not those that the run began with (%s clips an epoch then, %s now): "
            "it goes on with other clips than it would have had",
            before.get("clips_an_epoch") if isinstance(before, dict) else "other",
            now["clips_an_epoch"],
        )
    write_text(path, json.dumps(now) + "\n")


def _loader_options(config: TrainConfig, fabric: Fabric) -> dict[str, Any]:
    """How many processes decode, and what they have ready; each decodes in one thread."""
    num_workers = config.data.num_workers
    on_device = fabric.device.type != "cpu"
    if num_workers == "auto":
        share = available_cores() // config.run.devices
        # On a CPU the cores are for training, which takes many times what decoding does.
        num_workers = max(1, min(_MOST_WORKERS, share if on_device else share // 4))
    options: dict[str, Any] = {
        "num_workers": num_workers,
        "pin_memory": fabric.device.type == "cuda",
    }
    if num_workers:
        options |= {"persistent_workers": True, "prefetch_factor": config.data.prefetch}
    return options


def _tell(fabric: Fabric, found: str, left_out: dict[str, str]) -> None:
    told = f", {len(left_out)} left out ({QUARANTINE_NAME} says why)" if left_out else ""
    if fabric.is_global_zero:
        Console(stderr=True).print(found + told, highlight=False, soft_wrap=True)


# The clips of each step, epoch after epoch, also past decoding processes that die.


_MOST_DEATHS = 3
_QUIET_BATCHES = 100  # that make up for the deaths before them


def batches(
    loader: DataLoader,
    sampler: ClipSampler | VisitSampler | ShardSchedule,
    *,
    first_step: int,
    num_steps: int,
    steps_per_epoch: int,
) -> Iterator[list[Tensor]]:
    """The clips of each step from `first_step` on.

    A decoding process that is killed (often for memory) costs the batches that were under way: all
    are started again where the run is, and give the same clips.

    Raises:
        TrainingError: decoding processes die again and again.
        InoError: as the data set raises it.
    """
    step, num_deaths, last_death = first_step, 0, first_step
    while step < num_steps:
        sampler.set_position(*divmod(step, steps_per_epoch))
        try:
            read = _workers_watched(loader)
            for clips in sampler.batches(read) if isinstance(sampler, VisitSampler) else read:
                yield clips
                step += 1
                if step == num_steps:
                    return
        except InoError as error:
            # A worker process puts its whole traceback into the message.
            kind = type(error)
            raise kind(str(error).rpartition(f"{kind.__name__}: ")[2]) from error
        except (RuntimeError, OSError, EOFError) as error:
            if loader.num_workers == 0 or not _tells_death(error):
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


def _workers_watched(loader: DataLoader) -> Iterator[list[Tensor]]:
    """Batches of a loader whose dead workers show only where a batch is asked for.

    torch raises from a handler of SIGCHLD, that is from any line of the training step, and finds a
    dead worker without it, too: some seconds later, when it waits for a batch.
    """
    in_main = threading.current_thread() is threading.main_thread()
    has_signal = in_main and hasattr(signal, "SIGCHLD")
    earlier = signal.getsignal(signal.SIGCHLD) if has_signal else None
    iterator = iter(loader)
    if has_signal and _is_torch_s(signal.getsignal(signal.SIGCHLD)):
        kept = signal.SIG_DFL if earlier is None or _is_torch_s(earlier) else earlier
        signal.signal(signal.SIGCHLD, kept)
    yield from iterator


def _is_torch_s(handler: object) -> bool:
    return getattr(handler, "__module__", "") == "torch.utils.data._utils.signal_handling"


def _tells_death(error: Exception) -> bool:
    """Whether a worker is gone, as torch says it or as its half-sent batch shows; not its error."""
    text = str(error)
    if text.startswith("Caught "):
        return False
    half_sent = (ConnectionError, EOFError, FileNotFoundError)
    return "DataLoader worker (pid" in text or isinstance(error, half_sent)


# The views of a step, drawn from its number: crops, colours, mask.
#
# A clip's draw follows from seed, step and the clip's place in the global batch alone. Any number
# of processes that share a global batch, and a run that resumes, see the same views.


def seed_drop_path(seed: int, *, step: int, rank: int) -> None:
    """Seeds torch's generators for a step; each process drops paths of its own."""
    drawn = np.random.SeedSequence([seed, step], spawn_key=(2, rank)).generate_state(2, np.uint32)
    torch.manual_seed(int(drawn[0]) << 32 | int(drawn[1]))


def sample_views(
    config: TrainConfig,
    clips: Sequence[Tensor],
    *,
    step: int,
    device: torch.device,
    first_clip: int = 0,
) -> Views:
    """The crops and the masked positions of a step.

    The number of masked positions is that of all processes; with `masking.shared`, so is the mask.

    Args:
        config: a resolved configuration.
        clips: uint8 frames of each clip.
        step: counted from 0.
        device: where crops are cut.
        first_clip: place of the first clip in the global batch of the step.
    """
    settings = config.views
    seed = [config.run.seed, step]
    streams = clip_streams(seed, num_clips=len(clips), first_clip=first_clip)
    masked = _draw_masked(config, streams, step=step)
    colour = Photometric(flip=settings.flip, jitter=settings.jitter, grey=settings.grey)
    clips = [clip.to(device, non_blocking=True) for clip in clips]
    global_crops = make_crops(
        clips,
        geometry=CropGeometry(settings.global_size, settings.global_scale),
        photometric=colour if settings.colour_on_global else PLAIN,
        num_crops=1,
        rng=streams,
    )[:, 0]
    local_crops = None
    if settings.num_local and config.loss.l2g > 0:
        local_crops = make_crops(
            clips,
            geometry=CropGeometry(settings.local_size, settings.local_scale),
            photometric=dataclasses.replace(colour, blur=settings.local_blur),
            num_crops=settings.num_local,
            rng=streams,
        )
    positions = None if masked is None else torch.from_numpy(masked).to(device)
    return Views(global_crops, local_crops, positions)


def _draw_masked(
    config: TrainConfig, streams: Sequence[np.random.Generator], *, step: int
) -> Int[np.ndarray, "clips masked"] | None:
    """The masked positions of each clip, ascending."""
    masking = config.masking
    shared_rng = np.random.default_rng([config.run.seed, step, 0])
    side = config.views.global_size // config.model.patch_size
    has_in_generative = config.loss.masked > 0 or config.loss.affinity > 0
    num_masked = sample_num_masked(
        shared_rng,
        num_tokens=side * side,
        probability=masking.probability if has_in_generative else 0.0,
        ratio=masking.ratio,
    )
    if not num_masked:
        return None
    masks = [
        sample_masks(
            stream,
            num_clips=num_clips,
            rows=side,
            columns=side,
            num_masked=num_masked,
            kind=masking.kind or "blockwise",
            shared=bool(masking.shared),
        )
        for stream, num_clips in (
            [(shared_rng, len(streams))] if masking.shared else [(one, 1) for one in streams]
        )
    ]
    return np.nonzero(np.concatenate(masks))[1].reshape(len(streams), num_masked)
