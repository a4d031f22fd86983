"""Files appear whole or not at all; output folders are not overwritten unasked; locks and cores."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ino.errors import OutputError
from ino.system import atomic_path, available_cores, folder_lock, new_folder, remove_leftovers

AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "labels.png"
    with atomic_path(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".png"
        assert temporary.name.startswith(".")
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failed_block_leaves_the_old_file(tmp_path, failure):
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises(failure), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise failure
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_output_error(tmp_path):
    path = tmp_path / "video.mp4"
    with (
        pytest.raises(OutputError, match=r"cannot write .*video\.mp4: No space left") as caught,
        atomic_path(path) as temporary,
    ):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert isinstance(caught.value.__cause__, OSError)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path):
    path = tmp_path / "absent" / "a.png"
    with pytest.raises(OutputError, match="absent does not exist"), atomic_path(path) as temporary:
        temporary.write_text("text")


def test_a_vanished_input_is_not_blamed_on_the_output(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "out.txt") as temporary:
        temporary.write_text((tmp_path / "input.txt").read_text())


def test_a_link_stays_a_link(tmp_path):
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    with atomic_path(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_what_is_not_a_file_is_not_replaced(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")  # stands for all devices: /dev/null would be lost for good
    for path in tmp_path.iterdir():
        with pytest.raises(OutputError, match="is not a file"), atomic_path(path) as temporary:
            temporary.write_text("text")
        assert not path.is_file()


def test_long_names_can_be_written(tmp_path):
    path = tmp_path / f"{'n' * 250}.png"
    with atomic_path(path) as temporary:
        temporary.write_text("text")
    assert path.is_file()


WRITES = """
import sys, time
from pathlib import Path
from ino.system import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print(temporary, flush=True)
    time.sleep(60)
"""


def test_what_killed_processes_left_is_removed_and_no_other_file(tmp_path):
    """Two processes write in the folder; one is killed before the next run begins."""
    (tmp_path / "masks").mkdir()
    targets = [tmp_path / "overlay.mp4", tmp_path / "masks" / "00000.png"]
    writers, temporaries = [], []
    for target in targets:
        command = [sys.executable, "-c", WRITES, str(target)]
        writers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        temporaries.append(Path(writers[-1].stdout.readline().strip()))
    try:
        with atomic_path(tmp_path / "mine.txt") as own:
            own.touch()
            far = tmp_path / ".overlay.00000000-1234567-0123abcd.mp4"  # of another machine
            hidden = tmp_path / ".overlay.0123abcd.mp4"
            for path in (far, hidden):
                path.touch()
            writers[0].kill()
            writers[0].wait()
            assert all(path.exists() for path in temporaries)
            new_folder(tmp_path, overwrite=True)
            assert [path.exists() for path in temporaries] == [False, True]
            assert all(path.exists() for path in (own, far, hidden))
        writers[1].kill()
        writers[1].wait()
        remove_leftovers(tmp_path)
        assert not temporaries[1].exists()
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()


def test_a_new_folder_is_created_with_its_parents(tmp_path):
    folder = new_folder(tmp_path / "runs" / "first")
    assert folder.is_dir()
    assert new_folder(folder) == folder  # empty: may be used again
    (folder / ".DS_Store").touch()
    assert new_folder(folder) == folder
    assert [entry.name for entry in folder.iterdir()] == [".DS_Store"]


def test_a_folder_with_results_is_refused_unless_asked(tmp_path):
    (tmp_path / "00000.png").touch()
    with pytest.raises(OutputError, match="not empty: choose another --out or pass --overwrite"):
        new_folder(tmp_path)
    assert new_folder(tmp_path, overwrite=True) == tmp_path
    assert (tmp_path / "00000.png").exists()


def test_a_file_is_not_a_folder(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(OutputError, match="is a file, but a folder is written"):
        new_folder(path)
    with pytest.raises(OutputError, match="cannot write to the folder"):
        new_folder(path / "below")


@pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="cannot write to the folder"):
            new_folder(tmp_path)
    finally:
        tmp_path.chmod(0o700)


HOLDS = """
import os, sys, time
from pathlib import Path
from ino.system import folder_lock
with folder_lock(Path(sys.argv[1])):
    if os.fork() == 0:  # as a process that decodes
        print("held", flush=True)
        time.sleep(60)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_lock_dies_with_its_process_though_its_children_live(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-c", HOLDS, str(out)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(OutputError, match="another ino train is writing into"),
            folder_lock(out),
        ):
            pass
        other.kill()
        other.wait()
        with folder_lock(out), folder_lock(out):  # one process may lock it twice
            pass
        os.killpg(other.pid, signal.SIGKILL)


def test_without_locks_or_a_folder_nothing_is_locked(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with folder_lock(tmp_path / "file" / "out"):
        pass
    fcntl = pytest.importorskip("fcntl")

    def missing(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", missing)
    with folder_lock(tmp_path), folder_lock(tmp_path):
        pass


def test_cores_are_those_that_the_system_grants(monkeypatch):
    """Affinity here; loky's own tests cover the quotas of containers."""
    granted = available_cores()
    assert 1 <= granted <= os.cpu_count()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert available_cores() == 1


def test_a_link_to_itself_is_no_folder(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match="is a link that leads nowhere"):
        new_folder(tmp_path / "loop")
    for path in (tmp_path / "loop" / "a", tmp_path / ("d" * 300)):
        with pytest.raises(OutputError, match=r"cannot write to the folder"):
            new_folder(path)
