"""A split of YouTube-VOS: what is asked for, and every way meta.json and the folders disagree."""

import json
import re
import shutil

import numpy as np
import pytest

from ino.data.label_maps import read_labels, write_labels
from ino.data.ytvos import YTVOS_SEEN, read_ytvos_split, seen_categories
from ino.demo.synthetic import generate_clip
from ino.errors import ConfigError, DatasetError, MaskError, OutputError
from synthetic_ytvos import write_ytvos_layout

FIVES = tuple(f"{t:05d}" for t in range(0, 20, 5))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two videos of 18 frames; in a1 object 2 enters with frame 10, in b2 nothing before 5."""
    root = tmp_path_factory.mktemp("ytvos")
    clip = generate_clip(5, num_frames=18, height=48, width=64, num_objects=2)
    entries = {"a1": {2: 10}, "b2": {1: 5, 2: 10}}
    write_ytvos_layout({"b2": clip, "a1": clip}, root, entries=entries, categories={2: "guitar"})
    return root


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made, tmp_path / "data")


def change_meta(root, change) -> None:
    path = root / "valid" / "meta.json"
    content = json.loads(path.read_text())
    change(content["videos"])
    path.write_text(json.dumps(content))


def test_a_split_is_read(root):
    split = read_ytvos_split(root)
    assert [video.name for video in split.videos] == ["a1", "b2"]
    assert split.is_whole
    a1, b2 = split.videos
    assert (dict(a1.entries), dict(b2.entries)) == (
        {1: "00000", 2: "00010"},
        {1: "00005", 2: "00010"},
    )
    assert (a1.submitted, b2.submitted) == (FIVES, FIVES[1:])
    assert (a1.required, b2.required) == (set(FIVES), set(FIVES[1:]))
    assert a1.categories == {1: "person", 2: "guitar"}
    assert not a1.has_truth


def test_masks_are_carried_through_all_frames_between_the_first_and_the_last(root):
    a1, b2 = read_ytvos_split(root).videos
    assert [path.stem for path in a1.frames] == [f"{t:05d}" for t in range(16)]
    assert [path.stem for path in b2.frames] == [f"{t:05d}" for t in range(5, 16)]
    assert a1.frames[0].parent == root / "valid_all_frames" / "JPEGImages" / "a1"
    moved = root / "all_frames"
    moved.mkdir()
    (root / "valid_all_frames").rename(moved / "valid_all_frames")
    assert len(read_ytvos_split(root).videos[0].frames) == 16
    shutil.rmtree(moved)
    split = read_ytvos_split(root)
    assert split.frames_folder == root / "valid"
    assert [path.stem for path in split.videos[1].frames] == list(FIVES[1:])


def test_only_what_enters_is_annotated(root):
    annotations = root / "valid" / "Annotations" / "a1"
    assert set(np.unique(read_labels(annotations / "00010.png"))) == {0, 2}
    assert sorted(path.stem for path in annotations.iterdir()) == ["00000", "00010"]


def test_chosen_videos_are_enough(root):
    shutil.rmtree(root / "valid" / "JPEGImages" / "b2")
    split = read_ytvos_split(root, videos=["a1"])
    assert [video.name for video in split.videos] == ["a1"]
    assert not split.is_whole
    with pytest.raises(DatasetError, match=r"c3 is none of the 2 videos of .*such as a1"):
        read_ytvos_split(root, videos=["c3"])


def test_without_meta_the_folders_decide(root):
    (root / "valid" / "meta.json").unlink()
    a1, _ = read_ytvos_split(root).videos
    assert a1.required == set(FIVES)
    assert a1.categories == {}
    (root / "valid" / "JPEGImages" / "c3").mkdir()
    assert len(read_ytvos_split(root).videos) == 2


def test_frames_that_meta_lists_for_no_object_are_handed_in_but_not_required(root):
    change_meta(root, lambda videos: [o["frames"].pop() for o in videos["a1"]["objects"].values()])
    a1 = read_ytvos_split(root).videos[0]
    assert (a1.submitted, a1.required) == (FIVES, set(FIVES[:-1]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda v: v.update(c3=v["a1"]),
            r"meta\.json lists the video c3, but .*JPEGImages has no folder .*1 of 3.*copy the",
        ),
        (
            lambda v: v.pop("b2"),
            r"JPEGImages holds the video b2, which meta\.json does not list .*delete meta\.json",
        ),
        (
            lambda v: v["a1"]["objects"]["1"]["frames"].append("00099"),
            r"lists the frame 00099 of a1, but .*a1/00099\.jpg does not exist \(1 such frames\)",
        ),
        (
            lambda v: v["a1"]["objects"].update({"7": {"frames": []}}),
            r"lists object 7 of a1, but no annotation in .*a1 holds it \(they hold 1, 2\): copy",
        ),
        (
            lambda v: v["a1"]["objects"].pop("2"),
            r"a1/00010\.png holds object 2, which meta\.json does not list \(it lists 1\): copy",
        ),
        (
            lambda v: v["a1"].pop("objects"),
            r"meta\.json is not the meta\.json of YouTube-VOS.*delete it to go by the folders",
        ),
    ],
)
def test_a_meta_that_disagrees_is_refused(root, change, words):
    change_meta(root, change)
    with pytest.raises(DatasetError, match=words):
        read_ytvos_split(root)


def test_missing_parts_are_named(root, tmp_path):
    with pytest.raises(DatasetError, match=r"test/JPEGImages does not exist: expected test/JPEG"):
        read_ytvos_split(root, split="test")
    with pytest.raises(DatasetError, match=r"in .*/data/valid; give the folder above"):
        read_ytvos_split(root / "valid")
    (root / "valid_all_frames" / "JPEGImages" / "a1" / "00005.jpg").unlink()
    with pytest.raises(DatasetError, match=r"lacks 1 of the 4 frames .* 00005: .* take it away"):
        read_ytvos_split(root)
    shutil.rmtree(root / "valid_all_frames" / "JPEGImages" / "a1")
    with pytest.raises(DatasetError, match=r"lacks 4 of the 4 frames"):
        read_ytvos_split(root)
    (root / "valid" / "JPEGImages" / "a1" / "00010.jpg").unlink()
    with pytest.raises(DatasetError, match="a1 has 1 annotated frames without an image"):
        read_ytvos_split(root)
    shutil.rmtree(root / "valid" / "Annotations" / "b2")
    with pytest.raises(DatasetError, match=r"lists the video b2, but .*Annotations has no folder"):
        read_ytvos_split(root)


def test_annotations_without_objects_or_broken_are_named(root):
    (root / "valid" / "meta.json").unlink()
    path = root / "valid" / "Annotations" / "a1" / "00000.png"
    write_labels(path, np.zeros((48, 64), np.uint8))
    shutil.copy(path, path.with_name("00010.png"))
    with pytest.raises(DatasetError, match="a1 has no object in its 2 annotations"):
        read_ytvos_split(root)
    path.write_bytes(b"")
    with pytest.raises(MaskError, match=re.escape(str(path))):
        read_ytvos_split(root)


def test_the_layout_is_not_written_wrong_or_over_another(tmp_path, root):
    clip = generate_clip(5, num_frames=8, height=48, width=64, num_objects=2)
    with pytest.raises(ConfigError, match="at least one clip"):
        write_ytvos_layout({}, tmp_path / "x")
    with pytest.raises(ConfigError, match="object 2 cannot enter a1 with frame 3"):
        write_ytvos_layout({"a1": clip}, tmp_path / "y", entries={"a1": {2: 3}})
    with pytest.raises(OutputError, match="not empty"):
        write_ytvos_layout({"a1": clip}, root)


# ---- seen categories


def test_what_is_seen_comes_from_a_file_the_training_set_or_the_list(tmp_path):
    official, own = ["003234408d"], ["003234408d", "mine"]
    assert seen_categories(tmp_path, videos=own) is None
    found = seen_categories(tmp_path, videos=official)
    assert found is not None
    assert found.names == YTVOS_SEEN
    assert len(YTVOS_SEEN) == 65
    objects = {"1": {"category": "cell"}, "2": {"category": "rod"}}
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "meta.json").write_text(
        json.dumps({"videos": {"v": {"objects": objects}}})
    )
    found = seen_categories(tmp_path, videos=official)
    assert found is not None
    assert found.names == {"cell", "rod"}
    assert found.source.endswith("train/meta.json")
    listed = tmp_path / "seen.txt"
    listed.write_text("cell  # round\n\n# rod\ngiant panda\n")
    found = seen_categories(tmp_path, videos=own, file=listed)
    assert found is not None
    assert found.names == {"cell", "giant panda"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("seen.txt", None, "cannot be read .*expected one category per line"),
        ("seen.txt", "# nothing\n", "is empty"),
        ("meta.json", '{"videos": {}}', "is empty"),
        ("meta.json", '{"videos": {"v": {"objects": {"1": {}}}}}', "does not tell"),
        ("meta.json", "{", "does not tell which categories are seen"),
    ],
)
def test_files_that_do_not_tell_what_is_seen(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(DatasetError, match=words):
        seen_categories(tmp_path, videos=["x"], file=path)
