"""In-fillers against brute force, dense linear algebra and least squares; what each of them may see."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.explain import Streams
from common.generators import infill
from common.generators.infill import Biharmonic, Blur, LinearImputation, Local, Mean, Random

SHAPE, N, M = (3, 8, 8), 4, 3
IDS, TARGETS = ("a", "b", "c", "d"), (1, 0, 2, 1)
COLOUR = torch.tensor([0.2, 0.5, 0.7])
INFILLS = {
    "mean": Mean(COLOUR),
    "blur": Blur(2.5),
    "random": Random(),
    "local": Local(5, COLOUR),
    "linear": LinearImputation(COLOUR),
    "biharmonic": Biharmonic(COLOUR),
}
CONDITIONAL, COMPOSITING = ("local", "linear", "biharmonic"), ("linear", "biharmonic")
seeds = st.integers(0, 10**6)
shares = st.sampled_from([0.02, 0.1, 0.3, 0.5, 0.9])
some = settings(max_examples=20, deadline=None)


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def masks(seed, share, n=N, m=M, size=(8, 8)):
    return (draw(n, m, *size, seed=seed + 1) < share).float()


def streams(rows=range(N), seed=0):
    return Streams(seed, IDS, TARGETS)[list(rows)]


def each(*names):
    return pytest.mark.parametrize("name", names or INFILLS)


@pytest.fixture
def without_noise(monkeypatch):
    monkeypatch.setattr(infill, "ROAD_NOISE", 0.0)


@each()
@some
@given(seed=seeds, share=shares)
def test_shapes_and_ranges(name, seed, share):
    filled = INFILLS[name](draw(N, *SHAPE, seed=seed).round(), masks(seed, share), streams())
    assert filled.shape == (N, M, *SHAPE) and filled.dtype == torch.float32
    assert filled.isfinite().all() and filled.min() >= 0 and filled.max() <= 1 + 1e-6


@each(*CONDITIONAL)
@some
@given(seed=seeds, share=shares)
def test_hidden_pixels_are_never_seen(name, seed, share):
    images, keep = draw(N, *SHAPE, seed=seed), masks(seed, share, m=1)
    other = torch.where(keep > 0, images, draw(N, *SHAPE, seed=seed + 2))
    assert torch.equal(INFILLS[name](images, keep, streams()), INFILLS[name](other, keep, streams()))


def test_blur_leaks_what_it_hides():
    images, keep = draw(N, *SHAPE), masks(0, 0.5, m=1)
    other = torch.where(keep > 0, images, draw(N, *SHAPE, seed=2))
    change = INFILLS["blur"](images, keep, streams()) - INFILLS["blur"](other, keep, streams())
    assert change.abs().max() > 0.01


@each("mean", "random")
def test_heuristics_ignore_image_and_mask(name):
    one = INFILLS[name](draw(N, *SHAPE), masks(0, 0.5), streams())
    assert torch.equal(one, INFILLS[name](draw(N, *SHAPE, seed=1), masks(3, 0.1), streams()))


@each()
def test_constant_ones_ignore_the_mask_and_the_draw(name):
    images, fill = draw(N, *SHAPE), INFILLS[name]
    same = torch.equal(fill(images, masks(0, 0.5), streams()), fill(images, masks(3, 0.1), streams(seed=1)))
    assert fill.constant == same


@each()
@some
@given(seed=seeds, share=st.sampled_from([0.3, 0.5, 0.9]))
def test_kept_pixels_come_back_where_they_are_said_to(name, seed, share):
    images, keep = draw(N, *SHAPE, seed=seed), masks(seed, share)
    filled = INFILLS[name](images, keep, streams())
    kept = keep[:, :, None].expand_as(filled) > 0
    assert INFILLS[name].composites == torch.equal(filled[kept], images[:, None].expand_as(filled)[kept])
    assert INFILLS[name].composites == (name in COMPOSITING)


@each()
@some
@given(rows=st.lists(st.integers(0, N - 1), min_size=1, max_size=N, unique=True), seed=seeds, share=shares)
def test_an_infill_is_the_same_in_any_batch(name, rows, seed, share):
    images, keep = draw(N, *SHAPE, seed=seed), masks(seed, share)
    whole = INFILLS[name](images, keep, streams())
    assert torch.equal(INFILLS[name](images[rows], keep[rows, :2], streams(rows)), whole[rows, :2])


@each(*COMPOSITING)
def test_with_everything_kept_the_image_comes_back(name):
    images = draw(N, *SHAPE)
    filled = INFILLS[name](images, torch.ones(N, M, 8, 8), streams())
    assert torch.equal(filled, images[:, None].expand_as(filled))


@each(*CONDITIONAL)
def test_with_nothing_kept_the_training_mean_comes_back(name, without_noise):
    filled = INFILLS[name](draw(N, *SHAPE), torch.zeros(N, M, 8, 8), streams())
    assert torch.allclose(filled, COLOUR.view(3, 1, 1).expand_as(filled), atol=1e-5)


def test_mean_and_blur_of_known_images():
    assert torch.equal(INFILLS["mean"](draw(2, *SHAPE), masks(0, 0.5, 2), streams([0, 1]))[1, 2, :, 3, 4], COLOUR)
    spike = torch.zeros(1, 1, 31, 31)
    spike[..., 15, 15] = 1
    blurred = Blur(2.0)(spike, torch.ones(1, 1, 31, 31), streams([0]))[0, 0, 0]
    distance = (torch.arange(31) - 15).float()
    gaussian = (-(distance**2) / 8).exp() * (distance.abs() <= 6)
    assert torch.allclose(blurred, torch.outer(gaussian, gaussian) / gaussian.sum() ** 2, atol=1e-6)


def test_random_is_one_colour_per_mask_with_noise():
    """Colours near 0.5 show the noise nearly unclipped (1.2 % is); all of them show that they are uniform."""
    rng = Streams(0, tuple(map(str, range(50))), (0,) * 50)
    filled = Random()(torch.zeros(50, 3, 32, 32), torch.zeros(50, 2, 32, 32), rng)
    colour = rng.uniform((2, 3, 1, 1), "infill.colour")
    inner = filled[((colour - 0.5).abs() < 0.02).expand_as(filled)].view(-1, 1024)
    base = colour[(colour - 0.5).abs() < 0.02]
    assert len(inner) > 5
    assert (inner.mean(1) - base).abs().max() < 4 * 0.2 / 32 and (inner.std(1) - 0.2).abs().max() < 0.02
    assert (filled.mean((3, 4)) - colour[..., 0, 0]).abs().max() < 0.11  # clipping moves it inwards, by at most .08
    assert colour.std() == pytest.approx(12**-0.5, abs=0.03) and colour.mean() == pytest.approx(0.5, abs=0.06)


@some
@given(seed=seeds, share=shares, window=st.sampled_from([1, 3, 5]))
def test_local_is_the_mean_of_kept_pixels_in_its_window(seed, share, window):
    images, keep, r = draw(1, *SHAPE, seed=seed), masks(seed, share, 1, 1), window // 2
    filled = Local(window, COLOUR)(images, keep, streams([0]))[0, 0]
    for v in range(8):
        for u in range(8):
            here = slice(max(v - r, 0), v + r + 1), slice(max(u - r, 0), u + r + 1)
            kept = images[0][:, *here][:, keep[0, 0][here] > 0]
            assert torch.allclose(filled[:, v, u], kept.mean(1) if kept.numel() else COLOUR, atol=1e-5)


def weighted_means(image, keep, colour):
    """The dense system row by row: x_u = Σ_v w_uv x_v / Σ_v w_uv over the neighbours that exist."""
    size = keep.shape[0]
    system, right = np.eye(size**2), np.zeros((size**2, len(image)))
    for v, u in np.ndindex(size, size):
        row = v * size + u
        if keep[v, u]:
            right[row] = image[:, v, u]
            continue
        near = [(v + a, u + b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a or b)]
        near = [(a, b) for a, b in near if 0 <= a < size and 0 <= b < size]
        weights = np.array([1 / 6 if a == v or b == u else 1 / 12 for a, b in near])
        for (a, b), weight in zip(near, weights / weights.sum(), strict=True):
            system[row, a * size + b] -= weight
    return np.linalg.solve(system, right).T.reshape(image.shape) if keep.any() else colour


@settings(max_examples=30, deadline=None)
@given(seed=seeds, share=shares)
def test_linear_imputation_solves_the_system_of_weighted_means(seed, share):
    images, keep = draw(2, *SHAPE, seed=seed), masks(seed, share, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infill, "ROAD_NOISE", 0.0)
        filled = LinearImputation(COLOUR)(images, keep, streams([0, 1]))
    for n, m in np.ndindex(2, M):
        expected = weighted_means(images[n].double().numpy(), keep[n, m].numpy(), COLOUR.view(3, 1, 1).numpy())
        assert np.abs(filled[n, m].numpy() - expected).max() < 1e-4


def test_linear_imputation_adds_noise_to_hidden_pixels():
    images, keep = torch.full((N, 3, 32, 32), 0.5), masks(0, 0.5, size=(32, 32))
    filled = INFILLS["linear"](images, keep, streams())
    noise = (filled - 0.5)[(keep == 0)[:, :, None].expand_as(filled)]
    assert noise.mean().abs() < 4e-4 and noise.std() == pytest.approx(0.01, rel=0.05)


def bending(size):
    """Rows whose squares add up to Σ x_uu² + 2 x_uv² + x_vv²."""
    rows, index = [], np.arange(size * size).reshape(size, size)

    def row(entries):
        rows.append(np.zeros(size * size))
        for place, weight in entries:
            rows[-1][place] += weight

    for v, u in np.ndindex(size, size):
        if v + 2 < size:
            row([(index[v, u], 1), (index[v + 1, u], -2), (index[v + 2, u], 1)])
        if u + 2 < size:
            row([(index[v, u], 1), (index[v, u + 1], -2), (index[v, u + 2], 1)])
        if v + 1 < size and u + 1 < size:
            corners = [(v, u, 1), (v, u + 1, -1), (v + 1, u, -1), (v + 1, u + 1, 1)]
            row([(index[a, b], 2**0.5 * weight) for a, b, weight in corners])
    return np.stack(rows)


@some
@given(seed=seeds, share=st.sampled_from([0.2, 0.5, 0.9]))
def test_biharmonic_is_least_squares_of_the_bending_energy(seed, share):
    images, keep = draw(1, *SHAPE, seed=seed), masks(seed, share, 1)
    filled, rows = Biharmonic(COLOUR)(images, keep, streams([0]))[0].double().numpy(), bending(8)
    for m in range(M):
        kept, values = keep[0, m].numpy().ravel() > 0, images[0].double().numpy().reshape(3, -1)
        solved, _, rank, _ = np.linalg.lstsq(rows[:, ~kept], -rows[:, kept] @ values[:, kept].T, rcond=None)
        if rank == (~kept).sum():  # else kept pixels do not determine the surface
            assert np.abs(filled[m].reshape(3, -1)[:, ~kept] - solved.T.clip(0, 1)).max(initial=0) < 2e-5


@some
@given(seed=seeds, share=st.sampled_from([0.1, 0.3, 0.5]))
def test_biharmonic_continues_a_ramp(seed, share):
    v, u = torch.meshgrid(torch.linspace(0, 1, 8), torch.linspace(0, 1, 8), indexing="ij")
    ramps, keep = torch.stack([u, v, 0.3 * u + 0.5 * v])[None], masks(seed, share, 1)
    keep[..., 0, 0] = keep[..., 0, 7] = keep[..., 7, 3] = 1  # three that are not on one line
    filled = Biharmonic(COLOUR)(ramps, keep, streams([0]))
    assert torch.allclose(filled, ramps[:, None].expand_as(filled), atol=1e-4)
