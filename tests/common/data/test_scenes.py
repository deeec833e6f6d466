"""The rendered world: determinism, exact twins, masks against brute force, and the tied background."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data import scenes

IDS = tuple(f"scene-{k:05d}" for k in range(3000))
SUPER = 16


@pytest.fixture(scope="module")
def factors():
    return scenes.sample(IDS, 0, tied=False)


@pytest.fixture(scope="module")
def some(factors):
    return factors[torch.arange(60)]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6, unique=True), st.booleans())
def test_an_image_does_not_depend_on_its_batch(rows, tied):
    everything = scenes.sample(IDS[:41], 0, tied=tied)
    apart = scenes.sample(tuple(IDS[row] for row in rows), 0, tied=tied)
    for item in fields(apart):
        assert torch.equal(getattr(apart, item.name), getattr(everything, item.name)[rows]), item.name
    images, masks = scenes.render(everything)
    again, masks_again = scenes.render(apart)
    assert torch.equal(masks_again, masks[rows])
    assert torch.allclose(again, images[rows], atol=2e-6)  # sums over waves may be ordered differently
    assert torch.equal(scenes.render(apart)[0], again)


def test_images_are_images(some):
    images, masks = scenes.render(some)
    assert images.shape == (60, 3, 32, 32) and masks.shape == (60, 32, 32)
    for tensor in (images, masks):
        assert tensor.dtype == torch.float32 and tensor.min() >= 0 and tensor.max() <= 1
    assert images.flatten(1).std(1).min() > 0.02
    clipped = ((images == 0) | (images == 1)).float().mean()
    assert clipped < 0.01


def test_other_seeds_and_ids_give_other_scenes(some):
    other = scenes.sample(IDS[:60], 1, tied=False)
    assert (other.radius != some.radius).all() and len(set(some.radius.tolist())) == 60


def test_outside_the_mask_the_twin_is_the_original(some):
    images, masks = scenes.render(some)
    for label in range(5):
        twin, twin_masks = scenes.render(scenes.twin(some, torch.full((60,), label)))
        outside = (masks == 0)[:, None].expand_as(images)
        assert outside.float().mean() > 0.4
        assert torch.equal(twin[outside], images[outside]) and torch.equal(twin_masks, masks)
        same = some.label == label
        assert torch.equal(twin[same], images[same])
        change = (twin - images)[~same].abs().flatten(1).mean(1)
        assert change.min() > 0.003


def test_a_twin_changes_the_label_alone(some):
    twin = scenes.twin(some, torch.full((60,), 3))
    for item in fields(some):
        value = getattr(twin, item.name)
        assert (value == 3).all() if item.name == "label" else value is getattr(some, item.name)


@pytest.mark.parametrize("shape", [0, 1, 2])
def test_masks_match_supersampled_coverage(factors, shape):
    """One-pixel ramps are not exact at corners and slopes: area within 2 %, and every pixel within .35."""
    chosen = factors[torch.nonzero(factors.shape == shape)[:20, 0]]
    fine = (torch.arange(32 * SUPER) + 0.5) / SUPER
    dx = fine[None, None, :] - chosen.centre[:, 0, None, None]
    dy = fine[None, :, None] - chosen.centre[:, 1, None, None]
    radius = chosen.radius[:, None, None]
    inside = [
        dx.square() + dy.square() <= radius.square(),
        (dx.abs() <= radius / 1.13) & (dy.abs() <= radius / 1.13),
        dx.abs() + dy.abs() <= radius / 0.8,
    ][shape]
    coverage = inside.float().view(-1, 32, SUPER, 32, SUPER).mean((2, 4))
    mask = scenes.render(chosen)[1]
    assert ((mask.sum((1, 2)) / coverage.sum((1, 2)) - 1).abs() < 0.02).all()
    assert (mask - coverage).abs().max() < 0.35
    deep, far = coverage == 1, coverage == 0
    assert mask[deep].mean() > 0.99 and mask[far].mean() < 0.005


def test_objects_lie_inside_the_image(factors):
    masks = scenes.render(factors[torch.arange(500)])[1]
    area = masks.mean((1, 2))
    assert area.min() > 0.1 and area.max() < 0.4


def test_the_variants_share_all_but_the_palette(factors):
    tied = scenes.sample(IDS, 0, tied=True)
    for item in fields(factors):
        if item.name != "palette":
            assert torch.equal(getattr(tied, item.name), getattr(factors, item.name)), item.name
    n, agree = len(IDS), (tied.palette == tied.label).float().mean().item()
    free = (factors.palette == factors.label).float().mean().item()
    assert agree == pytest.approx(scenes.TIED, abs=4 * (0.16 / n) ** 0.5)
    assert free == pytest.approx(0.2, abs=4 * (0.16 / n) ** 0.5)
    others = (tied.palette - tied.label)[tied.palette != tied.label] % 5
    assert (torch.bincount(others, minlength=5)[1:] / len(others)).tolist() == pytest.approx([0.25] * 4, abs=0.08)


def test_nuisances_do_not_tell_the_class(factors):
    """Every factor but the palette has the same distribution in every class (means within 5 standard errors)."""
    assert torch.bincount(factors.label).min() > 500
    for item in fields(factors):
        if item.name in ("label", "palette"):
            continue
        values = getattr(factors, item.name).float().flatten(1) if getattr(factors, item.name).ndim > 1 else (
            getattr(factors, item.name).float()[:, None]
        )  # fmt: skip
        error = values.std(0) / 500**0.5
        for label in range(5):
            assert ((values[factors.label == label].mean(0) - values.mean(0)).abs() < 5 * error).all(), item.name


def test_alike_classes_differ_little_and_the_others_not_at_all(some):
    plain, masks = scenes.render(some)
    alike, alike_masks = scenes.render(some, alike=True)
    assert torch.equal(masks, alike_masks)
    assert torch.equal(alike[some.label > 1], plain[some.label > 1])
    assert ((alike - plain)[some.label < 2].abs().flatten(1).amax(1) > 0.005).all()

    def gap(a, b, **options):
        one, two = (scenes.render(scenes.twin(some, torch.full((60,), k)), **options)[0] for k in (a, b))
        return (one - two).flatten(1).norm(dim=1)

    assert (gap(0, 1, alike=True) < scenes.FAINT * gap(0, 1) + 1e-4).all()  # faint texture, and no tint between them
    assert (gap(0, 1, alike=True) > 0.1).all()
    assert torch.equal(gap(2, 3, alike=True), gap(2, 3))


def test_an_emptied_scene_is_its_background(some):
    images, masks = scenes.render(some)
    empty, nothing = scenes.render(scenes.emptied(some))
    assert (nothing == 0).all()
    outside = (masks == 0)[:, None].expand_as(images)
    assert torch.equal(empty[outside], images[outside])
    other = scenes.render(scenes.emptied(scenes.twin(some, (some.label + 1) % 5)))[0]
    assert torch.equal(other, empty)
