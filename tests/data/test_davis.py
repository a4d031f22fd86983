"""The layout of DAVIS, whole and with every part missing in turn."""

from pathlib import Path

import pytest

from ino.data.davis import VideoSequence, read_davis
from ino.errors import DatasetError

FRAMES = ("00000", "00001", "00002")


def touch(folder: Path, stems, suffix: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        (folder / f"{stem}{suffix}").touch()


def add_list(root: Path, lines, *, year="2017", split="val") -> None:
    path = root / "ImageSets" / year / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def add_davis(root: Path, name: str, *, frames=FRAMES, annotated=FRAMES, resolution="480p"):
    touch(root / "JPEGImages" / resolution / name, frames, ".jpg")
    touch(root / "Annotations" / resolution / name, annotated, ".png")


def stems(sequence: VideoSequence) -> tuple[list[str], dict[int, str]]:
    frames = [path.stem for path in sequence.frames]
    return frames, {index: path.stem for index, path in sequence.annotations.items()}


def test_davis_sequences_come_in_the_order_of_the_list(tmp_path):
    for name in ("bear", "dog", "camel"):
        add_davis(tmp_path, name)
    add_list(tmp_path, ["dog", "  bear  ", "", "dog"])
    dog, bear = read_davis(tmp_path)
    assert (dog.name, bear.name) == ("dog", "bear")
    assert stems(dog) == (list(FRAMES), dict(enumerate(FRAMES)))
    assert dog.frames[1] == tmp_path / "JPEGImages" / "480p" / "dog" / "00001.jpg"
    assert dog.annotations[1] == tmp_path / "Annotations" / "480p" / "dog" / "00001.png"


def test_year_split_and_resolution_choose_the_files(tmp_path):
    add_davis(tmp_path, "bear", resolution="1080p")
    add_list(tmp_path, ["bear"], year="2016", split="train")
    (bear,) = read_davis(tmp_path, year=2016, split="train", resolution="1080p")
    assert bear.frames[0].parent == tmp_path / "JPEGImages" / "1080p" / "bear"
    with pytest.raises(DatasetError, match=r"2017/val\.txt does not exist.*has ImageSets/2016/tra"):
        read_davis(tmp_path, resolution="1080p")


def test_the_first_release_lists_pairs_of_files(tmp_path):
    add_davis(tmp_path, "bear")
    pairs = [f"/JPEGImages/480p/bear/{f}.jpg /Annotations/480p/bear/{f}.png" for f in FRAMES]
    add_list(tmp_path, pairs, year="480p")
    (bear,) = read_davis(tmp_path, year=2016)
    assert bear.name == "bear"
    assert len(bear.frames) == 3
    with pytest.raises(DatasetError, match=r"2017/val\.txt does not exist"):
        read_davis(tmp_path, year=2017)


def test_annotations_may_be_sparse_and_frames_unpadded(tmp_path):
    numbers = ["8", "9", "10", "11", "100"]
    add_davis(tmp_path, "my video", frames=numbers, annotated=["8", "11"])
    (tmp_path / "JPEGImages" / "480p" / "my video" / "._8.jpg").touch()
    add_list(tmp_path, ["my video"])
    (video,) = read_davis(tmp_path)
    assert stems(video) == (numbers, {0: "8", 3: "11"})


def test_chosen_sequences_may_be_all_there_are(tmp_path):
    add_davis(tmp_path, "bear")
    add_list(tmp_path, ["bear", "dog"])
    assert [one.name for one in read_davis(tmp_path, sequences=["bear"])] == ["bear"]
    with pytest.raises(DatasetError, match=r"cat is not in the 2017 val list .* bear, dog"):
        read_davis(tmp_path, sequences=["bear", "cat"])
    with pytest.raises(DatasetError, match=r"dog has no frames: expected .*480p/dog"):
        read_davis(tmp_path)


def test_missing_parts_of_davis_are_named(tmp_path):
    with pytest.raises(DatasetError, match="has no lists"):
        read_davis(tmp_path)
    add_list(tmp_path, [""])
    with pytest.raises(DatasetError, match="is empty"):
        read_davis(tmp_path)
    add_list(tmp_path, ["bear"])
    add_davis(tmp_path, "bear", annotated=())
    with pytest.raises(DatasetError, match="bear has no annotation: expected PNG files"):
        read_davis(tmp_path)
    add_davis(tmp_path, "bear", annotated=["00001"])
    with pytest.raises(DatasetError, match=r"bear has no annotation of its first frame 00000"):
        read_davis(tmp_path)
    add_davis(tmp_path, "bear", annotated=["00000", "00003", "00004"])
    with pytest.raises(DatasetError, match=r"bear has 2 annotated frames without .* 00003:"):
        read_davis(tmp_path)


@pytest.mark.real
def test_real_data_sets_are_read(shared_data):
    davis = read_davis(shared_data / "davis", year=2016)
    assert {one.name: len(one.annotations) for one in davis} == {
        "blackswan": 50,
        "bmx-trees": 80,
        "camel": 90,
        "dog": 60,
        "drift-straight": 50,
        "parkour": 100,
    }
    vos = {one.name: one for one in read_davis(shared_data / "vos")}
    assert list(vos["caps"].annotations) == [0, 14, 33, 43, 66]
    assert len(vos["caps"].frames) == 87
    frames, annotated = stems(vos["003234408d"])
    assert frames[:3] == ["00000", "00005", "00010"]
    assert list(annotated.values()) == frames
