"""Work that goes on in a thread of its own while its results are used."""

import contextlib
import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def in_background(items: Iterable[Item], *, ahead: int = 2) -> Generator[Item, None, None]:
    """The same items in the same order, made in a thread, at most `ahead` of them before they are
    asked for. What the thread raises is raised here; it ends when the result is closed."""
    waiting: queue.Queue[tuple[Item | None, BaseException | None, bool]] = queue.Queue(ahead)
    closed = threading.Event()

    def put(item: Item | None, error: BaseException | None = None, *, last: bool = False) -> None:
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put((item, error, last), timeout=0.1)
                return

    def make() -> None:
        try:
            for item in items:
                put(item)
                if closed.is_set():
                    return
            put(None, last=True)
        except BaseException as error:  # whatever it is, the reader must hear of it
            put(None, error, last=True)
        finally:
            if isinstance(items, Generator):
                items.close()  # here, or a traceback could keep it and its own threads

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            item, error, last = waiting.get()
            if error is not None:
                raise error
            if last:
                return
            yield item  # type: ignore[misc]
    finally:
        closed.set()
        thread.join()
