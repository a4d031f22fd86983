"""Whether masks can be handed in to the server of YouTube-VOS, and what is wrong where they cannot.

A submission is a zip file with `Annotations/<video>/<frame>.png`; a folder of predictions with a
folder a video can be looked at before it is packed. The server tells little and counts attempts.
"""

import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ino.data.cores import available_cores
from ino.data.frame_folder import image_size
from ino.data.ytvos import YtvosSplit, YtvosVideo, read_ytvos_split
from ino.errors import MaskError
from ino.evaluate.submission_mask import check_mask
from ino.evaluate.submission_report import SubmissionReport

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
