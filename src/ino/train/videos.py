"""Which videos a run draws its clips from, and how many clips that makes an epoch.

Training and what plans it (lengths, sweeps) count here: by the index, which leaves out videos that
cannot give a clip, or in tar shards.
"""

import logging
import os
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from ino.data.clips import ClipSampling
from ino.data.index_file import default_index
from ino.data.shard_survey import survey_shards
from ino.data.shards import expand_shards, is_shards
from ino.data.usable_videos import choose_usable
from ino.data.video_index import VideoIndex, index_videos
from ino.data.video_list import find_names
from ino.errors import ConfigError, OutputError
from ino.train.config import DataConfig

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
        names = find_names(roots)
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
