"""Which categories of YouTube-VOS are seen: those that its training set holds.

The list here is that of Refer-YouTube-VOS, which describes the 3,471 training videos of YouTube-VOS
2019; it has 65 names, as many as the data set's page says for 2018 and 2019. It is for data sets
that are YouTube-VOS; others say by a file or a training set of their own what counts as seen.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ino.errors import DatasetError

_TRAIN = """
airplane ape bear bike bird boat bucket bus camel cat cow crocodile deer dog dolphin duck eagle
earless_seal elephant fish fox frisbee frog giant_panda giraffe hand hat hedgehog horse knife
leopard lion lizard monkey motorbike mouse others owl paddle parachute parrot penguin person plant
rabbit raccoon sedan shark sheep sign skateboard snail snake snowboard squirrel surfboard
tennis_racket tiger toilet train truck turtle umbrella whale zebra
"""
YTVOS_SEEN = frozenset(_TRAIN.split())
"""The 65 categories of the training set."""

_OFFICIAL_NAME = re.compile(r"[0-9a-f]{10}")


@dataclass(frozen=True)
class SeenCategories:
    """The categories that count as seen, and in words where that is from."""

    names: frozenset[str]
    source: str


def seen_categories(
    root: Path, *, videos: Iterable[str], file: Path | None = None
) -> SeenCategories | None:
    """What counts as seen: as `file` says, else `root`/train/meta.json, else the list above.

    The list is taken only where every video is named as in YouTube-VOS, by ten digits in base 16.
    Where nothing tells, None.

    Args:
        root: the data set.
        videos: names of the videos that are scored.
        file: a category a line, or a meta.json.

    Raises:
        DatasetError: the file or train/meta.json is missing, broken or names no category.
    """
    train = root / "train" / "meta.json"
    if file is None and train.is_file():
        file = train
    if file is not None:
        names = _read_names(file)
        return SeenCategories(names, f"{len(names)} categories of {file}")
    if all(_OFFICIAL_NAME.fullmatch(name) for name in videos):
        return SeenCategories(YTVOS_SEEN, "the 65 categories of YouTube-VOS train")
    return None


def _read_names(path: Path) -> frozenset[str]:
    expected = "expected a category a line, or a meta.json with the category of each object"
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            videos = json.loads(text)["videos"].values()
            names = [one["category"] for video in videos for one in video["objects"].values()]
        else:
            lines = (line.partition("#")[0].strip() for line in text.splitlines())
            names = [line for line in lines if line]
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a category is no text")
        found = frozenset(names)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}): {expected}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(f"{path} does not tell which categories are seen: {expected}") from error
    if not found:
        raise DatasetError(f"{path} is empty: {expected}")
    return found
