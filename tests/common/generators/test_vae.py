"""Variational autoencoders: the two terms of the ELBO against torch.distributions, training, and the file."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import distributions

from common.data import datasets
from common.errors import VceError
from common.generators.vae import (
    VAE,
    Recipe,
    kl_to_prior,
    load_vae,
    negative_log_likelihood,
    save_vae,
    shifted,
    train_vae,
)
from common.tensors import read_tensors, write_tensors

SHAPE = (1, 8, 8)
BUILDS = {"mlp": (5, (24, 12)), "conv": (2, (6, 8))}  # latent, widths
seeds = st.integers(0, 2**31 - 1)
few = settings(max_examples=40, deadline=None)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=stream(seed))


def fresh(architecture, shape, latent, widths, seed=0):
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return VAE(architecture, shape, latent, widths).requires_grad_(False)


def untrained(architecture="mlp", shape=SHAPE, seed=0):
    return fresh(architecture, shape, *BUILDS[architecture], seed=seed)


def low_rank(n, seed=0):
    """Images N×1×8×8 in [0, 1] that three numbers describe."""
    return (draw(n, 3, seed=seed) @ (1.5 * draw(3, 64, seed=99))).sigmoid().view(-1, *SHAPE)


def negative_elbo(vae, images, recipe):
    mean, std = vae.encode(images)
    z = mean + std * draw(*mean.shape, seed=5)
    return (negative_log_likelihood(vae, images, z, recipe.likelihood, recipe.sigma) + kl_to_prior(mean, std)).mean()


# the terms


@few
@given(seeds, st.integers(1, 20))
def test_kl_is_that_of_torch(seed, d):
    mean, std = 2 * draw(6, d, seed=seed), draw(6, d, seed=seed + 1).exp()
    posterior, prior = distributions.Normal(mean, std), distributions.Normal(0.0, 1.0)
    assert torch.allclose(kl_to_prior(mean, std), distributions.kl_divergence(posterior, prior).sum(1), rtol=1e-4)


def test_kl_is_zero_at_the_prior_alone():
    assert kl_to_prior(torch.zeros(1, 7), torch.ones(1, 7)).item() == 0
    assert (kl_to_prior(0.01 * draw(50, 7), torch.ones(50, 7)) > 0).all()
    assert (kl_to_prior(torch.zeros(2, 7), torch.tensor([[0.9], [1.1]]).expand(2, 7)) > 0).all()


@pytest.mark.parametrize("architecture", BUILDS)
def test_bernoulli_likelihood_is_that_of_torch(architecture):
    vae, grey = untrained(architecture), torch.rand(9, *SHAPE, generator=stream())
    z = draw(9, math.prod(vae.latent_shape))
    black_and_white = (grey > 0.5).float()
    by_torch = distributions.Bernoulli(vae.decode(z)).log_prob(black_and_white).sum((1, 2, 3))
    assert torch.allclose(negative_log_likelihood(vae, black_and_white, z, "bernoulli", None), -by_torch, rtol=1e-5)
    p = vae.decode(z)
    cross_entropy = -(grey * p.log() + (1 - grey) * (1 - p).log()).sum((1, 2, 3))
    assert torch.allclose(negative_log_likelihood(vae, grey, z, "bernoulli", None), cross_entropy, rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.03, 0.2, 1.0, 4.0])
def test_gaussian_likelihood_is_that_of_torch_up_to_its_constant(sigma):
    vae, x = untrained(), torch.rand(9, *SHAPE, generator=stream())
    z = draw(9, 5)
    by_torch = distributions.Normal(vae.decode(z), sigma).log_prob(x).sum((1, 2, 3))
    constant = 64 / 2 * math.log(2 * math.pi)
    found = negative_log_likelihood(vae, x, z, "gaussian", sigma)
    assert torch.allclose(found + constant, -by_torch, rtol=1e-4, atol=1e-3)


@few
@given(seeds, st.floats(0.01, 3))
def test_the_learned_sigma_is_the_best_one(seed, sigma):
    vae, x = untrained(seed=seed), torch.rand(6, *SHAPE, generator=stream(seed))
    z = draw(6, 5, seed=seed)

    def loss(sigma):
        return negative_log_likelihood(vae, x, z, "gaussian", sigma).mean().item()

    best = (vae.decode(z) - x).square().mean().sqrt().item()
    assert loss(None) <= loss(sigma) + 1e-4
    assert loss(None) == pytest.approx(loss(best), abs=1e-3)
    assert loss(None) < min(loss(0.9 * best), loss(1.1 * best))


# the networks


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)])
@pytest.mark.parametrize("architecture", BUILDS)
def test_networks_fit_both_image_shapes(architecture, shape):
    vae, images = untrained(architecture, shape), torch.rand(4, *shape, generator=stream())
    d = {"mlp": 5, "conv": 2 * (shape[1] // 4) * (shape[2] // 4)}[architecture]
    assert vae.latent_shape == {"mlp": (5,), "conv": (2, shape[1] // 4, shape[2] // 4)}[architecture]
    mean, std = vae.encode(images)
    assert mean.shape == std.shape == (4, d) and (std > 0).all()
    decoded = vae.decode(3 * draw(4, d))
    assert decoded.shape == (4, *shape) and decoded.min() >= 0 and decoded.max() <= 1
    assert torch.allclose(vae.decode_logits(mean).sigmoid(), vae.decode(mean))
    assert torch.equal(vae.reconstruct(images), vae.decode(mean))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("architecture", BUILDS)
def test_the_elbo_moves_every_parameter(architecture, likelihood):
    vae = untrained(architecture).requires_grad_(True)
    negative_elbo(vae, low_rank(8), Recipe(architecture, 2, 1, likelihood=likelihood)).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in vae.parameters())


def test_latents_and_reconstructions_do_not_depend_on_the_batch():
    vae, x = untrained("conv"), low_rank(23)
    mean, std = vae.encode(x)
    parts = vae.latents(x, batch_size=7)
    assert torch.allclose(parts[0], mean, atol=1e-6) and torch.allclose(parts[1], std, atol=1e-6)
    assert torch.allclose(vae.reconstruct(x, batch_size=7), vae.decode(mean), atol=1e-6)


def test_the_standard_deviation_stays_a_number():
    vae = untrained()
    vae.encoder[-1].bias.copy_(torch.tensor([0.0] * 5 + [-1e6, 1e6, 0, 0, 0]))
    _, std = vae.encode(low_rank(3))
    assert torch.isfinite(std).all() and torch.isfinite(std.log()).all() and (std[:, 0] < std[:, 1]).all()


def test_prior_radius_holds_999_of_1000_draws():
    assert VAE("mlp", SHAPE, 16, (8,)).prior_radius == pytest.approx(6.27, abs=0.005)
    assert VAE("mlp", SHAPE, 1, (8,)).prior_radius == pytest.approx(3.2905, abs=1e-3)
    for vae, d in ((VAE("mlp", SHAPE, 3, (8,)), 3), (VAE("conv", SHAPE, 4, (8, 8)), 16)):
        outside = (draw(200_000, d).norm(dim=1) > vae.prior_radius).float().mean().item()
        assert outside == pytest.approx(0.001, abs=3 * (0.001 / 200_000) ** 0.5)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("gan", SHAPE, 4, (8,)), "architecture 'gan' is unknown; choose one of mlp, conv"),
        (("conv", (3, 30, 32), 4, (8, 8)), r"\(3, 30, 32\): 2 strided convolutions need sides divisible by 4"),
        (("conv", (1, 28, 28), 4, (8, 8, 8)), "divisible by 8"),
    ],
)
def test_impossible_networks_are_refused(arguments, match):
    with pytest.raises(VceError, match=match):
        VAE(*arguments)


def test_images_of_another_shape_are_refused():
    with pytest.raises(VceError, match=r"images of shape \(1, 4, 16\): the VAE was trained on \(1, 8, 8\)"):
        untrained().encode(torch.zeros(2, 1, 4, 16))


# shifted images


def moved(image, dy, dx):
    """The C×H×W image looked at `dy` rows further down and `dx` columns further right, black outside, by a loop."""
    _, height, width = image.shape
    result = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            if 0 <= i + dy < height and 0 <= j + dx < width:
                result[:, i, j] = image[:, i + dy, j + dx]
    return result


@few
@given(seeds, st.integers(1, 3), st.integers(1, 3), st.integers(4, 6), st.integers(4, 6))
def test_shifted_images_by_brute_force(seed, reach, channels, height, width):
    images = torch.rand(3, channels, height, width, generator=stream(seed)) + 0.1
    found = shifted(images, reach, stream(seed))
    steps = range(-reach, reach + 1)
    for image, result in zip(images, found, strict=True):
        assert sum(torch.equal(result, moved(image, dy, dx)) for dy in steps for dx in steps) == 1


def test_no_reach_is_the_identity():
    images, generator = low_rank(5), stream()
    before = generator.get_state()
    assert torch.equal(shifted(images, 0, generator), images)
    assert torch.equal(generator.get_state(), before)


def test_all_shifts_are_equally_likely():
    point = torch.zeros(5_000, 1, 7, 7)
    point[:, :, 3, 3] = 1
    counts = shifted(point, 2, stream()).sum((0, 1))
    assert counts.sum() == 5_000 and (counts > 0).sum() == 25  # the point is never lost, and never further than 2
    assert (counts[1:6, 1:6] - 200).abs().max() < 4 * 200**0.5


# training

MLP = Recipe("mlp", 3, 12, widths=(32,), batch_size=32, learning_rate=3e-3)


@pytest.mark.parametrize(
    "recipe",
    [
        MLP,
        Recipe("mlp", 3, 12, widths=(32,), likelihood="gaussian", batch_size=32, learning_rate=3e-3),
        Recipe("conv", 3, 12, widths=(8,), likelihood="gaussian", sigma=0.1, batch_size=32, learning_rate=3e-3),
    ],
    ids=["bernoulli", "learned sigma", "fixed sigma"],
)
def test_training_on_low_rank_images_lowers_the_held_out_loss(recipe):
    images, losses = low_rank(360), []
    fit, held_out = images[:300], images[300:]
    vae = train_vae(fit, recipe, 0, lambda epoch: losses.append(epoch["loss"]))
    start = fresh(recipe.architecture, SHAPE, recipe.latent, recipe.widths)  # where training began
    assert negative_elbo(vae, held_out, recipe) < negative_elbo(start, held_out, recipe) - 5
    error = (vae.reconstruct(held_out) - held_out).square().mean()
    assert error < 0.5 * (fit.mean(0) - held_out).square().mean()  # it reads the image
    assert len(losses) == 12 and losses[-1] < losses[0]
    assert not vae.training and not any(parameter.requires_grad for parameter in vae.parameters())


def test_training_on_scenes_lowers_the_held_out_loss():
    images = datasets.load_ids("scenes", tuple(f"scene-{i:05d}" for i in range(240)), Path()).images
    fit, held_out = images[:200], images[200:]
    recipe = Recipe("conv", 4, 15, widths=(16, 24), likelihood="gaussian", batch_size=20, shift=2)
    vae, start = train_vae(fit, recipe, 0), fresh("conv", (3, 32, 32), 4, (16, 24))
    assert negative_elbo(vae, held_out, recipe) < negative_elbo(start, held_out, recipe) - 100
    assert (vae.reconstruct(held_out) - held_out).square().mean() < (fit.mean(0) - held_out).square().mean()


def test_training_with_shifts_reconstructs_shifted_images():
    images = torch.zeros(200, *SHAPE)
    images[:, :, 3:5, 3:5] = 1
    elsewhere = shifted(images, 2, stream())
    still, moving = (
        train_vae(images, Recipe(**{**vars(MLP), "shift": shift}), 0).reconstruct(elsewhere) for shift in (0, 2)
    )
    assert (moving - elsewhere).square().mean() < 0.7 * (still - elsewhere).square().mean()


def test_beta_weighs_the_prior():
    images = low_rank(200)
    far, near = (
        kl_to_prior(*train_vae(images, Recipe(**{**vars(MLP), "beta": beta}), 0).latents(images)).mean()
        for beta in (0.2, 20.0)
    )
    assert near < 0.1 < 2 < far


@pytest.mark.parametrize("recipe", [Recipe("mlp", 3, 2, (8,)), Recipe("conv", 2, 2, (4,), "gaussian", shift=1)])
def test_same_seed_same_bits_and_the_global_stream_is_left_alone(recipe):
    recipe = Recipe(**{**vars(recipe), "batch_size": 16})
    states = []
    for seed in (3, 3, 4):
        torch.rand(3)
        before = torch.random.get_rng_state()
        states.append(train_vae(low_rank(40), recipe, seed).state_dict())
        assert torch.equal(torch.random.get_rng_state(), before)
    a, b, c = states
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not any(torch.equal(a[key], c[key]) for key in a)


def test_a_loss_that_is_not_finite_is_one_line():
    images = low_rank(40)
    images[17, 0, 3, 3] = torch.nan
    for fit, rate in ((images, 1e-3), (low_rank(40), 1e30)):
        recipe = Recipe("mlp", 3, 3, (8,), batch_size=10, learning_rate=rate)
        with pytest.raises(VceError, match=r"training diverged in epoch \d: .*lower `learning_rate`"):
            train_vae(fit, recipe, 0)


def test_an_unknown_likelihood_is_refused():
    with pytest.raises(VceError, match="likelihood 'laplace' is unknown; choose bernoulli or gaussian"):
        train_vae(low_rank(4), Recipe("mlp", 3, 1, likelihood="laplace"), 0)


# the file


@pytest.mark.parametrize("architecture", BUILDS)
def test_round_trip_gives_the_same_bits(tmp_path, architecture):
    vae, path, x = untrained(architecture), tmp_path / "v.safetensors", low_rank(5)
    save_vae(vae, path, {"seed": 3})
    back = load_vae(path, SHAPE)
    assert all(torch.equal(a, b) for a, b in zip(back.encode(x), vae.encode(x), strict=True))
    assert torch.equal(back.reconstruct(x), vae.reconstruct(x))
    assert (back.architecture, back.image_shape, back.latent_shape) == (architecture, SHAPE, vae.latent_shape)
    assert read_tensors(path, "VAE")[0]["facts"] == {"seed": 3}
    assert not back.training and not any(parameter.requires_grad for parameter in back.parameters())
    save_vae(load_vae(path), tmp_path / "again", {"seed": 3})
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_vae_of_other_images_is_refused(tmp_path):
    path = tmp_path / "v.safetensors"
    save_vae(untrained(), path, {})
    with pytest.raises(VceError) as caught:
        load_vae(path, (3, 32, 32))
    assert str(caught.value) == f"{path}: a VAE of (1, 8, 8) images, the data are (3, 32, 32); choose another"


@pytest.mark.parametrize(
    "damage", ["truncated", "html", "missing", "foreign", "another kind", "another network", "no latent", "bad widths"]
)
def test_damaged_files_are_one_line(tmp_path, damage):
    path = tmp_path / "v.safetensors"
    save_vae(untrained(), path, {})
    whole, (header, state) = path.read_bytes(), read_tensors(path, "VAE")
    if damage == "missing":
        path.unlink()
    elif damage == "foreign":
        save_file({"x": torch.zeros(1)}, path)
    elif damage == "another kind":
        write_tensors(path, "diffusion", state, header)
    elif damage == "another network":
        write_tensors(path, "VAE", state, {**header, "latent": 6})
    elif damage == "no latent":
        write_tensors(path, "VAE", state, {key: value for key, value in header.items() if key != "latent"})
    elif damage == "bad widths":
        write_tensors(path, "VAE", state, {**header, "widths": 8})
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"<html>404</html>")
    with pytest.raises(VceError) as caught:
        load_vae(path)
    said = str(caught.value)
    fix = "give the file of a VAE" if damage in ("foreign", "another kind") else "delete it"
    assert said.startswith(f"{path}: not a VAE file (") and fix in said and "\n" not in said
