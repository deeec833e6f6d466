"""The trivial anchors: closed forms and brute force."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common import anchors
from common.explain import Streams

seeds = st.integers(0, 2**31 - 1)
few = settings(max_examples=30, deadline=None)


def draw(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@few
@given(seeds, st.lists(st.integers(0, 25), min_size=3, max_size=3), st.booleans())
def test_threshold_keeps_exactly_the_most_changed_pixels(seed, counts, ties):
    x, changed = draw(seed, 3, 2, 5, 5), draw(seed + 1, 3, 2, 5, 5)
    if ties:
        changed = (x + 0.25).clamp(0, 1)
    kept = anchors.threshold_to_count(x, changed, torch.tensor(counts))
    change = (changed - x).abs().sum(1).flatten(1)
    for i, count in enumerate(counts):
        same = (kept[i] == changed[i]).all(0).flatten()
        assert int(same.sum()) == count
        assert torch.equal(kept[i].flatten(1)[:, ~same], x[i].flatten(1)[:, ~same])
        if 0 < count < 25:
            assert change[i][same].min() >= change[i][~same].max()


def test_threshold_takes_whole_pixels():
    x = torch.zeros(1, 3, 2, 2)
    changed = x.clone()
    changed[0, :, 0, 0], changed[0, 1, 1, 1] = 0.3, 0.8  # .9 over channels beats .8 in one
    kept = anchors.threshold_to_count(x, changed, torch.tensor([1.0]))
    assert kept[0, :, 0, 0].tolist() == pytest.approx([0.3] * 3) and kept[0, 1, 1, 1] == 0


@few
@given(seeds)
def test_nearest_real_by_brute_force(seed):
    x, reference = draw(seed, 4, 1, 3, 3), draw(seed + 1, 40, 1, 3, 3)
    labels, target = torch.arange(40) % 3, torch.arange(4) % 3
    found = anchors.nearest_real(x, target, reference, labels)
    for i in range(4):
        candidates = [k for k in range(40) if labels[k] == target[i]]
        best = min(candidates, key=lambda k: (x[i] - reference[k]).norm().item())
        assert torch.equal(found[i], reference[best])


def test_nearest_real_finds_the_image_itself():
    reference, labels = draw(0, 60, 3, 8, 8), torch.arange(60) % 2
    found = anchors.nearest_real(reference, labels, reference, labels)
    assert torch.equal(found, reference)


def test_class_mean_difference_in_closed_form():
    reference, labels = draw(1, 30, 1, 2, 2), torch.arange(30) % 3
    x, source, target = draw(2, 4, 1, 2, 2), torch.tensor([0, 1, 2, 0]), torch.tensor([1, 0, 1, 2])
    moved = anchors.class_mean_difference(x, source, target, reference, labels)
    for i in range(4):
        mean = [torch.stack([reference[k] for k in range(30) if labels[k] == c]).mean(0) for c in range(3)]
        assert torch.allclose(moved[i], x[i] + mean[target[i]] - mean[source[i]], atol=1e-6)


def test_straight_path():
    x, goal = draw(3, 2, 1, 2, 2), draw(4, 2, 1, 2, 2)
    path = anchors.towards(x, goal, (0.0, 0.5, 1.0))
    assert path.shape == (2, 3, 1, 2, 2)
    assert torch.equal(path[:, 0], x)
    assert torch.allclose(path[:, 1], (x + goal) / 2) and torch.allclose(path[:, 2], goal, atol=1e-6)
    outside = anchors.towards(x, goal + 5, (1.0,))
    assert outside.min() >= 0 and outside.max() <= 1


def test_identity():
    x = draw(5, 2, 1, 2, 2)
    path = anchors.identity(x, (0.0, 1.0))
    assert path.shape == (2, 2, 1, 2, 2) and torch.equal(path[:, 0], x) and torch.equal(path[:, 1], x)


def test_random_direction_has_the_radius_and_its_own_stream():
    x = torch.full((3, 3, 8, 8), 0.5)
    rng = Streams(0, ("a", "b", "c"), (0, 0, 0))
    path = anchors.random_direction(x, (0.2, 1.0), rng)
    norms = (path - x[:, None]).flatten(2).norm(dim=2)
    assert torch.allclose(norms, torch.tensor([0.2, 1.0]).expand(3, 2), atol=1e-5)
    assert torch.equal(anchors.random_direction(x[[2, 0]], (0.2, 1.0), rng[[2, 0]]), path[[2, 0]])
    start = rng.normal(x.shape[1:], "start").flatten(1)
    assert (torch.cosine_similarity((path[:, 0] - x).flatten(1), start).abs() < 0.3).all()
