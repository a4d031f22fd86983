"""Draws docs/architecture.png, the house of `ino`, from the imports of its code.

    python docs/architecture.py

Each box is a folder or a file of src/ino with its lines of code; boxes stand on their layer (the
table in tests/test_layers.py). An arrow goes from a box to one that it imports from; arrows that
follow from others (a path of two or more leads to the same box) are left out.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from test_layers import LAYERS, SOURCE, imported_rooms, room  # noqa: E402

LINE = 0.16
"""Height of a line of text, inches."""

COLORS = ("#eef2f7", "#e3edf7", "#e0f0ea", "#eaf3dc", "#fbf3d5", "#fbe9d6", "#f7e1e1", "#efe3f3")


def read_rooms() -> tuple[dict[str, list[tuple[str, int]]], dict[str, set[str]]]:
    """Files with their lines of each room, and the rooms that it imports from."""
    files: dict[str, list[tuple[str, int]]] = {}
    imports: dict[str, set[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        here = room(path)
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if here.startswith("__") or not lines:
            continue
        files.setdefault(here, []).append((path.stem, lines))
        imports.setdefault(here, set()).update(imported_rooms(path) - {here})
    return files, imports


def without_shortcuts(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Only the imports that no longer path of imports implies."""

    def reach(start: str) -> set[str]:
        found: set[str] = set()
        for other in imports.get(start, set()):
            found |= {other} | reach(other)
        return found

    return {
        here: others - set().union(*(reach(other) for other in others), set())
        for here, others in imports.items()
    }


def main() -> None:
    files, imports = read_rooms()
    levels = sorted({LAYERS[name] for name in files}, reverse=True)
    rows = [sorted(name for name in files if LAYERS[name] == level) for level in levels]
    width, gap, box = 15.0, 0.35, 2.0
    heights = [max(len(files[name]) if len(files[name]) > 1 else 0 for name in row) for row in rows]
    tall = [LINE * (count + 2) + 0.1 for count in heights]
    total = sum(tall) + gap * (len(rows) + 1) + 0.2
    figure, axes = plt.subplots(figsize=(width, total))
    axes.set(xlim=(0, width), ylim=(0, total))
    axes.axis("off")
    places, top = {}, total - gap
    for row, height in zip(rows, tall, strict=True):
        step = width / len(row)
        for number, name in enumerate(row):
            center = step * (number + 0.5)
            own = LINE * ((len(files[name]) if len(files[name]) > 1 else 0) + 2) + 0.1
            bottom = top - own
            axes.add_patch(
                FancyBboxPatch(
                    (center - box / 2, bottom),
                    box,
                    own,
                    boxstyle="round,pad=0.02",
                    facecolor=COLORS[LAYERS[name] % len(COLORS)],
                    edgecolor="#556",
                    zorder=3,
                )
            )
            lines = sum(count for _, count in files[name])
            is_folder = (SOURCE / name).is_dir()
            title = f"{name}/" if is_folder else f"{name}.py"
            axes.text(
                center, top - LINE, f"{title}  {lines:,}", ha="center", weight="bold", zorder=4
            )
            if len(files[name]) > 1:
                text = "\n".join(f"{stem}  {count}" for stem, count in files[name])
                axes.text(
                    center, top - 1.5 * LINE, text, ha="center", va="top", fontsize=7.5, zorder=4
                )
            places[name] = (center, bottom, top)
        top -= height + gap
    for here, others in without_shortcuts(imports).items():
        for other in others:
            start, end = places[here], places[other]
            axes.add_patch(
                FancyArrowPatch(
                    (start[0], start[1]),
                    (end[0], end[2]),
                    arrowstyle="-|>",
                    mutation_scale=9,
                    color="#8893a5",
                    linewidth=0.8,
                    zorder=1,
                )
            )
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=100, bbox_inches="tight")


if __name__ == "__main__":
    main()
