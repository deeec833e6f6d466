"""Students on problems whose answer is known, their training sets and the pixel curve by hand."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from common.batches import Shard, write_shard
from common.classifiers.training import Recipe
from common.data import datasets
from common.errors import VceError
from common.explain import CounterfactualBatch
from common.progress import Progress
from papers.disc import students
from papers.disc.students import StudentSet, pixel_curve, student_rows, student_sets, train_students, untouched

N, SHAPE, NAMES = 4, (3, 8, 8), ("left", "right")
SOURCE = torch.tensor([0, 1, 0, 1])
FIELDS = {"architecture": "grid_cnn", "epochs": 8, "batch_size": 10, "learning_rate": 0.01}
RECIPE = Recipe(**FIELDS)


def sides(n, seed):
    """Images whose left or right half is brighter, and which half it is."""
    labels = torch.arange(n) % 2
    x = 0.4 + 0.1 * torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))
    x[labels == 0, :, :, :4] += 0.3
    x[labels == 1, :, :, 4:] += 0.3
    return x, labels


class Side(nn.Module):
    """Sees the brighter half."""

    def forward(self, x):
        half = x.shape[3] // 2
        return torch.stack([x[..., :half].flatten(1).mean(1), x[..., half:].flatten(1).mean(1)], 1)


def batch(base, strengths, status):
    """Images that hold base + position / 100, each with a distance of ten times that and the query's number / 100."""
    s = len(strengths)
    place = torch.arange(s) / 100
    return CounterfactualBatch(
        images=(base + place).view(1, s, 1, 1, 1).expand(N, s, *SHAPE).contiguous(),
        strengths=strengths,
        log_confidence=torch.zeros(N, s),
        distance=10 * place + torch.arange(N)[:, None] / 100,
        status=np.array(status),
        steps=torch.zeros(N, s, dtype=torch.long),
        forward=torch.zeros(N, s, dtype=torch.long),
        backward=torch.zeros(N, s, dtype=torch.long),
    )


TAUGHT = ["inr", "iso@inr", "pixel-ascent", "twin", "identity"]


def shard_by_hand(**changed):
    fine = [["ok"] * 3] * N
    mixed = [["not_flipped", "ok", "ok"], ["diverged"] * 3, ["ok"] * 3, ["not_flipped", "not_flipped", "skipped"]]
    batches = {
        "inr": batch(0.1, (0.5, 0.9, 1.0), mixed),
        "iso@inr": batch(0.2, (1.0,), [["ok"]] * N),
        "pixel-ascent": batch(0.3, (0.2, 0.4, 0.8), fine),
        "twin": batch(0.4, (0.25, 0.5, 1.0), fine),
        "identity": batch(0.5, (0.0,), [["not_flipped"]] * N),
        "random": batch(0.6, (1.0,), [["ok"]] * N),
        "class-mean": batch(0.7, (1.0,), [["ok"]] * N),
        "nearest-real": batch(0.8, (1.0,), [["ok"]] * N),
    }
    facts = {
        "world": "faces-smile", "starts": "pairs", "classifier": "companion", "seed": 4, "ids": tuple("abcd"),
        "source": SOURCE, "target": 1 - SOURCE, "accuracy": 1.0, "source_prediction": torch.tensor([0, 1, 1, 1]),
        "interventions": {}, "batches": batches, "traces": {},
    }  # fmt: skip
    return Shard(**(facts | changed))


def test_training_sets_by_hand():
    queries = torch.rand(N, *SHAPE, generator=torch.Generator().manual_seed(0))
    sets = student_sets(shard_by_hand(), queries, TAUGHT, (0.9, 1.0), ["inr"])
    pixels = {("pixel-ascent", radius): 4 for radius in (0.2, 0.4, 0.8)}
    mine = {("inr", 0.9): 3, ("inr", 1.0): 2, ("inr/b2", 0.9): 7, ("inr/b2", 1.0): 6}
    others = {("real", 0.0): 4, ("iso@inr", 1.0): 4, ("twin", 1.0): 4, ("identity", 0.0): 4}
    assert {key: len(item.labels) for key, item in sets.items()} == pixels | mine | others
    assert all(len(item.images) == len(item.labels) for item in sets.values())
    # queries 0, 2 and 3 are no failures at 0.9, their targets 1, 1 and 0; at 1.0 query 3 was skipped
    assert sets["inr", 0.9].labels.tolist() == [1, 1, 0] and sets["inr", 1.0].labels.tolist() == [1, 1]
    assert torch.allclose(sets["inr", 0.9].images, torch.tensor(0.11))
    assert sets["inr", 0.9].distance == pytest.approx(0.1 + (0 + 2 + 3) / 300)
    assert sets["inr", 1.0].distance == pytest.approx(0.2 + (0 + 2) / 200)
    assert torch.allclose(sets["twin", 1.0].images, torch.tensor(0.42))
    assert sets["identity", 0.0].labels.tolist() == [1, 0, 1, 0]
    # what the classifier sees, not the labels
    real, both = sets["real", 0.0], sets["inr/b2", 0.9]
    assert torch.equal(real.images, queries) and real.labels.tolist() == [0, 1, 1, 1] and real.distance == 0
    assert torch.equal(both.images[:4], queries) and torch.allclose(both.images[4:], torch.tensor(0.11))
    assert both.labels.tolist() == [0, 1, 1, 1, 1, 1, 0] and both.distance == sets["inr", 0.9].distance


def test_missing_methods_and_levels_are_named():
    queries = torch.zeros(N, *SHAPE)
    with pytest.raises(VceError, match=r"dip, lso is not in the shard faces-smile-4"):
        student_sets(shard_by_hand(), queries, ["lso", "inr"], (0.9,), ["dip"])
    with pytest.raises(VceError, match=r"inr has none of them; its strengths are 0\.5, 0\.9, 1"):
        student_sets(shard_by_hand(), queries, ["inr"], (0.7,))


def test_students_learn_what_the_labels_say():
    (x, y), (fresh, truth) = sides(40, 0), sides(60, 1)
    sets = {
        ("right", 1.0): StudentSet(x, y, 0.1),
        ("wrong", 1.0): StudentSet(x, 1 - y, 0.2),
        ("none", 1.0): StudentSet(x[:0], y[:0], float("nan")),
    }
    test = datasets.Images(fresh, truth, tuple(f"t{i}" for i in range(60)))
    own = torch.where(torch.arange(60) < 20, 1 - truth, truth)  # a classifier that is wrong about the first twenty
    with Progress("students", total=3) as progress:
        rows = student_rows(sets, test, own, NAMES, RECIPE, (0, 1), progress)
    assert progress.done == 3 and len(rows) == 180
    right, wrong, none = (rows[rows["method"] == name] for name in ("right", "wrong", "none"))
    assert right["correct"].mean() > 0.95 and wrong["correct"].mean() < 0.05
    for part in (right, wrong):
        assert part["image"].tolist() == list(test.ids) and (part["used"] == 40).all()
        assert np.allclose(part["agrees"][:20], 1 - part["correct"][:20])
        assert np.allclose(part["agrees"][20:], part["correct"][20:])
    assert (right["distance"] == 0.1).all() and (wrong["distance"] == 0.2).all()
    assert (none["used"] == 0).all() and none[["correct", "agrees", "distance"]].isna().all(axis=None)


def test_shares_are_means_over_students(monkeypatch):
    test = datasets.Images(torch.zeros(3, *SHAPE), torch.tensor([0, 1, 1]), ("a", "b", "c"))
    seen = {0: [0, 0, 1], 1: [0, 1, 0], 2: [0, 0, 0]}
    monkeypatch.setattr(students, "train_students", lambda x, y, names, recipe, seeds: seeds)
    monkeypatch.setattr(students, "predictions", lambda seed, images: torch.tensor(seen[seed]))
    data = StudentSet(torch.zeros(5, *SHAPE), torch.zeros(5).long(), 0.0)
    with Progress("students", total=1) as progress:
        rows = student_rows({("m", 0.5): data}, test, torch.tensor([1, 0, 1]), NAMES, RECIPE, (0, 1, 2), progress)
    assert rows["correct"].tolist() == pytest.approx([1, 1 / 3, 1 / 3])
    assert rows["agrees"].tolist() == pytest.approx([0, 2 / 3, 1 / 3])
    assert rows["image"].tolist() == ["a", "b", "c"] and set(rows["strength"]) == {0.5} and set(rows["used"]) == {5}


def test_students_are_reproducible_and_normalised_by_their_own_set():
    x, y = sides(20, 0)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    recipe = Recipe(**(FIELDS | {"epochs": 1, "learning_rate": 0.0}))  # weights stay as they were drawn
    first, second = train_students(x, y, NAMES, recipe, (3, 5))
    (again,) = train_students(x, y, NAMES, recipe, (3,))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first(x), again(x))
    assert (first.network[0].weight - second.network[0].weight).abs().max() > 0.1
    assert not first.training and first.class_names == NAMES and first.image_shape == SHAPE
    for c in range(3):
        assert first.mean[0, c, 0, 0].item() == pytest.approx(x[:, c].mean().item(), abs=1e-6)
        assert first.std[0, c, 0, 0].item() == pytest.approx(x[:, c].std().item(), abs=1e-6)


def table(*sets, seed=0):
    """Rows of sets (method, strength, distance, used, what two test images score); agreement is 1 − correct."""
    rows = [
        {"world": "w", "seed": seed, "method": method, "strength": strength, "image": image, "correct": correct,
         "agrees": 1 - correct, "used": used, "distance": distance}
        for method, strength, distance, used, scores in sets
        for image, correct in zip("ab", scores, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows)


CURVE = (
    ("pixel-ascent", 1.0, 0.04, 9, (1.0, 0.8)),  # not in the order of distance
    ("pixel-ascent", 2.0, 0.02, 9, (0.4, 0.0)),
    ("pixel-ascent", 0.5, 0.01, 0, (np.nan, np.nan)),  # an empty set is no point
    ("real", 0.0, 0.0, 9, (1.0, 1.0)),
)
IDENTITY = ("identity", 0.0, 0.0, 9, (0.0, 0.2))
COMPARED = (
    ("inr", 0.5, 0.01, 8, (0.5, 0.5)),
    ("inr", 0.9, 0.03, 7, (0.5, 0.5)),
    ("iso", 0.9, 0.09, 9, (0.5, 0.5)),
    ("inr/b2", 0.9, 0.03, 16, (0.5, 0.5)),
)


def scores(curve):
    found = {}
    for key, rows in curve.groupby(["seed", "method", "strength"]):
        assert np.allclose(rows["agrees"], 1 - rows["correct"]) and rows["image"].tolist() == ["a", "b"]
        found[key] = [round(value, 9) for value in rows["correct"]]
    return found


def test_pixel_curve_by_hand():
    curve = pixel_curve(table(*CURVE, IDENTITY, *COMPARED))
    expected = {
        (0, "pixel-ascent@inr", 0.5): [0.2, 0.1],  # half-way from identity
        (0, "pixel-ascent@inr", 0.9): [0.7, 0.4],  # half-way between the radii
        (0, "pixel-ascent@iso", 0.9): [1.0, 0.8],  # held at the last
    }
    assert scores(curve) == expected
    inr = curve[(curve["method"] == "pixel-ascent@inr") & (curve["strength"] == 0.5)]
    assert (inr["used"] == 8).all() and (inr["distance"] == 0.01).all() and list(curve.columns) == list(table(IDENTITY))


def test_pixel_curve_keeps_to_its_seed_and_protocol():
    without = scores(pixel_curve(table(*CURVE, *COMPARED)))
    assert without[0, "pixel-ascent@inr", 0.5] == [0.4, 0.0]  # no identity: held at the first radius
    second = table(("pixel-ascent", 1.0, 0.02, 9, (0.9, 0.7)), *COMPARED, seed=1)
    found = scores(pixel_curve(pd.concat([second, table(*CURVE, *COMPARED)])))
    assert found[1, "pixel-ascent@inr", 0.5] == found[1, "pixel-ascent@iso", 0.9] == [0.9, 0.7]
    assert {key: value for key, value in found.items() if key[0] == 0} == without
    both = table(*CURVE, IDENTITY, *COMPARED, ("pixel-ascent/b2", 1.0, 0.03, 18, (0.6, 0.1)))
    assert scores(pixel_curve(both))[0, "pixel-ascent@inr/b2", 0.9] == [0.6, 0.1]
    assert pixel_curve(table(IDENTITY, *COMPARED)).empty


def test_an_empty_set_has_no_place_on_the_curve():
    curve = pixel_curve(table(*CURVE, IDENTITY, ("inr", 0.9, np.nan, 0, (np.nan, np.nan))))
    assert curve[curve["method"] == "pixel-ascent@inr"][["correct", "agrees"]].isna().all(axis=None)


SIZES = {"systems": 0, "calibration": 0, "oracles": 0, "tuning": 4, "pairs": 20}


def test_test_images_are_pairs_that_nobody_explains(tmp_path):
    splits = datasets.draw_splits("faces-smile", SIZES, 0, tmp_path)
    pairs = splits[splits["split"] == "pairs"].sort_values("rank")["id"].tolist()
    shard = shard_by_hand(ids=tuple(pairs[:N]))
    assert list(untouched(shard, splits, 10, tmp_path).ids) == pairs[N : N + 10]
    with pytest.raises(VceError, match="16 pairs are left for --test 17"):
        untouched(shard, splits, 17, tmp_path)


def test_the_job_writes_sets_and_curve(tmp_path, monkeypatch, capsys):
    splits = datasets.draw_splits("faces-smile", SIZES, 0, tmp_path)
    splits.to_parquet(tmp_path / "faces-smile.parquet")
    pairs = datasets.load("faces-smile", splits, "pairs", tmp_path, N)
    shard = shard_by_hand(ids=pairs.ids, source=pairs.labels, target=1 - pairs.labels)
    for name, made in shard.batches.items():
        path = pairs.images[:, None].repeat(1, len(made.strengths), 1, 1, 1)
        shard.batches[name] = CounterfactualBatch(**{**vars(made), "images": path})
    write_shard(shard, tmp_path / "shard.safetensors")
    monkeypatch.setattr(students, "load_companion", {tmp_path / "faces-smile-4.safetensors": Side()}.get)

    def run(*options):
        files = ["--shards", str(tmp_path / "shard.safetensors"), "--companions", str(tmp_path)]
        files += ["--splits", str(tmp_path), "--out", str(tmp_path / "rows.parquet"), "--seeds", "0", "1"]
        monkeypatch.setattr(sys, "argv", ["job", *files, *options])
        students.main()
        return pd.read_parquet(tmp_path / "rows.parquet")

    brief = json.dumps(FIELDS | {"epochs": 1})
    rows = run("--recipe", brief, "--test", "6", "--methods", *TAUGHT, "--both", "inr", "--levels", "0.9")
    test = untouched(shard, splits, 6, tmp_path)
    sets = {"real", "inr", "inr/b2", "iso@inr", "pixel-ascent", "twin", "identity"}
    assert set(rows["method"]) == sets | {f"pixel-ascent@{name}" for name in ("inr", "iso@inr", "twin")}
    assert not rows.duplicated(["world", "seed", "method", "strength", "image"]).any()
    columns = {"world", "seed", "method", "strength", "image", "correct", "agrees", "used", "distance"}
    assert set(rows.columns) == columns and not rows.isna().any(axis=None)
    for _, part in rows.groupby(["method", "strength"]):
        assert part["image"].tolist() == list(test.ids)
    # the same students score both: where the classifier is right they are correct as often as they agree
    right = dict(zip(test.ids, (Side()(test.images).argmax(1) == test.labels).tolist(), strict=True))
    for row in rows.itertuples():
        assert row.agrees == pytest.approx(row.correct if right[row.image] else 1 - row.correct)
    assert 0 < sum(right.values()) < 6
    # the twin of this shard is the original: so is what its students know
    twins = rows[rows["method"] == "twin"]["correct"].tolist()
    assert twins == rows[rows["method"] == "identity"]["correct"].tolist()
    # the students of a classifier are its own: seeds 0 and 1 of training seed 4 are 8 and 9
    own, names = students.predictions(Side(), test.images), datasets.world("faces-smile").class_names
    for seeds, mine in (((8, 9), True), ((0, 1), False)):
        sets, recipe = student_sets(shard, pairs.images, TAUGHT, (0.9,), ["inr"]), Recipe(**FIELDS | {"epochs": 1})
        with Progress("students", total=len(sets)) as progress:
            again = student_rows(sets, test, own, names, recipe, seeds, progress)
        assert again["correct"].equals(rows["correct"][: len(again)]) == mine
    with pytest.raises(SystemExit):
        run("--recipe", json.dumps({**FIELDS, "epoch": 1}), "--methods", "inr", "--levels", "0.9")
    assert "unexpected keyword argument 'epoch'; fix it in config/" in capsys.readouterr().err
