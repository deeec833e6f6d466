"""The chain on a few latents of the packaged faces with a hardly trained shift: shift → units → tables → figures."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from jobs import failing, run

from common.metrics.causal import estimate, tabulate
from papers.contrastive import figures, grids, measure, tables, train
from papers.contrastive.labels import Labels
from papers.contrastive.method import ShiftPredictor, condition
from papers.contrastive.systems import OLDER, System, packaged_faces

N, FEW = 36, 12
PAIRS = {(a, b) for a in ("smile", "male") for b in ("smile", "male", "older") if a != b}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("contrastive")
    recipe = json.dumps({"steps": 3, "batch_size": 4, "hidden": 16, "sparse": True})
    settings = json.dumps({"n": N, "floor": FEW})
    with pytest.MonkeyPatch.context() as patch:
        for seed in (0, 1):
            run(patch, train, "--recipe", recipe, "--seed", seed, "--out", home / f"{seed}.safetensors")
        run(patch, measure, "--shift", home / "0.safetensors", "--settings", settings, "--seed", 0, "--out",
            home / "units.parquet")  # fmt: skip
        run(patch, tables, "--units", home / "units.parquet", "--out", home / "tables")
    return home


@pytest.fixture(scope="module")
def units(home):
    return pd.read_parquet(home / "units.parquet")


def test_the_labels_are_what_three_packaged_classifiers_see():
    system = packaged_faces()
    images = system.G(torch.randn(3, system.d, generator=torch.Generator().manual_seed(0)))
    logits = system.labels(images)
    assert logits.shape == (3, 3) and system.labels.names == ("smile", "male", "older")
    for k, chosen in enumerate([[3], [1], list(range(OLDER, 81))]):
        p = system.labels.classifiers[k][0](images).softmax(1)[:, chosen].sum(1)
        torch.testing.assert_close(logits[:, k].sigmoid(), p, atol=1e-4, rtol=1e-3)


def test_units_hold_every_pair_and_the_facts_agree(units):
    edited = units[units["regime"] == "clamp_others"]
    assert set(zip(edited["attribute"], edited["decision"], strict=True)) == PAIRS
    sizes = units.groupby(["regime", "attribute", "decision"]).size()
    assert {regime: set(sizes[regime]) for regime in sizes.index.levels[0]} == {
        "clamp_others": {N}, "free": {N}, "random": {FEW}, "move": {FEW}, "mirror": {FEW}, "blur": {FEW},
    }  # fmt: skip
    for row in units.sample(60, random_state=0).itertuples():
        before, after = (
            {label: getattr(row, f"{when}_{label}") for label in ("smile", "male", "older")}
            for when in ("before", "after")
        )
        assert (row.x, row.o, row.e) == (before[row.attribute], before[row.decision], after[row.decision])
        assert row.reached == (after[row.attribute] != before[row.attribute])
    assert (units.loc[units["regime"] == "move", "length"] == 0).all()


def test_a_mirror_changes_no_averaged_label(units):
    mirrored = units[units["regime"] == "mirror"]
    assert (mirrored["o"] == mirrored["e"]).all() and not mirrored["reached"].any()


def test_edits_by_hand_give_the_same_labels(home, units):
    system = packaged_faces()
    S = train.load_shift(home / "0.safetensors", system.d, 2)
    ids, w = measure.population(N, system.d)
    before = measure.labelled(w, system)
    c = condition(before[:, :2], 1, 1 - before[:, 1], "clamp_others")
    c[:, 0] = 0
    after = measure.labelled(w + S(w, c), system)
    here = units[(units["regime"] == "clamp_others") & (units["attribute"] == "male") & (units["decision"] == "smile")]
    here = here.set_index("image").loc[list(ids)]
    assert here["e"].tolist() == after[:, 0].tolist() and here["after_older"].tolist() == after[:, 2].tolist()
    np.testing.assert_allclose(here["length"], S(w, c).norm(dim=1), rtol=1e-4)
    random = units[(units["regime"] == "random") & (units["attribute"] == "male")].drop_duplicates("image")
    free = units[(units["regime"] == "free") & (units["attribute"] == "male")].drop_duplicates("image")
    np.testing.assert_allclose(random["length"], free["length"].iloc[:FEW], rtol=1e-4)


def test_scores_are_those_of_their_units_with_contexts_and_per_protocol(home, units):
    table = pd.read_csv(home / "tables/scores.csv")
    cell = units[(units["regime"] == "clamp_others") & (units["attribute"] == "male") & (units["decision"] == "smile")]
    lines = table[(table["regime"] == "clamp_others") & (table["attribute"] == "male") & (table["decision"] == "smile")]
    assert set(lines["context"].dropna()) == {"older = 0", "older = 1"}
    for where, protocol, context in (
        (cell["reached"], "per protocol", None), (cell["x"] >= 0, "itt", None),
        (cell["before_older"] == 1, "itt", "older = 1"),
    ):  # fmt: skip
        n = tabulate(cell["x"], cell["o"], cell["e"], where=where.to_numpy())
        line = lines[(lines["protocol"] == protocol) & (lines["score"] == "nesuf")]
        line = line[line["context"].isna() if context is None else line["context"] == context].iloc[0]
        found = estimate("nesuf", n)
        assert line["n"] == found.n and line["value"] == pytest.approx(found.value, abs=1e-4, nan_ok=True)
        assert isinstance(line["reason"], str) == (found.n < 30)


def test_validity_and_leakage_count(home, units):
    validity = pd.read_csv(home / "tables/validity.csv")
    here = (validity["regime"] == "free") & (validity["attribute"] == "male") & (validity["from"] == 0)
    line = validity[here].iloc[0]
    cell = units[(units["regime"] == "free") & (units["attribute"] == "male") & (units["decision"] == line["decision"])]
    assert line["share"] == pytest.approx(cell.loc[cell["x"] == 0, "reached"].mean(), abs=1e-4)
    leakage = pd.read_csv(home / "tables/leakage.csv")
    assert set(zip(leakage["attribute"], leakage["label"], strict=True)) == PAIRS
    rates = pd.read_csv(home / "tables/rates.csv").set_index("label")
    assert (rates["n"] == N).all() and rates.loc["male", "share"] == pytest.approx(
        units.drop_duplicates("image")["before_male"].mean(), abs=1e-4
    )


def test_figures_are_drawn(home, tmp_path, monkeypatch):
    run(monkeypatch, figures, "--tables", home / "tables", "--out", tmp_path)
    run(monkeypatch, grids, "--shift", home / "0.safetensors", "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"scores.png", "scores.svg", "faces.png", "faces.svg"}


def test_the_same_commands_give_the_same_bytes_and_seeds_differ(home, tmp_path, monkeypatch):
    recipe = json.dumps({"steps": 3, "batch_size": 4, "hidden": 16, "sparse": True})
    run(monkeypatch, train, "--recipe", recipe, "--seed", 0, "--out", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (home / "0.safetensors").read_bytes()
    assert (home / "1.safetensors").read_bytes() != (home / "0.safetensors").read_bytes()
    few, many = (measure.population(n, 7) for n in (3, 9))
    assert few[0] == many[0][:3] and torch.equal(few[1], many[1][:3])


def test_a_shift_of_another_size_or_a_damaged_file_is_one_line(home, tmp_path, monkeypatch, capsys):
    train.save_shift(ShiftPredictor(7, 2, 4), tmp_path / "small.safetensors", {})
    arguments = ("--settings", json.dumps({"n": N, "floor": FEW}), "--seed", 0, "--out", tmp_path / "x.parquet")
    message = failing(monkeypatch, capsys, measure, "--shift", tmp_path / "small.safetensors", *arguments)
    assert "made for latents of size 7 and 2 labels, not 100 and 2" in message
    (tmp_path / "broken.safetensors").write_bytes((home / "0.safetensors").read_bytes()[:200])
    message = failing(monkeypatch, capsys, measure, "--shift", tmp_path / "broken.safetensors", *arguments)
    assert "not a shift predictor file" in message and not (tmp_path / "x.parquet").exists()
    wrong = ("--settings", json.dumps({"n": 5, "floor": 9}), "--seed", 0, "--out", tmp_path / "x.parquet")
    message = failing(monkeypatch, capsys, measure, "--shift", home / "0.safetensors", *wrong)
    assert "floor 9 of n 5 latents" in message


def test_what_is_frozen_is_seen_to_be():
    linear = torch.nn.Linear(2, 2)
    system = System(torch.nn.Linear(3, 2), Labels(("a",), ((linear, (0,)),)), 3, m=1)
    before = train.frozen_hash(system)
    assert before == train.frozen_hash(system)
    with torch.no_grad():
        linear.bias += 1e-6
    assert train.frozen_hash(system) != before
