"""Items made in a thread, ahead of their use."""

import threading
import time

import pytest

from ino.data.video import in_background


def test_items_come_in_order():
    assert list(in_background(iter(range(50)))) == list(range(50))


def test_only_a_few_are_made_ahead():
    made = []

    def items():
        for number in range(100):
            made.append(number)
            yield number

    results = in_background(items(), ahead=3)
    assert next(results) == 0
    time.sleep(0.3)
    assert len(made) <= 6  # one was taken, three wait, one is being put
    results.close()


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield 1
        raise ValueError("broken")

    results = in_background(items())
    assert next(results) == 1
    with pytest.raises(ValueError, match="broken"):
        next(results)


def test_the_thread_ends_when_the_result_is_closed():
    before = threading.active_count()
    results = in_background(iter(range(10_000)))
    next(results)
    assert threading.active_count() == before + 1
    results.close()
    assert threading.active_count() == before


def test_closing_reaches_through_threads_behind_threads():
    """The source is closed by the thread that reads it, and no thread is left."""
    closed = []

    def source():
        try:
            yield from range(10_000)
        finally:
            closed.append(threading.current_thread())

    before = threading.active_count()
    results = in_background(item for item in in_background(source()))
    next(results)
    results.close()
    assert threading.active_count() == before
    assert len(closed) == 1
    assert closed[0] is not threading.current_thread()
