"""Packs and checks submissions to the server of YouTube-VOS.

A submission is a zip file with `Annotations/<video>/<frame>.png`; a folder of predictions with one
folder per video can be checked before it is packed. The server gives little feedback and limits the
number of attempts.
"""

import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ino.data.images import image_size
from ino.data.label_maps import davis_palette
from ino.data.names import check_name
from ino.data.ytvos import YtvosSplit, YtvosVideo
from ino.errors import DatasetError, MaskError, OutputError
from ino.system import atomic_path, available_cores, read_file
from ino.tables import shown

TOP = "Annotations"
"""The one folder at the top of a submission."""

_NUM_SHOWN = 3
"""Sentences that are shown of each kind of finding; the others are counted."""

_MAX_WORKERS = 8
_MAX_BYTES = 1 << 26  # of a mask's file, unpacked
_DATE = (1980, 1, 1, 0, 0, 0)

_YTVOS_COLORS = bytes.fromhex(
    "000000 ec5f67 f99157 fac863 99c794 62b3b2 6699cc c594c5 ab7967 ffffff 65737e"
) + bytes(value for value in range(11, 256) for _ in "rgb")
_PALETTES = tuple(
    np.frombuffer(colors, dtype=np.uint8).reshape(256, 3)
    for colors in (davis_palette().tobytes(), _YTVOS_COLORS)
)
"""The palette of DAVIS, in which we write, and that of the data set's own annotations."""

_UNREADABLE = (
    *(OSError, EOFError, SyntaxError, ValueError, RuntimeError),  # the last: an encrypted entry
    *(zipfile.BadZipFile, zlib.error, Image.DecompressionBombError),
)

_Files = Mapping[str, Callable[[], bytes]]
"""How to read each file, by its name."""


def pack_submission(
    predictions: Path, frames: Mapping[str, Iterable[str]], path: Path, *, top: str = TOP
) -> None:
    """Writes `<top>/<video>/<frame>.png` for every frame that is asked for.

    The same masks always give the same bytes: order and dates are fixed, and PNG files are stored
    as they are, for they are compressed already. Files that are not asked for stay out.

    Args:
        predictions: folder with one folder per video.
        frames: names of the frames by video, in the order of the file.
        path: of the zip file, which appears whole or not at all; an older one is replaced.
        top: folder in the zip file that holds all videos; empty for none, as the server of DAVIS
            wants it.

    Raises:
        OutputError: a mask is missing or the file cannot be written.
    """
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as packed:
        for video, names in frames.items():
            for frame in names:
                mask = predictions / video / f"{frame}.png"
                if not mask.is_file():
                    raise OutputError(f"cannot write {path}: {mask} is missing; predict it first")
                name = f"{video}/{frame}.png"
                entry = zipfile.ZipInfo(f"{top}/{name}" if top else name, date_time=_DATE)
                entry.external_attr = 0o644 << 16
                packed.writestr(entry, mask.read_bytes())


@dataclass(frozen=True)
class Finding:
    """A fault or a warning of one kind that occurs `count` times, with a sentence as an example."""

    kind: str
    sentence: str
    count: int = 1


@dataclass
class SubmissionReport:
    """What was found. Warnings do not keep a submission from being scored."""

    num_videos: int = 0
    num_masks: int = 0
    faults: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)

    @property
    def num_faults(self) -> int:
        return sum(found.count for found in self.faults)

    def counts(self) -> str:
        """A summary such as "474 videos, 26000 masks, no faults"."""
        numbers = {"video": self.num_videos, "mask": self.num_masks, "fault": self.num_faults}
        words = [f"{number} {what}{'s' * (number != 1)}" for what, number in numbers.items()]
        return ", ".join(words).replace(", 0 faults", ", no faults")

    def lines(self) -> Iterator[str]:
        """The findings in words: a heading per kind, below it a line per sentence."""
        for heading, findings in (("fault", self.faults), ("warning", self.warnings)):
            for kind in dict.fromkeys(found.kind for found in findings):
                same = [found for found in findings if found.kind == kind]
                count = sum(found.count for found in same)
                yield f"{heading}: {kind} ({count})"
                yield from (f"  {found.sentence}" for found in same[:_NUM_SHOWN])
                if len(same) >= _NUM_SHOWN < count:
                    yield "  and so on"

    def summary(self, checked: Path) -> str:
        """The findings and, in the last line, what was checked."""
        lines = [*self.lines(), f"checked {checked}: {self.counts()}"]
        return "\n".join(map(shown, lines))


def check_submission(
    predictions: Path | str,
    split: YtvosSplit,
    *,
    on_video: Callable[[], None] = lambda: None,
) -> SubmissionReport:
    """What is wrong with a submission, a zip file or a folder of predictions, for a split.

    Every mask that is needed must be there and, if the split is whole, nothing else; a mask is an
    indexed PNG of the size of the annotation, with its palette or the one of DAVIS, and holds only
    objects of its video. An object before it enters is a warning: the server scores it only after
    that.

    Args:
        predictions: zip file, or folder with one folder per video, or with these in `Annotations`.
        split: see `ino.data.ytvos.read_ytvos_split`.
        on_video: called after each video.

    Raises:
        MaskError: there is no such file or folder, or the file is not a zip file.
    """
    report, predictions = SubmissionReport(), Path(predictions)
    if predictions.is_dir():
        _check_files(_folder_files(predictions, report), split, report, on_video)
        return report
    if not predictions.is_file():
        found = "is a device or a pipe" if predictions.exists() else "does not exist"
        raise MaskError(f"{predictions} {found}: give a zip file or a folder")
    try:
        packed = zipfile.ZipFile(predictions)
    except _UNREADABLE as error:
        raise MaskError(
            f"{predictions} is not a whole zip file ({error}): pack the masks again"
        ) from error
    with packed:
        if files := _packed_files(packed, predictions, split, report):
            _check_files(files, split, report, on_video)
    return report


def _only_names(paths: Iterable[str], source: Path, report: SubmissionReport) -> list[str]:
    """The paths that are made of names; the others are faults."""
    good, faults = [], []
    for path in paths:
        try:
            for name in path.split("/"):
                check_name(name, source=source)
            good.append(path)
        except DatasetError as error:
            faults.append(str(error))
    if faults:
        report.faults.append(Finding("names that are none", faults[0], len(faults)))
    return good


def _folder_files(folder: Path, report: SubmissionReport) -> _Files:
    """By path below the folder of videos; hidden files are not packed by us, so they are left
    out."""
    top = folder / TOP if (folder / TOP).is_dir() else folder
    if (top / "settings.json").is_file() and (top / "predictions").is_dir():
        raise MaskError(f"{folder} holds all results: check {folder / 'predictions'} or its zip")
    found = (path for path in sorted(top.rglob("*")) if path.is_file())
    paths = [path.relative_to(top).as_posix() for path in found if not path.name.startswith(".")]
    return {
        path: partial(read_file, top / path, max_bytes=_MAX_BYTES)
        for path in _only_names(paths, folder, report)
    }


def _packed_files(
    packed: zipfile.ZipFile, path: Path, split: YtvosSplit, report: SubmissionReport
) -> _Files:
    """By path below `Annotations`; none, and a fault, where the whole zip file is built wrong."""
    names = [one.filename for one in packed.infolist() if not one.is_dir()]
    names = _only_names(names, path, report)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        sentence = (
            f"{path} holds {twice[0]} more than once, and which one counts is not known: pack each "
            "mask once, into a new zip file"
        )
        report.faults.append(Finding("files of one name", sentence, len(twice)))
    if inside := [name for name in names if name.startswith(f"{TOP}/")]:
        for name in sorted(set(names) - set(inside)):
            sentence = f"{path} holds {name}: expected {TOP}/ alone at the top; leave it out"
            report.faults.append(Finding("other files", sentence))
        return {name.removeprefix(f"{TOP}/"): partial(_unpack, packed, name) for name in inside}
    expected = f"expected {TOP}/{split.videos[0].name}/{split.videos[0].submitted[0]}.png"
    if nested := [name for name in names if name.lower().endswith(".zip")]:
        found = f"holds the zip file {nested[0]}: {expected}; hand in that file itself"
    elif wrapped := [name for name in names if f"/{TOP}/" in name]:
        found = f"holds {wrapped[0]}: {expected}; pack the folder {TOP} itself, not the one above"
    elif names:
        found = f"holds {names[0]}: {expected}; pack a folder {TOP} with one folder per video in it"
    else:
        found = f"is empty: {expected}"
    report.faults.append(Finding("not built as a submission", f"{path} {found}"))
    return {}


def _unpack(packed: zipfile.ZipFile, name: str) -> bytes:
    """A file of a zip file.

    Raises:
        ValueError: it is too large, or packed otherwise than zip files of masks are.
    """
    entry = packed.getinfo(name)
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is packed by another method than deflate")
    if entry.file_size > _MAX_BYTES:
        raise ValueError(f"it unpacks to {entry.file_size} bytes, above {_MAX_BYTES}")
    with packed.open(entry) as file:
        return file.read(entry.file_size)  # without a number, more than that is unpacked


def _check_files(
    files: _Files, split: YtvosSplit, report: SubmissionReport, on_video: Callable[[], None]
) -> None:
    by_video: dict[str, dict[str, Callable[[], bytes]]] = {}
    for path, read in files.items():
        folder, _, name = path.rpartition("/")
        by_video.setdefault(folder, {})[name] = read
    unknown = set(by_video) - {video.name for video in split.videos} if split.is_whole else ()
    for folder in sorted(unknown):
        sentence = (
            f"{folder or 'the top'} holds {min(by_video[folder])}, but {split.folder} has no video "
            "of that name: leave it out"
        )
        report.faults.append(Finding("no such video", sentence, len(by_video[folder])))
    given = [by_video.get(video.name, {}) for video in split.videos]
    with ThreadPoolExecutor(min(available_cores(), _MAX_WORKERS)) as pool:
        for found in pool.map(_check_video, split.videos, given):
            report.num_videos += found.num_videos
            report.num_masks += found.num_masks
            report.faults += found.faults
            report.warnings += found.warnings
            on_video()


def _check_video(video: YtvosVideo, files: _Files) -> SubmissionReport:
    report = SubmissionReport(num_videos=1)
    if not files:
        sentence = (
            f"{video.name} has no mask: expected a folder with {len(video.submitted)} masks, from "
            f"{video.submitted[0]}.png to {video.submitted[-1]}.png; predict it"
        )
        report.faults.append(Finding("missing video", sentence))
        return report
    _check_frames(video, set(files), report)
    size = image_size(video.first_annotation)
    held: set[int] = set()
    for frame in video.submitted:
        if (read := files.get(f"{frame}.png")) is not None:
            report.num_masks += 1
            held |= _check_mask(video, frame, read, size, report)
    if (never := sorted(set(video.entries) - held)) and not report.faults:
        sentence = (
            f"{video.name} never holds object {never[0]}, which enters with frame "
            f"{video.entries[never[0]]}: it scores nothing"
        )
        report.warnings.append(Finding("objects that no mask holds", sentence, len(never)))
    return report


def _check_frames(video: YtvosVideo, files: set[str], report: SubmissionReport) -> None:
    missing = [frame for frame in video.submitted if f"{frame}.png" not in files]
    if needed := [frame for frame in missing if frame in video.required]:
        sentence = (
            f"{video.name} lacks {len(needed)} of {len(video.required)} masks, the first of them "
            f"{needed[0]}.png: predict every frame from {video.submitted[0]} on"
        )
        report.faults.append(Finding("missing frames", sentence, len(needed)))
    if optional := [frame for frame in missing if frame not in video.required]:
        kind = "frames that are not scored are missing"
        sentence = f"{video.name} lacks {optional[0]}.png, which meta.json lists for no object"
        report.warnings.append(Finding(kind, sentence, len(optional)))
    if extra := sorted(files - {f"{frame}.png" for frame in video.submitted}):
        sentence = (
            f"{video.name} holds {extra[0]}, but masks are asked for {len(video.submitted)} frames "
            f"from {video.submitted[0]} to {video.submitted[-1]} alone: leave out the others"
        )
        report.faults.append(Finding("too many frames", sentence, len(extra)))


def _check_mask(
    video: YtvosVideo,
    frame: str,
    read: Callable[[], bytes],
    size: tuple[int, int],
    report: SubmissionReport,
) -> set[int]:
    """The objects of a mask that is an image of the right kind and height and width `size`; at most
    one fault of it goes into the report."""
    name = f"{video.name}/{frame}.png"
    try:
        with Image.open(io.BytesIO(read())) as image:
            if (image.height, image.width) == size:  # pixels of another size may fill the memory
                image.load()
    except Image.UnidentifiedImageError:  # its own words name an object of Python, not the file
        fault = Finding("broken masks", f"{name} is not an image: write it again")
    except _UNREADABLE as error:
        fault = Finding("broken masks", f"{name} cannot be read ({error}): write it again")
    else:
        found = (image.height, image.width)
        if image.format != "PNG" or image.mode != "P":
            sentence = (
                f"{name} is a {image.format} image of mode {image.mode}: expected an indexed PNG "
                "(mode P) with one object number per pixel; write it with ino.write_labels"
            )
            fault = Finding("not indexed", sentence)
        elif found != size:
            sentence = (
                f"{name} is {found[0]}x{found[1]} (height x width), but the annotation is "
                f"{size[0]}x{size[1]}: resize it by nearest neighbor"
            )
            fault = Finding("another size", sentence)
        else:
            return _check_objects(video, frame, image, report)
    report.faults.append(fault)
    return set()


def _check_objects(
    video: YtvosVideo, frame: str, image: Image.Image, report: SubmissionReport
) -> set[int]:
    name = f"{video.name}/{frame}.png"
    labels = [label for label, count in enumerate(image.histogram()) if count]
    objects = {label for label in labels if label > 0}
    if extra := sorted(objects - set(video.entries)):
        sentence = (
            f"{name} holds object {extra[0]}, but {video.name} has the objects "
            f"{', '.join(map(str, video.entries))}: leave out all others, void (255) too"
        )
        report.faults.append(Finding("unknown objects", sentence))
    elif not any(_has_colors(image, labels, palette) for palette in _PALETTES):
        sentence = (
            f"{name} has neither the palette of DAVIS nor that of YouTube-VOS, so its numbers may "
            "not be those of the objects: write it with ino.write_labels"
        )
        report.faults.append(Finding("another palette", sentence))
    position = video.submitted.index
    known = sorted(objects & set(video.entries))
    if early := [one for one in known if position(frame) < position(video.entries[one])]:
        sentence = (
            f"{name} holds object {early[0]}, which enters with frame {video.entries[early[0]]}: "
            "it is not scored before, but its pixels are taken from other objects"
        )
        report.warnings.append(Finding("objects before they enter", sentence))
    return objects


def _has_colors(image: Image.Image, labels: list[int], palette: np.ndarray) -> bool:
    """Whether the labels that occur have the colors of the palette."""
    colors = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
    return max(labels) < len(colors) and bool((colors[labels] == palette[labels]).all())
