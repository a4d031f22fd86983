"""Weights & Biases, for those who have it: an extra, through Lightning's logger.

Where the service cannot or shall not be reached, its own setting WANDB_MODE=offline keeps
everything in the folder of the run.
"""

import secrets
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from ino.errors import ConfigError
from ino.files import write_text

ID_NAME = "wandb_id.txt"


def check_wandb(project: str) -> None:
    """Checks that a run can tell Weights & Biases, if it is asked to.

    Raises:
        ConfigError: it is not installed.
    """
    if project and find_spec("wandb") is None:
        raise ConfigError(
            f"run.wandb is {project}, but Weights & Biases is not installed; install ino[wandb] or "
            "leave run.wandb out"
        )


class WandbRun:
    """A run in a project of Weights & Biases; a run that resumes goes on in the same one."""

    def __init__(self, project: str, *, folder: Path) -> None:
        """Args:
        project: its name there.
        folder: of the run; it names the run and keeps its id and its files.

        Raises:
            ConfigError: Weights & Biases is not installed, or does not take the run.
        """
        check_wandb(project)
        from lightning.pytorch.loggers import WandbLogger

        known = import_module("wandb.errors").Error

        self._logger = WandbLogger(
            name=folder.name,
            save_dir=folder,
            project=project,
            id=_stored_id(folder / ID_NAME),
            resume="allow",
        )
        try:
            self._run = self._logger.experiment  # it connects here, not at the first number
        except known as error:
            raise ConfigError(
                f"run.wandb is {project}, but Weights & Biases does not take the run ({error}): "
                "run wandb login, set WANDB_MODE=offline, or leave run.wandb out"
            ) from error

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Logs the numbers of a step."""
        self._logger.log_metrics(dict(numbers), step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        """Logs a picture."""
        self._logger.log_image(name, [str(path)], step=step)

    def close(self, *, failed: bool) -> None:
        """Sends what is left."""
        self._run.finish(exit_code=int(failed))


def _stored_id(path: Path) -> str:
    if path.is_file() and (found := path.read_text(encoding="utf-8").strip()):
        return found
    new = secrets.token_hex(8)
    write_text(path, new + "\n")
    return new
