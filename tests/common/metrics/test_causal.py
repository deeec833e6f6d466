"""Necessity and sufficiency: exact enumeration of the faces' model, sharp bounds by linear programming, identities."""

import numpy as np
import pytest
import scipy.optimize
import torch
from face_rules import cells, exclusive, majority
from hypothesis import given
from hypothesis import strategies as st

from common.data.faces import ATTRIBUTES, propagate
from common.metrics.causal import (
    FEWEST,
    SCORES,
    association,
    bounds,
    estimate,
    necessity,
    necessity_and_sufficiency,
    observational,
    sufficiency,
    tabulate,
)

TABLES = st.lists(st.integers(1, 40), min_size=8, max_size=8).map(lambda n: np.array(n).reshape(2, 2, 2))


def exact(rule, name, direct):
    """The table n[x, o, e] of the model itself, as probabilities; `direct` holds descendants where they are."""
    u, weight = cells()
    factual = propagate(u)
    held = {other: factual[:, ATTRIBUTES.index(other)] for other in ATTRIBUTES if other != name} if direct else {}
    x = factual[:, ATTRIBUTES.index(name)]
    flipped = rule(propagate(u, {**held, name: 1 - x}))
    table = np.zeros((2, 2, 2))
    np.add.at(table, (x.numpy(), rule(factual).numpy(), flipped.numpy()), weight.numpy())
    return table


@pytest.mark.parametrize(
    ("rule", "name", "direct", "expected"),
    [
        (majority, "old", False, (0.9783, 0.9184, 0.900)),
        (majority, "old", True, (0.478, 0.265, 0.350)),
        (majority, "gray", False, (0.4146, 0.2653, 0.300)),
        (majority, "glasses", False, (0.226, 0.182, 0.150)),
        (exclusive, "old", False, (0.818, 0.486, 0.360)),
        (exclusive, "old", True, (0.0, 0.0, 0.0)),
        (exclusive, "gray", False, (1.0, 1.0, 0.600)),
        (exclusive, "glasses", False, (1.0, 1.0, 0.550)),
    ],
)
def test_the_estimators_have_the_exact_scores_of_the_specification(rule, name, direct, expected):
    n = exact(rule, name, direct)
    found = [statistic(n) for statistic in (necessity, sufficiency, necessity_and_sufficiency)]
    assert found == pytest.approx(expected, abs=6e-4)
    for score, (low, high) in zip(found, bounds(n).values(), strict=True):
        assert low - 1e-9 <= score <= high + 1e-9


@pytest.mark.parametrize(
    ("rule", "name", "adjusted", "expected"),
    [
        (majority, "gray", True, (0.4146, 0.2653, 0.300)),  # monotone, the back door closed: exact
        (majority, "gray", False, (0.880, 0.897, 0.799)),
        (exclusive, "gray", True, (-0.243, 0.623, 0.204)),  # not monotone: negative, and not clipped
        (exclusive, "glasses", True, (-0.662, 0.502, 0.105)),
    ],
)
def test_observation_is_right_where_its_premises_hold_and_shows_where_they_do_not(rule, name, adjusted, expected):
    u, weight = cells()
    factual = propagate(u)
    old, x, o = (values.numpy() for values in (factual[:, 0], factual[:, ATTRIBUTES.index(name)], rule(factual)))
    table = np.zeros((2 if adjusted else 1, 2, 2))
    np.add.at(table, (old if adjusted else 0 * old, x, o), weight.numpy())
    # the specification's own values are of a sample of 20,000
    assert list(observational(table).values()) == pytest.approx(expected, abs=0.012)
    if rule is majority and adjusted:
        assert list(observational(table).values()) == pytest.approx(expected, abs=6e-4)


@given(TABLES)
def test_bounds_are_sharp(n):
    """The least and the greatest score among all populations with the same P(x, o) and the same arms: a linear program
    over the four types (never o, only with x, only without, always o) of those with and without x."""
    p = n / n.sum()
    types = [(0, 0), (1, 0), (0, 1), (1, 1)]  # (o with x, o without x)
    columns = [(x, t) for x in (1, 0) for t in types]
    arms = {1: p[1, 1].sum() + p[0, :, 1].sum(), 0: p[0, 1].sum() + p[1, :, 1].sum()}
    rows, right = [], []
    for x in (0, 1):
        for o in (0, 1):
            rows.append([float(at == x and t[1 - x] == o) for at, t in columns])
            right.append(p[x, o].sum())
    for x in (0, 1):
        rows.append([float(t[1 - x]) for _, t in columns])
        right.append(arms[x])
    asked = {
        "nec": ([float(x == 1 and t == (1, 0)) for x, t in columns], p[1, 1].sum()),
        "suf": ([float(x == 0 and t == (1, 0)) for x, t in columns], p[0, 0].sum()),
        "nesuf": ([float(t == (1, 0)) for _, t in columns], 1.0),
    }
    for name, (low, high) in bounds(n).items():
        cost, share = np.array(asked[name][0]), asked[name][1]
        extremes = [
            sign * scipy.optimize.linprog(sign * cost, A_eq=rows, b_eq=right, method="highs").fun / share
            for sign in (1, -1)
        ]
        assert [low, high] == pytest.approx(extremes, abs=1e-6), name


@given(TABLES)
def test_pearls_identity_and_what_monotony_gives(n):
    p = n.sum(-1) / n.sum()
    pieces = p[1, 1] * necessity(n) + p[0, 0] * sufficiency(n)
    assert necessity_and_sufficiency(n) == pytest.approx(pieces)
    monotone = n.copy()
    monotone[1, 0, 1] = monotone[0, 1, 0] = 0  # nobody loses o by getting x
    for name, (low, _) in bounds(monotone).items():
        assert low == pytest.approx(SCORES[name][0](monotone))


@given(st.lists(st.tuples(*[st.booleans()] * 4), min_size=1, max_size=40))
def test_tables_count_units_in_a_context(units):
    x, o, e, inside = np.array(units).T
    table = tabulate(x, o, e, where=inside)
    assert table.sum() == inside.sum()
    for cell in np.ndindex(2, 2, 2):
        assert table[cell] == sum(tuple(unit[:3]) == cell and unit[3] for unit in units)
    assert (tabulate(x, o, e) - table).min() >= 0


def test_association_is_the_difference_of_the_groups():
    n = np.array([[[3, 1], [2, 2]], [[1, 1], [4, 2]]])
    assert association(n) == pytest.approx(6 / 8 - 4 / 8)


def test_an_interval_is_that_of_resampled_units():
    rng = np.random.default_rng(0)
    x, o, e = rng.integers(0, 2, (3, 300))
    found = estimate("nec", tabulate(x, o, e), replicates=4000)
    drawn = rng.integers(0, 300, (4000, 300))
    here = (x[drawn] == 1) & (o[drawn] == 1)
    by_hand = (here & (e[drawn] == 0)).sum(1) / here.sum(1)
    assert (found.low, found.high) == pytest.approx(np.quantile(by_hand, [0.025, 0.975]), abs=0.012)
    assert found.n == ((x == 1) & (o == 1)).sum() and found.low < found.value < found.high


def test_too_few_units_are_no_zero_but_a_reason():
    n = np.zeros((2, 2, 2), dtype=int)
    n[1, 1, 0], n[0, 0, 1] = FEWEST - 1, FEWEST
    nec, suf = (estimate(name, n) for name in ("nec", "suf"))
    assert (
        np.isnan([nec.value, nec.low, nec.high]).all() and nec.n == 29 and nec.reason == "29 units, of 30 that it takes"
    )
    assert suf.value == 1 and not suf.reason
    assert estimate("association", n).reason == "29 units, of 30 that it takes"


def test_a_stratum_without_both_values_of_x_is_no_number():
    n = np.array([[[5, 5], [0, 0]], [[2, 3], [4, 1]]])
    assert np.isnan(observational(n)["suf"]) and np.isnan(observational(n)["nesuf"])
    assert torch.tensor(observational(n)["nec"]).isfinite()  # nobody with x is in it
