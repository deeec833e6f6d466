"""The score model against closed forms, its training, and its file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from common.data import datasets
from common.errors import VceError
from common.generators.diffusion import (
    Recipe,
    ScoreModel,
    build,
    denoising_errors,
    load_diffusion,
    save_diffusion,
    train_diffusion,
)
from common.generators.train import parse_recipe, train_score_model
from common.tensors import read_tensors

SHAPE, MU, S = (3, 8, 8), 0.6, 0.2  # data: x0 ~ N(MU, S²) per colour value, in image units


class Zero(nn.Module):
    def forward(self, x_t, t):
        return torch.zeros_like(x_t)


class Exact(ScoreModel):
    """The best possible noise predictor for the Gaussian data above, whatever the model was built for."""

    def predict_noise(self, x_t, t):
        a = self.alpha_bar(t).view(-1, 1, 1, 1)
        return (1 - a).sqrt() * (x_t - a.sqrt() * (2 * MU - 1)) / (a * (2 * S) ** 2 + 1 - a)


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["network", "preconditioning"])
def gaussian(request):
    """Two ways to the same exact model: the optimal predictor, and a network of zeros around the right Gaussian."""
    if request.param == "network":
        return Exact(Zero(), torch.zeros(SHAPE), 1.0)
    return ScoreModel(Zero(), torch.full(SHAPE, 2 * MU - 1), 2 * S)


@pytest.mark.parametrize("sigma", [0.01, 0.0371, 0.2, 1.0, 7.0])
def test_score_and_denoiser_of_gaussian_data_are_exact(gaussian, sigma):
    x = MU + (S**2 + sigma**2) ** 0.5 * draw(5, *SHAPE)
    exact = -(x - MU) / (S**2 + sigma**2)
    assert torch.allclose(gaussian.score(x, sigma), exact, rtol=1e-3, atol=1e-3)
    assert torch.allclose(gaussian.denoise(x, sigma), x + sigma**2 * exact, atol=1e-5)


def test_noise_levels_may_differ_between_samples(gaussian):
    x, sigma = draw(3, *SHAPE), torch.tensor([0.05, 0.3, 0.9])
    each = torch.cat([gaussian.score(x[i : i + 1], sigma[i].item()) for i in range(3)])
    assert torch.allclose(gaussian.score(x, sigma), each, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("t", [3.0, 250.0, 250.5, 900.25])
def test_predict_original_of_gaussian_data_is_exact(gaussian, t):
    t = torch.full((4,), t)
    a, m, v = gaussian.alpha_bar(t)[0], 2 * MU - 1, (2 * S) ** 2
    x_t = draw(4, *SHAPE)
    exact = m + a.sqrt() * v / (a * v + 1 - a) * (x_t - a.sqrt() * m)
    assert torch.allclose(gaussian.predict_original(x_t, t), exact, atol=1e-4)


def test_timesteps_invert_the_schedule():
    from diffusers import DDPMScheduler

    model = ScoreModel(Zero(), torch.zeros(SHAPE), 1.0)
    t = torch.arange(0, 1000, 37).double()
    alpha_bar = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2").alphas_cumprod[t.long()].double()
    assert torch.allclose(model.alpha_bar(t), alpha_bar, rtol=1e-3)
    sigma = torch.tensor([0.004, 0.01, 0.1, 1.0, 30.0]).double()
    assert torch.allclose(model.alpha_bar(model.timestep(sigma)), 1 / (1 + 4 * sigma**2), rtol=1e-9)
    assert model.timestep(torch.tensor([1e-9, 1e9])).tolist() == [0, 999]


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)])
def test_the_network_fits_both_image_shapes(shape):
    model = build(torch.zeros(shape), 1.0, (32, 48))
    assert 2e5 < sum(parameter.numel() for parameter in model.parameters()) < 6e5
    with torch.no_grad():
        assert model.score(draw(2, *shape), 0.1).shape == (2, *shape)


@pytest.mark.parametrize(
    ("shape", "channels", "match"),
    [((3, 30, 32), (32, 48), "divisible by 4"), ((3, 32, 32), (32,), "two widths"), ((3, 32, 32), (32, 20), "of 8")],
)
def test_impossible_networks_are_refused(shape, channels, match):
    with pytest.raises(VceError, match=match):
        build(torch.zeros(shape), 1.0, channels)


def test_training_on_scenes_beats_every_trivial_denoiser():
    images = datasets.load_ids("scenes", tuple(f"scene-{i:05d}" for i in range(384)), Path()).images
    fit, held_out = images[:320], images[320:]
    losses = []
    model = train_diffusion(fit, Recipe(epochs=2), 0, lambda epoch: losses.append(epoch["loss"]))
    untrained = ScoreModel(Zero(), (2 * fit - 1).mean(0), 2 * fit.std())
    mean = fit.mean(0)
    for sigma, error in denoising_errors(model, held_out, mean).items():
        assert error["model"] < min(error["mean"], error["noisy"]), sigma
        assert error["model"] < denoising_errors(untrained, held_out, mean)[sigma]["model"], sigma
        assert error["noisy"] == pytest.approx(float(sigma) ** 2, rel=0.05)
    assert losses[1] < losses[0] and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def small(seed=0):
    return train_diffusion(draw(20, 1, 8, 8).mul(0.2).add(0.5), Recipe(epochs=1, channels=(8, 16)), seed)


def test_same_seed_same_bits_and_the_global_stream_is_left_alone():
    before = torch.random.get_rng_state()
    a, b, c = small(), small(), small(1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert any(not torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))


def test_a_loss_that_is_not_finite_is_one_line():
    with pytest.raises(VceError, match="lower `learning_rate`"):
        train_diffusion(torch.full((4, 1, 8, 8), torch.nan), Recipe(epochs=1, channels=(8, 16)), 0)


def test_round_trip_gives_the_same_bits(tmp_path):
    model, path = small(), tmp_path / "d.safetensors"
    save_diffusion(model, path, {"seed": 3})
    back = load_diffusion(path)
    x = draw(3, 1, 8, 8)
    assert torch.equal(back.score(x, 0.1), model.score(x, 0.1))
    assert back.image_shape == (1, 8, 8) and not back.training
    assert read_tensors(path, "diffusion")[0] == {"channels": [8, 16], "facts": {"seed": 3}}
    assert not any(parameter.requires_grad for parameter in back.parameters())
    save_diffusion(back, tmp_path / "again.safetensors", {"seed": 3})
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("damage", ["truncated", "html", "missing", "foreign", "another network", "bad shape"])
def test_damaged_files_are_one_line(tmp_path, damage):
    path = tmp_path / "d.safetensors"
    save_diffusion(small(), path, {})
    whole, header = path.read_bytes(), {"diffusion": '{"channels": [8, 16]}'}
    if damage == "missing":
        path.unlink()
    elif damage == "foreign":
        save_file({"mean": torch.zeros(1)}, path)
    elif damage == "another network":
        save_file({"mean": torch.zeros(1, 8, 8), "std": torch.ones(())}, path, metadata=header)
    elif damage == "bad shape":
        save_file({"mean": torch.zeros(1), "std": torch.ones(())}, path, metadata=header)
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"<html>404</html>")
    with pytest.raises(VceError) as caught:
        load_diffusion(path)
    said = str(caught.value)
    fix = "give the file of a" if damage in ("foreign", "another kind") else "delete it"
    assert said.startswith(f"{path}: not a diffusion file (") and fix in said and "\n" not in said


def test_the_job_writes_a_model_with_its_held_out_errors(tmp_path):
    sizes = {"systems": 20, "calibration": 10, "oracles": 5, "tuning": 5, "pairs": 5}
    table, out = datasets.draw_splits("scenes", sizes, 0, Path()), tmp_path / "d.safetensors"
    train_score_model("scenes", table, Path(), parse_recipe(Recipe, {"epochs": 1, "channels": [8, 16]}), 0, out)
    facts = read_tensors(out, "diffusion")[0]["facts"]
    assert facts["recipe"]["channels"] == [8, 16] and facts["seed"] == 0
    assert set(facts["denoising_errors"]["0.1"]) == {"model", "mean", "noisy"}
    assert load_diffusion(out).image_shape == (3, 32, 32)
    with pytest.raises(VceError, match="fix it in config/"):
        parse_recipe(Recipe, {"epochs": 1, "depth": 3})
