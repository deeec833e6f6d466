"""The audit of metrics against counting pairs by hand, and metrics that are known to be right or wrong."""

from itertools import combinations

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from comparison.audit import METRICS, ORDER, PLAIN, audit_table, ordered_pairs


@given(
    arrays(float, (3, 4), elements=st.one_of(st.integers(-2, 2).map(float), st.just(np.nan))), st.sampled_from([1, -1])
)
def test_pairs_in_the_right_order_are_counted_one_by_one(values, sign):
    for row, found in zip(values, ordered_pairs(values, sign), strict=True):
        expected = 0
        for better, worse in combinations(range(4), 2):
            if not np.isnan(row[better]) and not np.isnan(row[worse]) and sign * row[better] > sign * row[worse]:
                expected += 1
        assert found == expected


def test_what_rounding_may_add_up_to_is_no_order():
    assert ordered_pairs(np.array([[0.5, 2e-26, 5e-9, 0.0]]), 1).tolist() == [3]
    assert ordered_pairs(np.array([[0.5, 2e-26, 5e-5, 0.0]]), 1).tolist() == [4]


def paths(values, n=30):
    """Paths of the plain net on which a metric has the given mean for each of the four."""
    rng = np.random.default_rng(0)
    frames = [
        pd.DataFrame(
            {"world": "w", "classifier": PLAIN, "method": method, "image": [f"i{k}" for k in range(n)], "seed": 0}
            | {metric: mean[method] + 0.01 * rng.normal(size=n) for metric, mean in values.items()}
        )
        for method in ORDER
    ]
    return pd.concat(frames, ignore_index=True)


def kid(values):
    lines = [
        {"world": "w", "classifier": PLAIN, "method": method, "half": half, "kid": values[method] + 0.01 * half}
        for method in ORDER
        for half in range(5)
    ]
    return pd.DataFrame(lines)


def test_a_metric_that_rewards_nothing_is_found_out():
    """l1 ranks doing nothing first; the twin error ranks as it should, and both have their interval where they are."""
    order = dict(zip(ORDER, (1.0, 2.0, 3.0, 4.0), strict=True))
    turned = {name: -value for name, value in order.items()}
    table = audit_table(paths({"twin_error": order, "l1": turned}), kid(order)).set_index("metric")
    assert table.loc["twin_error", ["right", "low", "high", "pairs"]].tolist() == [6, 6, 6, 6]
    assert table.loc["l1", ["right", "low", "high"]].tolist() == [0, 0, 0]
    assert table.loc["kid", "right"] == 6


def test_a_metric_that_is_no_number_where_nothing_changed_ranks_nobody_above():
    order = dict(zip(ORDER, (0.9, 0.8, 0.7, np.nan), strict=True))
    table = audit_table(paths({"hoyer": order}), kid(order)).set_index("metric")
    assert table.loc["hoyer", "right"] == 3 and np.isnan(table.loc["hoyer", "identity"])


def test_every_metric_has_a_direction_and_a_name():
    order = dict(zip(ORDER, (4.0, 3.0, 2.0, 1.0), strict=True))
    table = audit_table(paths(dict.fromkeys(METRICS, order)), kid(order)).set_index("metric")
    assert set(table.index) == {*METRICS, "kid"}
    more = {metric for metric, sign in METRICS.items() if sign > 0}
    assert set(table.index[table["right"] == 6]) == more
