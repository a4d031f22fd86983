"""The clips of a run, in batches, as its configuration asks."""

from pathlib import Path

from lightning.fabric import Fabric
from torch.utils.data import DataLoader

from ino.data.clips import ClipDataset, ClipSampler, ClipSampling, find_videos
from ino.errors import ConfigError
from ino.train.config import TrainConfig


def build_data(
    config: TrainConfig, fabric: Fabric, *, quarantine: Path
) -> tuple[DataLoader, ClipSampler]:
    """The clips of this process, in batches, and the sampler that says where in an epoch they are.

    Raises:
        VideoError: there are no videos.
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
    videos = find_videos([Path(root) for root in data.root])
    dataset = ClipDataset(
        videos,
        sampling=sampling,
        seed=config.run.seed,
        quarantine=quarantine,
    )
    global_batch = data.batch_size * fabric.world_size
    if len(dataset) < global_batch:
        raise ConfigError(
            f"an epoch has {len(dataset)} clips ({len(videos)} videos x data.clips_per_video "
            f"{sampling.clips_per_video}), fewer than the {global_batch} of one step; "
            "raise data.clips_per_video or lower data.batch_size"
        )
    sampler = ClipSampler(
        len(dataset),
        batch_size=data.batch_size,
        seed=config.run.seed,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    loader = DataLoader(
        dataset,
        batch_size=data.batch_size,
        sampler=sampler,
        num_workers=data.num_workers,
        collate_fn=list,
        drop_last=True,
        persistent_workers=data.num_workers > 0,
    )
    return loader, sampler
