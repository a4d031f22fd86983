"""What a folder holds of an earlier run, also where a disk or a person damaged a part of it."""

import logging
import zipfile
import zlib
from pathlib import Path

import yaml

from ino.errors import CheckpointError, ConfigError
from ino.models.checkpoints import list_checkpoints, read_checkpoint
from ino.train.config import TrainConfig
from ino.train.config_dict import from_dict

CONFIG_NAME = "config.yaml"
DAMAGED_SUFFIX = ".damaged"

_LOG = logging.getLogger("ino")


def newest_checkpoint(out: Path) -> Path | None:
    """The checkpoint that the run in a folder continues from, if there is one."""
    return next(reversed(list_checkpoints(out)), None)


def newest_whole(out: Path) -> Path | None:
    """The newest checkpoint whose bytes are those that were written, if there is any checkpoint.

    Newer ones that are not get the suffix `.damaged`, under which nothing reads them; a warning
    names them.

    Raises:
        CheckpointError: there are checkpoints and none is whole; all keep their names.
        OSError: one cannot be read, which tells nothing of what it holds.
    """
    damaged: list[tuple[Path, str]] = []
    for path in reversed(list_checkpoints(out)):
        if not (fault := _fault(path)):
            for other, reason in damaged:
                aside = other.rename(other.with_name(other.name + DAMAGED_SUFFIX))
                _LOG.warning("%s %s: it is set aside as %s", other, reason, aside.name)
            if damaged:
                _LOG.warning("the run goes on from %s, the newest that is whole", path.name)
            return path
        damaged.append((path, fault))
    if damaged:
        path, fault = damaged[0]
        raise CheckpointError(
            f"{path} {fault}, and no older checkpoint is whole: copy one there from elsewhere, or "
            "start anew with another --out"
        )
    return None


def _fault(path: Path) -> str:
    """How a checkpoint is damaged, by the checksums that torch stores; empty if it is not."""
    if not path.is_file():
        return "is no file"
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError):
        # RuntimeError is that of a flag flipped to "encrypted" or to an unknown compression, too.
        return f"({size} bytes) is cut short or no checkpoint"
    return f"({size} bytes) is damaged inside" if broken else ""


def read_config(out: Path) -> TrainConfig:
    """How the run in a folder was configured; if config.yaml is damaged or gone, its newest
    checkpoint says so, too.

    Raises:
        ConfigError: neither tells.
    """
    path = out / CONFIG_NAME
    try:
        return from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    # ValueError is that of text that is no UTF-8, too.
    except (FileNotFoundError, yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError):
        fault = "is damaged" if path.exists() else "is gone"
    checkpoint = newest_whole(out)
    try:
        if checkpoint is not None:
            config = from_dict(read_checkpoint(checkpoint)["config"])
            _LOG.warning("%s %s: %s tells how the run was configured", path, fault, checkpoint.name)
            return config
    except (CheckpointError, TypeError, KeyError):
        pass
    raise ConfigError(
        f"{path} {fault}, so the run there cannot be told from others: choose another --out"
    )
