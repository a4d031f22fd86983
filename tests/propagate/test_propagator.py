import gc
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ino.kernels.topk import Window
from ino.propagate.affinity import best_positions, propagate_labels
from ino.propagate.labels import harden_labels, soften_labels
from ino.propagate.propagator import Propagator
from ino.propagate.protocols import PROTOCOLS, get_protocol


def random_video(num_frames, height, width, *, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(num_frames, height, width, dim, generator=generator, dtype=torch.float64)
    return F.normalize(values, dim=-1)


def random_labels(height, width, *, num_channels, scale=1.0, seed=0):
    """Channels that sum to `scale` at each position."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(height, width, num_channels, generator=generator, dtype=torch.float64)
    return scale * logits.softmax(dim=-1)


@pytest.mark.parametrize(
    "tag",
    [
        "r3_k5_two",
        "r12_k5_two",
        "r12_k10_two",
        "r40_k5_two",
        "r3_k5_late",
        "r12_k5_late",
        "r40_k5_late",
    ],
)
def test_released_code_on_random_features(golden, tag):
    """Soft maps and every pixel of the masks; `late`: object 3 enters with frame 5."""
    numbers = golden("prop_random")
    radius, topk, kind = tag.split("_")
    protocol = get_protocol("ino-davis", radius=int(radius[1:]), topk=int(topk[1:]))
    features = F.normalize(torch.from_numpy(numbers["feats_f16"]), dim=-1).view(-1, 15, 20, 16)
    given_masks = {0: ("gt0", [0, 1, 2])}
    if kind == "late":
        given_masks[5] = ("gt5", [3])
    propagator = Propagator(protocol)
    ids: list[int] = []
    for time, feature_map in enumerate(features):
        new = None
        if time in given_masks:
            name, new_ids = given_masks[time]
            new = soften_labels(numbers[name], ids=new_ids, grid=(15, 20))
            ids += new_ids
        soft = propagator.step(feature_map, new)
        if time == 0:
            continue
        expected = torch.from_numpy(numbers[f"{tag}_soft"][time - 1]).permute(1, 2, 0)
        torch.testing.assert_close(soft, expected[..., : len(ids)], rtol=0, atol=1e-5)
        labels = harden_labels(soft, ids=ids, stride=8, size=(123, 167), normalize=True)
        assert np.count_nonzero(labels != numbers[f"{tag}_masks"][time]) == 0


def plain_propagation(features, given, *, topk, num_context, radius):
    """Soft labels of every frame, all channels in each, by the plain definition.

    `given` holds, by frame, the soft labels of the channels that this frame introduces.
    """
    num_channels = sum(new.shape[-1] for new in given.values())
    owned: dict[int, slice] = {}
    results: list[torch.Tensor] = []
    for time, query in enumerate(features):
        result = query.new_zeros(*query.shape[:2], num_channels)
        for reference, channels in owned.items():
            previous = [i for i in range(time - num_context, time) if i > reference]
            context = [reference, *previous]
            keys, labels = ([maps[i] for i in context] for maps in (features, results))
            found = best_positions(query, keys, topk=topk, window=Window(radius))
            predicted = propagate_labels(found, labels, topk=topk, temperature=0.1)
            result[..., channels] = predicted[..., channels]
        if time in given:
            first = max((channels.stop for channels in owned.values()), default=0)
            owned[time] = slice(first, first + given[time].shape[-1])
            result *= 1 - given[time].sum(dim=-1, keepdim=True)
            result[..., owned[time]] = given[time]
        results.append(result)
    return results


@settings(max_examples=20, deadline=None)
@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    topk=st.integers(1, 6),
    num_context=st.integers(0, 4),
    radius=st.none() | st.integers(0, 4),
    entries=st.sets(st.integers(1, 8), max_size=3),
    max_bytes=st.integers(1, 10_000),
    screening=st.booleans(),
)
def test_a_video_equals_the_plain_definition(
    height, width, topk, num_context, radius, entries, max_bytes, screening
):
    """Several references at any times, and fewer frames than the context holds, or more."""
    features = random_video(9, height, width)
    new = {0: random_labels(height, width, num_channels=3)}
    for time in sorted(entries):
        new[time] = random_labels(height, width, num_channels=2, scale=0.7, seed=time)
    protocol = get_protocol("ino-davis", topk=topk, num_context=num_context, radius=radius)
    propagator = Propagator(protocol, screening=screening, max_bytes=max_bytes)
    expected = plain_propagation(features, new, topk=topk, num_context=num_context, radius=radius)
    for time, feature_map in enumerate(features):
        soft = propagator.step(feature_map, new.get(time))
        known = soft.shape[-1]
        torch.testing.assert_close(soft, expected[time][..., :known], rtol=0, atol=1e-12)
        assert not expected[time][..., known:].any()


def test_channels_of_one_reference_sum_to_one():
    propagator = Propagator(get_protocol("ino-davis", radius=2))
    features = random_video(14, 5, 7)
    new = random_labels(5, 7, num_channels=60)
    for time, feature_map in enumerate(features):
        soft = propagator.step(feature_map, new if time == 0 else None)
        torch.testing.assert_close(soft.sum(dim=-1), torch.ones(5, 7, dtype=torch.float64))


def test_order_of_channels_does_not_matter():
    order = torch.tensor([0, 3, 1, 2])
    features = random_video(6, 4, 5)
    new = random_labels(4, 5, num_channels=4)
    one, other = (Propagator(get_protocol("ino-davis", radius=3)) for _ in range(2))
    for time, feature_map in enumerate(features):
        soft = one.step(feature_map, new if time == 0 else None)
        permuted = other.step(feature_map, new[..., order] if time == 0 else None)
        torch.testing.assert_close(permuted, soft[..., order])


@pytest.mark.parametrize("name", PROTOCOLS)
def test_empty_channels_do_not_matter(name):
    """The released codes of MAST and CorrFlow always have 7 and 16 channels."""
    features = random_video(4, 5, 6)
    new = random_labels(5, 6, num_channels=3)
    more = torch.cat([new, torch.zeros(5, 6, 4, dtype=torch.float64)], dim=-1)
    one, other = (Propagator(get_protocol(name)) for _ in range(2))
    for time, feature_map in enumerate(features):
        soft = one.step(feature_map, new if time == 0 else None)
        wide = other.step(feature_map, more if time == 0 else None)
        torch.testing.assert_close(wide[..., :3], soft)
        assert not wide[..., 3:].any()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_late_object_is_propagated_from_its_own_reference_alone(name):
    """Its channel is that of a video that begins where it enters."""
    features = random_video(9, 5, 6)
    new = {
        0: random_labels(5, 6, num_channels=2),
        3: random_labels(5, 6, num_channels=2, seed=3)[..., 1:],
    }
    whole, late = (Propagator(get_protocol(name)) for _ in range(2))
    for time, feature_map in enumerate(features):
        soft = whole.step(feature_map, new.get(time))
        if time >= 3:
            alone = late.step(feature_map, new.get(time))
            torch.testing.assert_close(soft[..., 2:], alone, rtol=0, atol=1e-12)


def test_positions_scaled_are_results_and_labels_of_the_reference_only():
    """CRW's --norm_mask: neither its copies nor what other frames pass on is scaled."""
    protocol = get_protocol("crw", grid_normalization="positions", radius=1, num_context=2)
    features = torch.eye(3, dtype=torch.float64)[None]  # a row of three, each its own best match
    new = torch.tensor([0.5, 0.4, 0.1], dtype=torch.float64).expand(1, 3, 3)
    scaled = torch.tensor([1.0, 0.75, 0.0], dtype=torch.float64).expand(1, 3, 3)
    propagator = Propagator(protocol)
    torch.testing.assert_close(propagator.step(features, new), scaled)
    (reference,) = propagator.memory.references
    shown, copies = propagator.memory.context(reference)
    torch.testing.assert_close(shown.frame.soft, scaled)
    torch.testing.assert_close(copies.frame.soft, new)
    # Three equal matches: the reference and its two copies. All else lies far below.
    passed_on = (scaled + 2 * new) / 3
    found = propagator.step(features)
    low, high = passed_on.amin(dim=-1, keepdim=True), passed_on.amax(dim=-1, keepdim=True)
    torch.testing.assert_close(found, (passed_on - low) / (high - low), rtol=0, atol=1e-6)
    *_, last = propagator.memory.context(reference)
    torch.testing.assert_close(last.frame.soft, passed_on, rtol=0, atol=1e-6)


def test_fed_back_labels_are_what_later_frames_take():
    propagator = Propagator(get_protocol("corrflow", radius=0))
    feature_map = torch.ones(2, 2, 3, dtype=torch.float64)
    propagator.step(feature_map, torch.zeros(2, 2, 2, dtype=torch.float64))
    labels = torch.tensor([0.25, 0.75], dtype=torch.float64).expand(2, 2, 2)
    propagator.feed_back(labels)
    assert (propagator.step(feature_map) == labels).all()


def test_new_objects_overwrite_the_prediction_and_are_fed_back():
    features = random_video(4, 3, 4)
    propagator = Propagator(get_protocol("ino-davis", topk=1, num_context=1, radius=0))
    propagator.step(features[0], torch.ones(3, 4, 1, dtype=torch.float64))
    propagator.step(features[1], torch.full((3, 4, 1), 0.25, dtype=torch.float64))
    overwritten = propagator.memory.context(propagator.memory.references[0])[-1].frame.soft
    assert (overwritten == torch.tensor([0.75, 0.25])).all()
    # Frame 2 is frame 1 again, so the best position of the older reference is there, too.
    soft = propagator.step(features[1])
    assert (soft == torch.tensor([0.75, 0.25])).all()


def test_stored_maps_do_not_grow_with_the_video():
    propagator = Propagator(get_protocol("ino-davis", num_context=3, radius=1))
    alive: list[weakref.ref] = []
    for time in range(40):
        feature_map = random_video(1, 3, 3, seed=time)[0]
        new = random_labels(3, 3, num_channels=2, scale=0.5) if time in (0, 20) else None
        alive.append(weakref.ref(propagator.step(feature_map, new)))
    gc.collect()
    kept = [time for time, reference in enumerate(alive) if reference() is not None]
    assert kept == [0, 20, 37, 38, 39]
