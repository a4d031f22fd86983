"""Readers of masks that were drawn elsewhere: one function per format, from a file to `Drawing`s.

Arrays of numpy, TIFF, videos of masks, one PNG per object, labelme, COCO, YouTube-VIS, MOTS, CVAT,
Label Studio. Which frame of which video a drawing belongs to, and which number its object gets, is
decided in `ino.data.annotations`. Skeletons, cuboids, lines and key points are left out, with a
warning.
"""

import base64
import binascii
import io
import logging
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from ino.data.label_maps import (
    VOID,
    as_labels,
    labels_from_colors,
    labels_of_drawing,
    read_mask,
)
from ino.data.rle import (
    Size,
    check_size,
    decode_brush,
    decode_coco,
    decode_rows,
    fill_ellipse,
    fill_polygons,
    paste,
)
from ino.data.video import VIDEO_SUFFIXES, read_frames
from ino.errors import MaskError, VideoError
from ino.schema import parse_json, read_json
from ino.system import read_file

MAX_BYTES = 1 << 28
"""Of a file of annotations, and of one inside a zip file."""

MAX_MEMORY = 1 << 32
"""Bytes of label maps of all frames together."""

_LOG = logging.getLogger("ino")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What a file says about one frame: a whole label map, or one object.

    Attributes:
        frame: its number from 0, the name of its file, or None if the file does not say.
        labels: a label map; the fields below are of one object and not used then.
        name: of the object, empty if it has none.
        key: what tells objects of one file apart; None where only the name does.
        number: of the object, where the file has one; it need not be 1 to 254.
        size: height and width of the frame; None for those of the video.
        draw: gives the mask of a frame of that size, bool.
        box: left, top, right and bottom in pixels, right and bottom exclusive.
        is_relative: the box is in fractions of the frame.
        points: x, y, and whether the object is there.
        names: of the label map's objects, by number.
    """

    frame: int | str | None = None
    labels: np.ndarray | None = None
    name: str = ""
    key: Hashable = None
    number: int | None = None
    size: Size | None = None
    draw: Callable[[Size], np.ndarray] | None = None
    box: tuple[float, float, float, float] | None = None
    is_relative: bool = False
    points: tuple[tuple[float, float, bool], ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The folder that the frame's file is in, which is named as its video; empty if unknown."""
        parts = re.split(r"[\\/]", self.frame) if isinstance(self.frame, str) else []
        return parts[-2] if len(parts) > 1 else ""


def read_drawings(path: Path) -> list[Drawing]:
    """Everything that a file or folder of annotations holds, in its order.

    Raises:
        MaskError: it cannot be read, is of no known format, or holds something that is not possible
            there; says which.
    """
    if path.is_dir():
        return _read_folder(path)
    suffix = path.suffix.lower()
    if not path.is_file():
        raise MaskError(f"{path} is not a file: give a mask or annotations")
    if suffix in _ARRAYS:
        return _checked(path, _ARRAYS[suffix][0], _ARRAYS[suffix][1])
    if suffix in VIDEO_SUFFIXES:
        return _checked(path, "a video of masks", _read_video)
    if suffix in (".json", ".xml", ".txt", ".zip"):
        return _read_content(path, *_unpacked(path))
    labels = read_mask(path)
    return [Drawing(frame=path.name, labels=labels, size=labels.shape)]  # type: ignore[arg-type]


def _checked(path: Path, what: str, read: Callable[[Any], Any], content: Any = None) -> Any:
    """The list of what a reader gives; what is wrong in a file is one sentence that names it."""
    try:
        return list(_bounded(read(path if content is None else content)))
    except (MaskError, VideoError) as error:
        text = str(error)
        raise MaskError(text if str(path) in text else f"{path}: {text}") from error
    except KeyError as error:
        reason = f"{error.args[0]!r} is missing" if error.args else "a key is missing"
    except RecursionError:
        reason = "it is too deep"
    except MemoryError:
        reason = "it needs more memory than there is"
    except Exception as error:  # libraries raise whatever a broken file leads them to
        reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise MaskError(f"{path} cannot be read as {what}: {reason}")


def _bounded(found: Any) -> Iterator[Any]:
    """The same, as long as label maps fit into memory."""
    num_bytes = 0
    for one in found:
        if isinstance(one, Drawing) and one.labels is not None:
            num_bytes += one.labels.nbytes
            if num_bytes > MAX_MEMORY:
                raise MaskError(f"its label maps need more than {MAX_MEMORY >> 30} GiB")
        yield one


def _read_folder(folder: Path) -> list[Drawing]:
    """Label maps and annotations of single frames, or one folder of PNGs for each object."""
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    files = [path for path in entries if path.suffix.lower() in (".png", ".json")]
    if files:
        names = _names_beside(folder)
        return [drawing for path in files for drawing in _of_one_frame(path, names)]
    objects = [path for path in entries if path.is_dir() and _OBJECT.match(path.name)]
    found = []
    for number, path in enumerate(sorted(objects, key=_object_number), start=1):
        name = _OBJECT.match(path.name)
        assert name is not None
        wanted = int(name[1]) if name[1] else number
        for file in sorted(path.glob("*.png")):
            mask = read_mask(file)
            if mask.any():
                found.append(
                    Drawing(
                        frame=file.name,
                        name=name[2] or "",
                        key=path.name,
                        number=wanted,
                        size=mask.shape,  # type: ignore[arg-type]
                        draw=partial(_same, mask > 0),
                    )
                )
    if not found:
        raise MaskError(f"{folder} holds no masks named as frames, such as 00000.png")
    return found


_OBJECT = re.compile(r"(\d+)(?:_(.*))?$")


def _object_number(path: Path) -> int:
    return int(path.name.split("_")[0])


def _of_one_frame(path: Path, names: Mapping[int, str]) -> Iterator[Drawing]:
    for drawing in read_drawings(path):
        frame = path.name if drawing.frame is None else drawing.frame
        yield replace(drawing, frame=frame, names=drawing.names or names)


def _names_beside(folder: Path) -> dict[int, str]:
    """The names of objects, where the folder is one of a result of `ino segment`."""
    try:
        objects = read_json(folder.parent / "settings.json")["objects"]
        return {int(number): str(name) for number, name in objects.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _same(mask: np.ndarray, size: Size) -> np.ndarray:
    return mask


# Arrays, stacks and videos of labels


def _of_frames(
    maps: Iterator[np.ndarray] | np.ndarray,
    frames: Sequence[int | str] | None = None,
    names: Mapping[int, str] | None = None,
) -> Iterator[Drawing]:
    """Label maps of those frames that hold an object; of a single map the frame is open.

    Objects beyond 254, as in stacks of many cells, are numbered anew, the same in all frames.
    """
    renumbered: dict[int, int] = {}
    for index, labels in enumerate(maps):
        if labels.ndim != 2:
            raise MaskError(f"an array of shape {labels.shape} is no label map (height x width)")
        check_size(labels.shape)  # type: ignore[arg-type]
        if not labels.any():
            continue
        if labels.dtype.kind == "f" and (labels == np.rint(labels)).all():
            labels = labels.astype(np.int64)
        if labels.dtype.kind in "iu" and (labels.max() > VOID or renumbered):
            labels = _renumbered(labels, renumbered)
        yield Drawing(
            frame=index if frames is None else frames[index],
            labels=as_labels(np.ascontiguousarray(labels)),
            size=labels.shape,
            names=names or {},
        )
    if renumbered:
        few = ", ".join(f"{old} is {new}" for old, new in list(renumbered.items())[:5])
        _LOG.warning(
            f"object numbers above 254 are in the file, so all {len(renumbered)} objects are "
            f"numbered anew: {few}{' and so on' if len(renumbered) > 5 else ''}"
        )


def _renumbered(labels: np.ndarray, known: dict[int, int]) -> np.ndarray:
    values, places = np.unique(labels, return_inverse=True)
    if values[0] < 0:
        raise MaskError(f"a label map holds {values[0]}, but 0 is background and objects are above")
    for value in values[values > 0].tolist():
        known.setdefault(value, len(known) + 1)
    if len(known) >= VOID:
        raise MaskError(f"there are {len(known)} objects or more, but a mask has at most 254")
    numbers = np.array([known[value] if value else 0 for value in values.tolist()], dtype=np.uint8)
    return numbers[places].reshape(labels.shape)


def _read_npy(path: Path) -> Iterator[Drawing]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    yield from _of_array(array, path.name)


def _of_array(array: np.ndarray, name: str) -> Iterator[Drawing]:
    if array.ndim == 2:
        yield from _of_frames(array[None], [name])
    elif array.ndim == 3:
        yield from _of_frames(array)
    else:
        raise MaskError(
            f"an array of shape {array.shape} holds no masks: give height x width, or frames x "
            "height x width"
        )


def _read_npz(path: Path) -> Iterator[Drawing]:
    """`masks` with `frames` and `object_numbers`, `object_names` as ino writes it; or one array; or
    one array per frame, named as the frame."""
    with zipfile.ZipFile(path) as packed:
        if sum(member.file_size for member in packed.infolist()) > MAX_MEMORY:
            raise MaskError(f"it unpacks to more than {MAX_MEMORY >> 30} GiB")
        for member in packed.infolist():
            with packed.open(member) as file:
                _check_header(file, member.file_size)
    with np.load(path, allow_pickle=False) as arrays:
        if "masks" in arrays:
            frames = [str(frame) for frame in arrays["frames"]] if "frames" in arrays else None
            numbers = arrays["object_numbers"].tolist() if "object_numbers" in arrays else []
            names = arrays["object_names"].tolist() if numbers else []
            named = dict(zip(numbers, map(str, names), strict=True))
            masks = arrays["masks"]
            if masks.ndim != 3 or (frames is not None and len(frames) != len(masks)):
                raise MaskError("masks must be frames x height x width, and frames as many names")
            yield from _of_frames(masks, frames, named)
        elif len(arrays.files) == 1:
            yield from _of_array(arrays[arrays.files[0]], path.name)
        else:
            yield from _of_frames((arrays[name] for name in arrays.files), arrays.files)


def _check_header(file: Any, num_bytes: int) -> None:
    """Refuses an array whose header promises more than its file holds, before memory is taken."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
        version, np.lib.format.read_array_header_2_0
    )
    shape, _, kind = read(file)
    if kind.hasobject:
        raise MaskError("it holds Python objects, which are not read")
    count = 1
    for side in shape:
        count *= side
    if count * kind.itemsize > num_bytes:
        raise MaskError(f"an array says that it has the shape {shape}, but it is shorter")


def _read_tiff(path: Path) -> Iterator[Drawing]:
    """One page per frame; a single page may be any frame."""
    with Image.open(path, formats=["TIFF"]) as image:
        num_pages = getattr(image, "n_frames", 1)
        frames = [path.name] if num_pages == 1 else None
        yield from _of_frames(_pages(image, path), frames)


def _pages(image: Image.Image, path: Path) -> Iterator[np.ndarray]:
    for page in ImageSequence.Iterator(image):
        check_size((page.height, page.width))
        if page.mode in ("RGB", "RGBA", "LA", "PA"):
            yield labels_of_drawing(page, path)
        elif page.mode == "1":
            yield np.asarray(page.convert("L")) // 255
        else:
            yield _without_void_alone(np.array(page))


def _without_void_alone(labels: np.ndarray) -> np.ndarray:
    """0 and 255 only, as many programs write one object, is object 1."""
    if labels.any() and ((labels == 0) | (labels == VOID)).all():
        return (labels == VOID).astype(np.uint8)
    return labels


def _read_video(path: Path) -> Iterator[Drawing]:
    """Frames in the colors of the DAVIS palette, without any loss."""
    for index, frame in enumerate(read_frames(path)):
        labels = labels_from_colors(frame)
        if labels.any():
            yield Drawing(frame=index, labels=labels, size=labels.shape)  # type: ignore[arg-type]


_ARRAYS: dict[str, tuple[str, Callable[[Path], Iterator[Drawing]]]] = {
    ".npy": ("an array of numpy", _read_npy),
    ".npz": ("arrays of numpy", _read_npz),
    ".tif": ("a TIFF of masks", _read_tiff),
    ".tiff": ("a TIFF of masks", _read_tiff),
}


# Text: JSON, XML, MOTS, also inside a zip file as programs export it


def _unpacked(path: Path) -> tuple[str, bytes]:
    """The suffix and the content of a file, or of the only annotations in a zip file."""
    if path.suffix.lower() != ".zip":
        try:
            return path.suffix.lower(), read_file(path, max_bytes=MAX_BYTES)
        except OSError as error:
            raise MaskError(f"{path} cannot be read: {error.strerror}") from error
    return _checked(path, "a zip file of annotations", _of_zip)[0]


def _of_zip(path: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as packed:
        kinds = (".json", ".xml")
        members = [one for one in packed.infolist() if Path(one.filename).suffix in kinds]
        if len(members) != 1:
            raise MaskError(
                f"{path} holds {len(members)} JSON or XML files: unpack it and give one"
            )
        if members[0].file_size > MAX_BYTES:
            raise MaskError(f"{members[0].filename} in {path} holds more than {MAX_BYTES} bytes")
        yield Path(members[0].filename).suffix, packed.read(members[0])


def _read_content(path: Path, suffix: str, content: bytes) -> list[Drawing]:
    if suffix == ".xml":
        return _checked(path, "XML of CVAT", _read_cvat, content)
    if suffix == ".txt":
        labels = path.with_name(path.stem + "_labels.txt")
        named = labels.read_text("utf-8").splitlines()[:1000] if labels.is_file() else []
        return _checked(path, "MOTS", partial(_read_mots, classes=named), content)
    (value,) = _checked(path, "JSON", lambda raw: [parse_json(raw.decode("utf-8-sig"))], content)
    if isinstance(value, list):
        return _checked(path, "JSON of Label Studio", _read_label_studio, value)
    if isinstance(value, dict):
        if "shapes" in value:
            return _checked(path, "JSON of labelme", _read_labelme, value)
        if "videos" in value and "images" not in value:
            return _checked(path, "JSON of YouTube-VIS", _read_ytvis, value)
        if "annotations" in value:
            return _checked(path, "JSON of COCO", _read_coco, value)
    raise MaskError(
        f"{path} is JSON, but not of labelme, COCO, YouTube-VIS or Label Studio (export JSON there)"
    )


def _polygon(points: Any) -> np.ndarray:
    """Points x, y from pairs or from numbers in a row."""
    found = np.asarray(points, dtype=np.float64)
    if found.ndim == 1 and len(found) % 2 == 0:
        found = found.reshape(-1, 2)
    if found.ndim != 2 or found.shape[1] != 2:
        raise MaskError("a polygon is no list of points x, y")
    return found


def _fills(*polygons: Any) -> Callable[[Size], np.ndarray]:
    return partial(fill_polygons, [_polygon(polygon) for polygon in polygons])


def _corners(*values: Any) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = map(float, values)
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _turned(
    box: tuple[float, float, float, float], angle: float, center: tuple[float, float]
) -> tuple[float, float, float, float]:
    """The upright box around a box that is turned clockwise by `angle` degrees."""
    if not angle:
        return box
    x0, y0, x1, y1 = box
    points = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]) - center
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    points = points @ np.array([[cosine, sine], [-sine, cosine]]) + center
    return _corners(*points.min(axis=0), *points.max(axis=0))


def _skipped(counts: Counter[str]) -> None:
    if counts:
        listed = ", ".join(f"{number} of kind {kind}" for kind, number in counts.items())
        _LOG.warning(f"shapes that are no mask, polygon, box or point are left out: {listed}")


def _whole(value: Any) -> int:
    if isinstance(value, bool) or int(value) != float(value):
        raise ValueError(f"{value!r} is no whole number")
    return int(value)


def _size(height: Any, width: Any) -> Size | None:
    return None if not height or not width else check_size((_whole(height), _whole(width)))


def _read_labelme(content: dict[str, Any]) -> Iterator[Drawing]:
    """https://github.com/wkentaro/labelme: shapes of one frame; `group_id` joins those of one
    object."""
    size = _size(content.get("imageHeight"), content.get("imageWidth"))
    frame = str(content.get("imagePath") or "") or None
    skipped: Counter[str] = Counter()
    for shape in content["shapes"]:
        name, group = str(shape["label"]), shape.get("group_id")
        points = _polygon(shape["points"])
        if isinstance(group, list | dict):
            raise MaskError("group_id is neither a number nor a text")
        key = None if group is None else ("group", group, name)
        made = partial(Drawing, frame=frame, name=name, key=key, size=size)
        match shape.get("shape_type") or "polygon":
            case "polygon":
                yield made(draw=_fills(points))
            case "rectangle":
                yield made(box=_corners(*points[0], *points[1]))
            case "circle":
                radius = float(np.hypot(*(points[1] - points[0])))
                center = (float(points[0, 0]), float(points[0, 1]))
                yield made(draw=partial(fill_ellipse, center, (radius, radius), 0.0))
            case "mask":
                part = _png_of_text(shape["mask"])
                left, top = np.rint(points[0]).astype(int).tolist()
                yield made(draw=partial(paste, part, left, top))
            case "point" | "points":
                yield made(points=tuple((float(x), float(y), True) for x, y in points))
            case kind:
                skipped[str(kind)] += 1
    _skipped(skipped)


def _png_of_text(text: Any) -> np.ndarray:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError) as error:
        raise MaskError("a mask of a shape is no PNG in base64") from error
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        check_size((image.height, image.width))
        return np.asarray(image.convert("L")) > 0


def _segmentation(value: Any) -> tuple[Callable[[Size], np.ndarray], Size | None]:
    """How a mask of COCO is drawn, and the size that it states."""
    if isinstance(value, dict):
        height, width = value["size"]
        size, counts = check_size((_whole(height), _whole(width))), value["counts"]
        if not isinstance(counts, str | list):
            raise MaskError("run lengths are neither text nor a list")
        return lambda _: decode_coco(counts, size), size
    return _fills(*value), None


def _read_coco(content: dict[str, Any]) -> Iterator[Drawing]:
    """https://cocodataset.org/#format-data; objects are those of `track_id`, else told apart by
    category and order."""
    names = {one["id"]: str(one["name"]) for one in content.get("categories") or []}
    images = {one["id"]: one for one in content["images"]}
    skipped: Counter[str] = Counter()
    for one in content["annotations"]:
        image = images[one["image_id"]]
        extra = one.get("attributes") or {}
        tracks = [one.get("track_id"), one.get("instance_id"), extra.get("track_id")]
        track = next((found for found in tracks if found is not None), None)
        stated = _size(image.get("height"), image.get("width"))
        made = partial(
            Drawing,
            frame=str(image["file_name"]),
            name=names.get(one.get("category_id"), ""),
            key=None if track is None else ("track", track),
            number=None if track is None else _whole(track),
        )
        if one.get("iscrowd") and track is None:
            skipped["crowd"] += 1
        elif one.get("segmentation"):
            draw, size = _segmentation(one["segmentation"])
            yield made(draw=draw, size=size or stated)
        elif one.get("bbox"):
            left, top, width, height = map(float, one["bbox"])
            yield made(box=_corners(left, top, left + width, top + height), size=stated)
        else:
            skipped["without mask"] += 1
    _skipped(skipped)


def _read_ytvis(content: dict[str, Any]) -> Iterator[Drawing]:
    """https://youtube-vos.org/dataset/vis: one annotation per object, one mask per frame."""
    names = {one["id"]: str(one["name"]) for one in content.get("categories") or []}
    videos = {one["id"]: one for one in content["videos"]}
    for one in content["annotations"] or []:
        video = videos[one["video_id"]]
        files = video["file_names"]
        stated = _size(video.get("height"), video.get("width"))
        if len(one["segmentations"]) != len(files):
            raise MaskError(
                f"annotation {one['id']} has {len(one['segmentations'])} masks for "
                f"{len(files)} frames"
            )
        for file, value in zip(files, one["segmentations"], strict=True):
            if value:
                draw, size = _segmentation(value)
                yield Drawing(
                    frame=str(file),
                    name=names.get(one.get("category_id"), ""),
                    key=("track", one["id"]),
                    number=_whole(one["id"]),
                    size=size or stated,
                    draw=draw,
                )


def _read_mots(content: bytes, classes: Sequence[str]) -> Iterator[Drawing]:
    """https://www.vision.rwth-aachen.de/page/mots: frame, id, class, height, width, run lengths."""
    for index, line in enumerate(content.decode("ascii").splitlines(), start=1):
        parts = line.split()
        if not parts:
            continue
        if len(parts) != 6:
            raise MaskError(f"line {index} has {len(parts)} parts, but MOTS has 6")
        frame, track, kind, height, width = map(int, parts[:5])
        if frame < 0:
            raise MaskError(f"line {index} is for frame {frame}")
        size = check_size((height, width))
        if kind == 10:  # regions that are not scored
            continue
        yield Drawing(
            frame=frame,
            name=classes[kind - 1] if 0 < kind <= len(classes) else "",
            key=("track", track),
            number=track % 1000 or None,
            size=size,
            draw=partial(decode_coco, parts[5]),
        )


def _read_cvat(content: bytes) -> Iterator[Drawing]:
    """https://docs.cvat.ai, "CVAT for images" and "CVAT for video", version 1.1: of a track only
    the key frames are annotations, the others are interpolated by CVAT."""
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import ParseError, iterparse

    try:
        elements = iterparse(io.BytesIO(content), events=("start", "end"), forbid_dtd=True)
        yield from _cvat_drawings(elements)
    except DefusedXmlException as error:
        raise MaskError("it declares a document type or entities, which are not read") from error
    except ParseError as error:
        raise MaskError(f"it is no whole XML ({error})") from error


def _cvat_drawings(elements: Any) -> Iterator[Drawing]:
    skipped: Counter[str] = Counter()
    frame: str | None = None
    size: Size | None = None
    track: dict[str, str] | None = None
    shapes: list[tuple[int, int, Drawing]] = []  # of an image or a track: order, frame, drawing
    depth = 0
    is_cvat = False
    stated: dict[str, str] = {}
    for event, element in elements:
        tag, values = element.tag, element.attrib
        if event == "start":
            depth += 1
            if depth > 64:
                raise MaskError("it is more than 64 levels deep")
            is_cvat |= depth == 1 and tag == "annotations"
            if tag == "image":
                frame = values["name"]
                size = _size(values.get("height"), values.get("width"))
                shapes = []
            elif tag == "track":
                track, shapes = dict(values), []
            continue
        depth -= 1
        if frame is None and track is None:
            if tag in ("width", "height"):
                stated[tag] = (element.text or "").strip()
            elif tag == "original_size":
                size = _size(stated.get("height"), stated.get("width"))
            continue
        if tag in ("image", "track"):
            yield from _cvat_objects(shapes, track)
            frame = track = None
            element.clear()
        elif tag in _CVAT_SHAPES:
            owner = values if track is None else track
            number = -1 if track is None else int(values["frame"])
            if track is not None and (
                values.get("keyframe", "1") != "1" or values.get("outside", "0") == "1"
            ):
                continue
            made = partial(
                Drawing,
                frame=frame if track is None else number,
                name=owner["label"],
                size=size,
            )
            group = owner.get("group_id")
            key = ("group", owner["label"], group) if group and group != "0" else None
            drawing = made(key=key, number=int(group) if key and group else None)
            shape = replace(drawing, **_CVAT_SHAPES[tag](values))
            shapes.append((int(values.get("z_order", 0)), number, shape))
            element.clear()
        elif tag in ("polyline", "cuboid", "skeleton"):
            skipped[tag] += 1
    if not is_cvat:
        raise MaskError("it is XML, but not of CVAT, which begins with <annotations>")
    _skipped(skipped)


def _cvat_objects(
    shapes: list[tuple[int, int, Drawing]], track: dict[str, str] | None
) -> Iterator[Drawing]:
    """The shapes of an image or a track from back to front. CVAT writes a single shape as a track
    of one frame, so only a longer one tells an object apart."""
    is_track = track is not None and len({number for _, number, _ in shapes}) > 1
    for _, _, drawing in sorted(shapes, key=lambda shape: shape[:2]):
        if is_track and track is not None and drawing.key is None:
            number = int(track["id"])
            yield replace(drawing, key=("track", number), number=number + 1)
        else:
            yield drawing


def _cvat_points(values: Mapping[str, str]) -> np.ndarray:
    return _polygon([list(map(float, pair.split(","))) for pair in values["points"].split(";")])


def _cvat_mask(values: Mapping[str, str]) -> dict[str, Any]:
    left, top = int(values["left"]), int(values["top"])
    part = check_size((int(values["height"]), int(values["width"])))
    runs = [int(run) for run in values["rle"].split(",")]
    return {"draw": lambda size: paste(decode_rows(runs, part), left, top, size)}


def _cvat_box(values: Mapping[str, str]) -> dict[str, Any]:
    x0, y0, x1, y1 = _corners(*(values[name] for name in ("xtl", "ytl", "xbr", "ybr")))
    center = ((x0 + x1) / 2, (y0 + y1) / 2)
    return {"box": _turned((x0, y0, x1, y1), float(values.get("rotation", 0)), center)}


def _cvat_ellipse(values: Mapping[str, str]) -> dict[str, Any]:
    x, y, width, height = (float(values[name]) for name in ("cx", "cy", "rx", "ry"))
    angle = float(values.get("rotation", 0))
    return {"draw": partial(fill_ellipse, (x, y), (width, height), angle)}


_CVAT_SHAPES: dict[str, Callable[[Mapping[str, str]], dict[str, Any]]] = {
    "polygon": lambda values: {"draw": _fills(_cvat_points(values))},
    "mask": _cvat_mask,
    "box": _cvat_box,
    "ellipse": _cvat_ellipse,
    "points": lambda values: {
        "points": tuple((float(x), float(y), True) for x, y in _cvat_points(values))
    },
}


def _read_label_studio(tasks: list[Any]) -> Iterator[Drawing]:
    """https://labelstud.io/guide/export, the kind JSON: coordinates in percent of the frame."""
    skipped: Counter[str] = Counter()
    for task in tasks:
        if "annotations" not in task:
            raise MaskError("a task has no annotations: export it as JSON, not as JSON-MIN or CSV")
        frame = _image_of(task.get("data") or {})
        done = [one for one in task["annotations"] if not one.get("was_cancelled")]
        if len(done) > 1:
            _LOG.warning(f"a task has {len(done)} annotations, of which the last one is used")
        for region in done[-1]["result"] if done else []:
            yield from _label_studio_region(region, frame, skipped)
    _skipped(skipped)


def _image_of(data: Mapping[str, Any]) -> str | None:
    """The name of a task's image; Label Studio puts its own code and a minus in front of it."""
    for value in data.values():
        if isinstance(value, str) and re.search(r"\.(png|jpe?g|bmp|webp|tiff?)$", value, re.I):
            return re.sub(r"^[0-9a-f]{8}-", "", re.split(r"[\\/=]", value)[-1])
    return None


def _label_studio_region(
    region: Mapping[str, Any], frame: str | None, skipped: Counter[str]
) -> Iterator[Drawing]:
    kind, value = str(region.get("type")), region.get("value") or {}
    labels = value.get(kind) or value.get("labels") or [""]
    if kind == "videorectangle":
        for step in value["sequence"]:
            if step.get("enabled", True):
                yield Drawing(
                    frame=_whole(step["frame"]) - 1,
                    name=str(labels[0]),
                    key=("region", str(region["id"])),
                    box=_box_in_percent(step, (1, 1)),
                    is_relative=True,
                )
        return
    if kind.removesuffix("labels") not in ("polygon", "brush", "rectangle", "ellipse", "keypoint"):
        if kind not in ("labels", "choices", "textarea", "relation"):
            skipped[kind] += 1
        return
    if region.get("image_rotation"):
        raise MaskError("an image is turned in Label Studio: turn it back, and export again")
    size = check_size((_whole(region["original_height"]), _whole(region["original_width"])))
    scale = np.array([size[1], size[0]]) / 100
    made = partial(Drawing, frame=frame, name=str(labels[0]), size=size)
    match kind.removesuffix("labels"):
        case "polygon":
            yield made(draw=_fills(_polygon(value["points"]) * scale))
        case "brush":
            if not isinstance(rle := value["rle"], list):
                raise MaskError("its brush is no list of bytes")
            yield made(draw=lambda size: decode_brush(rle, size))
        case "rectangle":
            yield made(box=_box_in_percent(value, size))
        case "ellipse":
            x, y = np.array([value["x"], value["y"]], dtype=float) * scale
            across, down = np.array([value["radiusX"], value["radiusY"]], dtype=float) * scale
            angle = float(value.get("rotation", 0))
            yield made(draw=partial(fill_ellipse, (x, y), (across, down), angle))
        case "keypoint":
            x, y = np.array([value["x"], value["y"]], dtype=float) * scale
            yield made(points=((float(x), float(y), True),))


def _box_in_percent(value: Mapping[str, Any], size: Size) -> tuple[float, float, float, float]:
    x, y = float(value["x"]) * size[1] / 100, float(value["y"]) * size[0] / 100
    across, down = float(value["width"]) * size[1] / 100, float(value["height"]) * size[0] / 100
    return _turned(_corners(x, y, x + across, y + down), float(value.get("rotation") or 0), (x, y))
