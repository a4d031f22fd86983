"""The clips of a run, in batches, as its configuration asks."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lightning.fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from torch.utils.data import DataLoader

from ino.data.clips import ClipDataset, ClipSampler, ClipSampling
from ino.data.cores import available_cores
from ino.data.index_file import default_index
from ino.data.path_table import PathTable
from ino.data.quarantine import quarantine_all
from ino.data.shard_clips import ShardClips, ShardSchedule
from ino.data.shard_survey import survey_shards
from ino.data.shards import expand_shards, is_shards
from ino.data.usable_videos import choose_usable
from ino.data.video_index import VideoIndex, index_videos
from ino.data.video_list import find_names
from ino.data.visits import VisitSampler
from ino.errors import ConfigError, InoError, OutputError
from ino.files import atomic_path
from ino.train.config import DataConfig, TrainConfig

VIDEOS_NAME = "videos.json"
QUARANTINE_NAME = "quarantine.jsonl"
_MOST_WORKERS = 16
Found = TypeVar("Found")
_LOG = logging.getLogger("ino")


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
    if not data.root:
        raise ConfigError("no videos were given; pass --data.root FOLDER")
    sampling = ClipSampling(
        length=data.clip_length,
        frame_step=data.frame_step or None,
        fps=data.fps or None,
        clips_per_video=data.clips_per_video,
    )
    if any(map(is_shards, data.root)):
        return _shard_clips(config, sampling, fabric, out=out)
    names, left_out = _once(fabric, lambda: _find(data, sampling))
    dataset = ClipDataset(
        names,
        sampling=sampling,
        seed=config.run.seed,
        quarantine=out / QUARANTINE_NAME,
        visits=data.visits,
    )
    global_batch = data.batch_size * fabric.world_size
    if len(dataset) < global_batch:
        raise ConfigError(
            f"an epoch has {len(dataset)} clips ({len(names)} videos x data.clips_per_video "
            f"{sampling.clips_per_video}), fewer than the {global_batch} of one step; "
            "raise data.clips_per_video or lower data.batch_size"
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


def _shard_clips(
    config: TrainConfig, sampling: ClipSampling, fabric: Fabric, *, out: Path
) -> Clips:
    """The clips of this process from tar shards, which are read from front to back."""
    data = config.data
    shards, num_videos, faults = _once(
        fabric, lambda: survey_shards(expand_shards(data.root), num_stated=data.shard_videos)
    )
    schedule = ShardSchedule(
        num_videos * sampling.clips_per_video,
        num_shards=len(shards),
        batch_size=data.batch_size,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    dataset = ShardClips(
        shards,
        schedule=schedule,
        sampling=sampling,
        seed=config.run.seed,
        quarantine=out / QUARANTINE_NAME,
    )
    # The data set makes whole batches.
    loader = DataLoader(
        dataset, batch_size=None, collate_fn=list, **_loader_options(config, fabric)
    )
    if fabric.is_global_zero:
        _tell(f"{num_videos} videos in {len(shards)} shards", faults)
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
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(now) + "\n", encoding="utf-8")


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


def _once(fabric: Fabric, find: Callable[[], Found]) -> Found:
    """What the first process finds, in all of them: no two can differ.

    Raises:
        InoError: in every process, what the first one raised.
    """
    found: Any = None
    if fabric.is_global_zero:
        try:
            found = find()
        except InoError as error:
            found = error
    found = fabric.broadcast(found)
    if isinstance(found, InoError):
        raise found
    return found


def _find(data: DataConfig, sampling: ClipSampling) -> tuple[list[str], dict[str, str]]:
    """The videos, and those left out with the reason."""
    roots = [Path(root) for root in data.root]
    if data.index == "off":
        names = find_names(roots)
        _tell(f"{len(names)} videos, none looked at before training", {})
        return names, {}
    usable, seconds, left_out = choose_usable(_index(roots, data.index), sampling)
    _tell(f"{len(usable)} videos, {seconds / 3600:.1f} hours", left_out)
    return usable, left_out


def _tell(found: str, left_out: dict[str, str]) -> None:
    told = f", {len(left_out)} left out ({QUARANTINE_NAME} says why)" if left_out else ""
    Console(stderr=True).print(found + told, highlight=False, soft_wrap=True)


def _index(roots: list[Path], name: str) -> VideoIndex:
    """The index of the videos; where its usual place cannot be written, one that is not kept."""
    columns = ("headers", MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
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
