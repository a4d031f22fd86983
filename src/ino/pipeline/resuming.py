"""Folders of results that a later run may go on with, and what in them is done.

A folder holds results of one `settings.json` only: another is refused, never mixed in silently.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ino.errors import OutputError
from ino.files import new_folder, remove_leftovers, write_text

_FINISHED = "finished.txt"
_MISSING = object()


def open_folder(out: Path, settings: str, *, resume: bool, overwrite: bool) -> None:
    """Makes the folder ready for results of these settings and no others.

    Args:
        out: created where it is missing.
        settings: the text of settings.json, an object of JSON.
        resume: go on with results that were made with the same settings.
        overwrite: where `resume` is off, accept a folder that holds something; nothing in it counts
            as done.

    Raises:
        OutputError: the folder holds something and neither is given, its settings are others, or it
            cannot be written to.
    """
    stored = out / "settings.json"
    if resume and stored.is_file():
        check_settings(stored, json.loads(settings))
        remove_leftovers(out)
        return
    if resume:
        advice = "it has no settings.json that tells how it was made; choose another --out"
    else:
        advice = "choose another --out, or pass --resume to go on or --overwrite to do all anew"
    new_folder(out, overwrite=overwrite, advice=advice)
    # An older list goes first: a kill between the two must not leave masks of other settings as
    # done, and where there is none, nothing may be in the folder before its settings are.
    if (out / _FINISHED).exists():
        write_text(out / _FINISHED, "")
    write_text(stored, settings)


def read_finished(out: Path) -> list[str]:
    """The names that were noted as done, in that order."""
    path = out / _FINISHED
    if not path.is_file():
        return []
    # A byte that is no text makes a name that no result has, which is done again.
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def note_finished(out: Path, name: str) -> None:
    """Notes a name as done; call it once its results are on disk.

    Raises:
        OutputError: the note cannot be written.
    """
    names = dict.fromkeys([*read_finished(out), name])
    write_text(out / _FINISHED, "".join(f"{one}\n" for one in names))


def check_settings(
    path: Path, settings: Mapping[str, Any], *, leave_out: Collection[str] = ()
) -> None:
    """Compares settings with those that were stored.

    Args:
        path: of settings.json.
        settings: that it should hold.
        leave_out: names that are not compared.

    Raises:
        OutputError: they are others, or the file is broken; the message names the first.
    """
    try:
        stored = _flat(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise OutputError(
            f"{path} is broken, so what made the results beside it cannot be told: choose another "
            "--out or pass --overwrite in place of --resume"
        ) from error
    ours = _flat(settings)
    for name in sorted({*ours, *stored} - {*leave_out}):
        if ours.get(name, _MISSING) != stored.get(name, _MISSING):
            before, now = (one.get(name, "not set") for one in (stored, ours))
            raise OutputError(
                f"{path} says that {name} was {before}, but now it is {now}: resume with the same "
                "settings, or choose another --out"
            )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the fields of the protocol among them."""
    flat = {name: value for name, value in settings.items() if name != "protocol"}
    fields = settings.get("protocol", {}).items()
    return flat | {f"protocol field {name}": value for name, value in fields}
