"""What was found wrong with a submission, counted by kind and told by its first few sentences."""

import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ino.data.label_maps import davis_palette
from ino.data.video import image_size
from ino.data.ytvos import YtvosSplit, YtvosVideo, read_ytvos_split
from ino.errors import MaskError, OutputError
from ino.system import atomic_path, available_cores

NUM_SHOWN = 3
"""Sentences that are kept of each kind; the others are counted."""


@dataclass
class Findings:
    """Faults of one kind: how many there are, and the sentences of the first few."""

    count: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, sentence: str, *, count: int = 1) -> None:
        """Counts faults that one sentence tells of."""
        self.count += count
        if len(self.shown) < NUM_SHOWN:
            self.shown.append(sentence)


@dataclass
class SubmissionReport:
    """What was found, by kind of fault. Warnings do not keep a submission from being scored."""

    num_videos: int = 0
    num_masks: int = 0
    faults: dict[str, Findings] = field(default_factory=dict)
    warnings: dict[str, Findings] = field(default_factory=dict)

    @property
    def num_faults(self) -> int:
        return sum(found.count for found in self.faults.values())

    def counts(self) -> str:
        """What was looked at and how much of it is wrong, in words."""
        faults = _count(self.num_faults, "fault") if self.num_faults else "no faults"
        videos, masks = _count(self.num_videos, "video"), _count(self.num_masks, "mask")
        return f"{videos}, {masks}, {faults}"

    def lines(self) -> Iterator[str]:
        """The findings in words: a heading a kind, a sentence a line below it."""
        for head, kinds in (("fault", self.faults), ("warning", self.warnings)):
            for kind, found in kinds.items():
                yield f"{head}: {kind} ({found.count})"
                yield from (f"  {sentence}" for sentence in found.shown)
                if len(found.shown) == NUM_SHOWN < found.count:
                    yield "  and so on"

    def fault(self, kind: str, sentence: str, *, count: int = 1) -> None:
        """Notes what keeps the masks from being handed in."""
        self.faults.setdefault(kind, Findings()).add(sentence, count=count)

    def warn(self, kind: str, sentence: str, *, count: int = 1) -> None:
        """Notes what is odd but does no harm."""
        self.warnings.setdefault(kind, Findings()).add(sentence, count=count)

    def join(self, other: "SubmissionReport") -> None:
        """Adds what another report found."""
        self.num_videos += other.num_videos
        self.num_masks += other.num_masks
        for mine, theirs in ((self.faults, other.faults), (self.warnings, other.warnings)):
            for kind, found in theirs.items():
                target = mine.setdefault(kind, Findings())
                target.shown += found.shown[: NUM_SHOWN - len(target.shown)]
                target.count += found.count


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


# One mask of a submission: whether it is an indexed PNG of the right size, colours and objects.


_YOUTUBE_COLOURS = bytes.fromhex(
    "000000 ec5f67 f99157 fac863 99c794 62b3b2 6699cc c594c5 ab7967 ffffff 65737e"
)
_GREY = bytes(value for value in range(11, 256) for _ in "rgb")
_PALETTES = tuple(
    np.frombuffer(colours, dtype=np.uint8).reshape(256, 3)
    for colours in (davis_palette().tobytes(), _YOUTUBE_COLOURS + _GREY)
)
"""The palette of DAVIS, in which we write, and that of the data set's own annotations."""

_UNREADABLE = (
    *(OSError, EOFError, SyntaxError, ValueError, RuntimeError),  # the last: an encrypted entry
    *(zipfile.BadZipFile, zlib.error, Image.DecompressionBombError),
)


def check_mask(
    video: YtvosVideo,
    frame: str,
    read: Callable[[], bytes],
    size: tuple[int, int],
    report: SubmissionReport,
) -> set[int]:
    """The objects of one mask, and at most one fault of it in the report.

    Args:
        video: that the mask belongs to.
        frame: name of the mask's frame.
        read: gives the content of the file.
        size: height and width that the mask must have.
        report: where findings are noted.
    """
    name = f"{video.name}/{frame}.png"
    try:
        with Image.open(io.BytesIO(read())) as image:
            image.load()
    except Image.UnidentifiedImageError:  # its own words name an object of Python, not the file
        report.fault("broken masks", f"{name} is not an image: write it again")
        return set()
    except _UNREADABLE as error:
        report.fault("broken masks", f"{name} cannot be read ({error}): write it again")
        return set()
    found = (image.height, image.width)
    if image.format != "PNG" or image.mode != "P":
        kind = f"a {image.format} image of mode {image.mode}"
        report.fault(
            "not indexed",
            f"{name} is {kind}: expected an indexed PNG (mode P) with an object's number a pixel; "
            "write it with ino.write_labels",
        )
    elif found != size:
        report.fault(
            "another size",
            f"{name} is {found[0]}x{found[1]} (height x width), but the annotation is "
            f"{size[0]}x{size[1]}: resize it by nearest neighbour",
        )
    else:
        return _check_labels(video, frame, image, report)
    return set()


def _check_labels(
    video: YtvosVideo, frame: str, image: Image.Image, report: SubmissionReport
) -> set[int]:
    name = f"{video.name}/{frame}.png"
    labels = [label for label, count in enumerate(image.histogram()) if count]
    objects = [label for label in labels if label > 0]
    if extra := [label for label in objects if label not in video.entries]:
        report.fault(
            "unknown objects",
            f"{name} holds object {extra[0]}, but {video.name} has the objects "
            f"{', '.join(map(str, video.entries))}: leave out all others, void (255) too",
        )
    elif not any(_has_colours(image, labels, palette) for palette in _PALETTES):
        report.fault(
            "another palette",
            f"{name} has neither the palette of DAVIS nor that of YouTube-VOS, so its numbers may "
            "not be those of the objects: write it with ino.write_labels",
        )
    position = video.submitted.index
    early = [label for label in objects if label in video.entries]
    early = [label for label in early if position(frame) < position(video.entries[label])]
    if early:
        report.warn(
            "objects before they enter",
            f"{name} holds object {early[0]}, which enters with frame {video.entries[early[0]]}: "
            "it is not scored before, but its pixels are taken from other objects",
        )
    return set(objects)


def _has_colours(image: Image.Image, labels: list[int], palette: np.ndarray) -> bool:
    """Whether the labels that occur have the colours of the palette."""
    colours = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
    return max(labels) < len(colours) and bool((colours[labels] == palette[labels]).all())


# Whether masks can be handed in to the server of YouTube-VOS, and what is wrong where they cannot.
#
# A submission is a zip file with `Annotations/<video>/<frame>.png`; a folder of predictions with a
# folder a video can be looked at before it is packed. The server tells little and counts attempts.


TOP = "Annotations"
"""The one folder at the top of a submission."""

_MAX_WORKERS = 8
_Masks = Mapping[str, Callable[[], bytes]]
"""How to read each file, by its path below the folder of videos."""


def check_submission(
    predictions: Path,
    root: Path,
    *,
    split: str = "valid",
    videos: Sequence[str] | None = None,
    on_video: Callable[[str], None] | None = None,
) -> SubmissionReport:
    """What is wrong with a submission, a zip file or a folder of predictions, for a split.

    Every mask that is needed must be there and nothing else; a mask is an indexed PNG of the size
    of the annotation, with its palette or the one of DAVIS, and holds only objects of its video. An
    object before it enters is a warning: the server scores it only after that.

    Args:
        predictions: zip file, or folder with a folder a video, or with these in `Annotations`.
        root: the data set (see `ino.data.ytvos.read_ytvos_split`).
        split: name of its folder.
        videos: the ones to check, whatever else there is; where None, all and no others.
        on_video: called with the name of each video once it is checked, in order.

    Raises:
        DatasetError: the split is incomplete.
        MaskError: there is no such file or folder, or the file is not a zip file.
    """
    found = read_ytvos_split(root, split=split, videos=videos)
    return check_masks(predictions, found, on_video=on_video)


def check_masks(
    predictions: Path, split: YtvosSplit, *, on_video: Callable[[str], None] | None = None
) -> SubmissionReport:
    """As `check_submission`, for a split that was read already."""
    report = SubmissionReport()
    if predictions.is_dir():
        _check_files(_folder_masks(predictions), split, report, on_video)
        return report
    try:
        with zipfile.ZipFile(predictions) as packed:
            if masks := _packed_masks(packed, predictions, split, report):
                _check_files(masks, split, report, on_video)
    except FileNotFoundError as error:
        raise MaskError(f"{predictions} does not exist: give a zip file or a folder") from error
    except (OSError, zipfile.BadZipFile) as error:
        raise MaskError(
            f"{predictions} is not a whole zip file ({error}): pack the masks again"
        ) from error
    return report


def _folder_masks(folder: Path) -> _Masks:
    top = folder / TOP if (folder / TOP).is_dir() else folder
    if (top / "settings.json").is_file() and (top / "predictions").is_dir():
        raise MaskError(f"{folder} holds all results: check {folder / 'predictions'} or its zip")
    paths = sorted(path for path in top.rglob("*") if path.is_file())
    names = {path.relative_to(top).as_posix(): path.read_bytes for path in paths}
    # Hidden files of a folder are not packed by us.
    return {name: read for name, read in names.items() if not Path(name).name.startswith(".")}


def _packed_masks(
    packed: zipfile.ZipFile, path: Path, split: YtvosSplit, report: SubmissionReport
) -> _Masks | None:
    """The files below `Annotations`; None, and a fault, where the whole zip file is built wrong."""
    names = [one.filename for one in packed.infolist() if not one.is_dir()]
    inside = [name for name in names if name.startswith(f"{TOP}/")]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        report.fault(
            "files of one name",
            f"{path} holds {twice[0]} more than once, and which one counts is not known: pack each "
            "mask once, into a new zip file",
            count=len(twice),
        )
    for name in sorted(set(names) - set(inside)) if inside else ():
        report.fault(
            "other files", f"{path} holds {name}: expected {TOP}/ alone at the top; leave it out"
        )
    if inside:
        return {name.removeprefix(f"{TOP}/"): partial(packed.read, name) for name in inside}
    expected = f"expected {TOP}/{split.videos[0].name}/{split.videos[0].submitted[0]}.png"
    if nested := [name for name in names if name.lower().endswith(".zip")]:
        found = f"holds the zip file {nested[0]}: {expected}; hand in that file itself"
    elif wrapped := [name for name in names if f"/{TOP}/" in name]:
        found = f"holds {wrapped[0]}: {expected}; pack the folder {TOP} itself, not the one above"
    elif names:
        found = f"holds {names[0]}: {expected}; pack a folder {TOP} with a folder a video in it"
    else:
        found = f"is empty: {expected}"
    report.fault("not built as a submission", f"{path} {found}")
    return None


def _check_files(
    masks: _Masks,
    split: YtvosSplit,
    report: SubmissionReport,
    on_video: Callable[[str], None] | None,
) -> None:
    by_video: dict[str, dict[str, Callable[[], bytes]]] = {}
    for name, read in masks.items():
        folder, _, file = name.rpartition("/")
        by_video.setdefault(folder, {})[file] = read
    known = {video.name for video in split.videos}
    for folder in sorted(set(by_video) - known) if split.is_whole else ():
        found = f"{folder or 'the top'} holds {min(by_video[folder])}"
        report.fault(
            "no such video",
            f"{found}, but {split.folder} has no video of that name: leave it out",
            count=len(by_video[folder]),
        )
    check = partial(_check_video, by_video=by_video)
    with ThreadPoolExecutor(min(available_cores(), _MAX_WORKERS)) as pool:
        for video, found in zip(split.videos, pool.map(check, split.videos), strict=True):
            report.join(found)
            if on_video is not None:
                on_video(video.name)


def _check_video(
    video: YtvosVideo, *, by_video: Mapping[str, Mapping[str, Callable[[], bytes]]]
) -> SubmissionReport:
    report = SubmissionReport(num_videos=1)
    files = by_video.get(video.name)
    if not files:
        report.fault(
            "missing video",
            f"{video.name} has no mask: expected a folder with {len(video.submitted)} masks, from "
            f"{video.submitted[0]}.png to {video.submitted[-1]}.png; predict it",
        )
        return report
    _check_frames(video, files, report)
    size = image_size(video.first_annotation)
    held: set[int] = set()
    for frame in video.submitted:
        if (read := files.get(f"{frame}.png")) is not None:
            report.num_masks += 1
            held |= check_mask(video, frame, read, size, report)
    if (never := sorted(set(video.entries) - held)) and not report.num_faults:
        report.warn(
            "objects that no mask holds",
            f"{video.name} never holds object {never[0]}, which enters with frame "
            f"{video.entries[never[0]]}: it scores nothing",
            count=len(never),
        )
    return report


def _check_frames(video: YtvosVideo, files: Iterable[str], report: SubmissionReport) -> None:
    files = set(files)
    missing = [frame for frame in video.submitted if f"{frame}.png" not in files]
    if needed := [frame for frame in missing if frame in video.required]:
        report.fault(
            "missing frames",
            f"{video.name} lacks {len(needed)} of {len(video.required)} masks, the first of them "
            f"{needed[0]}.png: predict every frame from {video.submitted[0]} on",
            count=len(needed),
        )
    if optional := [frame for frame in missing if frame not in video.required]:
        report.warn(
            "frames that are not scored are missing",
            f"{video.name} lacks {optional[0]}.png, which meta.json lists for no object",
            count=len(optional),
        )
    if extra := sorted(files - {f"{frame}.png" for frame in video.submitted}):
        report.fault(
            "too many frames",
            f"{video.name} holds {extra[0]}, but masks are asked for {len(video.submitted)} frames "
            f"from {video.submitted[0]} to {video.submitted[-1]} alone: leave out the others",
            count=len(extra),
        )


# Masks packed into the zip file that the server of YouTube-VOS takes.


_DATE = (1980, 1, 1, 0, 0, 0)


def pack_submission(predictions: Path, videos: Iterable[YtvosVideo], path: Path) -> int:
    """Writes `Annotations/<video>/<frame>.png` for every frame that is asked for, and counts them.

    The same masks always give the same bytes: order and dates are fixed, and PNG files are stored
    as they are, for they are compressed already. Files that are not asked for stay out.

    Args:
        predictions: folder with a folder a video.
        videos: in the order of the file.
        path: of the zip file, which appears whole or not at all; an older one is replaced.

    Raises:
        OutputError: a mask is missing or the file cannot be written.
    """
    count = 0
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as packed:
        for video in videos:
            for frame in video.submitted:
                mask = predictions / video.name / f"{frame}.png"
                if not mask.is_file():
                    raise OutputError(f"cannot write {path}: {mask} is missing; predict it first")
                entry = zipfile.ZipInfo(f"{TOP}/{video.name}/{frame}.png", date_time=_DATE)
                entry.external_attr = 0o644 << 16
                packed.writestr(entry, mask.read_bytes())
                count += 1
    return count
