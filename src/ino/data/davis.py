"""Which frames and annotations DAVIS and YouTube-VOS hold, from their folders.

Only paths are read here: no image is opened. Any data set in one of the two layouts can be read;
frames are JPEG, annotations PNG, and an annotation belongs to the frame of the same name.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ino.errors import DatasetError

_ALL_FRAMES = "_all_frames"


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
    and `ImageSets/<year>/<split>.txt` with a sequence a line. For 2016 the list may also be the
    one of the first release, `ImageSets/<resolution>/<split>.txt`, with a pair of files a line.

    Args:
        root: the folder that holds JPEGImages.
        year: of the list.
        split: name of the list.
        resolution: name of the folder between JPEGImages and the sequences.
        sequences: the sequences of the list to read; all where None. The others may be absent.

    Raises:
        DatasetError: the list, the frames of a sequence or the annotation of its first frame are
            missing, or an annotation belongs to no frame.
    """
    names = _read_names(root, year=year, split=split, resolution=resolution)
    if sequences is not None:
        if unknown := [name for name in sequences if name not in names]:
            raise DatasetError(
                f"{unknown[0]} is not in the {year} {split} list of {root}, which holds "
                f"{', '.join(names)}"
            )
        names = [name for name in names if name in sequences]
    found = []
    for name in names:
        sequence = read_sequence(
            name,
            frames=root / "JPEGImages" / resolution / name,
            annotations=root / "Annotations" / resolution / name,
        )
        if 0 not in sequence.annotations:
            raise DatasetError(
                f"{name} has no annotation of its first frame {sequence.frames[0].stem}: expected "
                f"{root / 'Annotations' / resolution / name / sequence.frames[0].stem}.png"
            )
        found.append(sequence)
    return found


def read_ytvos(root: Path, *, split: str = "valid") -> list[VideoSequence]:
    """The videos of a split of YouTube-VOS, in the order of their names.

    Layout: `<split>/JPEGImages/<video>/*.jpg`, `<split>/Annotations/<video>/*.png` on the frames
    where objects first appear and, optionally, `<split>/meta.json`, whose videos must then all be
    there. The split `valid_all_frames` holds every frame instead of every fifth; where it has no
    Annotations of its own, those of `valid` are taken.

    Args:
        root: the folder that holds the split, or the folder of the split itself.
        split: name of the folder.

    Raises:
        DatasetError: folders, frames or annotations are missing, meta.json is broken, or an
            annotation belongs to no frame.
    """
    folder = root / split if (root / split).is_dir() else root
    frames, annotations = folder / "JPEGImages", folder / "Annotations"
    if not annotations.is_dir():
        whole = folder.resolve()
        annotations = whole.parent / whole.name.removesuffix(_ALL_FRAMES) / "Annotations"
    for needed in (frames, annotations):
        if not needed.is_dir():
            raise DatasetError(
                f"{needed} does not exist: YouTube-VOS is {split}/JPEGImages and "
                f"{split}/Annotations in {root}, or these two folders in it"
            )
    meta = folder / "meta.json"
    names = _read_meta(meta) if meta.is_file() else folder_names(annotations)
    if not names:
        raise DatasetError(f"{annotations} holds no folder of annotations: expected one a video")
    return [
        read_sequence(name, frames=frames / name, annotations=annotations / name) for name in names
    ]


def _read_names(root: Path, *, year: int, split: str, resolution: str) -> list[str]:
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
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    names = [name for name in dict.fromkeys(map(_sequence_name, lines)) if name]
    if not names:
        raise DatasetError(f"{path} is empty: expected the name of a sequence on each line")
    return names


def _sequence_name(line: str) -> str:
    """A line is a name, or the files `/JPEGImages/480p/bear/00000.jpg /Annotations/...`."""
    line = line.strip()
    return Path(line.split()[0]).parent.name if "/" in line else line


def _read_meta(path: Path) -> list[str]:
    try:
        return sorted(json.loads(path.read_text(encoding="utf-8"))["videos"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetError(
            f"{path} is not the meta.json of YouTube-VOS, an object with `videos` in it: copy it "
            "again or delete it"
        ) from error


def read_sequence(name: str, *, frames: Path, annotations: Path) -> VideoSequence:
    """The video of one folder of frames and one of annotations.

    Raises:
        DatasetError: one of them holds no file, or an annotation belongs to no frame.
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
    return VideoSequence(
        name=name,
        frames=tuple(images),
        annotations={positions[mask.stem]: mask for mask in masks},
    )


def _files(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """The files of a folder in the order of their numbers, or of their names where they have none.

    Hidden files, such as the ones that macOS leaves in archives, are left out.
    """
    if not folder.is_dir():
        return []
    found = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    ]
    return sorted(
        found, key=lambda path: (int(path.stem) if path.stem.isdecimal() else -1, path.name)
    )


def folder_names(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted; hidden ones are left out."""
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
