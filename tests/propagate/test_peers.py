"""MAST, CorrFlow, ContCorr and TimeCycle: against loops over all positions, and, the first two,
against the soft maps and masks of their released codes.

Their later frames take the mask of a frame, so a pixel that differed would show in all after it.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ino.propagate.labels import harden_labels, resize_mask, restore_mask, soften_labels
from ino.propagate.peers import PeerSettings, averaged_labels, window_labels
from ino.propagate.propagator import Propagator
from ino.propagate.protocols import get_protocol
from oracles import peer_propagation as oracle

EXACT = {"rtol": 0, "atol": 1e-11}
IDS = [0, 1, 2]


def random_frames(num_frames, height, width, *, dim=5, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    drift = rng.standard_normal((height, width, dim))
    return [
        scale * (np.roll(drift, time // 2, axis=1) + 0.5 * rng.standard_normal(drift.shape))
        for time in range(num_frames)
    ]


def random_labels(height, width, *, num_channels=3, seed=0):
    chosen = np.random.default_rng(seed).integers(0, num_channels, (height, width))
    return np.eye(num_channels)[chosen]


def propagated(protocol, features, first, *, max_bytes):
    propagator = Propagator(protocol, max_bytes=max_bytes)
    given_labels = [torch.from_numpy(first)] + [None] * (len(features) - 1)
    return [
        propagator.step(torch.from_numpy(frame), new).numpy()
        for frame, new in zip(features, given_labels, strict=True)
    ]


VIDEOS = {
    "height": st.integers(1, 5),
    "width": st.integers(1, 6),
    "topk": st.integers(1, 7),
    "num_context": st.integers(1, 4),
    "max_bytes": st.integers(1, 20_000),
    "seed": st.integers(0, 99),
}


@settings(max_examples=20, deadline=None)
@given(**VIDEOS)
def test_contcorr(height, width, topk, num_context, max_bytes, seed):
    """Features without negative numbers, as ContCorr's network gives them."""
    features = [frame.clip(0) for frame in random_frames(7, height, width, seed=seed)]
    first = random_labels(height, width, seed=seed)
    protocol = get_protocol("contcorr", topk=topk, num_context=num_context)
    # The oracle wants as many positions as k.
    expected = oracle.contcorr(
        features, first, num_context=num_context, topk=min(topk, height * width)
    )
    found = propagated(protocol, features, first, max_bytes=max_bytes)
    np.testing.assert_allclose(found, expected, **EXACT)


@settings(max_examples=20, deadline=None)
@given(**VIDEOS)
def test_timecycle(height, width, topk, num_context, max_bytes, seed):
    features = [
        frame / np.linalg.norm(frame, axis=2, keepdims=True)
        for frame in random_frames(7, height, width, seed=seed)
    ]
    first = random_labels(height, width, seed=seed)
    protocol = get_protocol("timecycle", topk=topk, num_context=num_context)
    expected = oracle.timecycle(features, first, num_context=num_context, topk=topk)
    found = propagated(protocol, features, first, max_bytes=max_bytes)
    np.testing.assert_allclose(found, expected, **EXACT)


def test_contcorr_passes_on_what_it_was_given_and_timecycle_does_not():
    features = random_frames(2, 4, 5)
    first = random_labels(4, 5)
    for name, same in (("contcorr", True), ("timecycle", False)):
        found, _ = propagated(get_protocol(name), features, first, max_bytes=1 << 20)
        assert np.array_equal(found, first) == same


def test_contcorr_s_own_example(golden):
    """The released code's labels after the reweighting, softmax and top 5 of 4 x 5 positions."""
    numbers = golden("contcorr_example")
    source, target = (
        torch.from_numpy(
            np.abs(np.random.RandomState(seed).standard_normal((16, 4, 5)).astype(np.float16))
            .astype(np.float32)
            .transpose(1, 2, 0)
        )
        for seed in (94, 95)
    )
    found = averaged_labels(
        target,
        [source],
        [torch.from_numpy(numbers["seg"]).permute(1, 2, 0)],
        [1],
        topk=5,
        temperature=1.0,
        mutual=True,
    )
    expected = torch.from_numpy(numbers["seg_propagated_topk5"]).permute(1, 2, 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_all_weights_that_equal_the_kth_count_where_affinities_are_mutual():
    """A query that resembles nothing gives every position the same weight."""
    query, key = torch.zeros(2, 3, 2), torch.ones(2, 3, 2)
    label = torch.arange(6.0).view(2, 3, 1)
    chosen = {"topk": 2, "temperature": 1.0}
    mutual = averaged_labels(query, [key], [label], [1], mutual=True, **chosen)
    torch.testing.assert_close(mutual, label.mean().expand(2, 3, 1))
    alone = averaged_labels(query, [key], [torch.ones(2, 3, 1)], [1], mutual=False, **chosen)
    torch.testing.assert_close(alone, torch.full((2, 3, 1), 2 / 6))


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 6),
    width=st.integers(1, 7),
    radius=st.integers(0, 3),
    num_frames=st.integers(1, 3),
    max_bytes=st.integers(1, 40_000),
    border=st.sampled_from(["empty", "repeated"]),
    seed=st.integers(0, 99),
)
def test_window_softmax(height, width, radius, num_frames, max_bytes, border, seed):
    """Half of the features are 0, so that some windows hold nothing but similarities of 0."""
    query, *keys = random_frames(num_frames + 1, height, width, seed=seed)
    for frame in (query, *keys):
        frame[np.random.default_rng(seed).random((height, width)) < 0.5] = 0
    labels = [random_labels(height, width, seed=seed + one) for one in range(num_frames)]
    expected = oracle.window_softmax(query, keys, labels, radius=radius, zeros=border == "empty")
    found = window_labels(
        torch.from_numpy(query),
        [torch.from_numpy(key) for key in keys],
        [torch.from_numpy(label) for label in labels],
        [1] * num_frames,
        settings=PeerSettings(border=border),
        radius=radius,
        temperature=1.0,
        max_bytes=max_bytes,
    )
    np.testing.assert_allclose(found, expected, **EXACT)


def test_what_is_left_out_of_a_window_does_not_count():
    """Windows as large as the frame, then: a softmax over the whole frame."""
    query, key = (torch.from_numpy(frame) for frame in random_frames(2, 4, 5))
    label = torch.from_numpy(random_labels(4, 5))
    found = window_labels(
        query, [key], [label], [1], settings=PeerSettings(), radius=5, temperature=0.7
    )
    weights = (query.flatten(0, 1) @ key.flatten(0, 1).T / 0.7).softmax(dim=1)
    torch.testing.assert_close(found, (weights @ label.flatten(0, 1)).view(4, 5, 3))


@pytest.mark.parametrize("aligned", [True, False])
def test_mast_with_frames_of_long_ago(aligned):
    """Ages on both sides of each step of the dilation; the search reaches beyond the frame."""
    query, *keys = random_frames(6, 7, 6, scale=0.8)
    labels = [random_labels(7, 6, seed=seed) for seed in range(5)]
    changes = {"kept": (0, 14, 16, 29), "num_context": 1, "realign_radius": 2, "radius": 2}
    protocol = get_protocol("mast", realign_corners=aligned, **changes)
    times = dict(zip((0, 14, 16, 29, 44), range(5), strict=True))
    propagator = Propagator(protocol, max_bytes=20_000)
    for time in range(45):
        one = times.get(time, 0)
        new = torch.from_numpy(labels[0]) if time == 0 else None
        propagator.step(torch.from_numpy(keys[one]), new)
        propagator.feed_back(torch.from_numpy(labels[one]))
    found = propagator.step(torch.from_numpy(query))
    ages = [45 - time for time in times]
    assert [min(4, age // 15 + 1) for age in ages] == [4, 3, 2, 2, 1]
    expected = oracle.mast(query, keys, labels, ages, radius=2, search=2, aligned=aligned)
    np.testing.assert_allclose(found, expected, **EXACT)


def with_hard_feedback(features, mask, protocol):
    """Soft labels and label maps of all frames; the mask is of the network's input."""
    propagator = Propagator(protocol)
    grid = features.shape[1:3]
    new = soften_labels(mask, ids=IDS, grid=grid, method=protocol.mask_down)
    soft, masks = propagator.step(features[0], new), [mask]
    softs = [soft]
    for feature_map in features[1:]:
        softs.append(propagator.step(feature_map))
        found = harden_labels(
            softs[-1],
            ids=IDS,
            stride=4,
            size=mask.shape,
            normalize=protocol.normalize_output,
            method=protocol.mask_up,
        )
        propagator.feed_back(soften_labels(found, ids=IDS, grid=grid, method=protocol.mask_down))
        masks.append(found)
    return torch.stack(softs), masks


MAST_CASES = [
    ("full_R12_alignTrue", {}, 1.0),
    ("full_R12_alignFalse", {"realign_corners": False}, 1.0),
    ("ref1_R12", {"kept": (0,)}, 1.0),
    ("ref2_R12", {"kept": (), "num_context": 1}, 1.0),
    ("R3", {"radius": 3}, 1.0),
    ("scale0.3_R12", {}, 0.3),
]


@pytest.mark.parametrize(("tag", "changes", "scale"), MAST_CASES, ids=[c[0] for c in MAST_CASES])
def test_mast(golden, tag, changes, scale):
    inputs, numbers = golden("propagation_inputs"), golden("propagation_mast")
    expected = torch.from_numpy(numbers[f"{tag}_soft"]).permute(0, 2, 3, 1)
    features = torch.from_numpy(inputs["feats_f16"]).view(-1, 12, 17, 16)[: len(expected) + 1]
    soft, masks = with_hard_feedback(
        scale * features, inputs["gt0_mast"], get_protocol("mast", **changes)
    )
    # The released code's sums of thousands of float32 numbers are no more exact than this.
    atol = {"full": 2e-4, "scale0.3": 2e-5}.get(tag.split("_")[0], 1e-5)
    torch.testing.assert_close(soft[1:], expected, rtol=0, atol=atol)
    np.testing.assert_array_equal(np.stack(masks), numbers[f"{tag}_masks"])


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_corrflow(golden, scale):
    """A video 70 wide, of which the network sees 64 columns; 3 are repeated on each side."""
    inputs, numbers = golden("propagation_inputs"), golden("propagation_corrflow")
    tag = f"scale{scale:g}"
    features = torch.from_numpy(inputs["feats_f16"]).view(-1, 12, 17, 16)[:12, :, :16]
    given = resize_mask(np.pad(numbers["gt0"], ((0, 0), (0, 6))), whole=(48, 70), size=(48, 64))
    np.testing.assert_array_equal(given, numbers["gt0"])
    soft, masks = with_hard_feedback(scale * features, given, get_protocol("corrflow"))
    expected = torch.from_numpy(numbers[f"{tag}_soft"]).permute(0, 2, 3, 1)
    torch.testing.assert_close(soft[1:], expected, rtol=0, atol=1e-5)
    for mask, theirs in zip(masks, numbers[f"{tag}_masks"], strict=True):
        restored = restore_mask(mask, whole=(48, 70), size=(48, 70))
        np.testing.assert_array_equal(restored, theirs)


def test_corrflow_reduces_masks_by_averaging_ids(golden):
    numbers = golden("propagation_corrflow")
    labels = numbers["prep_example_in"].astype(np.uint8)
    ids = list(range(6))
    found = soften_labels(labels, ids=ids, grid=(2, 2), method="averaged-ids").argmax(dim=-1)
    assert found.tolist() == numbers["prep_example_out_labels"].tolist()
    low = soften_labels(numbers["gt0"], ids=IDS, grid=(12, 16), method="averaged-ids")
    expected = torch.from_numpy(numbers["label0_onehot_low"]).permute(1, 2, 0).float()
    assert (low == expected[..., :3]).all()
    assert not expected[..., 3:].any()
