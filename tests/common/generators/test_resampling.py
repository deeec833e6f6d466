"""In-fillers that solve every image anew: what they see, a diffusion model known in closed form, smooth images."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.errors import VceError
from common.explain import Streams
from common.generators.diffusion import ScoreModel, build
from common.generators.priors import DeepImagePrior
from common.generators.resampling import DeepInpainting, RePaint

SHAPE, N, M = (3, 8, 8), 4, 3
IDS, TARGETS = ("a", "b", "c", "d"), (1, 0, 2, 1)


class Zero(nn.Module):
    """With it a `ScoreModel` is the exact model of independent pixels N(mean, std²); counts its calls."""

    calls = 0

    def forward(self, x_t, t):
        self.calls += 1
        return torch.zeros_like(x_t)


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def streams(rows=range(N), seed=0):
    return Streams(seed, IDS, TARGETS)[list(rows)]


def untrained(shape=SHAPE):
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return build(torch.zeros(shape), 0.5, (8, 16)).eval().requires_grad_(False)


IMAGES, KEEP = draw(N, *SHAPE), (draw(N, M, 8, 8, seed=1) < 0.5).float()
INFILLS = {
    "repaint": RePaint(untrained(), steps=20, jump_length=5, jump_n_sample=2),
    "dip": DeepInpainting(DeepImagePrior(SHAPE, widths=(4, 6), skip=2, depth=3), iterations=15),
}
every_infill = pytest.mark.parametrize("infill", INFILLS.values(), ids=INFILLS)


@every_infill
def test_hidden_pixels_are_never_seen_and_kept_ones_come_back(infill):
    filled = infill(IMAGES, KEEP, streams())
    kept = KEEP[:, :, None].expand_as(filled) > 0
    assert filled.shape == (N, M, *SHAPE) and filled.min() >= 0 and filled.max() <= 1 and infill.composites
    assert torch.equal(filled[kept], IMAGES[:, None].expand_as(filled)[kept])
    for mask in range(M):
        other = torch.where(KEEP[:, mask, None] > 0, IMAGES, draw(N, *SHAPE, seed=2))
        assert torch.equal(infill(other, KEEP, streams())[:, mask], filled[:, mask])


@every_infill
def test_an_infill_is_the_same_in_any_batch(infill):
    whole, order = infill(IMAGES, KEEP, streams()), [2, 0, 3, 1]
    assert torch.equal(infill(IMAGES, KEEP, streams()), whole)
    assert torch.allclose(infill(IMAGES[order], KEEP[order], streams(order)), whole[order], atol=1e-4)
    for row in range(N):
        alone = infill(IMAGES[[row]], KEEP[[row], :2], streams([row]))
        assert torch.allclose(alone[0], whole[row, :2], atol=1e-4)
    assert not torch.allclose(infill(IMAGES, KEEP, streams(seed=1)), whole, atol=1e-3)


@every_infill
def test_masks_of_an_image_have_draws_of_their_own(infill):
    filled = infill(IMAGES, torch.zeros(N, M, 8, 8), streams())
    assert (filled[:, 0] - filled[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize(("steps", "tolerance"), [(50, 0.14), (250, 0.05)])
def test_repaint_samples_gaussian_data_exactly_as_its_schedule_gets_finer(steps, tolerance):
    """Independent pixels: hidden ones are N(mean, std²) whatever is kept beside them. More rows than fit one chunk."""
    mean, std = 0.8 * draw(1, 16, 16) - 0.4, 0.3
    infill = RePaint(ScoreModel(Zero(), mean, std), steps=steps, jump_n_sample=2)
    rng = Streams(0, tuple(map(str, range(14))), (0,) * 14)
    images, keep = draw(14, 1, 16, 16, seed=3), (draw(14, 6, 16, 16, seed=4) < 0.3).float()
    filled = 2 * infill(images, keep, rng) - 1
    rest = (filled - mean)[(keep == 0)[:, :, None]]
    assert rest.mean().abs() < 0.01
    assert (rest.std() / std - 1).abs() < tolerance
    near = F.max_pool2d(keep, 3, 1, 1)[:, :, None]  # beside a kept pixel or not
    hidden = (keep == 0)[:, :, None]
    beside, far = (filled - mean)[hidden & (near > 0)], (filled - mean)[hidden & (near == 0)]
    assert (beside.mean() - far.mean()).abs() < 0.03 and (beside.std() / far.std() - 1).abs() < 0.06


@pytest.mark.parametrize(
    ("steps", "length", "samples", "passes"), [(50, 10, 3, 130), (250, 10, 10, 2410), (20, 5, 1, 20)]
)
def test_passes_are_counted_calls(steps, length, samples, passes):
    network = Zero()
    infill = RePaint(ScoreModel(network, torch.zeros(1, 4, 4), 0.5), steps, length, samples)
    infill(draw(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), streams([0]))
    assert network.calls == infill.passes == passes


def test_repaint_leaves_the_global_stream_alone():
    before = torch.random.get_rng_state()
    INFILLS["repaint"](IMAGES, KEEP, streams())
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("schedule", "match"),
    [((60, 10, 3), "must be at least 10 and divide 1000"), ((5, 1, 1), "steps 5"), ((50, 0, 3), "at least 1")],
)
def test_impossible_schedules_are_refused(schedule, match):
    with pytest.raises(VceError, match=match):
        RePaint(untrained(), *schedule)


def test_deep_inpainting_continues_a_ramp():
    v, u = torch.meshgrid(torch.linspace(0.1, 0.9, 16), torch.linspace(0.1, 0.9, 16), indexing="ij")
    images = torch.stack([u, v, 0.5 * (u + v)])[None]
    keep = torch.ones(1, 2, 16, 16)
    keep[0, 0, 5:9, 3:7] = keep[0, 1, 8:12, 8:12] = 0
    prior, error = DeepImagePrior((3, 16, 16), widths=(8, 12), skip=2, depth=4), {}
    for iterations in (0, 30, 150):
        infill = DeepInpainting(prior, iterations)
        fitted = infill.fit(images, keep, streams([0]))
        error[iterations] = (fitted - images).square().mean(2)[keep > 0].mean()
    assert error[150] < error[30] < error[0] and error[150] < 2e-3
    hidden = (keep == 0)[:, :, None].expand(-1, -1, 3, -1, -1)
    filled = infill(images, keep, streams([0]))
    for mask in range(2):
        hole, kept = hidden[0, mask], (keep[0, mask] > 0).expand(3, -1, -1)
        colour = images[0][kept].view(3, -1).mean(1)[:, None, None]
        assert (filled[0, mask] - images[0])[hole].square().mean() < 0.3 * (colour - images[0])[hole].square().mean()


def test_with_nothing_kept_deep_inpainting_is_the_untrained_draw():
    infill, nothing = INFILLS["dip"], torch.zeros(N, M, 8, 8)
    drawn = DeepInpainting(infill.prior, iterations=0)(IMAGES, nothing, streams())
    assert torch.equal(infill(IMAGES, nothing, streams()), drawn)
