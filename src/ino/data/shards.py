"""Videos in tar files ("shards"), read by the library webdataset from a disk, HTTP or a pipe.

A video is a member with a video's suffix, or two and more images that directly follow one another
in one folder of the tar file. Other members (labels, captions) are passed over.
"""

import contextlib
import glob
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ino.data.container import NOMINAL_FPS, VideoFile
from ino.data.frame_folder import IMAGE_SUFFIXES, natural_key, read_image
from ino.data.frame_index import check_numbers, count_frames, read_numbered
from ino.data.video import VIDEO_SUFFIXES
from ino.errors import ConfigError, VideoError

_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_NUM_TRIES = 3  # of a shard that comes over a network


@dataclass(frozen=True)
class ShardVideo:
    """A video of a shard, not decoded.

    Attributes:
        name: shard and member.
        path: the same, short, as a path that names no file; for messages.
        files: names and bytes: one video file, or the images in the order shown.
    """

    name: str
    path: Path
    files: tuple[tuple[str, bytes], ...]

    def read_chosen(self, choose: Callable[[int, float], Sequence[int]]) -> np.ndarray:
        """As `ino.data.video.read_chosen`.

        Raises:
            VideoError: as there.
        """
        name, content = self.files[0]
        if not is_image_member(name):
            with VideoFile(self.path, num_threads=1, content=content) as file:
                return read_numbered(file, choose(count_frames(file), file.fps))
        indices = choose(len(self.files), NOMINAL_FPS)
        check_numbers(self.path, indices, num_frames=len(self.files))
        frames: dict[int, np.ndarray] = {}
        size = None
        for index in sorted(set(indices)):
            name, content = self.files[index]
            frames[index] = read_image(self.path / name, size=size, content=content)
            size = frames[index].shape[0], frames[index].shape[1]
        return np.stack([frames[index] for index in indices])


class ShardCutError(VideoError):
    """A shard is not a whole tar file; its videos up to there were given."""


def is_shards(root: str) -> bool:
    """Whether a root names shards and not a folder, a video or a list."""
    return root.endswith(_SUFFIXES) or is_remote(root)


def is_remote(shard: str) -> bool:
    """Whether a shard is no file of this machine."""
    return "://" in shard or shard.startswith("pipe:")


def is_video_member(name: str) -> bool:
    """Whether a member of a tar file is a video by its name."""
    return PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES and not _is_hidden(name)


def is_image_member(name: str) -> bool:
    """Whether a member of a tar file is an image by its name."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not _is_hidden(name)


def expand_shards(roots: Sequence[str]) -> list[str]:
    """The shards that the roots name, sorted; {000..099} counts up, * stands for what is there.

    Raises:
        ConfigError: the library is missing, or a root is no shard.
        VideoError: a file does not exist.
    """
    expand = _library("shardlists").expand_urls
    found: set[str] = set()
    for root in roots:
        if not is_shards(root):
            raise ConfigError(
                f"{root} is no shard, but others of data.root are: give either shards "
                f"({', '.join(_SUFFIXES)}, http://, s3://, pipe:) or folders, videos and lists"
            )
        for shard in expand(root):
            if is_remote(shard):
                found.add(shard)
                continue
            files = glob.glob(shard) if "*" in shard else [shard]  # noqa: PTH207, of text
            missing = [file for file in files if not Path(file).is_file()]
            if missing or not files:
                raise VideoError(
                    f"the shard {(missing or [shard])[0]} does not exist: check data.root"
                )
            found.update(files)
    return sorted(found)


def read_shard(shard: str) -> Iterator[ShardVideo]:
    """The videos of a shard in their order; what comes over a network is tried three times.

    Raises:
        ShardCutError: the shard ends too early, is no tar file, or holds no video.
        VideoError: it cannot be read.
    """
    num_given = 0
    for attempt in range(_NUM_TRIES if is_remote(shard) else 1):
        try:
            for number, video in enumerate(_group(shard, _members(shard))):
                if number >= num_given:
                    yield video
                    num_given += 1
            break
        except tarfile.TarError as error:
            raise ShardCutError(
                f"the shard {shard} breaks off after {num_given} whole videos ({error}): copy it "
                "again to get the rest"
            ) from error
        except OSError as error:
            if attempt + 1 == (_NUM_TRIES if is_remote(shard) else 1):
                raise VideoError(
                    f"the shard {shard} cannot be read ({reason_of(error)}): see that it is there "
                    "and can be reached, then resume"
                ) from error
    if not num_given:
        raise ShardCutError(f"the shard {shard} holds no video: name shards that do")


def _members(shard: str) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of a tar file's members."""
    url = f"pipe:aws s3 cp {shard} -" if shard.startswith("s3://") else shard
    stream = _library("gopen").gopen(url, "rb")
    try:
        for member in _library("tariterators").tar_file_iterator(
            stream, select_files=lambda name: is_video_member(name) or is_image_member(name)
        ):
            yield member["fname"], member["data"]
        # A tar file that ends between two members looks whole: the sender's status tells. It is
        # known once all was heard.
        while stream.read(1 << 16):
            pass
        stream.close()
    except (tarfile.TarError, EOFError) as error:
        stream.close()  # tells, by an OSError, if the transport failed and not the file
        raise tarfile.ReadError(str(error).partition(" @ ")[0]) from error
    finally:
        with contextlib.suppress(OSError):  # a sender that was not heard to its end complains
            stream.close()


def _group(shard: str, members: Iterator[tuple[str, bytes]]) -> Iterator[ShardVideo]:
    """Videos, the images of one folder together."""
    images: list[tuple[str, bytes]] = []
    folder = ""

    def video(name: str, files: list[tuple[str, bytes]]) -> ShardVideo:
        return ShardVideo(f"{shard}/{name}", Path(PurePosixPath(shard).name) / name, tuple(files))

    def sequence() -> Iterator[ShardVideo]:
        if len(images) > 1:  # a single one is a video's thumbnail
            yield video(folder, sorted(images, key=lambda image: natural_key(image[0])))

    for path, content in members:
        name = PurePosixPath(path)
        if not is_image_member(path) or str(name.parent) != folder:
            yield from sequence()
            images = []
        if is_image_member(path):
            folder = str(name.parent)
            images.append((name.name, content))
        else:
            yield video(path, [(name.name, content)])
    yield from sequence()


def _library(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"webdataset.{module}")
    except ImportError as error:
        raise ConfigError(
            "shards need the library webdataset: install it with pip install 'ino[shards]'"
        ) from error


def _is_hidden(name: str) -> bool:
    return PurePosixPath(name).name.startswith(".")


def reason_of(error: Exception) -> str:
    """What the system or the library says, short."""
    return getattr(error, "strerror", None) or str(error)
