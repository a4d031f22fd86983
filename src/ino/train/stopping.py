"""Signals that ask a run to stop: the step is finished and saved first."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from ino.errors import StoppedError

SAVED_STATUS = 75
"""Exit status after SIGTERM or SIGUSR1: sysexits' EX_TEMPFAIL, "try again later". A batch script
tells by it that the run is to be queued again, and torchrun that the process has not finished."""

INTERRUPTED_STATUS = 130
"""Exit status after Ctrl-C, as shells have it."""

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
_LOG = logging.getLogger("ino")


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Within, before the first step, SIGTERM and SIGUSR1 end the run at once: it has nothing to
    save, and the status still says that it is to be started again.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        where = "nothing was done since the start, pass --resume to start again"
        raise StoppedError(f"stopped by {name}; {where}", status=SAVED_STATUS)

    in_main = threading.current_thread() is threading.main_thread()
    names = [name for name in _NAMES if name != "SIGINT" and hasattr(signal, name)]
    numbers = [signal.Signals[name] for name in names] if in_main else []
    earlier = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


class StopSignals:
    """Notes the first SIGINT, SIGTERM or SIGUSR1; a context manager.

    A second one does what it does anywhere else, so that Ctrl-C twice ends a run at once. Outside
    the main thread, where Python handles no signals, nothing is noted.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for name in _NAMES:
                if hasattr(signal, name):  # Windows has no SIGUSR1
                    number = signal.Signals[name]
                    self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._put_back()

    def stopped(self, *, where: str, succeeds: bool) -> StoppedError:
        """The error that ends a run that was asked to stop.

        Args:
            where: what was saved.
            succeeds: whether the command is to exit with 0: processes that Fabric started, whose
                failure would have it kill the first one.
        """
        status = INTERRUPTED_STATUS if self.received == signal.SIGINT else SAVED_STATUS
        name = "a signal" if self.received is None else self.received.name
        return StoppedError(f"stopped by {name}; {where}", status=0 if succeeds else status)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._put_back()
        _LOG.warning("%s: finishing the step, saving, then stopping", self.received.name)

    def _put_back(self) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}
