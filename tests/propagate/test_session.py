"""A program that shows results as they come, adds masks and corrects them."""

import numpy as np
import pytest

from ino.errors import MaskError, VideoError
from ino.propagate.protocols import PROTOCOLS, get_protocol
from ino.propagate.tracker import Tracker
from propagate.moving_squares import HEIGHT, WIDTH, iou


@pytest.fixture
def tracker(backbone):
    """Sees frames four times as large, so that a feature is two pixels wide."""
    protocol = get_protocol("ino-davis", layer=1, short_side=4 * HEIGHT, radius=4)
    return Tracker(backbone, protocol=protocol)


def only(labels, label):
    return np.where(labels == label, labels, 0).astype(np.uint8)


def test_steps_equal_a_whole_video(tracker, video):
    frames, labels = video
    whole = list(tracker.track(frames, {0: labels[0]}))
    found = [tracker.start(frames[0], labels[0]), *(tracker.step(frame) for frame in frames[1:])]
    for one, other in zip(found, whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_start_begins_a_new_video(tracker, video):
    frames, labels = video
    tracker.start(frames[3], only(labels[3], 2))
    tracker.step(frames[4])
    tracker.start(frames[0], labels[0])
    np.testing.assert_array_equal(
        tracker.step(frames[1]), list(tracker.track(frames[:2], {0: labels[0]}))[1]
    )


def test_an_object_that_is_added_is_followed_as_one_given_to_track(tracker, video):
    frames, labels = video
    expected = list(tracker.track(frames, {0: only(labels[0], 1), 4: only(labels[4], 2)}))
    tracker.start(frames[0], only(labels[0], 1))
    for time, frame in enumerate(frames[1:], start=1):
        found = tracker.step(frame)
        if time == 4:
            added = tracker.add(only(labels[4], 2))
            np.testing.assert_array_equal(added == 2, labels[4] == 2)
        elif time > 4:
            np.testing.assert_array_equal(found, expected[time])


def test_a_correction_holds_from_its_frame_on(tracker, video):
    """The mask of the start is wrong: object 1 lies where nothing is."""
    frames, labels = video
    wrong = only(labels[0], 2)
    wrong[26:40, 4:18] = 1
    corrected = {}
    for corrects in (False, True):
        tracker.start(frames[0], wrong)
        for time, frame in enumerate(frames[1:], start=1):
            result = tracker.step(frame)
            if corrects and time == 3:
                np.testing.assert_array_equal(tracker.add(labels[3]), labels[3])
        corrected[corrects] = result
    assert iou(corrected[False], labels[-1], 1) < 0.1
    assert iou(corrected[True], labels[-1], 1) > 0.6
    assert iou(corrected[True], labels[-1], 2) > 0.6


def test_a_correction_of_one_object_leaves_others_and_frees_its_place(tracker, video):
    frames, labels = video
    wrong = only(labels[0], 2)
    wrong[26:40, 4:18] = 1
    tracker.start(frames[0], wrong)
    before = tracker.step(frames[1])
    after = tracker.add(only(labels[1], 1))
    np.testing.assert_array_equal(after == 1, labels[1] == 1)
    assert (after[26:40, 4:18] == 0).all()
    np.testing.assert_array_equal(after == 2, before == 2)
    assert iou(tracker.step(frames[2]), labels[2], 1) > 0.6


def test_track_corrects_if_asked_to(tracker, video):
    frames, labels = video
    wrong = only(labels[0], 2)
    wrong[26:40, 4:18] = 1
    results = list(tracker.track(frames, {0: wrong, 3: labels[3]}, correct=True))
    np.testing.assert_array_equal(results[3], labels[3])
    assert iou(results[-1], labels[-1], 1) > 0.6


def test_many_corrections_keep_the_memory_small(tracker, video):
    frames, labels = video
    tracker.start(frames[0], labels[0])
    for time in range(1, 8):
        tracker.step(frames[time])
        tracker.add(labels[time])
    assert tracker._session is not None
    memory = tracker._session._propagator.memory
    assert len(memory.references) == 1
    assert memory.latest.soft.shape[-1] == 3


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_takes_corrections(backbone, name, video):
    frames, labels = video
    short_side = None if get_protocol(name).short_side is None else HEIGHT
    protocol = get_protocol(name, layer=1, short_side=short_side, size_multiple=None)
    tracker = Tracker(backbone, protocol=protocol)
    tracker.start(frames[0], only(labels[0], 1))
    tracker.step(frames[1])
    assert 2 in tracker.add(labels[1])
    for frame in frames[2:4]:
        assert set(np.unique(tracker.step(frame))) <= {0, 1, 2}
    assert set(tracker.survival()) == {1, 2}
    confidence = tracker.confidence()
    assert confidence.shape == (HEIGHT, WIDTH)
    assert 0 <= confidence.min() <= confidence.max() <= 1


def test_confidence_is_low_where_labels_meet(tracker, video):
    frames, labels = video
    tracker.start(frames[0], labels[0])
    tracker.step(frames[1])
    confidence = tracker.confidence()
    assert confidence.dtype == np.float32
    inside = labels[1] == 1
    inside[5:17, 5:17] &= False
    assert confidence[45 // 2, 2] > 0.95  # background far from objects
    assert confidence[inside].min() < 0.9 < confidence[10, 10]


def test_what_is_lost_does_not_survive_the_way_back(tracker, video):
    frames, labels = video
    tracker.start(frames[0], labels[0])
    tracker.step(frames[1])
    assert min(tracker.survival().values()) > 0.6
    hidden = frames[2].copy()
    hidden[labels[2] == 1] = frames[2][0, -1]
    tracker.step(hidden)
    for _ in range(6):
        tracker.step(hidden)
    survival = tracker.survival()
    assert survival[1] < 0.4 < survival[2]


def test_both_ways_from_the_nearest_mask(tracker, video):
    frames, labels = video
    masks = {2: labels[2], 7: labels[7]}
    results = dict(tracker.track_both_ways(frames, masks))
    assert sorted(results) == list(range(8))
    for time, mask in masks.items():
        np.testing.assert_array_equal(results[time], mask)
    forward = list(tracker.track(frames[2:5], {0: labels[2]}))
    np.testing.assert_array_equal(results[4], forward[2])
    backward = list(tracker.track([frames[7], frames[6], frames[5]], {0: labels[7]}))
    np.testing.assert_array_equal(results[5], backward[2])
    for time in (0, 1):
        assert iou(results[time], labels[time], 1) > 0.6


def test_both_ways_refuses_a_mask_beyond_the_end(tracker, video):
    with pytest.raises(MaskError, match="frame 9, but the video has 8 frames"):
        next(tracker.track_both_ways(video[0], {9: video[1][0]}))


@pytest.mark.parametrize("when", ["passed", "not come yet"])
def test_a_mask_for_another_frame(tracker, video, when):
    frames, labels = video
    tracker.start(frames[0], labels[0])
    tracker.step(frames[1])
    number = 0 if when == "passed" else 5
    with pytest.raises(MaskError) as error:
        tracker.add(labels[0], frame=number)
    assert f"the mask is for frame {number}, but the last frame was 1" in str(error.value)
    assert when in str(error.value)
    assert "track(..., correct=True)" in str(error.value)
    tracker.add(labels[1], frame=1)


def test_bad_calls_lose_nothing(tracker, video):
    frames, labels = video
    for call in (
        lambda: tracker.step(frames[0]),
        lambda: tracker.add(labels[0]),
        tracker.confidence,
        tracker.survival,
    ):
        with pytest.raises(MaskError, match=r"call start\(frame, mask\) first"):
            call()
    tracker.start(frames[0], labels[0])
    with pytest.raises(MaskError, match="holds no object"):
        tracker.start(frames[0], np.zeros((HEIGHT, WIDTH), np.uint8))
    with pytest.raises(VideoError, match="frame 1 is 9x9"):
        tracker.step(np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(MaskError, match="the mask of frame 0 is 9x9"):
        tracker.add(np.ones((9, 9), np.uint8))
    expected = list(tracker.track(frames[:2], {0: labels[0]}))[1]
    np.testing.assert_array_equal(tracker.step(frames[1]), expected)


def test_bf16_features_are_nearly_the_same(video):
    from ino.models.load import load_backbone

    frames, labels = video
    protocol = get_protocol("ino-davis", short_side=4 * HEIGHT, radius=4)
    exact, rounded = (
        list(
            Tracker(
                load_backbone("random:vit_nano/8"), protocol=protocol, precision=precision
            ).track(frames[:3], {0: labels[0]})
        )
        for precision in ("fp32", "bf16")
    )
    assert np.mean(exact[2] != rounded[2]) < 0.02


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_mask_added_on_the_frame_of_another_takes_its_place(backbone, name, video):
    """The start says that both squares are object 1; what is added says which one is object 2."""
    frames, labels = video
    protocol = get_protocol(name, layer=1, short_side=4 * HEIGHT, size_multiple=None)
    tracker = Tracker(backbone, protocol=protocol)
    tracker.start(frames[0], labels[0])
    expected = tracker.step(frames[1])
    tracker.start(frames[0], np.minimum(labels[0], 1))
    tracker.add(only(labels[0], 2))
    found = tracker.step(frames[1])
    for label in (1, 2):
        assert iou(found, expected, label) > 0.8


@pytest.mark.parametrize("name", ["mast", "corrflow"])
def test_a_correction_with_hard_feedback_leaves_other_masks(backbone, name, video):
    frames, labels = video
    protocol = get_protocol(name, layer=1, short_side=4 * HEIGHT, size_multiple=None)
    tracker = Tracker(backbone, protocol=protocol)
    tracker.start(frames[0], labels[0])
    tracker.step(frames[1])
    before = tracker.step(frames[2])
    for _ in range(3):
        after = tracker.add(only(labels[2], 1))
        np.testing.assert_array_equal(after == 2, (before == 2) & (labels[2] != 1))


def test_both_ways_names_the_frame_of_a_mask_of_another_size(tracker, video):
    with pytest.raises(MaskError, match="the mask of frame 5 is 9x9"):
        list(tracker.track_both_ways(video[0], {5: np.ones((9, 9), np.uint8)}))


def test_questions_before_the_first_mask(tracker, video):
    """Of a video whose mask comes later; what follows is not disturbed."""
    frames, masks = video
    expected = list(tracker.track(frames, {2: masks[0]}))
    results = tracker.track(frames, {2: masks[0]})
    found = [next(results)]
    assert not tracker.confidence().any()
    assert tracker.survival() == {}
    with pytest.raises(MaskError, match="no mask came before it"):
        tracker.add(masks[0])
    np.testing.assert_array_equal([*found, *results], expected)


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("at", [0, 1])
def test_a_mask_added_twice_is_a_mask_added_once(backbone, name, at, video):
    """On the frame of the start and on a later one: results, confidence and what follows."""
    frames, labels = video
    short_side = None if get_protocol(name).short_side is None else HEIGHT
    protocol = get_protocol(name, layer=1, short_side=short_side, size_multiple=None)
    found = []
    for times in (1, 3):
        tracker = Tracker(backbone, protocol=protocol)
        result = tracker.start(frames[0], labels[0])
        if at:
            result = tracker.step(frames[1])
        for _ in range(times):
            result = tracker.add(only(labels[at], 1))
        found.append([result, tracker.confidence(), tracker.step(frames[2]), tracker.confidence()])
    for once, thrice in zip(*found, strict=True):
        np.testing.assert_array_equal(once, thrice)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_masks_added_one_after_the_other_are_their_union(backbone, name, video):
    """One corrects object 1, the other brings object 3 and covers a part of the first."""
    frames, labels = video
    short_side = None if get_protocol(name).short_side is None else HEIGHT
    protocol = get_protocol(name, layer=1, short_side=short_side, size_multiple=None)
    first = only(labels[1], 1)
    first[28:36, 10:20] = 1
    second = np.zeros_like(first)
    second[30:40, 6:16] = 3
    found = []
    for masks in ([first, second], [np.where(second > 0, second, first)]):
        tracker = Tracker(backbone, protocol=protocol)
        tracker.start(frames[0], labels[0])
        tracker.step(frames[1])
        for mask in masks:
            result = tracker.add(mask)
        found.append([result, tracker.confidence(), *map(tracker.step, frames[2:4])])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_later_mask_replaces_the_objects_that_it_holds(tracker, video):
    """Object 4, wholly covered by what comes later, is gone; 1 is where it was given last."""
    frames, labels = video
    tracker.start(frames[0], labels[0])
    tracker.step(frames[1])
    wrong = np.zeros_like(labels[1])
    wrong[26:40, 4:18] = 1
    wrong[2:4, 2:4] = 4
    tracker.add(wrong)
    right = only(labels[1], 1)
    right[:6, :10] = 1
    result = tracker.add(right)
    np.testing.assert_array_equal(result == 1, right == 1)
    assert not (result == 4).any()
    assert (result == 2).any()
    assert not (tracker.step(frames[2]) == 4).any()
