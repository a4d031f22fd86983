"""A submission to YouTube-VOS, whole and with every fault in turn."""

import io
import os
import re
import shutil
import tracemalloc
import zipfile
from functools import partial

import numpy as np
import pytest
from PIL import Image

from ino.data.label_maps import read_labels, write_labels
from ino.data.ytvos import read_ytvos_split
from ino.demo.synthetic import generate_clip
from ino.errors import MaskError, OutputError
from ino.tasks import submission
from ino.tasks.submission import SubmissionReport, check_submission, pack_submission
from synthetic_ytvos import write_ytvos_layout

NUM_MASKS = 7


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two videos; in a1 object 2 enters with frame 10, in b2 nothing before frame 5."""
    folder = tmp_path_factory.mktemp("submission")
    clip = generate_clip(5, num_frames=16, height=48, width=64, num_objects=2)
    entries = {"a1": {2: 10}, "b2": {1: 5, 2: 5}}
    write_ytvos_layout({"a1": clip, "b2": clip}, folder / "data", entries=entries)
    for video in read_ytvos_split(folder / "data").videos:
        (folder / "masks" / video.name).mkdir(parents=True)
        for frame in video.submitted:
            t = int(frame)
            shown = [label for label, first in video.entries.items() if int(first) <= t]
            labels = np.where(np.isin(clip.labels[t], shown), clip.labels[t], 0)
            write_labels(folder / "masks" / video.name / f"{frame}.png", labels.astype(np.uint8))
    return folder


@pytest.fixture
def work(made, tmp_path):
    return shutil.copytree(made, tmp_path / "work")


def check(work, name="masks", *, videos=None, **options) -> SubmissionReport:
    split = read_ytvos_split(work / "data", videos=videos)
    return check_submission(work / name, split, **options)


def pack(work, name="one.zip"):
    path = work / name
    videos = read_ytvos_split(work / "data").videos
    pack_submission(work / "masks", {video.name: video.submitted for video in videos}, path)
    return path


def the_fault(report: SubmissionReport) -> tuple[str, int, str]:
    """The only finding that is a fault: its kind, its count and its sentence."""
    (found,) = report.faults
    return found.kind, found.count, found.sentence


def the_warning(report: SubmissionReport) -> tuple[str, str]:
    """The kind and the sentence of the only finding, which is a warning."""
    (found,) = report.warnings
    assert report.num_faults == 0
    return found.kind, found.sentence


def test_a_whole_folder_and_its_zip_have_no_fault(work):
    pack(work)
    (work / "masks" / "a1" / ".DS_Store").touch()
    for name in ("masks", "one.zip"):
        seen = []
        report = check(work, name, on_video=partial(seen.append, 1))
        assert list(report.lines()) == []
        assert (report.num_videos, report.num_masks, report.num_faults) == (2, NUM_MASKS, 0)
        assert len(seen) == 2
    (work / "top").mkdir()
    (work / "masks").rename(work / "top" / "Annotations")
    assert check(work, "top").num_masks == NUM_MASKS


def test_the_zip_is_the_same_bytes_whenever_it_is_packed(work):
    (work / "masks" / "a1" / "00003.png").write_bytes(b"not asked for")
    first = pack(work)
    for path in sorted((work / "masks").rglob("*.png"), reverse=True):
        path.touch()
    second = pack(work, "two.zip")
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as packed:
        names = packed.namelist()
        assert names == sorted(names)
        assert len(names) == NUM_MASKS
        assert names[0] == "Annotations/a1/00000.png"
        mask = (work / "masks" / "a1" / "00000.png").read_bytes()
        assert packed.read("Annotations/a1/00000.png") == mask


def test_a_zip_appears_whole_or_not_at_all(work):
    (work / "masks" / "b2" / "00015.png").unlink()
    with pytest.raises(OutputError, match=r"b2/00015\.png is missing; predict it first"):
        pack(work)
    assert not list(work.glob("*.zip"))
    assert not list(work.glob(".*"))


def test_the_colors_of_the_data_set_are_accepted(work):
    path = work / "masks" / "a1" / "00010.png"
    image = Image.open(path)
    image.putpalette(bytes.fromhex("000000ec5f67f99157fac863"))
    image.save(path)
    assert check(work).num_faults == 0


def edit(path, change) -> None:
    labels = read_labels(path).copy()
    write_labels(path, change(labels))


def put(labels, value):
    labels[0, 0] = value
    return labels


def as_grey(path):
    Image.fromarray(read_labels(path)).save(path)


def as_colors(path):
    Image.open(path).convert("RGB").save(path)


def as_other_palette(path):
    image = Image.open(path)
    image.putpalette(bytes(range(256)) * 3)
    image.save(path)


def as_jpeg(path):
    Image.fromarray(read_labels(path)).save(path, format="JPEG")


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (lambda p: p.unlink(), "missing frames", "a1 lacks 1 of 4 masks, the first of them 00010"),
        (lambda p: shutil.rmtree(p.parent), "missing video", "a1 has no mask: expected a folder"),
        (
            lambda p: shutil.copy(p, p.with_name("00011.png")),
            "too many frames",
            "a1 holds 00011.png, but masks are asked for 4 frames from 00000 to 00015 alone",
        ),
        (
            lambda p: shutil.copytree(p.parent, p.parent.with_name("c3")),
            "no such video",
            "c3 holds 00000.png, but",
        ),
        (lambda p: shutil.copy(p, p.parents[1]), "no such video", "the top holds 00010.png"),
        (lambda p: p.write_bytes(p.read_bytes()[:90]), "broken masks", "a1/00010.png cannot be"),
        (lambda p: p.write_bytes(b""), "broken masks", "a1/00010.png is not an image: write it"),
        (lambda p: p.write_text("text"), "broken masks", "a1/00010.png is not an image: write it"),
        (as_grey, "not indexed", "a1/00010.png is a PNG image of mode L: expected an indexed PNG"),
        (as_colors, "not indexed", "mode RGB"),
        (as_jpeg, "not indexed", "a JPEG image of mode L"),
        (
            lambda p: edit(p, lambda labels: labels[:24]),
            "another size",
            "a1/00010.png is 24x64 (height x width), but the annotation is 48x64: resize it",
        ),
        (
            lambda p: edit(p, lambda labels: put(labels, 9)),
            "unknown objects",
            "a1/00010.png holds object 9, but a1 has the objects 1, 2: leave out all others",
        ),
        (lambda p: edit(p, lambda labels: put(labels, 255)), "unknown objects", "object 255"),
        (as_other_palette, "another palette", "a1/00010.png has neither the palette of DAVIS nor"),
    ],
)
def test_each_fault_is_found_and_told(work, fault, kind, words):
    fault(work / "masks" / "a1" / "00010.png")
    found, _, sentence = the_fault(check(work))
    assert found == kind
    assert words in sentence


def test_an_object_before_it_enters_is_a_warning(work):
    edit(work / "masks" / "a1" / "00005.png", lambda labels: put(labels, 2))
    kind, sentence = the_warning(check(work))
    assert kind == "objects before they enter"
    assert "a1/00005.png holds object 2, which enters with frame 00010" in sentence


def test_a_forgotten_late_object_is_a_warning(work):
    for path in (work / "masks" / "a1").iterdir():
        edit(path, lambda labels: np.where(labels == 2, 0, labels).astype(np.uint8))
    kind, sentence = the_warning(check(work))
    assert kind == "objects that no mask holds"
    assert "a1 never holds object 2, which enters with frame 00010" in sentence


def test_a_frame_that_is_not_scored_may_be_missing(work):
    meta = work / "data" / "valid" / "meta.json"
    meta.write_text(meta.read_text().replace(',\n            "00015"', ""))
    (work / "masks" / "b2" / "00015.png").unlink()
    kind, sentence = the_warning(check(work))
    assert kind == "frames that are not scored are missing"
    assert "b2 lacks 00015.png" in sentence


def test_the_first_few_are_told_and_all_are_counted(work):
    for frame in ("00000", "00005", "00010", "00015"):
        as_grey(work / "masks" / "a1" / f"{frame}.png")
    (work / "masks" / "b2" / "00005.png").unlink()
    (work / "masks" / "b2" / "00010.png").unlink()
    report = check(work)
    assert report.num_faults == 6
    lines = list(report.lines())
    assert lines[0] == "fault: not indexed (4)"
    assert lines[4:6] == ["  and so on", "fault: missing frames (2)"]
    assert len(lines) == 7


def test_chosen_videos_are_looked_at_alone(work):
    shutil.rmtree(work / "masks" / "b2")
    (work / "masks" / "c3").mkdir()
    (work / "masks" / "c3" / "00000.png").touch()
    assert check(work, videos=["a1"]).num_faults == 0
    assert check(work).num_faults == 2


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["submission.zip"], "holds the zip file submission.zip: .*hand in that file itself"),
        (["out/Annotations/a1/00000.png"], "pack the folder Annotations itself, not the one above"),
        (["a1/00000.png"], "expected Annotations/a1/00000.png; pack a folder Annotations"),
        ([], "is empty"),
    ],
)
def test_zip_files_that_are_built_wrong(work, names, words):
    with zipfile.ZipFile(work / "wrong.zip", "w") as packed:
        for name in names:
            packed.writestr(name, b"x")
    kind, count, sentence = the_fault(check(work, "wrong.zip"))
    assert (kind, count) == ("not built as a submission", 1)
    assert re.search(words, sentence), sentence


def test_other_files_in_a_zip(work):
    path = pack(work)
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr("__MACOSX/._x", b"x")
        packed.writestr("Annotations/a1/.DS_Store", b"x")
        packed.writestr("Annotations/old.zip", b"x")
    report = check(work, "one.zip")
    assert {found.kind: found.count for found in report.faults} == {
        "other files": 1,
        "too many frames": 1,
        "no such video": 1,
    }


def test_a_name_that_a_zip_holds_twice(work):
    path = pack(work)
    with zipfile.ZipFile(path, "a") as packed, pytest.warns(UserWarning, match="Duplicate name"):
        packed.writestr("Annotations/a1/00005.png", b"x")
    report = check(work, "one.zip")
    (sentence,) = (one.sentence for one in report.faults if one.kind == "files of one name")
    assert "one.zip holds Annotations/a1/00005.png more than once" in sentence


def test_a_zip_that_is_damaged_inside(work):
    path = pack(work)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as packed:
        place = packed.getinfo("Annotations/a1/00005.png").header_offset
    content[place + 200] ^= 255
    path.write_bytes(content)
    kind, count, sentence = the_fault(check(work, "one.zip"))
    assert (kind, count) == ("broken masks", 1)
    assert "a1/00005.png cannot be read" in sentence


def test_a_compressed_zip_is_fine_and_a_damaged_one_is_told(work):
    path = pack(work)
    with zipfile.ZipFile(path) as stored:
        names = stored.namelist()
        with zipfile.ZipFile(work / "two.zip", "w", zipfile.ZIP_DEFLATED) as packed:
            for name in names:
                packed.writestr(name, stored.read(name))
    assert check(work, "two.zip").num_faults == 0
    content = bytearray((work / "two.zip").read_bytes())
    with zipfile.ZipFile(work / "two.zip") as packed:
        start = packed.getinfo(names[1]).header_offset + 30 + len(names[1])
    content[start : start + 60] = b"\xff" * 60
    (work / "two.zip").write_bytes(content)
    assert the_fault(check(work, "two.zip"))[:2] == ("broken masks", 1)


def test_what_is_no_submission_at_all(work):
    with pytest.raises(MaskError, match=r"no\.zip does not exist"):
        check(work, "no.zip")
    (work / "no.zip").write_bytes(b"PK but no zip")
    with pytest.raises(MaskError, match=r"no\.zip is not a whole zip file .*pack the masks again"):
        check(work, "no.zip")
    (work / "cut.zip").write_bytes(pack(work).read_bytes()[:-40])
    with pytest.raises(MaskError, match="not a whole zip"):
        check(work, "cut.zip")


def test_names_that_lead_elsewhere(work):
    path = pack(work)
    with zipfile.ZipFile(path, "a") as packed:
        for name in (
            "../evil.png",
            "Annotations/../../evil.png",
            "/evil",
            "Annotations/\x1b[31m.png",
        ):
            packed.writestr(name, b"x")
    kind, count, sentence = the_fault(check(work, "one.zip"))
    assert (kind, count) == ("names that are none", 4)
    assert "one.zip holds '..'" in sentence
    (work / "masks" / "a1" / "\x1b[31m.png").write_bytes(b"x")
    kind, _, sentence = the_fault(check(work))
    assert kind == "names that are none"
    assert sentence.isprintable()


@pytest.mark.parametrize("kind", ["large", "header lies", "bzip2", "pixels"])
def test_a_mask_that_would_fill_the_memory(work, monkeypatch, kind):
    monkeypatch.setattr(submission, "_MAX_BYTES", 1 << 20)
    name = "Annotations/a1/00005.png"
    content = bytes(1 << 26)
    if kind == "pixels":
        file = io.BytesIO()
        Image.new("P", (1 << 13, 1 << 13)).save(file, "PNG")
        content = file.getvalue()
    with zipfile.ZipFile(pack(work)) as whole, zipfile.ZipFile(work / "two.zip", "w") as packed:
        for entry in whole.infolist():
            if entry.filename != name:
                packed.writestr(entry, whole.read(entry))
        method = zipfile.ZIP_BZIP2 if kind == "bzip2" else zipfile.ZIP_DEFLATED
        packed.writestr(name, content, method)
        if kind == "header lies":
            packed.getinfo(name).file_size = 100
    tracemalloc.start()
    found, _, sentence = the_fault(check(work, "two.zip"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 24
    assert found == ("another size" if kind == "pixels" else "broken masks")
    assert "a1/00005.png" in sentence


def test_a_submission_is_no_pipe(work):
    os.mkfifo(work / "pipe.zip")
    with pytest.raises(MaskError, match=r"pipe\.zip is a device or a pipe"):
        check(work, "pipe.zip")
