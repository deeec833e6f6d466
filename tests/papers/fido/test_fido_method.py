"""FIDO's objectives against brute force, closed forms and identities."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.classifiers.checkpoints import build
from common.errors import VceError
from common.explain import Streams
from common.generators.infill import LinearImputation, Local, Mean, Random
from papers.fido.explain import chunks, class_score, explain, saliency, short_schedule
from papers.fido.method import Settings, bbmp, concrete, fido, log_odds, upsample

GREY = Mean(torch.tensor([0.5]))
EVERY_MASK = torch.tensor(list(itertools.product([0.0, 1.0], repeat=16)))
QUICK = Settings(grid=4, steps=300, masks=16, lam=0.1)


def streams(n: int) -> Streams:
    return Streams(0, tuple(f"image-{k}" for k in range(n)), (0,) * n)


def score_of(f, c):
    """The N×M log-odds of a function of B×1×4×4 images."""
    return lambda x: log_odds(f(x.flatten(0, 1)), c.repeat_interleave(x.shape[1])).view(x.shape[:2])


@dataclass(frozen=True)
class Copy:
    """An in-filler that returns the image: nothing depends on the mask."""

    composites = True
    constant = False

    def __call__(self, images, keep, rng):
        return images[:, None].expand(-1, keep.shape[1], -1, -1, -1)


@dataclass
class Watched:
    """Mean grey, which remembers its masks; `broken` says for which of the samples it returns no number."""

    broken: tuple = ()
    composites = False
    constant = False

    def __post_init__(self):
        self.masks = []

    def __call__(self, images, keep, rng):
        assert not keep.requires_grad
        self.masks.append(keep)
        filled = torch.full((*keep.shape[:2], *images.shape[1:]), 0.5)
        for name in self.broken:
            for row, image in enumerate(rng.image_ids):
                if image.startswith(name):
                    filled[row] = torch.nan
        return filled


def loss_of_every_mask(f, x, c, objective, lam):
    """L(z) of all 65,536 masks of a 4×4 image, in-filled with grey."""
    s = log_odds(f(torch.where(EVERY_MASK.view(-1, 1, 4, 4) > 0, x, torch.tensor(0.5))), c.expand(len(EVERY_MASK)))
    kept = EVERY_MASK.sum(1)
    return lam * kept - s if objective == "ssr" else lam * (16 - kept) + s


def loss_at(loss, mask):
    return loss[(mask.flatten().float() == EVERY_MASK).all(1)].item()


@pytest.mark.parametrize("objective", ["ssr", "sdr"])
@pytest.mark.parametrize("search", [fido, bbmp])
def test_brute_force_finds_no_better_mask_when_pixels_are_independent(objective, search):
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        x, sign = torch.rand(1, 1, 4, 4, generator=generator), 1 - 2 * (torch.rand(16, generator=generator) < 0.5)
        # the log-odds that a kept pixel brings: clear of λ, so that the optimum is unique
        gain = sign * (0.02 + 0.05 * torch.arange(16))[torch.randperm(16, generator=generator)]
        weight = gain / (x.flatten() - 0.5)

        def f(images, weight=weight):
            evidence = (images.flatten(1) - 0.5) @ weight
            return torch.stack([evidence, torch.zeros_like(evidence)], 1)

        c = torch.zeros(1, dtype=torch.long)
        loss = loss_of_every_mask(f, x, c, objective, 0.145)
        found = search(x, score_of(f, c), GREY, objective, replace(QUICK, lam=0.145, masks=64), streams(1))
        assert loss_at(loss, found.theta > 0.5) == pytest.approx(loss.min().item(), abs=1e-5)


@pytest.mark.parametrize("objective", ["ssr", "sdr"])
def test_brute_force_finds_hardly_a_better_mask_when_pixels_interact(objective):
    better = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        first, second = 0.5 * torch.randn(16, 12, generator=generator), torch.randn(12, 3, generator=generator)
        x = torch.rand(1, 1, 4, 4, generator=generator)

        def f(images, first=first, second=second):
            return (2 * (images.flatten(1) - 0.5) @ first).tanh() @ second

        c = f(x).argmax(1)
        loss = loss_of_every_mask(f, x, c, objective, 0.2)
        long = replace(QUICK, lam=0.2, steps=600, masks=32)
        value = loss_at(loss, fido(x, score_of(f, c), GREY, objective, long, streams(1)).theta > 0.5)
        better.append(int((loss < value - 1e-6).sum()))
    assert max(better) <= 3 and sum(number <= 1 for number in better) >= 5  # of 65,536 masks


def linear_problem(n: int = 3, classes: int = 3):
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.rand(n, 1, 8, 8, generator=generator), torch.randn(64, classes, generator=generator)
    return x, class_score(lambda images: (images.flatten(1) - 0.5) @ weight, torch.arange(n) % classes)


def test_without_a_penalty_the_score_rises_and_under_a_huge_one_nothing_is_kept_or_dropped():
    x, score = linear_problem()
    free, dear = replace(QUICK, lam=0.0, grid=8, masks=4), replace(QUICK, lam=100.0, grid=8, masks=4)
    kept = fido(x, score, GREY, "ssr", free, streams(3)).theta
    assert (score(mixed(x, kept > 0.5))[:, 0] > score(x[:, None])[:, 0]).all()
    left = fido(x, score, GREY, "sdr", free, streams(3)).theta
    assert (score(mixed(x, left > 0.5))[:, 0] < score(x[:, None])[:, 0]).all()
    assert fido(x, score, GREY, "ssr", dear, streams(3)).theta.max() < 0.05
    assert fido(x, score, GREY, "sdr", dear, streams(3)).theta.min() > 0.95
    assert bbmp(x, score, GREY, "ssr", dear, streams(3)).theta.max() == 0
    assert bbmp(x, score, GREY, "sdr", dear, streams(3)).theta.min() == 1


def mixed(x, mask):
    return torch.where(mask[:, None], x, torch.tensor(0.5))[:, None]


def test_ssr_and_sdr_mirror_each_other_where_pixels_are_independent():
    x, score = linear_problem(classes=2)  # s is then linear in the image
    ssr = fido(x, score, GREY, "ssr", replace(QUICK, lam=0.0, grid=8), streams(3)).theta
    sdr = fido(x, score, GREY, "sdr", replace(QUICK, lam=0.0, grid=8), streams(3)).theta
    assert ((ssr > 0.5) == (sdr < 0.5)).float().mean() > 0.97


@given(st.floats(0.05, 0.95), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_the_relaxed_mask_has_the_mean_and_the_gradient_of_a_bernoulli(p, seed):
    a = torch.full((200_000,), np.log(p / (1 - p)), dtype=torch.float32, requires_grad=True)
    z = concrete(a.sigmoid(), torch.rand(200_000, generator=torch.Generator().manual_seed(seed)), 0.1)
    z.sum().backward()
    assert z.mean().item() == pytest.approx(p, abs=0.02)
    assert a.grad.mean().item() == pytest.approx(p * (1 - p), rel=0.1)


def test_gradients_are_finite_at_the_ends_of_the_probability():
    p = torch.tensor([0.0, 1e-6, 1 - 1e-6, 1.0], requires_grad=True)
    z = concrete(p[:, None], torch.tensor([0.0, 0.5, 1.0]), 0.1)
    z.sum().backward()
    assert z.isfinite().all() and p.grad.isfinite().all() and z.min() >= 0 and z.max() <= 1


@given(st.integers(2, 7), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_log_odds_are_those_of_the_soft_max_and_finite_when_it_is_one(classes, seed):
    logits = 4 * torch.randn(5, classes, generator=torch.Generator().manual_seed(seed))
    c = torch.arange(5) % classes
    p = logits.double().softmax(1).gather(1, c[:, None])[:, 0]
    torch.testing.assert_close(log_odds(logits, c).double(), p.log() - (1 - p).log(), atol=1e-4, rtol=1e-4)
    far = torch.zeros(1, classes)
    far[0, 0] = 200.0
    assert log_odds(far, torch.zeros(1, dtype=torch.long)).item() == pytest.approx(200 - np.log(classes - 1), rel=1e-6)
    assert log_odds(far, torch.ones(1, dtype=torch.long)).item() == pytest.approx(-200.0, rel=1e-6)


def test_an_in_fill_that_changes_nothing_leaves_every_pixel_undecided():
    x, score = linear_problem()
    for objective in ("ssr", "sdr"):
        assert (fido(x, score, Copy(), objective, replace(QUICK, lam=0.0, grid=8), streams(3)).theta == 0.5).all()


def test_the_in_filler_sees_hard_masks_half_of_them_kept_at_the_start():
    x, score = linear_problem()
    watched = Watched()
    fido(x, score, watched, "ssr", replace(QUICK, grid=8, steps=5), streams(3))
    assert len(watched.masks) == 5 and watched.masks[0].shape == (3, 16, 8, 8)
    assert all(((mask == 0) | (mask == 1)).all() for mask in watched.masks)
    assert watched.masks[0].mean().item() == pytest.approx(0.5, abs=0.05)
    assert not torch.equal(watched.masks[0], watched.masks[1])
    first = watched.masks[0].flatten(2)
    assert (first[:, :, None] != first[:, None]).any(3).float().sum() == 3 * (16 * 16 - 16)  # no two masks alike


def test_bbmp_shows_its_in_filler_what_is_observed():
    x, score = linear_problem()
    for observed, share in ((1.0, 0.0), (0.5, 1.0)):
        watched = Watched()
        bbmp(x, score, watched, "ssr", replace(QUICK, lam=100.0, grid=8, steps=3, observed=observed), streams(3))
        # the penalty weighs nothing in the first step, and lowers every pixel in the second
        assert watched.masks[0].mean() == 1 and watched.masks[2].mean() == share


@pytest.mark.parametrize("search", [fido, bbmp])
def test_in_fills_that_are_no_numbers_are_counted_and_left_out(search):
    x, score = linear_problem()
    good, bad = (
        search(x, score, watched, "ssr", replace(QUICK, grid=8, steps=20, masks=4), streams(3))
        for watched in (Watched(), Watched(broken=("image-1",)))
    )
    assert good.bad_fills.tolist() == [0, 0, 0] and bad.bad_fills.tolist() == [0, bad.fills, 0]
    assert bad.theta.isfinite().all()
    torch.testing.assert_close(bad.theta[[0, 2]], good.theta[[0, 2]])


def test_a_few_bad_in_fills_weigh_nothing():
    """The mean is over the masks whose in-fill is a number: half of them broken at random changes no expectation."""
    x, score = linear_problem()

    @dataclass(frozen=True)
    class Often:
        composites = False
        constant = False

        def __call__(self, images, keep, rng):
            filled = torch.full((*keep.shape[:2], *images.shape[1:]), 0.5)
            filled[:, ::2] = torch.nan
            return filled

    whole = fido(x, score, Watched(), "ssr", replace(QUICK, grid=8, masks=8), streams(3))
    half = fido(x, score, Often(), "ssr", replace(QUICK, grid=8, masks=16), streams(3))
    assert half.bad_fills.tolist() == [8 * QUICK.steps] * 3
    assert ((whole.theta > 0.5) == (half.theta > 0.5)).float().mean() > 0.95


def test_total_variation_smooths():
    x, score = linear_problem()
    rough, smooth = (
        fido(x, score, GREY, "ssr", replace(QUICK, lam=0.01, grid=8, tv=weight), streams(3)).theta
        for weight in (0.0, 5.0)
    )
    assert smooth.diff(dim=1).abs().mean() < 0.5 * rough.diff(dim=1).abs().mean()


def test_upsampling_puts_corners_on_corners():
    cells = torch.arange(4.0).view(1, 1, 2, 2)
    up = upsample(cells, (3, 5))
    expected = np.add.outer(np.linspace(0, 2, 3), np.linspace(0, 1, 5))
    np.testing.assert_allclose(up[0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("search", [fido, bbmp])
def test_an_image_smaller_than_the_grid_is_refused(search):
    with pytest.raises(VceError, match="grid: 9 cells per side do not fit an image of 8×8 pixels"):
        search(*linear_problem(), GREY, "ssr", replace(QUICK, grid=9), streams(3))


@pytest.mark.parametrize("fill", [Mean(torch.full((3,), 0.5)), Random(), Local(5, torch.full((3,), 0.5))])
@pytest.mark.parametrize("search", [fido, bbmp])
def test_a_map_does_not_depend_on_its_batch(fill, search):
    torch.manual_seed(0)
    net = build("strided_cnn", name="net", image_shape=(3, 16, 16), class_names=("a", "b", "c")).eval()
    net.requires_grad_(False)
    x, c = torch.rand(6, 3, 16, 16), torch.arange(6) % 3
    how = {"classifier": net, "infill": fill, "objective": "ssr", "search": search}
    brief = Settings(grid=8, steps=12, masks=3, lam=0.01)
    all_at_once = saliency(x, c, rng=streams(6), settings=brief, **how).theta
    order = [4, 1]
    alone = saliency(x[order], c[order], rng=streams(6)[order], settings=brief, **how).theta
    torch.testing.assert_close(alone, all_at_once[order], atol=2e-3, rtol=0)
    again = saliency(x, c, rng=streams(6), settings=brief, **how).theta
    assert torch.equal(again, all_at_once)


def test_chunks_cover_everything_once():
    assert chunks(5, 4, 32 * 32) == [slice(0, 5)]
    assert chunks(70, 4, 32 * 32) == [slice(0, 32), slice(32, 64), slice(64, 70)]
    assert chunks(2, 8, 224 * 224) == [slice(0, 1), slice(1, 2)]


class Colour(torch.nn.Module):
    """Names the strongest colour: whatever else the image shows."""

    image_shape = (3, 16, 16)

    def forward(self, x):
        return 40 * x.mean((2, 3))


def red_square() -> torch.Tensor:
    x = torch.full((2, 3, 16, 16), 0.5)
    x[:, 1] += 0.01
    x[0, 0, 4:10, 4:10] = 1.0
    x[1, 0, 8:14, 2:8] = 1.0
    return x


def explained(**more):
    x, c = red_square(), torch.zeros(2, dtype=torch.long)
    how = {"strengths": (0.05, 0.25), "settings": Settings(grid=8, steps=60, masks=8, lam=0.01, learning_rate=0.25)}
    return x, explain(x, c, torch.ones(2, dtype=torch.long), classifier=Colour(), rng=streams(2), **how, **more)


@pytest.mark.parametrize("objective", ["ssr", "sdr"])
def test_the_counterfactual_fills_the_object_and_leaves_the_class(objective):
    x, batch = explained(objective=objective, infill=Mean(torch.tensor([0.5, 0.51, 0.5])))
    inside = x[:, 0] > 0.9
    assert batch.images.shape == (2, 2, 3, 16, 16) and batch.saliency.shape == (2, 16, 16)
    for i in range(2):
        assert batch.saliency[i][inside[i]].min() > batch.saliency[i][~inside[i]].mean()
        changed = (batch.images[i] - x[i]).abs().sum(1) > 0
        assert changed.flatten(1).sum(1).tolist() == [13, inside[i].sum()]  # 5 % of 256, and all of the square
    assert (batch.status[:, 1] == "ok").all() and (batch.status[:, 0] == "not_flipped").all()
    assert (batch.confidence[:, 1] > 0.3).all() and batch.forward.unique().tolist() == [480]


def test_the_default_in_fill_needs_no_training_and_kept_pixels_stay():
    x, batch = explained()
    keep = (batch.images == x[:, None]).all(2)
    assert keep[:, 0].float().mean() > 0.9
    own = LinearImputation(torch.full((3,), 0.5))
    _, same = explained(infill=own)
    assert torch.equal(batch.images, same.images)


def test_in_fills_that_never_are_numbers_diverge_and_keep_the_original():
    x, batch = explained(infill=Watched(broken=("image-0",)))
    assert batch.status[0].tolist() == ["diverged"] * 2 and "diverged" not in batch.status[1]
    assert torch.equal(batch.images[0], x[0].expand(2, -1, -1, -1))


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_strength_is_a_share(share):
    x, c = red_square(), torch.zeros(2, dtype=torch.long)
    with pytest.raises(VceError, match="no share of pixels above 0 and up to 1"):
        explain(x, c, c, classifier=Colour(), rng=streams(2), strengths=(share,))


def test_the_short_schedule_follows_the_size():
    large, small = (short_schedule(torch.zeros(1, 3, size, size + 8)) for size in (224, 32))
    assert large.grid == Settings().grid == 56 and small.grid == 8
    assert large.lam == pytest.approx(Settings().lam) and small.lam == pytest.approx(0.007)
    travel = [chosen.learning_rate * chosen.steps for chosen in (large, Settings())]
    assert travel[0] == pytest.approx(travel[1])
