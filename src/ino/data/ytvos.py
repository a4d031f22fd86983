"""YouTube-VOS: the videos of a split, from its folders and meta.json, and the seen categories.

The split's folder holds `JPEGImages` (every fifth frame), `Annotations` (where objects first
appear; every frame of JPEGImages in `train`) and `meta.json`, which must agree with the folders.
The folder of all frames beside it is optional. No frame is decoded here, only annotations.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ino.data.davis import VideoSequence, read_sequence
from ino.data.images import list_images
from ino.data.label_maps import VOID, read_labels
from ino.data.names import check_name
from ino.errors import DatasetError, VideoError
from ino.schema import parse_json, read_json
from ino.system import read_file

_NUM_THREADS = 8
_ADVICE = "copy the split again, or delete meta.json to go by the folders alone"
_OFFICIAL_NAME = re.compile(r"[0-9a-f]{10}")
_TRAIN = """
airplane ape bear bike bird boat bucket bus camel cat cow crocodile deer dog dolphin duck eagle
earless_seal elephant fish fox frisbee frog giant_panda giraffe hand hat hedgehog horse knife
leopard lion lizard monkey motorbike mouse others owl paddle parachute parrot penguin person plant
rabbit raccoon sedan shark sheep sign skateboard snail snake snowboard squirrel surfboard
tennis_racket tiger toilet train truck turtle umbrella whale zebra
"""
YTVOS_SEEN = frozenset(_TRAIN.split())
"""The 65 categories of the training set of 2018 and 2019, as Refer-YouTube-VOS lists them, which
describes its 3,471 videos."""


@dataclass(frozen=True)
class YtvosVideo:
    """A video of a split.

    Attributes:
        name: of its folder.
        frames: the frames through which masks are propagated, in order: all from the first to the
            last frame of the submission.
        annotations: path of each annotation, by name of the frame, in order.
        entries: for each object, ascending, the name of the first frame whose annotation holds it.
        submitted: names of the frames whose masks are handed in, in order.
        required: those of them that the server must find: the ones that meta.json lists for any
            object, or all of them if it lists none.
        categories: of the objects, as far as meta.json tells.
    """

    name: str
    frames: tuple[Path, ...]
    annotations: Mapping[str, Path]
    entries: Mapping[int, str]
    submitted: tuple[str, ...]
    required: frozenset[str]
    categories: Mapping[int, str]

    @property
    def has_truth(self) -> bool:
        """Whether frames are annotated in which no object enters, so that it can be scored."""
        return not set(self.annotations) <= set(self.entries.values())

    @property
    def first_annotation(self) -> Path:
        return next(iter(self.annotations.values()))


@dataclass(frozen=True)
class YtvosSplit:
    """A split: its folder, the folder that its frames come from, and its videos by name.

    `is_whole` is False if only some of its videos were read.
    """

    name: str
    folder: Path
    frames_folder: Path
    videos: tuple[YtvosVideo, ...]
    is_whole: bool


@dataclass(frozen=True)
class _Object:
    """An object of meta.json."""

    category: str | None
    frames: tuple[str, ...]


_Meta = Mapping[str, Mapping[int, _Object]]  # for each video its objects by number


@dataclass(frozen=True)
class SeenCategories:
    """The names of the seen categories, and a description of where they come from."""

    names: frozenset[str]
    source: str


def seen_categories(
    root: Path, *, videos: Iterable[str], file: Path | None = None
) -> SeenCategories | None:
    """The categories that count as seen, which are those of the training set.

    They come from `file`, else `root`/train/meta.json, else `YTVOS_SEEN`, but that only if every
    video is named as in YouTube-VOS, by ten hexadecimal digits; else None.

    Args:
        root: the data set.
        videos: names of the videos that are scored.
        file: one category per line, or a meta.json.

    Raises:
        DatasetError: the file or train/meta.json is missing, broken or names no category.
    """
    train = root / "train" / "meta.json"
    if file is None and train.is_file():
        file = train
    if file is not None:
        names = _read_categories(file)
        return SeenCategories(names, f"{len(names)} categories of {file}")
    if all(_OFFICIAL_NAME.fullmatch(name) for name in videos):
        return SeenCategories(YTVOS_SEEN, "the 65 categories of YouTube-VOS train")
    return None


def _read_categories(path: Path) -> frozenset[str]:
    expected = "expected one category per line, or a meta.json with the category of each object"
    try:
        text = read_file(path).decode("utf-8-sig")
        if path.suffix.lower() == ".json":
            videos = parse_json(text)["videos"].values()
            names = [one["category"] for video in videos for one in video["objects"].values()]
        else:
            lines = (line.partition("#")[0].strip() for line in text.splitlines())
            names = [line for line in lines if line]
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a category is no text")
        found = frozenset(names)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}): {expected}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path} does not tell which categories are seen: {expected}") from error
    if not found:
        raise DatasetError(f"{path} is empty: {expected}")
    return found


def read_ytvos_split(
    root: Path | str, *, split: str = "valid", videos: Sequence[str] | None = None
) -> YtvosSplit:
    """The videos of a split, in the order of their names, checked against its meta.json.

    Frames come from `<split>_all_frames/JPEGImages`, in `root` or in `root`/all_frames, and from
    the split itself if that does not exist. Without a meta.json, the folders decide.

    Args:
        root: the folder that holds the split.
        split: name of its folder.
        videos: the ones to read, all if None. The others may be absent.

    Raises:
        DatasetError: folders or files are missing, or meta.json is broken or disagrees with them.
        MaskError: an annotation cannot be read.
    """
    root = Path(root)
    folder = root / split
    for needed in (folder / "JPEGImages", folder / "Annotations"):
        if not needed.is_dir():
            advice = "; give the folder above" if (root / "JPEGImages").is_dir() else ""
            raise DatasetError(
                f"{needed} does not exist: expected {split}/JPEGImages and {split}/Annotations in "
                f"{root}{advice}"
            )
    meta = _read_meta(folder / "meta.json")
    names = _choose_names(folder, meta, videos)
    whole = f"{split}_all_frames"
    candidates = [root / whole, root / "all_frames" / whole]
    frames_folder = next((path for path in candidates if (path / "JPEGImages").is_dir()), folder)
    read = partial(_read_video, folder=folder, frames_folder=frames_folder, meta=meta)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:  # decoding runs outside Python's lock
        found = tuple(pool.map(read, names))
    return YtvosSplit(split, folder, frames_folder, found, is_whole=videos is None)


def _read_meta(path: Path) -> _Meta | None:
    """What meta.json lists; None if there is none."""
    if not path.is_file():
        return None
    try:
        videos = read_json(path)["videos"]
        return {
            check_name(name, source=path): {
                int(label): _Object(_category(one), _frames(one, path))
                for label, one in video["objects"].items()
            }
            for name, video in videos.items()
        }
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{path} is not the meta.json of YouTube-VOS, in which each of `videos` has `objects` "
            "with a number each: copy it again, or delete it to go by the folders alone"
        ) from error


def _frames(listed: Mapping[str, Iterable[object]], path: Path) -> tuple[str, ...]:
    return tuple(check_name(str(frame), source=path) for frame in listed.get("frames") or ())


def _category(listed: Mapping[str, object]) -> str | None:
    category = listed.get("category")
    if not isinstance(category, str | None):
        raise TypeError(f"the category {category!r} is no text")
    return category


def _choose_names(folder: Path, meta: _Meta | None, chosen: Sequence[str] | None) -> list[str]:
    """The videos to read, checked to be the same in meta.json and the folders."""
    held = {
        part: {
            path.name
            for path in (folder / part).iterdir()
            if path.is_dir() and not path.name.startswith(".")
        }
        for part in ("JPEGImages", "Annotations")
    }
    known = set(meta) if meta is not None else held["Annotations"]
    if meta is not None and not known:
        raise DatasetError(f"{folder / 'meta.json'} lists no video: {_ADVICE}")
    if not known:
        raise DatasetError(f"{folder / 'Annotations'} holds no folder: expected one per video")
    if chosen is not None:
        if unknown := [name for name in chosen if name not in known]:
            raise DatasetError(
                f"{unknown[0]} is none of the {len(known)} videos of {folder}: expected a name "
                f"such as {min(known)}"
            )
        known &= set(chosen)
    if meta is None:
        return sorted(known)
    for part, names in held.items():
        if missing := sorted(known - names):
            raise DatasetError(
                f"{folder / 'meta.json'} lists the video {missing[0]}, but {folder / part} has no "
                f"folder for it ({len(missing)} of {len(known)} are missing): {_ADVICE}"
            )
        if chosen is None and (extra := sorted(names - known)):
            raise DatasetError(
                f"{folder / part} holds the video {extra[0]}, which meta.json does not list "
                f"({len(extra)} such videos): {_ADVICE}"
            )
    return sorted(known)


def _read_video(name: str, *, folder: Path, frames_folder: Path, meta: _Meta | None) -> YtvosVideo:
    images = folder / "JPEGImages" / name
    sequence = read_sequence(name, images, folder / "Annotations" / name)
    stems = [path.stem for path in sequence.frames]
    annotations = {stems[position]: path for position, path in sequence.annotations.items()}
    entries = _entries(annotations)
    if not entries:
        raise DatasetError(
            f"{name} has no object in its {len(annotations)} annotations, the first of them "
            f"{next(iter(annotations.values()))}: expected a number from 1 to 254 on some pixels"
        )
    listed = {} if meta is None else meta[name]
    if meta is not None:
        _check_objects(name, entries, listed, folder=folder)
    frames = {frame for one in listed.values() for frame in one.frames}
    if unknown := sorted(frames - set(stems)):
        raise DatasetError(
            f"{folder / 'meta.json'} lists the frame {unknown[0]} of {name}, but "
            f"{images / unknown[0]}.jpg does not exist ({len(unknown)} such frames): {_ADVICE}"
        )
    start = min(stems.index(frame) for frame in frames | set(entries.values()))
    submitted = tuple(stems[start:])
    return YtvosVideo(
        name=name,
        frames=_frames_between(sequence, submitted, folder=folder, frames_folder=frames_folder),
        annotations=annotations,
        entries=entries,
        submitted=submitted,
        required=frozenset(frames or submitted),
        categories={label: one.category for label, one in listed.items() if one.category},
    )


def _entries(annotations: Mapping[str, Path]) -> dict[int, str]:
    """For each object the first annotated frame that holds it."""
    entries: dict[int, str] = {}
    for frame, path in annotations.items():
        counts = np.bincount(read_labels(path).ravel(), minlength=VOID)
        for label in np.flatnonzero(counts[1:VOID]) + 1:
            entries.setdefault(int(label), frame)
    return dict(sorted(entries.items()))


def _check_objects(
    name: str, entries: Mapping[int, str], listed: Mapping[int, _Object], *, folder: Path
) -> None:
    annotations = folder / "Annotations" / name
    if missing := sorted(set(listed) - set(entries)):
        raise DatasetError(
            f"{folder / 'meta.json'} lists object {missing[0]} of {name}, but no annotation in "
            f"{annotations} holds it (they hold {', '.join(map(str, entries))}): {_ADVICE}"
        )
    if extra := sorted(set(entries) - set(listed)):
        raise DatasetError(
            f"{annotations / entries[extra[0]]}.png holds object {extra[0]}, which meta.json does "
            f"not list (it lists {', '.join(map(str, sorted(listed))) or 'none'}): {_ADVICE}"
        )


def _frames_between(
    sequence: VideoSequence, submitted: Sequence[str], *, folder: Path, frames_folder: Path
) -> tuple[Path, ...]:
    """The frames from the first to the last one whose mask is handed in."""
    if frames_folder == folder:
        return sequence.frames[-len(submitted) :]
    images = frames_folder / "JPEGImages" / sequence.name
    try:
        frames = list_images(images)
    except VideoError:
        frames = []
    positions = {path.stem: position for position, path in enumerate(frames)}
    if missing := [frame for frame in submitted if frame not in positions]:
        raise DatasetError(
            f"{images} lacks {len(missing)} of the {len(submitted)} frames that {folder.name} has "
            f"of this video, the first of them {missing[0]}: copy {frames_folder.name} again, or "
            f"take it away to go through the frames of {folder.name} alone"
        )
    return tuple(frames[positions[submitted[0]] : positions[submitted[-1]] + 1])
