"""The terms of DISC's objective by hand."""

import pytest
import torch

from papers.disc.consistency import (
    class_confidence,
    class_target,
    continued_target,
    equal_change,
    feature_statistics,
    graded_target,
    handed_over,
    layers_alone,
    margin_target,
    regression_target,
    semantics,
    total_variation,
    with_variation,
)

SHAPE = (3, 8, 8)


def test_semantics_are_pixels_and_layers_without_a_scale():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 4, *SHAPE, generator=generator)
    a, b = ([torch.randn(4, c, 5, 5, generator=generator) for c in (2, 7)] for _ in range(2))
    found = semantics(y, x, a, b)
    for i in range(4):
        by_hand = 20 * ((y[i] - x[i]) ** 2).mean()
        by_hand += sum(((f[i] - g[i]) ** 2).mean() / (g[i] ** 2).mean() for f, g in zip(a, b, strict=True)) / 2
        assert found[i].item() == pytest.approx(by_hand.item(), rel=1e-5)
    larger = semantics(y, x, [3 * a[0], a[1]], [3 * b[0], b[1]])
    assert torch.allclose(found, larger, rtol=1e-5) and (semantics(x, x, b, b) == 0).all()


def test_targets_by_hand():
    logits, rows = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([2, 0, 1])
    target, p = torch.tensor([1, 0, 1]), logits.softmax(1)
    assert torch.allclose(class_target(target)(logits, rows), -torch.stack([p[0, 1], p[1, 1], p[2, 0]]).log())
    assert torch.allclose(class_confidence(target)(None, logits, rows), torch.stack([p[0, 1], p[1, 1], p[2, 0]]))
    level = torch.tensor([0.7, 0.2, 0.5])
    mine, asked = torch.stack([p[0, 1], p[1, 1], p[2, 0]]), torch.tensor([0.5, 0.7, 0.2])
    expected = -(asked * mine.log() + (1 - asked) * (1 - mine).log())
    assert torch.allclose(graded_target(target, level)(logits, rows), expected)
    assert torch.allclose(regression_target(level)(logits[:, :1], rows), torch.tensor([1.5, 0.7, 0.8]))


def test_more_targets_by_hand():
    logits, rows, target = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 3.0]]), torch.tensor([1, 0]), torch.tensor([1, 0])
    assert margin_target(target)(logits, rows).tolist() == [-2.0, 2.0]  # rows 1 and 0: targets 0 and 1
    p = logits.softmax(1)[torch.arange(2), target[rows]]
    for share, asked in ((0.0, 0.5), (0.32, 0.5), (0.34, 0.7), (0.67, 1.0), (1.0, 1.0)):
        expected = -(asked * p.log() + (1 - asked) * (1 - p).log())
        assert torch.allclose(continued_target(target)(logits, rows, share), expected, atol=1e-5)
    x, distance = torch.zeros(2, 1, 2, 2), torch.tensor([0.1, 0.4])
    assert equal_change(x, distance)(x[rows] + 0.2, logits, rows).tolist() == pytest.approx([0.5, 2.0])


def test_layers_hand_over_from_the_pixels_to_the_deepest():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 4, *SHAPE, generator=generator)
    a, b = ([torch.randn(4, 3, 5, 5, generator=generator) for _ in range(2)] for _ in range(2))
    pixels = 20 * (y - x).square().flatten(1).mean(1)
    errors = [
        (f - g).square().flatten(1).mean(1) / g.square().flatten(1).mean(1) / 2 for f, g in zip(a, b, strict=True)
    ]
    for share, weights in ((0.0, (2.0, 1.0, 0.0)), (0.5, (1.0, 1.0, 1.0)), (1.0, (0.0, 1.0, 2.0))):
        expected = sum(weight * term for weight, term in zip(weights, (pixels, *errors), strict=True))
        assert torch.allclose(handed_over(y, x, a, b, share), expected, rtol=1e-5)
    assert torch.allclose(handed_over(y, x, a, b, 0.5), semantics(y, x, a, b), rtol=1e-5)
    assert torch.allclose(layers_alone(y, x, a, b), sum(errors), rtol=1e-5)


def test_feature_statistics_do_not_see_places():
    generator = torch.Generator().manual_seed(0)
    psi = [torch.rand(3, 4, 6, 6, generator=generator)]
    moved = [psi[0].roll((2, 1), (2, 3))]
    assert feature_statistics(psi[0], psi[0], moved, psi).abs().max() < 1e-5
    brighter = [psi[0] + 0.5]
    assert torch.allclose(
        feature_statistics(psi[0], psi[0], brighter, psi), torch.full((3,), 1.0), atol=1e-4
    )  # √4 · .5


def test_total_variation_by_hand():
    image = torch.tensor([[0.0, 1.0], [0.5, 0.5]])[None, None]
    assert total_variation(image).item() == pytest.approx((1.0 + 0.0) / 2 + (0.5 + 0.5) / 2)
    assert total_variation(torch.full((1, 3, 5, 5), 0.3)).item() == 0
    only = with_variation(None, 2.0)(image, image, [], [], 0.0)
    both = with_variation(semantics, 2.0)(image, 0 * image, [], [], 0.0)
    assert only.item() == pytest.approx(2.0) and both.item() == pytest.approx(2.0 + 20 * image.square().mean().item())
