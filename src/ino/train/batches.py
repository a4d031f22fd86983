"""The clips of each step, epoch after epoch, also past decoding processes that die."""

import logging
import signal
import threading
from collections.abc import Iterator

from torch import Tensor
from torch.utils.data import DataLoader

from ino.data.clip_sampler import ClipSampler
from ino.data.shard_clips import ShardSchedule
from ino.data.visits import VisitSampler
from ino.errors import InoError, TrainingError

_MOST_DEATHS = 3
_QUIET_BATCHES = 100  # that make up for the deaths before them
_LOG = logging.getLogger("ino")


def batches(
    loader: DataLoader,
    sampler: ClipSampler | VisitSampler | ShardSchedule,
    *,
    first_step: int,
    num_steps: int,
    steps_per_epoch: int,
) -> Iterator[list[Tensor]]:
    """The clips of each step from `first_step` on.

    A decoding process that is killed (often for memory) costs the batches that were under way: all
    are started again where the run is, and give the same clips.

    Raises:
        TrainingError: decoding processes die again and again.
        InoError: as the data set raises it.
    """
    step, num_deaths, last_death = first_step, 0, first_step
    while step < num_steps:
        sampler.set_position(*divmod(step, steps_per_epoch))
        try:
            read = _workers_watched(loader)
            for clips in sampler.batches(read) if isinstance(sampler, VisitSampler) else read:
                yield clips
                step += 1
                if step == num_steps:
                    return
        except InoError as error:
            # A worker process puts its whole traceback into the message.
            kind = type(error)
            raise kind(str(error).rpartition(f"{kind.__name__}: ")[2]) from error
        except (RuntimeError, OSError, EOFError) as error:
            if loader.num_workers == 0 or not _tells_death(error):
                raise
            num_deaths = num_deaths + 1 if step - last_death < _QUIET_BATCHES else 1
            last_death = step
            if num_deaths > _MOST_DEATHS:
                raise TrainingError(
                    f"processes that decode died {num_deaths} times near step {step}, maybe for "
                    "want of memory: lower data.num_workers and resume"
                ) from error
            _LOG.warning("a process that decodes died at step %d; all are started again", step)
            loader._iterator = None


def _workers_watched(loader: DataLoader) -> Iterator[list[Tensor]]:
    """Batches of a loader whose dead workers show only where a batch is asked for.

    torch raises from a handler of SIGCHLD, that is from any line of the training step, and finds a
    dead worker without it, too: some seconds later, when it waits for a batch.
    """
    in_main = threading.current_thread() is threading.main_thread()
    has_signal = in_main and hasattr(signal, "SIGCHLD")
    earlier = signal.getsignal(signal.SIGCHLD) if has_signal else None
    iterator = iter(loader)
    if has_signal and _is_torch_s(signal.getsignal(signal.SIGCHLD)):
        kept = signal.SIG_DFL if earlier is None or _is_torch_s(earlier) else earlier
        signal.signal(signal.SIGCHLD, kept)
    yield from iterator


def _is_torch_s(handler: object) -> bool:
    return getattr(handler, "__module__", "") == "torch.utils.data._utils.signal_handling"


def _tells_death(error: Exception) -> bool:
    """Whether a worker is gone, as torch says it or as its half-sent batch shows; not its error."""
    text = str(error)
    if text.startswith("Caught "):
        return False
    half_sent = (ConnectionError, EOFError, FileNotFoundError)
    return "DataLoader worker (pid" in text or isinstance(error, half_sent)
