"""What is measured: gradient diagnostics, factors, and cells, each against a loop or a closed form."""

import itertools
import math
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import distributions

from papers.clarity.diagnostics import (
    agreement,
    convergence,
    cosine,
    member_gradients,
    mixture_gradient,
    over_members,
    reconstruction_gate,
    start_gradients,
)
from papers.clarity.factors import factor_shares, halved_auc, plateau_auc, squared_effect
from papers.clarity.measure import KEYS, AggregatePosterior, at_equal_change, cells_of, coverage_table, interactions
from papers.clarity.systems import System
from papers.clarity.tables import gradient_table

seeds = st.integers(0, 2**31 - 1)
few = settings(max_examples=25, deadline=None)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rng(seed=0):
    return np.random.Generator(np.random.Philox(key=seed))


# gradients at the start


@few
@given(seeds)
def test_cosine_is_that_of_torch_and_zero_of_nothing(seed):
    a, b = draw(6, 4, seed=seed), draw(6, 4, seed=seed + 1)
    assert torch.allclose(cosine(a, b), torch.cosine_similarity(a, b, dim=1))
    assert cosine(a, torch.zeros(4)).abs().max() == 0 and torch.allclose(cosine(a, -2 * a), -torch.ones(6).double())


@pytest.mark.parametrize("name", ["l-sample-m3", "p.1", "pr-m2"])
def test_start_gradients_by_finite_differences(systems, digits, name):
    system, target, h = deepcopy(systems.system(name)).double(), (digits.labels + 3) % 10, 1e-6
    z0, nudge, means = system.vae.encode(digits.images.double())[0], draw(16, 4), systems.class_means.double()
    found = start_gradients(system, z0, target, means, nudge)

    def log_p(z):
        return system.log_probabilities(z).gather(1, target[:, None])[:, 0]

    def by_differences(function, z):
        steps = h * torch.eye(4, dtype=torch.float64)
        return torch.stack([(function(z + e) - function(z - e)) / (2 * h) for e in steps], 1)

    g, moved = by_differences(log_p, z0), by_differences(log_p, z0 + 0.1 * nudge)
    norm_of_p = by_differences(lambda z: log_p(z).exp(), z0).norm(dim=1)
    assert torch.allclose(found["log_p"], log_p(z0))
    assert torch.allclose(found["grad_log_p"], g.norm(dim=1), rtol=1e-4)
    assert torch.allclose(found["grad_p"], norm_of_p, rtol=1e-3, atol=1e-8)
    clear = (norm_of_p - 1e-4).abs() > 1e-6
    assert torch.equal(found["plateau"][clear], (norm_of_p < 1e-4).float()[clear])
    assert torch.allclose(found["smoothness"], torch.cosine_similarity(g, moved), atol=1e-4)
    way = means[target] - z0
    assert torch.allclose(found["usefulness"], torch.cosine_similarity(g, way), atol=1e-4)


def test_a_plateau_is_a_short_gradient_of_p_and_not_of_log_p(systems, digits):
    """Sharper members: the gradient of log p grows, that of p dies."""
    target = (digits.labels + 3) % 10
    z0, nudge = systems.vae.latents(digits.images)[0], torch.zeros(16, 4)
    rates, norms = [], []
    for temperature in (1.0, 0.2, 0.04):
        ensemble = systems.ensembles["l-sample"].only([0], temperature=temperature)
        system = System("", "l-sample", "mnist", systems.vae, ensemble)
        found = start_gradients(system, z0, target, systems.class_means, nudge)
        rates.append(found["plateau"].mean().item())
        norms.append(found["grad_log_p"].median().item())
        clear = found["grad_log_p"] > 1e-9
        assert torch.allclose(found["smoothness"][clear], torch.ones(int(clear.sum())), atol=1e-5)
    assert rates[0] < rates[1] < rates[2] > 0.9 and norms[0] < norms[1] < norms[2]


@pytest.mark.parametrize("name", ["l-sample-m3", "p-m2"])
def test_member_gradients_and_their_mixture_are_those_of_autograd(systems, digits, name):
    system, target = systems.system(name), (digits.labels + 3) % 10
    z0 = systems.vae.latents(digits.images)[0]
    log_p, g = member_gradients(system, z0, target)
    members, rows = len(system.ensemble), torch.arange(16)
    assert log_p.shape == (members, 16) and g.shape == (members, 16, 4)
    z = z0.clone().requires_grad_()
    through = z if system.reads_latents else systems.vae.decode(z)
    alone = system.ensemble.member_log_probabilities(through)[:, rows, target]
    assert torch.allclose(log_p, alone, atol=1e-4)
    for m in range(members):
        assert torch.allclose(g[m], torch.autograd.grad(alone[m].sum(), z, retain_graph=True)[0], atol=1e-3)
    mixture = torch.autograd.grad(system.log_probabilities(z)[rows, target].sum(), z)[0]
    assert torch.allclose(mixture_gradient(log_p, g), mixture, atol=1e-3, rtol=1e-3)


@few
@given(seeds, st.integers(1, 6))
def test_the_mixture_gradient_is_the_weighted_sum(seed, m):
    log_p, g = -draw(m, 5, seed=seed).abs() * 3, draw(m, 5, 4, seed=seed + 1)
    for n in range(5):
        p = log_p[:, n].exp()
        by_hand = sum(p[k] / p.sum() * g[k, n] for k in range(m))
        assert torch.allclose(mixture_gradient(log_p, g)[n], by_hand)
    assert torch.allclose(mixture_gradient(log_p, g), mixture_gradient(log_p.flip(0), g.flip(0)))
    log_p[0] += 400  # the least saturated member leads
    assert torch.allclose(mixture_gradient(log_p, g), g[0])


@few
@given(seeds, st.integers(2, 7), st.integers(1, 9))
def test_agreement_is_a_loop_over_pairs(seed, m, n):
    g = draw(m, n, 5, seed=seed) * torch.rand(m, n, 1, generator=torch.Generator().manual_seed(seed)).double() + 0.3
    found = agreement(g)
    pairs = [torch.cosine_similarity(g[a, i], g[b, i], dim=0).item() for i in range(n)
             for a, b in itertools.combinations(range(m), 2)]  # fmt: skip
    assert found["cosine"] == pytest.approx(np.mean(pairs), abs=1e-9)
    assert found["ratio"] == pytest.approx(found["cosine"] / (1 - found["cosine"]))
    snr = []
    for i in range(n):
        u = [g[k, i] / g[k, i].norm() for k in range(m)]
        mean = sum(u) / m
        snr.append((mean.square().sum() / (sum((x - mean).square().sum() for x in u) / m)).item())
    assert found["snr"] == pytest.approx(sorted(snr)[(n - 1) // 2], rel=1e-6)  # torch's median is the lower one


@pytest.mark.parametrize("c", [0.0, 0.5, 0.94])
def test_snr_of_equal_members_depends_on_how_many_there_are(c):
    """Unit vectors of one pairwise cosine c: SNR = (1 + (M − 1)c) / ((M − 1)(1 − c)), c/(1 − c) only in the limit."""
    values = []
    for m in (2, 3, 6, 10, 20):
        u = math.sqrt(c) * torch.eye(m + 1)[0] + math.sqrt(1 - c) * torch.eye(m + 1)[1:]
        found = agreement(u[:, None].double() * torch.rand(m, 1, 1) * 5)
        assert found["cosine"] == pytest.approx(c, abs=1e-6)
        assert found["ratio"] == pytest.approx(c / (1 - c), rel=1e-5, abs=1e-6)
        assert found["snr"] == pytest.approx((1 + (m - 1) * c) / ((m - 1) * (1 - c)), rel=1e-5)
        values.append(found["snr"])
    assert values == sorted(values, reverse=True)


def test_disjoint_ensembles_of_equal_members_agree():
    log_p, g = -draw(1, 6).abs().expand(20, 6), draw(1, 6, 4).expand(20, 6, 4)
    assert convergence(log_p, g, rng()) == pytest.approx({1: 1.0, 2: 1.0, 3: 1.0, 5: 1.0, 10: 1.0})
    assert list(convergence(log_p[:5], g[:5], rng())) == [1, 2]


def test_disjoint_ensembles_converge_like_means_of_independent_draws():
    """Members g_m = a + noise of equal p: the cosine of two means of m is about 1 / (1 + d σ²/(m‖a‖²))."""
    n, d, sigma = 400, 30, 1.0
    a = draw(n, d)
    a = 3 * a / a.norm(dim=1, keepdim=True)
    g = a + sigma * draw(20, n, d, seed=1)
    found = convergence(torch.zeros(20, n, dtype=torch.float64), g, rng())
    for m, value in found.items():
        assert value == pytest.approx(1 / (1 + d * sigma**2 / (9 * m)), abs=0.02)
    assert list(found.values()) == sorted(found.values())


def test_disjoint_halves_share_no_member(monkeypatch):
    """Member m points along axis m: halves that share none are orthogonal."""
    g = torch.eye(10, dtype=torch.float64)[:, None].expand(10, 3, 10)
    found = convergence(torch.zeros(10, 3, dtype=torch.float64), g, rng(3))
    assert list(found) == [1, 2, 3, 5] and all(value == pytest.approx(0, abs=1e-12) for value in found.values())


# tables of diagnostics


def accuracies(values):
    """Rows of the p space: (world, seed, member, image, correct, correct on the reconstruction)."""
    columns = ["world", "seed", "m", "classifier", "image", "correct", "correct_reconstruction"]
    return pd.DataFrame(values, columns=columns).assign(space="p")


def test_single_members_are_averaged():
    rows = [("mnist", 0, 1, f"p.{k}", image, float(k == 0), 1.0) for k in range(4) for image in "ab"]
    rows += [("mnist", 0, 3, "p-m3", image, 1.0, 0.0) for image in "ab"]
    table = over_members(accuracies(rows))
    assert len(table) == 4 and set(table["classifier"]) == {"p-m1", "p-m3"}
    assert (table.loc[table["m"] == 1, "correct"] == 0.25).all() and (table.loc[table["m"] == 3, "correct"] == 1).all()


@pytest.mark.parametrize(("kept", "adequate"), [(10, 1.0), (9, 1.0), (8, 1.0), (7, 0.0)])
def test_a_generator_that_costs_more_than_ten_points_is_inadequate(kept, adequate):
    rows = [("mnist", 0, 1, "p.0", f"i{k}", 0.9, 0.1 * kept) for k in range(20)]
    rows += [("mnist", 0, 5, "p-m5", f"i{k}", 1.0, 0.0) for k in range(20)]  # ensembles do not count
    gate = reconstruction_gate(accuracies(rows))
    assert gate[["world", "seed"]].to_numpy().tolist() == [["mnist", 0]] and gate["adequate"].tolist() == [adequate]
    assert gate["cost"].item() == pytest.approx(0.9 - 0.1 * kept)


@pytest.mark.parametrize("right", range(20, 101, 10))
def test_exactly_ten_points_are_adequate(right):
    images = [f"i{k}" for k in range(100)]
    rows = [("mnist", 0, 1, "p.0", image, k < right, k < right - 10) for k, image in enumerate(images)]
    table = accuracies(rows).astype({"correct": np.float32, "correct_reconstruction": np.float32})
    assert reconstruction_gate(table)["adequate"].tolist() == [1.0]
    table.loc[0, "correct_reconstruction"] = 0  # one image more is too much
    assert reconstruction_gate(table)["adequate"].tolist() == [0.0]


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


# rows and cells


def test_the_aggregate_posterior_is_a_mixture_of_normals(systems, digits):
    train = replace(digits, labels=torch.arange(16) % 3)
    z, target = torch.randn(150, 4, generator=torch.Generator().manual_seed(0)), torch.arange(150) % 3
    mean, std = systems.vae.latents(train.images)
    found = AggregatePosterior(systems.vae, train).negative_log_likelihood(z, target)
    for label in range(3):
        theirs, mine = train.labels == label, target == label
        parts = distributions.Independent(distributions.Normal(mean[theirs], std[theirs]), 1)
        mixture = distributions.MixtureSameFamily(distributions.Categorical(torch.ones(int(theirs.sum()))), parts)
        assert torch.allclose(found[mine], -mixture.log_prob(z[mine]), rtol=1e-4, atol=1e-4)


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
    cells = cells_of(rows).set_index(["method", "m"])
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
    valid = cells_of(rows).set_index("image")["valid"]
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
    found = at_equal_change(cells_of(pd.DataFrame(lines)), {"mnist": [1.0, 4.0, 8.0, 30.0]})
    assert set(found["method"]) == {"direction/change", "class-mean-shift/change"} and len(found) == 2 * 2 * 4
    value = found[found["method"] == "direction/change"].set_index(["image", "strength"])
    assert value.loc["a", "oracle_share"].tolist() == pytest.approx([0.1, 0.3, 0.75, 1.0])
    assert value.loc["b", "oracle_share"].tolist() == pytest.approx([0.35, 0.3, 0.75, 1.0])  # from its own start
    assert value.loc["a", "im1"].tolist() == pytest.approx([0.9, 0.7, 0.25, 0.0])
    assert value.loc["a", "change"].tolist() == [1, 4, 8, 10]  # the path ends at 10
    assert (value["classifier"] == "p-m1").all() and (value["space"] == "p").all()


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
