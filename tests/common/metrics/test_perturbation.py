"""Size, sparsity and place of a change: closed forms, invariances and slow definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.metrics import perturbation as metric

SHAPE = (3, 4, 4)
D = math.prod(SHAPE)
few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def draw(seed, n=3):
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(n, *SHAPE, generator=generator)
    return delta * (torch.rand(n, *SHAPE, generator=generator) < 0.6)


def one_hot(value=-0.7):
    delta = torch.zeros(1, *SHAPE)
    delta[0, 1, 2, 3] = value
    return delta


def test_one_colour_value():
    delta = one_hot()
    assert metric.hoyer(delta).item() == pytest.approx(1, abs=1e-6)
    assert metric.gini(delta).item() == pytest.approx(1 - 1 / D, abs=1e-6)
    assert metric.pixel_share(delta).item() == pytest.approx(1 / 16)
    for p in (1, 1.5, 2, 4):
        assert metric.lp_norm(delta, p).item() == pytest.approx(0.7)


def test_constant_change():
    delta = torch.full((1, *SHAPE), -0.2)
    assert metric.hoyer(delta).item() == pytest.approx(0, abs=1e-6)
    assert metric.gini(delta).item() == pytest.approx(0, abs=1e-6)
    assert metric.pixel_share(delta).item() == 1
    for p in (1, 1.5, 2):
        assert metric.lp_norm(delta, p).item() == pytest.approx(0.2 * D ** (1 / p), rel=1e-5)


def test_two_values_by_hand():
    delta = torch.tensor([3.0, -4.0, 0.0, 0.0]).view(1, 1, 2, 2)
    assert metric.lp_norm(delta, 1).item() == 7 and metric.lp_norm(delta, 2).item() == 5
    assert metric.lp_norm(delta, 1.5).item() == pytest.approx((3**1.5 + 8) ** (2 / 3))
    assert metric.hoyer(delta).item() == pytest.approx((2 - 7 / 5) / (2 - 1))
    assert metric.gini(delta).item() == pytest.approx(1 - 2 * (3 / 7 * 1.5 / 4 + 4 / 7 * 0.5 / 4))


@few
@given(seeds)
def test_gini_is_half_the_relative_mean_difference(seed):
    delta = draw(seed)
    a = delta.flatten(1).abs().double()
    pairwise = (a[:, :, None] - a[:, None, :]).abs().sum((1, 2)) / (2 * D**2 * a.mean(1))
    assert torch.allclose(metric.gini(delta).double(), pairwise, atol=1e-5)


@few
@given(seeds, st.floats(0.01, 100))
def test_sparsity_ignores_order_sign_and_scale(seed, scale):
    delta = draw(seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(D, generator=generator)
    sign = torch.randint(0, 2, (D,), generator=generator) * 2 - 1
    other = scale * (delta.flatten(1)[:, order] * sign).view_as(delta)
    for sparsity in (metric.hoyer, metric.gini):
        assert torch.allclose(sparsity(other), sparsity(delta), atol=1e-5)
        assert ((sparsity(delta) >= -1e-6) & (sparsity(delta) <= 1 + 1e-6)).all()


@few
@given(seeds)
def test_moving_change_to_fewer_values_is_sparser(seed):
    delta = draw(seed).abs() + 0.1
    flat = delta.flatten(1).clone()
    flat[:, 0], flat[:, 1] = flat[:, 0] + flat[:, 1], 0
    sparser = flat.view_as(delta)
    assert (metric.gini(sparser) > metric.gini(delta)).all()
    assert (metric.hoyer(sparser) > metric.hoyer(delta)).all()


def test_a_hue_change_does_not_cancel():
    delta = torch.zeros(1, *SHAPE)
    delta[0, 0, 1, 1], delta[0, 1, 1, 1] = 0.06, -0.06
    assert metric.pixel_change(delta)[0, 1, 1].item() == pytest.approx(0.12)
    assert metric.pixel_share(delta).item() == 1 / 16
    assert metric.pixel_share(delta, threshold=0.13).item() == 0


def test_place_by_hand():
    delta = torch.zeros(1, *SHAPE)
    delta[0, 0, 0, 0], delta[0, 1, 3, 3], delta[0, 2, 1, 2] = -3.0, 1.0, 2.0
    mask = torch.zeros(1, 4, 4)
    mask[0, 0, 0], mask[0, 1, 2] = 1.0, 0.5
    assert metric.on_mask(delta, mask).item() == pytest.approx((3 + 1) / 6)
    assert metric.on_mask(delta, torch.ones_like(mask)).item() == 1
    uniform = torch.ones(1, *SHAPE)
    assert metric.on_mask(uniform, mask).item() == pytest.approx(mask.mean().item())


def test_no_change_has_no_place_and_no_sparsity():
    delta, mask = torch.zeros(1, *SHAPE), torch.ones(1, 4, 4)
    for value in (metric.hoyer(delta), metric.gini(delta), metric.on_mask(delta, mask)):
        assert value.isnan().all()
    assert metric.pixel_share(delta).item() == 0
