"""Generated video as a data set in the layout of YouTube-VOS, with objects that enter late."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ino.data.label_maps import write_labels
from ino.demo.synthetic import SyntheticClip
from ino.errors import ConfigError
from ino.system import atomic_path, new_folder, write_text

STEP = 5
"""Every so many frames one is in the split, as in YouTube-VOS."""


def write_ytvos_layout(
    clips: Mapping[str, SyntheticClip],
    root: Path,
    *,
    split: str = "valid",
    entries: Mapping[str, Mapping[int, int]] | None = None,
    categories: Mapping[int, str] | None = None,
    dense: bool = False,
    all_frames: bool = True,
) -> None:
    """Writes the clips as a split of YouTube-VOS.

    Frames are JPEG of quality 95, labels are indexed PNG. meta.json is written last: where it is,
    all is there.

    Args:
        clips: by name, at least one; a name is a folder's.
        root: folder of the data set, in which the split must not hold anything yet.
        split: name of the folder.
        entries: for each video the frame that an object enters with, a multiple of 5; the first
            frame for objects that are not named. Before, it has no label.
        categories: of the objects, by number; `person` for those that are not named.
        dense: annotate every frame of the split, as in train, not only those where objects enter.
        all_frames: write every frame to `<split>_all_frames` too.

    Raises:
        ConfigError: there is no clip, or an object is not seen in the frame that it enters with.
        OutputError: the folders hold something already or cannot be written to.
    """
    if not clips:
        raise ConfigError("a data set needs at least one clip, and none was given")
    folder = new_folder(root / split)
    whole = new_folder(root / f"{split}_all_frames") if all_frames else None
    meta = {}
    for name, clip in clips.items():
        enters = {int(label): 0 for label in np.unique(clip.labels[0]) if label}
        enters |= (entries or {}).get(name, {})
        if whole is not None:
            _write_frames(whole / "JPEGImages" / name, clip, range(len(clip.frames)))
        kept = range(0, len(clip.frames), STEP)
        _write_frames(folder / "JPEGImages" / name, clip, kept)
        _write_annotations(folder / "Annotations" / name, clip, enters, dense=dense)
        meta[name] = {"objects": _describe(enters, categories or {}, kept)}
    write_text(folder / "meta.json", json.dumps({"videos": meta}, indent=2) + "\n")


def _describe(
    enters: Mapping[int, int], categories: Mapping[int, str], kept: range
) -> dict[str, Any]:
    """The objects of a video as meta.json has them."""
    return {
        str(label): {
            "category": categories.get(label, "person"),
            "frames": [f"{t:05d}" for t in kept if t >= first],
        }
        for label, first in sorted(enters.items())
    }


def _write_frames(folder: Path, clip: SyntheticClip, numbers: range) -> None:
    new_folder(folder)
    for t in numbers:
        with atomic_path(folder / f"{t:05d}.jpg") as temporary:
            Image.fromarray(clip.frames[t]).save(temporary, format="JPEG", quality=95)


def _write_annotations(
    folder: Path, clip: SyntheticClip, enters: Mapping[int, int], *, dense: bool
) -> None:
    new_folder(folder)
    for label, first in enters.items():
        if first % STEP or not (clip.labels[first : first + 1] == label).any():
            raise ConfigError(
                f"object {label} cannot enter {folder.name} with frame {first}: give a multiple of "
                f"{STEP} in which it is seen"
            )
    for t in range(0, len(clip.frames), STEP) if dense else sorted(set(enters.values())):
        # As in `valid`, where frames are not annotated: only what enters has a label.
        shown = [label for label, first in enters.items() if (first <= t if dense else first == t)]
        labels = np.where(np.isin(clip.labels[t], shown), clip.labels[t], 0)
        write_labels(folder / f"{t:05d}.png", labels.astype(np.uint8))
