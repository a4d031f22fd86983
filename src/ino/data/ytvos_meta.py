"""The meta.json of a split of YouTube-VOS: its objects, their categories and frames."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ino.errors import DatasetError


@dataclass(frozen=True)
class Listed:
    """An object of meta.json."""

    category: str | None
    frames: tuple[str, ...]


Meta = Mapping[str, Mapping[int, Listed]]
"""For each video its objects by number."""


def read_meta(path: Path) -> Meta | None:
    """What the file lists; None where there is none.

    Raises:
        DatasetError: it is broken.
    """
    if not path.is_file():
        return None
    try:
        videos = json.loads(path.read_text(encoding="utf-8"))["videos"]
        return {
            str(name): {
                int(label): Listed(_category(one), tuple(map(str, one.get("frames") or ())))
                for label, one in video["objects"].items()
            }
            for name, video in videos.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(
            f"{path} is not the meta.json of YouTube-VOS, in which each of `videos` has `objects` "
            "with a number each: copy it again, or delete it to go by the folders alone"
        ) from error


def _category(listed: Mapping[str, object]) -> str | None:
    category = listed.get("category")
    if not isinstance(category, str | None):
        raise TypeError(f"the category {category!r} is no text")
    return category
