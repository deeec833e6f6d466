"""Clarity's search against one sample at a time with torch's own Adam, on objectives with a known answer."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from papers.clarity.method import CHECK_EVERY, follow_direction, latent_search, straight

D, LR = 3, 0.05
seeds = st.integers(0, 2**31 - 1)
few = settings(max_examples=25, deadline=None)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Quadratic:
    """log p = −½ a‖z − c‖², which has p = 1 at the sample's own centre c."""

    def __init__(self, n, seed=0, a=0.8):
        self.centre, self.a = 2 * draw(n, D, seed=seed + 1), a

    def log_p(self, z, rows):
        return -0.5 * self.a * (z - self.centre[rows]).square().sum(1)


class Logistic:
    """log p = log σ(wᵀz + b) of the sample's own w and b; its p is flat far from the boundary."""

    def __init__(self, n, seed=0):
        self.w, self.b = draw(n, D, seed=seed + 2), 2 * draw(n, seed=seed + 3) - 4

    def log_p(self, z, rows):
        return F.logsigmoid((self.w[rows] * z).sum(1) + self.b[rows])


problems = pytest.mark.parametrize("problem", [Quadratic, Logistic])


def objective_of(problem, rows=None):
    """`(z, rows) -> (log p, gradient)`; `rows` are the numbers that samples of a part have in the problem."""

    def objective(z, mine):
        z = z.detach().requires_grad_()
        log_p = problem.log_p(z, mine if rows is None else rows[mine])
        return log_p.detach(), torch.autograd.grad(log_p.sum(), z)[0]

    return objective


def search(problem, z0, taus, rows=None, **options):
    return latent_search(z0, objective_of(problem, rows), taus, **{"lr": LR, "steps": 200, **options})


def by_hand(problem, row, z0, tau, *, lam=0.0, steps=200, lr=LR, optimiser="adam", ascend="log p", radius=math.inf):
    """Latent, log p, evaluations and whether it diverged of one sample: torch's optimiser on J, stopped by an `if`."""
    z, start, last = z0.clone().requires_grad_(), z0.clone(), (z0, -math.inf)
    update = torch.optim.Adam([z], lr) if optimiser == "adam" else torch.optim.SGD([z], lr)
    for k in range(steps + 1):
        log_p = problem.log_p(z[None], torch.tensor([row]))[0]
        if not math.isfinite(log_p.item()) or z.detach().norm() > radius:
            return *last, k + 1, True
        last = z.detach().clone(), log_p.item()
        if log_p.item() >= math.log(tau):
            break
        value = log_p if ascend == "log p" else log_p.exp()
        update.zero_grad()
        (-value + lam * (z - start).square().sum()).backward()
        update.step()
    return *last, k + 1, False


def same(path, n, s, hand):
    """Whether sample n at threshold s of a path is what `by_hand` found."""
    z, log_p, evaluations, diverged = hand
    return (
        torch.allclose(path.z[n, s], z, atol=1e-9)
        and path.log_p[n, s].item() == pytest.approx(log_p, abs=1e-9)
        and path.steps[n, s].item() == evaluations
        and path.diverged[n, s].item() == diverged
    )


@problems
@pytest.mark.parametrize("lam", [0.0, 0.05])
def test_each_sample_and_threshold_is_a_loop_with_torchs_adam(problem, lam):
    n, taus = 7, (0.5, 0.9, 0.99)
    problem, z0 = problem(n), draw(n, D)
    path = search(problem, z0, taus, lam=lam)
    reached = path.log_p >= torch.tensor(taus, dtype=torch.float64).log()
    for row in range(n):
        for s, tau in enumerate(taus):
            assert same(path, row, s, by_hand(problem, row, z0[row], tau, lam=lam)), (row, tau)
    assert reached.any() and path.steps[reached].unique().numel() > 6  # they finish at different times
    if lam or isinstance(problem, Logistic):
        assert not reached.all()
    assert not path.diverged.any()


@problems
def test_the_returned_point_is_the_first_that_satisfies_the_test(problem):
    n, seen = 9, {}
    problem, z0 = problem(n), draw(n, D)

    def callback(state):
        for row, z, log_p in zip(state["rows"].tolist(), state["z"], state["log_p"].tolist(), strict=True):
            seen.setdefault(row, []).append((log_p, z))

    path = search(problem, z0, (0.9,), callback=callback)
    for row, iterates in seen.items():
        first = next((k for k, (log_p, _) in enumerate(iterates) if log_p >= math.log(0.9)), len(iterates) - 1)
        assert path.steps[row, 0] == first + 1 and torch.equal(path.z[row, 0], iterates[first][1])
        assert all(torch.equal(z, iterates[first][1]) for _, z in iterates[first:])  # and stays there
    assert max(map(len, seen.values())) == 201 or (path.log_p >= math.log(0.9)).all()


@few
@given(seeds, st.integers(1, 17), st.integers(0, 17), st.randoms(use_true_random=False))
def test_batch_order_and_split_change_no_sample(seed, n, cut, random):
    problem, z0, order = Logistic(n, seed), draw(n, D, seed=seed), torch.tensor(random.sample(range(n), n))
    options = {"steps": 60, "lr": 0.2, "lam": 0.01}
    whole = search(problem, z0, (0.3, 0.8), **options)
    for rows in (order[:cut], order[cut:], order[:1]):
        if len(rows):
            part = search(problem, z0[rows], (0.3, 0.8), rows, **options)
            assert torch.allclose(part.z, whole.z[rows], atol=1e-6)
            assert torch.equal(part.steps, whole.steps[rows]) and torch.equal(part.diverged, whole.diverged[rows])


def test_samples_that_finish_leave_the_batch():
    n, sizes = 33, []
    problem, z0 = Quadratic(n), draw(n, D)
    z0[:30] = problem.centre[:30] + 0.01
    search(problem, z0, (0.9,), callback=lambda state: sizes.append(len(state["rows"])))
    assert sizes[0] == n and sizes[1] == 4 and len(sizes) < 201  # three are left, in a bucket of four
    everyone = []
    search(problem, problem.centre, (0.9,), callback=lambda state: everyone.append(len(state["rows"])))
    assert everyone == [n]


@problems
def test_thresholds_of_one_run_are_separate_runs(problem):
    n, taus = 7, (0.2, 0.5, 0.9, 0.99)
    problem, z0 = problem(n), draw(n, D)
    together = search(problem, z0, taus)
    for s, tau in enumerate(taus):
        alone = search(problem, z0, (tau,))
        assert torch.equal(together.z[:, [s]], alone.z) and torch.equal(together.steps[:, [s]], alone.steps)
        assert torch.equal(together.log_p[:, [s]], alone.log_p)
    mixed = search(problem, z0, taus[::-1])
    assert torch.equal(mixed.z, together.z.flip(1)) and torch.equal(mixed.steps, together.steps.flip(1))


@pytest.mark.parametrize("steps", [0, 1, CHECK_EVERY, 2 * CHECK_EVERY + 3])
def test_a_threshold_out_of_reach_leaves_the_last_iterate(steps):
    class Low(Quadratic):
        def log_p(self, z, rows):
            return super().log_p(z, rows) - 3

    problem, z0 = Low(5), draw(5, D)
    path = search(problem, z0, (0.9,), steps=steps)
    assert (path.steps == steps + 1).all() and not path.diverged.any()
    for row in range(5):
        assert same(path, row, 0, by_hand(problem, row, z0[row], 0.9, steps=steps))


def test_the_optimum_of_a_quadratic_is_found():
    n = 8
    problem, z0 = Quadratic(n), draw(n, D)
    path = search(problem, z0, (1 - 1e-7,), steps=1000)
    assert (path.z[:, 0] - problem.centre).norm(dim=1).max() < (2e-7 / problem.a) ** 0.5 * 1.01
    penalised = search(problem, z0, (1 - 1e-12,), steps=1500, lam=0.3)
    # −J is quadratic, its optimum between centre and start: a(c − z) = 2λ(z − z0)
    best = (problem.a * problem.centre + 0.6 * z0) / (problem.a + 0.6)
    assert torch.allclose(penalised.z[:, 0], best, atol=1e-5)


@pytest.mark.parametrize("ascend", ["log p", "p"])
def test_a_plain_step_is_the_gradient_of_j_by_finite_differences(ascend):
    lam, n, h = 0.3, 6, 1e-5
    problem, z0, rows = Logistic(n), draw(n, D), torch.arange(6)
    options = {"lam": lam, "ascend": ascend, "optimiser": "gradient", "lr": 0.5}
    one, two = (search(problem, z0, (1 - 1e-9,), steps=k, **options).z[:, 0] for k in (1, 2))

    def minus_j(z):
        log_p = problem.log_p(z, rows)
        return (log_p if ascend == "log p" else log_p.exp()) - lam * (z - z0).square().sum(1)

    for before, after in ((z0, one), (one, two)):
        steps = h * torch.eye(D, dtype=torch.float64)
        by_differences = torch.stack([(minus_j(before + e) - minus_j(before - e)) / (2 * h) for e in steps], 1)
        assert torch.allclose((after - before) / 0.5, by_differences, atol=1e-8)
    assert (one - z0).abs().max() > 1e-3 and (two - one).abs().max() > 1e-3


def test_ascent_of_p_stalls_on_the_plateau_and_that_of_log_p_does_not():
    n = 4
    problem = Logistic(n)
    problem.b = torch.full((n,), -40.0, dtype=torch.float64)
    problem.w = problem.w / problem.w.norm(dim=1, keepdim=True)
    z0, options = torch.zeros(n, D, dtype=torch.float64), {"optimiser": "gradient", "lr": 0.5}
    flat, steep = (search(problem, z0, (0.9,), ascend=ascend, **options) for ascend in ("p", "log p"))
    assert (flat.z[:, 0] - z0).abs().max() < 1e-12 and (flat.steps == 201).all() and not flat.diverged.any()
    assert (steep.log_p >= math.log(0.9)).all() and (steep.steps < 201).all()
    for row in range(n):
        hand = by_hand(problem, row, z0[row], 0.9, ascend="log p", optimiser="gradient", lr=0.5)
        assert same(steep, row, 0, hand)


def test_adam_sees_no_plateau_because_it_has_no_scale():
    """The same plateau: Adam divides the scale of p out, as long as p·∇log p is far above its ε."""
    problem, z0 = Logistic(3), torch.zeros(3, D, dtype=torch.float64)
    problem.b, problem.w = torch.full((3,), -10.0, dtype=torch.float64), torch.ones(3, D, dtype=torch.float64)
    path = search(problem, z0, (0.9,), ascend="p")
    assert (path.log_p >= math.log(0.9)).all()


@pytest.mark.parametrize("where", ["value", "gradient"])
def test_a_value_that_is_no_number_ends_its_own_sample_alone(where):
    n, taus = 9, (0.3, 0.9)
    problem, z0 = Quadratic(n), draw(n, D)
    whole = search(problem, z0, taus)
    middle = int(whole.steps[4, 0] + whole.steps[4, 1]) // 2  # between its two thresholds
    assert whole.steps[4, 0] < middle < whole.steps[4, 1]
    calls, plain = [], objective_of(problem)

    def breaking(z, rows):
        log_p, g = plain(z, rows)
        calls.append(1)
        broken = (rows == 4) & (len(calls) > middle)
        if where == "value":
            return torch.where(broken, torch.nan, log_p), g
        g[broken, 0] = torch.inf
        return log_p, g

    path = latent_search(z0, breaking, taus, lr=LR, steps=200)
    others = [row for row in range(n) if row != 4]
    assert torch.equal(path.z[others], whole.z[others]) and torch.equal(path.steps[others], whole.steps[others])
    assert path.diverged.nonzero().tolist() == [[4, 1]] and torch.equal(path.z[4, 0], whole.z[4, 0])
    last = search(problem, z0, taus, steps=middle - 1)  # the last iterate before
    assert torch.equal(path.z[4, 1], last.z[4, 1]) and path.log_p[4, 1] == last.log_p[4, 1]
    assert path.steps[4, 1] == middle + 1 and path.z.isfinite().all()


def test_a_start_that_is_no_number_stays_where_it_is():
    problem = Quadratic(3)
    problem.centre[1] = torch.nan
    z0 = draw(3, D)
    path = search(problem, z0, (0.9,))
    assert path.diverged[:, 0].tolist() == [False, True, False] and torch.equal(path.z[1, 0], z0[1])
    assert path.steps[1, 0] == 1 and path.log_p[1, 0] == -math.inf


def test_a_search_that_leaves_the_prior_ends_before_it():
    n, radius = 16, 1.8
    problem, z0 = Quadratic(n), 0.3 * draw(n, D)
    path = search(problem, z0, (0.5, 0.99), prior_radius=radius)
    assert path.diverged.any() and not path.diverged.all() and (path.z.norm(dim=2) <= radius).all()
    for row in range(n):
        for s, tau in enumerate((0.5, 0.99)):
            assert same(path, row, s, by_hand(problem, row, z0[row], tau, radius=radius))
    z0[3] *= 1.001 * radius / z0[3].norm()
    path = search(problem, z0, (0.5,), prior_radius=radius)
    assert path.diverged[3, 0] and torch.equal(path.z[3, 0], z0[3]) and path.steps[3, 0] == 1


@pytest.mark.parametrize("optimiser", ["adam", "gradient"])
def test_the_start_is_not_modified(optimiser):
    z0 = draw(20, D)
    before = z0.clone()
    path = search(Quadratic(20), z0, (0.5, 0.9), lam=0.05, optimiser=optimiser)
    assert torch.equal(z0, before) and path.z.data_ptr() != z0.data_ptr()


def test_the_way_is_as_long_as_its_steps():
    """Plain steps down a round bowl are straight, so the way is as long as the displacement; Adam's is not shorter."""
    n = 10
    problem, z0, length = Quadratic(n), draw(n, D), torch.zeros(n, dtype=torch.float64)

    def callback(state):
        length[state["rows"]] = state["travelled"]

    path = search(problem, z0, (0.9,), optimiser="gradient", callback=callback)
    assert torch.allclose(length, (path.z[:, 0] - z0).norm(dim=1)) and (length > 0).any()
    path = search(problem, z0, (0.9,), callback=callback)
    assert (length >= (path.z[:, 0] - z0).norm(dim=1) - 1e-9).all()


# the direction at matched distance


def test_a_straight_objective_is_followed_to_exactly_that_distance():
    z0, way = draw(6, D), draw(6, D, seed=1)
    calls = []

    def direction(z):
        calls.append(1)
        return way

    z, evaluations = follow_direction(z0, direction, (0.5, 1.0, 3.0), 0.1)
    unit = way / way.norm(dim=1, keepdim=True)
    for s, radius in enumerate((0.5, 1.0, 3.0)):
        assert torch.allclose(z[:, s], z0 + radius * unit, atol=1e-12)
        assert (evaluations[:, s] == round(radius / 0.1)).all()
    assert evaluations.shape == (6, 3) and len(calls) == 30


@few
@given(seeds, st.floats(0.2, 3.0))
def test_every_radius_is_kept_whatever_the_field(seed, least):
    main, z0 = draw(D, seed=seed), draw(7, D, seed=seed + 1)
    main, radii = 3 * main / main.norm(), [least, 2 * least, 5 * least]

    def direction(z):
        """Never 0, and so smooth that rounding does not grow."""
        return main + 0.5 * z.flip(1).sin()

    z, _ = follow_direction(z0, direction, radii, least / 10)
    assert torch.allclose((z - z0[:, None]).norm(dim=2), torch.tensor(radii, dtype=torch.float64).expand(7, 3))
    walker = z0.clone()  # one step after the other; only what is returned is rescaled
    for k in range(1, 51):
        g = direction(walker)
        walker += least / 10 * g / g.norm(dim=1, keepdim=True)
        if k in (10, 20, 50):
            unit = (walker - z0) / (walker - z0).norm(dim=1, keepdim=True)
            found = z[:, (10, 20, 50).index(k)]
            assert torch.allclose(found, z0 + k * least / 10 * unit, atol=1e-9)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_sample_without_a_direction_stays(value):
    z0, way = draw(4, D), draw(4, D, seed=1)
    way[2, :] = value
    z, _ = follow_direction(z0, lambda z: way, (1.0, 2.0), 0.1)
    assert torch.equal(z[2], z0[2].expand(2, D))
    assert torch.allclose((z[[0, 1, 3]] - z0[[0, 1, 3], None]).norm(dim=2), torch.tensor([1.0, 2.0]).double())


def test_straight_is_a_line_through_both():
    z0, towards = draw(5, D), draw(5, D, seed=1)
    towards[4] = z0[4]  # there is no way
    gap = (towards - z0).norm(dim=1)
    z = straight(z0, towards, (0.5, 2.0, gap[0].item()))
    assert torch.allclose(z[0, 2], towards[0])
    assert torch.equal(z[4], z0[4].expand(3, D))
    assert torch.allclose((z - z0[:, None]).norm(dim=2)[:4], torch.tensor([0.5, 2.0, gap[0].item()]).double())
    along = ((z[:4] - z0[:4, None]) * (towards - z0)[:4, None]).sum(2)
    assert torch.allclose(along, (z[:4] - z0[:4, None]).norm(dim=2) * gap[:4, None])  # a cosine of 1
