"""Auto-Frank-Wolfe: a transcription of the spec, budgets, who leaves the batch, and who must not notice (SVCE §2.4)."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from common.attacks import apgd_l1, apgd_l2
from common.errors import VceError
from common.explain import log_confidence
from papers.svce.lmo import lmo, oracle
from papers.svce.method import auto_frank_wolfe, frank_wolfe

N, SHAPE, K = 8, (3, 8, 8), 30


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Softplus(), nn.Conv2d(8, 8, 3, stride=2), nn.Softplus(), nn.Flatten()
    )
    model = nn.Sequential(layers, nn.Linear(72, 4)).eval().requires_grad_(False).double()
    for parameter in model.parameters():
        parameter.mul_(3)
    return model


@pytest.fixture(scope="module")
def data():
    g = torch.Generator().manual_seed(1)
    x0 = torch.rand(N, *SHAPE, generator=g, dtype=torch.float64)
    z = torch.randn(N, *SHAPE, generator=g, dtype=torch.float64)
    return x0, z, torch.arange(N) % 4, torch.linspace(0.4, 3, N, dtype=torch.float64)


def afw(variant):
    def run(x0, objective, epsilon, z, K, *, p=1.5, **options):
        return auto_frank_wolfe(x0, objective, oracle(epsilon, p), z, K, variant, **options)

    return run


def plain(x0, objective, epsilon, z, K, *, p=1.5, **options):
    return frank_wolfe(x0, objective, oracle(epsilon, p), z, K, **options)


OPTIMISERS = {
    "A": afw("A"),
    "B": afw("B"),
    "plain": plain,
    "apgd_l2": apgd_l2,
    "apgd_l1": apgd_l1,
    "apgd_l1_wide": partial(apgd_l1, multi_radius=True),
}
every_optimiser = pytest.mark.parametrize("name", OPTIMISERS)


def transcription(x0, objective, epsilon, p, z, K, variant):
    """The pseudocode of the spec for one image, with loops and a list of losses."""
    row = torch.tensor([0])
    x = (x0 + lmo(z, x0, epsilon, p)).clamp(0, 1)
    L, g = objective(x, row)
    best, a = (x, L, g), {"A": 0.75, "B": 2.0}[variant]
    window, c, reduced, L_last, losses = max(int(0.22 * K), 1), 0, True, L, []
    for i in range(K):
        v = x0 + lmo(g, x0, epsilon, p)
        gamma = a if variant == "A" else a / (2 + math.sqrt(i))
        x = x + gamma * (v - x)
        L, g = objective(x, row)
        losses.append(L)
        if best[1] < L:
            best = (x, L, g)
        c += 1
        if c == window:
            pairs = [(j - 1, j) for j in range(i - window + 1, i + 1) if j >= 1]
            oscillates = sum(bool(losses[j] > losses[h]) for h, j in pairs) <= 0.75 * window
            stuck = not reduced and bool(L_last >= best[1])
            if oscillates or stuck:
                a *= {"A": 0.5, "B": 0.75}[variant]
                x, g = best[0], best[2]
            reduced, L_last, c = oscillates or stuck, best[1], 0
            window = max(window - max(int(0.03 * K), 1), max(int(0.06 * K), 1))
    return best


@pytest.mark.parametrize("variant", ["A", "B"])
@pytest.mark.parametrize(("p", "iterations"), [(1.5, 75), (2, 40), (1, 25)])
def test_matches_the_pseudocode(net, data, variant, p, iterations):
    x0, z, target, epsilon = data
    answer = auto_frank_wolfe(x0, log_confidence(net, target), oracle(epsilon, p), z, iterations, variant)
    for i in range(N):
        one = slice(i, i + 1)
        x, L, _ = transcription(
            x0[one], log_confidence(net, target[one]), float(epsilon[i]), p, z[one], iterations, variant
        )
        torch.testing.assert_close(answer.L[one], L, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(answer.x[one], x, rtol=0, atol=1e-5)


@every_optimiser
@pytest.mark.parametrize("iterations", [3, 10, 75])
def test_exactly_one_pass_more_than_iterations(net, data, name, iterations):
    x0, z, target, epsilon = data
    objective, passes, seen = log_confidence(net, target), 0, []

    def counted(x, rows):
        nonlocal passes
        passes += 1
        assert torch.equal(rows, torch.arange(N)) and x.min() >= 0 and x.max() <= 1
        return objective(x, rows)

    answer = OPTIMISERS[name](x0, counted, epsilon, z, iterations, callback=seen.append)
    assert passes == len(seen) == iterations + 1 and (answer.steps == passes).all()
    assert [event["i"] for event in seen] == list(range(passes)) and set(seen[0]) == {"i", "L", "L_best", "rows"}
    torch.testing.assert_close(answer.L, objective(answer.x, torch.arange(N))[0])
    if name != "apgd_l1_wide":
        assert torch.equal(answer.L, torch.stack([event["L"] for event in seen]).amax(0))


@pytest.mark.parametrize("name", ["A", "B", "plain"])
@pytest.mark.parametrize("p", [1, 1.1, 1.5, 2, 4])
def test_a_linear_objective_ends_at_the_oracle(data, name, p):
    x0, z, _, epsilon = data
    w = z.roll(1, 0)

    def linear(x, rows):
        return ((x - x0[rows]) * w[rows]).flatten(1).sum(1), w[rows]

    answer = OPTIMISERS[name](x0, linear, epsilon, z, 75, p=p)
    best = (w * lmo(w, x0, epsilon, p)).flatten(1).sum(1)
    torch.testing.assert_close(answer.L, best, rtol=1e-4 if name == "plain" else 1e-9, atol=0)


@pytest.mark.parametrize("name", ["A", "B", "plain"])
@pytest.mark.parametrize("p", [1, 1.5, 2])
def test_every_iterate_stays_in_the_ball_of_its_row(net, data, name, p):
    x0, z, target, epsilon = data
    objective = log_confidence(net, target)

    def watched(x, rows):
        norm = (x - x0[rows]).flatten(1).abs().pow(p).sum(1).pow(1 / p)
        assert (norm <= epsilon[rows] * (1 + 1e-9)).all()
        return objective(x, rows)

    OPTIMISERS[name](x0, watched, epsilon, z, K, p=p)


def test_variants_climb_and_the_adaptive_step_helps(net, data):
    x0, z, target, epsilon = data
    objective = log_confidence(net, target)
    start = objective(x0, torch.arange(N))[0]
    L = {name: OPTIMISERS[name](x0, objective, epsilon, z, 75).L for name in ("A", "B", "plain")}
    assert (L["A"] > start).all() and (L["B"] > start).all() and (L["plain"] > start).all()
    assert not torch.equal(L["A"], L["B"])
    wide = afw("B")(x0, objective, 2 * epsilon, z, 75).L
    assert wide.mean() > L["B"].mean()


@every_optimiser
def test_deterministic_and_independent_of_the_order(net, data, name):
    x0, z, target, epsilon = data
    run = OPTIMISERS[name]
    answer = run(x0, log_confidence(net, target), epsilon, z, K)
    again = run(x0, log_confidence(net, target), epsilon, z, K)
    assert torch.equal(answer.x, again.x) and torch.equal(answer.L, again.L)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    permuted = run(x0[order], log_confidence(net, target[order]), epsilon[order], z[order], K)
    torch.testing.assert_close(permuted.x, answer.x[order], rtol=0, atol=1e-6)
    torch.testing.assert_close(permuted.L, answer.L[order], rtol=1e-7, atol=1e-9)


@every_optimiser
def test_inputs_are_left_alone(net, data, name):
    x0, z, _, epsilon = data
    gradient = torch.randn(N, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    before = x0.clone(), z.clone(), gradient.clone(), epsilon.clone()
    OPTIMISERS[name](x0, lambda x, rows: ((x * gradient[rows]).flatten(1).sum(1), gradient), epsilon, z, 12)
    assert all(torch.equal(a, b) for a, b in zip(before, (x0, z, gradient, epsilon), strict=True))


@every_optimiser
def test_a_nan_gradient_leaves_the_others_bit_identical(net, data, name):
    x0, z, target, epsilon = data
    objective, passes = log_confidence(net, target), 0

    def breaks(x, rows):
        nonlocal passes
        passes += 1
        L, g = objective(x, rows)
        if passes > 20:
            g[rows == 3, 0, 0, 0] = torch.nan
        if passes == 20:
            L[rows == 5] = torch.nan
        return L, g

    run = OPTIMISERS[name]
    clean, answer = run(x0, objective, epsilon, z, K), run(x0, breaks, epsilon, z, K)
    others = [0, 1, 2, 4, 6, 7]
    assert answer.diverged.nonzero().flatten().tolist() == [3, 5]
    assert torch.equal(answer.x[others], clean.x[others]) and torch.equal(answer.L[others], clean.L[others])
    assert answer.x.isfinite().all() and answer.L.isfinite().all()
    torch.testing.assert_close(answer.L, objective(answer.x, torch.arange(N))[0])


@pytest.mark.parametrize("name", ["A", "B", "plain", "apgd_l2", "apgd_l1"])
def test_samples_that_reach_the_goal_leave_the_batch(net, data, name):
    x0, z, target, epsilon = data
    objective, sizes = log_confidence(net, target), []

    def counted(x, rows):
        sizes.append(len(rows))
        return objective(x, rows)

    run = OPTIMISERS[name]
    path = []
    free_run = run(x0, objective, epsilon, z, 75, callback=lambda seen: path.append(seen["L"]))
    goal = float(free_run.L.sort().values[2:4].mean())
    answer = run(x0, counted, epsilon, z, 75, stop_at=goal)
    done = goal <= answer.L
    assert torch.equal(done, goal <= free_run.L) and done.sum() == 5
    torch.testing.assert_close(answer.x[~done], free_run.x[~done], rtol=0, atol=1e-6)
    path = torch.stack(path)
    first = (path >= goal).int().argmax(0)
    torch.testing.assert_close(answer.L[done], path[first, torch.arange(N)][done], rtol=1e-7, atol=1e-9)
    assert torch.equal(answer.steps[done], first[done] + 1)
    assert (answer.steps[~done] == 76).all() and (answer.steps[done] < 76).all()
    assert sizes[0] == N and sizes[-1] == 4 and sum(sizes) < 76 * N
    torch.testing.assert_close(answer.L, objective(answer.x, torch.arange(N))[0])
    everyone = run(x0, counted, epsilon, z, 75, stop_at=-1e9)
    assert (everyone.steps == 1).all()


def test_a_finished_sample_keeps_the_image_that_reached_the_goal(net, data):
    """What a sample returns must not depend on how long it pads the batch of others."""
    x0, z, target, epsilon = data
    goal = float(afw("B")(x0, log_confidence(net, target), epsilon, z, 75).L.median())
    together = afw("B")(x0, log_confidence(net, target), epsilon, z, 75, stop_at=goal)
    for i in range(N):
        one = slice(i, i + 1)
        alone = afw("B")(x0[one], log_confidence(net, target[one]), epsilon[one], z[one], 75, stop_at=goal)
        assert alone.steps == together.steps[one]
        torch.testing.assert_close(alone.x, together.x[one], rtol=0, atol=1e-6)


def test_unknown_variant_and_bad_radius_are_one_line(net, data):
    x0, z, target, _ = data
    with pytest.raises(VceError, match=r"^variant: [^\n]*$"):
        auto_frank_wolfe(x0, log_confidence(net, target), oracle(1.0, 1.5), z, K, "C")
    with pytest.raises(VceError, match=r"^epsilon: [^\n]*$"):
        auto_frank_wolfe(x0, log_confidence(net, target), oracle(0.0, 1.5), z, K, "A")
