"""Directions, gradients and optimisations in a linear world, where the shortest move is known."""

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import VceError
from common.explain import Streams
from papers.contrastive import baselines
from papers.contrastive.inversion import invert
from papers.contrastive.labels import Labels
from papers.contrastive.systems import System

D, M = 6, 3


@pytest.fixture(scope="module")
def system():
    """Label k is the sign of ⟨a_k, w⟩, with normals a_k that are not orthogonal."""
    generator = torch.Generator().manual_seed(0)
    a = torch.nn.functional.normalize(torch.randn(M, D, generator=generator) + 0.5, dim=1)
    f = nn.Linear(D, M, bias=False).requires_grad_(False)
    f.weight.copy_(6 * a)
    G = nn.Identity()
    return System("linear", G, D, Labels(tuple("abc"), (f,), ()), Labels((), (), ()))


def normals_of(system):
    return torch.nn.functional.normalize(system.asked.networks[0].weight, dim=1)


def test_linear_directions_are_the_normals(system):
    w = system.sample(8000, torch.Generator().manual_seed(1))
    found = baselines.normals(w, system.asked(w))
    assert (found * normals_of(system)).sum(1).min() > 0.9
    with pytest.raises(VceError, match="label 1 is the same"):
        baselines.normals(w, torch.stack([w[:, 0], torch.ones(len(w))], 1))


def test_conditional_directions_leave_the_other_labels_alone(system):
    a = normals_of(system)
    held = baselines.conditional(a)
    products = held @ a.T
    assert torch.allclose(products - torch.diag(products.diag()), torch.zeros(M, M), atol=1e-5)
    assert torch.allclose(held.norm(dim=1), torch.ones(M)) and (products.diag() > 0).all()


def test_the_gradient_is_the_normal(system):
    w = system.sample(9, torch.Generator().manual_seed(2))
    found = baselines.latent_gradient(w, 1, system.G, system.asked)
    torch.testing.assert_close(found, normals_of(system)[1].expand(9, -1))


def test_the_first_hit_is_the_least_step_of_the_grid(system):
    w = system.sample(50, torch.Generator().manual_seed(3))
    a, present = normals_of(system)[0], (system.asked(w)[:, 0] > 0).long()
    shift = baselines.first_hit(w, a.expand(50, -1), 0, present, system)
    step = (w - w.mean(0)).norm(dim=1).mean() / baselines.GRID
    needed = (w @ a).abs()
    first = ((needed / step).floor() + 1) * step
    within = needed < step * baselines.GRID
    torch.testing.assert_close(shift.norm(dim=1), torch.where(within, first, 0.0), atol=1e-4, rtol=1e-4)
    flipped = (system.asked(w + shift)[:, 0] > 0).long() != present
    assert torch.equal(flipped, within) and not within.all()


def test_an_optimisation_flips_the_label_along_its_normal(system):
    w = system.sample(20, torch.Generator().manual_seed(4))
    present = (system.asked(w)[:, 2] > 0).long()
    shift = baselines.optimised(w, 2, present, system)
    assert ((system.asked(w + shift)[:, 2] > 0).long() != present).all()
    cosine = torch.nn.functional.cosine_similarity(shift, normals_of(system)[2].expand(20, -1)).abs()
    assert cosine.median() > 0.7


def test_every_baseline_moves_every_label_and_gathers_no_gradient(system):
    w = system.sample(30, torch.Generator().manual_seed(5))
    present = (system.asked(w) > 0).long()
    found = baselines.moves(w, present, system, torch.Generator().manual_seed(6))
    assert set(found) == set(baselines.PASSES) and all(set(by_label) == set(range(M)) for by_label in found.values())
    for name, by_label in found.items():
        for k, shift in by_label.items():
            reached = ((system.asked(w + shift)[:, k] > 0).long() != present[:, k]).float().mean()
            assert reached > 0.6, (name, k)
    assert system.asked.networks[0].weight.grad is None


def test_an_inversion_finds_the_latent_of_a_linear_generator():
    G = nn.Sequential(nn.Linear(D, 12), nn.Unflatten(1, (3, 2, 2))).requires_grad_(False)
    system = System("x", G, D, Labels(("a",), (nn.Flatten(),), ()), Labels((), (), ()))
    wanted = torch.randn(3, D, generator=torch.Generator().manual_seed(0))
    rng = Streams(0, ("a", "b", "c"), (0, 0, 0))
    w, error = invert(G(wanted), system, rng)
    assert error.max() < 1e-4 and np.allclose(G(w), G(wanted), atol=0.03)
    alone, _ = invert(G(wanted[1:2]), system, rng[[1]])
    torch.testing.assert_close(alone, w[1:2], atol=1e-4, rtol=1e-3)
