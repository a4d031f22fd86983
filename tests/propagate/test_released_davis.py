"""The released code's masks of 12 real frames, reproduced from frames to PNG and from features."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ino.models.backbone import RELEASED_STD, VitBackbone
from ino.models.vit import VisionTransformer
from ino.propagate.features import FeatureExtractor
from ino.propagate.labels import harden_labels, soften_labels
from ino.propagate.propagator import Propagator
from ino.propagate.protocols import get_protocol
from ino.propagate.tracker import Tracker

pytestmark = pytest.mark.real

# folder: block that is read, of 4, and radius
CASES = {
    "davis_dog_s120_r40_layer1": (4, 40),
    "davis_dog_s120_r4_layer1": (4, 4),
    "davis_dog_s120_r12_layer2": (3, 12),
}


@pytest.fixture
def backbone(golden):
    vit = VisionTransformer(embed_dim=48, num_heads=3, depth=4)
    weights = golden("vit_tiny48_weights")
    vit.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    return VitBackbone(vit, std=RELEASED_STD)


@pytest.fixture
def frames(shared_data):
    folder = shared_data / "davis" / "JPEGImages" / "480p" / "dog"
    return [np.array(Image.open(folder / f"{time:05d}.jpg")) for time in range(12)]


@pytest.fixture
def released(shared_golden):
    def load(case):
        folder = shared_golden / case
        masks = [np.array(Image.open(folder / f"{time:05d}.png")) for time in range(12)]
        return masks, dict(np.load(folder / "soft.npz"))

    return load


def case_protocol(case):
    layer, radius = CASES[case]
    return get_protocol("ino-davis", short_side=120, layer=layer, radius=radius)


def check_propagation(features, protocol, masks, soft):
    propagator = Propagator(protocol)
    for time, feature_map in enumerate(features):
        new = soften_labels(masks[0], ids=[0, 1], grid=(15, 26)) if time == 0 else None
        found = propagator.step(feature_map, new)
        if time > 0:
            expected = torch.from_numpy(soft[time - 1]).permute(1, 2, 0)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
            labels = harden_labels(found, ids=[0, 1], stride=8, size=masks[0].shape, normalize=True)
            assert np.count_nonzero(labels != masks[time]) == 0


def test_input_of_the_network(backbone, frames, released):
    _, numbers = released("davis_dog_s120_r40_layer1")
    extractor = FeatureExtractor(backbone, protocol=case_protocol("davis_dog_s120_r40_layer1"))
    expected = torch.from_numpy(numbers["frame0"])
    torch.testing.assert_close(extractor.prepare(frames[0])[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["davis_dog_s120_r40_layer1", "davis_dog_s120_r4_layer1"])
def test_propagation_of_released_features(released, case):
    _, numbers = released("davis_dog_s120_r40_layer1")
    features = F.normalize(torch.from_numpy(numbers["feats"]).permute(0, 2, 3, 1), dim=-1)
    masks, case_numbers = released(case)
    check_propagation(features, case_protocol(case), masks, case_numbers["soft"])


@pytest.mark.parametrize("case", CASES)
def test_soft_labels_of_real_frames(backbone, frames, released, case):
    masks, numbers = released(case)
    protocol = case_protocol(case)
    extractor = FeatureExtractor(backbone.eval(), protocol=protocol)
    check_propagation(map(extractor, frames), protocol, masks, numbers["soft"])


@pytest.mark.parametrize("case", CASES)
def test_tracker_on_real_frames(backbone, frames, released, case):
    masks, _ = released(case)
    tracker = Tracker(backbone, protocol=case_protocol(case))
    results = list(tracker.track(frames, {0: masks[0]}))
    differing = [np.count_nonzero(a != b) for a, b in zip(results, masks, strict=True)]
    assert differing == [0] * 12
