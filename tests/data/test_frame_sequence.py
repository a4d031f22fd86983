"""Images of a folder are frames in their order, listed once."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ino.data import video as frame_sequence
from ino.data.video import (
    FrameSequence,
    count_frames,
    is_video,
    open_sequence,
    read_clip,
    read_frames,
    read_info,
)
from ino.data.video_index import find_videos
from ino.errors import VideoError


def write_images(folder: Path, names: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for value, name in enumerate(names):
        Image.new("RGB", (12, 8), (value, 0, 0)).save(folder / name)
    return folder


def values_of(clip: np.ndarray) -> list[int]:
    return clip[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("names", "num_kept"),
    [
        ([f"frame_{n:05d}.png" for n in range(12)], 1),
        ([f"{n}.png" for n in range(1, 13)], 1),  # 9 before 10
        ([f"{n:05d}.png" for n in range(0, 60, 5)], 1),  # YouTube-VOS
        ([f"v2_{n:03d}_left.png" for n in range(990, 1010)], 1),
        (["00000.png"], 1),
        (["a.png", "b.png", "c.png"], 3),
        (["1.png", "2.png", "4.png"], 3),
        (["09.png", "10.png", "011.png"], 3),
    ],
)
def test_frames_come_in_natural_order(names, num_kept, tmp_path):
    folder = write_images(tmp_path / "video", names)
    sequence = open_sequence(folder)
    assert [path.name for path in sequence] == names
    assert sequence.num_kept == num_kept
    assert sequence[-1] == folder / names[-1]
    assert values_of(read_clip(folder, [len(names) - 1, 0])) == [len(names) - 1, 0]


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=9, unique=True), st.integers(1, 7))
def test_a_sequence_is_its_names(numbers, width):
    names = [f"f{number:0{width}d}.jpg" for number in sorted(numbers)]
    assert [path.name for path in FrameSequence(Path("x"), names)] == names


def test_a_folder_is_listed_once_and_anew_when_it_changes(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "video", ["0.png", "1.png"])
    listed = []
    list_images = frame_sequence.list_images

    def recording(path):
        listed.append(path)
        return list_images(path)

    monkeypatch.setattr(frame_sequence, "list_images", recording)
    for _ in range(3):
        read_clip(folder, [1])
    assert listed == [folder]
    Image.new("RGB", (12, 8)).save(folder / "2.png")
    assert count_frames(folder) == 3
    assert listed == [folder, folder]


def test_only_the_images_of_a_clip_are_opened(tmp_path):
    folder = write_images(tmp_path / "video", [f"{n}.png" for n in range(9)])
    (folder / "5.png").write_text("broken, but of no clip")
    assert values_of(read_clip(folder, [1, 3, 3, 8])) == [1, 3, 3, 8]


def test_a_pattern_is_a_video(tmp_path):
    names = [f"left_{n:03d}.png" for n in (3, 4, 12)] + ["right_003.png", "left_12.png"]
    folder = write_images(tmp_path, names)
    pattern = folder / "left_%03d.png"
    assert is_video(pattern)
    assert find_videos([pattern]) == [pattern]
    assert read_info(pattern).num_frames == 3
    assert values_of(np.stack(list(read_frames(pattern)))) == [0, 1, 2]
    assert values_of(read_clip(folder / "left_%d.png", [0])) == [4]


def test_a_pattern_that_names_nothing_is_told(tmp_path):
    write_images(tmp_path, ["a1.png"])
    with pytest.raises(VideoError, match=r"holds no image named as b%05d\.png"):
        read_clip(tmp_path / "b%05d.png", [0])


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    folder = write_images(tmp_path, ["a%d.png", "a1.png"])
    assert not is_video(folder / "a%d.png")
