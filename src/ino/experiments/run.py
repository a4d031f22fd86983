"""Runs an experiment: Tables 2, 3 and 4 and Fig. 5 of the paper, and tables of one's own.

Each trial that waits is trained if it has to be, evaluated and scored, by this process or by
several. Training, propagation and scoring themselves are those of `ino train` and `ino evaluate`.

    DIR/worker_N.log.txt             what a process printed, with several jobs
"""

import multiprocessing
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from ino.errors import ConfigError, InoError, StoppedError
from ino.experiments.plan import Plan, plan_experiment
from ino.experiments.rows import Experiment
from ino.experiments.table import print_rows, write_tables
from ino.experiments.trial import Evaluation, Trial
from ino.export import export_run
from ino.models.backbone import choose_device
from ino.models.load import load_backbone
from ino.models.weights import is_exported
from ino.pretraining import pretrain
from ino.progress import progress
from ino.system import available_cores, write_text
from ino.tables import shown, write_json
from ino.tasks.judge import judge_clip, read_judged
from ino.tasks.results import open_folder, propagate_unfinished, read_means

_KILLED = "its process ended without a word: it was killed, or the memory did not suffice"


def run_experiment(
    experiment: Experiment,
    *,
    out: Path,
    only: Sequence[str] | None = None,
    may_train: bool = True,
    is_list: bool = False,
    jobs: int = 1,
    devices: str | None = None,
) -> int:
    """Runs every trial of an experiment that is not done, and prints the table.

    Several processes may run the same experiment at once: each takes trials that no other runs.

    Args:
        experiment: as `read_experiment` gives it.
        out: folder of the experiment.
        only, may_train: see `plan_experiment`.
        is_list: only print the table and the progress of each row.
        jobs: number of processes that share the work.
        devices: comma-separated devices, assigned to the processes in turn; None for all GPUs if
            there are several jobs, else auto. With one job, `run.accelerator` of the recipe decides
            where a run is trained.

    Returns:
        The exit status: 1 if a row has failed or is still waiting, for example because its process
        was killed, else 0.

    Raises:
        InoError: see `plan_experiment`; or a device cannot be used.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs is {jobs}; it must be 1 or more")
    plan = plan_experiment(experiment, out=out, only=only, may_train=may_train, is_list=is_list)
    if is_list:
        print_rows(plan, with_done=True)
        return 0
    names = choose_devices(devices, jobs=jobs)
    for trial in plan.chosen:
        if trial.error_file.is_file():
            with trial.hold() as is_free:
                if is_free:
                    trial.error_file.unlink()  # it is tried again
    out.mkdir(parents=True, exist_ok=True)
    if jobs == 1:
        _work(plan, names[0])
    else:
        _share(plan, jobs=jobs, devices=names)
    write_tables(plan)
    print_rows(plan)
    print(shown(f"results in {out}"))
    return int(any(trial.read_state().kind in ("failed", "waiting") for trial in plan.chosen))


def choose_devices(given: str | None, *, jobs: int) -> list[str]:
    """The devices of the processes, in turn.

    Where other processes take them, GPUs are only counted: whoever tries one holds memory of it,
    and may be the only one that it lets in.

    Raises:
        ConfigError: a device cannot be used.
    """
    num_gpus = torch.cuda.device_count()
    if given is None:
        several = jobs > 1 and num_gpus > 1
        return [f"cuda:{number}" for number in range(num_gpus)] if several else ["auto"]
    for name in given.split(","):
        gpu = re.fullmatch(r"cuda(?::(\d{1,4}))?", name)
        if jobs == 1 or gpu is None:
            choose_device(name)
        elif int(gpu[1] or 0) >= num_gpus:
            raise ConfigError(f"there is no {name} here, but {num_gpus} GPUs; pass --devices cpu")
    return given.split(",")


def _work(plan: Plan, device: str, workers: int | None = None) -> None:
    """Does trials that wait and that nobody has, until there is none."""
    while sum(_take(trial, plan, device, workers) for trial in plan.chosen):
        pass


def _take(trial: Trial, plan: Plan, device: str, workers: int | None) -> bool:
    """Does a trial if it waits and nobody has it; whether it did."""
    if trial.read_state().kind != "waiting":
        return False
    with trial.hold() as is_free:
        # Meanwhile another process may have done it.
        if not is_free or trial.read_state().kind != "waiting":
            return False
        _do(trial, device, workers)
    print(shown(f"{trial.name}: {trial.read_state().words}"), file=sys.stderr, flush=True)
    write_tables(plan)
    return True


def _do(trial: Trial, device: str, workers: int | None) -> None:
    """Trains and scores; what goes wrong is written to the error file."""
    trial.error_file.parent.mkdir(parents=True, exist_ok=True)
    write_text(trial.error_file, f"{_KILLED}\n")
    try:
        if trial.config is not None and device == "auto":
            device = trial.config.run.accelerator
        for one in trial.evaluations:
            if trial.read_scores(one) is None:
                weights = trial.weights or str(_trained(trial, one))
                _evaluate(trial, one, weights, device, workers)
    except (StoppedError, KeyboardInterrupt):
        trial.error_file.unlink()
        raise
    except Exception as fault:  # the other rows go on
        kind = "" if isinstance(fault, InoError) else f"{type(fault).__name__}: "
        reason = f"{''.join(getattr(fault, '__notes__', []))}{kind}{fault}"
        story = "".join(traceback.format_exception(fault))
        write_text(trial.error_file, f"{' '.join(reason.split())}\n\n{story}")
    else:
        trial.error_file.unlink()


def _trained(trial: Trial, one: Evaluation) -> Path:
    """The weights of the trial's run after the step of an evaluation, up to which it is trained if
    need be. A run that pauses there ends with the same weights as one that does not."""
    config = trial.config
    assert config is not None
    if one.step is None:
        pretrain(config, out=trial.folder, resume=True)
        return trial.folder
    weights = trial.weights_file(one)
    if not is_exported(weights):
        part = config.with_values({"run.max_steps": one.step})
        pretrain(part, out=trial.folder, resume=True)
        export_run(trial.folder, out=weights, network=one.network or "student", layer="all")
    return weights


def _evaluate(
    trial: Trial, one: Evaluation, weights: str, device: str, workers: int | None
) -> None:
    """Propagates through the videos that are not done, scores, and judges."""
    row, out = trial.row, trial.folder / one.folder
    open_folder(out, trial.settings(one), resume=True, overwrite=False)
    predictions = out / "predictions"
    predictions.mkdir(exist_ok=True)
    backbone = load_backbone(weights, network=one.network, seed=trial.seed or 0)
    tracker = row.tracker(backbone, one.protocol, device)

    def propagate(video: Any, predictions: Path) -> None:
        try:
            row.propagate(video, predictions, tracker=tracker)
        except Exception as fault:
            fault.add_note(f"{video.name}: ")
            raise

    videos = row.read()
    with progress(f"{shown(trial.name)}, videos", len(videos), is_kept=False) as advance:

        def told() -> Iterator[Any]:
            for video in videos:
                yield video
                advance()

        propagate_unfinished(told(), predictions, propagate=propagate, is_whole=row.is_whole)
    row.score(out, one.protocol, workers)
    means = read_means(out / "scores.json") or {}
    scores = {name: 100 * means[key] for name, key in row.scores.items() if key in means}
    write_json(out / "done.json", {"scores": scores})
    judged = trial.read_judged(one)
    for video in sorted(trial.judge - judged.keys()):
        found = judge_clip(backbone, read_judged(video), one.protocol, device=device)
        judged[video] = 100 * found.score
        write_json(out / "judged.json", {"videos": judged})


def _share(plan: Plan, *, jobs: int, devices: Sequence[str]) -> None:
    """`_work` in several processes; one that is killed takes no other with it."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, available_cores() // jobs)
    children = [
        context.Process(target=_work_as_child, args=(plan, n, devices[n % len(devices)], threads))
        for n in range(jobs)
    ]
    untold = [trial for trial in plan.chosen if trial.read_state().kind == "waiting"]
    try:
        for child in children:
            child.start()
        while running := [child.sentinel for child in children if child.is_alive()]:
            connection.wait(running, timeout=1)
            for trial in list(untold):
                state = trial.read_state()
                if state.kind in ("done", "failed"):
                    print(shown(f"{trial.name}: {state.words}"), file=sys.stderr, flush=True)
                    untold.remove(trial)
    finally:
        started = [child for child in children if child.pid is not None]
        for child in started:
            child.terminate()
        for child in started:
            child.join()


def _work_as_child(plan: Plan, number: int, device: str, threads: int) -> None:
    with (plan.out / f"worker_{number}.log.txt").open("a", encoding="utf-8") as log:
        for stream in (1, 2):  # what its own children print, too
            os.dup2(log.fileno(), stream)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    kind, _, index = device.partition(":")
    if kind == "cuda":  # training, too, sees this one only
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        index = index or "0"
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(index)] if visible else index
    try:
        _work(plan, kind, workers=1)
    except StoppedError as stopped:
        sys.exit(stopped.status)


def _end_with_parent() -> None:
    """Stops this process as a batch system does once the one that started it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
