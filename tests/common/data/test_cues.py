"""Planted cues: the paste formula, who carries a cue, what its control patch shares with it."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data import cues, datasets
from common.errors import VceError

DATA = Path("no such folder")
IDS = tuple(f"scene-{k:05d}" for k in range(1500))
NAMES = tuple(cues.CUES)


@pytest.fixture(scope="module")
def uncued():
    return datasets.load_ids("scenes-uncued", IDS, DATA)


@pytest.fixture(scope="module", params=NAMES)
def planted(request):
    return request.param, datasets.load_ids(f"scenes-{request.param}", IDS, DATA)


@pytest.mark.parametrize("name", ["corner", "sites"])
def test_a_tile_is_pasted_by_the_formula(name):
    x = torch.rand(3, 3, 32, 40)
    cue, places = cues.CUES[name], cues.sites(name, 32, 40)
    assert len(set(places)) == (1 if name == "corner" else 4)
    for k, (top, left) in enumerate(places):
        y = cues.overlay(x, name, k)
        for i in range(32):
            for j in range(40):
                inside = top <= i < top + 6 and left <= j < left + 6
                m = cue.mask[i - top, j - left] if inside else 0
                colour = torch.tensor(cue.colour)
                expected = (1 - cue.alpha * m) * x[:, :, i, j] + cue.alpha * m * colour
                assert torch.allclose(y[:, :, i, j], expected, atol=1e-6)
        assert torch.equal(cues.coverage(name, 32, 40)[k] > 0, (y != x).any(1).any(0))


def test_a_cast_is_added_to_every_pixel_and_clamped():
    x = torch.rand(3, 3, 5, 7)
    x[0] = 1
    shift = torch.tensor([cues.CAST, -cues.CAST / 2, -cues.CAST / 2])[:, None, None]
    assert torch.equal(cues.overlay(x, "hue"), (x + shift).clamp(0, 1))
    assert cues.sites("hue", 5, 7) == [(0, 0)] and cues.coverage("hue", 5, 7).eq(1).all()
    assert cues.CAST <= 0.04  # not to be noticed in an image alone


def test_a_site_per_image():
    x, site = torch.rand(4, 3, 32, 32), torch.tensor([3, 0, 2, 1])
    together = cues.overlay(x, "sites", site)
    for i in range(4):
        assert torch.equal(together[i : i + 1], cues.overlay(x[i : i + 1], "sites", int(site[i])))


@pytest.mark.parametrize("name", NAMES)
def test_the_control_has_equal_norm_and_site_but_is_another_patch(name):
    x = torch.full((1, 3, 32, 32), 0.45)
    for k in range(len(cues.sites(name, 32, 32))):
        cue, control = (cues.overlay(x, name, k, control=c) - x for c in (False, True))
        assert torch.isclose(cue.norm(), control.norm(), rtol=1e-5)
        assert torch.equal(cue.abs().sum(1) > 0, control.abs().sum(1) > 0)
        cosine = (cue * control).sum() / cue.norm() ** 2
        assert abs(cosine) < (1e-5 if name == "hue" else 0.25)


def test_only_and_exactly_the_planted_images_differ_from_the_uncued_ones(planted, uncued):
    name, images = planted
    carries, site = cues.planted(name, IDS, uncued.labels, datasets.WORLD_SEED)
    assert torch.equal(images.images[~carries], uncued.images[~carries])
    assert torch.equal(images.images[carries], cues.overlay(uncued.images, name, site)[carries])
    assert (images.images != uncued.images).flatten(1).any(1)[carries].all()
    assert torch.equal(images.labels, uncued.labels) and torch.equal(images.masks, uncued.masks)
    # the share is .8 in class 0 within four standard errors, and nothing elsewhere
    n = int((uncued.labels == 0).sum())
    assert carries[uncued.labels == 0].float().mean().item() == pytest.approx(0.8, abs=4 * (0.16 / n) ** 0.5)
    assert not carries[uncued.labels != 0].any()
    share = torch.bincount(site[carries]) / carries.sum()
    assert (share - 1 / len(cues.CUES[name].places)).abs().max() < 0.12


def test_all_worlds_share_their_factors_and_carriers():
    reference = datasets.scene_factors("scenes", IDS[:50])
    for name in ("scenes-uncued", *(f"scenes-{cue}" for cue in NAMES)):
        factors = datasets.scene_factors(name, IDS[:50])
        for item in fields(factors):
            assert torch.equal(getattr(factors, item.name), getattr(reference, item.name)), item.name
    labels = torch.zeros(len(IDS), dtype=torch.long)
    one, *others = (cues.planted(cue, IDS, labels, 0)[0] for cue in NAMES)
    assert all(torch.equal(one, other) for other in others)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=6, unique=True), st.sampled_from(NAMES))
def test_an_image_does_not_depend_on_its_batch(rows, cue):
    labels = torch.zeros(61, dtype=torch.long)
    carries, site = cues.planted(cue, IDS[:61], labels, 0)
    some, its = cues.planted(cue, tuple(IDS[row] for row in rows), labels[rows], 0)
    assert torch.equal(some, carries[rows]) and torch.equal(its, site[rows])
    together = datasets.load_ids(f"scenes-{cue}", IDS[:61], DATA)
    apart = datasets.load_ids(f"scenes-{cue}", tuple(IDS[row] for row in rows), DATA)
    assert torch.allclose(apart.images, together.images[rows], atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_twins_keep_the_cue_and_do_cue_toggles_it(name, uncued):
    world, ids = f"scenes-{name}", IDS[:40]
    images, plain = datasets.load_ids(world, ids, DATA), datasets.load_ids("scenes-uncued", ids, DATA)
    carries, site = cues.planted(name, ids, images.labels, datasets.WORLD_SEED)
    assert carries.any() and not carries.all()
    twins, plain_twins = datasets.twins(world, ids), datasets.twins("scenes-uncued", ids)
    assert torch.equal(twins[torch.arange(40), images.labels], images.images)
    for label in range(5):
        cued = cues.overlay(plain_twins[:, label], name, site)
        expected = torch.where(carries[:, None, None, None], cued, plain_twins[:, label])
        assert torch.equal(twins[:, label], expected)
    changed = datasets.interventions(world, ids, (images.labels + 1) % 5)
    assert set(changed) == {"label", "palette", "cue"}
    assert torch.equal(changed["cue"][carries], plain.images[carries])
    assert torch.equal(changed["cue"][~carries], cues.overlay(plain.images, name, site)[~carries])
    assert set(datasets.interventions("scenes-uncued", ids, images.labels)) == {"label", "palette"}


def test_what_cannot_be_pasted_is_refused():
    with pytest.raises(VceError, match=r"cue 'corner': its 6×6 tile is larger than the 5×32 image"):
        cues.overlay(torch.rand(1, 3, 5, 32), "corner")
    with pytest.raises(VceError, match="cue 'hue': needs RGB images, got 1 channel"):
        cues.overlay(torch.rand(1, 1, 28, 28), "hue")
    with pytest.raises(VceError, match="cue 'bar' is unknown; choose one of corner, sites, hue"):
        cues.sites("bar", 32, 32)
    assert cues.overlay(torch.rand(1, 3, 6, 6), "sites", 3).shape == (1, 3, 6, 6)
