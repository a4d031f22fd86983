"""The clips of a run, in batches, as its configuration asks."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from rich.console import Console
from torch.utils.data import DataLoader

from ino.data.clip_sampler import ClipSampler
from ino.data.clips import ClipDataset
from ino.data.cores import available_cores
from ino.data.path_table import PathTable
from ino.data.quarantine import quarantine_all
from ino.data.shard_clips import ShardClips, ShardSchedule
from ino.data.visits import VisitSampler
from ino.files import write_text
from ino.train.config import TrainConfig
from ino.train.devices import of_first
from ino.train.videos import find_shards, find_usable, has_shards, sampling_of

VIDEOS_NAME = "videos.json"
QUARANTINE_NAME = "quarantine.jsonl"
_MOST_WORKERS = 16
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
