"""Intervals that cover, permutation p-values against enumeration, Holm and Wilson against their definitions."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from common.statistics import holm, paired_bootstrap, sign_flip, wilson


def simulate(rng, n=60, seeds=3, effect=0.3):
    """seeds×images values whose images share an effect, as explanations of one image by several nets do."""
    return effect + rng.normal(size=n) + 0.5 * rng.normal(size=(seeds, n))


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for repeat in range(500):
        found = paired_bootstrap(simulate(rng), key=repeat, replicates=400)
        hits += found.low <= 0.3 <= found.high
    low, high = wilson(hits, 500)
    assert low <= 0.95 <= high, hits / 500


def test_interval_matches_the_normal_one():
    values = simulate(np.random.default_rng(1), n=400)
    found = paired_bootstrap(values)
    half = 1.96 * values.mean(0).std(ddof=1) / 20
    assert found.mean == pytest.approx(values.mean()) and found.n == 400
    assert found.mean - found.low == pytest.approx(half, rel=0.06)
    assert found.high - found.mean == pytest.approx(half, rel=0.06)
    assert found.by_seed == pytest.approx(values.mean(1))


def test_images_are_the_clusters():
    values = simulate(np.random.default_rng(2), seeds=1)
    one, many = paired_bootstrap(values), paired_bootstrap(np.repeat(values, 5, axis=0))
    assert (one.mean, one.low, one.high, one.n) == pytest.approx((many.mean, many.low, many.high, many.n))
    assert len(many.by_seed) == 5
    wider = paired_bootstrap(np.tile(values, 5))  # as images, five copies would narrow it
    assert wider.high - wider.low < 0.6 * (one.high - one.low)


def test_same_values_same_interval():
    values = simulate(np.random.default_rng(3))
    assert paired_bootstrap(values) == paired_bootstrap(values.copy())
    assert paired_bootstrap(values, key=1) != paired_bootstrap(values)


def test_missing_cells():
    values = np.array([[1.0, np.nan, 3.0, np.nan], [5.0, 2.0, np.nan, np.nan]])
    found = paired_bootstrap(values)
    assert found.n == 3 and found.mean == pytest.approx((3 + 2 + 3) / 3)
    assert found.by_seed == pytest.approx((2, 3.5))
    nothing = paired_bootstrap(np.full((2, 3), np.nan))
    assert nothing.n == 0 and np.isnan([nothing.mean, nothing.low, nothing.high]).all() and nothing.by_seed == ()
    assert paired_bootstrap(np.empty((0, 0))).n == 0


@pytest.mark.parametrize("n", [3, 6, 10])
def test_sign_flip_converges_to_the_enumeration(n):
    differences = np.random.default_rng(n).normal(0.4, 1, n)
    observed = abs(differences.sum())
    null = np.array([abs(np.dot(signs, differences)) for signs in product((-1, 1), repeat=n)])
    exact = np.mean(null >= observed - 1e-12)
    found = sign_flip(differences, flips=20_000)
    assert abs(found - exact) <= 4 * (exact * (1 - exact) / 20_000) ** 0.5 + 1e-4


def test_sign_flip_extremes():
    assert sign_flip(np.ones(40), flips=999) == 1 / 1000
    assert sign_flip(np.zeros(5)) == 1
    assert sign_flip(np.array([0.1, 0.2, -0.3])) == 1  # sums to rounding noise
    assert sign_flip(np.array([])) == 1
    assert sign_flip(-np.arange(1.0, 9)) == sign_flip(np.arange(1.0, 9))


def test_sign_flip_leaves_missing_images_out():
    differences = np.array([0.5, -0.1, 0.4, 0.3])
    assert sign_flip(np.append(differences, np.nan)) == sign_flip(differences)
    assert sign_flip(np.array([np.nan, np.nan])) == 1


def test_sign_flip_holds_its_level():
    rng = np.random.default_rng(5)
    rejected = sum(sign_flip(rng.normal(size=20), key=k, flips=400) <= 0.05 for k in range(400))
    low, high = wilson(rejected, 400)
    assert low <= 0.05 <= high


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values):
    adjusted = holm(p_values)
    for level in (0.01, 0.05, 0.2, 0.5):
        order, rejected = np.argsort(p_values), set()
        for rank, index in enumerate(order):
            if p_values[index] * (len(p_values) - rank) > level:
                break
            rejected.add(index)
        assert {i for i, p in enumerate(adjusted) if p <= level} == rejected


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (15, 50), (3, 7), (400, 401)])
def test_wilson_is_scipys(successes, n):
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_without_trials_knows_nothing():
    assert wilson(0, 0) == (0, 1)


@pytest.mark.parametrize("n", [1, 7, 100, 12345])
def test_wilson_is_exact_at_the_ends(n):
    assert wilson(0, n)[0] == 0 and wilson(n, n)[1] == 1
    assert 0 < wilson(0, n)[1] < 1 and 0 < wilson(n, n)[0] < 1
