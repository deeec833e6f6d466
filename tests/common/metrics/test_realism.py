"""Realism: the kernel distance by brute force, its expectation, and intervals that cover."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.classifiers.checkpoints import build
from common.metrics.realism import Features, Halves, Reference, polynomial_kernel
from common.statistics import half_sample_interval


def brute_force(x, y):
    """KID by the sums of its definition."""

    def k(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    within = [np.mean([k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (x, y)]
    return sum(within) - 2 * np.mean([k(a, b) for a in x for b in y])


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 7), st.integers(2, 6), st.integers(1, 4), st.integers(0, 10**6))
def test_the_distance_is_its_definition_on_everything_and_on_halves(n, m, d, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(size, d, generator=generator, dtype=torch.float64) for size in (2 * n, 2 * m))
    halves = Halves.draw(2 * n, 2 * m, replicates=5, key=seed)
    found = Reference(y, halves).kid(x)
    assert found.shape == (6,)
    for mine, theirs, value in zip(halves.generated, halves.reference, found, strict=True):
        assert value.item() == pytest.approx(brute_force(x[mine == 1], y[theirs == 1]), rel=1e-9, abs=1e-9)


def test_halves_are_halves_without_replacement():
    halves = Halves.draw(21, 10, replicates=50)
    assert halves.generated.shape == (51, 21) and (halves.generated[0] == 1).all()
    assert (halves.generated[1:].sum(1) == 10).all() and (halves.reference[1:].sum(1) == 5).all()
    assert set(halves.generated.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(halves.generated, Halves.draw(21, 10, replicates=50).generated)
    assert halves.generated[1:].mean(0).std() < 0.15  # every image enters about half of them


def test_equal_distributions_have_distance_zero_on_average():
    generator = torch.Generator().manual_seed(0)
    halves = Halves.draw(40, 60, replicates=1)
    values = [
        Reference(torch.randn(60, 5, generator=generator, dtype=torch.float64), halves)
        .kid(torch.randn(40, 5, generator=generator, dtype=torch.float64))[0]
        .item()
        for _ in range(300)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / 300**0.5
    shifted = Reference(torch.randn(60, 5, dtype=torch.float64), halves).kid(
        1 + torch.randn(40, 5, dtype=torch.float64)
    )
    assert shifted[0] > 1


@pytest.mark.parametrize(("n", "d", "least"), [(80, 2, 0.88), (150, 16, 0.9)])
def test_half_sample_intervals_cover_the_truth(n, d, least):
    """A shift of one feature in four by 1/2 has a known distance; nominal 95 % over 150 repeats."""
    generator = torch.Generator().manual_seed(1)
    halves, hits = Halves.draw(n, 400, replicates=200), 0
    shift = torch.zeros(d, dtype=torch.float64)
    shift[: max(1, d // 4)] = 0.5
    big = [torch.randn(4000, d, generator=generator, dtype=torch.float64) for _ in range(2)]
    truth = Reference(big[0], Halves.draw(4000, 4000, replicates=1)).kid(big[1] + shift)[0].item()
    for _ in range(150):
        x, y = (torch.randn(size, d, generator=generator, dtype=torch.float64) for size in (n, 400))
        low, high = half_sample_interval(Reference(y, halves).kid(x + shift).numpy())
        hits += low <= truth <= high
    assert least <= hits / 150 <= 0.995


def test_the_interval_is_that_of_the_halves():
    assert half_sample_interval(np.array([7.0, *np.linspace(0.0, 4.0, 401)])) == pytest.approx((0.1, 3.9))


def test_the_kernel_by_hand():
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0], [0.0, 0.0]])
    assert polynomial_kernel(x, y).tolist() == [[1.5**3, 1.0]]


def test_features_feed_the_last_layer_and_are_standardised_on_other_images():
    torch.manual_seed(0)
    model = build("plain_cnn", name="n", image_shape=(3, 16, 16), class_names=("a", "b"))
    model.mean.fill_(0.4)
    model.eval()
    images = torch.rand(50, 3, 16, 16)
    features = Features(model, images)
    found = features(images, batch_size=7)
    assert found.dtype == torch.float64 and found.shape == (50, 64)
    assert found.mean(0).abs().max() < 1e-6
    alive = features.std > 1e-5
    assert alive.sum() > 20 and torch.allclose(found.std(0)[alive], torch.ones(int(alive.sum()), dtype=torch.float64))
    raw = (found * features.std + features.mean).float()
    with torch.no_grad():
        assert torch.allclose(model.network[-1](raw) / model.temperature, model(images), atol=1e-5)
    others = torch.rand(9, 3, 16, 16)
    assert torch.allclose(features(others[:4]), features(others)[:4])
