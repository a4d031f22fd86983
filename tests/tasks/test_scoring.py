"""Work shared by processes: the order, errors, ends, and callers of every kind."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from operator import truediv

import pytest

from ino.data.label_maps import read_labels
from ino.errors import InoError, MaskError
from ino.tasks.scoring import map_in_processes


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_results_come_in_order(workers):
    pauses = [0.2, 0.0, 0.1, 0.0]
    assert list(map_in_processes(partial(max, -1), pauses, workers=workers)) == pauses
    assert list(map_in_processes(abs, [-1], workers=workers)) == [1]
    assert list(map_in_processes(abs, [], workers=workers)) == []


def test_errors_come_out_unchanged(tmp_path):
    missing = tmp_path / "none.png"
    messages = []
    for workers in (1, 2):
        with pytest.raises(MaskError) as raised:
            list(map_in_processes(read_labels, [missing, tmp_path / "other.png"], workers=workers))
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert "none.png" in messages[0]


def test_an_error_comes_with_the_traceback_of_its_process():
    with pytest.raises(ZeroDivisionError) as raised:
        list(map_in_processes(partial(truediv, 1), [1, 0, 2], workers=2))
    assert "Traceback" in str(raised.value.__cause__)


def test_a_child_that_is_killed_does_not_hang():
    with pytest.raises(InoError, match="use fewer workers"):
        list(map_in_processes(os._exit, [3, 3, 3], workers=2))


def test_closing_stops_all_work_at_once():
    start = time.monotonic()
    with closing(map_in_processes(time.sleep, [0, 60, 60, 60], workers=2)) as results:
        assert next(results) is None
    assert time.monotonic() - start < 30


SCRIPT = """
import time
from ino.tasks.scoring import map_in_processes
print("started", flush=True)
print(sum(map_in_processes(abs, [-1, -2, -3], workers=2)), flush=True)
"""


@pytest.mark.parametrize("way", ["file", "standard input", "-c"])
def test_a_program_without_a_guard(tmp_path, way):
    """Its top level runs once: children do not import it."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    arguments = {"file": [path], "standard input": ["-"], "-c": ["-c", SCRIPT]}[way]
    command = [sys.executable, *arguments]
    shown = subprocess.run(command, input=SCRIPT, capture_output=True, text=True, check=True)
    assert shown.stdout == "started\n6\n"
    assert shown.stderr == ""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process")
def test_ctrl_c_stops_at_once(tmp_path):
    path = tmp_path / "script.py"
    # What a shell starts in the background ignores Ctrl-C, and so would this program.
    heeding = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    path.write_text(heeding + SCRIPT.replace("abs, [-1, -2, -3]", "time.sleep, [600, 600, 600]"))
    with subprocess.Popen(
        [sys.executable, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "started\n"
        time.sleep(1)
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=120)  # a busy machine starts slowly
    assert errors.count("Traceback") == 1  # the program's own, none of a child
    assert "KeyboardInterrupt" in errors
