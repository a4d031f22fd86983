"""MAST and CorrFlow against the soft maps and masks of their released codes.

Later frames take the mask of a frame, so a pixel that differed would show in all frames after it.
"""

import numpy as np
import pytest
import torch

from ino.propagate.labels import harden_labels, resize_mask, restore_mask, soften_labels
from ino.propagate.propagator import Propagator
from ino.propagate.protocols import get_protocol

IDS = [0, 1, 2]
STRIDE = 4


def propagate(features, mask, protocol):
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
            stride=STRIDE,
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
    soft, masks = propagate(scale * features, inputs["gt0_mast"], get_protocol("mast", **changes))
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
    soft, masks = propagate(scale * features, given, get_protocol("corrflow"))
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
