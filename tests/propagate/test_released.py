"""Every protocol against the soft maps and masks of its method's released code.

The 12 frames, features and masks are those of the golden README; object 3 enters with frame 4.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ino.propagate.labels import enlarge_channel, harden_labels, soften_labels
from ino.propagate.propagator import Propagator
from ino.propagate.protocols import get_protocol

NUM_FRAMES = 12
GRID = (12, 17)

CASES = [
    *[
        ("dino", f"n{n}_r{r}", {"num_context": n, "radius": r or None})
        for n, r in ((7, 3), (7, 12), (7, 40), (7, 0), (4, 3), (4, 12), (4, 40))
    ],
    *[
        ("dinov3", f"n{n}_r{r}_{tag}", {"num_context": n, "radius": r, "window": window})
        for n, r, tag, window in (
            (7, 12, "circle", "closed-circle"),
            (4, 12, "circle", "closed-circle"),
            (7, 3, "circle", "closed-circle"),
            (7, 40, "circle", "closed-circle"),
            (7, 3, "square", "square"),
        )
    ],
    *[("crw", f"n{n}_r{r}", {"num_context": n, "radius": r}) for n in (20, 4) for r in (3, 12, 40)],
    (
        "crw",
        "n4_r3_k5_T0.07",
        {"num_context": 4, "radius": 3, "topk": 5, "temperature": 0.07},
    ),
    ("crw", "n20_r12_normmask", {"num_context": 20, "grid_normalization": "positions"}),
    *[
        ("vfs", f"n{n}_range{span}", {"num_context": n, "radius": span // 2})
        for n in (20, 4)
        for span in (6, 24, 36, 80)
    ],
    (
        "vfs",
        "n20_range6_first_unrestricted",
        {"num_context": 20, "radius": 3, "reference_windowed": False},
    ),
    ("vfs", "n4_range6_without_first", {"num_context": 4, "radius": 3, "kept": ()}),
    *[
        ("dul", f"n{n}_r{r}_{kind}", {"num_context": n, "radius": r})
        for n in (20, 4)
        for r in (3, 12, 40)
        for kind in ("two", "late")
        if (r, kind) != (40, "late")
    ],
]

STRIDES = {"dino": 16}
"""Of the released code's run; elsewhere masks do not depend on it."""


@pytest.mark.parametrize(("name", "tag", "changes"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_soft_maps_and_masks_of_the_released_code(golden, name, tag, changes):
    inputs, numbers = golden("propagation_inputs"), golden(f"propagation_{name}")
    protocol = get_protocol(name, **changes)
    features = F.normalize(torch.from_numpy(inputs["feats_f16"]), dim=-1).view(-1, *GRID, 16)
    given = {0: ("gt0", [0, 1, 2])} | ({4: ("gt4", [3])} if "late" in tag else {})
    expected = torch.from_numpy(numbers[f"{tag}_soft"]).permute(0, 2, 3, 1)
    first = NUM_FRAMES - len(expected)  # some tables leave out frame 0
    propagator = Propagator(protocol)
    ids: list[int] = []
    stride = STRIDES.get(name, 8)
    for time, feature_map in enumerate(features[:NUM_FRAMES]):
        new = None
        if time in given:
            mask, new_ids = given[time]
            new = soften_labels(inputs[mask], ids=new_ids, grid=GRID, method=protocol.mask_down)
            ids += new_ids
        soft = propagator.step(feature_map, new)
        if time < first:
            continue
        table = expected[time - first][..., : len(ids)]
        torch.testing.assert_close(soft, table, rtol=0, atol=1e-5)
        labels = harden_labels(
            soft,
            ids=ids,
            stride=stride,
            size=inputs["gt0"].shape,
            normalize=protocol.normalize_output,
            method=protocol.mask_up,
        )
        theirs = numbers[f"{tag}_masks"][time]
        assert np.count_nonzero(labels != theirs) <= 40
        for row, column in np.argwhere(labels != theirs):
            pair = [ids.index(label[row, column]) for label in (labels, theirs)]
            ours, other = values(soft[..., pair], protocol, stride, labels.shape)[:, row, column]
            assert abs(ours - other) < 1e-6, "equal but for exact ties"


def values(soft, protocol, stride, size):
    """What is compared at each pixel of a mask, channel by channel."""
    whole = protocol.mask_up != "bilinear-stride"
    compared = size if whole else (GRID[0] * stride, GRID[1] * stride)
    enlarged = [
        enlarge_channel(
            channel,
            size=compared,
            method=protocol.mask_up,
            normalize=protocol.normalize_output,
        ).numpy()
        for channel in soft.unbind(-1)
    ]
    images = [
        Image.fromarray(value).resize(size[::-1], Image.Resampling.NEAREST) for value in enlarged
    ]
    return np.stack([np.asarray(image) for image in images])
