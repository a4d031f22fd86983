"""Features as colors: principal components that all maps share."""

import numpy as np
import pytest

from ino.report.feature_colors import feature_colors


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((3, 12))
    return [rng.standard_normal((r, c, 3)) * [9, 3, 1] @ mixing for r, c in ((6, 9), (4, 5))]


def test_colors_have_the_size_of_their_maps_and_fill_the_range(maps):
    colors = feature_colors(maps)
    assert [image.shape for image in colors] == [(6, 9, 3), (4, 5, 3)]
    assert all(image.dtype == np.uint8 for image in colors)
    both = np.concatenate([image.reshape(-1, 3) for image in colors])
    assert both.min(axis=0).tolist() == [0, 0, 0]
    assert both.max(axis=0).tolist() == [255, 255, 255]


def test_colors_do_not_depend_on_the_order_of_maps_or_the_sign_of_axes(maps):
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
    """The same feature has the same color in every map."""
    joined = [maps[0], np.concatenate([maps[0][:2, :5], maps[1]])]
    first, second = feature_colors(joined)
    np.testing.assert_array_equal(second[:2], first[:2, :5])


def test_the_first_component_is_the_one_of_the_largest_variance():
    rng = np.random.default_rng(2)
    features = rng.standard_normal((20, 20, 5)) * [1, 8, 0.1, 3, 0.1]
    (colors,) = feature_colors([features])
    for channel, dim in enumerate((1, 3, 0)):
        correlation = np.corrcoef(colors[..., channel].ravel(), features[..., dim].ravel())[0, 1]
        assert correlation > 0.9


def test_constant_features_are_drawn():
    (colors,) = feature_colors([np.ones((3, 4, 8))])
    assert colors.shape == (3, 4, 3)
