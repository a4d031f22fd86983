import threading
from time import sleep

import numpy as np
import pytest
import torch
from torch import nn

from ino.errors import ConfigError, InoError, MaskError, VideoError
from ino.models.backbone import ColorBackbone
from ino.models.load import load_backbone
from ino.propagate.protocols import PROTOCOLS, get_protocol
from ino.propagate.tracker import Session, Tracker
from propagate.moving_squares import HEIGHT, WIDTH, iou, moving_squares, small_sizes


@pytest.fixture
def tracker(backbone):
    return Tracker(backbone, protocol=get_protocol("ino-ytvos", layer=1, radius=3))


@pytest.fixture
def fine_tracker(backbone):
    """Sees frames four times as large, so that a feature is two pixels wide."""
    protocol = get_protocol("ino-davis", layer=1, short_side=4 * HEIGHT, radius=4)
    return Tracker(backbone, protocol=protocol)


def test_objects_are_followed(fine_tracker, video):
    frames, labels = video
    results = list(fine_tracker.track(frames, {0: labels[0]}))
    assert len(results) == len(frames)
    assert all(found.shape == (HEIGHT, WIDTH) and found.dtype == np.uint8 for found in results)
    for label in (1, 2):
        assert iou(results[-1], labels[-1], label) > 0.6
        assert iou(results[-1], labels[0], label) < 0.3  # staying where it was is no success


def test_one_frame_returns_the_mask_itself(tracker, video):
    frames, labels = video
    (result,) = tracker.track(frames[:1], {0: labels[0]})
    np.testing.assert_array_equal(result, labels[0])


def test_ids_can_be_any(tracker, video):
    frames, labels = video
    plain = list(tracker.track(frames, {0: labels[0]}))
    renamed = np.array([0, 254, 17], dtype=np.uint8)
    results = list(tracker.track(frames, {0: renamed[labels[0]]}))
    for found, expected in zip(results, plain, strict=True):
        np.testing.assert_array_equal(found, renamed[expected])


def test_sixty_objects(tracker):
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)
    cells = np.arange(80).reshape(8, 10).repeat(8, axis=0).repeat(8, axis=1)
    mask = np.where(cells < 60, cells + 1, 0).astype(np.uint8)
    *_, result = tracker.track([frame] * 3, {0: mask})
    assert set(np.unique(result)) == set(range(61))


def test_void_counts_as_background(tracker, video):
    frames, labels = video
    with_void = labels[0].copy()
    with_void[:3] = 255
    plain = list(tracker.track(frames, {0: labels[0]}))
    results = list(tracker.track(frames, {0: with_void}))
    for found, expected in zip(results, plain, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_frames_before_the_first_mask_are_zero_and_cost_nothing(tracker, backbone, video):
    frames, labels = video
    results = list(tracker.track(frames, {3: labels[3]}))
    assert not any(found.any() for found in results[:3])
    np.testing.assert_array_equal(results[3], labels[3])
    assert all(set(np.unique(found)) == {0, 1, 2} for found in results[4:])
    assert len(backbone.calls) == 5


def test_a_late_object_enters_with_its_mask(fine_tracker, video):
    frames, labels = video
    only = {
        label: [np.where(m == label, m, 0).astype(np.uint8) for m in labels] for label in (1, 2)
    }
    results = list(fine_tracker.track(frames, {0: only[1][0], 4: only[2][4]}))
    assert all(set(np.unique(found)) == {0, 1} for found in results[:4])
    assert all(set(np.unique(found)) == {0, 1, 2} for found in results[4:])
    assert iou(results[4], labels[4], 2) > 0.8
    assert iou(results[-1], labels[-1], 1) > 0.6
    assert iou(results[-1], labels[-1], 2) > 0.6


def test_known_objects_in_a_later_mask_do_not_correct(tracker, video):
    frames, labels = video
    first = np.where(labels[0] == 1, labels[0], 0).astype(np.uint8)
    second = np.where(labels[4] == 2, labels[4], 0).astype(np.uint8)
    expected = list(tracker.track(frames, {0: first, 4: second}))
    second[-6:, -6:] = 1
    results = list(tracker.track(frames, {0: first, 4: second}))
    for found, wanted in zip(results, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_mask_that_introduces_nothing_warns(tracker, video, caplog):
    frames, labels = video
    results = tracker.track(frames, {0: labels[0], 2: labels[2]})
    assert "mask of frame 2 holds only objects of earlier masks" in caplog.text
    assert len(list(results)) == len(frames)


def test_frames_are_taken_one_at_a_time(tracker, video):
    frames, labels = video
    taken = []

    def stream():
        for number, frame in enumerate(frames):
            taken.append(number)
            yield frame

    results = tracker.track(stream(), {0: labels[0]})
    assert taken == []
    for number in range(3):
        next(results)
        assert taken == list(range(number + 1))


def test_the_backbone_is_in_evaluation_mode(backbone, video):
    backbone.train()
    list(
        Tracker(backbone, protocol=get_protocol("ino-ytvos", layer=1)).track(
            video[0][:1], {0: video[1][0]}
        )
    )
    assert [training for *_, training in backbone.calls] == [False]


def test_a_protocol_can_be_named():
    assert Tracker(ColorBackbone(), protocol="ino-davis").protocol == get_protocol("ino-davis")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_propagates_objects(video, name):
    """The first mask comes back as given only where the protocol keeps it."""
    frames, labels = video
    protocol = get_protocol(name, short_side=128, size_multiple=None)
    results = list(Tracker(ColorBackbone(), protocol=protocol).track(frames[:3], {0: labels[0]}))
    assert (results[0] == labels[0]).all() == protocol.keep_given
    for mask in results:
        assert mask.shape == labels[0].shape
        assert set(np.unique(mask)) == set(np.unique(labels[0]))


def entering_one_by_one():
    """Four frames of 64 x 96 and masks by frame: object 1 enters with frame 0, 2 with frame 1."""
    frames, labels = zip(*moving_squares(4, height=64, width=96), strict=True)
    return frames, {time: np.where(labels[time] == time + 1, labels[time], 0) for time in (0, 1)}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_lets_objects_enter_late(name):
    """With a ViT of random weights; at the video's own size where the protocol takes that."""
    frames, masks = entering_one_by_one()
    sizes = small_sizes(name, height=64, width=96)
    protocol = get_protocol(name, size_multiple=None, **sizes)
    tracker = Tracker(load_backbone("random:vit_nano/8"), protocol=protocol)
    first, *later = tracker.track(frames, masks)
    assert set(np.unique(first)) == {0, 1}
    for mask in later:
        assert mask.shape == frames[0].shape[:2]
        assert set(np.unique(mask)) <= {0, 1, 2}
    assert (later[0][masks[1] == 2] == 2).mean() > 0.5


@pytest.mark.parametrize("name", ["mast", "corrflow"])
def test_hard_feedback_takes_new_objects_pixel_by_pixel(name):
    """What later frames take as labels is the mask, not what the feature grid makes of it."""
    frames, masks = entering_one_by_one()
    _, found, *_ = Tracker(ColorBackbone(), protocol=name).track(frames, masks)
    np.testing.assert_array_equal(found == 2, masks[1] == 2)
    assert (found == 1).any()


def test_a_layer_that_the_backbone_lacks():
    """It is told of before anything is written."""
    with pytest.raises(ConfigError, match="no layer 13; this backbone has 1 to 12"):
        Tracker(load_backbone("random:vit_nano/8"), protocol=get_protocol("ino-ytvos", layer=13))


def test_a_vit_of_fewer_blocks_than_the_protocol_reads_is_read_at_its_last(video):
    frames, labels = video
    backbone = load_backbone("random:vit_nano/8")
    backbone.strides = backbone.strides[:4]
    backbone.num_layers = 4
    tracker = Tracker(backbone, protocol="ino-davis")
    assert tracker.protocol.layer == 4
    expected = Tracker(backbone, protocol=get_protocol("ino-davis", layer=4))
    for got, one in zip(
        tracker.track(frames[:3], {0: labels[0]}),
        expected.track(frames[:3], {0: labels[0]}),
        strict=True,
    ):
        assert np.array_equal(got, one)
    with pytest.raises(ConfigError, match="no layer 6; this backbone has 1 to 4"):
        Tracker(backbone, protocol=get_protocol("ino-davis", layer=6))


def test_a_mask_of_another_size(tracker, video):
    frames, labels = video
    results = tracker.track(frames, {0: labels[0], 1: np.full((9, 11), 4, dtype=np.uint8)})
    next(results)
    with pytest.raises(MaskError) as error:
        next(results)
    assert str(error.value) == (
        "the mask of frame 1 is 9x11 but the frames are 45x69; give a mask of the video's size"
    )


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({}, "no mask was given"),
        ({0: np.zeros((45, 69), np.uint8)}, "the mask of frame 0 holds no object"),
        ({0: np.full((45, 69), 255, np.uint8)}, "the mask of frame 0 holds no object"),
        ({-1: np.ones((45, 69), np.uint8)}, "frame -1, but frames are counted from 0"),
        ({0: np.ones((45, 69, 3), np.uint8)}, "it is uint8 of shape (45, 69, 3)"),
        ({0: np.ones((45, 69), np.float64)}, "it is float64 of shape (45, 69)"),
    ],
)
def test_masks_that_cannot_be_used_are_refused_at_once(tracker, video, masks, message):
    with pytest.raises(MaskError) as error:
        tracker.track(video[0], masks)
    assert message in str(error.value)


def test_a_mask_beyond_the_end(tracker, video):
    frames, labels = video
    masks = {0: labels[0], 8: np.full((HEIGHT, WIDTH), 3, dtype=np.uint8)}
    message = "a mask was given for frame 8, but the video has 8 frames, counted from 0"
    with pytest.raises(MaskError, match=message):
        tracker.track(frames, masks, num_frames=8)
    results = tracker.track(frames, masks)
    for _ in frames:
        next(results)
    with pytest.raises(MaskError, match=message):
        next(results)


def test_an_empty_video(tracker, video):
    with pytest.raises(MaskError, match="frame 0, but the video has 0 frames"):
        list(tracker.track([], {0: video[1][0]}))


def test_frames_of_several_sizes(tracker, video):
    frames, labels = video
    results = tracker.track([frames[0], frames[1][:-1]], {0: labels[0]})
    next(results)
    with pytest.raises(VideoError, match="frame 1 is 44x69 but the frames before it are 45x69"):
        next(results)


@pytest.mark.parametrize("frame", [np.zeros((45, 69), np.uint8), np.zeros((45, 69, 3), np.float32)])
def test_frames_that_are_no_rgb_images(tracker, video, frame):
    with pytest.raises(VideoError, match="frame 0 must be uint8 height x width x 3"):
        next(tracker.track([frame], {0: video[1][0]}))


def test_frames_smaller_than_the_stride(tracker):
    frame, mask = np.zeros((6, 40, 3), np.uint8), np.ones((6, 40), np.uint8)
    with pytest.raises(VideoError, match="6x40 pixels are too small"):
        next(tracker.track([frame], {0: mask}))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_gpu_gives_nearly_the_same_masks(video, precision):
    frames, labels = video
    protocol = get_protocol("ino-davis", short_side=4 * HEIGHT, radius=4)
    on_cpu, on_gpu = (
        list(
            Tracker(
                load_backbone("random:vit_nano/8"),
                protocol=protocol,
                device=device,
                precision=precision,
            ).track(frames, {0: labels[0]})
        )
        for device in ("cpu", "cuda")
    )
    assert np.mean(on_cpu[-1] != on_gpu[-1]) < (0.001 if precision == "fp32" else 0.05)


def only(labels, label):
    return np.where(labels == label, labels, 0).astype(np.uint8)


def test_steps_equal_a_whole_video(fine_tracker, video):
    frames, labels = video
    whole = list(fine_tracker.track(frames, {0: labels[0]}))
    found = [
        fine_tracker.start(frames[0], labels[0]),
        *(fine_tracker.step(frame) for frame in frames[1:]),
    ]
    for one, other in zip(found, whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_start_begins_a_new_video(fine_tracker, video):
    frames, labels = video
    fine_tracker.start(frames[3], only(labels[3], 2))
    fine_tracker.step(frames[4])
    fine_tracker.start(frames[0], labels[0])
    np.testing.assert_array_equal(
        fine_tracker.step(frames[1]), list(fine_tracker.track(frames[:2], {0: labels[0]}))[1]
    )


def test_an_object_that_is_added_is_followed_as_one_given_to_track(fine_tracker, video):
    frames, labels = video
    expected = list(fine_tracker.track(frames, {0: only(labels[0], 1), 4: only(labels[4], 2)}))
    fine_tracker.start(frames[0], only(labels[0], 1))
    for time, frame in enumerate(frames[1:], start=1):
        found = fine_tracker.step(frame)
        if time == 4:
            added = fine_tracker.add(only(labels[4], 2))
            np.testing.assert_array_equal(added == 2, labels[4] == 2)
        elif time > 4:
            np.testing.assert_array_equal(found, expected[time])


def test_a_correction_holds_from_its_frame_on(fine_tracker, video):
    """The mask of the start is wrong: object 1 lies where nothing is."""
    frames, labels = video
    wrong = only(labels[0], 2)
    wrong[26:40, 4:18] = 1
    corrected = {}
    for corrects in (False, True):
        fine_tracker.start(frames[0], wrong)
        for time, frame in enumerate(frames[1:], start=1):
            result = fine_tracker.step(frame)
            if corrects and time == 3:
                np.testing.assert_array_equal(fine_tracker.add(labels[3]), labels[3])
        corrected[corrects] = result
    assert iou(corrected[False], labels[-1], 1) < 0.1
    assert iou(corrected[True], labels[-1], 1) > 0.6
    assert iou(corrected[True], labels[-1], 2) > 0.6


def test_a_correction_of_one_object_leaves_others_and_frees_its_place(fine_tracker, video):
    frames, labels = video
    wrong = only(labels[0], 2)
    wrong[26:40, 4:18] = 1
    fine_tracker.start(frames[0], wrong)
    before = fine_tracker.step(frames[1])
    after = fine_tracker.add(only(labels[1], 1))
    np.testing.assert_array_equal(after == 1, labels[1] == 1)
    assert (after[26:40, 4:18] == 0).all()
    np.testing.assert_array_equal(after == 2, before == 2)
    assert iou(fine_tracker.step(frames[2]), labels[2], 1) > 0.6


def test_many_corrections_keep_the_memory_small(fine_tracker, video):
    frames, labels = video
    fine_tracker.start(frames[0], labels[0])
    for time in range(1, 8):
        fine_tracker.step(frames[time])
        fine_tracker.add(labels[time])
    assert fine_tracker._session is not None
    memory = fine_tracker._session._propagator.memory
    assert len(memory.references) == 1
    assert memory.latest.soft.shape[-1] == 3


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_takes_corrections(backbone, name, video):
    frames, labels = video
    protocol = get_protocol(name, layer=1, size_multiple=None, **small_sizes(name))
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


def test_confidence_is_low_where_labels_meet(fine_tracker, video):
    frames, labels = video
    fine_tracker.start(frames[0], labels[0])
    fine_tracker.step(frames[1])
    confidence = fine_tracker.confidence()
    assert confidence.dtype == np.float32
    inside = labels[1] == 1
    inside[5:17, 5:17] &= False
    assert confidence[45 // 2, 2] > 0.95  # background far from objects
    assert confidence[inside].min() < 0.9 < confidence[10, 10]


def test_what_is_lost_does_not_survive_the_way_back(fine_tracker, video):
    frames, labels = video
    fine_tracker.start(frames[0], labels[0])
    fine_tracker.step(frames[1])
    assert min(fine_tracker.survival().values()) > 0.6
    hidden = frames[2].copy()
    hidden[labels[2] == 1] = frames[2][0, -1]
    fine_tracker.step(hidden)
    for _ in range(6):
        fine_tracker.step(hidden)
    survival = fine_tracker.survival()
    assert survival[1] < 0.4 < survival[2]


@pytest.mark.parametrize("when", ["passed", "not come yet"])
def test_a_mask_for_another_frame(fine_tracker, video, when):
    frames, labels = video
    fine_tracker.start(frames[0], labels[0])
    fine_tracker.step(frames[1])
    number = 0 if when == "passed" else 5
    with pytest.raises(MaskError) as error:
        fine_tracker.add(labels[0], frame=number)
    assert f"the mask is for frame {number}, but the last frame was 1" in str(error.value)
    assert when in str(error.value)
    assert "give all of them to track_references" in str(error.value)
    fine_tracker.add(labels[1], frame=1)


def test_bad_calls_lose_nothing(fine_tracker, video):
    frames, labels = video
    for call in (
        lambda: fine_tracker.step(frames[0]),
        lambda: fine_tracker.add(labels[0]),
        fine_tracker.confidence,
        fine_tracker.survival,
    ):
        with pytest.raises(MaskError, match=r"call start\(frame, mask\) first"):
            call()
    fine_tracker.start(frames[0], labels[0])
    with pytest.raises(MaskError, match="holds no object"):
        fine_tracker.start(frames[0], np.zeros((HEIGHT, WIDTH), np.uint8))
    with pytest.raises(VideoError, match="frame 1 is 9x9"):
        fine_tracker.step(np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(MaskError, match="the mask of frame 0 is 9x9"):
        fine_tracker.add(np.ones((9, 9), np.uint8))
    expected = list(fine_tracker.track(frames[:2], {0: labels[0]}))[1]
    np.testing.assert_array_equal(fine_tracker.step(frames[1]), expected)


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


def test_questions_before_the_first_mask(fine_tracker, video):
    """Of a video whose mask comes later; what follows is not disturbed."""
    frames, masks = video
    expected = list(fine_tracker.track(frames, {2: masks[0]}))
    results = fine_tracker.track(frames, {2: masks[0]})
    found = [next(results)]
    assert not fine_tracker.confidence().any()
    assert fine_tracker.survival() == {}
    with pytest.raises(MaskError, match="no mask came before it"):
        fine_tracker.add(masks[0])
    np.testing.assert_array_equal([*found, *results], expected)


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("at", [0, 1])
def test_a_mask_added_twice_is_a_mask_added_once(backbone, name, at, video):
    """On the frame of the start and on a later one: results, confidence and what follows."""
    frames, labels = video
    protocol = get_protocol(name, layer=1, size_multiple=None, **small_sizes(name))
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
    protocol = get_protocol(name, layer=1, size_multiple=None, **small_sizes(name))
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


def test_a_later_mask_replaces_the_objects_that_it_holds(fine_tracker, video):
    """Object 4, wholly covered by what comes later, is gone; 1 is where it was given last."""
    frames, labels = video
    fine_tracker.start(frames[0], labels[0])
    fine_tracker.step(frames[1])
    wrong = np.zeros_like(labels[1])
    wrong[26:40, 4:18] = 1
    wrong[2:4, 2:4] = 4
    fine_tracker.add(wrong)
    right = only(labels[1], 1)
    right[:6, :10] = 1
    result = fine_tracker.add(right)
    np.testing.assert_array_equal(result == 1, right == 1)
    assert not (result == 4).any()
    assert (result == 2).any()
    assert not (fine_tracker.step(frames[2]) == 4).any()


def noise(num_frames: int, *, seed: int = 0) -> list[np.ndarray]:
    """A still video of 64 x 80 pixels."""
    frame = np.random.default_rng(seed).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    return [frame] * num_frames


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_an_object_of_three_pixels_is_named_once_and_never_survives(backbone, caplog):
    mask = np.zeros((64, 80), dtype=np.uint8)
    mask[20:40, 20:40] = 1
    mask[49, 49:52] = 7
    protocol = get_protocol("dino", layer=1, short_side=64, size_multiple=None)
    tracker = Tracker(backbone, protocol=protocol)
    *_, last = tracker.track(noise(4), {0: mask}, name="bear")
    assert 7 not in last and 1 in last
    (line,) = warnings(caplog)
    assert line.startswith("bear: object 7 in frame 0 is too small") and "short_side" in line
    survival = tracker.survival()
    assert survival[7] == 0.0 and survival[1] > 0.9


def test_ino_near_keeps_a_still_object_of_three_pixels(backbone, caplog):
    mask = np.zeros((64, 80), dtype=np.uint8)
    mask[20:40, 20:40] = 1
    mask[49, 49:52] = 7
    mask[49, 58:61] = 8
    protocol = get_protocol("ino-near", layer=1, short_side=64, size_multiple=None)
    tracker = Tracker(backbone, protocol=protocol)
    *_, last = tracker.track(noise(6), {0: mask})
    assert warnings(caplog) == []
    assert (last[mask == 7] == 7).all() and (last[mask == 8] == 8).all()
    assert min(tracker.survival().values()) == 1.0


def test_an_object_that_vanishes_or_fills_the_frame_is_named_once(tracker, video, caplog):
    gray = np.full((64, 80, 3), 90, dtype=np.uint8)
    red, mask = gray.copy(), np.zeros((64, 80), dtype=np.uint8)
    red[16:32, 16:32], mask[16:32, 16:32] = (230, 20, 20), 1
    *_, last = tracker.track([red, red, gray, gray], {0: mask})
    assert not last.any()
    (line,) = warnings(caplog)
    assert line.startswith("object 1 in frame 2 has no pixel")
    assert tracker.survival() == {1: 0.0}
    caplog.clear()
    quiet = Tracker(ColorBackbone(), protocol=get_protocol("ino-davis", short_side=64), warns=False)
    list(quiet.track([red, red, gray, gray], {0: mask}))
    assert warnings(caplog) == []
    list(tracker.track(video[0][:3], {0: np.ones((HEIGHT, WIDTH), dtype=np.uint8)}))
    assert warnings(caplog) == [
        "object 1 in frame 0 fills the frame, and the background has no pixel"
    ]


def test_the_protocol_that_suits_the_weights_is_taken():
    assert Tracker("ino_vitt8").protocol == get_protocol("ino-default")
    assert Tracker(load_backbone("color")).protocol.name == "ino-davis"


@pytest.mark.parametrize("kind", ["int64", "uint16", "torch", "torch64"])
def test_masks_and_frames_of_other_kinds(tracker, video, kind):
    frames, labels = video
    expected = list(tracker.track(frames, {0: labels[0]}))
    if kind.startswith("torch"):
        mask = torch.from_numpy(labels[0])
        mask = mask.long() if kind == "torch64" else mask
        given = torch.from_numpy(np.stack(frames))
    else:
        mask, given = labels[0].astype(kind), frames
    np.testing.assert_array_equal(list(tracker.track(given, {0: mask})), expected)
    found = [one.labels for one in tracker.track_references(given, {0: mask})]
    np.testing.assert_array_equal(found, expected)
    tracker.start(given[0], mask)
    np.testing.assert_array_equal(tracker.step(given[1]), expected[1])


def test_a_mask_of_truth_values_is_one_object(tracker, video):
    frames, labels = video
    expected = list(tracker.track(frames[:3], {0: (labels[0] == 1).astype(np.uint8)}))
    found = list(tracker.track(frames[:3], {0: labels[0] == 1}))
    np.testing.assert_array_equal(found, expected)
    assert found[0].dtype == np.uint8


@pytest.mark.parametrize("protocol", ["ino-davis", "mast"])
def test_a_removed_object_is_background_and_its_number_is_free(backbone, video, protocol):
    frames, labels = video
    tracker = Tracker(backbone, protocol=get_protocol(protocol, layer=1, short_side=4 * HEIGHT))
    *_, plain = tracker.track(frames[:4], {0: labels[0]})
    tracker.start(frames[0], labels[0])
    tracker.step(frames[1])
    assert set(np.unique(tracker.remove(1))) == {0, 2}
    results = [tracker.step(frame) for frame in frames[2:4]]
    np.testing.assert_array_equal(results[-1], np.where(plain == 1, 0, plain))
    assert set(tracker.survival()) == {2}
    again = tracker.add(np.where(labels[3] == 1, labels[3], 0).astype(np.uint8))
    assert set(np.unique(again)) == {0, 1, 2}
    assert {0, 1, 2} >= set(np.unique(tracker.step(frames[4]))) > {0}
    with pytest.raises(MaskError, match="no object 7"):
        tracker.remove(7)


def test_two_threads_need_a_tracker_each(backbone, video):
    frames, labels = video
    within, leave = threading.Event(), threading.Event()

    class Slow(type(backbone)):
        def forward(self, images, *, layer):
            within.set()
            leave.wait(10)
            return super().forward(images, layer=layer)

    network = Slow()
    protocol = get_protocol("ino-ytvos", layer=1, radius=3)
    shared, other = (Tracker(network, protocol=protocol) for _ in range(2))
    results = []
    thread = threading.Thread(target=lambda: results.append(shared.start(frames[0], labels[0])))
    thread.start()
    within.wait(10)
    try:
        with pytest.raises(InoError, match="a Tracker for each"):
            shared.start(frames[1], labels[1])
        with pytest.raises(InoError, match="a Tracker for each"):
            next(shared.track(frames, {0: labels[0]}))
    finally:
        leave.set()
        thread.join()
    np.testing.assert_array_equal(results[0], labels[0])
    np.testing.assert_array_equal(other.start(frames[0], labels[0]), labels[0])
    np.testing.assert_array_equal(shared.start(frames[0], labels[0]), labels[0])


@pytest.mark.parametrize("batch", [3, 20])
@pytest.mark.parametrize("name", ["ino-davis", "ino-near", "dul", "ino-fast"])
def test_batches_change_nothing(backbone, video, batch, name):
    """Also where an object enters later, and where labels are needed at once (ino-fast)."""
    frames, labels = video
    protocol = get_protocol(name, short_side=2 * HEIGHT, layer=1)
    masks = {1: only(labels[1], 1), 4: labels[4]}
    whole, batched = (
        list(Tracker(backbone, protocol=protocol, warns=False).track(frames, masks, batch=count))
        for count in (1, batch)
    )
    assert len(batched) == len(frames)
    for one, other in zip(batched, whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_batch_does_not_wait_for_its_labels(backbone, video, monkeypatch):
    """The features of the next frames are computed before label maps are read."""
    frames, labels = video
    order = []
    begin, finish = Session.begin, Session.finish

    def note(name, method):
        def noted(self, value):
            order.append(name)
            return method(self, value)

        return noted

    monkeypatch.setattr(Session, "begin", note("begin", begin))
    monkeypatch.setattr(Session, "finish", note("finish", finish))
    tracker = Tracker(backbone, protocol=get_protocol("ino-near", short_side=48, layer=1))
    assert len(list(tracker.track(frames[:7], {0: labels[0]}, batch=2))) == 7
    assert order == ["begin", "begin", "finish", "begin", "finish", "finish"]
    assert [call[0][0] for call in backbone.calls] == [1, 2, 2, 2]


@pytest.mark.parametrize("name", ["ino-davis", "ino-fast"])
def test_reading_ahead_changes_nothing(backbone, video, name):
    frames, labels = video
    protocol = get_protocol(name, short_side=4 * HEIGHT, layer=1)
    masks = {1: only(labels[1], 1), 4: labels[4]}
    plain, ahead = (
        list(Tracker(backbone, protocol=protocol, warns=False).track(frames, masks, ahead=one))
        for one in (False, True)
    )
    np.testing.assert_array_equal(plain, ahead)


def test_a_frame_is_read_while_the_one_before_it_is_labeled(backbone, video, monkeypatch):
    frames, labels = video
    order = []
    read, advance = Session.read, Session._advance

    def noted(self, frame, number, *rest):
        order.append((number, threading.current_thread() is threading.main_thread()))
        return read(self, frame, number, *rest)

    def slow(self, *values):
        sleep(0.05)
        order.append("labeled")
        return advance(self, *values)

    monkeypatch.setattr(Session, "read", noted)
    monkeypatch.setattr(Session, "_advance", slow)
    tracker = Tracker(backbone, protocol=get_protocol("ino-near", short_side=48, layer=1))
    assert len(list(tracker.track(frames[:4], {0: labels[0]}, ahead=True))) == 4
    # The metric may follow from the first mask.
    assert order[:2] == [(0, True), "labeled"]
    assert set(order[2:]) == {(1, True), (2, False), (3, False), "labeled"}
    assert order.index((3, False)) < len(order) - 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["ino-davis", "ino-near", "dinov3"])
def test_a_batch_waits_for_nothing_on_the_gpu(video, monkeypatch, name):
    frames, labels = video
    begin, begun = Session.begin, []

    def strict(self, frames):
        begun.append(len(frames))
        if len(begun) > 1:  # the first may wait for libraries to load, and compiles
            torch.cuda.set_sync_debug_mode("error")
        try:
            return begin(self, frames)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Session, "begin", strict)
    protocol = get_protocol(name, short_side=64, radius=3, num_context=3)
    tracker = Tracker(load_backbone("random:vit_nano/8"), protocol=protocol, device="cuda")
    assert len(list(tracker.track(frames, {0: labels[0]}, batch=2))) == len(frames)
    assert len(begun) > 2


@pytest.mark.parametrize("how", [{"batch": 2}, {"ahead": True}])
@pytest.mark.parametrize("broken", [3, 4, 5])
def test_what_comes_before_a_broken_frame_is_kept(backbone, video, broken, how):
    frames, labels = video
    frames = [*frames[:broken], frames[broken][:-1], *frames[broken + 1 :]]
    protocol = get_protocol("ino-near", short_side=48, layer=1)
    results = Tracker(backbone, protocol=protocol).track(frames, {0: labels[0]}, **how)
    assert len([next(results) for _ in range(broken)]) == broken
    with pytest.raises(VideoError, match=f"frame {broken} is"):
        next(results)


def test_a_batch_names_the_frame_with_broken_features(video):
    class Broken(nn.Module):
        stride, mean, std = 8, (0.0,) * 3, (1.0,) * 3

        def forward(self, images, *, layer):
            features = nn.functional.avg_pool2d(images, 8)
            if len(images) > 1:
                features[1] *= float("nan")
            return features

    frames, labels = video
    protocol = get_protocol("ino-davis", short_side=48, layer=None)
    with pytest.raises(InoError, match="features of frame 2 hold"):
        list(Tracker(Broken(), protocol=protocol).track(frames, {0: labels[0]}, batch=3))


def test_a_batch_of_nothing_is_refused(tracker, video):
    with pytest.raises(ConfigError, match="batch is 0"):
        tracker.track(video[0], {0: video[1][0]}, batch=0)
