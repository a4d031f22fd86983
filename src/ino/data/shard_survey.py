"""How many videos shards hold, and which shards are broken, before any is read through."""

import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ino.data.shards import is_image_member, is_remote, is_video_member, reason_of
from ino.errors import ConfigError, VideoError


def survey_shards(
    shards: Sequence[str], *, num_stated: int
) -> tuple[list[str], int, dict[str, str]]:
    """The shards that hold videos, how many all of them hold, and what is wrong with which shard.

    Args:
        shards: as `expand_shards` gives them.
        num_stated: what the user says of all of them; 0 to count, which remote ones do not allow.

    Raises:
        ConfigError: it is 0 and some shards are remote.
        VideoError: there is no video.
    """
    remote = [shard for shard in shards if is_remote(shard)]
    if remote and not num_stated:
        raise ConfigError(
            f"{remote[0]} is not a file of this machine, and to count its videos would be to read "
            "all of it: say with data.shard_videos how many all shards hold together"
        )
    if num_stated:
        return list(shards), num_stated, {}
    counts = {shard: count_videos(shard) for shard in shards}
    faults = {shard: fault for shard, (_, fault) in counts.items() if fault}
    num_videos = sum(count for count, _ in counts.values())
    if not num_videos:
        raise VideoError(f"no shard holds a video (the first: {next(iter(faults.values()))})")
    return [shard for shard, (count, _) in counts.items() if count], num_videos, faults


def count_videos(shard: str) -> tuple[int, str]:
    """How many videos a local shard has, by its members' headers, and what is wrong with it."""
    num_videos = num_images = 0
    previous = None
    is_plain = shard.endswith(".tar")
    try:
        size = Path(shard).stat().st_size
        with tarfile.open(shard) as archive:
            for member in archive:
                name = member.name
                if is_plain and member.offset_data + member.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                if not member.isreg() or not (is_video_member(name) or is_image_member(name)):
                    continue
                folder = str(PurePosixPath(name).parent) if is_image_member(name) else None
                num_images = num_images + 1 if folder is not None and folder == previous else 1
                num_videos += folder is None or num_images == 2
                previous = folder
    except (tarfile.TarError, EOFError, OSError) as error:
        return num_videos, (
            f"the shard {shard} breaks off after {num_videos} videos ({reason_of(error)}): copy it "
            "again to get the rest"
        )
    if not num_videos:
        return 0, f"the shard {shard} holds no video: name shards that do"
    return num_videos, ""
