"""Tasks of a suite shared by processes: one that is killed takes no other with it."""

import contextlib
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from ino.experiments.rows import ended, print_into, stop_all
from ino.experiments.suite import Board, Task, Worker


@dataclass
class _Child:
    """A process, its pipe, and the task that it is at."""

    number: int
    process: BaseProcess
    pipe: Connection
    task: Task | None = None


def share_tasks(
    board: Board,
    *,
    jobs: int,
    devices: Sequence[str],
    threads: int,
    on_task: Callable[[Task], None],
) -> None:
    """Does all tasks of a board in `jobs` processes.

    A task whose process ends is a failure of its row; another process takes its place.

    Args:
        board: what is to be done; only this process writes to it.
        jobs: processes at once.
        devices: of the processes, in turn.
        threads: of each process on the CPU.
        on_task: called after each task.
    """
    idle: list[_Child] = []
    busy: list[_Child] = []
    numbers = list(reversed(range(jobs)))
    try:
        while True:
            while (idle or numbers) and (task := board.take()) is not None:
                if not idle:
                    number = numbers.pop()
                    device = devices[number % len(devices)]
                    idle.append(_start(number, board.out, device=device, threads=threads))
                child = idle.pop()
                child.task = task
                busy.append(child)
                with contextlib.suppress(OSError):  # it has ended, which its pipe tells below
                    child.pipe.send(task)
            if not busy:
                return
            ready = connection.wait([child.pipe for child in busy])
            for child in [one for one in busy if one.pipe in ready]:
                busy.remove(child)
                assert child.task is not None
                try:
                    failure = child.pipe.recv()
                    idle.append(child)
                except (EOFError, OSError):
                    child.process.join()
                    child.pipe.close()
                    failure = ended(child.process, log=log_file(board.out, child.number))
                    numbers.append(child.number)
                board.finish(child.task, failure)
                on_task(child.task)
    finally:
        stop_all([child.process for child in [*idle, *busy]])


def log_file(out: Path, number: int) -> Path:
    """What a process prints."""
    return out / f"worker_{number}.log.txt"


def _start(number: int, out: Path, *, device: str, threads: int) -> _Child:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, number, out, device, threads))
    process.start()
    theirs.close()  # else the end of the process would not show
    return _Child(number, process, ours)


def _serve(pipe: Connection, number: int, out: Path, device: str, threads: int) -> None:
    """What a process does: answers tasks until the pipe or the parent ends."""
    torch.set_num_threads(threads)
    print_into(log_file(out, number))
    worker = Worker(out, device=device, scorers=1)
    while True:
        try:
            task = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        pipe.send(worker.perform(task))
