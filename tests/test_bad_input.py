"""What a user may get wrong by accident or on purpose: one line, status 2, nothing half-written."""

import json
import os
import re
import struct
import threading

import av
import numpy as np
import pytest
from PIL import Image

from command import refused, run
from ino import Tracker, load_backbone
from ino.data.images import image_size
from ino.data.label_maps import read_labels, write_labels
from ino.data.ytvos import read_ytvos_split, seen_categories
from ino.demo.synthetic import generate_clip, write_davis_layout
from ino.errors import ConfigError, DatasetError, OutputError, VideoError
from ino.models.backbone import choose_device
from ino.propagate.protocols import get_protocol
from ino.tasks.results import note_finished, open_folder, read_finished
from ino.tasks.segment import segment_video
from synthetic_ytvos import write_ytvos_layout

FAST = ["--weights", "color", "--device", "cpu", "--set", "short_side=none"]
DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def clip():
    return generate_clip(5, num_frames=6, height=48, width=64, num_objects=2)


@pytest.fixture
def frames(tmp_path, clip):
    """A folder of images and the mask of the first one."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, frame in enumerate(clip.frames):
        Image.fromarray(frame).save(folder / f"{number}.png")
    write_labels(tmp_path / "mask.png", clip.labels[0])
    return folder


def segment(frames, *options):
    mask, out = frames.parent / "mask.png", frames.parent / "out"
    return ["segment", frames, "--mask", mask, "--out", out, *FAST, *options]


@pytest.mark.parametrize("value", ["[", "!!python/object:os.system x", "9" * 5000, DEEP])
def test_values_that_are_no_yaml(capsys, frames, value):
    message = refused(capsys, *segment(frames, "--set", f"topk={value}"))
    assert "topk must be a whole number, but is " in message
    assert len(message) < 400
    assert not (frames.parent / "out").exists()


@pytest.mark.parametrize("field", ["topk", "num_context", "context_step", "short_side"])
def test_counts_that_nothing_can_hold(field):
    with pytest.raises(ConfigError, match=f"{field} must be at most 100000"):
        get_protocol("ino-davis", **{field: 10**20})


@pytest.mark.parametrize("temperature", [10**400, 1e300, 1e-300])
def test_temperatures_beyond_float32(temperature):
    """Below its range, weights were not numbers, and all objects were lost without a word."""
    with pytest.raises(ConfigError, match=r"temperature must be (a )?number"):
        get_protocol("ino-davis", temperature=temperature)


def test_more_memory_than_there_is(capsys, frames, monkeypatch):
    def resize(*_, **__):
        raise MemoryError

    monkeypatch.setattr("cv2.resize", resize)
    assert "the memory" in refused(capsys, *segment(frames, "--set", "short_side=64"))


def test_a_device_that_holds_no_numbers():
    with pytest.raises(ConfigError, match="--device cpu"):
        choose_device("meta")


def test_options_may_come_twice(frames, clip):
    """What was given first is not lost."""
    write_labels(frames.parent / "later.png", np.where(clip.labels[2] == 2, 9, 0).astype(np.uint8))
    later = ["--mask", f"2={frames.parent / 'later.png'}", "--set", "topk=3"]
    assert run(*segment(frames, *later)) == 0
    out = frames.parent / "out"
    assert set(np.unique(read_labels(out / "masks" / "2.png"))) == {0, 1, 2, 9}
    protocol = json.loads((out / "settings.json").read_text())["protocol"]
    assert (protocol["short_side"], protocol["topk"]) == (None, 3)


def test_checks_of_a_negative_number_of_frames(capsys, frames):
    assert "but it is -1" in refused(capsys, *segment(frames, "--check-every", "-1"))
    assert not (frames.parent / "out").exists()


def test_a_layer_of_color_warns(frames, capsys):
    assert run(*segment(frames, "--set", "layer=99", "--no_overlay")) == 0
    words = "ino: color has only one layer: --set layer changes nothing\n"
    assert words in capsys.readouterr().err
    assert run(*segment(frames, "--no_overlay", "--overwrite")) == 0
    assert "ino: " not in capsys.readouterr().err


def test_names_that_the_system_refuses(capsys, frames):
    long = "x" * 300
    message = refused(capsys, *segment(frames, "--weights", long))
    assert "File name too long" in message
    assert "File name too long" in refused(capsys, "score", frames, "--root", long)


def test_warnings_are_lines(capsys, frames):
    labels = read_labels(frames.parent / "mask.png")
    write_labels(frames.parent / "less.png", np.where(labels == 1, 1, 0).astype(np.uint8))
    assert run(*segment(frames), "--mask", f"2={frames.parent / 'less.png'}") == 0
    shown = capsys.readouterr().err.splitlines()
    assert [line for line in shown if line.startswith("ino: object 2: not drawn in frame 2")]


@pytest.mark.parametrize("layout", ["davis", "ytvos"])
def test_scores_that_cannot_be_written(tmp_path, capsys, clip, layout):
    if layout == "davis":
        write_davis_layout({"one": clip}, tmp_path / "root")
        predictions = tmp_path / "root" / "Annotations" / "480p"
    else:
        write_ytvos_layout({"one": clip}, tmp_path / "root", dense=True)
        predictions = tmp_path / "root" / "valid" / "Annotations"
    (tmp_path / "file").touch()
    options = ["--root", tmp_path / "root", "--layout", layout]
    message = refused(capsys, "score", predictions, *options, "--out", tmp_path / "file")
    assert "is a file" in message
    message = refused(capsys, "score", predictions, *options, "--workers", "0")
    assert "workers is at least 1" in message


@pytest.mark.parametrize("mask", ["", "3="])
def test_masks_without_a_name(capsys, frames, mask):
    message = refused(capsys, *segment(frames, "--mask", mask))
    assert f"--mask {mask!r} names no file" in message


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((48, 64), np.uint8), "holds no object"),
        (np.ones((10, 12), np.uint8), r"is 10x12 \(height x width\), but its frame is 48x64"),
    ],
)
def test_first_masks_of_davis_are_looked_at_before_work(tmp_path, capsys, clip, labels, words):
    """The file is named, of the second sequence too, and nothing was carried before."""
    write_davis_layout({"one": clip, "two": clip}, tmp_path / "davis")
    path = tmp_path / "davis" / "Annotations" / "480p" / "two" / "00000.png"
    write_labels(path, labels)
    options = ["--root", tmp_path / "davis", "--out", tmp_path / "out", *FAST]
    message = refused(capsys, "evaluate", "davis", *options)
    assert re.search(rf"two/00000\.png {words}", message), message
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_list_of_no_videos(tmp_path, clip):
    write_ytvos_layout({"one": clip}, tmp_path)
    (tmp_path / "valid" / "meta.json").write_text('{"videos": {}}')
    with pytest.raises(DatasetError, match=r"meta\.json lists no video"):
        read_ytvos_split(tmp_path)


def test_a_first_image_that_is_cut(capsys, frames):
    path = frames / "0.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(VideoError, match="is broken"):
        image_size(path)
    assert "0.png is broken" in refused(capsys, *segment(frames))
    assert not (frames.parent / "out").exists()


def write_avi(path, frames, *, stated: int) -> None:
    """An AVI whose header states another number of frames than it has."""
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.find(b"avih") + 24, stated)
    struct.pack_into("<I", content, content.find(b"strh") + 40, stated)
    path.write_bytes(content)


@pytest.mark.parametrize("stated", [3, 5000])
def test_headers_that_lie_about_the_length(tmp_path, clip, stated):
    write_avi(tmp_path / "video.avi", clip.frames, stated=stated)
    write_labels(tmp_path / "mask.png", clip.labels[5])
    names = [f"{index:05d}.png" for index in range(6)]
    for ways in (["--both-ways"], []):  # the option has no effect
        out = tmp_path / f"out{len(ways)}"
        mask = f"5={tmp_path / 'mask.png'}"
        arguments = ["segment", tmp_path / "video.avi", "--mask", mask, "--out", out]
        assert run(*arguments, *ways, *FAST) == 0
        assert sorted(path.name for path in (out / "masks").iterdir()) == names
        assert (out / "overlay.mp4").is_file()


def test_a_broken_frame_is_told_before_work_in_both_ways(capsys, frames):
    (frames / "5.png").write_bytes(b"broken")
    options = ["--mask", f"2={frames.parent / 'mask.png'}", "--out", frames.parent / "out", *FAST]
    assert "5.png" in refused(capsys, "segment", frames, *options)
    assert not (frames.parent / "out").exists()


@pytest.mark.parametrize("category", [5, ["dog"], {"name": "dog"}])
def test_categories_that_are_no_text(tmp_path, clip, category):
    write_ytvos_layout({"one": clip}, tmp_path)
    path = tmp_path / "valid" / "meta.json"
    meta = json.loads(path.read_text())
    meta["videos"]["one"]["objects"]["1"]["category"] = category
    path.write_text(json.dumps(meta))
    with pytest.raises(DatasetError, match=r"is not the meta\.json"):
        read_ytvos_split(tmp_path)
    with pytest.raises(DatasetError, match="does not tell which categories"):
        seen_categories(tmp_path, videos=["one"], file=path)


def test_json_of_endless_depth(tmp_path, clip):
    write_ytvos_layout({"one": clip}, tmp_path)
    path = tmp_path / "valid" / "meta.json"
    path.write_text(DEEP)
    with pytest.raises(DatasetError, match=r"is not the meta\.json"):
        read_ytvos_split(tmp_path)
    with pytest.raises(DatasetError, match="does not tell which categories"):
        seen_categories(tmp_path, videos=["one"], file=path)
    (tmp_path / "settings.json").write_text(DEEP)
    with pytest.raises(OutputError, match="is broken"):
        open_folder(tmp_path, "{}", resume=True, overwrite=False)


def test_a_list_of_what_is_done_that_is_no_text(tmp_path):
    (tmp_path / "finished.txt").write_bytes(b"\xff\xfe\none\n" + os.urandom(8))
    assert "one" in read_finished(tmp_path)


def test_threads_end_with_an_output_that_fails(frames, monkeypatch):
    """Whatever holds the error: threads that live on at the end of Python abort it."""
    count = 0

    def write(*_):
        nonlocal count
        count += 1
        if count == 2:
            raise OutputError("full")

    before = set(threading.enumerate())
    monkeypatch.setattr("ino.data.video.VideoWriter.write", write)
    tracker = Tracker(load_backbone("color"), protocol=get_protocol("ino-davis", short_side=None))
    masks = {0: read_labels(frames.parent / "mask.png")}
    try:
        segment_video(frames, masks, out=frames.parent / "out", tracker=tracker)
    except OutputError as error:
        assert error.__traceback__ is not None
        assert set(threading.enumerate()) <= before
    assert count == 2


def test_names_of_raw_bytes_are_noted_as_done(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    note_finished(tmp_path, name)
    assert read_finished(tmp_path) == [name]


def test_what_pillow_warns_of_is_one_line(tmp_path, capsys):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x01\0\0\0"  # cut short
    (tmp_path / "v").mkdir()
    for number in range(2):
        path = tmp_path / "v" / f"{number}.jpg"
        Image.fromarray(np.full((64, 96, 3), 90, np.uint8)).save(path, exif=exif)
    labels = np.zeros((64, 96), np.uint8)
    labels[20:40, 30:60] = 1
    write_labels(tmp_path / "mask.png", labels)
    given = ["--mask", tmp_path / "mask.png", "--weights", "color", "--out", tmp_path / "out"]
    assert run("segment", tmp_path / "v", *given) == 0
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("ino: an image has damaged metadata") for line in lines)
    assert not any("UserWarning" in line for line in lines)
