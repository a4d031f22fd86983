"""Frames found by a file's header are those found by reading all of it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from video_files import FASTSTART, cut, moving_frames, write_video

from ino.data import decode
from ino.data.decode import VideoFile
from ino.data.video import read_clip, read_frames
from ino.errors import VideoError

FRAMES = moving_frames(40)
HEVC = {"x265-params": "keyint=20:bframes=4:b-pyramid=1:log-level=none"}
HEADERS = {
    "b-frames.mp4": {},
    "one-key.mp4": {"options": {"g": "250", "bf": "3", "x264-params": "b-pyramid=normal"}},
    "no-reordering.mp4": {"options": {"g": "12", "bf": "0"}},
    "open-gop.mp4": {"options": {"x264-params": "open-gop=1:keyint=12:scenecut=0:bframes=2"}},
    "index-first.mp4": {"container": FASTSTART},
    "negative-offsets.mp4": {"container": {"movflags": "+negative_cts_offsets"}},
    "intra.mov": {"options": {"g": "1"}},
    "uneven.mp4": {"times": np.random.default_rng(0).integers(9, 99, 40).cumsum().tolist()},
    "hevc.mp4": {"codec": "libx265", "options": HEVC},
    "vp9.mp4": {"codec": "libvpx-vp9", "options": {"g": "12", "deadline": "realtime"}},
}


def tables_of(path: Path):
    with VideoFile(path, num_threads=1) as file:
        return decode._frames_of_header(file), decode._frames_of_packets(file)


def packets_read(path: Path, indices: list[int], monkeypatch) -> int:
    count = 0
    packets = VideoFile.packets

    def counting(self):
        nonlocal count
        for packet in packets(self):
            count += 1
            yield packet

    monkeypatch.setattr(VideoFile, "packets", counting)
    read_clip(path, indices)
    return count


@pytest.mark.parametrize("name", HEADERS)
def test_the_header_tells_what_all_packets_tell(name, tmp_path):
    path = write_video(tmp_path / name, FRAMES, **HEADERS[name])
    by_header, by_packets = tables_of(path)
    assert by_header is not None
    assert by_header.num_frames == by_packets.num_frames == len(FRAMES)
    np.testing.assert_array_equal(by_header.shown, by_packets.shown)
    np.testing.assert_array_equal(by_header.keys, by_packets.keys)


@pytest.mark.parametrize("name", HEADERS)
def test_frames_read_by_the_header_are_the_streamed_ones(name, tmp_path, monkeypatch):
    path = write_video(tmp_path / name, FRAMES, **HEADERS[name])
    expected = list(read_frames(path))
    monkeypatch.setattr(decode, "_read_through", None)  # what would hide a failure
    for indices in ([39], [17], [5, 13, 21, 29], [1, 2, 3]):
        clip = read_clip(path, indices)
        np.testing.assert_array_equal(clip, np.stack([expected[index] for index in indices]))


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    key_interval=st.integers(1, 50),
    num_b_frames=st.integers(0, 6),
    pyramid=st.sampled_from(["none", "strict", "normal"]),
    indices=st.lists(st.integers(0, 39), min_size=1, max_size=6),
)
def test_frames_passed_over_change_no_other(
    key_interval, num_b_frames, pyramid, indices, tmp_path_factory
):
    path = tmp_path_factory.mktemp("gop") / "video.mp4"
    parameters = f"b-pyramid={pyramid}:b-adapt=0:scenecut=0:ref=3"
    options = {"g": str(key_interval), "bf": str(num_b_frames), "x264-params": parameters}
    write_video(path, FRAMES, options=options)
    expected = list(read_frames(path))
    clip = read_clip(path, indices)
    np.testing.assert_array_equal(clip, np.stack([expected[index] for index in indices]))


def test_a_header_saves_reading_the_file(tmp_path, monkeypatch):
    path = write_video(tmp_path / "video.mp4", FRAMES)
    assert packets_read(path, [26, 27], monkeypatch) <= 5


def test_without_a_whole_header_all_packets_are_read(tmp_path, monkeypatch):
    fragments = {"movflags": "+frag_keyframe+empty_moov"}
    path = write_video(tmp_path / "fragments.mp4", FRAMES, container=fragments)
    assert tables_of(path)[0] is None
    assert packets_read(path, [26, 27], monkeypatch) >= len(FRAMES)


def test_a_file_cut_short_is_told_by_its_header(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", FRAMES, container=FASTSTART)
    path = cut(tmp_path / "cut.mp4", whole, fraction=0.7)
    with VideoFile(path, num_threads=1) as file:
        ends = [entry.pos + entry.size for entry in file.stream.index_entries]
    num_whole = sum(end <= path.stat().st_size for end in ends)
    assert 0 < num_whole < len(FRAMES)
    with pytest.raises(VideoError, match=f"breaks off after {num_whole} frames"):
        read_clip(path, [0])


@given(damage=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=4))
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_header_gives_frames_or_a_sentence(damage, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    whole = write_video(folder / "whole.mp4", FRAMES[:12], container=FASTSTART)
    content = bytearray(whole.read_bytes())
    header = content.find(b"mdat")
    for position, value in damage:
        content[position % header] = value
    path = folder / "damaged.mp4"
    path.write_bytes(content)
    try:
        assert read_clip(path, [0]).ndim == 4
    except VideoError as error:
        assert str(path) in str(error)


def test_a_header_that_does_not_fit_the_frames_is_not_believed(tmp_path, monkeypatch):
    path = write_video(tmp_path / "video.mp4", FRAMES)
    expected = list(read_frames(path))
    offsets = decode._composition_offsets
    with VideoFile(path) as file:
        step = np.diff(decode._frames_of_header(file).shown).min()
    monkeypatch.setattr(
        decode, "_composition_offsets", lambda *args, **words: offsets(*args, **words) + step
    )
    np.testing.assert_array_equal(read_clip(path, [14])[0], expected[14])
