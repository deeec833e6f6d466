"""Untrained priors: many queries in one batched network against one at a time, and Adam with queries that leave."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from common.errors import VceError
from common.explain import Streams
from common.generators.priors import FIXED, CoordinateNetwork, DeepImagePrior, Optimiser

SHAPE, IDS = (3, 16, 16), ("a", "b", "c", "d", "e")
TARGETS = (1, 0, 2, 1, 1)
PRIORS = {
    "fourier": CoordinateNetwork(SHAPE, hidden=8, frequencies=6, scale=3.0),
    "siren": CoordinateNetwork(SHAPE, hidden=8, layers=2, kind="siren", learning_rate=4e-3),
    "dip": DeepImagePrior(SHAPE, widths=(4, 6), skip=2, depth=3),
}
every_prior = pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)


def streams(rows=range(5), seed=0):
    return Streams(seed, IDS, TARGETS)[list(rows)]


@every_prior
@settings(max_examples=8, deadline=None)
@given(rows=st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True))
def test_a_query_draws_the_same_weights_and_image_in_any_batch(prior, rows):
    whole, part = prior.initial(streams()), prior.initial(streams(rows))
    assert all(torch.equal(part[name], whole[name][rows]) for name in whole)
    assert torch.allclose(prior(part), prior(whole)[rows], atol=1e-6)


@every_prior
def test_images_are_images_and_queries_differ(prior):
    images = prior(prior.initial(streams()))
    assert images.shape == (5, *SHAPE) and images.min() >= 0 and images.max() <= 1
    assert all((images[0] - image).abs().max() > 1e-3 for image in images[1:])


@every_prior
def test_no_query_sees_another(prior):
    weights = prior.initial(streams())
    before = prior(weights)
    changed = {name: value.clone() for name, value in weights.items()}
    for value in changed.values():
        value[3] += 0.3
    after = prior(changed)
    others = [0, 1, 2, 4]
    assert torch.allclose(after[others], before[others], atol=1e-6) and (after[3] - before[3]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["fourier", "siren"])
def test_a_coordinate_network_is_a_multilayer_perceptron_at_every_pixel(kind):
    prior, q = PRIORS[kind], 2
    weights = prior.initial(streams())
    drawn = prior(weights)
    for v in (0, 5, 15):
        for u in (0, 9):
            h = torch.tensor([-1 + 2 * u / 15, -1 + 2 * v / 15])
            if kind == "fourier":
                b = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
                phase = math.pi * prior.scale / 2 * (b @ h)
                h = torch.cat([phase.sin(), phase.cos()])
            for k in range(prior.layers + 1):
                h = F.linear(h, weights[f"{k}.weight"][q], weights[f"{k}.bias"][q, :, 0])
                if k < prior.layers:
                    h = h.relu() if kind == "fourier" else (30 * h).sin()
            assert torch.allclose(drawn[q, :, v, u], h.sigmoid(), atol=1e-5)


def test_a_deep_image_prior_is_torch_modules_one_query_at_a_time():
    prior, q = PRIORS["dip"], 4
    weights = prior.initial(streams())
    generator = torch.Generator().manual_seed(1)
    for name in weights:
        if name.endswith(("gain", "shift")):
            weights[name] = torch.rand(weights[name].shape, generator=generator)

    def block(name, h, stride=1):
        weight, gain, shift = (weights[f"{name}.{part}"][q] for part in ("weight", "gain", "shift"))
        norm = nn.InstanceNorm2d(len(gain), affine=True)
        norm.weight.data, norm.bias.data = gain, shift
        return F.leaky_relu(norm(F.conv2d(h, weight, stride=stride, padding=weight.shape[-1] // 2)), 0.2)

    h = weights["noise"][q : q + 1]
    skip0 = block("skip0", h)
    h = block("deep0", block("down0", h, 2))
    skip1 = block("skip1", h)
    h = block("deep1", block("down1", h, 2))
    for k, skip in ((1, skip1), (0, skip0)):
        h = block(f"mix{k}", block(f"up{k}", torch.cat([h.repeat_interleave(2, 2).repeat_interleave(2, 3), skip], 1)))
    expected = F.conv2d(h, weights["out.weight"][q], weights["out.shift"][q]).sigmoid()
    assert torch.allclose(prior(weights)[q], expected[0], atol=1e-5)


def run(prior, rows, pictures, steps):
    optimiser = Optimiser(prior, prior.initial(streams(rows)))
    for _ in range(steps):
        optimiser.step((optimiser.images() - pictures[list(rows)]).square().flatten(1).sum(1))
    return optimiser


@every_prior
def test_a_batch_of_queries_is_as_many_runs(prior):
    pictures = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    together = run(prior, range(5), pictures, 6).images()
    for row in range(5):
        alone = run(prior, [row], pictures, 6).images()
        assert torch.allclose(together[row], alone[0], atol=1e-4)


@every_prior
def test_queries_that_stay_keep_their_moments(prior):
    pictures = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    rows = [3, 0]
    optimiser, undisturbed = run(prior, range(5), pictures, 4), run(prior, rows, pictures, 8)
    optimiser = optimiser[torch.tensor(rows)]
    for _ in range(4):
        optimiser.step((optimiser.images() - pictures[rows]).square().flatten(1).sum(1))
    assert torch.allclose(optimiser.images(), undisturbed.images(), atol=1e-4)
    forgetful = Optimiser(
        prior, {name: value.detach() for name, value in run(prior, rows, pictures, 4).weights.items()}
    )
    for _ in range(4):
        forgetful.step((forgetful.images() - pictures[rows]).square().flatten(1).sum(1))
    assert not torch.allclose(forgetful.images(), undisturbed.images(), atol=1e-4)  # the test can fail


def test_the_noise_of_a_deep_image_prior_is_never_optimised():
    prior = PRIORS["dip"]
    weights = prior.initial(streams())
    optimiser = run(prior, range(5), torch.zeros(5, *SHAPE), 3)
    assert FIXED == ("noise",) and torch.equal(optimiser.weights["noise"], weights["noise"])
    assert not torch.equal(optimiser.weights["up0.weight"], weights["up0.weight"])


@every_prior
def test_a_prior_learns_to_draw(prior):
    """Smooth pictures: 200 steps take most of the error away."""
    v, u = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 16), indexing="ij")
    pictures = torch.stack([torch.stack([u, v, 0.5 * (u + v)]).pow(1 + k / 4) for k in range(5)])
    first = (prior(prior.initial(streams())) - pictures).square().mean()
    assert (run(prior, range(5), pictures, 200).images() - pictures).square().mean() < 0.2 * first


def test_wrong_priors_are_named():
    with pytest.raises(VceError, match="prior 'gabor' is unknown; choose fourier or siren"):
        CoordinateNetwork(SHAPE, kind="gabor")
    with pytest.raises(VceError, match="of 3 levels needs sides divisible by 8"):
        DeepImagePrior((3, 28, 28))
