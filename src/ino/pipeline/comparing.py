"""Two evaluations on DAVIS, from their folders to pictures, a table and one HTML page."""

import itertools
import json
from pathlib import Path
from typing import Any

from PIL import Image

from ino.data.frame_folder import image_size
from ino.data.vos import VideoSequence, read_davis
from ino.errors import ConfigError, MaskError, OutputError
from ino.evaluate.comparison import Comparison, compare_scores
from ino.evaluate.comparison_page import (
    comparison_page,
    comparison_strips,
    scatter_picture,
    strips_picture,
)
from ino.evaluate.tables import read_json
from ino.files import atomic_path, new_folder, write_text
from ino.pipeline.text_table import markdown

_OF_DATA = ("year", "split", "resolution")


def compare_evaluations(
    a: Path,
    b: Path,
    *,
    out: Path,
    root: Path | None = None,
    num_shown: int = 3,
    num_frames: int = 5,
    overwrite: bool = False,
) -> Comparison:
    """Compares what `ino evaluate davis`, or a row of a suite, left in two folders.

    Writes `comparison.html` (pictures within it), `scatter.png`, `strips/NN_SEQUENCE.png` in the
    order of the page, `table.md` and `comparison.json`.

    Args:
        a: folder of an evaluation.
        b: of another one of the same data set.
        out: folder of the results.
        root: of the data set; None for the one that `a` was evaluated on.
        num_shown: sequences shown that are best for A against B, and as many for B.
        num_frames: of each, the given frame among them.
        overwrite: accept a folder that holds something.

    Raises:
        ConfigError: the two have nothing in common, or a number is out of range.
        DatasetError: the data set is not as its layout says.
        MaskError: masks are missing, broken or of another size than their frames.
        OutputError: a folder is no evaluation on DAVIS, or results cannot be written.
    """
    if num_shown < 0 or num_frames < 1:
        raise ConfigError(
            f"{num_shown} sequences and {num_frames} frames cannot be shown; give 0 or more "
            "sequences and 1 or more frames"
        )
    names = names_apart(a, b)
    settings = _common_settings(a, b)
    comparison = compare_scores(names, *(read_json(one / "scores.json") for one in (a, b)))
    found = _sequences(a, settings, root, [gap.sequence for gap in comparison.gaps])
    folders = {name: one / "predictions" for name, one in zip(names, (a, b), strict=True)}
    _check_masks(found, list(folders.values()))
    new_folder(out, overwrite=overwrite)
    strips = [
        [
            (gap, comparison_strips(found[gap.sequence], folders, gap=gap, count=num_frames))
            for gap in gaps
        ]
        for gaps in comparison.ends(num_shown)
    ]
    new_folder(out / "strips", overwrite=True)
    written = set()
    for number, (gap, rows) in enumerate(itertools.chain(*strips), start=1):
        written.add(path := out / "strips" / f"{number:02d}_{gap.sequence}.png")
        _save(strips_picture(rows), path)
    for stale in {*(out / "strips").glob("[0-9][0-9]*_*.png")} - written:
        stale.unlink()  # of an earlier result that this one overwrites
    scatter = scatter_picture(comparison, num_named=max(num_shown, 3))
    _save(scatter, out / "scatter.png")
    text = comparison_page(comparison, scatter=scatter, strips=strips, notes=_notes(comparison))
    write_text(out / "comparison.html", text)
    below = "".join(f"\n{note}\n" for note in comparison.notes())
    write_text(out / "table.md", markdown(comparison.lines()) + below)
    write_text(out / "comparison.json", json.dumps(_plain(comparison, a, b), indent=2) + "\n")
    return comparison


def names_apart(a: Path, b: Path) -> tuple[str, str]:
    """The shortest ends of two paths that tell them apart.

    Raises:
        ConfigError: both are the same folder.
    """
    first, second = a.resolve().parts, b.resolve().parts
    if first == second:
        raise ConfigError(f"{a} and {b} are the same folder; give two evaluations")
    for length in range(1, max(len(first), len(second)) + 1):
        names = "/".join(first[-length:]), "/".join(second[-length:])
        if names[0] != names[1]:
            return names
    raise AssertionError("two paths that differ have ends that differ")


def _common_settings(a: Path, b: Path) -> dict[str, Any]:
    """What the two tell of their data set, A before B.

    Raises:
        ConfigError: they were evaluated on two.
    """
    ours, theirs = (_settings(one) for one in (a, b))
    for name in _OF_DATA:  # what one of them does not tell, as masks of other programs, is no other
        if name in ours and name in theirs and ours[name] != theirs[name]:
            raise ConfigError(
                f"{a} was evaluated with {name} {ours[name]}, {b} with {theirs[name]}; "
                "give two evaluations of the same data set"
            )
    return {name: value for name, value in theirs.items() if name in _OF_DATA} | ours


def _sequences(
    a: Path, settings: dict[str, Any], root: Path | None, names: list[str]
) -> dict[str, VideoSequence]:
    """The sequences by name, read as A was evaluated."""
    root = root or (Path(settings["root"]) if settings.get("root") else None)
    if root is None:
        raise ConfigError(f"{a / 'settings.json'} does not tell the data set; pass --root DAVIS")
    choice = {name: settings[name] for name in _OF_DATA if name in settings}
    return {one.name: one for one in read_davis(root, sequences=names, **choice)}


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "settings.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}  # only scores and masks, perhaps of another program
    except (ValueError, TypeError) as error:
        raise OutputError(f"{path} is broken: evaluate again, or remove it") from error


def _check_masks(sequences: dict[str, VideoSequence], folders: list[Path]) -> None:
    """Before anything is drawn; only the heads of files are read."""
    for one in sequences.values():
        for number, annotation in one.annotations.items():
            expected = image_size(one.frames[number])
            masks = [folder / one.name / f"{one.frames[number].stem}.png" for folder in folders]
            for path in (annotation, *masks):
                if not path.is_file():
                    raise MaskError(f"{path} does not exist: evaluate {path.parents[2]} again")
                if (found := image_size(path)) != expected:
                    raise MaskError(
                        f"{path} is {found[0]}x{found[1]} (height x width), but its frame is "
                        f"{expected[0]}x{expected[1]}: evaluate again, or pass the data set "
                        "that was evaluated as --root"
                    )


def _notes(comparison: Comparison) -> list[str]:
    notes = [
        "Pictures: the frame that was given, then of each equal part of the sequence the frame in "
        "which J of the two methods differs most, with its number. Scores are means over all "
        "frames, in percent; J&F of a sequence is the mean over its objects."
    ]
    return notes + comparison.notes()


def _plain(comparison: Comparison, a: Path, b: Path) -> dict[str, Any]:
    return {
        "a": {"name": comparison.name_a, "folder": str(a), "J&F": comparison.a.jf_mean},
        "b": {"name": comparison.name_b, "folder": str(b), "J&F": comparison.b.jf_mean},
        "sequences": {
            gap.sequence: {"a": gap.a, "b": gap.b, "difference": gap.difference}
            for gap in comparison.gaps
        },
        "left_out": list(comparison.left_out),
    }


def _save(image: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary)
