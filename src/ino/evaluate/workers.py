"""A function applied to many tasks by several processes, results in the order of the tasks.

The processes are plain children that talk over pipes. They never import the caller's `__main__`,
so a script without a guard, a notebook or a program read from standard input may call this, and
unlike forked ones they start without the locks and threads of the parent. They end with it.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ino.errors import InoError

Task = TypeVar("Task")
Result = TypeVar("Result")

# Ctrl-C reaches a whole group of processes; it is the parent's to answer.
_CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
import pickle
sys.path[:] = pickle.load(sys.stdin.buffer)
from ino.evaluate.workers import serve
serve()
"""


def run_tasks(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, workers: int
) -> Generator[Result, None, None]:
    """The result of each task, in order. Close the iterator to stop all work at once.

    An exception of the function comes out unchanged, that of the first such task in order.

    Args:
        function: of a module that children can import, not of `__main__`; a partial of one too.
        tasks: what can be pickled.
        workers: processes; 1 runs the function here.

    Raises:
        InoError: a process was ended from outside.
    """
    workers = min(workers, len(tasks))
    if workers <= 1 or not sys.executable:
        yield from map(function, tasks)
        return
    children: list[subprocess.Popen[bytes]] = []
    free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()

    def ask(task: Task) -> Result:
        child = free.get()
        try:
            return _ask(child, function, task)
        finally:
            free.put(child)

    pool = ThreadPoolExecutor(workers)  # its threads only wait for the children
    try:
        for _ in range(workers):
            children.append(_start())
            free.put(children[-1])
        yield from pool.map(ask, tasks)
    finally:
        for child in children:
            child.kill()  # which also ends the wait of its thread
        pool.shutdown(cancel_futures=True)
        for child in children:
            child.communicate()


def _start() -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdin is not None
    pickle.dump(sys.path, child.stdin)
    child.stdin.flush()
    return child


def _ask(child: subprocess.Popen[bytes], function: Callable[..., Any], task: Any) -> Any:
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        pickle.dump((function, task), child.stdin)
        child.stdin.flush()
        result, error = pickle.load(child.stdout)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError) as gone:
        raise InoError(
            "one of the processes that share the work ended before it was done, perhaps for lack "
            "of memory: use fewer workers"
        ) from gone
    if error is not None:
        raise error
    return result


def serve() -> None:
    """What a child does: answers tasks from standard input until that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    while True:
        try:
            function, task = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = function(task), None
        except Exception as error:  # any: the parent raises it
            if not isinstance(error, InoError):
                error.add_note("".join(traceback.format_exception(error)))
            answer = None, error
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except BrokenPipeError:  # the parent is gone
            os._exit(1)
