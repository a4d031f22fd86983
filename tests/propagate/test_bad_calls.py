"""What a program may hand to a tracker that is none of what it takes: an InoError each.

In a process of its own: tests check the types of arguments before a function sees them, and
programs do not.
"""

import re

import numpy as np
import pytest

from ino.errors import InoError
from ino.models.backbone import ColorBackbone
from ino.models.load import load_backbone
from ino.propagate.protocols import get_protocol
from ino.propagate.tracker import Tracker
from processes import called_apart

CALLS = {
    "Tracker(color, protocol='ino-davis', precision='fp8')": "precision is 'fp8'; give fp32 or",
    "Tracker(color, protocol='ino-davis', device='x')": "device 'x' cannot be used here",
    "Tracker(color, protocol='ino-davis', device=None)": "device 'None' cannot be used here",
    "Tracker(color, quality='good')": "quality is 'good'; choose one of fast, default, best",
    "Tracker(color, protocol=5)": "protocol is 5; give a name",
    "Tracker(5, protocol='ino-davis')": "backbone is int, but a network",
    "Tracker('colour')": "'?colour'?",
    "tracker.remove(9)": "there is no object 9 to remove; the objects are 1",
    "tracker.remove(0)": "there is no object 0 to remove",
    "tracker.start(frame, mask.astype(np.int64) * 300)": "numbers from 0 to 300, but objects are",
    "tracker.start(frame, mask - 1.0)": "mask of frame 0 must be .* but it is float64",
    "tracker._extractor(frame[0])": "the frame must be uint8 .* but it is uint8 of shape",
    "Tracker(Flat(), protocol='crw').start(frame, mask)": "a backbone must give features of shape",
    "tracker.start(frame.tolist(), mask)": "frame 0 must be uint8 .* but it is list and no array",
    "tracker.start(None, mask)": "but it is NoneType and no array",
    "tracker.start(frame, mask.tolist())": "mask of frame 0 must be .* but it is list",
    "tracker.start(frame, None)": "but it is NoneType",
    "tracker.step([])": "frame 1 must be uint8 .* but it is list",
    "tracker.add(None)": "mask of frame 0 must be .* but it is NoneType",
    "tracker.add(mask, frame='0')": "given for frame '0', but frames are whole numbers",
    "other.track([frame], {'0': mask})": "given for frame '0', but frames are whole numbers",
    "other.track([frame], {0: mask, 1.5: mask})": "frame 1.5, but frames are whole numbers",
    "other.track([frame], {None: mask, 0: mask})": "frame None, but",
    "other.track([frame], [mask])": "masks are list, but they must be given by",
    "other.track([frame], {0: None})": "mask of frame 0 must be",
    "other.track(None, {0: mask})": "frames are NoneType, but",
    "other.track([None], {0: mask})": "frame 0 must be uint8",
    "other.track_references(iter([frame]), {0: mask})": "but a sequence, such as a list, is",
    "other.track_references([frame], {'0': mask})": "frames are whole numbers",
}


class Flat:
    """A backbone whose features have no rows and columns."""

    stride, mean, std = 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __call__(self, images, *, layer):
        return images[0]


def answers_to(calls: list[str]) -> dict[str, tuple[bool, str]]:
    """What each call raises: whether it is an InoError, and its words."""
    frame, mask = np.zeros((16, 24, 3), np.uint8), np.eye(16, 24, dtype=np.uint8)
    color = load_backbone("color")
    tracker, other = (Tracker(color, protocol="ino-davis") for _ in range(2))
    tracker.start(frame, mask)
    given = {"frame": frame, "mask": mask, "color": color, "tracker": tracker, "other": other}
    found = {}
    for call in calls:
        try:
            list(eval(call, {"np": np, "Tracker": Tracker, "Flat": Flat, **given}))
        except Exception as error:
            found[call] = isinstance(error, InoError), f"{type(error).__name__}: {error}"
    np.testing.assert_array_equal(tracker.add(mask), mask)  # nothing was lost
    return found


@pytest.fixture(scope="module")
def answers():
    return called_apart(answers_to, [*CALLS])


@pytest.mark.parametrize("call", CALLS)
def test_calls_that_are_refused(answers, call):
    is_ours, message = answers[call]
    assert is_ours, message
    assert re.search(CALLS[call], message), message


@pytest.mark.parametrize("screening", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_no_numbers(video, screening, value):
    """The frame is named, and the one that follows it is labelled as if it had not been."""

    class Broken(ColorBackbone):
        breaks = False

        def forward(self, images, *, layer):
            features = super().forward(images, layer=layer).clone()
            if self.breaks:
                features[0, 0, 1, 1] = value
            return features

    frames, labels = video
    backbone = Broken()
    protocol = get_protocol("ino-davis", short_side=None)
    tracker = Tracker(backbone, protocol=protocol, screening=screening)
    backbone.breaks = True
    with pytest.raises(InoError, match="features of frame 0 hold values that are no finite numb"):
        tracker.start(frames[0], labels[0])
    backbone.breaks = False
    tracker.start(frames[0], labels[0])
    backbone.breaks = True
    with pytest.raises(InoError, match="features of frame 1 hold values"):
        tracker.step(frames[1])
    backbone.breaks = False
    expected = list(Tracker(ColorBackbone(), protocol=protocol).track(frames[:2], {0: labels[0]}))
    np.testing.assert_array_equal(tracker.step(frames[1]), expected[1])
