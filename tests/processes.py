"""Processes of their own: to be killed, launched as several, broken, or free of checks of types.

They are forked from one that has imported what takes long, once in a session of tests.
"""

import io
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ino.train.config import TrainConfig, from_dict, to_dict

DEADLINE = 120  # seconds that a process may take on a busy machine
APART = multiprocessing.get_context("forkserver")
APART.set_forkserver_preload(["ino.train.loop", "ino.tasks.segment", "ino.tasks.ytvos"])


def called_apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module gives in a process of its own, where no types are checked."""
    receiver, sender = APART.Pipe(duplex=False)
    process = APART.Process(target=_call, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise AssertionError(f"{function.__name__} did not come to its end") from None
    finally:
        process.join()


def command_apart(*commands: Sequence[Any], encoding: str = "utf-8") -> tuple[list[int], str, str]:
    """Exit statuses of `ino` with these arguments, one after the other, and what was shown.

    Args:
        commands: the arguments of each.
        encoding: of what is shown, as PYTHONIOENCODING names it: ascii, latin-1, utf-8:strict.
    """
    texts = [[os.fspath(one) if isinstance(one, Path) else str(one) for one in c] for c in commands]
    statuses, out, err = called_apart(_commands, texts, encoding)
    return statuses, os.fsdecode(out), os.fsdecode(err)


def _commands(commands: list[list[str]], encoding: str) -> tuple[list[int], bytes, bytes]:
    from ino import cli

    name, _, errors = encoding.partition(":")
    sys.stdout = io.TextIOWrapper(io.BytesIO(), name, errors or "strict")
    sys.stderr = io.TextIOWrapper(io.BytesIO(), name, "backslashreplace")
    statuses = [cli.main(one) for one in commands]
    shown = []
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        shown.append(stream.buffer.getvalue())
    return statuses, *shown


def _call(sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sender.send(function(*arguments))


def start_training(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    environment: dict[str, str] | None = None,
    fault: str = "",
) -> BaseProcess:
    """A process that trains.

    An error that is for the user goes to the file OUT.error, and its status is the process's.
    """
    arguments = (to_dict(config), out, resume, environment or {}, fault)
    process = APART.Process(target=_train, args=arguments)
    process.start()
    return process


def start_segmenting(
    video: Path, out: Path, masks: dict[int, Path], *, save_every: float = 0.0
) -> BaseProcess:
    """A process that segments a small video, or goes on with it."""
    process = APART.Process(target=_segment, args=(video, out, masks, save_every))
    process.start()
    return process


def start_processes(
    config: TrainConfig, out: Path, *, number: int, resume: bool = False, fault: str = ""
) -> list[BaseProcess]:
    """Processes that train together, with the environment that torchrun gives them."""
    return [
        start_training(config, out, resume=resume, environment=one, fault=fault)
        for one in torchrun_environments(number)
    ]


def torchrun_environments(number: int) -> list[dict[str, str]]:
    """What torchrun sets for each of so many processes on one machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
    }
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]


def wait(processes: Sequence[BaseProcess]) -> list[int | None]:
    """Exit statuses; processes that take too long are killed and have -9."""
    for process in processes:
        process.join(DEADLINE)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


@contextmanager
def held_elsewhere(out: Path) -> Iterator[None]:
    """Within, another process holds the folder as a command does that writes into it."""
    words = "import sys; from pathlib import Path; from ino.system import folder_lock\n"
    words += f"with folder_lock(Path({str(out)!r})): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        yield
        other.kill()


def _train(
    config: dict[str, Any], out: Path, resume: bool, environment: dict[str, str], fault: str
) -> None:
    import torch

    from ino.errors import InoError, StoppedError
    from ino.train.loop import train

    torch.set_num_threads(1)
    os.environ.update(environment)
    if fault:
        FAULTS[fault]()
    try:
        train(from_dict(config), out=out, resume=resume)
    except (InoError, StoppedError) as error:
        out.with_suffix(".error").write_text(str(error))
        sys.exit(error.status if isinstance(error, StoppedError) else 2)


def _segment(video: Path, out: Path, masks: dict[int, Path], save_every: float) -> None:
    import torch

    from ino.data.label_maps import read_labels
    from ino.propagate.protocols import get_protocol
    from ino.propagate.tracker import Tracker
    from ino.tasks import segment

    torch.set_num_threads(1)
    segment.SAVE_EVERY = save_every
    labels = {number: read_labels(path) for number, path in masks.items()}
    tracker = Tracker("ino_vitt8", protocol=get_protocol("ino-near", short_side=64))
    segment.segment_video(video, labels, out=out, tracker=tracker, resume=True)


def _die_while_saving() -> None:
    """SIGKILL when half of the second checkpoint is written."""
    import torch

    original, calls = torch.save, []

    def save(content: Any, path: Path) -> None:
        calls.append(path)
        original(content, path)
        if len(calls) == 2:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save


def _full_disk() -> None:
    """No file grows beyond 1 MB: a checkpoint's writing fails in the middle."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))


FAULTS = {"die while saving": _die_while_saving, "full disk": _full_disk}
