"""A sweep: every cell is trained and scored, whatever happens to the others, and once only.

What is done is read from the folder alone, so a sweep that was killed goes on where it stopped:
    DIR/LABEL/seed_N/             the run, as `ino train` leaves it
    DIR/LABEL/seed_N/davis_.../   its evaluation, as `ino evaluate davis` leaves it
    DIR/LABEL/seed_N.error.txt    why it failed, until it succeeds
    DIR/LABEL/seed_N.log.txt      what it printed, where several run at once
"""

import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from ino.errors import StoppedError
from ino.experiments.rows import ended, failure_text, first_line, print_into, stop_all
from ino.experiments.sweep_plan import Cell, Pass, Plan
from ino.models.backbone import choose_device
from ino.models.load import load_backbone
from ino.models.weights import list_checkpoints
from ino.pretrain import pretrain
from ino.propagate.tracker import Tracker
from ino.system import available_cores, folder_lock, write_text
from ino.tasks.davis import evaluate_davis
from ino.tasks.results import read_means
from ino.train.run import INTERRUPTED_STATUS, SAVED_STATUS

OnCell = Callable[[Cell], None]


def run_sweep(
    plan: Plan, *, out: Path, jobs: int = 1, on_cell: OnCell = lambda cell: None
) -> list[Cell]:
    """Trains and scores every cell that is not done, and gives those that failed.

    Args:
        plan: see `plan_sweep`; checked against the folder by `check_folder`.
        out: folder of the sweep.
        jobs: cells at once, each in a process with its share of the processor's cores; with 1 all
            run in this process.
        on_cell: called when a cell is done or has failed.

    Raises:
        OutputError: another process has the folder.
    """
    with folder_lock(out, command="ino sweep"):
        cells = [cell for cell in plan.cells if not is_done(plan, cell, out=out)]
        if jobs == 1:
            for cell in cells:
                run_cell(plan, cell, out=out)
                on_cell(cell)
        else:
            _run_at_once(plan, cells, out=out, jobs=jobs, on_cell=on_cell)
    return [cell for cell in plan.cells if not is_done(plan, cell, out=out)]


def run_cell(plan: Plan, cell: Cell, *, out: Path) -> None:
    """Trains and scores one cell; what goes wrong is written to its error file."""
    failure = error_file(cell, out=out)
    failure.unlink(missing_ok=True)
    folder = out / cell.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        if cell.config is not None:
            pretrain(cell.config, out=folder, resume=True)
        for one in plan.passes_of(cell):
            if read_scores(folder / one.name) is None:
                _score(plan, cell, one, folder=folder)
    except StoppedError:
        raise
    except Exception as error:  # the other cells go on, and the whole story is kept
        write_text(failure, failure_text(error))


def is_done(plan: Plan, cell: Cell, *, out: Path) -> bool:
    """Whether every evaluation of the cell is on disk."""
    folder = out / cell.name
    return all(read_scores(folder / one.name) is not None for one in plan.passes_of(cell))


def state_of(plan: Plan, cell: Cell, *, out: Path) -> str:
    """How far a cell is, in a few words."""
    scores = [read_scores(out / cell.name / one.name) for one in plan.passes_of(cell)]
    done = [one for one in scores if one is not None]
    if len(done) == len(scores):
        return "done, J&F " + " ".join(f"{100 * one['J&F-Mean']:.1f}" for one in done)
    failure = error_file(cell, out=out)
    if failure.is_file():
        return f"failed: {first_line(failure)}"
    saved = list_checkpoints(out / cell.name)
    return f"saved at step {int(saved[-1].stem.split('_')[1])}" if saved else "not started"


def read_scores(folder: Path) -> dict[str, float] | None:
    """The means over objects of an evaluation, as fractions by column name; None if not done."""
    return read_means(folder / "scores.json")


def error_file(cell: Cell, *, out: Path) -> Path:
    """Where it is written why a cell failed."""
    return out / f"{cell.name}.error.txt"


def _score(plan: Plan, cell: Cell, one: Pass, *, folder: Path) -> None:
    chosen = plan.evaluation
    backbone = load_backbone(cell.weights or folder, network=one.network, seed=cell.seed)
    device = choose_device(cell.config.run.accelerator if cell.config else "auto")
    evaluate_davis(
        Path(chosen.root or ""),
        out=folder / one.name,
        tracker=Tracker(backbone, protocol=one.protocol, device=device),
        year=chosen.year,
        split=chosen.split,
        resolution=chosen.resolution,
        sequences=chosen.sequences,
        settings=plan.settings(cell, one),
        overwrite=True,  # only masks of a stopped evaluation with the same settings can be there
    )


def _run_at_once(plan: Plan, cells: list[Cell], *, out: Path, jobs: int, on_cell: OnCell) -> None:
    """A process a cell, so that one that is killed takes no other with it."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, available_cores() // jobs)
    waiting = list(reversed(cells))
    running: dict[int, tuple[Cell, BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop()
                process = context.Process(target=_run_alone, args=(plan, cell, out, threads))
                process.start()
                running[process.sentinel] = cell, process
            for sentinel in connection.wait(list(running)):
                assert isinstance(sentinel, int)
                cell, process = running.pop(sentinel)
                process.join()
                if process.exitcode and process.exitcode not in (SAVED_STATUS, INTERRUPTED_STATUS):
                    failure = ended(process, log=log_file(cell, out=out))
                    write_text(error_file(cell, out=out), failure)
                on_cell(cell)
    finally:
        stop_all([process for _, process in running.values()])


def log_file(cell: Cell, *, out: Path) -> Path:
    """What a cell prints where several run at once."""
    return out / f"{cell.name}.log.txt"


def _run_alone(plan: Plan, cell: Cell, out: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    print_into(log_file(cell, out=out))
    try:
        run_cell(plan, cell, out=out)
    except StoppedError as stopped:
        sys.exit(stopped.status)
