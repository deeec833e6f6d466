"""The two density-regularised methods on data and classifiers whose answers are known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from common.errors import VceError
from common.explain import Streams
from common.generators.diffusion import ScoreModel
from papers.svce.density import Blending, Langevin, annealed_langevin, blended_diffusion, guided_diffusion, pvce

N, SHAPE, MU, S = 6, (3, 8, 8), 0.5, 0.1
FAST = Langevin(levels=6, inner=2, alpha=4e-5)
SHORT = Blending(steps=12, skip=3, lambda_mse=300.0)


class Zero(nn.Module):
    def forward(self, x_t, t):
        return torch.zeros_like(x_t)


class Linear(nn.Module):
    """Three classes; the logits are linear. In `broken` calls those of sample 2 are not numbers."""

    def __init__(self, broken=()):
        super().__init__()
        self.w = torch.randn(3, SHAPE[0] * SHAPE[1] * SHAPE[2], generator=torch.Generator().manual_seed(5)) / 4
        self.broken, self.calls = broken, 0

    def forward(self, x):
        logits = (x.flatten(1) - MU) @ self.w.T
        if self.calls in self.broken:
            logits = logits.index_fill(0, torch.tensor(2), torch.nan)
        self.calls += 1
        return logits


@pytest.fixture
def model():
    """The exact score of data that are N(MU, S²) per colour value."""
    return ScoreModel(Zero(), torch.full(SHAPE, 2 * MU - 1), 2 * S)


@pytest.fixture
def images():
    return torch.rand(N, *SHAPE, generator=torch.Generator().manual_seed(1))


TARGET = torch.tensor([0, 1, 2, 0, 1, 2])
SOURCE = (TARGET + 1) % 3
RNG = Streams(0, tuple("abcdef"), tuple(TARGET.tolist()))


def run(method, images, model, rows=tuple(range(N)), **options):
    rows = list(rows)
    options = {"classifier": Linear(), "rng": RNG[rows], "score_model": model} | options
    return method(images[rows], SOURCE[rows], TARGET[rows], **options)


def log_p(images):
    with torch.no_grad():
        return Linear()(images).log_softmax(1).gather(1, TARGET[:, None])[:, 0]


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    epsilon=st.floats(1e-3, 20),
    guidance=st.floats(0, 100),
    alpha=st.floats(1e-7, 1e-2),
)
def test_every_iterate_is_in_the_ball_and_the_box(seed, epsilon, guidance, alpha):
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.rand(3, 1, 4, 4, generator=generator).mul(1.4).sub(0.2).clamp(0, 1)
    w = torch.randn(1, 1, 4, 4, generator=generator)

    def feasible(x):
        assert x.min() >= 0 and x.max() <= 1
        assert (x - x0).flatten(1).norm(dim=1).max() <= epsilon * (1 + 1e-5) + 1e-6

    def check(state):
        feasible(state["x"])
        feasible(state["denoised"])

    setting = Langevin(levels=3, inner=2, alpha=alpha, guidance=guidance)
    x, diverged, steps = annealed_langevin(
        x0,
        epsilon,
        lambda x, rows: ((x * w).flatten(1).sum(1), w.expand_as(x)),
        lambda x, sigma: (0.5 - x) / (0.01 + sigma**2),
        lambda name: torch.randn(x0.shape, generator=generator),
        setting,
        check,
    )
    feasible(x)
    assert not diverged.any() and steps.tolist() == [6] * 3


def test_one_step_is_the_equation():
    x0, z = torch.rand(2, 1, 4, 4) * 0.2 + 0.4, torch.randn(2, 1, 4, 4)
    w = torch.randn(2, 1, 4, 4)
    setting = Langevin(levels=2, inner=1, alpha=1e-5, sigma_1=0.02, sigma_L=0.01, guidance=0.2)
    states = []
    annealed_langevin(
        x0, 50.0, lambda x, rows: (w.new_zeros(2), w), lambda x, sigma: (0.5 - x) / 0.1, lambda name: z, setting,
        states.append,
    )  # fmt: skip
    y = x0 + (2 * 4e-5) ** 0.5 * z
    s = (0.5 - y) / 0.1
    share = (s.flatten(1).norm(dim=1) / (5 * w.flatten(1).norm(dim=1))).view(-1, 1, 1, 1)
    assert torch.allclose(states[0]["x"], y + 4e-5 * (s + share * w), atol=1e-6)
    assert torch.allclose(states[0]["denoised"], y + 0.02**2 * s, atol=1e-6)


def test_pvce_moves_towards_the_target_and_the_mean(images, model):
    batch = run(pvce, images, model, strengths=(1.0, 3.0), setting=FAST)
    before = (images - MU).flatten(1).norm(dim=1)
    after = (batch.images - MU).flatten(2).norm(dim=2)
    assert (batch.log_confidence > log_p(images)[:, None]).all()
    assert (after[:, 1] < after[:, 0]).all() and (after[:, 0] < before).all()
    assert batch.steps.tolist() == [[12, 12]] * N and torch.equal(batch.forward, batch.backward)
    assert torch.equal(batch.forward, batch.steps)


def test_without_guidance_images_are_denser_than_by_guidance_alone(images, model):
    distances, confidences = [], []
    for guidance in (0.0, 0.2, 100.0):
        setting = Langevin(levels=6, inner=2, guidance=guidance)
        batch = run(pvce, images, model, strengths=(3.0,), setting=setting)
        distances.append((batch.images[:, 0] - MU).flatten(1).norm(dim=1))
        confidences.append(batch.log_confidence[:, 0])
    assert distances[0].mean() < distances[1].mean() < distances[2].mean()
    assert (distances[0] < distances[2]).all()
    assert (confidences[0] < confidences[1]).all() and (confidences[1] < confidences[2]).all()


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize(
    ("method", "setting", "strengths"), [(pvce, FAST, (1.0, 3.0)), (blended_diffusion, SHORT, (5.0, 25.0))]
)
def test_results_do_not_depend_on_batch_or_order(images, model, method, setting, strengths, batch_size):
    whole = run(method, images, model, strengths=strengths, setting=setting)
    order = [4, 0, 5, 2]
    part = run(method, images, model, order, strengths=strengths, setting=setting, batch_size=batch_size)
    assert torch.allclose(part.images, whole.images[order], atol=1e-4)
    assert (part.status == whole.status[order]).all()


class Spy(ScoreModel):
    """Keeps the first images that it is asked about."""

    first = None

    def score(self, x, sigma):
        self.first = x.clone() if self.first is None else self.first
        return super().score(x, sigma)


def test_noise_is_the_same_bits_in_every_batch_and_at_every_radius(images):
    spies = [Spy(Zero(), torch.full(SHAPE, 2 * MU - 1), 2 * S) for _ in range(2)]
    run(pvce, images, spies[0], strengths=(1.0, 3.0), setting=FAST)
    run(pvce, images, spies[1], [3, 1], strengths=(2.0,), setting=FAST)
    whole = spies[0].first.view(N, 2, *SHAPE)
    assert torch.equal(whole[:, 0], whole[:, 1])
    assert torch.equal(spies[1].first, whole[[3, 1], 0])
    assert not torch.equal(whole[0, 0] - images[0], whole[1, 0] - images[1])


def test_blending_stays_near_the_image_without_a_classifier(images, model):
    def distance(**weights):
        setting = Blending(steps=48, skip=12, **weights)
        return run(blended_diffusion, images, model, strengths=(0.0,), setting=setting).distance[:, 0]

    free, held, firmly = (distance(lambda_mse=weight) for weight in (0.0, 1000.0, 10000.0))
    assert (held < free).all() and (firmly < held).all() and (firmly < 0.35 * free).all()


def test_blending_raises_the_confidence_with_its_weight(images, model):
    batch = run(blended_diffusion, images, model, strengths=(0.0, 5.0, 25.0), setting=SHORT)
    assert (batch.log_confidence.diff(dim=1) > 0).all()
    assert batch.images.min() >= 0 and batch.images.max() <= 1
    assert batch.steps.tolist() == [[9, 9, 9]] * N
    assert run(blended_diffusion, images, model, setting=SHORT).strengths == (25.0,)


def test_the_range_term_keeps_denoised_images_in_range(model):
    def outside(weight):
        x0, found = torch.ones(2, *SHAPE), []
        wide = ScoreModel(Zero(), torch.full(SHAPE, 1.5), 0.5)
        setting = Blending(steps=12, skip=3, lambda_mse=0.0, lambda_range=weight)
        guided_diffusion(
            x0, 0.0, lambda x, rows: (x.new_zeros(2), torch.zeros_like(x)), wide,
            lambda name: torch.randn(x0.shape, generator=torch.Generator().manual_seed(len(name))), setting,
            lambda state: found.append((state["y"] - 1).clamp_min(0).mean()),
        )  # fmt: skip
        return found[-1]

    assert outside(3000.0) < 0.7 * outside(0.0)


@pytest.mark.parametrize(("method", "setting"), [(pvce, FAST), (blended_diffusion, SHORT)])
def test_a_diverging_sample_keeps_its_last_finite_image_and_harms_no_other(images, model, method, setting):
    options = {"strengths": (1.0,), "setting": setting}
    healthy = run(method, images, model, **options)
    batch = run(method, images, model, classifier=Linear(broken=range(5, 8)), **options)
    others = [0, 1, 3, 4, 5]
    assert batch.status[2, 0] == "diverged" and "diverged" not in batch.status[others]
    assert batch.images.isfinite().all() and batch.log_confidence.isfinite().all()
    assert torch.equal(batch.images[others], healthy.images[others])
    assert batch.steps[2].item() == 6 and (batch.steps[others] == healthy.steps[others]).all()
    never = run(method, images, model, classifier=Linear(broken=range(1000)), **options)
    assert torch.equal(never.images[2, 0], images[2]) and never.log_confidence[2, 0] == -torch.inf


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Langevin(levels=1), "levels ≥ 2"),
        (lambda: Langevin(sigma_1=0.001), "sigma_1 ≥ sigma_L"),
        (lambda: Langevin(alpha=0.0), "alpha > 0"),
        (lambda: Blending(steps=5, skip=5), "skip < steps"),
    ],
)
def test_impossible_settings_are_refused(make, match):
    with pytest.raises(VceError, match=match):
        make()


def test_a_radius_of_zero_is_refused(images, model):
    with pytest.raises(VceError, match="radius must be positive"):
        run(pvce, images, model, strengths=(0.0,))
