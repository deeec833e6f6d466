"""Gradient diagnostics, each against a loop, finite differences or a closed form."""

import itertools
import math
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from clarity_draws import draw, few, rng, seeds
from hypothesis import given
from hypothesis import strategies as st

from common.data import datasets
from papers.clarity.diagnostics import (
    agreement,
    convergence,
    cosine,
    member_gradients,
    mixture_gradient,
    over_members,
    reconstruction_gate,
    start_gradients,
    variant_accuracy,
)
from papers.clarity.systems import System

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
    main = accuracies([("mnist", 0, 1, "p.0", f"i{k}", 0.9, 0.1 * kept) for k in range(20)]).assign(vae="")
    variant = accuracies([("mnist", 0, 1, "p.0", f"i{k}", 0.9, 0.85) for k in range(20)]).assign(vae="mnist-d8")
    gate = reconstruction_gate(pd.concat([main, variant])).set_index("vae")
    assert gate.loc["", "cost"] == pytest.approx(0.9 - 0.1 * kept) and gate.loc["", "adequate"] == adequate
    assert gate.loc["mnist-d8", "adequate"] == 1  # each VAE passes or fails on its own


def test_a_variant_is_read_by_the_main_pixel_classifiers(systems, digits, monkeypatch):
    """A VAE that draws black costs them all they read beyond the class they see in black."""
    black = replace(systems, vae=deepcopy(systems.vae))
    black.vae.decoder[-1].weight.zero_(), black.vae.decoder[-1].bias.fill_(-30.0)
    monkeypatch.setattr(datasets, "load", lambda *arguments: digits)
    found = variant_accuracy(black, "black", systems, None, None)
    names = systems.names("p", [1])
    assert len(found) == len(names) * len(digits.ids) and (found["vae"] == "black").all()
    for k, name in enumerate(names):
        system, mine = systems.system(name), found.iloc[len(digits.ids) * k : len(digits.ids) * (k + 1)]
        seen = system(torch.zeros_like(digits.images)).argmax(1)
        assert mine["correct"].tolist() == (system(digits.images).argmax(1) == digits.labels).float().tolist()
        assert mine["correct_reconstruction"].tolist() == (seen == digits.labels).float().tolist()


@pytest.mark.parametrize("right", range(20, 101, 10))
def test_exactly_ten_points_are_adequate(right):
    images = [f"i{k}" for k in range(100)]
    rows = [("mnist", 0, 1, "p.0", image, k < right, k < right - 10) for k, image in enumerate(images)]
    table = accuracies(rows).astype({"correct": np.float32, "correct_reconstruction": np.float32}).assign(vae="")
    assert reconstruction_gate(table)["adequate"].tolist() == [1.0]
    table.loc[0, "correct_reconstruction"] = 0  # one image more is too much
    assert reconstruction_gate(table)["adequate"].tolist() == [0.0]
