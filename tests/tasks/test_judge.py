"""The judge without labels: what is better scores higher, and degenerate answers do not win."""

import json

import cv2
import numpy as np
import pytest
import torch

import ino
from command import refused, run
from ino.data.label_maps import write_labels
from ino.data.video import VideoWriter
from ino.demo.synthetic import generate_clip
from ino.errors import ConfigError, MaskError, VideoError
from ino.metrics import region_similarity
from ino.propagate.judge import (
    NUM_REGIONS,
    disagreement,
    judge_difference,
    judge_labels,
    pseudo_objects,
    stage_video,
)
from ino.propagate.refine import estimate_motion
from ino.tasks.judge import (
    followed_motions,
    judge,
    judge_result,
    mean_difference,
    read_judged,
    with_strides,
)

SIZE = {"num_frames": 6, "short_side": 120}


class Positions:
    """Features that say where a patch is, and nothing of what it shows."""

    stride, mean, std, protocol = 8, (0.5,) * 3, (0.25,) * 3, "ino-near"

    def __call__(self, images, *, layer, **options):
        rows, columns = (side // self.stride for side in images.shape[-2:])
        down, across = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        parts = [one * f for one in (down, across) for f in (0.2, 0.5, 1.1)]
        return torch.cat([torch.stack([p.sin(), p.cos()]) for p in parts])[None].float()


@pytest.fixture(scope="module")
def clip():
    return generate_clip(3, num_frames=8, height=120, width=160, num_objects=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clip):
    folder = tmp_path_factory.mktemp("judged")
    with VideoWriter(folder / "clip.mp4", fps=8.0) as writer:
        for frame in clip.frames:
            writer.write(frame)
    write_labels(folder / "first.png", clip.labels[0])
    for name, shift in (("right", 0), ("late", 4)):
        (folder / name).mkdir()
        for number in range(8):
            labels = clip.labels[max(0, number - shift)]
            write_labels(folder / name / f"{number:05d}.png", labels)
    return folder


def test_features_of_what_is_seen_beat_features_of_places(clip):
    seen = judge("color", clip.frames, mask=clip.labels[0], protocol="ino-near", **SIZE)
    places = judge(Positions(), clip.frames, mask=clip.labels[0], **SIZE)
    assert seen.low < seen.score < seen.high
    assert seen.score > places.score + 0.03
    assert all(0 <= cue <= 1 for cue in seen.cues.values())
    found = judge_difference(seen, places)
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(seen.score - places.score)


def test_without_a_mask_the_same_order(clip):
    seen = judge("color", clip.frames, protocol="ino-near", **SIZE)
    assert seen.kind == "none"
    assert seen.score > judge(Positions(), clip.frames, **SIZE).score


@pytest.mark.parametrize("wrong", ["vanishes", "fills", "stays", "follows nothing"])
def test_degenerate_results_do_not_win(clip, wrong):
    frames, right = list(clip.frames), np.stack(clip.labels)
    other = right.copy()
    if wrong == "vanishes":
        other[1:] = 0
    elif wrong == "fills":
        other[1:] = 1
    elif wrong == "stays":
        other[1:] = right[0]
    else:
        other[1:] = np.roll(right[1:], 30, axis=2)
    assert judge_labels(frames, right).score > judge_labels(frames, other).score + 0.05


def test_objects_of_the_staged_video_move_as_its_label_maps_say():
    frame = np.random.default_rng(0).integers(0, 80, (96, 128, 3), dtype=np.uint8)
    mask = np.zeros((96, 128), dtype=np.uint8)
    mask[20:50, 10:40] = 1
    frame[mask == 1] = (0, 220, 0)
    frames, truth = stage_video(frame, mask)
    assert (frames[0] == frame).all() and (truth[0] == mask).all()
    centers = [np.argwhere(one).mean(axis=0) for one in truth]
    assert centers[-1][1] - centers[0][1] > 5  # to the middle of the frame
    for image, labels in zip(frames, truth, strict=True):
        inside = cv2.erode(labels, np.ones((5, 5), np.uint8)) > 0
        outside = cv2.dilate(labels, np.ones((5, 5), np.uint8)) == 0
        assert image[inside][:, 1].min() > 200 > image[outside][:, 1].max()


def test_regions_that_stand_out_hold_what_moves():
    rng = np.random.default_rng(1)
    ground = cv2.GaussianBlur(rng.integers(0, 255, (96, 128, 3), dtype=np.uint8), (0, 0), 2)
    thing = cv2.GaussianBlur(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8), (0, 0), 1)
    frames = []
    for step in range(3):
        frames.append(ground.copy())
        frames[-1][30:54, 40 + 3 * step : 64 + 3 * step] = (thing // 2) + np.uint8(100)
    labels = pseudo_objects(frames)
    assert 0 < labels.max() <= NUM_REGIONS
    assert (labels == pseudo_objects(frames)).all()
    share = (labels[30:54, 40:64] == 1).mean()
    assert share > 5 * ((labels == 1).sum() - (labels[30:54, 40:64] == 1).sum()) / labels.size


def test_a_long_motion_is_followed_by_way_of_the_frames_between():
    rng = np.random.default_rng(2)
    ground, thing = (
        cv2.GaussianBlur(rng.integers(0, 255, (*size, 3), dtype=np.uint8), (0, 0), 2.5)
        for size in ((120, 200), (40, 40))
    )
    frames = {}
    for number in range(5):  # 6 pixels from one frame to the next, 24 in all
        frames[number] = ground.copy()
        frames[number][30:70, 10 + 6 * number : 50 + 6 * number] = thing
    first, last = (np.zeros((120, 200), np.uint8) for _ in range(2))
    first[30:70, 10:50] = last[30:70, 34:74] = 1

    def share(motion):
        """Of the last place, what is found from the first."""
        moved = cv2.remap(first, motion.column, motion.row, cv2.INTER_NEAREST)
        return region_similarity(moved == 1, last == 1)

    (followed,) = followed_motions(frames, [0, 4])
    assert share(followed) > share(estimate_motion(frames[0], frames[4])) + 0.15
    assert with_strides([3, 5, 20]) == [3, 4, 5, 9, 12, 16, 20]


def test_equal_results_do_not_differ_and_near_ones_are_told_apart_finely(clip):
    frames, right = list(clip.frames), np.stack(clip.labels)
    near, far = right.copy(), np.zeros_like(right)
    far[0] = right[0]
    near[4, :20] = 0
    ours, same, close, worse = (judge_labels(frames, one) for one in (right, right, near, far))
    equal = judge_difference(ours, same)
    assert equal.mean == 0 and not equal.is_clear
    narrow, wide = judge_difference(ours, close), judge_difference(ours, worse)
    assert equal.high < narrow.high - narrow.mean < wide.high - wide.mean
    assert disagreement(right, right) == 0 and disagreement(right, far) == 1
    # Over several videos errors average out.
    several = mean_difference([ours] * 4, [worse] * 4)
    assert several.mean == pytest.approx(wide.mean)
    assert several.high - several.mean == pytest.approx((wide.high - wide.mean) / 2)
    with pytest.raises(ConfigError, match="same mask"):
        judge_difference(ours, judge_labels(frames, right[::-1]))


def test_eight_frames_of_a_second_are_judged_from_the_mask_on(tmp_path):
    clip = generate_clip(1, num_frames=40, height=32, width=48, num_objects=1)
    with VideoWriter(tmp_path / "clip.mp4", fps=24.0) as writer:
        for frame in clip.frames:
            writer.write(frame)
    write_labels(tmp_path / "mask.png", clip.labels[0])
    chosen = read_judged(tmp_path / "clip.mp4", mask=f"4={tmp_path / 'mask.png'}")
    assert chosen.numbers == list(range(4, 40, 3))
    assert read_judged(tmp_path / "clip.mp4", num_frames=30).numbers == list(range(30))


def test_the_command_ranks_and_writes_what_it_measured(folder, capsys):
    video, mask = folder / "clip.mp4", folder / "first.png"
    options = ["--mask", mask, "--frames", 6, "--short-side", 120, "--device", "cpu"]
    options += ["--weights", "color", "--protocol", "dinov3", "ino-near"]
    assert run("judge", video, *options, "--save", folder / "found.json") == 0
    shown = capsys.readouterr().out
    found = json.loads((folder / "found.json").read_text())
    scores = [row["score"] for row in found["rows"]]
    assert scores == sorted(scores, reverse=True)
    assert {row["protocol"] for row in found["rows"]} == {"dinov3", "ino-near"}
    assert f"{100 * scores[0]:.1f}" in shown and "more than noise" in shown
    assert found["difference"]["mean"] == pytest.approx(scores[0] - scores[1])
    alone = ino.judge("color", video, protocol=found["rows"][0]["protocol"], mask=mask, **SIZE)
    assert alone.score == pytest.approx(scores[0])


def test_results_of_any_method_are_ranked(folder, capsys):
    results = [folder / "late", folder / "right"]
    options = ["--frames", 6, "--short-side", 120, "--save", folder / "results.json"]
    assert run("judge", folder / "clip.mp4", "--result", *results, *options) == 0
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == [str(folder / "right"), str(folder / "late")]
    one = judge_result(folder / "right", folder / "clip.mp4", **SIZE)
    assert one.score == pytest.approx(rows[0]["score"])


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (lambda clip: clip.frames[:1], "has 1 frame, but a judge needs 3"),
        (lambda clip: [clip.frames[0]] * 4, "does not move"),
        (lambda clip: [np.full((120, 160, 3), 10 * i, np.uint8) for i in range(4)], "no texture"),
    ],
)
def test_a_video_to_judge_nothing_by_is_refused(clip, frames, words):
    with pytest.raises(VideoError, match=words):
        judge("color", frames(clip), mask=clip.labels[0], protocol="ino-near", **SIZE)


def test_bad_input_is_one_sentence(folder, clip, tmp_path, capsys):
    video = folder / "clip.mp4"
    with pytest.raises(MaskError, match="holds no object"):
        judge("color", clip.frames, mask=0 * clip.labels[0], **SIZE)
    write_labels(tmp_path / "empty.png", 0 * clip.labels[0])
    options = ["--weights", "color"]
    assert "no object" in refused(
        capsys, "judge", video, "--mask", tmp_path / "empty.png", *options
    )
    assert "the number of masks is 1 and that of videos 2" in refused(
        capsys, "judge", video, video, "--mask", folder / "first.png", *options
    )
    assert "unknown protocol" in refused(capsys, "judge", video, "--protocol", "best", *options)
    assert "is given twice" in refused(capsys, "judge", video, video, *options)
    assert "give one video" in refused(
        capsys, "judge", video, "--result", folder / "right", *options
    )
    assert "frames to judge is 2" in refused(capsys, "judge", video, "--frames", 2, *options)
    assert "one mask per frame" in refused(capsys, "judge", video, "--result", tmp_path)
    assert "is not a folder" in refused(capsys, "judge", video, "--result", tmp_path / "none")
    small = tmp_path / "of another video"
    small.mkdir()
    for number in range(8):
        write_labels(small / f"{number:05d}.png", clip.labels[number][:60])
    assert "60x160 but the frames are 120x160" in refused(capsys, "judge", video, "--result", small)
    with pytest.raises(VideoError, match="uint8 RGB"):
        judge("color", [one / 255 for one in clip.frames], mask=clip.labels[0], **SIZE)


def test_what_would_fail_at_the_end_fails_before_anything_is_judged(
    folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("ino.tasks.judge.judge_clip", lambda *args, **options: pytest.fail())
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    options = ["--mask", folder / "first.png", "--weights", "color"]
    command = ["judge", folder / "clip.mp4", *options]
    assert "broken.pt" in refused(capsys, *command, tmp_path / "broken.pt")
    assert "does not exist; create it" in refused(
        capsys, *command, "--save", tmp_path / "missing" / "found.json"
    )
    assert "is not a file" in refused(capsys, *command, "--save", tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["broken.pt"]
