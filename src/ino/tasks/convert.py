"""Masks out: a result in the formats of other programs (`ino convert`, `ino segment --save`).

A result is the folder that `ino segment` writes, or any folder of indexed PNGs, one per frame. Each
format is one function from a `Result` to files; frames are read one at a time. Also `ino frame`,
which writes frames to draw on.
"""

import csv
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import av
import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ino import __version__
from ino.data.images import natural_key, open_sequence
from ino.data.label_maps import VOID, clean_name, davis_palette, object_areas, read_labels
from ino.data.rle import box_of, encode_coco, encode_rows
from ino.data.video import (
    VideoWriter,
    count_frames,
    frame_names,
    frame_number,
    frame_times,
    in_background,
    is_video,
    read_clip,
    read_frames,
    read_info,
    video_name,
)
from ino.errors import ConfigError, MaskError, OutputError, VideoError
from ino.overlay import draw_overlay
from ino.schema import read_json
from ino.system import atomic_path, check_new_folder, new_folder, write_text
from ino.tables import write_csv

_FALLBACK_FPS = 24.0
_BLOCK = 8  # pixels; edges keep their colors where a codec computes in blocks


@dataclass(frozen=True)
class Result:
    """A folder of masks, one per frame.

    Attributes:
        folder: that `ino segment` wrote, or that holds indexed PNGs.
        files: the PNGs in the order of frames.
        names: of objects by number; "object 1" and so on where none is known.
        video: that the masks are of; None if it is not known.
        fps: frames per second for videos that are written; None for those of the video.
        size: height and width of all masks.
    """

    folder: Path
    files: tuple[Path, ...]
    names: Mapping[int, str]
    video: Path | None
    fps: float | None
    size: tuple[int, int]

    @property
    def title(self) -> str:
        """What the video is called in files."""
        return self.folder.resolve().name if self.video is None else video_name(self.video)

    @cached_property
    def numbers(self) -> list[int]:
        """The number of each mask's frame in the video, from 0.

        Raises:
            MaskError: the masks do not belong to the frames of the video.
        """
        stems = [path.stem for path in self.files]
        video = self.video if self.video is not None and _exists(self.video) else None
        names = None if video is None else frame_names(video)
        if names is not None and set(stems) <= set(names):
            places = {name: place for place, name in enumerate(names)}
            return [places[stem] for stem in stems]
        if names is None and all(stem.isdecimal() for stem in stems):
            return [int(stem) for stem in stems]
        if video is None or len(stems) == count_frames(video):
            return list(range(len(stems)))
        raise MaskError(
            f"the masks of {self.folder} are not named as the frames of {self.video} and are not "
            "as many: pass the --video that they were made of"
        )

    def image_names(self) -> list[str]:
        """The names of the images that the video consists of, or else those of the masks."""
        video = self.video if self.video is not None and self.video.is_dir() else None
        images = None if video is None or not is_video(video) else open_sequence(video)
        names = {} if images is None else {Path(name).stem: name for name in images.names}
        return [names.get(path.stem, path.name) for path in self.files]

    def label_maps(self) -> Iterator[UInt8[np.ndarray, "height width"]]:
        """The masks in the order of frames.

        Raises:
            MaskError: one is broken or of another size than the first.
        """
        for path in self.files:
            labels = read_labels(path)
            if labels.shape != self.size:
                raise MaskError(
                    f"{path} is {labels.shape[0]}x{labels.shape[1]}, but the first mask is "
                    f"{self.size[0]}x{self.size[1]} (height x width)"
                )
            yield labels

    def objects(self) -> Iterator[tuple[int, int, UInt8[np.ndarray, "height width"]]]:
        """Position, object and mask (0 and 1) of each object in each frame."""
        for place, labels in enumerate(self.label_maps()):
            for label in object_areas(labels):
                yield place, label, (labels == label).view(np.uint8)

    def frames(
        self,
    ) -> Iterator[tuple[str, UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]]:
        """Name, frame and mask of each frame that has a mask.

        Raises:
            VideoError: the video is not known, is missing, or has other frames.
        """
        if self.video is None:
            raise VideoError(f"{self.folder} does not say which video it is of: pass --video")
        if not _exists(self.video):
            raise VideoError(f"{self.video} is not there any more: pass --video")
        info = read_info(self.video)
        if (info.height, info.width) != self.size:
            raise VideoError(
                f"the frames of {self.video} are {info.height}x{info.width}, but the masks of "
                f"{self.folder} are {self.size[0]}x{self.size[1]} (height x width): pass --video"
            )
        wanted = dict(zip(self.numbers, self.files, strict=True))
        found = 0
        for number, frame in enumerate(read_frames(self.video)):
            if number in wanted:
                found += 1
                yield wanted[number].stem, frame, read_labels(wanted[number])
        if found < len(wanted):
            raise VideoError(f"{self.video} has {found} of the {len(wanted)} frames with masks")

    def rate(self) -> float:
        """Frames per second of videos that are written."""
        if self.fps is not None:
            return self.fps
        if self.video is None or not _exists(self.video):
            return _FALLBACK_FPS
        return read_info(self.video).fps

    def seconds(self) -> Callable[[int], float]:
        """From the number of a frame to seconds after the first one: those of the video, which
        need not be even, unless `fps` is given."""
        times, rate = None, self.rate()
        if self.fps is None and self.video is not None and _exists(self.video):
            times = frame_times(self.video)
        return lambda number: (
            number / rate if times is None or number >= len(times) else float(times[number])
        )

    def name(self, label: int) -> str:
        """What an object is called."""
        return self.names.get(label) or f"object {label}"

    @cached_property
    def labels(self) -> list[int]:
        """The numbers of all objects."""
        return sorted({label for labels in self.label_maps() for label in object_areas(labels)})

    def categories(self) -> dict[str, int]:
        """A number from 1 for each name; objects of one name share it."""
        return {
            name: number
            for number, name in enumerate(dict.fromkeys(map(self.name, self.labels)), start=1)
        }


def _exists(video: Path) -> bool:
    return video.exists() or "%" in video.name


def read_result(
    folder: Path | str, *, video: Path | str | None = None, fps: float | None = None
) -> Result:
    """The masks of a folder, and what `settings.json` beside them says of video and objects.

    Args:
        folder: of `ino segment`, or of indexed PNGs, one per frame.
        video: that the masks are of; None for the one of `settings.json`.
        fps: frames per second for videos that are written; None for those of the video.

    Raises:
        MaskError: there are no masks, or settings.json is broken.
        ConfigError: `fps` is not above 0.
    """
    folder = Path(folder)
    if fps is not None and not 0 < fps < float("inf"):
        raise ConfigError(f"fps is {fps}; give more than 0 frames per second")
    masks = folder / "masks" if (folder / "masks").is_dir() else folder
    if not masks.is_dir():
        raise MaskError(
            f"{folder} is not a folder: give a result of ino segment or a folder of PNGs"
        )
    files = [path for path in masks.glob("*.png") if not path.name.startswith(".")]
    if not files:
        raise MaskError(
            f"{folder} holds no masks: give a result of ino segment or a folder of PNGs"
        )
    files.sort(key=lambda path: natural_key(path.name))
    settings = _read_settings(folder / "settings.json")
    known = video if video is not None else settings.get("video")
    size = read_labels(files[0]).shape
    place = None if known is None else Path(known)
    return Result(folder, tuple(files), settings["objects"], place, fps, size)  # type: ignore[arg-type]


def _read_settings(path: Path) -> dict[str, Any]:
    """The names of objects and the video of a settings.json; of none, no names."""
    if not path.is_file():
        return {"objects": {}}
    try:
        settings = read_json(path)
        objects = settings.get("objects", {}).items()
        names = {int(label): clean_name(name) for label, name in objects}
        video = settings.get("video")
        return {"objects": names, "video": None if video is None else os.fspath(video)}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise MaskError(f"{path} is broken ({error}): remove it or write it again") from error


def convert_result(
    folder: Path | str,
    formats: Sequence[str],
    *,
    out: Path | str,
    video: Path | str | None = None,
    fps: float | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Writes masks in the formats of other programs, and returns the files and folders.

    Args:
        folder: see `read_result`.
        formats: some of `FORMATS`.
        out: folder of the files, created if it is missing.
        video: see `read_result`.
        fps: see `read_result`.
        overwrite: replace files and folders of the same names.

    Raises:
        ConfigError: a format is unknown.
        MaskError: see `read_result`; or a mask is broken.
        VideoError: a format needs the frames, and the video is not known or has other frames.
        OutputError: something of that name is there and `overwrite` is off, or cannot be written.
    """
    chosen = check_formats(formats)
    result, out = read_result(folder, video=video, fps=fps), Path(out)
    places = [out / FORMATS[name][0] for name in chosen]
    for place in places:
        if not place.suffix:
            check_new_folder(place, overwrite=overwrite)
        elif place.exists() and not overwrite:
            raise OutputError(f"{place} exists: choose another --out or pass --overwrite")
    new_folder(out, overwrite=True)
    for name, place in zip(chosen, places, strict=True):
        if not place.suffix:
            new_folder(place, overwrite=overwrite)
        FORMATS[name][1](result, place)
    return places


def check_formats(formats: Sequence[str]) -> list[str]:
    """The formats, each once.

    Raises:
        ConfigError: one is unknown.
    """
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"there is no format {name!r}; known are {', '.join(FORMATS)}")
    return list(dict.fromkeys(formats))


# Masks as pictures and arrays


def _write_png_per_object(result: Result, out: Path) -> None:
    """One folder per object, in it one PNG per frame, 0 and 255."""
    folders = {}
    for label in result.labels:
        name = re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", result.name(label))[:80].rstrip(" .")
        folders[label] = out / (f"{label}_{name}" if name != f"object {label}" else str(label))
        folders[label].mkdir(exist_ok=True)
    for path, labels in zip(result.files, result.label_maps(), strict=True):
        for label, folder in folders.items():
            mask = Image.fromarray((labels == label).astype(np.uint8) * 255)
            with atomic_path(folder / path.name) as temporary:
                mask.save(temporary, format="PNG")
    _keep_only(out, {folder / path.name for folder in folders.values() for path in result.files})


def _write_tiff(result: Result, out: Path) -> None:
    """One page per frame, 8 bits, object numbers as values, as Fiji and napari open it."""
    maps = (Image.fromarray(labels) for labels in result.label_maps())
    first = next(maps)
    num_bytes = len(result.files) * result.size[0] * result.size[1]
    with atomic_path(out) as temporary:
        first.save(
            temporary,
            format="TIFF",
            save_all=True,
            append_images=maps,
            compression="tiff_adobe_deflate",
            big_tiff=num_bytes > 1 << 31,
        )


def _write_npz(result: Result, out: Path) -> None:
    """`masks` (frames, height, width), `frames` (names), `object_numbers` and `object_names`."""
    shape = (len(result.files), *result.size)
    with (
        atomic_path(out) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        with packed.open("masks.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
            for labels in result.label_maps():
                file.write(labels.tobytes())
        arrays = {
            "frames": np.array([path.stem for path in result.files]),
            "object_numbers": np.array(result.labels, dtype=np.int64),
            "object_names": np.array([result.name(label) for label in result.labels], dtype=str),
        }
        for name, array in arrays.items():
            with packed.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


# Videos


class _StreamWriter:
    """Writes frames to a video of any codec, whole or not at all."""

    _stream: Any

    def __init__(
        self,
        path: Path,
        *,
        codec: str,
        pixels: str,
        fps: float,
        size: tuple[int, int],
        **options: str,
    ) -> None:
        self._path, self._codec, self._pixels, self._options = path, codec, pixels, options
        self._rate = Fraction(fps).limit_denominator(1001 if fps >= 1 else 1_000_000)
        self._size = size

    def __enter__(self) -> "_StreamWriter":
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self._path))
            self._container = stack.enter_context(av.open(str(temporary), "w"))
            stream: Any = self._container.add_stream(self._codec, rate=self._rate)  # type: ignore[call-overload]
            stream.height, stream.width = self._size
            stream.pix_fmt, stream.options = self._pixels, self._options
            self._stream = stream
            self._count = 0
            self._exits = stack.pop_all()
        return self

    def __exit__(self, *failure: Any) -> None:
        if failure[0] is not None:
            self._exits.__exit__(*failure)
            return
        with self._exits:
            self._encode(None)

    def write(self, frame: np.ndarray, kind: str) -> None:
        """Adds a frame, uint8, in the order of values that `kind` names (rgb24 or rgba)."""
        picture = av.VideoFrame.from_ndarray(frame, format=kind).reformat(format=self._pixels)
        picture.pts, picture.time_base = self._count, 1 / self._rate
        self._count += 1
        self._encode(picture)

    def _encode(self, picture: av.VideoFrame | None) -> None:
        try:
            self._container.mux(self._stream.encode(picture))
        except av.FFmpegError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}") from error


def _write_mask_video(result: Result, out: Path) -> None:
    """FFV1 without loss, objects in the colors of the DAVIS palette, background black."""
    palette = davis_palette()
    writer = _StreamWriter(out, codec="ffv1", pixels="bgr0", fps=result.rate(), size=result.size)
    with writer:
        for labels in result.label_maps():
            writer.write(palette[labels], "rgb24")


def _write_overlay_video(result: Result, out: Path) -> None:
    """The frames with masks drawn over them, as `ino segment` writes it."""
    with VideoWriter(out, fps=result.rate()) as writer:
        for name, frame, labels in in_background(result.frames()):
            writer.write(draw_overlay(frame, labels, caption=name))


def _write_cutout_video(result: Result, out: Path) -> None:
    """VP9 with alpha: the objects, and nothing where they are not."""
    height, width = result.size
    padded = (height + height % 2, width + width % 2)
    options = {"crf": "18", "b": "0", "auto-alt-ref": "0", "cpu-used": "4", "row-mt": "1"}
    writer = _StreamWriter(
        out, codec="libvpx-vp9", pixels="yuva420p", fps=result.rate(), size=padded, **options
    )
    with writer:
        for _, frame, labels in in_background(result.frames()):
            odd = ((0, height % 2), (0, width % 2), (0, 0))
            picture = _cut_out(frame, labels, margin=_BLOCK)
            writer.write(np.pad(picture, odd, mode="edge"), "rgba")


def _write_cutout_png(result: Result, out: Path) -> None:
    """One RGBA PNG per frame: the objects, and nothing where they are not."""
    for name, frame, labels in in_background(result.frames()):
        with atomic_path(out / f"{name}.png") as temporary:
            Image.fromarray(_cut_out(frame, labels, margin=0)).save(temporary, format="PNG")
    _keep_only(out, {out / path.name for path in result.files})


def _keep_only(out: Path, written: set[Path]) -> None:
    """Removes the PNGs of an earlier result that this one replaces."""
    for path in set(out.rglob("*.png")) - written:
        path.unlink()
        if path.parent != out and not any(path.parent.iterdir()):
            path.parent.rmdir()


def _cut_out(
    frame: UInt8[np.ndarray, "h w 3"], labels: UInt8[np.ndarray, "h w"], *, margin: int
) -> UInt8[np.ndarray, "h w 4"]:
    """RGBA. Colors are black further than `margin` pixels from an object, not only transparent."""
    alpha = ((labels > 0) & (labels < VOID)).astype(np.uint8) * 255
    kept = cv2.dilate(alpha, np.ones((2 * margin + 1,) * 2, np.uint8))
    return np.dstack([np.where(kept[..., None] > 0, frame, 0), alpha])


# Annotations of other programs


def _write_coco(result: Result, out: Path) -> None:
    """COCO JSON with compressed RLE; `track_id` is the number of the object."""
    _write_instances(result, out, result.image_names())


def _write_coco_images(result: Result, out: Path) -> None:
    """The same in the folders that data sets of COCO have, with the frames as JPEG."""
    names = [f"{path.stem}.jpg" for path in result.files]
    folder = out / "images" / "default"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():  # of an earlier result that this one replaces
        if path.suffix == ".jpg" and path.name not in names:
            path.unlink()
    for name, frame, _ in in_background(result.frames()):
        with atomic_path(folder / f"{name}.jpg") as temporary:
            Image.fromarray(frame).save(temporary, format="JPEG", quality=95, subsampling=0)
    (out / "annotations").mkdir(exist_ok=True)
    _write_instances(result, out / "annotations" / "instances_default.json", names)


def _write_instances(result: Result, out: Path, names: Sequence[str]) -> None:
    height, width = result.size
    categories = result.categories()
    images = [
        {"id": place + 1, "file_name": name, "height": height, "width": width}
        for place, name in enumerate(names)
    ]
    annotations = [
        {
            "id": number,
            "image_id": place + 1,
            "category_id": categories[result.name(label)],
            "track_id": label,
            "segmentation": encode_coco(mask.view(bool)),
            "area": int(mask.sum()),
            "bbox": list(box_of(mask)),
            "iscrowd": 0,
        }
        for number, (place, label, mask) in enumerate(result.objects(), start=1)
    ]
    content = {
        "info": {"description": result.title, "version": f"ino {__version__}"},
        "images": images,
        "annotations": annotations,
        "categories": _categories(categories),
    }
    write_text(out, json.dumps(content) + "\n")


def _categories(numbers: Mapping[str, int]) -> list[dict[str, Any]]:
    return [
        {"id": number, "name": name, "supercategory": "object"} for name, number in numbers.items()
    ]


def _write_ytvis(result: Result, out: Path) -> None:
    """YouTube-VIS JSON: one annotation per object, its `id` the number of the object."""
    height, width = result.size
    categories = result.categories()
    length = len(result.files)
    rows: dict[int, dict[str, list[Any]]] = {
        label: {name: [None] * length for name in ("segmentations", "bboxes", "areas")}
        for label in result.labels
    }
    for place, label, mask in result.objects():
        row = rows[label]
        row["segmentations"][place] = encode_coco(mask.view(bool))
        row["bboxes"][place], row["areas"][place] = list(box_of(mask)), int(mask.sum())
    video = {
        "id": 1,
        "height": height,
        "width": width,
        "length": length,
        "file_names": [f"{result.title}/{path.stem}.jpg" for path in result.files],
    }
    annotations = [
        {
            "id": label,
            "video_id": 1,
            "category_id": categories[result.name(label)],
            "iscrowd": 0,
            "height": height,
            "width": width,
            "length": length,
            **row,
        }
        for label, row in rows.items()
    ]
    content = {
        "info": {"description": result.title, "version": f"ino {__version__}"},
        "videos": [video],
        "annotations": annotations,
        "categories": _categories(categories),
    }
    write_text(out, json.dumps(content) + "\n")


def _write_mots(result: Result, out: Path) -> None:
    """MOTS: `frame id class height width rle`; the id is 1000 times the class plus the object. The
    names of the classes are in `mots_labels.txt`, one per line."""
    height, width = result.size
    # Class 10 means regions that are not scored.
    classes = {name: number + (number >= 10) for name, number in result.categories().items()}
    lines = []
    for place, label, mask in result.objects():
        kind = classes[result.name(label)]
        counts = encode_coco(mask.view(bool))["counts"]
        track = 1000 * kind + label
        lines.append(f"{result.numbers[place]} {track} {kind} {height} {width} {counts}\n")
    write_text(out, "".join(lines))
    names = {number: name for name, number in classes.items()}
    listed = [
        " ".join(names.get(number, "ignore").split())
        for number in range(1, max(names, default=0) + 1)
    ]
    write_text(out.with_name(out.stem + "_labels.txt"), "".join(f"{name}\n" for name in listed))


def _write_cvat(result: Result, out: Path) -> None:
    """CVAT for video 1.1. CVAT has no tracks of masks and writes each mask as a track of one frame;
    so does this, and `group_id` is the number of the object."""
    height, width = result.size
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    task = SubElement(SubElement(root, "meta"), "task")
    SubElement(task, "name").text = clean_name(result.title)
    SubElement(task, "size").text = str(max(result.numbers) + 1)
    SubElement(task, "mode").text = "interpolation"
    names = SubElement(task, "labels")
    for name in result.categories():
        SubElement(SubElement(names, "label"), "name").text = name
    original = SubElement(task, "original_size")
    SubElement(original, "width").text = str(width)
    SubElement(original, "height").text = str(height)
    last = max(result.numbers)
    for number, (place, label, mask) in enumerate(result.objects()):
        left, top, across, down = box_of(mask)
        track = SubElement(
            root,
            "track",
            id=str(number),
            label=result.name(label),
            source="file",
            group_id=str(label),
        )
        runs = encode_rows(mask[top : top + down, left : left + across].view(bool))
        for frame, outside in ((result.numbers[place], "0"), (result.numbers[place] + 1, "1")):
            if frame > last and outside == "1":
                continue
            SubElement(
                track,
                "mask",
                frame=str(frame),
                keyframe="1",
                outside=outside,
                occluded="0",
                rle=", ".join(map(str, runs)),
                left=str(left),
                top=str(top),
                width=str(across),
                height=str(down),
                z_order="0",
            )
    indent(root)
    write_text(out, '<?xml version="1.0" encoding="utf-8"?>\n' + tostring(root, "unicode") + "\n")


# Numbers


def _write_csv(result: Result, out: Path) -> None:
    """One row per frame and object: seconds after the first frame, area in pixels, share of the
    frame, centroid and box in pixels, and the confidence and survival of frames.csv where it has
    them."""
    known = _known_numbers(result.folder / "frames.csv")
    seconds = result.seconds()
    rows: list[list[Any]] = []
    head = ["frame", "number", "seconds", "object", "name", "area", "area_share"]
    head += ["centroid_x", "centroid_y", "left", "top", "width", "height"]
    for place, label, mask in result.objects():
        moments = cv2.moments(mask, binaryImage=True)
        area = int(moments["m00"])
        stem, number = result.files[place].stem, result.numbers[place]
        center = (moments["m10"] / area, moments["m01"] / area)
        rows.append(
            [
                stem,
                number,
                f"{seconds(number):.6g}",
                label,
                result.name(label),
                area,
                f"{area / mask.size:.6g}",
                *(f"{value:.3f}" for value in center),
                *box_of(mask),
                *known.get((stem, label), known.get((str(number), label), [])),
            ]
        )
    extra = ["confidence", "survival"] if known else []
    width = len(head) + len(extra)
    padded = [[*map(str, row), *[""] * (width - len(row))] for row in rows]
    write_csv(out, [[*head, *extra], *padded])


def _known_numbers(path: Path) -> dict[tuple[str, int], list[str]]:
    """Confidence and survival by frame and object, of the table that `ino segment` writes."""
    if not path.is_file():
        return {}
    known = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                frame, label = row.get("frame"), row.get("object") or ""
                if frame and label.isdecimal():
                    columns = (row.get("confidence") or "", row.get("survival") or "")
                    known[frame, int(label)] = list(columns)
    except (OSError, ValueError, csv.Error) as error:
        raise MaskError(f"{path} cannot be read: {error}") from error
    return known


FORMATS: dict[str, tuple[str, Callable[[Result, Path], None]]] = {
    "png-per-object": ("png-per-object", _write_png_per_object),
    "coco": ("coco.json", _write_coco),
    "coco-images": ("coco-images", _write_coco_images),
    "ytvis": ("ytvis.json", _write_ytvis),
    "mots": ("mots.txt", _write_mots),
    "cvat": ("cvat.xml", _write_cvat),
    "mask-video": ("masks.mkv", _write_mask_video),
    "overlay-video": ("overlay.mp4", _write_overlay_video),
    "cutout-video": ("cutout.webm", _write_cutout_video),
    "cutout-png": ("cutout-png", _write_cutout_png),
    "tiff": ("masks.tiff", _write_tiff),
    "npz": ("masks.npz", _write_npz),
    "csv": ("objects.csv", _write_csv),
}
"""The file or folder of each format, and what writes it."""


# Frames to draw on


def write_frames(
    video: Path | str, frames: Sequence[int | str], *, out: Path | str, overwrite: bool = False
) -> list[Path]:
    """Writes frames as PNGs, named as a mask of that frame is expected to be.

    Args:
        video: a video file or a folder of images.
        frames: see `frame_number`.
        out: folder of the PNGs, created if it is missing; for one frame also a file, NAME.png.
        overwrite: replace files of the same names.

    Returns:
        The files, in the order of `frames`.

    Raises:
        ConfigError: a text names no frame.
        VideoError: the video cannot be read or has no frame of that number.
        OutputError: a file is there and `overwrite` is off, or cannot be written.
    """
    video, out = Path(video), Path(out)
    names = frame_names(video)
    numbers = [frame_number(str(frame), video) for frame in frames]
    num_frames = count_frames(video)
    if (highest := max(numbers, default=0)) >= num_frames:
        raise VideoError(
            f"{video} has {num_frames} frames, numbered from 0, so there is no frame {highest}"
        )
    stems = [f"{number:05d}" if names is None else names[number] for number in numbers]
    if out.suffix.lower() == ".png" and len(stems) == 1 and not out.is_dir():
        out, paths = out.parent, [out]
    else:
        paths = [out / f"{stem}.png" for stem in stems]
    for path in paths:
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists: choose another --out or pass --overwrite")
    pictures = [read_clip(video, [number], fill=True)[0] for number in numbers]
    new_folder(out, overwrite=True)
    for path, picture in zip(paths, pictures, strict=True):
        with atomic_path(path) as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
    return paths
