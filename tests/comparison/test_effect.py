"""Outcome A against brute force, and what it must not depend on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from comparison.effect import mean_gain, mean_gain_reached

D = 0.02
PATHS = st.integers(1, 6).flatmap(
    lambda s: st.tuples(
        arrays(float, (3, s), elements=st.floats(1e-4, 0.05), unique=True),
        arrays(float, (3, s), elements=st.floats(-1, 1)),
    )
)


@given(PATHS)
def test_effect_is_the_mean_of_the_interpolated_path(path):
    distance, gain = path
    grid = (np.arange(20_000) + 0.5) / 20_000 * D
    for found, d, g in zip(mean_gain(distance, gain, D), distance, gain, strict=True):
        order = d.argsort()
        curve = np.interp(grid, [0, *d[order]], [0, *g[order]])
        assert found == pytest.approx(curve.mean(), abs=2e-3)


@given(PATHS)
def test_reached_effect_is_the_mean_of_the_last_image_within_each_change(path):
    distance, gain = path
    grid = (np.arange(20_000) + 0.5) / 20_000 * D
    for found, d, g in zip(mean_gain_reached(distance, gain, D), distance, gain, strict=True):
        order = d.argsort()
        curve = np.array([0, *g[order]])[np.searchsorted(d[order], grid, side="right")]
        assert found == pytest.approx(curve.mean(), abs=2e-3)


@given(PATHS, st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(path, random):
    distance, gain = path
    order = list(range(distance.shape[1]))
    random.shuffle(order)
    for outcome in (mean_gain, mean_gain_reached):
        np.testing.assert_allclose(outcome(distance, gain, D), outcome(distance[:, order], gain[:, order], D))


@given(PATHS)
def test_padding_a_path_changes_nothing(path):
    padded = [np.hstack([values, np.full((3, 2), np.nan)]) for values in path]
    for outcome in (mean_gain, mean_gain_reached):
        np.testing.assert_allclose(outcome(*padded, D), outcome(*path, D))


def test_an_image_that_failed_is_none_of_its_path_and_a_path_without_images_is_worth_nothing():
    """One failure more at the end, however near to the original, takes nothing away."""
    sound = np.array([[0.004, 0.012]]), np.array([[0.2, 0.9]])
    failed = np.array([[0.004, 0.012, np.nan]]), np.array([[0.2, 0.9, 0.0]])
    nothing = np.full((1, 3), np.nan), np.zeros((1, 3))
    for outcome in (mean_gain, mean_gain_reached):
        assert outcome(*failed, D) == pytest.approx(outcome(*sound, D))
        assert outcome(*nothing, D).tolist() == [0.0]


def test_what_no_judge_saw_has_no_effect():
    """A panel without a judge says nothing, which is not the same as no gain."""
    distance, gain = np.array([[0.01, 0.03]] * 2), np.array([[0.5, 0.6], [np.nan, np.nan]])
    for outcome in (mean_gain, mean_gain_reached):
        assert np.isnan(outcome(distance, gain, D)).tolist() == [False, True]


def test_closed_forms():
    """A straight rise to 1 at D has mean ½; a path that ends early keeps its last value; doing nothing is worth 0."""
    one = np.array([[D]]), np.array([[1.0]])
    assert mean_gain(*one, D) == pytest.approx([0.5]) and mean_gain_reached(*one, D) == pytest.approx([0.0])
    early = np.array([[D / 4]]), np.array([[1.0]])
    assert mean_gain(*early, D) == pytest.approx([0.875]) and mean_gain_reached(*early, D) == pytest.approx([0.75])
    beyond = np.array([[2 * D]]), np.array([[1.0]])
    assert mean_gain(*beyond, D) == pytest.approx([0.25]) and mean_gain_reached(*beyond, D) == pytest.approx([0.0])
    still = np.zeros((1, 1)), np.zeros((1, 1))
    assert mean_gain(*still, D) == pytest.approx([0.0]) and mean_gain_reached(*still, D) == pytest.approx([0.0])
