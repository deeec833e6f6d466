"""Discovery of planted cues: closed forms, nets whose reliance is known by construction, and the job on real nets."""

import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from common.batches import Shard, write_shard
from common.classifiers.checkpoints import load_checkpoint
from common.classifiers.train import train_classifier
from common.classifiers.training import Recipe
from common.data import cues, datasets
from common.errors import VceError
from common.explain import Streams, finish
from common.matching import At, read, select
from papers.svce import discovery
from papers.svce.explain import explain

DATA = Path("none")
NAMES = tuple(cues.CUES)
SIZES = {"systems": 150, "calibration": 50, "oracles": 0, "tuning": 0, "pairs": 40}


@pytest.fixture(scope="module")
def starts():
    """Images of class 1."""
    every = datasets.load_ids("scenes-uncued", tuple(f"scene-{k:05d}" for k in range(150)), DATA)
    rows = torch.nonzero(every.labels == 1)[:25, 0]
    return datasets.load_ids("scenes-uncued", tuple(every.ids[row] for row in rows), DATA)


class Reader(nn.Module):
    """Sees class 0 where a tile's place is yellow, or, for the cast, where the image is reddish; else class 1."""

    def __init__(self, cue):
        super().__init__()
        place = cues.coverage(cue, 32, 32).amax(0)
        colour = (1.0, -0.5, -0.5) if cue == "hue" else (0.5, 0.5, -1.0)
        self.weight = torch.tensor(colour)[:, None, None] * place / place.sum()
        self.least = 0.03 if cue == "hue" else 0.3 / len(cues.sites(cue, 32, 32))

    def forward(self, x):
        evidence = (x * self.weight).flatten(1).sum(1)
        return torch.stack([evidence, torch.full_like(evidence, self.least)], 1)


class Blind(nn.Module):
    """Sees class 1 everywhere."""

    def forward(self, x):
        return torch.tensor([[0.0, 1.0]]).expand(len(x), 2) + 0 * x.flatten(1).sum(1, keepdim=True)


def shard(images, changed, classifier, world, seed=0, method="m", label=1):
    """A shard of one method whose path has the strengths 1 and 2, its images given."""
    target = torch.zeros(len(images.ids), dtype=torch.long)
    batch = finish(images.images, changed, target, classifier=classifier, strengths=(1.0, 2.0))
    return Shard(world=world, starts="class-1", classifier="k", seed=seed, ids=images.ids, source=target + label,
                 target=target, accuracy=1.0, source_prediction=target + 1, interventions={}, batches={method: batch},
                 traces={})  # fmt: skip


def painted(x, cue, control=False):
    """A path of two images: the cue itself, twice."""
    return cues.overlay(x, cue, control=control)[:, None].expand(-1, 2, -1, -1, -1)


@pytest.mark.parametrize("cue", NAMES)
def test_alignment_of_the_cue_itself_is_one_and_of_orthogonal_changes_zero(cue):
    x = 0.2 + 0.6 * torch.rand(4, 3, 32, 32)
    for site in range(len(cues.sites(cue, 32, 32))):
        delta = 0.3 * (cues.overlay(x, cue, site) - x)
        assert torch.allclose(discovery.cue_alignment(delta, x, cue), torch.ones(4), atol=1e-5)
        control = 0.3 * (cues.overlay(x, cue, site, control=True) - x)
        assert torch.allclose(discovery.control_alignment(control, x, cue), torch.ones(4), atol=1e-5)
    free = torch.zeros(4, 3, 32, 32)
    free[:, :, 12:20, 12:20] = torch.randn(4, 3, 8, 8)  # no tile lies there
    if cue == "hue":
        free = free.mean(1, keepdim=True).expand_as(free)  # grey: orthogonal to both shifts
    assert discovery.cue_alignment(free, x, cue).abs().max() < 1e-5
    assert discovery.control_alignment(free, x, cue).abs().max() < 1e-5
    assert (discovery.cue_alignment(torch.zeros_like(x), x, cue) == 0).all()


def test_alignment_of_a_mixture_is_its_cosine():
    x = torch.full((1, 3, 32, 32), 0.5)
    patch = cues.overlay(x, "corner") - x
    other = torch.zeros_like(x)
    other[:, :, 0, 0] = 1
    delta = 3 * patch / patch.norm() + 4 * other / other.norm()
    assert discovery.cue_alignment(delta, x, "corner").item() == pytest.approx(0.6, abs=1e-5)


def test_mass_by_hand():
    delta = torch.zeros(3, 3, 32, 32)
    delta[0, 0, 31, 31], delta[0, 1, 10, 10], delta[0, 2, 0, 0] = 3.0, -1.0, 4.0
    delta[1] = 1.0
    mass = discovery.cue_mass(delta, "corner")
    assert mass[:2].tolist() == pytest.approx([3 / 8, 36 / 1024]) and mass[2].isnan()
    assert discovery.cue_mass(delta, "sites")[:2].tolist() == pytest.approx([4 / 8, 36 / 1024])  # the best site
    assert discovery.cue_area("sites", 32, 32) == pytest.approx(36 / 1024)
    assert discovery.cue_mass(delta, "hue").isnan().all() and np.isnan(discovery.cue_area("hue", 32, 32))


@pytest.mark.parametrize("cue", NAMES)
def test_a_reader_of_the_cue_passes_the_gate(starts, cue):
    x = starts.images.mean(1, keepdim=True).expand_as(starts.images)  # grey: the cue's colour decides alone
    target = torch.zeros(len(x), dtype=torch.long)
    site = discovery.overlay_sites(cue, starts.ids, 0)
    with_cue, with_control, plain = discovery.overlay_effect(Reader(cue), x, cue, target, site)
    assert with_cue.all() and not with_control.any() and not plain.any()
    assert len(site.unique()) == len(cues.sites(cue, 32, 32))


def test_a_discovery_needs_signal_and_gate(starts):
    """A net that reads the tile is discovered by a change that shows the tile, and not by one that shows another."""
    net, x = Reader("corner"), starts.images
    shown = discovery.measure(shard(starts, painted(x, "corner"), net, "scenes-corner"), net, "corner", DATA)
    other = discovery.measure(shard(starts, painted(x, "corner", control=True), net, "scenes-corner"), net, "corner",
                              DATA)  # fmt: skip
    for rows, found in ((shown, True), (other, False)):
        (row,) = discovery.discover(rows).to_dict("records")
        assert row["gate"] and row["overlay_gain"] == 1 and row["overlay_plain"] == 0 and row["n"] == len(x)
        assert row["signal"] == row["discovered"] == found


@pytest.mark.parametrize("cue", NAMES)
def test_without_a_causal_effect_nothing_is_discovered(starts, cue):
    """Even when the change is the cue itself: a net that ignores it gives a signal and no discovery."""
    blind = Blind()
    rows = discovery.measure(shard(starts, painted(starts.images, cue), blind, "scenes-uncued"), blind, cue, DATA)
    nets = discovery.discover(rows)
    (row,) = nets.to_dict("records")
    assert row["cue_alignment"] == pytest.approx(1, abs=1e-5) and row["alignment_low"] > 0.5 and row["signal"]
    assert row["overlay_gain"] == 0 and not row["gate"] and not row["discovered"] and not row["planted"]
    (summary,) = discovery.summarise(nets).to_dict("records")
    assert (summary["clean"], summary["false_alarms"], summary["ungated_false_alarms"]) == (1, 0, 1)
    assert np.isnan(summary["auroc"])


def test_the_gate_needs_a_certain_effect_in_the_right_direction():
    base = {"world": "w", "cue": "corner", "planted": True, "classifier": "k", "method": "m", "strength": 1.0}
    numbers = dict.fromkeys([*discovery.MEANS, *discovery.OVERLAYS], 0.0)

    def gate(gains):
        rows = pd.DataFrame({"image": [f"i{k}" for k in range(len(gains))], "overlay_gain": gains}).assign(
            **base, **numbers, seed=0, alignment_gain=0.5
        )
        return bool(discovery.discover(rows)["gate"].item())

    assert gate([1.0] * 30 + [0.0] * 70)
    assert not gate([1.0] * 2 + [0.0] * 4) and not gate([-1.0] * 10)  # large, but uncertain; the wrong way


class Repelled(nn.Module):
    """Sees class 0 everywhere but where a control patch lies: the cue does nothing, its control turns the net away."""

    def __init__(self, cue):
        super().__init__()
        patch = cues.overlay(torch.full((1, 3, 32, 32), 0.5), cue, control=True) - 0.5
        self.patch = patch / patch.square().sum()

    def forward(self, x):
        shown = ((x - 0.5) * self.patch).flatten(1).sum(1)  # 1 where the control patch lies on grey
        return torch.stack([0 * shown + 0.5, shown], 1)


@pytest.mark.parametrize("cue", ["corner", "hue"])
def test_a_control_that_repels_opens_no_gate_and_makes_no_signal(starts, cue):
    net, x = Repelled(cue), 0.5 + 0 * starts.images
    grey = datasets.Images(x, starts.labels, starts.ids)
    target = torch.zeros(len(x), dtype=torch.long)
    with_cue, with_control, plain = discovery.overlay_effect(net, x, cue, target)
    assert plain.all() and with_cue.all() and not with_control.any()
    away = 2 * x - cues.overlay(x, cue, control=True)  # the change only leaves the control
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_ids", lambda world, ids, data: grey)
        path = away[:, None].expand(-1, 2, -1, -1, -1)
        rows = discovery.measure(shard(grey, path, net, "scenes-uncued"), net, cue, DATA)
    assert (rows["overlay_gain"] == 0).all() and (rows["control_alignment"] < 0).all()
    assert (rows["alignment_gain"] == rows["cue_alignment"]).all()
    assert not discovery.discover(rows)["discovered"].item()


def test_nets_are_counted():
    rows = [(True, True, True, 0.4), (True, True, False, 0.1), (True, False, True, 0.2), (False, False, True, 0.3),
            (False, False, False, 0.0), (False, True, True, 0.1)]  # fmt: skip
    nets = pd.DataFrame(rows, columns=["planted", "gate", "signal", "alignment_gain"])
    nets = nets.assign(discovered=nets["gate"] & nets["signal"], cue="hue", classifier="k", method="m")
    (row,) = discovery.summarise(nets).to_dict("records")
    assert (row["planted"], row["using_it"], row["found"]) == (3, 2, 1)
    assert (row["clean"], row["false_alarms"], row["ungated_false_alarms"]) == (3, 1, 2)
    assert row["auroc"] == pytest.approx((3 + 1.5 + 2) / 9)


VALUES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(VALUES, VALUES)
def test_auroc_and_its_p_value_by_brute_force(positive, negative):
    def area(a, b):
        return np.mean([(x > y) + 0.5 * (x == y) for x in a for y in b])

    auroc, p = discovery.auroc_test(np.array(positive), np.array(negative))
    both = positive + negative
    chosen = [set(rows) for rows in combinations(range(len(both)), len(positive))]
    null = [area([both[i] for i in rows], [both[i] for i in range(len(both)) if i not in rows]) for rows in chosen]
    assert auroc == pytest.approx(area(positive, negative))
    assert p == pytest.approx(np.mean(np.array(null) >= auroc - 1e-9))


def test_auroc_of_many_nets_is_permuted():
    auroc, p = discovery.auroc_test(np.arange(10) + 20.0, np.arange(10.0))
    assert auroc == 1 and p == pytest.approx(1 / (1 + discovery.PERMUTATIONS), abs=2e-4)
    rng = np.random.default_rng(0)
    again = discovery.auroc_test(rng.normal(size=12), rng.normal(size=12))
    assert 0.02 < again[1] < 0.98


def test_wrong_shards_are_refused(starts):
    net = Blind()
    carriers = shard(starts, painted(starts.images, "hue"), net, "scenes-hue", label=0)
    with pytest.raises(VceError, match="scenes-hue k-0: starts of class 0 may carry the cue"):
        discovery.measure(carriers, net, "hue", DATA)
    with pytest.raises(VceError, match="world 'scenes' has no cue to discover; give shards of scenes-uncued"):
        discovery.asked("scenes")
    assert discovery.asked("scenes-uncued") == NAMES and discovery.asked("scenes-hue") == ("hue",)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Split tables, briefly trained nets of two worlds, and their shards."""
    home = tmp_path_factory.mktemp("discovery")
    for world in ("scenes-corner", "scenes-uncued"):
        table = datasets.draw_splits(world, SIZES, 0, DATA)
        table.to_parquet(home / f"{world}.parquet")
        recipe = Recipe("strided_cnn", epochs=2, adversary={"l2": 0.5}, batch_size=32)
        net = home / world / "l2at-0.safetensors"
        train_classifier(world, table, DATA, recipe, 0, "systems", net)
        pairs = datasets.load(world, table, "pairs", DATA)
        ids = tuple(name for name, label in zip(pairs.ids, pairs.labels, strict=True) if label == 1)
        images = datasets.load_ids(world, ids, DATA)
        target, f = torch.zeros(len(ids), dtype=torch.long), load_checkpoint(net)
        batch = explain(images.images, images.labels, target, classifier=f, rng=Streams(0, ids, (0,) * len(ids)),
                        strengths=(2.0, 4.0), iterations=10)  # fmt: skip
        write_shard(
            Shard(world=world, starts="class-1", classifier="l2at", seed=0, ids=ids, source=images.labels,
                  target=target, accuracy=1.0, source_prediction=target + 1, interventions={}, traces={},
                  batches={"afw-b/l1.5/k10": batch}), home / "shards" / f"{world}.safetensors")  # fmt: skip
    return home


def job(monkeypatch, home, out, worlds=("scenes-corner", "scenes-uncued"), nets=None):
    shards = [home / "shards" / f"{world}.safetensors" for world in worlds]
    checkpoints = [home / world / "l2at-0.safetensors" for world in nets or worlds]
    splits = [home / f"{world}.parquet" for world in ("scenes-corner", "scenes-uncued")]
    arguments = ["--shards", *shards, "--checkpoints", *checkpoints, "--splits", *splits, "--out", out / "rows.parquet",
                 "--table", out / "nets.csv", "--summary", out / "summary.csv"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["job", *map(str, arguments)])
    discovery.main()


def test_the_job(home, monkeypatch, capsys):
    for name in ("first", "second"):
        job(monkeypatch, home, home / name)
    for name in ("rows.parquet", "nets.csv", "summary.csv"):
        assert (home / "first" / name).read_bytes() == (home / "second" / name).read_bytes(), name
    rows = pd.read_parquet(home / "first" / "rows.parquet")
    assert len(rows) == 8 * 2 * (1 + 3)  # images, strengths, and the clean net is asked about three cues
    assert rows.groupby("world")["planted"].unique().map(list).to_dict() == {
        "scenes-corner": [True], "scenes-uncued": [False]}  # fmt: skip
    kept = rows["cue"] != "hue"
    assert rows.loc[kept, "cue_mass"].between(0, 1).all() and rows.loc[~kept, ["cue_mass", "cue_area"]].isna().all(None)
    assert rows["gate"].isin([0.0, 1.0]).all() and rows["accuracy"].between(0, 1).all()
    assert (rows["alignment_gain"] == rows["cue_alignment"] - rows["control_alignment"].clip(lower=0)).all()
    assert rows["discovered"].isin([0.0, 1.0]).all() and (rows["discovered"] <= rows["gate"]).all()
    cells = [read(select(rows, {"world": world, "cue": "corner"}), "alignment_gain", At(strength=4.0))
             for world in ("scenes-corner", "scenes-uncued")]  # fmt: skip
    assert cells[0].shape == (1, 8) and cells[0].columns.equals(cells[1].columns)
    nets = pd.read_csv(home / "first" / "nets.csv")
    assert len(nets) == 4 and (nets["discovered"] == (nets["gate"] & nets["signal"])).all()
    summary = pd.read_csv(home / "first" / "summary.csv").set_index("cue")
    assert summary["planted"].to_dict() == {"corner": 1, "hue": 0, "sites": 0} and (summary["clean"] == 1).all()


def test_the_job_refuses_what_does_not_fit(home, monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit):
        job(monkeypatch, home, tmp_path, nets=("scenes-corner",))
    assert "--checkpoints: 1 files for 2 shards" in capsys.readouterr().err
    monkeypatch.setattr(discovery, "checkpoint_facts", lambda path: {"seed": 7})
    with pytest.raises(SystemExit):
        job(monkeypatch, home, tmp_path)
    assert "was trained with another seed than" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
