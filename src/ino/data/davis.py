"""Which frames and annotations DAVIS holds, from its folders and lists.

Only paths are read here: no image is opened. Any data set in this layout can be read; frames are
JPEG, annotations PNG, and an annotation belongs to the frame of the same name.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ino.data.images import natural_key
from ino.data.names import check_name, read_lines
from ino.errors import DatasetError


@dataclass(frozen=True)
class VideoSequence:
    """A video of a data set: its frames in order, and the annotation of each annotated frame.

    The keys of `annotations` are positions in `frames`, in ascending order.
    """

    name: str
    frames: tuple[Path, ...]
    annotations: Mapping[int, Path]


def read_davis(
    root: Path,
    *,
    year: int = 2017,
    split: str = "val",
    resolution: str = "480p",
    sequences: Sequence[str] | None = None,
) -> list[VideoSequence]:
    """The sequences of a split of DAVIS, in the order of its list.

    Layout: `JPEGImages/<resolution>/<sequence>/*.jpg`, `Annotations/<resolution>/<sequence>/*.png`
    and `ImageSets/<year>/<split>.txt` with one sequence per line. For 2016 the list may also be
    that of the first release, `ImageSets/<resolution>/<split>.txt`, with a pair of files per line.

    Args:
        root: the folder that holds JPEGImages.
        year: of the list.
        split: name of the list.
        resolution: name of the folder between JPEGImages and the sequences.
        sequences: the sequences of the list to read, all if None. The others may be absent.

    Raises:
        DatasetError: the list, the frames of a sequence or the annotation of its first frame are
            missing, an annotation belongs to no frame, or the list holds what is no name.
    """
    names = _read_list(root, year=year, split=split, resolution=resolution)
    if sequences is not None:
        if unknown := [name for name in sequences if name not in names]:
            raise DatasetError(
                f"{unknown[0]} is not in the {year} {split} list of {root}, which holds "
                f"{', '.join(names)}"
            )
        names = [name for name in names if name in sequences]
    frames, annotations = (root / part / resolution for part in ("JPEGImages", "Annotations"))
    return [
        read_sequence(name, frames / name, annotations / name, needs_first=True) for name in names
    ]


def _read_list(root: Path, *, year: int, split: str, resolution: str) -> list[str]:
    """The sequences of a list of DAVIS, each once, in order."""
    folder = root / "ImageSets"
    candidates = [folder / str(year) / f"{split}.txt"]
    if year == 2016:
        candidates.append(folder / resolution / f"{split}.txt")
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        lists = sorted(str(found.relative_to(root)) for found in folder.glob("*/*.txt"))
        raise DatasetError(
            f"{candidates[0]} does not exist: expected the list of the {split} sequences; "
            f"{root} has {', '.join(lists) or 'no lists'}"
        )
    names = dict.fromkeys(map(_sequence_name, read_lines(path)))
    if not names:
        raise DatasetError(f"{path} is empty: expected the name of a sequence on each line")
    return [check_name(name, source=path) for name in names]


def _sequence_name(line: str) -> str:
    """A line is a name, or the files `/JPEGImages/480p/bear/00000.jpg /Annotations/...`."""
    return Path(line.split()[0]).parent.name if "/" in line else line


def read_sequence(
    name: str, frames: Path, annotations: Path, *, needs_first: bool = False
) -> VideoSequence:
    """The video of one folder of JPEG frames and one of PNG annotations.

    Args:
        name: of the video.
        frames: folder of the frames.
        annotations: folder of the annotations.
        needs_first: whether the first frame must be annotated.

    Raises:
        DatasetError: one of the folders holds no file, an annotation belongs to no frame, or the
            first one is missing though needed.
    """
    images = _files(frames, (".jpg", ".jpeg"))
    if not images:
        raise DatasetError(f"{name} has no frames: expected JPEG files in {frames}")
    positions = {image.stem: position for position, image in enumerate(images)}
    masks = _files(annotations, (".png",))
    if not masks:
        raise DatasetError(f"{name} has no annotation: expected PNG files in {annotations}")
    if orphans := [mask for mask in masks if mask.stem not in positions]:
        raise DatasetError(
            f"{name} has {len(orphans)} annotated frames without an image, the first of them "
            f"{orphans[0].stem}: expected {frames / orphans[0].stem}.jpg"
        )
    found = {positions[mask.stem]: mask for mask in masks}
    if needs_first and 0 not in found:
        first = images[0].stem
        raise DatasetError(
            f"{name} has no annotation of its first frame {first}: expected "
            f"{annotations / first}.png"
        )
    return VideoSequence(name, tuple(images), found)


def _files(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """The files of a folder in natural order, without hidden ones, such as macOS leaves there."""
    if not folder.is_dir():
        return []
    found = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    ]
    return sorted(found, key=lambda path: natural_key(path.name))
