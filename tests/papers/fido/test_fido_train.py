"""Crops around the object by their definition; the training job on a few scenes."""

import json

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import failing, run

from common.classifiers.checkpoints import checkpoint_facts, load_checkpoint
from common.classifiers.training import accuracy, fit_temperature
from common.data import datasets
from common.tensors import read_tensors
from papers.fido import train
from papers.fido.masker import load_masker
from papers.fido.regions import bounding_boxes
from papers.fido.train import ZOOMS, with_zooms, zoom_boxes

SIZES = {"systems": 50, "calibration": 25, "oracles": 0, "tuning": 0, "pairs": 0}
CNN = {"architecture": "strided_cnn", "epochs": 1, "batch_size": 25}
RECIPES = {"scenes": {"cnn": CNN, "residual": {**CNN, "architecture": "residual_cnn"}}}
MASKERS = {"scenes": {"epochs": 1, "widths": [4, 6], "batch_size": 25}}
FILES = ("scenes-cnn", "scenes-residual", "scenes-masker")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A split table, and the job's files, made twice."""
    home = tmp_path_factory.mktemp("fido-train")
    (home / "splits").mkdir()
    datasets.draw_splits("scenes", SIZES, 0, home).to_parquet(home / "splits/scenes.parquet")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("first", "second"):
            run(monkeypatch, train, *arguments(home, RECIPES, MASKERS), "--out", home / name)
    return home


def arguments(home, recipes, maskers):
    where = ("--splits", home / "splits", "--data", home, "--seed", 3)
    return ("--recipes", json.dumps(recipes), "--maskers", json.dumps(maskers), *where)


def load(home, split):
    return datasets.load("scenes", pd.read_parquet(home / "splits/scenes.parquet"), split, home)


@st.composite
def objects(draw_from):
    size = draw_from(st.integers(8, 60)), draw_from(st.integers(8, 60))
    corner = [draw_from(st.integers(0, side - 1)) for side in size]
    far = [draw_from(st.integers(start + 1, side)) for start, side in zip(corner, size, strict=True)]
    return size, torch.tensor([*corner, *far])


@settings(max_examples=50, deadline=None)
@given(case=objects(), seed=st.integers(0, 10**6))
def test_crops_hold_the_middle_half_of_the_object_and_lie_in_the_image(case, seed):
    size, thing = case
    boxes = zoom_boxes(thing.expand(200, 4), size, torch.Generator().manual_seed(seed))
    cut = (thing[2:] - thing[:2]) / 4
    assert boxes.min() >= 0 and (boxes[:, 2:] <= torch.tensor(size)).all()
    assert (boxes[:, :2] <= thing[:2] + cut + 1e-4).all() and (boxes[:, 2:] >= thing[2:] - cut - 1e-4).all()
    # edges are uniform in between: a mean in the middle
    inner = torch.cat([thing[:2] + cut, thing[2:] - cut])
    outer = torch.tensor([0, 0, *size])
    assert ((boxes.mean(0) - (inner + outer) / 2).abs() <= 5 * (inner - outer).abs() / (12 * 200) ** 0.5 + 1e-4).all()


def test_crops_come_after_the_images_with_their_labels(home):
    images = load(home, "systems")
    n = len(images.ids)
    x, y = with_zooms(images, 5)
    assert len(x) == len(y) == (1 + ZOOMS) * n and torch.equal(x[:n], images.images)
    assert torch.equal(y.view(1 + ZOOMS, n), images.labels.expand(1 + ZOOMS, n))
    generator = torch.Generator().manual_seed(5)
    for k in range(ZOOMS):
        boxes = zoom_boxes(bounding_boxes(images.masks > 0.5), (32, 32), generator)
        for row in range(0, n, 10):
            assert torch.allclose(x[(k + 1) * n + row], sampled(images.images[row], boxes[row]), atol=1e-5)
    again, _ = with_zooms(images, 5)
    other, _ = with_zooms(images, 6)
    assert torch.equal(x, again) and not torch.equal(x[n:], other[n:])


def sampled(image, box):
    """32×32 bilinear samples at the middles of a grid over a fractional box, first to last whole pixel of it."""
    places = [
        (box[axis] + (box[axis + 2] - box[axis]) * (torch.arange(32) + 0.5) / 32 - 0.5).clamp(
            box[axis], box[axis + 2] - 1
        )
        for axis in (0, 1)
    ]
    v, u = torch.meshgrid(*places, indexing="ij")
    v0, u0 = v.floor().long(), u.floor().long()
    v1, u1 = (v0 + 1).clamp(max=31), (u0 + 1).clamp(max=31)
    upper = torch.lerp(image[:, v0, u0], image[:, v0, u1], u - u0)
    return torch.lerp(upper, torch.lerp(image[:, v1, u0], image[:, v1, u1], u - u0), v - v0)


def test_the_same_command_gives_the_same_bytes(home):
    for folder in ("first", "second"):
        assert sorted(path.stem for path in (home / folder).iterdir()) == sorted(FILES)
    for name in FILES:
        assert (home / f"first/{name}.safetensors").read_bytes() == (home / f"second/{name}.safetensors").read_bytes()


def test_checkpoints_say_how_they_were_trained_and_how_well(home):
    held, systems = load(home, "calibration"), load(home, "systems")
    for kind, recipe in RECIPES["scenes"].items():
        path = home / f"first/scenes-{kind}.safetensors"
        classifier, facts = load_checkpoint(path), checkpoint_facts(path)
        assert facts["seed"] == 3 and facts["recipe"].items() >= recipe.items()
        assert facts["accuracy"] == pytest.approx(accuracy(classifier, held.images, held.labels))
        x, y = with_zooms(held, 3)
        assert facts["zoomed_accuracy"] == pytest.approx(accuracy(classifier, x[25:], y[25:]))
        assert torch.allclose(classifier.mean.flatten(), systems.images.mean((0, 2, 3)), atol=1e-5)
        assert classifier.name == f"scenes-{kind}" and classifier.class_names == datasets.world("scenes").class_names
        logits = classifier.network((held.images - classifier.mean) / classifier.std)
        assert torch.allclose(classifier(held.images), logits / classifier.temperature)
        assert classifier.temperature.item() == pytest.approx(fit_temperature(logits, held.labels), rel=1e-5)


def test_the_masker_belongs_to_the_first_classifier(home):
    path = home / "first/scenes-masker.safetensors"
    masker, facts = load_masker(path), read_tensors(path, "masker")[0]["facts"]
    assert facts["seed"] == 3 and facts["recipe"].items() >= MASKERS["scenes"].items()
    systems = load(home, "systems")
    recipe = train.masker.Recipe(**{**MASKERS["scenes"], "widths": (4, 6)})
    first, second = (
        train.masker.train_masker(
            load_checkpoint(home / f"first/scenes-{kind}.safetensors"), systems.images, systems.labels, recipe, 3
        )(systems.images, systems.labels)
        for kind in ("cnn", "residual")
    )
    found = masker(systems.images, systems.labels)
    assert torch.equal(found, first) and not torch.equal(found, second)


def test_without_recipes_of_maskers_there_is_none(home, tmp_path, monkeypatch):
    run(monkeypatch, train, *arguments(home, {"scenes": {"cnn": CNN}}, {}), "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["scenes-cnn.safetensors"]


@pytest.mark.parametrize(
    ("recipe", "maskers", "said"),
    [
        ({**CNN, "depth": 3}, MASKERS, "unexpected keyword argument 'depth'"),
        (CNN, {"scenes": {"epochs": 1, "lam": 2}}, "unexpected keyword argument 'lam'"),
        (CNN, {"scenes": {}}, "missing 1 required positional argument: 'epochs'"),
        ({"epochs": 1}, {}, "missing 1 required positional argument: 'architecture'"),
        ({**CNN, "architecture": "transformer"}, {}, "architecture 'transformer' is unknown"),
        ({**CNN, "learning_rate": 1e30}, {}, "scenes cnn: training diverged in epoch 1"),
    ],
)
def test_a_wrong_recipe_is_one_line_and_nothing_is_trained(home, tmp_path, monkeypatch, capsys, recipe, maskers, said):
    wrong = arguments(home, {"scenes": {"cnn": recipe}}, maskers)
    assert said in failing(monkeypatch, capsys, train, *wrong, "--out", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_class_without_images_is_named(home, tmp_path, monkeypatch, capsys):
    table = pd.read_parquet(home / "splits/scenes.parquet")
    (tmp_path / "splits").mkdir()
    last = datasets.world("scenes").class_names[4]
    for gone, named in (([4], last), (range(5), last)):
        few = table[(table["split"] != "systems") | ~table["label"].isin(gone)]
        few.to_parquet(tmp_path / "splits/scenes.parquet")
        line = failing(monkeypatch, capsys, train, *arguments(tmp_path, RECIPES, MASKERS), "--out", tmp_path / "out")
        assert "scenes: no image of class" in line and named in line and "`splits`" in line


def test_a_missing_split_table_or_world_is_one_line(home, tmp_path, monkeypatch, capsys):
    assert "scenes.parquet" in failing(monkeypatch, capsys, train, *arguments(tmp_path, RECIPES, {}), "--out", tmp_path)
    table = pd.read_parquet(home / "splits/scenes.parquet")
    (tmp_path / "splits").mkdir()
    table.to_parquet(tmp_path / "splits/moon.parquet")
    line = failing(monkeypatch, capsys, train, *arguments(tmp_path, {"moon": {"cnn": CNN}}, {}), "--out", tmp_path)
    assert "world 'moon' is unknown" in line
