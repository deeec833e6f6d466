"""The distance to the exact twin: what the twin, doing nothing and a change across give."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.metrics.ground_truth import factor_progress, twin_error

seeds = st.integers(0, 2**31 - 1)


def scene(seed, n=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, n, 3, 5, 5, generator=generator)


@settings(max_examples=25, deadline=None)
@given(seeds, st.floats(-1, 2))
def test_error_and_progress_along_the_way_to_the_twin(seed, alpha):
    x, twin = scene(seed)
    images = x + alpha * (twin - x)
    assert torch.allclose(twin_error(images, x, twin), torch.tensor(abs(1 - alpha)), atol=1e-5)
    assert torch.allclose(factor_progress(images, x, twin), torch.tensor(alpha), atol=1e-5)


def test_twin_and_identity_are_exact():
    x, twin = scene(0)
    assert (twin_error(twin, x, twin) == 0).all() and torch.allclose(factor_progress(twin, x, twin), torch.ones(4))
    assert (twin_error(x, x, twin) == 1).all() and (factor_progress(x, x, twin) == 0).all()


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_a_change_across_the_factor_makes_no_progress(seed):
    x, twin = scene(seed)
    way = (twin - x).flatten(1)
    across = torch.randn(way.shape, generator=torch.Generator().manual_seed(seed))
    across -= (across * way).sum(1, keepdim=True) / way.square().sum(1, keepdim=True) * way
    images = x + across.view_as(x)
    assert torch.allclose(factor_progress(images, x, twin), torch.zeros(4), atol=1e-5)
    expected = (1 + across.square().sum(1) / way.square().sum(1)).sqrt()
    assert torch.allclose(twin_error(images, x, twin), expected, rtol=1e-4)


def test_by_hand():
    x, twin = torch.zeros(1, 1, 1, 2), torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)
    images = torch.tensor([3.0, 0.0]).view(1, 1, 1, 2)
    assert twin_error(images, x, twin).item() == pytest.approx(4 / 5)
    assert factor_progress(images, x, twin).item() == pytest.approx(9 / 25)
