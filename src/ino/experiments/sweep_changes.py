"""What an earlier sweep left in a folder, compared with the sweep that is to go on there."""

import json
from pathlib import Path

import yaml

from ino.errors import ConfigError
from ino.experiments.sweep_plan import Cell, Plan
from ino.tasks.results import check_settings, settings_text
from ino.train.config import TrainConfig, differences, from_dict
from ino.train.run import CONFIG_NAME


def check_folder(plan: Plan, out: Path) -> None:
    """Compares a plan with what an earlier sweep left in its folder.

    Raises:
        ConfigError: a run there was configured otherwise; the message names row and field.
        OutputError: an evaluation there was made with other settings.
    """
    for cell in plan.cells:
        path = out / cell.name / CONFIG_NAME
        if cell.config is not None and path.exists():
            _check_same(cell, cell.config, path)
        for one in plan.passes_of(cell):
            stored = out / cell.name / one.name / "settings.json"
            if stored.is_file():
                text = settings_text(one.protocol, plan.settings(cell, one))
                check_settings(stored, json.loads(text))


def _check_same(cell: Cell, config: TrainConfig, path: Path) -> None:
    try:
        earlier = from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValueError, ConfigError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: move the folder away to do {cell.name} anew") from (
            error
        )
    changed = differences(earlier, config)
    if earlier.run.max_steps != config.run.max_steps:
        changed.append(("run.max_steps", earlier.run.max_steps, config.run.max_steps))
    if changed:
        name, old, new = changed[0]
        raise ConfigError(
            f"{path.parent} was run with {name} {old}, now the sweep has {new}: choose another "
            "--out, or move that folder away to do it anew"
        )
