"""Shares of variance and areas under curves, each against a loop or a closed form."""

import itertools

import numpy as np
import pandas as pd
import pytest
from clarity_draws import few, rng, seeds
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from papers.clarity.factors import factor_shares, halved_auc, plateau_auc, squared_effect

# factors


@few
@given(seeds, st.integers(4, 9), st.integers(1, 4))
def test_squared_effects_are_means_over_pairs_of_different_images(seed, n, levels):
    generator = rng(seed)
    effects = generator.normal(size=(n, levels))
    halves = np.concatenate([np.ones((1, n)), generator.random((5, n)).argsort(1) < max(2, n // 2)]).astype(float)
    found = squared_effect(effects, halves)
    for half, value in zip(halves, found, strict=True):
        chosen = np.flatnonzero(half)
        pairs = list(itertools.permutations(chosen, 2))
        by_hand = np.mean(
            [np.mean([effects[i, level] * effects[j, level] for i, j in pairs]) for level in range(levels)]
        )
        assert value == pytest.approx(by_hand, abs=1e-12)


def test_noise_between_images_has_no_effect():
    """The mean of squares would be 1/n; the unbiased one scatters about 0, and about the square of a true mean."""
    repeats, n, everyone = 4000, 10, np.ones((1, 10))
    for true in (0.0, 0.4):
        values = np.array([squared_effect(true + rng(k).normal(size=(n, 3)), everyone)[0] for k in range(repeats)])
        assert values.mean() == pytest.approx(true**2, abs=4 * values.std() / repeats**0.5)
        assert values.std() < 0.3


SIZES, METHODS, TAUS = (1, 5), ("search", "search/lambda"), (0.5, 0.9, 0.99)
CELLS = list(itertools.product(("p", "pr", "l-mean", "l-sample"), SIZES, METHODS, TAUS))
DISTANCES = list(itertools.product(("p", "pr", "l-mean", "l-sample"), SIZES, ("direction",), (1.0, 2.0)))
SPACE, SIZE, METHOD, STRENGTH = (
    {"p": 0.3, "pr": -0.1, "l-mean": -0.9, "l-sample": 0.2},
    {1: -0.1, 5: 0.1},
    {"search": 0.05, "search/lambda": -0.05, "direction": 0.0},
    {0.5: -0.2, 0.9: 0.0, 0.99: 0.2, 1.0: 0.0, 2.0: 0.5},
)
TABLES = {"space": SPACE, "M": SIZE, "λ": METHOD, "τ": STRENGTH, "r": STRENGTH}
# what each grid crosses: spaces, methods, strengths
CROSSED = {
    "thresholds": (("p", "pr", "l-sample"), METHODS, TAUS),
    "thresholds, both readings": (("p", "pr", "l-mean", "l-sample"), METHODS, TAUS),
    "matched distance": (("p", "pr", "l-sample"), ("direction",), (1.0, 2.0)),
}


def additive(space, m, method, strength):
    return SPACE[space] + SIZE[m] + METHOD[method] + STRENGTH[strength]


def grid(effect, noise=0.0, images=40, seeds=(0,)):
    """Cells of the full grids, scored by `effect(space, m, method, strength)`, what an image adds to all its cells,
    and noise."""
    lines = []
    for seed in seeds:
        own = rng(seed).normal(size=images)
        for i in range(images):
            scatter = noise * rng(1000 * seed + i + 1).normal(size=len(CELLS + DISTANCES))
            for cell, extra in zip(CELLS + DISTANCES, scatter, strict=True):
                lines.append((seed, f"i{i:03d}", *cell, effect(*cell) + own[i] + extra))
    columns = ["seed", "image", "space", "m", "method", "strength", "oracle_share"]
    return pd.DataFrame(lines, columns=columns)


def variances(name):
    """Variance of each factor's levels in one grid."""
    spaces, methods, strengths = CROSSED[name]
    last = "r" if name == "matched distance" else "τ"
    levels = {"space": spaces, "M": SIZES, **({} if last == "r" else {"λ": methods}), last: strengths}
    return {factor: np.var([TABLES[factor][level] for level in mine]) for factor, mine in levels.items()}


@pytest.mark.parametrize("name", CROSSED)
def test_shares_of_additive_effects_are_their_variances(name):
    shares = factor_shares(grid(additive))
    assert set(shares["grid"]) == set(CROSSED)
    shares, parts = shares[shares["grid"] == name], variances(name)
    assert list(dict.fromkeys(shares["factor"])) == list(parts)
    for factor, part in parts.items():
        mine = shares[shares["factor"] == factor]
        assert mine["half"].tolist() == list(range(401)) and (mine["n"] == 40).all()
        assert np.allclose(mine["share"], part / sum(parts.values()))  # there is no noise: every half says the same
    assert np.allclose(shares.groupby("half")["share"].sum(), 1)


def test_interactions_are_no_main_effect():
    def crossed(space, m, method, strength):
        return additive(space, m, method, strength) + 0.4 * (space in ("p", "pr")) * (m == 5)

    shares = factor_shares(grid(crossed))
    shares = shares[shares["grid"] == "thresholds, both readings"]
    table = np.array([crossed(*cell) for cell in CELLS]).reshape(4, 2, 2, 3)
    table = table - table.mean()
    for axis, name in enumerate(("space", "M", "λ", "τ")):
        main = table.mean(tuple(k for k in range(4) if k != axis))
        share = shares.loc[shares["factor"] == name, "share"]
        assert np.allclose(share, np.mean(main**2) / np.mean(table**2))
    assert (shares.groupby("half")["share"].sum() < 0.99).all()


def test_noise_moves_no_share_and_seeds_are_apart():
    shares = factor_shares(grid(additive, noise=1.0, images=200, seeds=(0, 1)))
    assert (shares["n"] == 200).all()
    for name in CROSSED:
        parts, mine = variances(name), shares[shares["grid"] == name]
        found = mine[mine["half"] == 0].pivot_table(index="seed", columns="factor", values="share")
        for factor, part in parts.items():
            expected = part / sum(parts.values())
            assert found[factor].tolist() == pytest.approx([expected, expected], abs=0.15), (name, factor)
        spread = mine[(mine["half"] > 0) & (mine["factor"] == "space")].groupby("seed")["share"].std()
        assert (spread > 0.005).all()


def test_only_the_full_grids_count():
    """Other sizes, other methods and variants of the spaces stay out."""
    cells = grid(additive)
    more = pd.concat(
        [
            cells,
            cells[cells["method"] == "search"].assign(m=10, oracle_share=9.0),
            cells.assign(space="mnist-d8:l-sample", oracle_share=5.0),
            cells.assign(method="plain-p", oracle_share=5.0),
        ]
    )
    pd.testing.assert_frame_equal(factor_shares(more), factor_shares(cells))


@few
@given(seeds, st.integers(6, 30), st.booleans())
def test_auc_is_that_of_sklearn(seed, n, ties):
    generator = rng(seed)
    score = generator.integers(0, 4, n).astype(float) if ties else generator.normal(size=n)
    positive = (generator.random(n) < 0.5).astype(float)
    positive[:2] = 0, 1
    halves = np.concatenate([np.ones((1, n)), generator.random((8, n)).argsort(1) < n // 2]).astype(float)
    for half, value in zip(halves, halved_auc(score, positive, halves), strict=True):
        chosen = half > 0
        if len(set(positive[chosen])) == 2:
            assert value == pytest.approx(roc_auc_score(positive[chosen], score[chosen]))
        else:
            assert np.isnan(value)


def test_a_constant_score_tells_nothing():
    positive = np.array([0, 1, 1, 0, 1.0])
    assert halved_auc(np.full(5, 3.0), positive, np.ones((1, 5))).tolist() == [0.5]
    assert halved_auc(positive, positive, np.ones((1, 5))).tolist() == [1.0]


def plateau_frames():
    """P1 fails exactly where its gradient is short, Clarity where it is long; p alone says the same of P1 only."""
    cells, gradients = [], []
    for seed, k in itertools.product((0, 1), range(20)):
        key, short = {"world": "mnist", "seed": seed, "image": f"i{k}"}, k < 8
        start = {"grad_p": 1e-6 * (k + 1) if short else 0.1 + k, "log_p": -float(k % 2)}
        for space, m, covered in (("p", 1, 0.4 if short else 0.6), ("l-sample", 5, float(short))):
            gradients.append({**key, "space": space, "m": m, **start})
            for strength in (0.5, 0.9):
                right = covered if strength == 0.9 else float(k == 3)
                cell = {"space": space, "m": m, "method": "search", "strength": strength, "covered": right}
                cells.append({**key, **cell})
        cells.append({**cells[-1], "method": "plain-p", "covered": 0.0})
    return pd.DataFrame(cells), pd.DataFrame(gradients)


def test_a_short_gradient_foretells_failure_where_it_does():
    cells, gradients = plateau_frames()
    table = plateau_auc(cells, gradients, 0.9)
    assert (table["n"] == 20).all() and set(table["predicted"]) == {"P1 rejected", "Clarity rejected"}
    whole = table[table["half"] == 0].set_index(["predicted", "quantity", "seed"])["auc"]
    for predicted, auc in (("P1 rejected", 1.0), ("Clarity rejected", 0.0)):
        failed = (np.arange(20) < 8) == (predicted == "P1 rejected")
        by_p = roc_auc_score(failed, np.arange(20) % 2)
        for seed in (0, 1):
            mine = whole.xs((predicted, seed), level=("predicted", "seed")).to_dict()
            assert mine == pytest.approx({predicted: auc, f"{predicted}, by p alone": by_p, "chance": 0.5})
    chance, own = (table[table["quantity"] == name]["auc"] for name in ("chance", "P1 rejected"))
    assert (chance.dropna() == 0.5).all() and len(table) == 2 * 2 * 3 * 401 and (own.dropna() == 1).all()
