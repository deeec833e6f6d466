"""Checkpoints, projection and selection without sorting, and both APGDs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.attacks import (
    apgd_l1,
    apgd_l2,
    apgd_linf,
    checkpoints,
    must_shrink,
    project_l1,
    sparse_sign,
    top_threshold,
    unit,
)
from common.errors import VceError


def quadratic(centre):
    """L = −½‖x − c‖², concave, with one centre per sample."""

    def value_and_grad(x, rows):
        difference = centre[rows] - x
        return -0.5 * difference.square().flatten(1).sum(1), difference

    return value_and_grad


def batch(n=5, seed=0, shape=(3, 6, 6)):
    g = torch.Generator().manual_seed(seed)
    x0 = torch.rand(n, *shape, generator=g)
    return x0, torch.rand(n, *shape, generator=g), torch.randn(n, *shape, generator=g)


def test_checkpoints_of_the_paper():
    assert tuple(checkpoints(75)) == (16, 30, 42, 52, 60, 66, 70, 74)
    assert tuple(checkpoints(75).values()) == (16, 14, 12, 10, 8, 6, 4, 4)
    assert tuple(checkpoints(100)) == (22, 41, 57, 70, 80, 87, 93, 99)


@given(st.integers(0, 400))
def test_checkpoints_lie_in_the_run_and_windows_add_up(K):
    marks = checkpoints(K)
    done = 0
    for mark, window in marks.items():
        done += window
        assert window >= 1 and mark == done <= K


def test_checkpoint_decision():
    increases = torch.tensor([7, 8, 8, 8, 8])
    L_best = torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0])
    reduced = torch.tensor([False, False, True, False, False])
    L_last = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0])
    # ρ·10 = 7.5: too few increases; fine; no gain after a reduction; no gain without one; gain
    assert must_shrink(increases, 10, L_best, L_last, reduced).tolist() == [True, False, False, True, False]


@given(
    seed=st.integers(0, 10**6),
    d=st.integers(1, 60),
    log_radius=st.floats(-2, 1.5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    saturated=st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_l1_projection_satisfies_the_kkt_conditions(seed, d, log_radius, dtype, saturated):
    g = torch.Generator().manual_seed(seed)
    x0 = torch.rand(3, d, generator=g, dtype=dtype)
    x0 = x0.round() if saturated else x0
    y = torch.randn(3, d, generator=g, dtype=dtype) * torch.tensor([[0.1], [1.0], [30.0]], dtype=dtype)
    epsilon = torch.full((3,), 10**log_radius, dtype=dtype)
    delta = project_l1(y, x0, epsilon)
    tol = 2e-5 if dtype == torch.float32 else 1e-11
    box_only = torch.minimum(torch.maximum(y, -x0), 1 - x0)
    for i in range(3):
        scale = max(1.0, float(y[i].abs().max()))
        assert delta[i].abs().sum() <= epsilon[i] * (1 + 1e-6)
        assert (x0[i] + delta[i]).min() >= 0 and (x0[i] + delta[i]).max() <= 1
        if box_only[i].abs().sum() <= epsilon[i]:
            torch.testing.assert_close(delta[i], box_only[i])
            continue
        assert delta[i].abs().sum() >= epsilon[i] - tol * scale
        gamma = torch.where(y[i] > 0, 1 - x0[i], x0[i])
        # λ is as coarse as |y|, and the walls give way when the sum is scaled back to ε
        at_wall = delta[i].abs() >= gamma * (1 - tol * max(1.0, scale / float(epsilon[i])))
        inner = (delta[i].abs() > 0) & ~at_wall
        multiplier = (y[i].abs() - delta[i].abs())[inner]
        outer_low = (y[i].abs() - gamma)[at_wall & (gamma > 0)]
        outer_high = y[i].abs()[(delta[i] == 0) & (gamma > 0)]
        if len(multiplier):
            lam = multiplier.mean()
            assert (multiplier - lam).abs().max() <= tol * scale
        else:
            lam = outer_high.max() if len(outer_high) else torch.zeros((), dtype=dtype)
        assert not len(outer_low) or outer_low.min() >= lam - tol * scale
        assert not len(outer_high) or outer_high.max() <= lam + tol * scale
        assert lam >= -tol


def test_l1_projection_agrees_with_bisection_on_an_image():
    g = torch.Generator().manual_seed(0)
    x0 = torch.rand(2, 30000, generator=g, dtype=torch.float64)
    y = torch.randn(2, 30000, generator=g, dtype=torch.float64)
    gamma = torch.where(y > 0, 1 - x0, x0)
    low, high = torch.zeros(2, 1, dtype=torch.float64), torch.full((2, 1), 10.0, dtype=torch.float64)
    for _ in range(100):
        middle = (low + high) / 2
        too_far = torch.minimum((y.abs() - middle).clamp_min(0), gamma).sum(1, keepdim=True) > 100
        low, high = torch.where(too_far, middle, low), torch.where(too_far, high, middle)
    expected = y.sign() * torch.minimum((y.abs() - high).clamp_min(0), gamma)
    projected = project_l1(y, x0, torch.full((2,), 100.0, dtype=torch.float64))
    torch.testing.assert_close(projected, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threshold_selects_as_a_sort_does(dtype):
    a = torch.rand(4, 500, generator=torch.Generator().manual_seed(0), dtype=dtype)
    a[3, 100:] = 0
    k = torch.tensor([[0], [3], [499], [99]], dtype=dtype)
    ranked = a.sort(1, descending=True).values
    assert torch.equal(top_threshold(a, None, k), ranked.gather(1, k.long()))
    weight = torch.rand(4, 500, generator=torch.Generator().manual_seed(1), dtype=dtype)
    tau = top_threshold(a, weight, k / 4)
    for row in range(4):
        assert (weight[row] * (a[row] > tau[row])).sum() <= k[row] / 4
        assert tau[row] == 0 or (weight[row] * (a[row] >= tau[row])).sum() > k[row] / 4


def test_sparse_sign_takes_the_top_share_and_has_unit_l1_norm():
    g = torch.tensor([[[5.0, -4.0, 3.0, 2.0, 1.0]], [[1e-30, -1e-30, 0.0, 0.0, 0.0]], [[0.0] * 5]])
    step = sparse_sign(g, torch.tensor([0.45, 0.0, 0.2]))
    half = 0.5
    assert step.tolist() == [[[half, -half, 0, 0, 0]], [[half, -half, 0, 0, 0]], [[0.0] * 5]]


@pytest.mark.parametrize("scale", [1e-35, 1.0, 1e35])
def test_unit_keeps_directions_of_any_size(scale):
    g = torch.tensor([[3.0, 4.0], [0.0, 0.0]]) * scale
    torch.testing.assert_close(unit(g), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


@pytest.mark.parametrize(("optimiser", "radius"), [(apgd_l2, 2.0), (apgd_l1, 8.0)])
def test_apgd_finds_the_point_of_its_set_nearest_to_a_centre(optimiser, radius):
    x0, centre, z = batch()
    epsilon = torch.full((5,), radius)
    nearest = x0 + (radius * unit(centre - x0) if optimiser is apgd_l2 else project_l1(centre - x0, x0, epsilon))
    best, start = (quadratic(centre)(x, torch.arange(5))[0] for x in (nearest, x0))
    answer = optimiser(x0, quadratic(centre), radius, z, 100)
    assert (best - answer.L).min() >= -1e-4
    assert ((best - answer.L) / (best - start)).max() <= 0.02


def test_apgd_l2_reaches_the_optimum_of_a_linear_objective():
    g = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    answer = apgd_l2(
        torch.full_like(g, 0.5), lambda x, rows: ((x * g[rows]).flatten(1).sum(1), g[rows]), 0.3, g.roll(1, 0), 75
    )
    torch.testing.assert_close(answer.x, 0.5 + 0.3 * unit(g), rtol=0, atol=1e-5)


def test_apgd_l1_reaches_the_optimum_of_a_linear_objective():
    g = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    x0 = torch.full_like(g, 0.5)
    best = 1.5 * g.flatten(1).abs().topk(3, dim=1).values.sum(1) / 3
    answer = apgd_l1(
        x0, lambda x, rows: (((x - x0[rows]) * g[rows]).flatten(1).sum(1), g[rows]), 1.5, g.roll(1, 0), 100
    )
    assert (best + 1e-5 >= answer.L).all() and (0.9 * best <= answer.L).all()


def l1_transcription(x0, objective, epsilon, z, K):
    """l1-APGD as the spec words it, for one image, with a sort; the projection is tested above."""
    row, d, radius = torch.tensor([0]), x0.numel(), torch.tensor([epsilon], dtype=x0.dtype)
    x = x0 + project_l1(z, x0, radius)
    L, g = objective(x, row)
    best, eta, share, support = (x, L, g), epsilon, 0.2, d
    window = max(int(0.04 * K), 1)
    for i in range(K):
        kept = max(int(share * d), 1)
        smallest = g.abs().flatten().sort(descending=True).values[kept - 1]
        step = g.sign() * (g.abs() >= smallest)
        x = x0 + project_l1(x - x0 + eta * step / step.abs().sum(), x0, radius)
        L, g = objective(x, row)
        if best[1] < L:
            best = (x, L, g)
        if (i + 1) % window == 0:
            now = int((best[0] != x0).sum())
            if now < 0.95 * support:
                eta, (x, _, g) = epsilon, best
            else:
                eta = max(eta / 1.5, epsilon / 10)
            share, support = now / (1.5 * d), now
    return best


def test_apgd_l1_matches_the_spec():
    x0, centre, z = (tensor.double() for tensor in batch(n=4, seed=5))
    answer = apgd_l1(x0, quadratic(centre), 6.0, z, 75)
    for i in range(4):
        one = slice(i, i + 1)
        x, L, _ = l1_transcription(x0[one], quadratic(centre[one]), 6.0, z[one], 75)
        torch.testing.assert_close(answer.L[one], L, rtol=1e-9, atol=0)
        torch.testing.assert_close(answer.x[one], x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("multi_radius", [False, True])
def test_apgd_l1_stays_in_its_set_and_counts_passes(multi_radius):
    x0, centre, z = batch(n=3)
    epsilon, passes, numbers = torch.tensor([0.5, 2.0, 8.0]), 0, []
    objective = quadratic(centre)

    def counted(x, rows):
        nonlocal passes
        passes += 1
        return objective(x, rows)

    answer = apgd_l1(
        x0, counted, epsilon, z, 30, multi_radius=multi_radius, callback=lambda seen: numbers.append(seen["i"])
    )
    assert passes == 31 and numbers == list(range(31)) and (answer.steps == 31).all()
    norms = (answer.x - x0).abs().flatten(1).sum(1)
    assert (norms <= epsilon * (1 + 1e-5)).all() and norms[0] > 0.4
    assert answer.x.min() >= 0 and answer.x.max() <= 1
    torch.testing.assert_close(answer.L, objective(answer.x, torch.arange(3))[0])


def test_multi_radius_starts_wide_and_narrows():
    x0, centre, z = batch(n=2, seed=3)
    norms = []
    objective = quadratic(centre)

    def watched(x, rows):
        norms.append(float((x - x0).abs().flatten(1).sum(1).max()))
        return objective(x, rows)

    apgd_l1(x0, watched, 1.0, z, 49, multi_radius=True)
    stages = (norms[:15], norms[15:30], norms[30:])
    assert [max(stage) for stage in stages] == pytest.approx([3, 2, 1], rel=1e-4)
    with pytest.raises(VceError):
        apgd_l1(x0, objective, 1.0, z, 2, multi_radius=True)


def test_wide_stages_cannot_finish_a_sample_and_remember_who_diverged():
    x0, centre, z = batch(n=3, seed=3)
    objective, calls = quadratic(centre), 0

    def breaks_early(x, rows):
        nonlocal calls
        calls += 1
        L, g = objective(x, rows)
        L[(rows == 1) & (calls == 3)] = torch.nan
        return L, g

    answer = apgd_l1(x0, breaks_early, 1.0, z, 49, multi_radius=True, stop_at=-1e9)
    assert answer.diverged.tolist() == [False, True, False]
    assert answer.steps.tolist() == [31, 19, 31]  # 15 + 15 passes at 3ε and 2ε, then the first one at ε
    assert ((answer.x - x0).abs().flatten(1).sum(1) <= 1 + 1e-5).all()


def test_apgd_l2_stays_in_its_set_per_row():
    x0, centre, z = batch(n=3)
    epsilon = torch.tensor([0.1, 0.5, 1.0])
    seen = []
    objective = quadratic(centre)

    def watched(x, rows):
        seen.append((x - x0).flatten(1).norm(dim=1))
        return objective(x, rows)

    apgd_l2(x0, watched, epsilon, z, 20)
    assert (torch.stack(seen) <= epsilon * (1 + 1e-5)).all() and (torch.stack(seen).amax(0) > 0.95 * epsilon).all()
    assert len(seen) == 21


def test_apgd_linf_stays_in_its_set_per_row_and_finds_the_corner_of_a_linear_objective():
    """max ⟨w, δ⟩ over ‖δ‖∞ ≤ ε and the box is sgn(w)·min(ε, room), reached exactly."""
    x0, _, z = batch(n=3)
    w = torch.randn(x0.shape, generator=torch.Generator().manual_seed(7))
    epsilon, seen = torch.tensor([0.05, 0.2, 2.0]), []

    def linear(x, rows):
        seen.append((x - x0).flatten(1).abs().amax(1))
        assert x.min() >= 0 and x.max() <= 1
        return (w[rows] * (x - x0[rows])).flatten(1).sum(1), w[rows]

    answer = apgd_linf(x0, linear, epsilon, z, 20)
    assert (torch.stack(seen) <= epsilon + 1e-6).all() and len(seen) == 21
    room = torch.where(w > 0, 1 - x0, x0)
    torch.testing.assert_close(answer.x, x0 + w.sign() * room.minimum(epsilon.view(-1, 1, 1, 1)))


@pytest.mark.parametrize("optimiser", [apgd_l2, apgd_linf, apgd_l1])
def test_passes_count_what_waits_in_the_batch_too(optimiser):
    """Samples that reach `stop_at` run on until a checkpoint lets them go; every pass of every row is counted."""
    x0, centre, z = batch(n=8, seed=4)
    objective, run = quadratic(centre), torch.zeros(8, dtype=torch.long)

    def counted(x, rows):
        run.index_add_(0, rows, torch.ones_like(rows))
        return objective(x, rows)

    start = objective(x0, torch.arange(8))[0]
    answer = optimiser(x0, counted, 0.8, z, 50, stop_at=float(start.sort().values[4]))
    assert torch.equal(answer.passes, run)
    assert (answer.passes >= answer.steps).all() and answer.passes.sum() < 8 * 51
    full = optimiser(x0, objective, 0.8, z, 50)
    assert (full.passes == 51).all() and (full.steps == 51).all()


@pytest.mark.parametrize("optimiser", [apgd_l2, apgd_linf, apgd_l1])
def test_a_broken_sample_keeps_its_best_image_and_disturbs_nobody(optimiser):
    x0, centre, z = batch(n=4)
    objective, calls = quadratic(centre), 0

    def breaks(x, rows):
        nonlocal calls
        calls += 1
        L, g = objective(x, rows)
        if calls >= 8:
            g[rows == 1] = torch.nan
        L[rows == 2] = -math.inf
        return L, g

    clean, answer = optimiser(x0, objective, 0.8, z, 40), optimiser(x0, breaks, 0.8, z, 40)
    assert answer.diverged.tolist() == [False, True, True, False]
    assert answer.steps.tolist() == [41, 8, 1, 41]
    assert torch.equal(answer.x[[0, 3]], clean.x[[0, 3]]) and torch.equal(answer.L[[0, 3]], clean.L[[0, 3]])
    assert torch.equal(answer.x[2], x0[2]) and answer.L[2] == -math.inf
    torch.testing.assert_close(objective(answer.x, torch.arange(4))[0][1], answer.L[1])


@pytest.mark.parametrize("optimiser", [apgd_l2, apgd_linf, apgd_l1])
@pytest.mark.parametrize("epsilon", [0.0, -1.0, torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0])])
def test_bad_radius_is_one_line(optimiser, epsilon):
    x0, centre, z = batch()
    with pytest.raises(VceError, match=r"^epsilon: [^\n]*$"):
        optimiser(x0, quadratic(centre), epsilon, z, 5)
