"""Orders, boxes and crops against counting by hand; what equal values, empty masks and partial pixels come to."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from common.explain import Streams
from papers.fido.regions import (
    areas,
    bounding_boxes,
    box_masks,
    centre_boxes,
    crop_and_upscale,
    overlap,
    ranks,
    without_top,
)

N, H, W = 4, 6, 9
seeds = st.integers(0, 10**6)
some = settings(max_examples=25, deadline=None)


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def streams(n=N, seed=0):
    return Streams(seed, tuple(f"image-{i}" for i in range(n)), tuple(i % 3 for i in range(n)))


@st.composite
def boxes(draw_from, n=N, height=H, width=W, least=1):
    """N×4 whole boxes of at least `least` pixels per side."""
    rows = []
    for _ in range(n):
        top = draw_from(st.integers(0, height - least))
        left = draw_from(st.integers(0, width - least))
        bottom, right = (draw_from(st.integers(start + least, end)) for start, end in ((top, height), (left, width)))
        rows.append([top, left, bottom, right])
    return torch.tensor(rows)


def counted(box):
    """The pixels of a box, one by one."""
    top, left, bottom, right = box
    return {(v, u) for v in range(H) for u in range(W) if top <= v < bottom and left <= u < right}


@some
@given(seed=seeds, levels=st.sampled_from([1, 2, 5, 10**6]))
def test_ranks_are_a_permutation_from_the_largest_value_down(seed, levels):
    maps = (levels * draw(N, H, W, seed=seed)).floor() - levels // 2
    rank = ranks(maps, streams(seed=seed))
    assert rank.shape == maps.shape and rank.dtype == torch.long
    assert torch.equal(rank.flatten(1).sort(1).values, torch.arange(H * W).expand(N, -1))
    in_order = torch.empty(N, H * W).scatter_(1, rank.flatten(1), maps.flatten(1))
    assert (in_order.diff(dim=1) <= 0).all()


@some
@given(seed=seeds, rows=st.lists(st.integers(0, N - 1), min_size=1, max_size=N, unique=True))
def test_an_order_is_the_same_in_any_batch(seed, rows):
    maps, rng = (3 * draw(N, H, W, seed=seed)).floor(), streams(seed=seed)
    assert torch.equal(ranks(maps, rng)[rows], ranks(maps[rows], rng[rows]))


def test_equal_values_come_in_random_order():
    n = 2000
    maps = torch.zeros(n, 4, 4)
    maps[:, 0, 0], maps[:, 3, 3] = 1, -1
    rank = ranks(maps, streams(n)).flatten(1)
    assert (rank[:, 0] == 0).all() and (rank[:, 15] == 15).all()
    between = rank[:, 1:15].float()
    deviation = ((14**2 - 1) / 12) ** 0.5  # of a place among 14
    assert (between.mean(0) - 7.5).abs().max() < 5 * deviation / n**0.5
    assert (between.std(0) - deviation).abs().max() < 0.2
    pairs = torch.corrcoef(between.T).fill_diagonal_(0)
    assert (pairs + 1 / 13).fill_diagonal_(0).abs().max() < 5 / n**0.5
    assert len(rank.unique(dim=0)) == n and not torch.equal(rank, ranks(maps, streams(n, seed=1)).flatten(1))


def test_signed_zeros_are_equal_and_a_shift_changes_no_order():
    signed = torch.where(draw(N, H, W) < 0.5, torch.tensor(-0.0), torch.tensor(0.0))
    expected = ranks(torch.zeros(N, H, W), streams())
    assert torch.equal(ranks(signed, streams()), expected)
    assert torch.equal(ranks(torch.full((N, H, W), 0.7), streams()), expected)


@some
@given(seed=seeds, counts=st.lists(st.integers(0, H * W), min_size=2, max_size=5).map(sorted))
def test_what_is_dropped_is_as_much_as_asked_and_nested(seed, counts):
    maps = draw(N, H, W, seed=seed)
    keep = without_top(ranks(maps, streams(seed=seed)), torch.tensor(counts))
    assert keep.shape == (N, len(counts), H, W) and set(keep.unique().tolist()) <= {0.0, 1.0}
    dropped = 1 - keep
    assert torch.equal(dropped.sum((2, 3)), torch.tensor(counts).expand(N, -1).float())
    assert (dropped.diff(dim=1) >= 0).all()
    for n, k in np.ndindex(N, len(counts)):
        out, kept = maps[n][dropped[n, k] > 0], maps[n][keep[n, k] > 0]
        assert not len(out) or not len(kept) or out.min() >= kept.max()


def test_every_image_may_drop_a_number_of_its_own():
    counts = torch.tensor([[0, 3], [54, 1], [7, 7], [2, 50]])
    keep = without_top(ranks(draw(N, H, W), streams()), counts)
    assert torch.equal(H * W - keep.sum((2, 3)).long(), counts)


@some
@given(seed=seeds, share=st.sampled_from([0.01, 0.05, 0.3, 0.9]))
def test_bounding_boxes_by_hand(seed, share):
    mask = draw(N, H, W, seed=seed) < share
    for kind in (mask, mask.float()):
        found = bounding_boxes(kind)
        for box, one in zip(found.tolist(), mask.numpy(), strict=True):
            rows, columns = np.nonzero(one)
            expected = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1] if len(rows) else [0, 0, H, W]
            assert box == expected


def test_an_empty_mask_has_the_full_image_as_its_box():
    assert bounding_boxes(torch.zeros(2, H, W, dtype=torch.bool)).tolist() == [[0, 0, H, W]] * 2


@given(box=boxes())
@some
def test_a_box_is_the_box_of_its_mask(box):
    assert torch.equal(bounding_boxes(box_masks(box, H, W)), box)


def test_the_centre_box_is_158_pixels_of_224():
    top, left, bottom, right = centre_boxes(3, 224, 224)[2].tolist()
    assert (bottom - top, right - left) == (158, 158) and (top, left) == (33, 33) == (224 - bottom, 224 - right)


@given(height=st.integers(8, 300), width=st.integers(8, 300))
def test_centre_boxes_have_half_the_area_in_the_middle(height, width):
    top, left, bottom, right = centre_boxes(1, height, width)[0].tolist()
    tall, wide = bottom - top, right - left
    assert abs(tall - height / 2**0.5) <= 0.5 and abs(wide - width / 2**0.5) <= 0.5
    assert 0 <= (height - bottom) - top <= 1 and 0 <= (width - right) - left <= 1


@some
@given(a=boxes(), b=boxes())
def test_masks_areas_and_overlaps_by_counting(a, b):
    masks, size, shared = box_masks(a, H, W), areas(a), overlap(a, b)
    for n, (one, other) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        inside, beside = counted(one), counted(other)
        assert {tuple(place) for place in masks[n].nonzero().tolist()} == inside
        assert size[n] == len(inside)
        assert shared[n].item() == pytest.approx(len(inside & beside) / len(inside | beside), abs=1e-6)
    assert torch.equal(overlap(a, a), torch.ones(N)) and torch.equal(shared, overlap(b, a))


def test_boxes_that_touch_or_lie_apart_do_not_overlap():
    a = torch.tensor([[0, 0, 2, 2]]).expand(3, 4)
    b = torch.tensor([[0, 2, 2, 4], [2, 2, 4, 4], [4, 5, 6, 9]])
    assert overlap(a, b).tolist() == [0, 0, 0]


@some
@given(seed=seeds, box=boxes())
def test_crops_are_cut_out_and_resized(seed, box):
    """Neither axis is taken for the other: the image is no square and the boxes have any aspect."""
    images = draw(N, 3, H, W, seed=seed)
    found = crop_and_upscale(images, box)
    for image, one, (top, left, bottom, right) in zip(images, found, box.tolist(), strict=True):
        cut = image[None, :, top:bottom, left:right]
        expected = F.interpolate(cut, (H, W), mode="bilinear", align_corners=False)[0]
        assert torch.allclose(one, expected, atol=1e-5)


@some
@given(seed=seeds)
def test_the_full_box_returns_the_image(seed):
    images = draw(N, 3, 32, 32, seed=seed)
    assert (crop_and_upscale(images, torch.tensor([[0, 0, 32, 32]]).expand(N, 4)) - images).abs().max() < 1e-6


@some
@given(seed=seeds, box=boxes())
def test_nothing_outside_of_the_box_is_seen(seed, box):
    images, inside = draw(N, 3, H, W, seed=seed), box_masks(box, H, W)[:, None]
    other = torch.where(inside > 0, images, draw(N, 3, H, W, seed=seed + 1))
    assert torch.allclose(crop_and_upscale(images, box), crop_and_upscale(other, box), atol=2e-6)


def test_half_of_a_doubled_pattern_shows_the_pattern():
    """Each value of the pattern fills 4×4 pixels of the crop; the inner 2×2 of them see no neighbour."""
    pattern = draw(1, 3, 8, 8)
    found = crop_and_upscale(F.interpolate(pattern, (16, 16)), torch.tensor([[4, 6, 12, 14]]))
    for v in (1, 2):
        for u in (1, 2):
            assert torch.allclose(found[..., v::4, u::4], pattern[..., 2:6, 3:7], atol=1e-5)


@some
@given(
    edges=st.tuples(*(st.floats(0, 0.4) for _ in range(2)), *(st.floats(0.6, 1) for _ in range(2))),
    slopes=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
)
def test_a_ramp_stays_a_ramp_inside(edges, slopes):
    """Of fractional boxes too, as far as half a pixel from the edges."""
    size = torch.tensor([20.0, 30.0])
    box = torch.tensor(edges) * size.repeat(2)
    image = slopes[0] * torch.arange(20.0).view(-1, 1) + slopes[1] * torch.arange(30.0)
    found = crop_and_upscale(image[None, None], box[None])[0, 0]
    scale = (box[2:] - box[:2]) / size
    v, u = (box[axis] + scale[axis] * (torch.arange(size[axis]) + 0.5) - 0.5 for axis in (0, 1))
    expected = slopes[0] * v.view(-1, 1) + slopes[1] * u
    rows, columns = ((at >= box[axis]) & (at <= box[axis + 2] - 1) for axis, at in enumerate((v, u)))
    assert rows.sum() > 5 and columns.sum() > 5
    assert torch.allclose(found[rows][:, columns], expected[rows][:, columns], atol=1e-4)


def test_rows_and_columns_are_not_swapped():
    image = torch.arange(8.0).view(-1, 1).expand(8, 8).clone()[None, None]  # brighter downwards
    lower = crop_and_upscale(image, torch.tensor([[4, 0, 8, 8]]))[0, 0]
    right = crop_and_upscale(image, torch.tensor([[0, 4, 8, 8]]))[0, 0]
    assert lower.min() == 4 and lower.max() == 7 and torch.allclose(right, image[0, 0])
