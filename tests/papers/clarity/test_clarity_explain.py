"""Clarity's contract function, directions at matched distance, and the baselines, on tiny real systems."""

import math
from copy import deepcopy
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import VceError
from common.explain import Streams, log_confidence
from common.results import STATUSES
from papers.clarity.baselines import latent_ascent, revise_adam, revise_plain, revise_terms, schut
from papers.clarity.explain import class_mean_shift, directions, explain
from papers.clarity.method import latent_search
from papers.clarity.systems import System

TAUS = (0.5, 0.9, 0.99)


@pytest.fixture
def problem(digits):
    """Images, labels and other classes as targets."""
    return digits.images, digits.labels, (digits.labels + 1 + torch.arange(16) % 9) % 10


def same(a, b):
    """Whether two batches hold the same bits."""
    return all(np.array_equal(getattr(a, item.name), getattr(b, item.name)) for item in fields(a))


def broken(system, member):
    """The system with one member that is no number."""
    parts = deepcopy(system.ensemble)
    parts.state["5.bias"][member] = torch.nan
    return System(system.name, system.space, system.world, system.vae, parts)


# the contract


@pytest.mark.parametrize("name", ["l-sample-m3", "l-mean.0", "p-m2", "pr.1"])
def test_the_contract(systems, problem, name):
    (x, source, target), system = problem, systems.system(name)
    batch = explain(x, source, target, classifier=system)
    n, s = 16, 3
    z0 = systems.vae.latents(x)[0]
    assert batch.images.shape == (n, s, 1, 28, 28) and batch.strengths == TAUS
    assert batch.latent_shift.shape == (n, s, 4) and batch.reference.shape == x.shape
    assert set(batch.status.flat) <= set(STATUSES) - {"skipped", "unreadable"}
    assert batch.images.min() >= 0 and batch.images.max() <= 1
    # every picture is the decoded latent, its confidence that of the latent
    z = z0[:, None] + batch.latent_shift
    for j in range(s):
        assert torch.allclose(batch.images[:, j], systems.vae.decode(z[:, j]), atol=1e-5)
        log_p = system.log_probabilities(z[:, j])
        assert torch.allclose(batch.log_confidence[:, j], log_p.gather(1, target[:, None])[:, 0], atol=1e-4)
        flipped = log_p.argmax(1) == target
        sound = batch.status[:, j] != "diverged"
        assert (batch.status[sound, j] == np.where(flipped[sound], "ok", "not_flipped")).all()
    assert torch.equal(batch.reference, systems.vae.reconstruct(x))
    assert torch.allclose(batch.distance, (batch.images - x[:, None]).abs().flatten(2).mean(2))
    assert torch.equal(batch.steps, batch.forward) and torch.equal(batch.steps, batch.backward)
    # a sample stops because it reached τ, because its steps are over, or because it left the prior
    reached = batch.confidence >= torch.tensor(TAUS) - 1e-6
    assert (reached | (batch.steps == 301) | torch.from_numpy(batch.status == "diverged")).all()
    assert (batch.steps[:, 1:] >= batch.steps[:, :-1]).all() and (reached.sum(0) > 0).all()
    assert (z.norm(dim=2) <= systems.vae.prior_radius + 1e-5).all()
    if name == "l-sample-m3":
        assert {"ok", "diverged"} <= set(batch.status.flat) and not reached[:, 1].all()


def test_it_is_the_search_of_the_method(systems, problem):
    (x, source, target), system = problem, systems.system("l-mean-m3")
    z0, options = systems.vae.latents(x)[0], {"lam": 0.05, "steps": 40, "lr": 0.1, "ascend": "p"}
    path = latent_search(
        z0, log_confidence(system.log_probabilities, target), TAUS, prior_radius=systems.vae.prior_radius, **options
    )
    batch = explain(x, source, target, classifier=system, **options)
    assert torch.equal(batch.latent_shift, path.z - z0[:, None]) and torch.equal(batch.steps, path.steps)
    assert torch.allclose(batch.log_confidence, path.log_p, atol=1e-4)
    assert ((batch.status == "diverged") == path.diverged.numpy()).all()


def test_same_bits_run_after_run_and_no_random_stream(systems, problem, digits):
    x, source, target = problem
    for method, strengths in ((explain, TAUS), (directions, (0.5, 1.0))):
        one, two = (
            method(x, source, target, classifier=systems.system("l-sample-m3"), strengths=strengths, rng=rng)
            for rng in (None, Streams(3, digits.ids, tuple(target.tolist())))
        )
        assert same(one, two)


@pytest.mark.parametrize("name", ["l-sample-m3", "p.0"])
def test_batch_order_and_split_keep_statuses_and_images(systems, problem, name):
    (x, source, target), system = problem, systems.system(name)
    whole = explain(x, source, target, classifier=system, strengths=(0.5, 0.9))
    for rows in (torch.tensor([3]), torch.arange(15, -1, -1), torch.tensor([7, 0, 12, 4, 9])):
        part = explain(x[rows], source[rows], target[rows], classifier=system, strengths=(0.5, 0.9))
        assert (part.status == whole.status[rows.numpy()]).all()
        assert torch.allclose(part.images, whole.images[rows], atol=1e-3)
        assert (part.steps - whole.steps[rows]).abs().max() <= 1


def test_a_sample_whose_target_is_its_source_is_skipped(systems, problem):
    (x, source, target), system = problem, systems.system("l-sample-m3")
    own = torch.where(torch.arange(16) % 5 == 0, source, target)
    for method, strengths in ((explain, TAUS), (directions, (0.5, 1.0))):
        batch, whole = (method(x, source, t, classifier=system, strengths=strengths) for t in (own, target))
        mine = source == own
        assert (batch.status[mine] == "skipped").all() and "skipped" not in batch.status[~mine]
        assert torch.equal(batch.images[mine], x[mine][:, None].expand_as(batch.images[mine]))
        assert (batch.distance[mine] == 0).all()
        assert torch.allclose(batch.images[~mine], whole.images[~mine], atol=1e-3)
        assert (batch.status[~mine] == whole.status[~mine]).all()


@pytest.mark.parametrize("tau", [0.0, 1.0, -0.5, 1.5, math.nan])
def test_a_threshold_that_is_no_confidence_is_one_line(systems, problem, tau):
    x, source, target = problem
    with pytest.raises(VceError, match=rf"strengths: τ = {tau:g} is no confidence between 0 and 1"):
        explain(x, source, target, classifier=systems.system("l-sample.0"), strengths=(0.5, tau))


@pytest.mark.parametrize("method", [explain, directions])
def test_another_classifier_is_one_line(problem, method):
    x, source, target = problem
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with pytest.raises(VceError, match="--classifier: clarity explains its own latent classifier, no other") as caught:
        method(x, source, target, classifier=network, strengths=(0.5,))
    assert "\n" not in str(caught.value)
    with pytest.raises(VceError, match="no other"):
        class_mean_shift(x, source, target, classifier=network, class_means=torch.zeros(10, 4), strengths=(0.5,))


# broken numbers


@pytest.mark.parametrize("name", ["l-sample-m3", "p-m2"])
def test_a_member_that_is_no_number_makes_every_sample_diverge(systems, problem, name):
    x, source, target = problem
    system = broken(systems.system(name), 1)
    z0 = systems.vae.latents(x)[0]
    batch = explain(x, source, target, classifier=system)
    assert (batch.status == "diverged").all() and (batch.confidence == 0).all() and (batch.steps == 1).all()
    assert torch.allclose(batch.images, systems.vae.decode(z0)[:, None].expand_as(batch.images), atol=1e-6)
    batch = directions(x, source, target, classifier=system, strengths=(0.5, 1.0))
    assert (batch.status == "diverged").all() and (batch.confidence == 0).all()
    assert torch.allclose(batch.images, systems.vae.decode(z0)[:, None].expand_as(batch.images), atol=1e-6)


def test_a_member_that_breaks_somewhere_leaves_the_others_alone(systems, problem):
    """One member overflows where the first latent is large; who never goes there is explained as before."""
    (x, source, target), system = problem, systems.system("l-sample-m3")
    parts = deepcopy(system.ensemble)
    weight, bias = parts.state["1.weight"], parts.state["1.bias"]
    weight[1, 0] = torch.tensor([1e30, 0, 0, 0])  # a unit that is silent below 1
    bias[1, 0] = -1e30
    parts.state["3.weight"][1, :, 0] = torch.where(parts.state["3.weight"][1, :, 0] > 0, 1e30, -1e30)
    parts.state["5.weight"][1, :, :] = parts.state["5.weight"][1].abs().clamp_min(1e-3)
    fragile = System(system.name, system.space, system.world, system.vae, parts)
    z = 0.5 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    z[:, 0] = torch.linspace(0, 2, 50)
    assert torch.equal(fragile.log_probabilities(z).isnan().any(1), z[:, 0] > 1)
    batch, trace = explain(x, source, target, classifier=fragile, strengths=(0.9,)), {}

    def callback(state):
        for row, latent in zip(state["rows"].tolist(), state["z"], strict=True):
            trace.setdefault(row, []).append(latent[0].item())

    explain(x, source, target, classifier=fragile, strengths=(0.9,), callback=callback)
    crossed = np.array([max(trace[row]) > 1 for row in range(16)])
    assert crossed.any() and not crossed.all()
    z0 = systems.vae.latents(x)[0]
    latents = z0 + batch.latent_shift[:, 0]
    assert (latents[torch.from_numpy(crossed) & (z0[:, 0] <= 1), 0] <= 1).all()  # the last iterate before
    assert (batch.status[crossed] == "diverged").all() and batch.images.isfinite().all()
    rest = torch.from_numpy(~crossed)
    alone = explain(x[rest], source[rest], target[rest], classifier=fragile, strengths=(0.9,))
    assert (alone.status == batch.status[~crossed]).all() and "ok" in alone.status
    assert torch.allclose(alone.images, batch.images[rest], atol=1e-3)


def test_an_image_that_is_no_number_leaves_the_others_alone(systems, problem):
    (x, source, target), system = problem, systems.system("l-sample-m3")
    whole = explain(x, source, target, classifier=system, strengths=(0.9,))
    hurt = x.clone()
    hurt[5, 0, 3, 3] = torch.nan
    batch = explain(hurt, source, target, classifier=system, strengths=(0.9,))
    rest = [row for row in range(16) if row != 5]
    assert batch.status[5, 0] == "diverged" and (batch.status[rest] == whole.status[rest]).all()
    assert torch.allclose(batch.images[rest], whole.images[rest], atol=1e-3)


def far_out(system):
    """The same system behind an encoder whose latents lie three times as far out."""
    system = deepcopy(system)
    system.vae.encoder[-1].weight[:4].mul_(3)
    system.vae.encoder[-1].bias[:4].mul_(3)
    return system


def test_a_start_beyond_the_prior_diverges_at_once(systems, problem):
    (x, source, target), system = problem, far_out(systems.system("l-sample-m3"))
    outside = (system.vae.latents(x)[0].norm(dim=1) > system.vae.prior_radius).numpy()
    assert outside.any() and not outside.all()
    batch = explain(x, source, target, classifier=system)
    assert (batch.status[outside] == "diverged").all() and (batch.latent_shift[outside] == 0).all()
    assert (batch.steps[outside] == 1).all() and (batch.steps[~outside] > 1).any()
    free = explain(x, source, target, classifier=system, bounded=False)
    assert "diverged" not in free.status and (free.latent_shift[outside].norm(dim=2) > 0).any()


def test_a_latent_that_leaves_the_prior_keeps_the_last_iterate_before(systems, problem):
    (x, source, target), system = problem, systems.system("l-sample-m3")
    z0, radius = systems.vae.latents(x)[0], systems.vae.prior_radius

    def outwards(z, rows):
        """Up along the first axis for even samples, nowhere for odd ones."""
        return -10 - z.norm(dim=1), torch.eye(4)[0] * (rows % 2 == 0)[:, None]

    options = {"classifier": system, "objective": outwards, "strengths": (0.5,), "lr": 0.1, "optimiser": "gradient"}
    batch = explain(x, source, target, **options)
    z = z0 + batch.latent_shift[:, 0]
    assert batch.status[::2, 0].tolist() == ["diverged"] * 8 and "diverged" not in batch.status[1::2]
    assert ((z.norm(dim=1) <= radius) & ((z + 0.1 * torch.eye(4)[0]).norm(dim=1) > radius))[::2].all()
    free = explain(x, source, target, **options, bounded=False)
    assert "diverged" not in free.status
    assert torch.allclose(free.latent_shift[::2, 0], 30 * torch.eye(4)[0].expand(8, 4), atol=1e-3)


# matched distances


def test_directions_and_class_means_are_at_their_distances(systems, problem):
    (x, source, target), radii = problem, (0.5, 1.0, 2.0, 4.0)
    system, z0 = systems.system("l-sample-m3"), systems.vae.latents(x)[0]
    means = systems.class_means
    by_gradient = directions(x, source, target, classifier=system, strengths=radii)
    shifted = class_mean_shift(x, source, target, classifier=system, class_means=means, strengths=radii)
    for batch in (by_gradient, shifted):
        assert torch.allclose(batch.latent_shift.norm(dim=2), torch.tensor(radii).expand(16, 4), atol=1e-5)
        z = z0[:, None] + batch.latent_shift
        decoded = systems.vae.decode(z.flatten(0, 1)).view_as(batch.images)
        assert torch.allclose(batch.images, decoded, atol=1e-5)
        outside = (z.norm(dim=2) > systems.vae.prior_radius).numpy()
        assert ((batch.status == "diverged") == outside).all() and outside.any() and not outside.all()
        assert torch.equal(batch.reference, systems.vae.reconstruct(x))
    assert by_gradient.steps[0].tolist() == [10, 20, 40, 80] and (shifted.steps == 0).all()
    way = means[target] - z0
    cosine = (shifted.latent_shift * way[:, None]).sum(2) / (
        shifted.latent_shift.norm(dim=2) * way.norm(dim=1)[:, None]
    )
    assert torch.allclose(cosine, torch.ones(16, 4), atol=1e-5)
    # the gradient leads to the target
    start = system.log_probabilities(z0).gather(1, target[:, None])
    assert (by_gradient.log_confidence[:, 1] > start[:, 0]).all()


def test_a_direction_is_a_walk_along_the_gradient(systems, problem):
    (x, source, target), system, seen = problem, systems.system("pr-m2"), []
    batch = directions(x, source, target, classifier=system, strengths=(0.5, 1.0), callback=seen.append)
    z0 = systems.vae.latents(x)[0]
    z = z0.clone()
    for k in range(20):
        assert torch.allclose(seen[k]["z"], z, atol=1e-3)
        z.requires_grad_()
        log_p = system.ensemble(systems.vae.decode(z))[torch.arange(16), target]
        g = torch.autograd.grad(log_p.sum(), z)[0]
        z = (z + 0.05 * g / g.norm(dim=1, keepdim=True)).detach()
    assert len(seen) == 20
    assert torch.allclose(batch.latent_shift[:, 1], (z - z0) / (z - z0).norm(dim=1, keepdim=True), atol=2e-3)


# REVISE and latent ascent


def test_revise_gradient_by_finite_differences(systems, problem):
    (x, _, target), h = problem, 1e-6
    system = deepcopy(systems.system("p-m2")).double()
    x, rows = x.double(), torch.tensor([3, 0, 11])
    terms = revise_terms(system, x, target, 0.3)
    z = system.vae.encode(x)[0][rows] + 0.1

    def minus_loss(z):
        decoded = system.vae.decode(z)
        log_p = system.ensemble(decoded)[torch.arange(3), target[rows]]
        return log_p - 0.3 * (x[rows] - decoded).abs().sum((1, 2, 3))

    log_p, distance, g = terms(z, rows)
    assert torch.allclose(log_p - 0.3 * distance, minus_loss(z), atol=1e-10)
    steps = h * torch.eye(4, dtype=torch.float64)
    by_differences = torch.stack([(minus_loss(z + e) - minus_loss(z - e)) / (2 * h) for e in steps], 1)
    assert torch.allclose(g, by_differences, rtol=1e-4, atol=1e-5) and g.abs().min() > 1e-3
    assert not z.requires_grad


def test_revise_without_its_distance_is_plain_latent_search(systems, problem):
    (x, source, target), system = problem, systems.system("p.0")
    z0, objective = systems.vae.latents(x)[0], log_confidence(system.log_probabilities, target)
    batch = revise_plain(x, source, target, classifier=system, strengths=(0.5, 0.9), lam=0.0, steps=60, lr=0.05)
    path = latent_search(z0, objective, (0.5, 0.9), steps=60, lr=0.05, optimiser="gradient")
    assert torch.allclose(batch.latent_shift, path.z - z0[:, None], atol=1e-4) and torch.equal(batch.steps, path.steps)
    assert len(path.steps.unique()) > 1


def test_the_distance_keeps_revise_near(systems, problem):
    (x, source, target), system = problem, systems.system("p.0")
    near, far = (
        revise_plain(x, source, target, classifier=system, strengths=(0.99,), lam=lam, steps=100) for lam in (1.0, 0.0)
    )
    distances = [(batch.images[:, 0] - x).abs().sum((1, 2, 3)) for batch in (near, far)]
    assert distances[0].mean() < distances[1].mean()
    assert near.confidence.mean() < far.confidence.mean()


def test_revise_with_adam_keeps_the_valid_iterate_of_least_loss(systems, problem):
    (x, source, target), system, lam, steps = problem, systems.system("p.0"), 0.02, 60
    z0, seen, strengths = systems.vae.latents(x)[0], [], (0.5, 0.9)
    batch = revise_adam(
        x, source, target, classifier=system, strengths=strengths, lam=lam, steps=steps,
        callback=lambda state: seen.append(state["z"]),
    )  # fmt: skip
    assert len(seen) == steps + 1 and (batch.steps == steps + 1).all()
    # the iterates are those of torch's Adam on the loss
    z = z0.clone().requires_grad_()
    adam = torch.optim.Adam([z], 0.1)

    def parts(z):
        decoded = systems.vae.decode(z)
        log_p = system.ensemble(decoded)[torch.arange(16), target]
        return log_p, lam * (decoded - x).abs().sum((1, 2, 3)) - log_p

    for k in range(11):
        assert torch.allclose(seen[k], z, atol=2e-3), k
        adam.zero_grad()
        parts(z)[1].sum().backward()
        adam.step()
    log_p, loss = (torch.stack(values, 1) for values in zip(*map(parts, seen), strict=True))
    found = 0
    for row in range(16):
        for s, tau in enumerate(strengths):
            valid = (log_p[row] >= math.log(tau) + 1e-6).nonzero()[:, 0]
            best = valid[loss[row, valid].argmin()] if len(valid) else steps
            found += len(valid) > 0
            assert torch.equal(batch.latent_shift[row, s], seen[best][row] - z0[row]), (row, tau)
    assert 4 < found < 32


def test_latent_ascent_is_the_search_with_small_steps(systems, problem):
    (x, source, target), system = problem, systems.system("p.0")
    rows = slice(0, 4)
    one = latent_ascent(x[rows], source[rows], target[rows], classifier=system, strengths=(0.6,))
    two = explain(x[rows], source[rows], target[rows], classifier=system, strengths=(0.6,), lr=5e-3, steps=1000,
                  bounded=False)  # fmt: skip
    assert same(one, two) and (one.steps > 50).any()


# Schut et al.


def runner_up(system, x):
    """The second class of every image: a target that few pixels reach."""
    return system(x).topk(2, 1).indices[:, 1]


def schut_by_hand(system, image, target, tau, iterations):
    """One image, one pixel after the other: pixels, changes and gradient evaluations."""
    x, changes = image.clone(), torch.zeros(784, dtype=torch.long)
    for i in range(iterations + 1):
        leaf = x.clone().requires_grad_()
        log_p = system(leaf[None])[0, target]
        if log_p.item() >= math.log(tau) or i == iterations:
            break
        g = torch.autograd.grad(log_p, leaf)[0].flatten()
        best = None
        for pixel in g.abs().argsort(descending=True).tolist():
            value, sign = x.view(-1)[pixel].item(), g[pixel].sign().item()
            if changes[pixel] < 5 and sign and (value < 1 if sign > 0 else value > 0):
                best = pixel
                break
        if best is None:
            break
        x.view(-1)[best] = (x.view(-1)[best] + 0.2 * g[best].sign()).clamp(0, 1)
        changes[best] += 1
    return x, changes, i + 1


def test_schut_moves_the_movable_pixel_of_largest_gradient(systems, problem):
    (x, source, _), system = problem, systems.system("schut-m2")
    x = x.clone()
    x[0] = (x[0] > 0.5).float()  # pixels that cannot move on
    target = runner_up(system, x)
    batch = schut(x, source, target, classifier=system, strengths=(0.3, 0.9), iterations=60)
    for row in (0, 1, 3, 8, 13):
        for s, tau in enumerate((0.3, 0.9)):
            expected, changes, evaluations = schut_by_hand(system, x[row], target[row], tau, 60)
            assert torch.allclose(batch.images[row, s], expected, atol=1e-6), (row, tau)
            assert batch.steps[row, s] == evaluations and changes.max() <= 5
    assert len(batch.steps[[0, 1, 3, 8, 13]].unique()) > 4


def test_schut_changes_no_pixel_more_than_five_times_and_stops(systems, problem):
    (x, source, _), system = problem, systems.system("schut.0")
    target = runner_up(system, x)
    batch = schut(x, source, target, classifier=system, strengths=(0.5, 0.9), iterations=120)
    change = batch.images - x[:, None]
    assert batch.images.min() >= 0 and batch.images.max() <= 1 and change.abs().max() <= 1 + 1e-5
    reached = batch.confidence >= torch.tensor([0.5, 0.9]) - 1e-6
    assert reached.any() and (batch.steps[~reached] == 121).all() and (batch.steps[reached] <= 121).all()
    # a step changes one pixel: k evaluations, k − 1 steps of at most .2
    assert ((change.abs() > 1e-6).flatten(2).sum(2) < batch.steps).all()
    assert (change.abs().flatten(2).sum(2) <= 0.2 * (batch.steps - 1) + 1e-3).all()
    for row in range(16):
        if reached[row].all():
            shorter = schut(
                x[[row]], source[[row]], target[[row]], classifier=system, strengths=(0.9,),
                iterations=int(batch.steps[row, 1]) - 2,
            )  # fmt: skip
            assert shorter.confidence.item() < 0.9  # one step earlier it was not there yet
            break
    else:
        pytest.fail("no sample reached its threshold")


def test_schut_stops_where_no_pixel_can_move(systems, problem):
    """All the paint is used up: white pixels that want to be whiter, and five changes each of a few grey ones."""
    (x, source, target), system = problem, deepcopy(systems.system("schut.0"))
    for name in ("1.weight", "3.weight", "5.weight"):
        system.ensemble.state[name].zero_()
    first, middle, last = (system.ensemble.state[f"{layer}.weight"][0] for layer in (1, 3, 5))
    first[0, :3], middle[0, 0], last[int(target[0]), 0] = 0.01, 0.01, 0.01  # three pixels count, a little
    for layer in (1, 3):
        system.ensemble.state[f"{layer}.bias"].fill_(1.0)
    image = torch.ones(1, 1, 28, 28)
    image[0, 0, 0, :3] = torch.tensor([0.0, 0.5, 1.0])
    batch = schut(image, source[:1], target[:1], classifier=system, strengths=(0.99,), iterations=100)
    assert torch.allclose(batch.images[0, 0], torch.ones(1, 28, 28))
    assert batch.steps[0, 0] == 5 + 3 + 1 and batch.status[0, 0] in ("ok", "not_flipped")
    several = schut(
        torch.cat([image, x[1:9]]), source[:9], target[:9], classifier=system, strengths=(0.99,), iterations=100
    )
    assert torch.equal(several.images[0], batch.images[0]) and several.steps[0, 0] == batch.steps[0, 0]


def test_schut_gives_up_on_a_pixel_that_goes_back_and_forth(systems, problem):
    """p̄_t is largest where one pixel is .5: from .45 a step of .2 always leads past it, five times."""
    (_, source, target), system = problem, deepcopy(systems.system("schut.0"))
    for value in system.ensemble.state.values():
        value.zero_()
    first, middle, last = (system.ensemble.state[f"{layer}.weight"][0] for layer in (1, 3, 5))
    bias = system.ensemble.state["1.bias"][0]
    first[0, 0], bias[0], first[1, 0], bias[1] = 1, -0.5, -1, 0.5  # relu(x − .5) and relu(.5 − x)
    middle[0, 0] = middle[1, 1] = 1
    last[int(target[0]), :2] = -1
    image = torch.zeros(1, 1, 28, 28)
    image[0, 0, 0, 0] = 0.45
    batch = schut(image, source[:1], target[:1], classifier=system, strengths=(0.9,), iterations=100)
    assert batch.images[0, 0, 0, 0, 0].item() == pytest.approx(0.65) and batch.steps[0, 0] == 6
    assert (batch.images[0, 0] != image[0]).sum() == 1


def test_schut_thresholds_of_one_run_are_separate_runs(systems, problem):
    (x, source, _), system = problem, systems.system("schut.0")
    target = runner_up(system, x)
    together = schut(x, source, target, classifier=system, strengths=(0.2, 0.6), iterations=50)
    for s, tau in enumerate((0.2, 0.6)):
        alone = schut(x, source, target, classifier=system, strengths=(tau,), iterations=50)
        assert torch.allclose(alone.images[:, 0], together.images[:, s], atol=1e-6)
        assert torch.equal(alone.steps[:, 0], together.steps[:, s])


def test_schut_of_a_member_that_is_no_number_diverges(systems, problem):
    x, source, target = problem
    batch = schut(x, source, target, classifier=broken(systems.system("schut-m2"), 0), iterations=20)
    assert (batch.status == "diverged").all() and torch.equal(batch.images[:, 0], x)


def test_revise_of_a_member_that_is_no_number_diverges_and_keeps_pictures(systems, problem):
    x, source, target = problem
    system = broken(systems.system("p-m2"), 0)
    for method in (revise_plain, revise_adam):
        batch = method(x, source, target, classifier=system, steps=20)
        assert (batch.status == "diverged").all() and batch.images.isfinite().all()


def test_traces_see_the_batch_and_do_not_change_it(systems, problem):
    (x, source, target), system, calls = problem, systems.system("l-sample-m2"), []
    one, two = (
        explain(x, source, target, classifier=system, strengths=(0.9,), callback=callback, steps=30)
        for callback in (None, calls.append)
    )
    assert same(one, two) and {"rows", "z", "log_p", "travelled"} <= set(calls[0])
