"""Features as colours, and curves as SVG."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from ino.report.sections import curve_svg, feature_colors, nice_ticks, running_median


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((3, 12))
    return [rng.standard_normal((r, c, 3)) * [9, 3, 1] @ mixing for r, c in ((6, 9), (4, 5))]


def test_colours_have_the_size_of_their_maps_and_fill_the_range(maps):
    colours = feature_colors(maps)
    assert [image.shape for image in colours] == [(6, 9, 3), (4, 5, 3)]
    assert all(image.dtype == np.uint8 for image in colours)
    both = np.concatenate([image.reshape(-1, 3) for image in colours])
    assert both.min(axis=0).tolist() == [0, 0, 0]
    assert both.max(axis=0).tolist() == [255, 255, 255]


def test_colours_do_not_depend_on_the_order_of_maps_or_the_sign_of_axes(maps):
    first, second = feature_colors(maps)
    swapped = feature_colors(maps[::-1])
    np.testing.assert_array_equal(swapped[0], second)
    np.testing.assert_array_equal(swapped[1], first)
    # A rotation of the features by permuting dimensions changes neither components nor signs.
    order = np.random.default_rng(1).permutation(12)
    for ours, theirs in zip(
        feature_colors([m[..., order] for m in maps]), (first, second), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_the_projection_is_shared(maps):
    """The same feature has the same colour in every map."""
    joined = [maps[0], np.concatenate([maps[0][:2, :5], maps[1]])]
    first, second = feature_colors(joined)
    np.testing.assert_array_equal(second[:2], first[:2, :5])


def test_the_first_component_is_the_one_of_the_largest_variance():
    rng = np.random.default_rng(2)
    features = rng.standard_normal((20, 20, 5)) * [1, 8, 0.1, 3, 0.1]
    (colours,) = feature_colors([features])
    for channel, dim in enumerate((1, 3, 0)):
        correlation = np.corrcoef(colours[..., channel].ravel(), features[..., dim].ravel())[0, 1]
        assert correlation > 0.9


def test_constant_features_are_drawn():
    (colours,) = feature_colors([np.ones((3, 4, 8))])
    assert colours.shape == (3, 4, 3)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.5, 1.0]),
        (4.9, 6.3, [4.5, 5.0, 5.5, 6.0, 6.5]),
        (3.0, 3.0, [3.0, 4.0]),
        (-7.0, 12.0, [-10, -5, 0, 5, 10, 15]),
    ],
)
def test_ticks_are_round_and_enclose(low, high, expected):
    assert nice_ticks(low, high) == pytest.approx(expected)


def test_running_median_ignores_a_spike():
    values = np.array([1.0, 1.0, 50.0, 1.0, 3.0, 3.0])
    assert running_median(values, window=3).tolist() == [1.0, 1.0, 1.0, 3.0, 3.0, 3.0]


def test_curve_goes_from_the_upper_left_to_the_lower_right():
    svg = curve_svg([0, 10, 20], [2.0, 1.5, 1.0], name="loss", window=1)
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == "loss: 2.00 at step 0, 1.00 at step 20"
    raw = next(line for line in root.iter("polyline") if line.attrib["class"] == "raw")
    points = np.array([[float(v) for v in p.split(",")] for p in raw.attrib["points"].split()])
    assert (np.diff(points[:, 0]) > 0).all()
    assert (np.diff(points[:, 1]) > 0).all()  # SVG counts from above
    np.testing.assert_allclose(points[1], points[[0, 2]].mean(axis=0), atol=0.1)
    assert re.findall(r">step 0<|>20<", svg) == [">step 0<", ">20<"]


def test_a_curve_of_one_value_is_drawn():
    ElementTree.fromstring(curve_svg([7], [0.5], name="loss"))
