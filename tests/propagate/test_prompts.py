"""Masks from boxes and clicks, on a textured disk before textured ground."""

import cv2
import numpy as np
import pytest

from ino.errors import InoError, MaskError, PromptError, VideoError
from ino.metrics import region_similarity
from ino.models.load import load_backbone
from ino.propagate.prompts import mask_from_prompt

HEIGHT, WIDTH = 120, 160
BOX = (50, 30, 110, 90)


def textured(color, seed):
    """Blurred noise around a color."""
    noise = np.random.default_rng(seed).normal(size=(HEIGHT, WIDTH, 3))
    noise = cv2.GaussianBlur(noise, (0, 0), 1.5) * 60
    return np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)


def disk(x, y, radius=30):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return np.hypot(rows - y, columns - x) <= radius


@pytest.fixture(scope="module")
def network():
    return load_backbone("ino_vitt8")


@pytest.fixture(scope="module")
def truth():
    return disk(80, 60)


@pytest.fixture(scope="module")
def frame(truth):
    return np.where(truth[..., None], textured((170, 90, 60), 0), textured((70, 110, 120), 1))


@pytest.fixture(scope="module")
def ask(frame, network):
    """Asks about the frame, whose features are kept."""
    features = {}

    def call(**prompt):
        return mask_from_prompt(frame, backbone=network, features=features, **prompt)

    return call


def test_box(ask, truth, frame):
    before = frame.copy()
    found = ask(box=BOX)
    assert found.dtype == bool
    assert found.shape == truth.shape
    assert region_similarity(found, truth) > 0.9
    assert (frame == before).all()


def test_gray_image(truth, network):
    gray = np.where(truth, textured((180,) * 3, 0)[..., 0], textured((80,) * 3, 1)[..., 0])
    found = mask_from_prompt(np.repeat(gray[..., None], 3, axis=2), box=BOX, backbone=network)
    assert region_similarity(found, truth) > 0.9


def test_box_is_tight(network):
    """Also the lower part of the object, which looks much like the ground, is reached."""
    frame = np.where(
        disk(80, 60)[..., None], textured((170, 90, 60), 0), textured((70, 110, 120), 1)
    )
    lower = disk(80, 60) & (np.arange(HEIGHT)[:, None] >= 75)
    frame[lower] = textured((110, 102, 96), 0)[lower]
    found = mask_from_prompt(frame, box=BOX, backbone=network)
    assert found[75:90].any(axis=1).mean() > 0.8


@pytest.mark.parametrize("point", [(80, 60), (70, 50), (80, 80)])
def test_one_click(ask, truth, point):
    assert region_similarity(ask(points=[(*point, True)]), truth) > 0.95


def test_one_click_marks_one_of_several_alike(network):
    """Also where each is small in the frame, as cells are."""
    places = [(30, 30), (80, 35), (130, 30), (35, 85), (85, 90), (130, 85)]
    cells = np.any([disk(x, y, radius=8) for x, y in places], axis=0)
    frame = np.where(cells[..., None], textured((150, 150, 150), 0), textured((40, 40, 40), 1))
    given = {"backbone": network, "features": {}}
    for x, y in places[:4]:
        found = mask_from_prompt(frame, points=[(x, y, True)], **given)
        assert region_similarity(found, disk(x, y, radius=8)) > 0.85
    found = mask_from_prompt(frame, points=[(30, 30, True), (80, 35, True)], **given)
    both = disk(30, 30, radius=8) | disk(80, 35, radius=8)
    assert region_similarity(found, both) > 0.8


def test_a_click_on_background_bounds_the_object(frame, network):
    """Also one whose pixel was background already: here a part is on a larger part."""
    small = disk(80, 60, radius=10)
    layers = np.where(disk(80, 60, radius=40)[..., None], textured((120, 100, 90), 0), frame)
    layers = np.where(small[..., None], textured((170, 90, 60), 0), layers)
    points = [(80, 60, True), (95, 60, False)]
    found = mask_from_prompt(layers, points=points, backbone=network)
    assert region_similarity(found, small) > 0.9


def test_clicks_alone(ask, truth):
    """Each click in the middle of what is wrong."""
    points, found = [], np.zeros_like(truth)
    for _ in range(3):
        wrong = (found != truth).astype(np.uint8)
        inner = cv2.distanceTransform(wrong, cv2.DIST_L2, 5)
        y, x = np.unravel_index(int(inner.argmax()), inner.shape)
        points.append((int(x), int(y), bool(truth[y, x])))
        found = ask(points=points)
    assert region_similarity(found, truth) > 0.95


def test_the_same_prompt_gives_the_same_mask(frame, network, ask):
    prompt = {"box": BOX, "points": [(60, 40, False)]}
    assert (mask_from_prompt(frame, backbone=network, **prompt) == ask(**prompt)).all()


def test_features_are_computed_once(frame, network):
    features, calls = {}, []

    class Counting(type(network)):
        def __call__(self, images, *, layer):
            calls.append(images.shape)
            return network(images, layer=layer)

    counting = Counting.__new__(Counting)
    counting.__dict__ = network.__dict__
    for _ in range(2):
        mask_from_prompt(frame, box=BOX, backbone=counting, features=features)
    assert len(calls) == 1


@pytest.mark.parametrize("box", [BOX, None])
def test_clicks_keep_their_labels(ask, box):
    """Whatever is clicked, in agreement with the image or not, and however near."""
    random = np.random.default_rng(3)
    points = [(80, 60, True)]
    for _ in range(3):
        x, y = int(random.integers(WIDTH)), int(random.integers(HEIGHT))
        if all((x, y) != point[:2] for point in points):
            points.append((x, y, bool(random.integers(2))))
    points += [(81, 60, False), (WIDTH - 1, HEIGHT - 1, True), (0, 0, False)]
    for count in (1, 3, len(points)):
        found = ask(box=box, points=points[:count])
        assert all(found[y, x] == is_object for x, y, is_object in points[:count])


def test_neighboring_clicks_keep_their_labels(frame, network):
    """Also where a frame is so large that both are one pixel of what is computed."""
    large = cv2.resize(frame, (800, 600))
    points = [(400, 300, True), (401, 300, False), (400, 301, False), (399, 300, True)]
    found = mask_from_prompt(large, points=points, backbone=network)
    assert all(found[y, x] == is_object for x, y, is_object in points)


def test_area_around_a_click_has_its_label(ask):
    found = ask(box=BOX, points=[(80, 60, False)])
    assert not found[59:62, 79:82].any()


def test_click_corrects_a_mask(ask, truth):
    half = truth & (np.arange(WIDTH) < 80)
    found = ask(mask=half, points=[(95, 60, True)])
    assert region_similarity(found, truth) > 0.85
    assert (ask(mask=half) == half).all()
    assert not ask(mask=np.zeros_like(half)).any()


def test_nothing_outside_the_box(ask):
    found = ask(box=(80, 30, 110, 90))
    assert found.any()
    assert not found[:, :80].any()


@pytest.mark.parametrize(
    "box", [(0, 0, WIDTH, HEIGHT), (80, 60, 81, 61), (0, 0, 1, 1), (-20, -9.5, 400.25, 300)]
)
def test_extreme_boxes(ask, box):
    found = ask(box=box)
    assert found.any()


def test_tiny_and_flat_frames(network):
    for shape in ((1, 1, 3), (3, 200, 3), (16, 16, 3)):
        frame = np.full(shape, 90, dtype=np.uint8)
        found = mask_from_prompt(frame, box=(0, 0, *shape[1::-1]), backbone=network)
        assert found.shape == shape[:2]
        found = mask_from_prompt(frame, points=[(0, 0, True)], backbone=network)
        assert found[0, 0]


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ({}, PromptError, "no box, no mask and no click"),
        ({"points": [(3, 3, False)]}, PromptError, "no click on the object"),
        ({"box": (50, 30, 50, 90)}, PromptError, "it is empty"),
        ({"box": (90, 30, 50, 90)}, PromptError, "it is empty"),
        ({"box": (200, 30, 210, 90)}, PromptError, "outside the frame, which is 160 pixels wide"),
        ({"box": (1, 2, 3)}, PromptError, "four numbers"),
        ({"box": "1,2,3,4"}, PromptError, "four numbers"),
        ({"box": (1, 2, float("nan"), 4)}, PromptError, "four numbers"),
        ({"points": [(160, 3, True)]}, PromptError, "the point 160, 3 lies outside"),
        ({"points": [(-1, 3, True)]}, PromptError, "lies outside"),
        ({"points": [(1, 3)]}, PromptError, "x, y in pixels and True"),
        ({"points": [(1, 3, 2)]}, PromptError, "x, y in pixels and True"),
        ({"points": [(1, 3, True), (1, 3, False)]}, PromptError, "both object and background"),
        ({"mask": np.zeros((4, 5), dtype=bool)}, MaskError, "4x5 pixels but the frame is 120x160"),
        ({"mask": np.zeros((120, 160))}, MaskError, "one object number per pixel"),
    ],
)
def test_bad_prompts(ask, prompt, error, message):
    with pytest.raises(error, match=message) as raised:
        ask(**prompt)
    assert isinstance(raised.value, InoError)


def test_gray_array_is_no_frame():
    with pytest.raises(VideoError, match="height x width x 3"):
        mask_from_prompt(np.zeros((9, 9), dtype=np.uint8), box=BOX)
