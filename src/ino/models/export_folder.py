"""The folder of an export, whose files are replaced together or not at all.

New files are written whole into a hidden folder beside the earlier ones, which then move into that
folder as the new ones move out of it. What fails on the way is taken back at once, and what was
killed on the way when the folder is written again. Two exports into one folder at once are not
told apart.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from ino.errors import OutputError
from ino.files import atomic_path, new_folder
from ino.models.exported import CONFIG, FILES, is_exported

WORK = ".ino-export"
"""The hidden folder, there while an export is written."""


def write_files(folder: Path, files: Mapping[str, bytes], *, overwrite: bool = False) -> None:
    """Writes an export whole; where that fails, the folder is as it was.

    Args:
        folder: created if needed.
        files: see `FILES`, `config.json` among them; an export that was there loses those that are
            not given.
        overwrite: accept a folder that holds something. An earlier export is replaced; files of
            these names that belong to none are not.

    Raises:
        OutputError: the folder holds something and `overwrite` is off, or files of others under
            these names, or it cannot be written to.
    """
    was_there = folder.is_dir()
    new_folder(folder, overwrite=overwrite)
    try:
        _put_back(folder)
        _check_replaceable(folder)
        try:
            _replace(folder, files)
        except BaseException:
            _put_back(folder)
            raise
    except OSError as error:
        raise OutputError(
            f"cannot write to the folder {folder}: {error.strerror or error}"
        ) from error
    finally:
        if not was_there:
            with suppress(OSError):  # it holds the export
                folder.rmdir()


def _replace(folder: Path, files: Mapping[str, bytes]) -> None:
    """Puts files into the place of those of an earlier export, the configuration last."""
    new, leaving, earlier = (folder / WORK / name for name in ("new", "leaving", "earlier"))
    new.mkdir(parents=True)
    leaving.mkdir()
    for name, content in files.items():
        with atomic_path(new / name) as temporary:
            temporary.write_bytes(content)
    _move(FILES, folder, leaving)
    leaving.rename(earlier)  # from here on, what has these names in the folder is new
    _move([*(name for name in files if name != CONFIG), CONFIG], new, folder)
    earlier.rename(folder / WORK / "replaced")  # from here on nothing is put back
    shutil.rmtree(folder / WORK, ignore_errors=True)


def _put_back(folder: Path) -> None:
    """Takes back what `_replace` began, however far it came; the configuration comes last."""
    leaving, earlier = (folder / WORK / name for name in ("leaving", "earlier"))
    if earlier.is_dir():
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        earlier.rename(leaving)
    if leaving.is_dir():
        _move(reversed(FILES), leaving, folder)
    if os.path.lexists(folder / WORK):
        shutil.rmtree(folder / WORK)


def _check_replaceable(folder: Path) -> None:
    """Raises OutputError where a file that an export would replace is of no export."""
    for name in FILES:
        path = folder / name
        if os.path.lexists(path) and not (path.is_file() and is_exported(folder)):
            raise OutputError(
                f"{path} belongs to no export, and --overwrite replaces nothing else: move it away "
                "or choose another --out"
            )


def _move(names: Iterable[str], source: Path, target: Path) -> None:
    """Moves those of the files that are there; links move, and what they point to stays."""
    for name in names:
        if os.path.lexists(source / name):
            (source / name).replace(target / name)
