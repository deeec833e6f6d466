"""The linear maximisation oracle against bisection, a linear program, SLSQP and closed forms (SVCE §2.3)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from common.errors import VceError
from papers.svce.lmo import lmo, oracle

NORMS = (1, 1.1, 1.5, 2, 4)
KINDS = ("normal", "cauchy", "sparse", "outlier", "wide", "ties")


def problem(seed, d, kind, dtype, n=1):
    """N gradients of a kind, and images of which 0 to 90 % of the values are exactly 0 or 1."""
    g = torch.Generator().manual_seed(seed)

    def uniform():
        return torch.rand(n, d, generator=g, dtype=torch.float64)

    w = torch.randn(n, d, generator=g, dtype=torch.float64)
    match kind:
        case "cauchy":
            w = w / (uniform() - 0.5)
        case "sparse":
            w = w * (uniform() < 0.1)
        case "outlier":
            w[:, seed % d] *= 1e13
        case "wide":
            w = w * 10 ** (30 * uniform() - 15)
        case "ties":
            w = w.sign() * (1 + w.abs().round())
    x = uniform()
    saturated = uniform() < 0.9 * uniform()[:, :1]
    return w.to(dtype), torch.where(saturated, x.round(), x).to(dtype)


def room(w, x):
    """|w| and γ in float64, with w = 0 where γ = 0 and the reverse."""
    w, x = w.double(), x.double()
    gamma = torch.where(w > 0, 1 - x, torch.where(w < 0, x, torch.zeros_like(x)))
    return w.abs() * (gamma > 0), gamma


def norm(delta, p):
    return delta.double().abs().pow(p).sum(-1).pow(1 / p)


def reference(w, x, epsilon, p):
    """The optimum of one row in float64: 200 bisections on log μ, or the sorted knapsack; returns (|w|/max, s)."""
    a, gamma = room(w, x)
    a = a / a.max().clamp_min(1e-300)
    if p == 1:
        order = a.argsort(descending=True)
        before = gamma[order].cumsum(0) - gamma[order]
        s = torch.zeros_like(gamma)
        s[order] = torch.minimum(gamma[order], (epsilon - before).clamp_min(0))
        return a, s
    if gamma.pow(p).sum() <= epsilon**p:
        return a, gamma
    log_s = a.log() / (p - 1)
    low, high = -3000.0, 30000.0
    for _ in range(200):
        middle = (low + high) / 2
        feasible = norm(torch.minimum(gamma, (log_s + middle).exp()), p) <= epsilon
        low, high = (middle, high) if feasible else (low, middle)
    return a, torch.minimum(gamma, (log_s + low).exp())


def relative_gap(w, x, epsilon, p):
    """1 − value/optimum of one row, after a check of feasibility."""
    delta = lmo(w[None], x[None], epsilon, p)[0]
    slack = 1e-6 if w.dtype == torch.float32 else 1e-11
    assert norm(delta, p) <= epsilon * (1 + slack)
    assert (x + delta).min() >= 0 and (x + delta).max() <= 1
    assert not (delta[w == 0] != 0).any()
    a, s = reference(w, x, float(torch.tensor(epsilon, dtype=w.dtype)), p)
    best = (a * s).sum()
    return float(1 - (a * delta.double() * w.double().sign()).sum() / best) if best > 0 else float(delta.abs().sum())


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
def test_objective_reaches_a_float64_bisection(p, dtype, tolerance):
    gaps = []
    for seed in range(60):
        d = (1, 2, 6, 50, 784, 3072)[seed % 6] if seed else 20000
        w, x = problem(seed, d, KINDS[seed // 6 % 6], dtype)
        radius = 10 ** (-3 + 3.2 * ((seed * 0.618) % 1)) * d ** (1 / p)
        gaps.append(abs(relative_gap(w[0], x[0], radius, p)))
    assert max(gaps) <= tolerance


@pytest.mark.parametrize("p", [1.02, 8, 50])
def test_norms_near_one_and_large(p):
    for seed in range(12):
        w, x = problem(seed, 300, KINDS[seed % 6], torch.float64)
        assert abs(relative_gap(w[0], x[0], 0.2 * 300 ** (1 / p), p)) <= 1e-9


def test_p2_without_box_is_the_normalised_gradient():
    w, _ = problem(0, 500, "normal", torch.float64, n=4)
    delta = lmo(w, torch.full_like(w, 0.5), 0.1, 2)
    torch.testing.assert_close(delta, 0.1 * w / w.norm(dim=1, keepdim=True), rtol=1e-10, atol=0)


@pytest.mark.parametrize("p", [1.1, 1.5, 4])
def test_without_box_is_the_dual_power(p):
    w, _ = problem(1, 50, "normal", torch.float64)
    direction = w.sign() * w.abs() ** (1 / (p - 1))
    expected = 0.05 * direction / norm(direction, p)
    torch.testing.assert_close(lmo(w, torch.full_like(w, 0.5), 0.05, p), expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("p", [1.5, 2, 4])
def test_agrees_with_a_generic_solver_on_six_coordinates(p):
    for seed in range(4):
        w, x = problem(seed, 6, "normal", torch.float64)
        w, x = w[0].numpy(), x[0].numpy()
        best = minimize(
            lambda s, w=w: -w @ s,
            0.01 * np.sign(w) * np.where(w > 0, 1 - x, x),
            jac=lambda s, w=w: -w,
            bounds=list(zip(-x, 1 - x, strict=True)),
            constraints={"type": "ineq", "fun": lambda s: 0.7**p - (np.abs(s) ** p).sum()},
            options={"ftol": 1e-13, "maxiter": 500},
        )
        delta = lmo(torch.from_numpy(w)[None], torch.from_numpy(x)[None], 0.7, p)[0].numpy()
        assert w @ delta == pytest.approx(-best.fun, rel=1e-7)


def test_p1_agrees_with_a_linear_program():
    for seed in range(8):
        w, x = problem(seed, 40, KINDS[seed % 6] if seed % 6 != 4 else "normal", torch.float64)
        a, gamma = room(w[0], x[0])
        a = a / a.max()
        best = linprog(-a.numpy(), A_ub=np.ones((1, 40)), b_ub=[1.7], bounds=[(0, float(g)) for g in gamma])
        delta = lmo(w, x, 1.7, 1)[0]
        assert float((a * delta.abs()).sum()) == pytest.approx(-best.fun, rel=1e-9)


def test_p1_ties_share_the_rest_of_the_budget():
    w = torch.tensor([[2.0, -1.0, 1.0, 1.0, 0.5]])
    x = torch.tensor([[0.5, 0.4, 0.6, 0.8, 0.0]])
    torch.testing.assert_close(lmo(w, x, 1.0, 1), torch.tensor([[0.5, -0.2, 0.2, 0.1, 0.0]]))


@pytest.mark.parametrize("p", NORMS)
def test_inactive_ball_gives_the_corner_of_the_box(p):
    w, x = problem(3, 30, "sparse", torch.float32, n=3)
    corner = torch.where(w > 0, 1 - x, torch.where(w < 0, -x, torch.zeros_like(x)))
    assert torch.equal(lmo(w, x, 1e3, p), corner)


@pytest.mark.parametrize("p", NORMS)
def test_saturated_coordinates_take_no_budget(p):
    """Four fifths of the coordinates cannot move: dropping them must not change the others, whatever their gradient."""
    w, x = problem(4, 1000, "normal", torch.float32)
    stuck = torch.arange(1000) % 5 > 0
    x[:, stuck] = (w[:, stuck] > 0).float()
    for factor in (0.01, 1.0, 1e30):
        steep = torch.where(stuck, w * factor, w * 1e-12)
        delta = lmo(steep, x, 2.0, p)
        assert not delta[:, stuck].any()
        torch.testing.assert_close(delta[:, ~stuck], lmo(w[:, ~stuck], x[:, ~stuck], 2.0, p), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_gradient_and_broken_rows_stay_put_and_disturb_nobody(p, dtype):
    w, x = problem(5, 400, "normal", dtype, n=6)
    clean = lmo(w, x, 1.5, p)
    w[1], w[2, 7], w[3, 8], x[4, 9] = 0, torch.nan, -torch.inf, torch.nan
    delta = lmo(w, x, 1.5, p)
    assert not delta[1:5].any()
    assert torch.equal(delta[[0, 5]], clean[[0, 5]])


@pytest.mark.parametrize("p", NORMS)
def test_an_infinite_gradient_stays_put_though_the_ball_is_inactive(p):
    w, x = problem(6, 50, "normal", torch.float32, n=2)
    w[0, 3] = torch.inf
    delta = lmo(w, x, 1e4, p)
    assert not delta[0].any()
    assert delta[1].any()


@pytest.mark.parametrize("p", NORMS)
def test_a_gradient_that_underflows_against_the_largest_does_not_move(p):
    w, x = torch.full((1, 8), 1e-25), torch.full((1, 8), 0.5)
    w[0, 0] = 1e30
    delta = lmo(w, x, 0.3, p)
    torch.testing.assert_close(delta[0], torch.tensor([0.3] + [0.0] * 7), rtol=1e-6, atol=0)


@given(seed=st.integers(0, 10**6), p=st.sampled_from(NORMS), exponent=st.floats(-30, 30))
@settings(max_examples=60, deadline=None)
def test_scale_of_the_gradient_does_not_matter(seed, p, exponent):
    w, x = problem(seed, 64, "normal", torch.float32)
    expected = lmo(w, x, 1.0, p)
    assert expected.any()
    torch.testing.assert_close(lmo(w * 10**exponent, x, 1.0, p), expected, rtol=1e-3, atol=2e-5)
    torch.testing.assert_close(lmo(w * 2.0 ** int(3 * exponent), x, 1.0, p), expected, rtol=0, atol=0)


@given(
    seed=st.integers(0, 10**6),
    p=st.sampled_from(NORMS),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    log_radius=st.floats(-4, 1),
    d=st.integers(1, 80),
)
@settings(max_examples=150, deadline=None)
def test_feasible_and_optimal_on_anything(seed, p, kind, dtype, log_radius, d):
    w, x = problem(seed, d, kind, dtype)
    gap = relative_gap(w[0], x[0], 10**log_radius * d ** (1 / p), p)
    assert abs(gap) <= (1e-6 if dtype == torch.float32 else 1e-10)


@given(seed=st.integers(0, 10**6), p=st.sampled_from(NORMS))
@settings(max_examples=30, deadline=None)
def test_rows_are_independent_and_keep_their_radius(seed, p):
    w, x = problem(seed, 96, KINDS[seed % 6], torch.float64, n=5)
    epsilon = torch.logspace(-2, 1, 5, dtype=torch.float64)
    delta = lmo(w, x, epsilon, p)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(lmo(w[order], x[order], epsilon[order], p), delta[order], rtol=1e-9, atol=1e-13)
    for i in range(5):
        torch.testing.assert_close(
            lmo(w[i : i + 1], x[i : i + 1], float(epsilon[i]), p)[0], delta[i], rtol=1e-9, atol=0
        )


def test_large_rows_start_from_a_sample_and_blocks_cover_the_batch():
    """150 528 values: more than one block, and a sample that misses the one coordinate that matters."""
    w, x = problem(6, 150528, "normal", torch.float32, n=3)
    w[0, 1] = 1e6
    for p in NORMS:
        radius = {1: 400.0, 1.1: 250.0, 1.5: 50.0, 2: 12.0, 4: 2.0}[p]
        for row in range(3):
            assert abs(relative_gap(w[row], x[row], radius, p)) <= 1e-6
        torch.testing.assert_close(lmo(w, x, radius, p)[2], lmo(w[2:], x[2:], radius, p)[0], rtol=1e-5, atol=1e-7)


def test_image_shaped_batches_and_the_bound_oracle():
    w, x = problem(7, 48, "normal", torch.float32, n=3)
    epsilon = torch.tensor([0.5, 1.0, 2.0])
    images = lmo(w.view(3, 3, 4, 4), x.view(3, 3, 4, 4), epsilon, 1.5)
    assert torch.equal(images.flatten(1), lmo(w, x, epsilon, 1.5))
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(oracle(epsilon, 1.5)(w[rows], x[rows], rows), lmo(w, x, epsilon, 1.5)[rows])
    torch.testing.assert_close(oracle(0.7, 1.5)(w[rows], x[rows], rows), lmo(w, x, 0.7, 1.5)[rows])
    assert lmo(w[:0], x[:0], 1.0, 1.5).shape == (0, 48)


@pytest.mark.parametrize(("epsilon", "p"), [(0.0, 2), (-1.0, 1), (float("nan"), 2), (1.0, 0.9), (1.0, float("inf"))])
def test_bad_radius_or_norm_is_one_line(epsilon, p):
    with pytest.raises(VceError) as error:
        lmo(torch.ones(2, 3), torch.ones(2, 3) / 2, epsilon, p)
    assert "\n" not in str(error.value)
    with pytest.raises(VceError):
        lmo(torch.ones(2, 3), torch.ones(2, 3) / 2, torch.tensor([1.0, 0.0]), 2)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("radius", [1e-30, 1e30])
def test_radii_whose_powers_leave_the_range_of_float32(p, radius):
    w, x = problem(8, 200, "normal", torch.float32)
    x = x.clamp(0.25, 0.75)
    delta = lmo(w, x, radius, p)
    if radius > 1:
        assert torch.equal(x + delta, (w > 0).float())
    else:
        expected = lmo(w.double(), torch.full_like(w, 0.5).double(), 1e-3, p) * 1e-27
        torch.testing.assert_close(delta.double(), expected, rtol=1e-3, atol=1e-36)
