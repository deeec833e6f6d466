"""The trivial anchors: closed forms and brute force."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from common import anchors
from common.data import datasets
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


RADII = (0.5, 2.0)


@pytest.fixture(scope="module")
def setting():
    """Four scenes with targets, thirty reference scenes of the five classes, and a linear classifier."""
    pairs, reference = (
        datasets.load_ids("scenes", tuple(f"scene-{i:05d}" for i in range(a, b)), Path()) for a, b in ((0, 4), (10, 40))
    )
    assert set(reference.labels.tolist()) == set(range(5))
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5, bias=False)).requires_grad_(False)
    classifier[1].weight.copy_(0.05 * torch.randn(5, 3 * 32 * 32, generator=torch.Generator().manual_seed(0)))
    return pairs, (pairs.labels + 1) % 5, reference, classifier


def explained(setting, world="scenes", rows=(0, 1, 2, 3)):
    pairs, target, reference, classifier = setting
    rows = list(rows)
    pairs = datasets.Images(pairs.images[rows], pairs.labels[rows], tuple(pairs.ids[i] for i in rows))
    rng = Streams(7, pairs.ids, tuple(target[rows].tolist()))
    return anchors.explain_anchors(pairs, target[rows], reference, world, classifier, rng, RADII)


def test_every_anchor_is_judged_by_the_classifier_in_closed_form(setting):
    pairs, target, _, classifier = setting
    batches = explained(setting)
    assert set(batches) == {"identity", "random", "class-mean", "nearest-real", "twin"}
    for name, batch in batches.items():
        strengths = {"identity": (0.0,), "random": RADII}.get(name, tuple(j / 8 for j in range(1, 9)))
        assert batch.strengths == strengths and batch.images.shape == (4, len(strengths), 3, 32, 32)
        assert batch.images.min() >= 0 and batch.images.max() <= 1
        logits = batch.images.flatten(2) @ classifier[1].weight.T
        by_hand = (logits.exp() / logits.exp().sum(2, keepdim=True))[torch.arange(4), :, target].log()
        assert torch.allclose(batch.log_confidence, by_hand, atol=1e-4), name
        flipped = (logits.argmax(2) == target[:, None]).numpy()
        assert np.array_equal(batch.status, np.where(flipped, "ok", "not_flipped")), name
        moved = (batch.images - pairs.images[:, None]).abs().mean((2, 3, 4))
        assert torch.allclose(batch.distance, moved, atol=1e-6), name
        assert not batch.forward.any() and not batch.backward.any() and not batch.steps.any()
    assert {status for batch in batches.values() for status in batch.status.flat} == {"ok", "not_flipped"}


def test_straight_paths_end_where_the_anchor_says(setting):
    pairs, target, reference, _ = setting
    batches, x = explained(setting), pairs.images
    assert torch.equal(batches["identity"].images[:, 0], x)
    for i in range(4):
        k, source = int(target[i]), int(pairs.labels[i])
        members = [j for j in range(30) if reference.labels[j] == k]
        nearest = min(members, key=lambda j: (x[i] - reference.images[j]).norm().item())
        mean = {c: reference.images[reference.labels == c].mean(0) for c in (k, source)}
        twin = datasets.twins("scenes", pairs.ids)[i, k]
        ends = {
            "nearest-real": reference.images[nearest],
            "class-mean": x[i] + mean[k] - mean[source],
            "twin": twin,
        }
        for name, end in ends.items():
            path = batches[name].images[i]
            assert torch.allclose(path[-1], end.clamp(0, 1), atol=1e-5), name
            assert torch.allclose(path[3], ((x[i] + end) / 2).clamp(0, 1), atol=1e-5), name


def test_random_anchor_keeps_to_its_radii_and_its_sample(setting):
    pairs = setting[0]
    everyone, some = explained(setting)["random"], explained(setting, rows=[3, 1])["random"]
    norms = (everyone.images - pairs.images[:, None]).flatten(2).norm(dim=2)
    assert (norms <= torch.tensor(RADII) + 1e-4).all() and (norms[:, 1] > 1).all()  # clipping only shortens
    assert torch.equal(everyone.images[[3, 1]], some.images)


def test_a_world_that_is_not_rendered_has_no_twin(setting):
    assert set(explained(setting, "scenes-empty")) == {"identity", "random", "class-mean", "nearest-real"}


def test_pixel_ascent_reaches_the_optimum_of_a_linear_classifier():
    """Between two classes log p_t grows with (w_t − w_s)·x alone: the best step of length r goes along w_t − w_s."""
    x, source, target = 0.4 + 0.2 * draw(6, 3, 1, 8, 8), torch.tensor([0, 1, 0]), torch.tensor([1, 0, 1])
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False)).requires_grad_(False)
    classifier[1].weight.copy_(draw(7, 2, 64))
    rng, radii = Streams(0, ("a", "b", "c"), tuple(target.tolist())), (0.1, 0.5)
    batch = anchors.pixel_ascent(x, source, target, classifier=classifier, rng=rng, strengths=radii, iterations=25)
    w = classifier[1].weight
    step = (w[target] - w[source]).view(3, 1, 1, 8, 8)
    best = x[:, None] + torch.tensor(radii).view(1, 2, 1, 1, 1) * step / step.flatten(1).norm(dim=1).view(3, 1, 1, 1, 1)
    assert best.min() > 0 and best.max() < 1 and batch.strengths == radii
    assert torch.allclose(batch.images, best, atol=1e-3)
    optimum = classifier(best.flatten(0, 1)).log_softmax(1).view(3, 2, 2)[torch.arange(3), :, target]
    assert torch.allclose(batch.log_confidence, optimum, atol=1e-4)
    assert (batch.forward == 26).all() and (batch.backward == 26).all()
