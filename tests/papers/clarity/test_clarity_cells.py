"""Cells from measured rows, each against what a loop or plain arithmetic gives."""

import itertools

import numpy as np
import pandas as pd
import pytest
from clarity_draws import few, rng, seeds
from hypothesis import given
from hypothesis import strategies as st

from common.tables import kid_intervals
from papers.clarity.cells import (
    KEYS,
    along,
    at_equal_change,
    cells_of,
    coverage_table,
    interactions,
    passing_gate,
    reached,
    vae_of,
)
from papers.clarity.tables import gradient_table


def row(classifier, space, m, method, strength, image, **values):
    facts = {"world": "mnist", "seed": 0, "source": 1, "target": 2, "status": "ok", "confidence": 0.95}
    facts |= {"oracle_valid": 1.0, "oracle_share": 1.0}
    facts |= {"stratum": "correct", "source_confidence": 0.99, "reliance": 0.9}
    own = {"classifier": classifier, "space": space, "m": m, "method": method, "strength": strength, "image": image}
    return {**facts, **own, **values}


def test_cells_average_single_members():
    rows = pd.DataFrame(
        [
            row("p.0", "p", 1, "search", 0.9, "a", oracle_share=1.0, confidence=0.9, oracle_valid=0.0),
            row("p.1", "p", 1, "search", 0.9, "a", oracle_share=0.5, confidence=0.7, status="diverged"),
            row("p.2", "p", 1, "search", 0.9, "a", oracle_share=0.0, confidence=0.95),
            row("p-m3", "p", 3, "search", 0.9, "a", oracle_share=0.25),
            row("p.0", "p", 1, "direction", 2.0, "a", status="diverged"),
            row("p.1", "p", 1, "direction", 2.0, "a"),
        ]
    )
    cells = cells_of(reached(rows)).set_index(["method", "m"])
    assert len(cells) == 3 and cells["classifier"].tolist() == ["p-m1", "p-m1", "p-m3"]
    single = cells.loc[("search", 1)]
    assert (single["oracle_share"], single["confidence"]) == (0.5, pytest.approx(0.85))
    assert single["valid"] == pytest.approx(2 / 3) and single["diverged"] == pytest.approx(1 / 3)
    assert single["covered"] == pytest.approx(1 / 3)  # who is accepted is not who is valid
    assert cells.loc[("search", 3), "oracle_share"] == 0.25 and cells.loc[("search", 3), "valid"] == 1
    assert np.isnan(cells.loc[("direction", 1), "valid"]) and cells.loc[("direction", 1), "diverged"] == 0.5


@pytest.mark.parametrize(
    ("method", "counts"),
    [
        ("search", True),
        ("search/lambda", True),
        ("plain-p", True),
        ("revise-adam", True),
        ("latent-ascent", True),
        ("schut", True),
        ("direction", False),
        ("class-mean-shift", False),
        ("pixel-ascent", False),
        ("identity", False),
    ],
)
def test_only_thresholds_are_reached(method, counts):
    rows = pd.DataFrame([row("p.0", "p", 1, method, 0.9, image, confidence=c) for image, c in (("a", 0.9), ("b", 0.2))])
    rows["confidence"] = rows["confidence"].astype(np.float32)  # .9 in float32 is below .9
    valid = cells_of(reached(rows)).set_index("image")["valid"]
    assert valid.astype(float).tolist() == [1.0, 0.0] if counts else valid.isna().all()


def test_the_interaction_is_the_difference_of_two_gains():
    generator, lines = rng(), []
    for space, m, image, strength in itertools.product(("p", "l-sample", "pr"), (1, 3, 5), "abc", (1.0, 2.0)):
        values = {"oracle_share": generator.random(), "im1": generator.random()}
        lines.append(row(f"{space}-m{m}", space, m, "direction", strength, image, **values))
    lines += [{**line, "m": 10} for line in lines if line["space"] == "l-sample"]  # p has no ten
    cells = cells_of(pd.DataFrame(lines)).assign(adequate=1.0)
    found = interactions(cells)
    assert list(found.columns) == list(cells.columns)
    assert (found["adequate"] == 1).all() and (found["reliance"] == 0.9).all()  # facts of the seed, no gains
    assert set(found["m"]) == {3, 5} and set(found["space"]) == {"interaction"} and len(found) == 2 * 6
    assert set(found["classifier"]) == {"interaction-m3", "interaction-m5"} and not found.duplicated(KEYS).any()
    value = cells.set_index(["space", "m", "image", "strength"])
    for line in found.itertuples():
        for metric in ("oracle_share", "im1"):
            l_m, l_1, p_m, p_1 = (
                value.loc[(space, m, line.image, line.strength), metric]
                for space, m in (("l-sample", line.m), ("l-sample", 1), ("p", line.m), ("p", 1))
            )
            assert getattr(line, metric) == pytest.approx((l_m - l_1) - (p_m - p_1))


def test_directions_are_read_at_equal_change():
    """oracle_share rises along the change 0, 2, 6, 10 of a path, and is read between its points."""
    start = row("l-sample-m10", "l-sample", 10, "reconstruction", 0.0, "a", oracle_share=0.0, change=0.0, im1=1.0)
    path = [(1.0, 2.0, 0.2), (2.0, 6.0, 0.4), (3.0, 5.0, 0.5), (4.0, 10.0, 1.0)]  # the third turns back
    lines = [start, {**start, "image": "b", "oracle_share": 0.5}]
    for image, (strength, change, share) in itertools.product("ab", path):
        values = {"oracle_share": share, "change": change, "im1": 1 - share}
        lines.append(row("p.0", "p", 1, "direction", strength, image, **values))
        lines.append(row("l-sample-m10", "l-sample", 10, "class-mean-shift", strength, image, **values))
        lines.append(row("p.0", "p", 1, "search", strength / 5, image, **values))
    found = cells_of(at_equal_change(pd.DataFrame(lines), {"mnist": [1.0, 4.0, 8.0, 30.0]}))
    assert set(found["method"]) == {"direction/change", "class-mean-shift/change"} and len(found) == 2 * 2 * 4
    value = found[found["method"] == "direction/change"].set_index(["image", "strength"])
    assert value.loc["a", "oracle_share"].tolist() == pytest.approx([0.1, 0.3, 0.75, 1.0])
    assert value.loc["b", "oracle_share"].tolist() == pytest.approx([0.35, 0.3, 0.75, 1.0])  # from its own start
    assert value.loc["a", "im1"].tolist() == pytest.approx([0.9, 0.7, 0.25, 0.0])
    assert value.loc["a", "change"].tolist() == [1, 4, 8, 10]  # the path ends at 10
    assert (value["classifier"] == "p-m1").all() and (value["space"] == "p").all()
    assert (value["reliance"] == 0.9).all()  # of the system that is followed, not of where its path begins


def test_equal_change_is_read_on_each_member_before_they_are_averaged():
    """Two members, of which one overshoots: the mean of their readings is no reading of their mean path."""
    lines = [
        row("l-sample-m10", "l-sample", 10, "reconstruction", 0.0, "a", oracle_share=0.0, change=0.0, reliance=0.1)
    ]
    for k, change in enumerate((2.0, 20.0)):
        lines.append(row(f"p.{k}", "p", 1, "direction", 1.0, "a", oracle_share=1.0, change=change))
    found = cells_of(at_equal_change(pd.DataFrame(lines), {"mnist": [5.0]}))
    assert found["oracle_share"].item() == pytest.approx((1.0 + 0.25) / 2)  # the mean path would give 5/11
    assert found["change"].item() == pytest.approx((2.0 + 5.0) / 2) and found["reliance"].item() == 0.9


def test_paths_of_other_lengths_are_read_apart():
    lines = [row("l-sample-m10", "l-sample", 10, "reconstruction", 0.0, "a", oracle_share=0.0, change=0.0)]
    lines += [row("p.0", "p", 1, "direction", r, "a", oracle_share=r / 4, change=r) for r in (1.0, 2.0, 3.0)]
    lines += [row("p-m5", "p", 5, "direction", r, "a", oracle_share=r / 2, change=r) for r in (1.0, 2.0)]
    found = at_equal_change(pd.DataFrame(lines), {"mnist": [1.5]}).set_index("classifier")["oracle_share"]
    assert found.to_dict() == {"p.0": pytest.approx(0.375), "p-m5": pytest.approx(0.75)}


def test_a_cell_knows_its_vae():
    names = pd.Series(["p", "mnist-d8:l-sample", "l-sample-log", "mnist-beta-two:l-sample-m5"])
    assert vae_of(names).tolist() == ["", "mnist-d8", "", "mnist-beta-two"]


@pytest.fixture
def covering():
    """Rows of four images at τ = .9: who covers which stands in the comments."""
    mine, theirs = ("l-sample-m10", "l-sample", 10, "search"), ("p.0", "p", 1)
    close = {"source_confidence": 0.6}
    wrong = {"stratum": "misclassified", "source_confidence": 0.6}
    judges = {"oracle_augmented": 1.0, "oracle_svm": 1.0, "oracle_l2at": 0.0, "already": 0.0}
    lines = [
        row(*mine, 0.9, "a", confidence=0.9),  # covered
        row(*mine, 0.9, "b", confidence=0.91, oracle_valid=0.0, **close),  # rejected
        row(*mine, 0.9, "c", confidence=0.5, **wrong),  # not reached
        row(*mine, 0.9, "d", **wrong, already=1.0),  # covered; the others did not see it
        row(*mine, 0.5, "a"),  # another threshold
        row("l-sample-m5", "l-sample", 5, "search", 0.9, "a"),  # another system
        row(*theirs, "search/lambda", 0.9, "a"),  # other methods
        row(*theirs, "revise-plain", 0.9, "a"),
    ]
    for method, confidences in (
        ("search", (0.95, 0.95, 0.95)),
        ("revise-plain/tuned", (0.6, 0.9, 0.97)),
    ):
        for image, confidence in zip("abc", confidences, strict=True):
            accepted = float(image != "b")
            lines.append(row(*theirs, method, 0.9, image, confidence=confidence, oracle_valid=accepted, **close))
            lines.append(row(*theirs, method, 0.5, image, confidence=confidence))
    return pd.DataFrame([{**judges, **line} for line in lines])


def test_an_image_is_covered_by_a_valid_counterfactual_that_the_panel_accepts(covering):
    adequate = pd.DataFrame([{"world": "mnist", "seed": 0, "adequate": 1.0}])
    table = coverage_table(covering, adequate, 0.9)
    assert len(table) == 4 + 2 * 3 and (table["adequate"] == 1).all()
    mine = table[table["classifier"] == "l-sample-m10"].set_index("image")
    assert mine["covered"].to_dict() == {"a": 1, "b": 0, "c": 0, "d": 1}
    assert mine["valid"].to_dict() == {"a": 1, "b": 1, "c": 0, "d": 1}
    assert mine["covered_svm"].to_dict() == {"a": 1, "b": 1, "c": 0, "d": 1} and (mine["covered_l2at"] == 0).all()
    assert mine["stratum"].to_dict() == {"a": "correct", "b": "close", "c": "misclassified", "d": "target"}
    covered = {
        method: here.set_index("image")["covered"].to_dict()
        for method, here in table[table["classifier"] == "p.0"].groupby("method")
    }
    assert covered == {
        "search": {"a": 1, "b": 0, "c": 1},
        "revise-plain/tuned": {"a": 0, "b": 0, "c": 1},
    }
    assert set(table.loc[table["shared"] == 1, "image"]) == {"a", "b", "c"} and mine["shared"]["d"] == 0


def test_images_are_shared_within_their_training_seed(covering):
    """The second seed has Clarity alone."""
    other = covering[covering["classifier"] == "l-sample-m10"].assign(seed=1)
    adequate = pd.DataFrame([{"world": "mnist", "seed": seed, "adequate": 1.0 - seed} for seed in (0, 1)])
    table = coverage_table(pd.concat([covering, other]), adequate, 0.9)
    assert (table.loc[table["seed"] == 1, "shared"] == 0).all() and (table["shared"] == 1).sum() == 9
    assert (table["adequate"] == 1 - table["seed"]).all()


def test_an_image_that_one_of_three_did_not_explain_is_not_shared(covering):
    missing = (covering["classifier"] == "p.0") & (covering["method"] == "search") & (covering["image"] == "a")
    adequate = pd.DataFrame([{"world": "mnist", "seed": 0, "adequate": 1.0}])
    table = coverage_table(covering[~missing], adequate, 0.9)
    assert (table.loc[table["image"] == "a", "shared"] == 0).all()


def test_the_straightness_of_a_search_is_that_of_its_largest_threshold():
    key = {"world": "mnist", "seed": 0, "space": "p", "m": 5, "classifier": "p-m5"}
    start = dict.fromkeys(("plateau", "grad_p", "grad_log_p", "smoothness", "usefulness"), 0.5)
    cells = [row("p-m5", "p", 5, "direction", 4.0, "a", straightness=np.nan, steps=40.0)]
    cells += [row("p-m5", "p", 5, "search", tau, "a", straightness=tau, steps=100 * tau) for tau in (0.5, 0.9, 0.99)]
    table = gradient_table(
        pd.DataFrame([{**key, "image": "a", **start}]),
        pd.DataFrame([{**key, "cosine": 0.8, "ratio": 4.0, "snr": 6.0}]),
        pd.DataFrame([{**key, "size": size, "cosine": 0.9} for size in (1, 2)]),
        pd.DataFrame(cells),
    )
    assert table[["straightness", "steps", "member_snr", "disjoint_2"]].to_numpy().tolist() == [[0.99, 99.0, 6.0, 0.9]]


@few
@given(seeds, st.integers(1, 4), st.floats(0, 8))
def test_along_a_path_is_numpy_interpolation(seed, steps, level):
    generator = rng(seed)
    change = np.concatenate([np.zeros((5, 1)), np.maximum.accumulate(6 * generator.random((5, steps)), 1)], 1)
    values = generator.standard_normal(change.shape)
    expected = [np.interp(level, c, v) for c, v in zip(change, values, strict=True)]
    assert np.allclose(along(change, values, level), expected)


def test_beyond_its_end_a_path_keeps_its_last_value_even_from_a_start_that_is_no_number():
    change, values = np.array([[0.0, 1.0, 2.0]] * 2), np.array([[np.nan, 3.0, 4.0], [1.0, np.nan, 4.0]])
    assert along(change, values, 9.0).tolist() == [4.0, 4.0]
    assert np.isnan(along(change, values, 0.5)).all() and np.isnan(along(change, values, 1.5)).tolist() == [False, True]


def test_a_judge_must_keep_nine_tenths_on_reconstructions_of_all_seeds_together():
    facts = {"world": "mnist", "classifier": "p.0", "passes": True}
    kept = {"augmented": (0.95, 0.85), "svm": (0.99, 0.80), "l2at": (0.95, 0.95)}
    gate = pd.DataFrame(
        [{**facts, "judge": judge, "seed": seed, "reconstructed": share}
         for judge, shares in kept.items() for seed, share in enumerate(shares)]
    )  # fmt: skip
    gate.loc[gate["judge"] == "l2at", "passes"] = False  # too far below on real images
    assert passing_gate(gate).groupby("judge")["passes"].all().to_dict() == {
        "augmented": True, "l2at": False, "svm": False,
    }  # fmt: skip


def test_kid_is_averaged_over_shards_before_its_interval():
    """Two single members of one cell, in three seeds: the interval is that of the mean, not the mean of intervals."""
    generator, halves = rng(3), 41
    estimates = generator.standard_normal((6, halves))
    facts = {"world": "mnist", "classifier": "p-m1", "method": "search", "strength": 0.9}
    shards = [pd.DataFrame({**facts, "half": np.arange(halves), "kid": kid}) for kid in estimates]
    (found,) = kid_intervals(pd.concat(shards, ignore_index=True), [*facts]).to_dict("records")
    mean = estimates.mean(0)
    low, high = np.quantile(mean[1:], [0.025, 0.975])
    assert found["kid"] == pytest.approx(mean[0]) and found["method"] == "search"
    assert (found["kid_low"], found["kid_high"]) == (pytest.approx(low), pytest.approx(high))
