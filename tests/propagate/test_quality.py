"""The qualities fast, default and best, and the protocols that they choose."""

from typing import get_args

import numpy as np
import pytest
import torch

from ino.errors import ConfigError
from ino.models.load import load_backbone
from ino.propagate.features import FeatureExtractor
from ino.propagate.labels import soften_labels
from ino.propagate.protocols import Quality, get_protocol, protocol_for
from ino.propagate.tracker import Tracker, usual_precision
from propagate.moving_squares import iou, moving_squares


@pytest.fixture(scope="module")
def bundled():
    return load_backbone("ino_vitt8")


@pytest.fixture(scope="module")
def squares():
    frames, labels = zip(*moving_squares(5, height=48, width=72), strict=True)
    return list(frames), list(labels)


def test_the_qualities_of_the_weights_that_come_with_ino(bundled):
    for quality in get_args(Quality):
        tracker = Tracker(bundled, quality=quality)
        assert tracker.protocol == get_protocol(f"ino-{quality}")
        assert tracker.precision == usual_precision(quality, "cpu")
    assert Tracker(bundled).protocol == get_protocol("ino-default")
    assert Tracker(bundled).precision == usual_precision("default", "cpu")
    assert Tracker(bundled, protocol="ino-near").precision == "fp32"


def test_those_of_other_weights():
    usual = get_protocol("dino")
    assert protocol_for("dino", "default") == usual
    changed = {"flow_share", "feedback", "mask_down"}
    best, fast = (protocol_for("dino", one).as_dict() for one in ("best", "fast"))
    assert {key for key, value in best.items() if value != usual.as_dict()[key]} == changed
    assert (fast["short_side"], fast["radius"]) == (320, 8)
    with pytest.raises(ConfigError, match="quality fast does not go with protocol mast"):
        protocol_for("mast", "fast")


@pytest.mark.parametrize("quality", get_args(Quality))
def test_they_run_and_two_runs_are_equal(bundled, squares, quality):
    frames, labels = squares
    protocol = protocol_for("ino-near", quality, short_side=64)
    results = [
        list(Tracker(bundled, protocol=protocol).track(frames, {0: labels[0]})) for _ in range(2)
    ]
    assert all((one == other).all() for one, other in zip(*results, strict=True))
    assert (results[0][0] == labels[0]).all()
    assert min(iou(results[0][-1], labels[-1], label) for label in (1, 2)) > 0.5


def test_what_is_passed_on(bundled, squares):
    """Hard: the label map, reduced. Refined: values of pixels, in which all labels share."""
    frames, labels = squares
    for feedback in ("hard", "refined"):
        protocol = get_protocol("ino-fast", short_side=48, feedback=feedback)
        tracker = Tracker(bundled, protocol=protocol)
        tracker.start(frames[0], labels[0])
        found = tracker.step(frames[1])
        state = tracker.state()["propagator"]["memory"]
        passed_on = state["frames"][state["latest"]][2]
        rows, columns, _ = passed_on.shape
        reduced = soften_labels(
            found, ids=[0, 1, 2], grid=(rows, columns), method="area", device="cpu"
        )
        assert torch.equal(passed_on, reduced) == (feedback == "hard")
        assert passed_on.argmax(dim=-1).eq(reduced.argmax(dim=-1)).float().mean() > 0.9
        assert passed_on.sum(dim=-1).sub(1).abs().max() < 1e-5


def test_only_what_is_near_the_objects_is_computed(bundled):
    """Far from the edge of what is computed, features are as if all of the frame was."""
    extractor = FeatureExtractor(bundled, protocol=get_protocol("ino-fast", short_side=128))
    frame = np.random.default_rng(0).integers(0, 256, (128, 320, 3), dtype=np.uint8)
    assert extractor.grid((128, 320)) == (16, 40)
    whole, part = extractor(frame), extractor(frame, (slice(0, 16), slice(8, 32)))
    assert not part[:, :8].any() and not part[:, 32:].any()
    assert (whole - part)[:, 16:24].abs().max() < 0.1 * whole.std()


def test_a_part_has_the_positions_of_the_whole(bundled):
    patches = torch.randn(1, 6, 10, 192, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = bundled.vit._pos_embed(patches)
        part = bundled.vit._pos_embed(patches[:, 2:5, 3:9], (6, 10, 2, 3))
    assert (part[:, 0] == whole[:, 0]).all()
    assert (part[:, 1:] == whole[:, 1:].view(1, 6, 10, 192)[:, 2:5, 3:9].flatten(1, 2)).all()


def test_a_metric_is_learned_from_the_first_mask(bundled, squares):
    frames, labels = squares
    fields = {"short_side": 64, "flow_share": 0.0, "feedback": "soft"}
    fields |= {"temperature": 0.2, "layer": None}
    with_metric, without = (
        Tracker(bundled, protocol=get_protocol("ino-best", learned_metric=one, **fields))
        for one in (True, False)
    )
    found = list(with_metric.track(frames, {0: labels[0]}))
    assert iou(found[-1], labels[-1], 1) > iou(
        list(without.track(frames, {0: labels[0]}))[-1], labels[-1], 1
    )
    references = with_metric.track_references(frames, {0: labels[0]})
    assert all((one.labels == other).all() for one, other in zip(references, found, strict=True))


def test_a_large_margin_changes_nothing(bundled, squares):
    frames, labels = squares
    results = [
        list(
            Tracker(
                bundled, protocol=get_protocol("ino-fast", short_side=64, zoom_margin=margin)
            ).track(frames, {0: labels[0]})
        )
        for margin in (None, 40)
    ]
    assert all((one == other).all() for one, other in zip(*results, strict=True))


def test_the_next_frame_is_computed_near_the_labels_before_the_last_ones(bundled):
    """So that it may be computed while the last one is labeled; after a mask, near that mask."""
    small, masks = zip(*[*moving_squares(24, height=48, width=80)][::3], strict=True)
    frames, mask = np.stack(small).repeat(4, axis=1).repeat(4, axis=2), (masks[0] == 1).repeat(4, 0)
    protocol = get_protocol("ino-fast", short_side=192, zoom_margin=1, attention_side=4)
    tracker = Tracker(bundled, protocol=protocol)
    results = tracker.track(frames, {0: mask.repeat(4, 1)})
    found = [(one, tracker.state()["place"]) for one in results]
    assert found[0][1] is None
    spans = []
    for (seen, _), (_, place) in zip(found, found[2:], strict=False):
        first, last = np.flatnonzero(seen.any(axis=0))[[0, -1]] // 8
        spans.append((max(0, first - 1) // 8 * 8, -(-(last + 2) // 8) * 8))
        assert place[1] == spans[-1]
    assert len(set(spans)) > 1


def test_features_that_were_begun_without_an_added_object_are_not_used(bundled):
    frames = np.random.default_rng(1).integers(0, 256, (1, 64, 256, 3), dtype=np.uint8)
    mask, drawn = np.zeros((2, 64, 256), dtype=np.uint8)
    mask[24:40, 16:32], drawn[24:40, 200:216] = 1, 2
    protocol = get_protocol("ino-fast", short_side=64, zoom_margin=1, flow_share=0.0)
    found = []
    for ahead in (False, True):
        tracker = Tracker(bundled, protocol=protocol)
        results = tracker.track(frames.repeat(5, axis=0), {0: mask}, ahead=ahead)
        for _ in range(3):
            next(results)
        tracker.add(drawn)
        found.append(next(results))
    assert iou(found[0], drawn, 2) > 0.5
    np.testing.assert_array_equal(*found)


def test_an_object_is_drawn_where_nothing_was_computed(bundled):
    frames = np.random.default_rng(1).integers(0, 256, (3, 64, 256, 3), dtype=np.uint8)
    frames[1:] = frames[0]
    mask = np.zeros((64, 256), dtype=np.uint8)
    mask[24:40, 16:32] = 1
    tracker = Tracker(
        bundled, protocol=get_protocol("ino-fast", short_side=64, zoom_margin=1, flow_share=0.0)
    )
    tracker.start(frames[0], mask)
    tracker.step(frames[1])
    drawn = np.zeros_like(mask)
    drawn[24:40, 200:216] = 2
    tracker.add(drawn)
    assert iou(tracker.step(frames[2]), drawn, 2) > 0.5


def test_objects_that_enter_are_corrected_and_are_removed(bundled, squares):
    frames, labels = squares
    tracker = Tracker(bundled, protocol=get_protocol("ino-fast", short_side=64))
    found = list(tracker.track(frames, {0: labels[0] * (labels[0] == 1), 2: labels[2]}))
    assert (found[2] == 2).sum() == (labels[2] == 2).sum()  # as it was drawn
    tracker.start(frames[0], labels[0])
    tracker.step(frames[1])
    drawn = np.zeros_like(labels[1])
    drawn[30:40, 5:20] = 2
    corrected = tracker.add(drawn)
    assert ((corrected == 2) == (drawn == 2)).all()
    assert tracker.confidence().shape == corrected.shape
    after = tracker.step(frames[2])
    assert (after[30:40, 5:20] == 2).mean() > 0.5
    assert 1 not in tracker.remove(1) and 1 not in tracker.step(frames[3])


def test_attention_to_near_patches_is_whole_attention_where_all_are_near(bundled):
    images = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = bundled(images, layer=4)
        assert torch.allclose(bundled(images, layer=4, attention_side=14), whole, atol=1e-5)
        assert not torch.allclose(bundled(images, layer=4, attention_side=4), whole, atol=1e-2)


def test_a_patch_attends_to_its_neighborhood_alone(bundled):
    images = torch.randn(1, 3, 48, 160, generator=torch.Generator().manual_seed(0))
    changed = images.clone()
    changed[..., 120:] += 1
    with torch.no_grad():
        block = {"num_blocks": 1, "attention_side": 4}
        before, after = (bundled.vit(one, **block)[0, 1:] for one in (images, changed))
    moved = (before - after).abs().amax(dim=-1).view(6, 20).amax(dim=0) > 1e-3
    # Columns 15 to 19 changed; squares of 2 x 2 attend to one patch more on each side. The class
    # token, which all attend to, has not seen a change before its first block.
    assert moved.tolist() == [False] * 14 + [True] * 6


def test_refusals(bundled, backbone):
    with pytest.raises(ConfigError, match="both a protocol and a quality are given"):
        Tracker(bundled, protocol="ino-near", quality="fast")
    backbone.limits_attention = False
    with pytest.raises(ConfigError, match="only ino's own ViTs and color"):
        Tracker(backbone, protocol="ino-fast")
    for field, value in [("flow_share", 1.5), ("color_share", 1), ("attention_side", 1)]:
        with pytest.raises(ConfigError, match=f"{field} must be"):
            get_protocol("ino-near", **{field: value})
    with pytest.raises(ConfigError, match="masks_at must be video"):
        get_protocol("corrflow", flow_share=0.5)
    with pytest.raises(ConfigError, match="attention_side must be set"):
        get_protocol("ino-near", zoom_margin=8)
    with pytest.raises(ConfigError, match="normalize_features must be true"):
        get_protocol("ino-near", learned_metric=True, normalize_features=False)
