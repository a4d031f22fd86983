"""Film strips: one row of frames per method, masks drawn over them, one column per frame.

They are the pictures of the paper's Figures 3 and 4, of `ino compare` and of the demo. Scores are
computed in ino.tasks and come here as text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from ino.data.davis import VideoSequence, read_sequence
from ino.data.images import image_size, read_image
from ino.data.label_maps import read_labels
from ino.errors import ConfigError, MaskError
from ino.overlay import draw_overlay
from ino.system import atomic_path
from ino.tables import shown

GAP = 4
"""Pixels between the frames of a strip."""


@dataclass(frozen=True)
class Strip:
    """Images side by side (RGB, equal heights), their name, and a remark such as a score."""

    name: str
    images: Sequence[np.ndarray]
    remark: str = ""

    def joined(self) -> UInt8[np.ndarray, "height width 3"]:
        """The images as one, white between them."""
        height = self.images[0].shape[0]
        gap = np.full((height, GAP, 3), 255, dtype=np.uint8)
        pieces = [piece for image in self.images for piece in (gap, image)]
        return np.concatenate(pieces[1:], axis=1)


@dataclass(frozen=True)
class StripGroup:
    """Strips of the same frames below each other; `columns` are the headings of the frames."""

    title: str
    columns: Sequence[str]
    strips: Sequence[Strip]


def plot_strips(
    results: Sequence[str | Path],
    *,
    root: Path,
    out: Path,
    sequences: Sequence[str] | None = None,
    frames: Sequence[int] | None = None,
    num_frames: int = 5,
    truth: bool = True,
    split: str = "valid",
    resolution: str = "480p",
    height: int = 180,
) -> Path:
    """Writes a picture as Figures 3 and 4: sequences and methods as rows, frames as columns.

    Args:
        results: folders that `ino evaluate` or a row of an experiment wrote, or folders of masks
            SEQUENCE/FRAME.png; NAME=FOLDER gives a method its name, else the end of the path does.
        root: of the data set: DAVIS, or YouTube-VOS (its folder or that of the split).
        out: path of the picture, .png or .jpg, which is returned.
        sequences: to show; by default all that every result has.
        frames: to show, by the numbers in the names of their files; by default `num_frames`,
            evenly over those that every result has, from the first to the last.
        num_frames: per sequence, where `frames` is not given.
        truth: begin with a row of the annotations.
        split: of YouTube-VOS.
        resolution: of DAVIS.
        height: of each frame in the picture, pixels.

    Raises:
        ConfigError: an option is out of range, or the results have no sequence or frame in common.
        DatasetError: the data set lacks a sequence.
        MaskError: masks are missing, broken or of another size than their frames.
        OutputError: the picture cannot be written.
    """
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ConfigError(f"--out {out} must end in .png or .jpg")
    if num_frames < 1 or height < 16:
        raise ConfigError(
            f"{num_frames} frames of {height} pixels cannot be shown; give 1 or more frames and a "
            "height of 16 or more"
        )
    folders = _named_folders(results)
    groups = []
    for name in sequences or _common_sequences(folders):
        sequence = find_sequence(root, name, split=split, resolution=resolution)
        chosen = _chosen_frames(sequence, folders, frames, num_frames=num_frames)
        groups.append(
            mask_strips(sequence, folders, chosen, title=name, truth=truth, height=height)
        )
    save_picture(draw_strips(groups), out)
    return out


def mask_strips(
    sequence: VideoSequence,
    folders: Mapping[str, Path],
    chosen: Sequence[int],
    *,
    title: str,
    plain: bool = False,
    truth: bool = True,
    remarks: Mapping[str, str] | None = None,
    height: int | None = None,
) -> StripGroup:
    """The frames of a sequence with the masks of each method.

    Args:
        sequence: with its annotations.
        folders: of masks SEQUENCE/FRAME.png, by the name of the method.
        chosen: positions of the frames to show.
        title: of the group.
        plain: begin with a row of the frames alone.
        truth: then add a row of the annotations, called "Truth", or "Given" if frames lack one.
        remarks: for each method.
        height: of each frame, pixels; by default that of the frames.

    Raises:
        MaskError: masks are missing, broken or of another size than their frames.
    """
    size = image_size(sequence.frames[0])
    images = [read_image(sequence.frames[t], size=size) for t in chosen]

    def strip(name: str, paths: Sequence[Path | None], remark: str = "") -> Strip:
        pairs = zip(images, paths, strict=True)
        return Strip(name, [_overlaid(*pair, height=height) for pair in pairs], remark)

    strips = [strip("Frame", [None] * len(chosen))] if plain else []
    if truth:
        known = [sequence.annotations.get(t) for t in chosen]
        strips.append(strip("Truth" if all(known) else "Given", known))
    for name, folder in folders.items():
        paths = [mask_path(folder, sequence, t) for t in chosen]
        strips.append(strip(name, paths, (remarks or {}).get(name, "")))
    given = min(sequence.annotations)
    columns = [f"frame {_number(sequence, t)}{', given' if t == given else ''}" for t in chosen]
    return StripGroup(shown(title), [shown(column) for column in columns], strips)


def draw_strips(groups: Sequence[StripGroup]) -> UInt8[np.ndarray, "height width 3"]:
    """The groups below each other on white, with titles, headings, and names beside the strips."""
    size = max(12, groups[0].strips[0].images[0].shape[0] // 10)
    font, bold = (_font(name, size) for name in ("DejaVuSans", "DejaVuSans-Bold"))
    strips = [strip for group in groups for strip in group.strips]
    texts = [text for strip in strips for text in (strip.name, strip.remark)]
    margin = 2 * size + round(max(map(font.getlength, texts)))
    drawn = [_draw_group(group, font, bold, margin=margin) for group in groups]
    widest = max(image.shape[1] for image in drawn)
    padded = [
        np.pad(image, ((0, size), (0, widest - image.shape[1]), (0, 0)), constant_values=255)
        for image in drawn
    ]
    return np.concatenate(padded)[:-size]


def save_picture(image: UInt8[np.ndarray, "height width 3"], path: Path) -> None:
    """Writes an RGB image in the format of the suffix, whole or not at all."""
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary)


def find_sequence(
    root: Path, name: str, *, split: str = "valid", resolution: str = "480p"
) -> VideoSequence:
    """A sequence of DAVIS, or of a split of YouTube-VOS in `root`, or of that split itself.

    Raises:
        DatasetError: its frames or annotations are missing.
    """
    if (root / split / "JPEGImages").is_dir():
        root = root / split
    inner = Path(resolution if (root / "JPEGImages" / resolution).is_dir() else "")
    images, annotations = (root / kind / inner / name for kind in ("JPEGImages", "Annotations"))
    return read_sequence(name, frames=images, annotations=annotations)


def mask_path(folder: Path, sequence: VideoSequence, position: int) -> Path:
    """The file of a method's mask of one frame."""
    return folder / sequence.name / f"{sequence.frames[position].stem}.png"


def read_mask(path: Path, *, size: tuple[int, int]) -> UInt8[np.ndarray, "height width"]:
    """The label map of a frame of this height and width.

    Raises:
        MaskError: it is missing, broken or of another size.
    """
    if not path.is_file():
        raise MaskError(
            f"{path} does not exist: give results that have all frames, or other frames"
        )
    labels = read_labels(path)
    if labels.shape != size:
        raise MaskError(
            f"{path} is {labels.shape[0]}x{labels.shape[1]} (height x width), but its frame is "
            f"{size[0]}x{size[1]}: evaluate again, or pass the data set that was evaluated as "
            "--root"
        )
    return labels


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Names for paths: their last parts, as many as are needed to tell different paths apart."""
    parts = [path.resolve().parts for path in paths]
    names: list[str] = []
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = [shown("/".join(one[-length:])) for one in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def _named_folders(results: Sequence[str | Path]) -> dict[str, Path]:
    """The folders of masks by the names of their methods."""
    if not results:
        raise ConfigError("no result is given: give at least one folder of masks")
    # A folder may have = in its name.
    given = [("", one) if Path(one).is_dir() else str(one).partition("=")[::2] for one in results]
    paths = [Path(path or name) for name, path in given]
    folders: dict[str, Path] = {}
    for (name, _), path, end in zip(given, paths, distinct_names(paths), strict=True):
        name = shown(name) or end
        if not path.is_dir():
            raise ConfigError(f"{path} is not a folder: give folders of masks or of results")
        refuse_seeds(path)
        if name in folders:
            raise ConfigError(f"two results are called {name}: give them names, as NAME={path}")
        inner = path / "predictions"
        folders[name] = inner if inner.is_dir() else path
    return folders


def refuse_seeds(result: Path) -> None:
    """Says that an experiment's row of several seeds holds one result for each of them."""
    if seeds := sorted(one.name for one in result.glob("seed_*")):
        raise ConfigError(f"{result} holds a result for each seed: give {result / seeds[0]}")


def _common_sequences(folders: Mapping[str, Path]) -> list[str]:
    names = [{one.name for one in path.iterdir() if one.is_dir()} for path in folders.values()]
    if not (common := set.intersection(*names)):
        raise ConfigError(f"{', '.join(folders)} have no sequence in common")
    return sorted(common)


def _chosen_frames(
    sequence: VideoSequence,
    folders: Mapping[str, Path],
    frames: Sequence[int] | None,
    *,
    num_frames: int,
) -> list[int]:
    """Positions of the frames with these numbers, or of some that every method has."""
    if frames:
        positions = {_number(sequence, t): t for t in range(len(sequence.frames))}
        if unknown := [number for number in frames if number not in positions]:
            raise ConfigError(
                f"{sequence.name} has no frame {unknown[0]}: its frames are "
                f"{min(positions)} to {max(positions)}"
            )
        return [positions[number] for number in frames]
    common = [
        t
        for t in range(len(sequence.frames))
        if all(mask_path(folder, sequence, t).is_file() for folder in folders.values())
    ]
    if not common:
        raise ConfigError(f"{', '.join(folders)} have no frame of {sequence.name} in common")
    return [common[i] for i in evenly(len(common), count=num_frames)]


def evenly(num_all: int, *, count: int) -> list[int]:
    """Up to `count` of the numbers 0 to `num_all` - 1, the first and the last among them."""
    return sorted({round(i * (num_all - 1) / max(count - 1, 1)) for i in range(count)})


def _number(sequence: VideoSequence, position: int) -> int:
    """The number of a frame in the name of its file, or else its position."""
    stem = sequence.frames[position].stem
    return int(stem) if stem.isdecimal() else position


def _overlaid(image: np.ndarray, mask: Path | None, *, height: int | None) -> np.ndarray:
    """The frame resized before the mask is drawn, so that outlines stay fine."""
    rows, columns = image.shape[:2]
    labels = None if mask is None else read_mask(mask, size=(rows, columns))
    if height is not None:
        size = max(1, round(columns * height / rows)), height
        method = cv2.INTER_AREA if height < rows else cv2.INTER_LINEAR
        image = cv2.resize(image, size, interpolation=method)
        if labels is not None:
            labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    return image if labels is None else draw_overlay(image, labels)


def _draw_group(
    group: StripGroup, font: ImageFont.FreeTypeFont, bold: ImageFont.FreeTypeFont, *, margin: int
) -> np.ndarray:
    """One group; its strips begin at `margin`."""
    line = round(1.5 * font.size)
    rows = [strip.joined() for strip in group.strips]
    top = line * (2 if group.title else 1)
    width = max(margin + rows[0].shape[1], round(bold.getlength(group.title) + font.size))
    height = top + sum(len(row) + GAP for row in rows) - GAP
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((font.size / 2, line / 2), group.title, fill="black", font=bold, anchor="lm")
    left = margin
    for image, column in zip(group.strips[0].images, group.columns, strict=True):
        share = min(1.0, image.shape[1] / max(font.getlength(column), 1))
        fitting = font.font_variant(size=share * font.size)
        middle = left + image.shape[1] / 2
        draw.text((middle, top - line / 2), column, fill="#444", font=fitting, anchor="mm")
        left += image.shape[1] + GAP
    for strip, row in zip(group.strips, rows, strict=True):
        text = f"{strip.name}\n{strip.remark}".strip()
        draw.text((font.size / 2, top + len(row) / 2), text, fill="black", font=font, anchor="lm")
        canvas.paste(Image.fromarray(row), (margin, top))
        top += len(row) + GAP
    return np.asarray(canvas)


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf"), size)
