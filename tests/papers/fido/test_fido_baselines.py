"""Baselines on classifiers whose saliency is known in closed form."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn

from common.classifiers.checkpoints import build
from common.generators.infill import Blur, Mean
from papers.fido import baselines
from papers.fido.baselines import RISE_MASKS, centre, extremal, gradient_times_input, rise, whole
from papers.fido.explain import class_score

N, K, SIZE = 3, 4, 32
BLACK, WHITE = torch.zeros(3), torch.ones(N, 3, SIZE, SIZE)
LABELS = torch.tensor([2, 0, 3])
HALVES = (slice(SIZE // 2), slice(SIZE // 2, SIZE))
seeds = st.integers(0, 10**6)
some = settings(max_examples=20, deadline=None)


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def net(seed, size=SIZE):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = build("strided_cnn", name="net", image_shape=(3, size, size), class_names=tuple("abcd"))
    classifier.temperature.fill_(0.05)
    return classifier.eval().requires_grad_(False)


class Share(nn.Module):
    """p(class 0) = ⟨w, image⟩ of non-negative weights w, H×W, that add up to 1 over all pixels; the rest is class 1."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, images):
        p = (images.mean(1) * self.weight).sum((1, 2)).clamp(1e-6, 1 - 1e-6)
        return torch.stack([p, 1 - p], 1).log()


class Quadrant(nn.Module):
    """Logits ±`gain` by the brightness of one quadrant of the image; blind to all else."""

    def __init__(self, rows, columns, gain=10.0):
        super().__init__()
        self.rows, self.columns, self.gain = rows, columns, gain

    def forward(self, images):
        logit = self.gain * (2 * images[:, :, self.rows, self.columns].mean((1, 2, 3)) - 1)
        return torch.stack([logit, -logit], 1)


class Recorder(nn.Module):
    """Keeps what it is asked about."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return torch.zeros(len(images), 2)


def every_map(x, c, classifier, colour):
    return {
        "max": whole(x),
        "center": centre(x),
        "gradient": gradient_times_input(x, c, classifier),
        "rise": rise(x, c, classifier, colour),
        "extremal": extremal(x, class_score(classifier, c), Blur(2.5), 0.1, steps=10),
    }


def test_every_baseline_is_the_same_twice_and_a_map():
    x, classifier = draw(N, 3, SIZE, SIZE), net(0)
    torch.manual_seed(1)
    first = every_map(x, LABELS, classifier, BLACK)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = every_map(x, LABELS, classifier, BLACK)
    assert torch.equal(torch.get_rng_state(), before)
    for name, found in first.items():
        assert found.shape == (N, SIZE, SIZE) and found.dtype == torch.float32 and not found.requires_grad, name
        assert found.isfinite().all() and found.min() >= 0, name
        assert torch.equal(found, second[name]), name
        if name != "gradient":
            assert found.max() <= 1 + 1e-6, name


def test_boxes_look_at_nothing():
    x = draw(N, 3, 224, 224)
    assert torch.equal(whole(x), torch.ones(N, 224, 224))
    box = torch.zeros(224, 224)
    box[33:191, 33:191] = 1
    assert torch.equal(centre(x), box.expand(N, -1, -1))
    assert abs(centre(WHITE).mean().item() - 0.5) < 0.02


@some
@given(seed=seeds)
def test_gradient_times_input_of_a_linear_classifier(seed):
    """∂s/∂x = w_c − Σ_{j≠c} p_j/(1 − p_c) w_j."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, K))
    x = draw(N, 3, 8, 8, seed=seed)
    found = gradient_times_input(x, LABELS, classifier)
    weight, p = classifier[1].weight.detach().view(K, 3, 8, 8), classifier(x).softmax(1).detach()
    for n, c in enumerate(LABELS.tolist()):
        others = sum(p[n, j] / (1 - p[n, c]) * weight[j] for j in range(K) if j != c)
        assert torch.allclose(found[n], (x[n] * (weight[c] - others)).sum(0).abs(), atol=1e-6)


def test_gradient_times_input_is_what_dimming_a_pixel_changes():
    """d/dt s(x + t x⊙e_u), by central differences in double precision."""
    classifier, x, step = net(3, 16).double(), draw(N, 3, 16, 16, seed=4).double(), 1e-5
    found, score = gradient_times_input(x, LABELS, classifier), class_score(classifier, LABELS)
    pixels = torch.eye(256, dtype=torch.float64).view(256, 1, 16, 16)[::5]
    with torch.no_grad():
        up, down = (score(x[:, None] * (1 + sign * step * pixels)) for sign in (1, -1))
    expected = ((up - down) / (2 * step)).abs()
    assert expected.max() > 1e-3
    assert torch.allclose(found.flatten(1)[:, ::5], expected, rtol=1e-4, atol=1e-7)


def test_gradient_times_input_of_a_black_pixel_is_nothing():
    x = draw(N, 3, SIZE, SIZE)
    x[:, :, :10] = 0
    found = gradient_times_input(x, LABELS, net(0))
    assert (found[:, :10] == 0).all() and (found[:, 10:] > 0).float().mean() > 0.99


def rise_masks(size):
    """Of a white image on black ground every mask is what the classifier sees."""
    seen = Recorder()
    rise(torch.ones(1, 3, *size), torch.tensor([0]), seen, BLACK)
    (masks,) = seen.seen
    assert torch.equal(masks, masks[:, :1].expand(-1, 3, -1, -1))
    return masks[:, 0]


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (20, 33)])
def test_masks_of_rise_are_smooth_and_cover_all_values_evenly(size):
    masks = rise_masks(size)
    assert masks.shape == (RISE_MASKS, *size)
    assert masks.min() == 0 and masks.max().item() == pytest.approx(1)
    assert abs(masks.mean().item() - 0.5) < 0.02
    # 500 masks of deviation below a half at every pixel, and none that is always hidden or kept
    assert (masks.mean(0) - 0.5).abs().max() < 5 * 0.5 / RISE_MASKS**0.5
    assert (masks.std(0) > 0.2).all()
    for axis, side in ((1, size[0]), (2, size[1])):
        assert masks.diff(dim=axis).abs().max() <= 1.3 * 8 / side
    assert len(masks.unique(dim=0)) == RISE_MASKS


def test_rise_is_a_weighted_mean_of_probabilities():
    x, colour, classifier = draw(2, 3, SIZE, SIZE, seed=5), torch.tensor([0.2, 0.5, 0.7]), net(1)
    masks = rise_masks((SIZE, SIZE))
    for image, c, found in zip(x, LABELS, rise(x, LABELS[:2], classifier, colour), strict=False):
        mixed = masks[:, None] * image + (1 - masks[:, None]) * colour.view(3, 1, 1)
        p = classifier(mixed).softmax(1)[:, c].double()
        expected = (p[:, None, None] * masks).sum(0) / masks.double().sum(0)
        assert torch.allclose(found.double(), expected, atol=1e-5)
        assert p.min() < found.min() and found.max() < p.max()


@pytest.mark.parametrize("seed", range(3))
def test_rise_ranks_the_pixels_of_a_linear_classifier(seed, monkeypatch):
    """Weights of 4×4 places; the order of all pixels needs more masks than where most of the weight is."""
    weight = F.interpolate(draw(1, 1, 4, 4, seed=seed), (SIZE, SIZE), mode="bilinear")[0, 0] ** 2
    classifier, labels = Share(weight / weight.sum()), torch.tensor([0, 1])
    few, against = rise(WHITE[:2], labels, classifier, BLACK)
    assert torch.allclose(few + against, torch.ones(SIZE, SIZE), atol=1e-5)
    monkeypatch.setattr(baselines, "RISE_MASKS", 4000)
    (many,) = rise(WHITE[:1], labels[:1], classifier, BLACK)
    assert spearmanr(many.ravel(), weight.ravel())[0] > max(0.8, spearmanr(few.ravel(), weight.ravel())[0])


@pytest.mark.parametrize("centre_of", [(8, 8), (8, 22), (25, 12)])
def test_rise_finds_what_a_linear_classifier_looks_at(centre_of):
    v, u = torch.arange(SIZE).view(-1, 1) - centre_of[0], torch.arange(SIZE) - centre_of[1]
    weight = (-(v**2 + u**2) / 50).exp()
    (found,) = rise(WHITE[:1], torch.tensor([0]), Share(weight / weight.sum()), BLACK)
    assert torch.corrcoef(torch.stack([found.ravel(), weight.ravel()]))[0, 1] > 0.8
    assert weight.ravel()[found.argmax()] > 0.5


def test_rise_is_the_same_in_any_batch():
    x, classifier = draw(N, 3, SIZE, SIZE, seed=6), net(2)
    together = rise(x, LABELS, classifier, BLACK)
    for rows in ([1], [2, 0]):
        assert torch.equal(rise(x[rows], LABELS[rows], classifier, BLACK), together[rows])


@pytest.mark.parametrize("area", [0.1, 0.2, 0.5])
def test_the_extremal_mask_has_its_area(area):
    found = extremal(WHITE, class_score(Quadrant(slice(16), slice(16)), torch.zeros(N).long()), Mean(BLACK), area)
    assert (found.mean((1, 2)) - area).abs().max() < 0.02
    assert found.min() >= 0 and found.max() <= 1
    noise = extremal(draw(N, 3, SIZE, SIZE), class_score(net(0), LABELS), Blur(2.5), area)
    assert (noise.mean((1, 2)) - area).abs().max() < 0.02


@pytest.mark.parametrize("area", [0.1, 0.2])
@pytest.mark.parametrize("gain", [1.0, 10.0])
@pytest.mark.parametrize("rows", HALVES)
@pytest.mark.parametrize("columns", HALVES)
def test_the_extremal_mask_lies_where_the_classifier_looks(rows, columns, gain, area):
    """In any corner, also where the area weighs more than the score: the order of the pixels breaks no tie."""
    classifier = Quadrant(rows, columns, gain)
    found = extremal(WHITE[:1], class_score(classifier, torch.tensor([0])), Mean(BLACK), area)
    assert found[:, rows, columns].sum() / found.sum() > 0.8
    away = extremal(WHITE[:1], class_score(classifier, torch.tensor([1])), Mean(BLACK), area)
    assert away[:, rows, columns].sum() / away.sum() < 0.1  # class 1 needs the dark there


def test_the_extremal_mask_turns_with_the_image():
    """A net that looks at the flipped image has the flipped mask."""

    class Flipped(nn.Module):
        def forward(self, images):
            return classifier(images.flip(2, 3))

    x, classifier = draw(N, 3, SIZE, SIZE, seed=10), net(5)
    one = extremal(x, class_score(classifier, LABELS), Mean(BLACK), 0.2)
    other = extremal(x.flip(2, 3), class_score(Flipped(), LABELS), Mean(BLACK), 0.2).flip(1, 2)
    assert (one - other).abs().mean() < 0.02


def test_the_extremal_mask_keeps_more_of_the_class_than_chance():
    x, classifier, area = draw(N, 3, SIZE, SIZE, seed=8), net(4), 0.25
    score, ground = class_score(classifier, LABELS), Blur(2.5)
    found = extremal(x, score, ground, area)
    blurred = ground(x, x.new_zeros(N, 1, SIZE, SIZE), None)
    coarse = (draw(N, 50, 8, 8, seed=9) < area).float()
    chance = F.interpolate(coarse, (SIZE, SIZE), mode="bilinear")[:, :, None]
    with torch.no_grad():
        best = score(torch.lerp(blurred, x[:, None], found[:, None, None]))
        others = score(torch.lerp(blurred.expand(-1, 50, -1, -1, -1), x[:, None], chance))
    assert (best > others.quantile(0.9, 1, keepdim=True)).all()


def test_the_extremal_mask_is_more_than_the_gradient_that_it_starts_from():
    """Scaled to nothing, a score starts at the same mask and pulls it nowhere."""
    x, score, ground = draw(N, 3, SIZE, SIZE, seed=11), class_score(net(6), LABELS), Blur(2.5)
    found, started = (extremal(x, lambda images, k=k: k * score(images), ground, 0.2) for k in (20.0, 1e-6))
    blurred = ground(x, x.new_zeros(N, 1, SIZE, SIZE), None)[:, 0]
    pulled, fixed = (score(torch.lerp(blurred, x, m[:, None])[:, None]) for m in (found, started))
    assert (pulled > fixed).all()
