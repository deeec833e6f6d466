"""The verdict table can fail: rows that are mutated change it, and Holm's adjustment is over the whole family."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.claims import judge, load_claims
from common.errors import VceError
from common.statistics import sign_flip
from comparison.verdicts import ALPHA, adjusted, family, p_values, with_p_values

RULES = load_claims(Path("comparison/claims.yaml"))
METHODS = ("pixel-ascent", "svce", "disc", "clarity", "clarity-to-f", "contrastive")
N, SEEDS = 100, 3


def paths(gain):
    """A table of paths in which every method beats the reference by its `gain` on average, in both outcomes."""
    rng = np.random.default_rng(0)
    images = [f"image-{k:03d}" for k in range(N)]
    shared = rng.normal(0.3, 0.2, N)  # what an image is like, whatever the method
    frames = []
    for world in ("faces-smile", "mnist"):
        for method in METHODS:
            for seed in range(SEEDS):
                outcome = shared + gain.get(method, 0.0) + rng.normal(0, 0.05, N)
                facts = {"world": world, "classifier": "l2at", "method": method, "seed": seed, "strength": 0.0}
                columns = dict.fromkeys(_columns(), outcome)
                frames.append(pd.DataFrame({**facts, "image": images, "adequate": 1.0, **columns}))
    return pd.concat(frames, ignore_index=True)


def _columns():
    tests = [test for claim in RULES.claims.values() for test in claim.tests]
    return sorted({name for test in tests for name in (test.metric, *test.also_metric)})


def verdicts(table):
    found, _ = judge(RULES, {"paths": table})
    return adjusted(found, p_values(RULES, table))


def said(table, method):
    return {claim["verdict"] for claim in verdicts(table).values() if _about(claim, method)}


def _about(claim, method):
    names = {"svce": "Sparse VCE", "disc": "DISC", "contrastive": "The contrastive"}
    return claim["statement"].startswith(names[method])


def test_methods_that_are_better_equal_or_worse_are_told_apart():
    table = paths({"svce": 0.1, "disc": -0.1})
    assert said(table, "svce") == {"supported"}
    assert said(table, "disc") == {"contradicted"}
    assert said(table, "contrastive") == {"inconclusive"}


def test_swapping_a_method_with_the_reference_turns_its_verdict_over():
    table = paths({"svce": 0.1})
    swapped = table.assign(method=table["method"].replace({"svce": "pixel-ascent", "pixel-ascent": "svce"}))
    assert (said(table, "svce"), said(swapped, "svce")) == ({"supported"}, {"contradicted"})


def test_shuffling_images_within_a_method_does_not_make_a_verdict():
    """Pairing is by image: the same numbers under other images' names leave the mean and widen the interval."""
    table = paths({"svce": 0.03})
    mine = table["method"] == "svce"
    shuffled = table.copy()
    for _, rows in table[mine].groupby(["world", "seed"]):
        shuffled.loc[rows.index, "image"] = np.random.default_rng(1).permutation(rows["image"].to_numpy())
    assert said(table, "svce") == {"supported"} and said(shuffled, "svce") == {"inconclusive"}


def test_one_training_seed_that_disagrees_is_no_support():
    table = paths({"svce": 0.1})
    worse = (table["method"] == "svce") & (table["seed"] == 2)
    table.loc[worse, _columns()] -= 0.15
    assert said(table, "svce") == {"inconclusive"}


def test_a_generator_that_is_inadequate_is_not_scored():
    table = paths({"contrastive": 0.1})
    table.loc[table["method"] == "contrastive", "adequate"] = 0.0
    assert said(table, "contrastive") == {"not tested"}
    p = p_values(RULES, table)
    assert p["p"].isna().sum() == 4 and p["adjusted"].notna().sum() == 16  # they leave the family too


def test_one_seed_whose_generator_is_inadequate_leaves_interval_and_p_value_alike():
    table = paths({"contrastive": 0.1})
    out = (table["method"] == "contrastive") & (table["seed"] == 2)
    table.loc[out, "adequate"] = 0.0
    mean = table[table["seed"] < 2].groupby(["world", "method", "image"])["effect"].mean().unstack("image")
    differences = mean.loc[("mnist", "contrastive")] - mean.loc[("mnist", "pixel-ascent")]
    p = p_values(RULES, table).set_index("test")["p"]
    assert p["contrastive effect mnist"] == sign_flip(differences.to_numpy())


def test_table_and_verdicts_say_the_same_and_keep_what_the_interval_said():
    table = paths({"svce": 0.012})
    found, outcomes = judge(RULES, {"paths": table})
    p = p_values(RULES, table)
    p["adjusted"] = 0.2  # as in a larger family
    shown = with_p_values(outcomes, p).set_index("claim")
    assert (shown["unadjusted"] == "supported").any() and not (shown["verdict"] == "supported").any()
    assert {claim["verdict"] for claim in adjusted(found, p).values()} == set(shown["verdict"])


def test_a_method_that_is_missing_is_not_tested_and_leaves_the_family():
    table = paths({"svce": 0.1})
    table = table[table["method"] != "disc"]
    assert said(table, "disc") == {"not tested"}
    p = p_values(RULES, table)
    assert p["p"].isna().sum() == 4 and p["adjusted"].notna().sum() == 16


def test_p_values_are_those_of_sign_flips_and_the_adjustment_is_holms():
    table = paths({"svce": 0.02})
    p = p_values(RULES, table).set_index("claim")
    mean = table.groupby(["world", "method", "image"])["effect"].mean().unstack("image")
    differences = mean.loc[("faces-smile", "svce")] - mean.loc[("faces-smile", "pixel-ascent")]
    assert p.loc["C1", "p"] == sign_flip(differences.to_numpy())
    ascending = p.sort_values("p", kind="stable")
    running = 0.0
    for k, (_, line) in enumerate(ascending.iterrows()):
        running = max(running, min(1.0, (len(p) - k) * line["p"]))
        assert line["adjusted"] == pytest.approx(running)


@given(st.floats(0, 1), st.sampled_from(["supported", "contradicted", "inconclusive", "partly"]))
def test_only_a_small_adjusted_p_value_keeps_a_verdict(p, verdict):
    claim = {"verdict": verdict, "note": ""}
    table = pd.DataFrame([{"claim": "C1", "adjusted": p}])
    expected = verdict if p < ALPHA else "inconclusive"
    assert adjusted({"C1": claim}, table)["C1"]["verdict"] == expected


def test_the_family_is_five_methods_two_outcomes_two_worlds_and_no_more():
    assert len(family(RULES)) == 20
    cells = [
        (test.a["world"], test.a["method"], test.metric) for claim in RULES.claims.values() for test in claim.tests
    ]
    assert len(set(cells)) == 20 and all(first != second for first, second in combinations(cells, 2))
    assert {test.b["method"] for claim in RULES.claims.values() for test in claim.tests} == {"pixel-ascent"}
    first = RULES.claims["C1"]
    more = RULES.model_copy(update={"claims": {**RULES.claims, "C21": first}})
    with pytest.raises(VceError, match="21 primary tests"):
        family(more)
