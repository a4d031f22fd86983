"""Labels of the rows of a table, each of which names a folder."""

import re
from collections.abc import Iterable

from ino.errors import ConfigError

_LABEL = re.compile(r"[\w+][\w.,=+-]*")


def check_labels(labels: Iterable[str]) -> None:
    """Checks that each label can name a folder of its own on any disk.

    Raises:
        ConfigError: one cannot, or two are told apart by capitals alone.
    """
    seen: dict[str, str] = {}
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise ConfigError(
                f"the label {label!r} cannot name a folder; use letters, digits and . , = + -"
            )
        if (other := seen.setdefault(label.lower(), label)) != label:
            raise ConfigError(f"the labels {other} and {label} name one folder on some disks")
