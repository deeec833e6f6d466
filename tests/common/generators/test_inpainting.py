"""Learned in-fillers: what they may see, what they return, their losses, training masks, training, files, the job."""

import json
import math
import sys

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import distributions

from common.data import datasets
from common.errors import VceError
from common.explain import Streams
from common.generators import train_infill as job
from common.generators.infill import Local, Mean
from common.generators.inpainting import (
    BLOCK_DRAWS,
    CHUNK,
    SIDES,
    Learned,
    Recipe,
    block_masks,
    build,
    held_out,
    kl_divergence,
    load_infill,
    save_infill,
    train_infill,
    training_masks,
)
from common.tensors import read_tensors, write_tensors

SHAPE, WIDTHS, LATENT = (3, 12, 12), (8, 16), 4
ARCHITECTURES = ("unet", "cvae")
both = pytest.mark.parametrize("architecture", ARCHITECTURES)
seeds = st.integers(0, 2**31 - 1)
few = settings(max_examples=20, deadline=None)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def untrained(architecture, shape=SHAPE, seed=0):
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return build(architecture, shape, WIDTHS, LATENT).eval().requires_grad_(False)


def pictures(n, shape=SHAPE, seed=0):
    return torch.rand(n, *shape, generator=stream(seed))


def coins(*shape, seed=1):
    return (torch.rand(*shape, generator=stream(seed)) < 0.5).float()


def streams(n, seed=0):
    return Streams(seed, tuple(f"image-{i}" for i in range(n)), (1,) * n)


def ramps(n, shape=SHAPE, seed=0):
    """Smooth images: a level, a slope down and a slope across for each colour."""
    channels, height, width = shape
    level, down, across = torch.randn(3, n, channels, 1, 1, generator=stream(seed))
    rows, columns = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    return (level + 2 * down * rows + 2 * across * columns).sigmoid()


# what goes in and what comes out


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 10, 14)])
@both
def test_fills_have_the_shape_and_range_of_images(architecture, shape):
    infill, keep = Learned(untrained(architecture, shape)), coins(3, 2, *shape[1:])
    filled = infill(pictures(3, shape), keep, streams(3))
    assert filled.shape == (3, 2, *shape) and filled.min() >= 0 and filled.max() <= 1


@both
def test_hidden_pixels_do_not_move_the_fill_by_a_bit(architecture):
    infill, x, keep = Learned(untrained(architecture)), pictures(6), coins(6, 2, 12, 12)
    keep[0], keep[1] = 0, keep[1, :1]
    filled = infill(x, keep, streams(6))
    for mask in range(2):
        changed = torch.where(keep[:, mask, None] > 0, x, pictures(6, seed=9))
        assert torch.equal(
            infill(changed, keep[:, mask : mask + 1], streams(6)), infill(x, keep[:, mask : mask + 1], streams(6))
        )
    seen = torch.where(keep[2, 0] > 0, 1 - x[2], x[2])[None]
    assert not torch.equal(infill(seen, keep[2:3], streams(6)[[2]])[0, 0], filled[2, 0])


def test_the_unet_returns_kept_pixels_as_they_are_and_the_cvae_predicts_them():
    x, keep = pictures(5), coins(5, 3, 12, 12)
    kept = (keep > 0)[:, :, None].expand(-1, -1, 3, -1, -1)
    images = x[:, None].expand(-1, 3, -1, -1, -1)
    composited, predicted = (Learned(untrained(architecture)) for architecture in ARCHITECTURES)
    assert composited.composites and not predicted.composites
    filled = composited(x, keep, streams(5))
    assert torch.equal(filled[kept], images[kept]) and (filled != images)[~kept].float().mean() > 0.99
    assert (predicted(x, keep, streams(5)) != images)[kept].float().mean() > 0.99


@both
def test_fills_do_not_depend_on_the_batch(architecture):
    n = CHUNK // 2 + 3  # two masks each: more than one pass
    infill, x, keep, rng = Learned(untrained(architecture)), pictures(n), coins(n, 2, 12, 12), streams(n)
    whole, rows = infill(x, keep, rng), [n - 1, 0, 7]
    assert torch.allclose(infill(x[rows], keep[rows], rng[rows]), whole[rows], atol=1e-5)


def test_the_unet_is_deterministic_and_the_cvae_samples():
    x, keep = pictures(3), coins(3, 1, 12, 12).expand(-1, 2, -1, -1)
    unet, cvae = (Learned(untrained(architecture)) for architecture in ARCHITECTURES)
    assert torch.equal(unet(x, keep, streams(3, seed=0)), unet(x, keep, streams(3, seed=1)))
    first, second = (cvae(x, keep, streams(3, seed=seed)) for seed in (0, 1))
    assert torch.equal(first, cvae(x, keep, streams(3)))
    assert (first != second).flatten(2).any(2).all()
    assert (first[:, 0] != first[:, 1]).flatten(1).any(1).all()  # each mask has its own draw


def test_the_cvae_draws_from_its_prior():
    network, x, keep = untrained("cvae"), pictures(1), coins(1, 12, 12)
    features = network.features(x, keep)
    mean, std = network.prior(features)
    z = torch.randn(1, LATENT, generator=stream())
    assert torch.equal(network(x, keep, z), network.decode(features, mean + std * z))
    rng = streams(1)
    drawn = rng.normal((1, LATENT), "infill.latent")[0]
    assert torch.equal(Learned(network)(x, keep[:, None], rng)[0], network(x, keep, drawn))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("gan", SHAPE, (8,), 4), "architecture 'gan' is unknown; choose unet or cvae"),
        (("unet", (3, 31, 32), (8,), 4), r"\(3, 31, 32\): height and width must be even"),
        (("cvae", (3, 32, 31), (8,), 4), r"\(3, 32, 31\): height and width must be even"),
    ],
)
def test_impossible_networks_are_refused(arguments, match):
    with pytest.raises(VceError, match=match):
        build(*arguments)


@both
def test_images_of_another_shape_are_refused(architecture):
    with pytest.raises(VceError, match=r"images of shape \(3, 12, 10\): the in-filler was trained on \(3, 12, 12\)"):
        Learned(untrained(architecture))(torch.zeros(2, 3, 12, 10), torch.ones(2, 1, 12, 10), streams(2))


# the losses


def test_the_loss_of_the_unet_by_brute_force():
    network, x, keep = untrained("unet"), pictures(4), coins(4, 12, 12)
    error = network.decode(network.features(x, keep)) - x
    hidden = [e for e, m in zip(error.movedim(1, -1).reshape(-1, 3), keep.flatten(), strict=True) if not m]
    kept = [e for e, m in zip(error.movedim(1, -1).reshape(-1, 3), keep.flatten(), strict=True) if m]
    hidden, kept = torch.stack(hidden), torch.stack(kept)
    expected = hidden.abs().mean() + hidden.square().mean() / 2 + 0.1 * kept.abs().mean()
    assert network.loss(x, keep, 1.0, stream()).item() == pytest.approx(expected.item(), rel=1e-5)


@few
@given(seeds, st.integers(1, 9))
def test_kl_is_that_of_torch(seed, d):
    means, stds = torch.randn(2, 5, d, generator=stream(seed)), torch.randn(2, 5, d, generator=stream(seed + 1)).exp()
    by_torch = distributions.kl_divergence(*(distributions.Normal(*part) for part in zip(means, stds, strict=True)))
    assert torch.allclose(kl_divergence(*zip(means, stds, strict=True)), by_torch.sum(1), rtol=1e-4, atol=1e-5)


def test_the_loss_of_the_cvae_is_the_negative_bound_at_its_best_sigma():
    network, x, keep = untrained("cvae"), pictures(4), coins(4, 12, 12)
    features, (mean, std) = network.features(x, keep), network.posterior(x, keep)
    decoded = network.decode(features, mean + std * torch.randn(4, LATENT, generator=stream()))
    hidden = (keep == 0)[:, None].expand_as(x)
    constant = hidden.sum() / 4 * (1 + math.log(2 * math.pi)) / 2

    def bound(sigma):
        log_p = distributions.Normal(decoded[hidden], sigma).log_prob(x[hidden]).sum() / 4
        return log_p - 3 * kl_divergence((mean, std), network.prior(features)).mean()

    best = (decoded - x)[hidden].square().mean().sqrt().item()
    found = network.loss(x, keep, 3.0, stream())
    assert (found + constant).item() == pytest.approx(-bound(best).item(), rel=1e-4)
    assert bound(best) > max(bound(0.9 * best), bound(1.1 * best))


@both
def test_the_loss_moves_every_parameter(architecture):
    network = untrained(architecture).requires_grad_(True)
    network.loss(pictures(8), coins(8, 12, 12), 1.0, stream()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


@both
def test_masks_without_a_hidden_or_a_kept_pixel_have_a_finite_loss(architecture):
    network = untrained(architecture)
    assert torch.isfinite(network.loss(pictures(2), torch.zeros(2, 12, 12), 1.0, stream()))
    if architecture == "unet":  # of no hidden pixel there is no likelihood
        assert torch.isfinite(network.loss(pictures(2), torch.ones(2, 12, 12), 1.0, stream()))


# the masks


def test_training_masks_by_family():
    masks = training_masks(4_000, (32, 32), stream())
    assert masks.shape == (4_000, 32, 32) and set(masks.unique().tolist()) == {0.0, 1.0}
    hidden = 1 - masks.mean((1, 2))
    pixels, rectangles, sampled, thresholded = hidden.chunk(4)
    assert pixels.mean().item() == pytest.approx(1 - 0.46, abs=0.03)
    assert pixels.min() < 0.15 and pixels.max() > 0.95
    assert rectangles.min() >= (4 / 32) ** 2 and rectangles.max() <= 1
    assert sampled.mean().item() == pytest.approx(0.5, abs=0.03)
    assert thresholded.mean().item() == pytest.approx(0.5, abs=0.03)
    assert thresholded.min() >= 0.099 and thresholded.max() <= 0.901


def test_only_the_families_without_coins_are_smooth():
    masks = training_masks(400, (32, 32), stream())
    borders = ((masks[:, 1:] != masks[:, :-1]).float().mean((1, 2)) for masks in masks.chunk(4))
    pixels, rectangles, sampled, thresholded = (border.mean().item() for border in borders)
    assert max(rectangles, thresholded) < 0.08 < 0.15 < min(pixels, sampled)


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (8, 16)])
def test_hidden_rectangles_have_sides_within_their_bounds(size):
    hidden = 1 - training_masks(800, size, stream())[200:400]
    rows, columns = hidden.amax(2), hidden.amax(1)
    # a mask that fills its bounding box is one rectangle, or some inside another
    single = hidden.sum((1, 2)) == rows.sum(1) * columns.sum(1)
    assert single.sum() > 50
    for axis, lines in enumerate((rows, columns)):
        sides = lines[single].sum(1)
        assert sides.min() >= round(SIDES[0] * size[axis]) and sides.min() < 0.3 * size[axis]
    least = math.prod(round(SIDES[0] * side) for side in size)
    assert hidden.sum((1, 2)).min() >= least


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5])
def test_any_number_of_training_masks(n):
    assert training_masks(n, (12, 12), stream()).shape == (n, 12, 12)


def blocks(n, size, share, seed=0):
    return block_masks(torch.rand(n, BLOCK_DRAWS, generator=stream(seed)), size, share)


def test_masks_depend_on_their_draws_alone():
    for draw in (
        lambda g: training_masks(64, (32, 32), g),
        lambda g: block_masks(torch.rand(64, BLOCK_DRAWS, generator=g), (32, 32), 0.4),
    ):
        torch.rand(3)
        first, again, other = draw(stream(3)), draw(stream(3)), draw(stream(4))
        assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (33, 21)])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.7])
def test_blocks_hide_their_share_in_one_rectangle_or_one_in_each_half(size, share):
    hidden = 1 - blocks(200, size, share)
    one = torch.rand(200, BLOCK_DRAWS, generator=stream(0))[:, 9] < 0.5
    assert hidden.mean().item() == pytest.approx(share, abs=0.02)
    assert (hidden.mean((1, 2)) - share).abs().max() < 0.1  # sides are whole pixels
    middle = size[1] - size[1] // 2
    for part in (hidden[one], hidden[~one][:, :, : size[1] // 2], hidden[~one][:, :, middle:]):
        assert torch.equal(part.sum((1, 2)), part.amax(2).sum(1) * part.amax(1).sum(1))
        assert part.sum((1, 2)).min() > 0
    assert hidden[~one][:, :, size[1] // 2 : middle].sum() == 0


# training

TINY = {"steps": 150, "widths": WIDTHS, "latent": LATENT, "batch_size": 16, "learning_rate": 1e-2}


@both
def test_training_beats_the_mean_on_held_out_images(architecture):
    fit, images, losses = ramps(200), ramps(40, seed=1), []
    network = train_infill(fit, Recipe(architecture, **TINY), 0, lambda step: losses.append(step["loss"]))
    keep = torch.cat([coins(40, 1, 12, 12), blocks(40, (12, 12), 0.4)[:, None]], 1)
    learned, mean, start = (
        held_out(infill, images, keep, streams(40))
        for infill in (Learned(network), Mean(fit.mean((0, 2, 3))), Learned(untrained(architecture)))
    )
    assert learned < 0.4 * min(mean, start)
    assert len(losses) == 150 and sum(losses[-20:]) < sum(losses[:20])
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())


def test_draws_of_the_cvae_spread_where_the_kept_pixels_leave_a_choice():
    """Images whose right half has a random brightness: seen in part, it leaves no choice."""
    images = torch.rand(200, 1, 1, 1, generator=stream()).repeat(1, *SHAPE)
    images[..., :6] = 0.5
    infill = Learned(train_infill(images, Recipe("cvae", **{**TINY, "steps": 200, "learning_rate": 2e-2}), 0))
    unseen, seen = torch.ones(2, 1, 100, 12, 12)
    unseen[..., 6:], seen[..., 6:] = 0, coins(12, 6)
    open_, settled = (infill(images[:1], keep, streams(1))[..., 6:].flatten(2).mean(2) for keep in (unseen, seen))
    assert open_.std() > max(0.04, 2 * settled.std())
    assert settled.mean().item() == pytest.approx(images[0, 0, 0, -1].item(), abs=0.1)


@both
def test_same_seed_same_bits_and_the_global_stream_is_left_alone(architecture):
    recipe, states = Recipe(architecture, **{**TINY, "steps": 3}), []
    for seed in (3, 3, 4):
        torch.rand(3)
        before = torch.random.get_rng_state()
        states.append(train_infill(ramps(20), recipe, seed).state_dict())
        assert torch.equal(torch.random.get_rng_state(), before)
    a, b, c = states
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not any(torch.equal(a[key], c[key]) for key in a)


@both
def test_a_loss_that_is_not_finite_is_one_line(architecture):
    images = ramps(8)
    images[:, 0, 3, 3] = torch.nan
    for fit, rate in ((images, 1e-3), (ramps(8), 1e30)):
        with pytest.raises(VceError, match=r"training diverged in step \d+: .*lower `learning_rate`"):
            train_infill(fit, Recipe(architecture, **{**TINY, "steps": 5, "learning_rate": rate}), 0)


def test_held_out_error_by_brute_force():
    x, keep, colour = pictures(4), coins(4, 2, 12, 12), torch.tensor([0.2, 0.5, 0.7])
    keep[0, 0] = 1  # nothing hidden: no error
    errors = [
        (x[i, :, keep[i, m] == 0] - colour[:, None]).abs().mean() if (keep[i, m] == 0).any() else torch.zeros(())
        for i in range(4)
        for m in range(2)
    ]
    found = held_out(Mean(colour), x, keep, streams(4))
    assert found == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


# the file


@both
def test_round_trip_gives_the_same_bits(tmp_path, architecture):
    network, path = untrained(architecture), tmp_path / "i.safetensors"
    save_infill(network, path, {"seed": 3})
    back, inputs = load_infill(path, SHAPE), (pictures(5), coins(5, 2, 12, 12), streams(5))
    assert torch.equal(Learned(back)(*inputs), Learned(network)(*inputs))
    assert (back.architecture, back.image_shape, back.widths) == (architecture, SHAPE, WIDTHS)
    assert read_tensors(path, "infill")[0]["facts"] == {"seed": 3}
    assert not back.training and not any(parameter.requires_grad for parameter in back.parameters())
    save_infill(load_infill(path), tmp_path / "again", {"seed": 3})
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_an_infiller_of_other_images_is_refused(tmp_path):
    path = tmp_path / "i.safetensors"
    save_infill(untrained("unet"), path, {})
    with pytest.raises(VceError) as caught:
        load_infill(path, (3, 32, 32))
    assert str(caught.value) == f"{path}: an in-filler of (3, 12, 12) images, the data are (3, 32, 32); choose another"


@pytest.mark.parametrize(
    "damage", ["truncated", "html", "missing", "foreign", "another kind", "another network", "no latent", "bad widths"]
)
def test_damaged_files_are_one_line(tmp_path, damage):
    path = tmp_path / "i.safetensors"
    save_infill(untrained("cvae"), path, {})
    whole, (header, state) = path.read_bytes(), read_tensors(path, "infill")
    if damage == "missing":
        path.unlink()
    elif damage == "foreign":
        save_file({"x": torch.zeros(1)}, path)
    elif damage == "another kind":
        write_tensors(path, "VAE", state, header)
    elif damage == "another network":
        write_tensors(path, "infill", state, {**header, "architecture": "unet"})
    elif damage == "no latent":
        write_tensors(path, "infill", state, {key: value for key, value in header.items() if key != "latent"})
    elif damage == "bad widths":
        write_tensors(path, "infill", state, {**header, "widths": 8})
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"<html>404</html>")
    with pytest.raises(VceError) as caught:
        load_infill(path)
    said = str(caught.value)
    fix = "give the file of a infill" if damage in ("foreign", "another kind") else "delete it"
    assert said.startswith(f"{path}: not a infill file (") and fix in said and "\n" not in said


# the job


@pytest.fixture
def splits(tmp_path):
    sizes = {"systems": 20, "calibration": 10, "oracles": 5, "tuning": 5, "pairs": 5}
    datasets.draw_splits("scenes", sizes, 0, tmp_path).to_parquet(tmp_path / "scenes.parquet")
    return tmp_path


def run(monkeypatch, splits, recipes):
    arguments = ["--splits", str(splits), "--recipes", json.dumps(recipes), "--out", str(splits)]
    monkeypatch.setattr(sys, "argv", ["train_infill", *arguments])
    job.main()


def test_the_job_writes_networks_with_their_facts(monkeypatch, splits):
    fields = {"steps": 2, "widths": [8, 8], "batch_size": 4}
    run(
        monkeypatch,
        splits,
        {f"s-{name}": {"world": "scenes", "architecture": name, **fields} for name in ARCHITECTURES},
    )
    table = pd.read_parquet(splits / "scenes.parquet")
    fit, calibration = (datasets.load("scenes", table, split, splits) for split in ("systems", "calibration"))
    for name in ARCHITECTURES:
        path = splits / f"s-{name}.safetensors"
        network, facts = load_infill(path, (3, 32, 32)), read_tensors(path, "infill")[0]["facts"]
        assert network.architecture == facts["recipe"]["architecture"] == name and facts["seed"] == 0
        colour = torch.tensor(facts["colour"])
        assert torch.allclose(colour, fit.images.mean((0, 2, 3)))
        infills = {"learned": Learned(network), "local": Local(5, colour), "mean": Mean(colour)}
        masks = job.held_out_masks(10, (32, 32))
        assert set(facts["held_out"]) == set(masks) == {"iid", "blocks"}
        for key, keep in masks.items():
            rng = Streams(0, calibration.ids, (0,) * 10)
            expected = {kind: held_out(infill, calibration.images, keep, rng) for kind, infill in infills.items()}
            assert facts["held_out"][key] == pytest.approx(expected, rel=1e-5)


def test_held_out_masks_hide_half_the_pixels_or_two_fifths_in_blocks():
    masks = job.held_out_masks(200, (32, 32))
    assert {key: keep.shape for key, keep in masks.items()} == dict.fromkeys(("iid", "blocks"), (200, 1, 32, 32))
    assert masks["iid"].mean().item() == pytest.approx(0.5, abs=0.01)
    assert masks["blocks"].mean().item() == pytest.approx(0.6, abs=0.01)


def test_an_unknown_field_is_one_line(monkeypatch, splits, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, splits, {"s": {"world": "scenes", "architecture": "unet", "steps": 2, "depth": 3}})
    assert stopped.value.code == 2 and "depth" in capsys.readouterr().err
