import cv2
import numpy as np
import pytest
import torch

from ino.errors import ConfigError, VideoError
from ino.models.backbone import Backbone, Reading, warn_of_slow_bf16
from ino.propagate.features import FeatureExtractor, input_size
from ino.propagate.protocols import get_protocol


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((480, 854), 480, (480, 848)),
        ((854, 480), 480, (848, 480)),
        ((480, 910), 480, (480, 904)),
        ((1080, 1920), 480, (480, 848)),
        ((480, 854), 240, (240, 424)),
        ((480, 854), 120, (120, 208)),
        ((300, 300), 480, (480, 480)),
    ],
)
def test_davis_sizes(size, short_side, expected):
    protocol = get_protocol("ino-davis", short_side=short_side)
    assert input_size(size, protocol=protocol, stride=8) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((720, 1280), (720, 1280)),
        ((1080, 1920), (720, 1280)),
        ((816, 1920), (720, 1280)),
        ((1920, 1080), (1920, 1080)),
        ((723, 1285), (720, 1280)),
    ],
)
def test_youtube_vos_sizes(size, expected):
    assert input_size(size, protocol=get_protocol("ino-ytvos"), stride=8) == expected


def test_a_short_side_takes_precedence_over_fixed_sizes():
    protocol = get_protocol("ino-ytvos", short_side=240)
    assert input_size((816, 1920), protocol=protocol, stride=8) == (240, 560)


def test_another_multiple():
    protocol = get_protocol("ino-davis", size_multiple=64)
    assert input_size((480, 854), protocol=protocol, stride=8) == (448, 832)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        # The released codes' own sizes.
        *[("dino", size, (480, 832)) for size in ((480, 854), (1080, 1920), (360, 640))],
        ("dino", (480, 910), (480, 896)),
        ("dino", (854, 480), (832, 480)),
        ("dino", (480, 480), (480, 448)),
        ("dinov3", (480, 854), (960, 1712)),
        ("dinov3", (480, 910), (960, 1824)),
        ("dinov3", (854, 480), (1712, 960)),
        ("dinov3", (1080, 1920), (960, 1712)),
        *[("contcorr", size, (560, 960)) for size in ((480, 854), (1080, 1920))],
        ("contcorr", (480, 910), (560, 1024)),
        ("contcorr", (854, 480), (960, 560)),
        *[("timecycle", size, (320, 320)) for size in ((480, 854), (854, 480))],
        # Rounded down to the patches of a ViT only.
        ("crw", (480, 854), (480, 848)),
        ("vfs", (1080, 1920), (480, 848)),
    ],
)
def test_sizes_of_other_protocols(name, size, expected):
    assert input_size(size, protocol=get_protocol(name), stride=16) == expected


@pytest.mark.parametrize(("name", "expected"), [("mast", (481, 855)), ("corrflow", (480, 848))])
def test_sizes_without_whole_patches(name, expected):
    """For a network that takes sides of any length."""
    assert input_size((481, 855), protocol=get_protocol(name), stride=1) == expected


def test_a_cropped_frame_is_not_resized(backbone):
    extractor = FeatureExtractor(backbone, protocol=get_protocol("corrflow", layer=1))
    frame = np.random.default_rng(0).integers(0, 256, (35, 50, 3), dtype=np.uint8)
    assert extractor.sizes((35, 50)) == ((35, 50), (32, 48))
    torch.testing.assert_close(extractor.prepare(frame), extractor.prepare(frame[:32, :48]))


def test_a_crop_follows_the_resizing_to_a_short_side(backbone):
    protocol = get_protocol("corrflow", layer=1, short_side=70)
    extractor = FeatureExtractor(backbone, protocol=protocol)
    assert extractor.sizes((35, 50)) == ((70, 100), (64, 96))
    assert extractor.prepare(np.zeros((35, 50, 3), dtype=np.uint8)).shape == (1, 3, 64, 96)


def test_features_can_stay_as_they_are(backbone):
    frame = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    raw = FeatureExtractor(backbone, protocol=get_protocol("mast", layer=2))
    cosine = FeatureExtractor(
        backbone, protocol=get_protocol("mast", layer=2, normalize_features=True)
    )
    assert raw(frame).norm(dim=-1).max() > 2
    torch.testing.assert_close(torch.nn.functional.normalize(raw(frame), dim=-1), cosine(frame))


@pytest.mark.parametrize("size", [(7, 100), (100, 7), (0, 50)])
def test_frames_smaller_than_the_stride_are_refused(size):
    with pytest.raises(VideoError, match=rf"{size[0]}x{size[1]} pixels are too small"):
        input_size(size, protocol=get_protocol("ino-ytvos"), stride=8)


def test_features_are_normalised_and_of_the_protocol_s_layer(backbone):
    extractor = FeatureExtractor(backbone, protocol=get_protocol("ino-ytvos", layer=2))
    frame = np.random.default_rng(0).integers(0, 256, (35, 50, 3), dtype=np.uint8)
    features = extractor(frame)
    assert features.shape == (4, 6, 24)
    assert not features.requires_grad
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(4, 6))
    assert [(shape, layer) for shape, layer, _ in backbone.calls] == [((1, 3, 32, 48), 2)]


@pytest.mark.parametrize("supported", [False, True])
def test_bf16_on_a_cpu_without_it_is_warned_of_once(backbone, supported, monkeypatch, caplog):
    monkeypatch.setattr("ino.models.backbone.computes_in_bf16", lambda device: supported)
    warn_of_slow_bf16.cache_clear()
    for precision in ("fp32", "bf16", "bf16"):
        FeatureExtractor(
            backbone, protocol=get_protocol("ino-ytvos"), device="cpu", precision=precision
        )
    assert caplog.text.count("no instructions for bf16") == (0 if supported else 1)


def test_input_is_normalised_with_the_backbone_s_numbers(backbone):
    backbone.mean, backbone.std = (0.5, 0.25, 0.0), (0.5, 0.25, 2.0)
    extractor = FeatureExtractor(backbone, protocol=get_protocol("ino-ytvos", layer=1))
    image = extractor.prepare(np.full((8, 8, 3), 255, dtype=np.uint8))
    assert image[0, :, 0, 0].tolist() == [1.0, 3.0, 0.5]


def test_sizes_that_do_not_fit_the_stride_are_refused(backbone):
    protocol = get_protocol("ino-davis", layer=1, size_multiple=12)
    with pytest.raises(
        ConfigError, match=r"multiples of 12 pixels but this backbone's stride is 8"
    ):
        FeatureExtractor(backbone, protocol=protocol)


# ---- networks that take sides of any length, and other colors


class Stages(Backbone):
    """Two layers of strides 4 and 8 that round the number of features up."""

    def __init__(self, **options):
        super().__init__(strides=(4, 8), dims=(3, 3), side_multiple=1, **options)

    def read(self, images, layer):
        stride = self.strides[layer - 1]
        return torch.nn.functional.avg_pool2d(images, stride, ceil_mode=True)


@pytest.mark.parametrize(
    ("protocol", "layer", "expected"),
    [("crw", None, (5, 7)), ("crw", 1, (9, 13)), ("ino-ytvos", 2, (4, 6)), ("mast", 2, (5, 7))],
)
def test_sides_of_any_length(protocol, layer, expected):
    """Frames stay whole where the protocol does not round; the grid has the layer's stride."""
    chosen = get_protocol(protocol, layer=layer)
    extractor = FeatureExtractor(Stages(reading=Reading()), protocol=chosen)
    frame = np.random.default_rng(0).integers(0, 256, (35, 50, 3), dtype=np.uint8)
    assert extractor(frame).shape == (*expected, 3)
    with pytest.raises(VideoError, match="too small"):
        extractor(frame[:3])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        # VFS's own sizes.
        ((480, 854), (480, 854)),
        ((1080, 1920), (480, 853)),
        ((360, 640), (480, 853)),
        ((854, 480), (854, 480)),
        # 854.67 goes to the nearest pixel.
        ((720, 1282), (480, 855)),
    ],
)
def test_sizes_that_follow_a_short_side_are_rounded_to_a_pixel(size, expected):
    protocol = get_protocol("vfs")
    assert input_size(size, protocol=protocol, stride=8, side_multiple=1) == expected


@pytest.mark.parametrize("colors", ["rgb", "lab", "lab-8bit"])
def test_the_input_has_the_backbone_s_colors(colors):
    frame = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    reading = Reading(colors=colors, mean=(50.0, 1.0, 2.0), std=(2.0, 4.0, 8.0))
    extractor = FeatureExtractor(Stages(reading=reading), protocol=get_protocol("crw"))
    bgr = frame[..., ::-1].copy()
    expected = {
        "rgb": frame / np.float32(255),
        "lab": cv2.cvtColor(bgr.astype(np.float32) / 255, cv2.COLOR_BGR2LAB),
        "lab-8bit": cv2.cvtColor(bgr, cv2.COLOR_BGR2LAB).astype(np.float32),
    }[colors]
    expected = torch.from_numpy((expected - (50, 1, 2)) / (2, 4, 8)).permute(2, 0, 1).float()
    torch.testing.assert_close(extractor.prepare(frame)[0], expected)
