"""What the members of each space see: every copy of every image, as it is, reconstructed, encoded, or sampled."""

from types import SimpleNamespace

import pytest
import torch

from common.classifiers.ensembles import Recipe
from common.errors import VceError
from papers.clarity import train

COUNT, N, M, B = 3, 16, 2, 500
PROGRESS = SimpleNamespace(advance=lambda: None)


@pytest.fixture
def copies(digits):
    return torch.stack([digits.images, digits.images.flip(2), digits.images.flip(3)])


@pytest.fixture
def draw(systems, digits, copies, monkeypatch):
    """`draw(space, rows, seed)`: what the training of a space hands its members for these rows, once."""

    def draw(space, rows, seed=0):
        taken = {}
        monkeypatch.setattr(train, "train_ensemble", lambda ensemble, inputs, *rest: taken.update(inputs=inputs))
        recipe = Recipe("mlp", M, 1)
        ensemble = train.train_space(space, recipe, systems.vae, copies, digits.labels, 10, seed, PROGRESS)
        assert len(ensemble) == M and ensemble.shape == ((4,) if space.startswith("l-") else (1, 28, 28))
        return taken["inputs"](rows, torch.Generator().manual_seed(seed))

    return draw


def rows_of():
    return torch.arange(M * B).view(M, B) % N


def nearest(found, versions, rows):
    """The copy that each input is nearest to, and how far it is: versions COUNT×N×…"""
    distance = (found[:, :, None] - versions[:, rows].movedim(0, 2)).flatten(3).abs().amax(3)
    return distance.argmin(2), distance.amin(2)


@pytest.mark.parametrize("space", ["p", "pixel-mlp", "schut", "pr", "l-mean"])
def test_members_see_every_copy_of_their_rows(systems, copies, draw, space):
    flat = copies.flatten(0, 1)
    seen = {"pr": systems.vae.reconstruct, "l-mean": lambda x: systems.vae.encode(x)[0]}.get(space, lambda x: x)(flat)
    rows = rows_of()
    found = draw(space, rows)
    which, distance = nearest(found, seen.view(COUNT, N, *seen.shape[1:]), rows)
    assert found.shape == (M, B, *seen.shape[1:]) and distance.max() < 1e-5
    counts = torch.stack([(which == copy).float().mean(1) for copy in range(COUNT)])
    assert (counts - 1 / 3).abs().max() < 4 * (2 / 9 / B) ** 0.5  # each as often, for each member
    assert not torch.equal(which[0], which[1])  # members draw on their own


def test_latent_samples_are_fresh_draws_of_the_posterior(systems, copies, draw):
    """Their mean and deviation are those of q(z|x), over the copies of an image; no two draws are the same."""
    many = draw("l-sample", torch.zeros(M, 20_000, dtype=torch.long))
    mean, std = systems.vae.encode(copies[:, 0])
    mixed = ((std**2 + mean**2).mean(0) - mean.mean(0) ** 2).sqrt()
    n = M * 20_000
    assert ((many.flatten(0, 1).mean(0) - mean.mean(0)).abs() < 4 * mixed / n**0.5).all()
    assert torch.allclose(many.flatten(0, 1).std(0), mixed, rtol=0.03)
    assert len(many.flatten(0, 1).unique(dim=0)) == n


def test_decoded_samples_are_drawn_once(systems, copies, draw):
    rows = rows_of()
    one, two = (draw("pr-sample", rows, seed) for seed in (0, 0))
    assert torch.equal(one, two)
    for row in range(3):
        assert len(one[rows == row].flatten(1).unique(dim=0)) == COUNT  # one picture per copy, not fresh ones
    reconstructed = systems.vae.reconstruct(copies.flatten(0, 1)).view(copies.shape)
    assert nearest(one, reconstructed, rows)[1].median() > 0.05  # and not the reconstruction
    assert not torch.equal(one, draw("pr-sample", rows, 1))


def test_a_member_that_diverges_names_its_space(systems, copies, digits):
    recipe = Recipe("mlp", 2, 3, batch_size=8, learning_rate=1e30)
    with pytest.raises(VceError, match=r"^pr: member \d diverged in epoch \d: .*lower `learning_rate` in config/$"):
        train.train_space("pr", recipe, systems.vae, copies, digits.labels, 10, 0, PROGRESS)
