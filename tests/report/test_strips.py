"""Film strips: which frames and masks are shown, on both data set layouts, and where."""

import numpy as np
import pytest
from PIL import Image

from ino.data.davis import read_davis
from ino.data.label_maps import davis_palette, read_labels, write_labels
from ino.demo.synthetic import generate_clip, write_davis_layout
from ino.errors import ConfigError, DatasetError, MaskError, OutputError
from ino.report.strips import (
    Strip,
    StripGroup,
    distinct_names,
    draw_strips,
    evenly,
    mask_strips,
    plot_strips,
)
from synthetic_ytvos import write_ytvos_layout

CLIPS = {
    name: generate_clip(i, num_frames=11, height=32, width=48)
    for i, name in enumerate(("ants", "bees"))
}
LINE = 18
"""Pixels of a line of text in small pictures: 1.5 times the font's 12."""


def write_masks(folder, numbers=range(11), shift=0):
    """Masks that are the truth, or the truth moved to the right."""
    for name, clip in CLIPS.items():
        (folder / name).mkdir(parents=True)
        for t in numbers:
            write_labels(folder / name / f"{t:05d}.png", np.roll(clip.labels[t], shift, axis=1))
    return folder


@pytest.fixture
def davis(tmp_path):
    write_davis_layout(CLIPS, tmp_path / "davis")
    return tmp_path / "davis"


def test_strips_show_frames_truth_and_masks(tmp_path, davis):
    masks = {"ours": write_masks(tmp_path / "masks")}
    _, bees = read_davis(davis)
    group = mask_strips(
        bees, masks, [0, 2, 10], title="t", plain=True, remarks={"ours": "75.0"}, height=64
    )
    assert group.columns == ["frame 0, given", "frame 2", "frame 10"]
    assert [strip.name for strip in group.strips] == ["Frame", "Truth", "ours"]
    assert [strip.remark for strip in group.strips] == ["", "", "75.0"]
    frame, truth, ours = (strip.joined() for strip in group.strips)
    assert frame.shape == truth.shape == (64, 3 * 96 + 2 * 4, 3)
    np.testing.assert_array_equal(truth, ours)
    second = slice(100, 196)  # the picture of frame 2
    labels = CLIPS["bees"].labels[2].repeat(2, 0).repeat(2, 1)
    outside, inside = labels == 0, labels == 1
    np.testing.assert_array_equal(truth[:, second][outside], frame[:, second][outside])
    tinted = 0.5 * frame[:, second][inside] + 0.5 * davis_palette()[1]
    near = np.abs(truth[:, second][inside] - tinted).max(axis=-1) <= 1
    assert near.mean() > 0.5  # the rest is outline


def test_names_titles_and_headings_stand_on_white():
    black = np.zeros((90, 200, 3), np.uint8)
    strips = [Strip("Frame", [black] * 2), Strip("<b> $x$ [red]", [black] * 2, "J&F 60.0")]
    picture = draw_strips([StripGroup("A title", ["frame 0", "frame 5"], strips)] * 2)
    margin = picture.shape[1] - 404
    assert picture.shape[0] == 2 * (2 * LINE + 2 * 90 + 4) + 12
    for top in (0, 2 * LINE + 2 * 90 + 4 + 12):
        title, headings = picture[top:][:LINE], picture[top + LINE :][:LINE]
        first, second = picture[top + 2 * LINE :][:90], picture[top + 2 * LINE + 94 :][:90]
        assert title.min() < 128 and headings[:, margin:].min() < 128
        assert (headings[:, :margin] == 255).all()
        for row in (first, second):
            assert row[:, margin:][:, :200].max() == row[:, margin:][:, 204:].max() == 0
            assert (row[:, margin + 200 :][:, :4] == 255).all()
        dark = [(row[:, :margin].min(axis=-1) < 128).sum() for row in (first, second)]
        assert 0 < dark[0] < dark[1]
    assert (picture[2 * LINE + 90 :][:4] == 255).all()


def test_a_picture_of_chosen_methods_sequences_and_frames(tmp_path, davis):
    """As Figure 3: rows of two methods under the truth, for two sequences."""
    write_masks(tmp_path / "x=1/predictions")
    write_masks(tmp_path / "crw", shift=5)
    results = [tmp_path / "x=1", f"CRW={tmp_path / 'crw'}"]
    options = {"root": davis, "height": 32}
    out = plot_strips(results, out=tmp_path / "all.png", frames=[0, 5, 7], **options)
    picture = np.asarray(Image.open(out))
    height = 2 * LINE + 3 * 32 + 2 * 4
    width = 3 * 48 + 2 * 4
    assert picture.shape[0] == 2 * height + 12
    for group in (picture[:height], picture[height + 12 :]):
        truth, ours, theirs = (group[2 * LINE + 36 * i :][:32, -width:] for i in range(3))
        np.testing.assert_array_equal(truth, ours)
        assert (theirs != ours).mean() > 0.02
    out = plot_strips(
        results, out=tmp_path / "one.jpg", sequences=["bees"], truth=False, num_frames=2, **options
    )
    assert Image.open(out).height == 2 * LINE + 2 * 32 + 4


@pytest.mark.parametrize("whole", [True, False])
def test_masks_of_youtube_vos_are_on_some_frames_only(tmp_path, whole):
    """As Figure 4: the masks of the frames that are handed in, with their numbers."""
    root = tmp_path / "ytvos"
    write_ytvos_layout(CLIPS, root, all_frames=whole)
    folder = write_masks(tmp_path / "ours", numbers=(0, 5, 10))
    for start in (root, root / "valid"):
        out = plot_strips([folder], root=start, out=tmp_path / "strips.png", height=32)
        assert Image.open(out).height == 2 * (2 * LINE + 2 * 32 + 4) + 12
    with pytest.raises(ConfigError, match="ants has no frame 6: its frames are 0 to 10"):
        plot_strips([folder], root=root, out=out, frames=[6])
    (folder / "bees/00005.png").unlink()
    with pytest.raises(MaskError, match=r"bees/00005\.png does not exist"):
        plot_strips([folder], root=root, out=out, frames=[5])


def test_shown_frames_are_even():
    assert evenly(23, count=5) == [0, 6, 11, 16, 22]
    assert evenly(2, count=5) == [0, 1]
    assert evenly(1, count=5) == [0]
    assert evenly(24, count=1) == [0]


def test_names_are_the_shortest_ends_that_differ(tmp_path):
    assert distinct_names([tmp_path / "x/ino", tmp_path / "x/crw"]) == ["ino", "crw"]
    assert distinct_names([tmp_path / "x/ino", tmp_path / "y/ino"]) == ["x/ino", "y/ino"]
    assert distinct_names([tmp_path / "x", tmp_path / "x"]) == ["x", "x"]


def test_bad_input(tmp_path, davis):
    folder = write_masks(tmp_path / "ours")
    out = tmp_path / "strips.png"
    write_masks(tmp_path / "row/seed_0")
    for message, error, results, options in [
        ("give .*/row/seed_0", ConfigError, [tmp_path / "row"], {}),
        ("must end in .png or .jpg", ConfigError, [folder], {"out": tmp_path / "strips.gif"}),
        ("0 frames of 180 pixels", ConfigError, [folder], {"num_frames": 0}),
        ("no result is given", ConfigError, [], {}),
        ("two results are called ours: give them names", ConfigError, [folder, folder], {}),
        ("absent is not a folder", ConfigError, [tmp_path / "absent"], {}),
        ("absent is not a folder", ConfigError, [f"INO={tmp_path / 'absent'}"], {}),
        ("have no sequence in common", ConfigError, [folder, folder / "ants"], {}),
        ("wasps has no frames", DatasetError, [folder], {"sequences": ["wasps"]}),
        ("absent does not exist", OutputError, [folder], {"out": tmp_path / "absent/strips.png"}),
    ]:
        with pytest.raises(error, match=message):
            plot_strips(results, **{"root": davis, "out": out, **options})
    small = read_labels(folder / "ants/00000.png")[::2]
    write_labels(folder / "ants/00000.png", np.ascontiguousarray(small))
    with pytest.raises(MaskError, match=r"00000\.png is 16x48 .* its frame is 32x48"):
        plot_strips([folder], root=davis, out=out)
    assert not out.exists()
