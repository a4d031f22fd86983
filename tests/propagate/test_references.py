"""Several annotated frames, which all stay references."""

import gc
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch

from ino.errors import MaskError
from ino.propagate.protocols import PROTOCOLS, get_protocol
from ino.propagate.references import (
    Moments,
    PassMap,
    Span,
    blend,
    blend_maps,
    complete_frames,
    num_steps,
    rank_frames,
)
from ino.propagate.tracker import Tracker
from propagate.moving_squares import HEIGHT, iou, moving_squares, small_sizes


@pytest.fixture
def tracker(backbone):
    protocol = get_protocol("ino-davis", layer=1, short_side=2 * HEIGHT, radius=4)
    return Tracker(backbone, protocol=protocol)


@pytest.fixture
def fine_tracker(backbone):
    protocol = get_protocol("ino-davis", layer=1, short_side=4 * HEIGHT, radius=4)
    return Tracker(backbone, protocol=protocol)


def only(mask, label):
    return np.where(mask == label, mask, 0).astype(np.uint8)


def label_maps(tracker, frames, masks):
    found = {one.number: one.labels for one in tracker.track_references(frames, masks)}
    assert sorted(found) == list(range(len(frames)))
    return [found[number] for number in range(len(frames))]


def test_one_mask_on_the_first_frame_is_what_track_gives(tracker, video):
    frames, labels = video
    expected = list(tracker.track(frames, {0: labels[0]}))
    np.testing.assert_array_equal(label_maps(tracker, frames, {0: labels[0]}), expected)


def test_objects_that_enter_later_are_what_track_gives(tracker, video):
    frames, labels = video
    masks = {0: only(labels[0], 1), 4: only(labels[4], 2)}
    assert complete_frames(masks) == [0]
    expected = list(tracker.track(frames, masks))
    np.testing.assert_array_equal(label_maps(tracker, frames, masks), expected)


def test_annotated_frames_are_as_drawn(tracker, video):
    frames, labels = video
    masks = {1: labels[1].copy(), 2: labels[2], 5: labels[5].copy()}
    masks[5][:2, :9] = 1  # wherever the network sees it
    found = label_maps(tracker, frames, masks)
    for number, mask in masks.items():
        np.testing.assert_array_equal(found[number], mask)


def test_another_annotated_frame_lowers_no_other_frame(fine_tracker, video):
    frames, labels = (one[:6] for one in video)

    def scores(*numbers):
        found = label_maps(fine_tracker, frames, {number: labels[number] for number in numbers})
        return np.array(
            [[iou(*pair, label) for label in (1, 2)] for pair in zip(found, labels, strict=True)]
        )

    found = [scores(0), scores(0, 5), scores(0, 3, 5)]
    for fewer, more in pairwise(found):
        assert (more >= fewer - 0.02).all()
    means = [one.mean() for one in found]
    assert means[-1] > means[0] + 0.02


def test_a_reversed_video_gives_reversed_results(tracker, video):
    frames, labels = video
    masks = {1: labels[1], 4: only(labels[4], 1), 6: labels[6]}
    forward = label_maps(tracker, frames, masks)
    backward = label_maps(tracker, frames[::-1], {7 - n: mask for n, mask in masks.items()})
    # The passes swap their roles; sums in another order may decide single pixels.
    assert (np.array(backward[::-1]) != np.array(forward)).mean() < 1e-3


def test_the_order_of_masks_does_not_matter(tracker, video):
    frames, labels = video
    one = label_maps(tracker, frames, {1: labels[1], 6: labels[6]})
    other = label_maps(tracker, frames, {6: labels[6], 1: labels[1]})
    np.testing.assert_array_equal(one, other)


def test_an_object_that_is_not_drawn_again_is_there_up_to_half_of_the_way(tracker, video, caplog):
    frames, labels = video
    found = label_maps(tracker, frames, {1: labels[1], 6: only(labels[6], 1)})
    assert [2 in one for one in found] == [True] * 4 + [False] * 4
    assert "object 2: not drawn in frame 6" in caplog.text
    entered = label_maps(tracker, frames, {1: only(labels[1], 1), 6: labels[6]})
    assert [2 in one for one in entered] == [False] * 4 + [True] * 4


def test_a_frame_without_objects_ends_them(tracker, video):
    frames, labels = video
    found = label_maps(tracker, frames, {0: labels[0], 6: np.zeros_like(labels[0])})
    assert [bool(one.any()) for one in found] == [True] * 4 + [False] * 4
    with pytest.raises(MaskError, match="no object"):
        tracker.track_references(frames, {0: np.zeros_like(labels[0])})


def test_an_object_enters_between_two_annotated_frames(fine_tracker, video):
    frames, labels = (one[:6] for one in video)
    masks = {0: only(labels[0], 1), 2: only(labels[2], 2), 5: labels[5]}
    found = label_maps(fine_tracker, frames, masks)
    assert [2 in one for one in found] == [False] * 2 + [True] * 4
    np.testing.assert_array_equal(found[2] == 2, labels[2] == 2)
    for number in range(2, 6):
        assert min(iou(found[number], labels[number], label) for label in (1, 2)) > 0.6


def test_bad_masks_are_refused_before_work(tracker, video):
    frames, labels = video
    with pytest.raises(MaskError, match="frame 9, but the video has 8 frames"):
        tracker.track_references(frames, {9: labels[1]})
    with pytest.raises(MaskError, match="the mask of frame 5 is 9x9"):
        tracker.track_references(frames, {1: labels[1], 5: np.ones((9, 9), np.uint8)})


def test_void_says_nothing(tracker, video):
    frames, labels = video
    unsure = labels[4].copy()
    unsure[:, unsure.shape[1] // 2 :] = 255
    found = label_maps(tracker, frames, {0: labels[0], 4: unsure})
    assert not any((one == 255).any() for one in found)
    known = unsure != 255
    np.testing.assert_array_equal(found[4][known], unsure[known])
    assert iou(found[4], labels[4], 2) > 0.6  # some of it lies in void


def test_a_pass_that_is_unsure_or_far_counts_less():
    sure, unsure = (torch.tensor([[[1 - p, p], [1.0, 0.0]]]) for p in (1.0, 0.5))

    def share(forward, backward, number):
        """Of the forward pass in the object's label."""
        found = float(blend(forward, backward, [Span(0, 10)], number, (0, 10))[0, 0, 1])
        low, high = float(backward[0, 0, 1]), float(forward[0, 0, 1])
        return (found - low) / (high - low)

    assert share(sure, unsure, 5) == pytest.approx(1 / (1 + 0.5**4), abs=1e-5)
    assert share(unsure, sure, 5) == pytest.approx(0.5**4 / (1 + 0.5**4), abs=1e-5)
    assert share(sure, unsure, 9) < share(sure, unsure, 5) < share(sure, unsure, 1)


def test_label_maps_are_blended_by_weight_and_confidence():
    def pass_map(labels, confidence):
        return PassMap(
            np.array([labels], dtype=np.uint8), np.full((1, 4), confidence, dtype=np.float32)
        )

    def blended(sure, unsure, number, span=(0, 10)):
        forward, backward = pass_map([7, 7, 0, 0], sure), pass_map([0, 7, 7, 0], unsure)
        return blend_maps(forward, backward, {7: Span(*span)}, number, (0, 10))

    # In the middle the surer pass counts, and elsewhere the nearer one.
    assert blended(0.9, 0.6, 5).labels.tolist() == [[7, 7, 0, 0]]
    assert blended(0.6, 0.9, 5).labels.tolist() == [[0, 7, 7, 0]]
    assert blended(0.8, 0.8, 2).labels.tolist() == [[7, 7, 0, 0]]
    assert blended(0.8, 0.8, 8).labels.tolist() == [[0, 7, 7, 0]]
    assert blended(0.8, 0.8, 8).confidence[0, 1] == pytest.approx(0.8)
    # Not drawn in the frame after: there up to half of the way, as the forward pass says.
    assert blended(0.5, 0.9, 5, (0, None)).labels.tolist() == [[7, 7, 0, 0]]
    assert not blended(0.9, 0.9, 6, (0, None)).labels.any()


def test_blended_frames_keep_outlines_finer_than_features(backbone, video):
    frames, labels = video
    protocol = get_protocol(
        "ino-davis", layer=1, short_side=HEIGHT, radius=2, mask_down="area", feedback="refined"
    )
    found = {}
    for share in (0.0, 0.8):
        tracker = Tracker(backbone, protocol=protocol.model_copy(update={"flow_share": share}))
        maps = label_maps(tracker, frames, {0: labels[0], 7: labels[7]})
        found[share] = np.mean(
            [iou(maps[t], labels[t], one) for t in range(1, 7) for one in (1, 2)]
        )
    assert found[0.8] > found[0.0] + 0.1


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol(backbone, name, video):
    frames, labels = video
    protocol = get_protocol(name, layer=1, size_multiple=None, **small_sizes(name))
    steps = []
    masks = {1: labels[1], 4: labels[4]}
    results = list(
        Tracker(backbone, protocol=protocol).track_references(
            frames[:6], masks, on_step=lambda: steps.append(1), check_every=1
        )
    )
    assert [one.number for one in results] == [0, 1, 2, 3, 4, 5]
    assert len(steps) == num_steps(masks, 6) == 8
    for one in results:
        assert set(one.confidence) <= {1, 2}
        assert all(0 <= value <= 1 for value in [*one.confidence.values(), *one.survival.values()])
        assert bool(one.survival) == (one.number not in masks)


class Cycling(Sequence):
    """A long video of a few frames."""

    def __init__(self, frames, length):
        self.frames, self.length = frames, length

    def __len__(self):
        return self.length

    def __getitem__(self, number):
        return self.frames[number % len(self.frames)]


class InTurn(nullcontext):
    """Does the work at once, not beside that of the caller, so that it ends at the same moment in
    each run."""

    def submit(self, function, *args):
        done = Future()
        done.set_result(function(*args))
        return done


def test_memory_does_not_grow_with_the_video(backbone, monkeypatch, tmp_path):
    """Neither features nor soft labels are held, which tensors alive during the work show."""
    monkeypatch.setattr("ino.propagate.references.MAX_FEATURE_BYTES", 1 << 14)
    monkeypatch.setattr("ino.propagate.references.ThreadPoolExecutor", InTurn)
    tracker = Tracker(backbone, protocol=get_protocol("ino-ytvos", layer=1, num_context=2))
    frames, labels = zip(*moving_squares(8), strict=True)
    alive, steps = [], []

    def count():
        steps.append(1)
        if len(steps) % 8:
            return
        gc.collect()
        tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor]
        alive[-1] = max(alive[-1], sum(one.nbytes for one in tensors))

    gc.freeze()  # get_objects passes over what is there already
    try:
        for length in (9, 27):
            alive.append(0)
            masks = {0: labels[0], length - 1: labels[7]}
            video = Cycling(frames, length)
            for _ in tracker.track_references(video, masks, folder=tmp_path, on_step=count):
                pass
    finally:
        gc.unfreeze()
    assert alive[1] < 1.1 * alive[0]
    assert not list(tmp_path.iterdir())


def test_the_next_frame_is_where_doubt_is():
    certain = {number: {1: 1.0} for number in range(20)}
    assert rank_frames(certain, {}, {0}) == []
    doubtful = certain | {number: {1: 0.5, 2: 0.2} for number in (11, 12, 13)}
    best, *others = rank_frames(doubtful, {}, {0, 19})
    assert (best.number, best.label, best.doubt) == (12, 2, 0.8)
    assert all(one.gain < best.gain for one in others)
    (other, *_) = rank_frames(doubtful, {5: {1: 0.0}}, {0, 8, 19}, num_frames=5)[1:]
    assert other.number == 5 or other.gain < 2


def test_the_next_frame_of_a_track_is_between_annotated_ones(tracker, video):
    frames, labels = video
    results = list(tracker.track_references(frames, {0: labels[0], 7: labels[7]}))
    ranked = rank_frames(
        {one.number: one.confidence for one in results},
        {one.number: one.survival for one in results},
        {0, 7},
    )
    assert ranked[0].number in (2, 3, 4, 5)


def test_a_lost_object_is_doubtful_and_one_that_both_passes_miss_is_not():
    lost = {number: {1: 1.0} if number < 5 else {} for number in range(10)}
    (best, *_) = rank_frames(lost, {}, {0})
    assert best.number >= 5 and (best.label, best.doubt) == (1, 1.0)
    assert rank_frames(lost, {number: {1: 1.0} for number in range(5, 9)}, {0, 9}) == []
    (best, *_) = rank_frames(lost, {7: {1: 0.0}} | {n: {1: 1.0} for n in (5, 6, 8)}, {0, 9})
    assert best.number == 7


def test_the_next_frame_divides_equal_doubt_evenly():
    equal = {number: {1: 0.8} for number in range(30)}
    assert rank_frames(equal, {}, {0, 29})[0].number in (14, 15)
    assert rank_frames(equal, {}, {0})[0].number == 25  # near the end, which nothing follows
    assert rank_frames(equal, {}, {0, 25})[0].number in (12, 13)
    found = rank_frames(equal, {}, {0}, num_frames=29)
    assert len({one.number for one in found}) == 29


def test_annotated_frames_teach_which_differences_matter():
    """Objects differ in one direction only, and all others hold large noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    features = 3 * torch.randn(400, 8, generator=generator)
    features[:, 0] = labels + 0.1 * torch.randn(400, generator=generator)
    moments = Moments(torch.bincount(labels), 8)
    for half in (slice(0, 200), slice(200, 400)):
        moments.add(features[half], labels[half])
    learned = moments.metric()(features[None])[0]

    def same_label(found):
        similarity = torch.nn.functional.normalize(found, dim=-1)
        similarity = (similarity @ similarity.T).fill_diagonal_(-1)
        return float((labels[similarity.argmax(dim=1)] == labels).float().mean())

    assert same_label(features) < 0.7
    assert same_label(learned) > 0.8
