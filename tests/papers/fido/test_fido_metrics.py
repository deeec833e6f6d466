"""What maps are worth, against closed forms, counting by hand and scipy."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn

from common.classifiers.checkpoints import build
from common.explain import Streams
from common.generators.infill import Blur, LinearImputation, Local, Mean, Random
from papers.fido.explain import class_score
from papers.fido.metrics import (
    entropy,
    filled,
    localisation_error,
    overflow,
    pointing,
    saliency_metric,
    spearman_across,
    suppression_pixels,
)
from papers.fido.regions import ranks, without_top

N, K, SIZE = 5, 4, 16
COLOUR = torch.tensor([0.2, 0.5, 0.7])
seeds = st.integers(0, 10**6)
some = settings(max_examples=20, deadline=None)


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def streams(n=N, seed=0):
    return Streams(seed, tuple(f"image-{i}" for i in range(n)), tuple(i % K for i in range(n)))


def labels(seed, n=N):
    return torch.randint(K, (n,), generator=torch.Generator().manual_seed(seed))


def net(seed):
    """A random net whose answers are far from uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = build("strided_cnn", name="net", image_shape=(3, SIZE, SIZE), class_names=tuple("abcd"))
    classifier.temperature.fill_(0.02)
    return classifier.eval().requires_grad_(False)


def whole(n=N, size=SIZE):
    return torch.tensor([[0, 0, size, size]]).expand(n, 4)


@some
@given(seed=seeds)
def test_saliency_metric_of_the_full_image_is_the_cross_entropy(seed):
    x, y, classifier = draw(N, 3, SIZE, SIZE, seed=seed), labels(seed), net(seed)
    found = saliency_metric(x, whole(), class_score(classifier, y))
    each = F.cross_entropy(classifier(x), y, reduction="none")
    assert torch.allclose(found, each, rtol=1e-3, atol=1e-4)
    assert found.mean().item() == pytest.approx(F.cross_entropy(classifier(x), y).item(), rel=1e-4, abs=1e-4)


@some
@given(seed=seeds)
def test_saliency_metric_of_any_box_by_hand(seed):
    x, y, classifier = draw(N, 3, SIZE, SIZE, seed=seed), labels(seed), net(seed)
    corners, far = (8 * draw(N, 2, seed=seed + 1)).long(), (8 * draw(N, 2, seed=seed + 2)).long()
    boxes = torch.cat([corners, corners + 1 + far], 1)
    found = saliency_metric(x, boxes, class_score(classifier, y))
    for n, (top, left, bottom, right) in enumerate(boxes.tolist()):
        cut = F.interpolate(x[n : n + 1, :, top:bottom, left:right], (SIZE, SIZE), mode="bilinear")
        share = (bottom - top) * (right - left) / SIZE**2
        expected = math.log(max(share, 0.05)) + F.cross_entropy(classifier(cut), y[n : n + 1]).item()
        assert found[n].item() == pytest.approx(expected, rel=2e-3, abs=1e-3)


def test_saliency_metric_is_finite_for_a_class_without_a_chance():
    def score(images):
        return torch.full(images.shape[:2], -200.0)

    assert saliency_metric(draw(2, 3, SIZE, SIZE), whole(2), score).tolist() == [200, 200]


def test_localisation_error():
    box = torch.tensor([[2, 2, 6, 6]])
    assert localisation_error(box, box).item() == 0
    cases = {(2, 2, 6, 10): 1, (2, 2, 10, 6): 1, (2, 2, 6, 9): 0, (2, 2, 6, 11): 1, (6, 6, 8, 8): 1}  # IoU .5, .5, 4/7
    for other, expected in cases.items():
        assert localisation_error(torch.tensor([other]), box).item() == expected


@some
@given(seed=seeds)
def test_localisation_error_of_the_true_box_is_zero(seed):
    corners, far = (20 * draw(N, 2, seed=seed)).long(), (20 * draw(N, 2, seed=seed + 1)).long()
    boxes = torch.cat([corners, corners + 1 + far], 1)
    assert localisation_error(boxes, boxes).sum() == 0


counts_of = st.lists(st.integers(1, 255), min_size=1, max_size=12, unique=True).map(
    lambda inner: torch.tensor([0, *sorted(inner), 256])
)


@some
@given(counts=counts_of, start=st.floats(-5, 20), drop=st.floats(0.6, 40), quantile=st.floats(0.01, 0.99))
def test_suppression_of_a_linear_decline_is_its_share_of_the_pixels(counts, start, drop, quantile):
    s = start - drop * counts[None] / 256
    assert suppression_pixels(s, counts, quantile).item() == pytest.approx(256 * quantile, abs=0.05)


@some
@given(seed=seeds, counts=counts_of, quantile=st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.8]))
def test_suppression_is_the_first_crossing_of_the_broken_line(seed, counts, quantile):
    s = 10 * draw(N, len(counts), seed=seed) - 4
    found = suppression_pixels(s, counts, quantile)
    for line, k in zip(s.numpy(), found.tolist(), strict=True):
        if line[0] - line[-1] <= 0.5:
            assert math.isnan(k)
            continue
        fine = np.linspace(0, 256, 256 * 64 + 1)
        f = (line[0] - np.interp(fine, counts.numpy(), line)) / (line[0] - line[-1])
        assert k == pytest.approx(fine[np.argmax(f >= quantile)], abs=1 / 32)


@some
@given(seed=seeds, scale=st.floats(1, 5), shift=st.floats(-20, 20))
def test_suppression_does_not_know_scale_and_shift(seed, scale, shift):
    counts = torch.tensor([0, 4, 16, 64, 256])
    s = draw(N, 5, seed=seed)
    s[:, -1] = s[:, 0] - 1
    for quantile in (0.1, 0.4):
        moved = suppression_pixels(scale * s + shift, counts, quantile)
        assert torch.allclose(moved, suppression_pixels(s, counts, quantile), rtol=1e-4)


def test_suppression_starts_at_nothing_and_ends_at_everything():
    counts = torch.tensor([0, 10, 100])
    s = torch.tensor([[5.0, 4.0, -3.0], [5.0, -9.0, -3.0]])
    assert suppression_pixels(s, counts, 1.0).tolist() == pytest.approx([100, 10 * 8 / 14])
    assert suppression_pixels(s, counts, 1e-6).tolist() == pytest.approx([0, 0], abs=1e-3)
    assert suppression_pixels(s, counts, 0.5).tolist() == pytest.approx([10 + 90 * 3 / 7, 10 * 4 / 14])


def test_where_there_is_nothing_to_suppress_there_is_no_count():
    counts = torch.tensor([0, 10, 100])
    s = torch.tensor([[1.0, 0.0, 0.5], [1.0, -5.0, 2.0], [1.0, 1.0, 1.0], [1.0, 0.7, 0.25]])
    assert suppression_pixels(s, counts, 0.4).isnan().tolist() == [True, True, True, False]


@some
@given(seed=seeds, share=st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_overflow_by_counting(seed, share):
    mask, inside = (draw(N, SIZE, SIZE, seed=seed + k) < p for k, p in ((0, share), (1, 0.4)))
    mask[0] = False
    found = overflow(mask.float(), inside.float())
    for value, one, region in zip(found.tolist(), mask.tolist(), inside.tolist(), strict=True):
        places = [(v, u) for v in range(SIZE) for u in range(SIZE) if one[v][u]]
        out = [place for place in places if not region[place[0]][place[1]]]
        assert value == pytest.approx(len(out) / len(places) if places else math.nan, nan_ok=True)


def test_overflow_within_and_beyond():
    region = torch.zeros(1, SIZE, SIZE)
    region[:, :4] = 1
    assert overflow(region, region).item() == 0 and overflow(1 - region, region).item() == 1
    assert overflow(torch.ones_like(region), region).item() == 0.75


@some
@given(seed=seeds)
def test_pointing_looks_at_the_first_pixel_alone(seed):
    maps, objects = draw(N, SIZE, SIZE, seed=seed), (draw(N, SIZE, SIZE, seed=seed + 1) < 0.5).float()
    found = pointing(ranks(maps, streams(seed=seed)), objects)
    for value, one, thing in zip(found, maps.numpy(), objects.numpy(), strict=True):
        assert value == thing[np.unravel_index(one.argmax(), one.shape)]


def test_entropy_in_bits():
    def h(p):
        return -p * math.log2(p) - (1 - p) * math.log2(1 - p)

    theta = torch.tensor([0.5, 0.0, 1.0, 0.1, 0.9])[:, None, None].expand(5, 3, 4)
    assert entropy(theta).tolist() == pytest.approx([1, 0, 0, h(0.1), h(0.1)], abs=1e-6)
    mixed = torch.tensor([[[0.5, 0.1], [0.0, 0.3]]])
    assert entropy(mixed).item() == pytest.approx((1 + h(0.1) + h(0.3)) / 4, abs=1e-6)


@some
@given(seed=seeds, n_maps=st.integers(2, 4), levels=st.sampled_from([3, 20, 10**6]))
def test_rank_correlation_is_that_of_scipy(seed, n_maps, levels):
    maps = [(levels * draw(N, 7, 5, seed=seed + k)).floor() for k in range(n_maps)]
    found = spearman_across(maps)
    for n in range(N):
        pairs = [spearmanr(maps[i][n].ravel(), maps[j][n].ravel())[0] for i in range(n_maps) for j in range(i)]
        assert found[n].item() == pytest.approx(np.mean(pairs), abs=1e-5)


def test_rank_correlation_of_known_maps():
    a = draw(3, 6, 6)
    assert spearman_across([a, a.exp()]).tolist() == pytest.approx([1, 1, 1])
    assert spearman_across([a, -a]).tolist() == pytest.approx([-1, -1, -1])
    assert spearman_across([a, a, -a]).tolist() == pytest.approx([-1 / 3] * 3)
    flat = torch.cat([torch.full((1, 6, 6), 0.3), a[1:]])
    assert spearman_across([a, flat]).isnan().tolist() == [True, False, False]


@pytest.mark.parametrize("fill", [Mean(COLOUR), Blur(2.0), Random(), Local(3, COLOUR), LinearImputation(COLOUR)])
def test_kept_pixels_stay_bit_by_bit_and_hidden_ones_are_the_fills(fill):
    x, keep, rng = draw(N, 3, SIZE, SIZE), (draw(N, 3, SIZE, SIZE, seed=1) < 0.5).float(), streams()
    found, own = filled(x, keep, fill, rng), fill(x, keep, rng)
    kept = (keep > 0)[:, :, None].expand_as(found)
    assert found.shape == (N, 3, 3, SIZE, SIZE)
    assert torch.equal(found[kept], x[:, None].expand_as(found)[kept]) and torch.equal(found[~kept], own[~kept])
    nothing, everything = (filled(x, torch.full_like(keep, value), fill, rng) for value in (1, 0))
    assert torch.equal(nothing, x[:, None].expand_as(nothing))
    assert torch.equal(everything, fill(x, torch.zeros_like(keep), rng))


@some
@given(seed=seeds)
def test_log_odds_along_a_deletion_have_the_closed_form_of_a_linear_classifier(seed):
    """ℓ = b + W·(kept x + dropped colour), s = ℓ_c − log Σ_{j≠c} e^ℓ_j, in numpy."""
    size, counts = 6, torch.tensor([0, 1, 5, 20, 36])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, K)).requires_grad_(False)
    x, y, rng = draw(N, 3, size, size, seed=seed), labels(seed), streams(seed=seed)
    rank = ranks(draw(N, size, size, seed=seed + 1), rng)
    s = class_score(classifier, y)(filled(x, without_top(rank, counts), Mean(COLOUR), rng))
    weight = classifier[1].weight.double().numpy().reshape(K, 3, size, size)
    for n in range(N):
        for j, k in enumerate(counts.tolist()):
            dropped = rank[n].numpy() < k
            mixed = np.where(dropped, COLOUR.double().numpy()[:, None, None], x[n].double().numpy())
            logits = (weight * mixed).sum((1, 2, 3)) + classifier[1].bias.double().numpy()
            others = np.log(np.exp(np.delete(logits, y[n])).sum())
            assert s[n, j].item() == pytest.approx(logits[y[n]] - others, abs=1e-4)
