"""The whole chain on rendered scenes with briefly trained nets: train → explain → measure → verdicts → figures."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from common import verdicts
from common.batches import read_shard
from common.classifiers import robustness
from common.classifiers import train as train_job
from common.data import datasets, split
from common.errors import VceError
from common.figures import plt, save_figure, style
from common.generators import train as generator_job
from common.results import COLUMNS, KEY
from common.verdict_figure import verdict_figure
from papers.svce import discovery, exactness, figures, grids, measure, realism, shards
from papers.svce.explain import ROUNDS

ROOT = Path(__file__).parents[3]
DATA = Path("none")
SIZES = {"systems": 300, "calibration": 60, "oracles": 150, "tuning": 64, "pairs": 40}
STARTS = {"systems": 0, "calibration": 0, "oracles": 0, "tuning": 64, "pairs": 40}
BRIEF = {"architecture": "strided_cnn", "epochs": 3, "batch_size": 32}
ROBUST = {**BRIEF, "adversary": {"l2": 0.5}}
PANEL = {
    "augmented": {**BRIEF, "architecture": "plain_cnn", "augment": True},
    "l2at": {**ROBUST, "architecture": "residual_cnn"},
    "features": {**BRIEF, "architecture": "plain_cnn", "epochs": 1},
}
CELLS = [
    {"optimiser": "afw-b", "p": 1.5, "strengths": [1.0, 4.0]},
    {"optimiser": "apgd", "p": 2, "strengths": [0.4, 1.5]},
    {"optimiser": "apgd", "p": 1, "strengths": [4.0, 20.0]},
]
SETS = [{**cell, "iterations": 25, "strengths": cell["strengths"][-1:]} for cell in CELLS]
PAIRS = {
    "world": "scenes",
    "classifiers": ["l2at"],
    "starts": {"name": "pairs", "n": 3, "target": "drawn"},
    "cells": [*CELLS, {"optimiser": "pvce", "strengths": [1.5]}, {"optimiser": "blended", "strengths": [25.0]}],
    "traced": ["afw-b/l1.5/k75", "apgd/l2/k75"],
    "thresholded": {"dense": "apgd/l2/k75", "sparse": "afw-b/l1.5/k75", "level": 0.9},
    "random_radii": [0.4, 1.5],
}
DRAWS = [{"optimiser": "afw-b", "strengths": [1.5], "draw": draw} for draw in (1, 2)]
MINIMAL = [{"optimiser": "minimal", "strengths": [0.5, 0.9], "ceiling": 5.0}]
RATED = {"methods": ["apgd/l2/k75", "afw-b/l1.5/k75", "blended"], "level": 0.9}
CUES = {"name": "cues", "n": 5, "source": 1, "target": 0}
GROUP = [
    PAIRS,
    {**PAIRS, "classifiers": ["standard"], "cells": CELLS, "traced": []},
    {"world": "scenes", "classifiers": ["l2at"], "starts": {"name": "draws", "n": 2, "target": "drawn"},
     "cells": DRAWS + MINIMAL},
    {"world": "scenes", "classifiers": ["l2at"], "starts": {"name": "ID", "n": 8, "target": "second"}, "cells": SETS},
    {"world": "scenes-empty", "trained_on": "scenes", "classifiers": ["l2at"],
     "starts": {"name": "OD", "n": 8, "target": "first"}, "cells": SETS},
    {"world": "scenes-uncued", "classifiers": ["l2at"], "starts": CUES, "cells": SETS},
    {"world": "scenes-corner", "classifiers": ["l2at"], "starts": CUES, "cells": SETS},
]  # fmt: skip


def run(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", ["job", *map(str, arguments)])
    module.main()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Split tables, explained classifiers, panel, feature net and diffusion model."""
    home = tmp_path_factory.mktemp("svce")
    sizes = {"scenes": SIZES, "scenes-empty": STARTS, "scenes-uncued": SIZES, "scenes-corner": SIZES}
    recipes = {
        "scenes": {"l2at": ROBUST, "standard": BRIEF},
        "scenes-uncued": {"l2at": BRIEF},
        "scenes-corner": {"l2at": BRIEF},
    }
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(monkeypatch, split, "--sizes", json.dumps(sizes), "--seed", 0, "--out", home / "splits")
        run(monkeypatch, train_job, "classifiers", "--splits", home / "splits", "--recipes", json.dumps(recipes),
            "--seed", 0, "--out", home / "classifiers")  # fmt: skip
        run(monkeypatch, train_job, "oracles", "--splits", home / "splits", "--recipes", json.dumps({"scenes": PANEL}),
            "--out", home / "oracles")  # fmt: skip
        run(monkeypatch, generator_job, "diffusion", "--splits", home / "splits", "--recipes",
            '{"scenes": {"epochs": 1}}', "--out", home)  # fmt: skip
    return home


def chain(monkeypatch, home, out):
    """Explain, measure and judge into `out`."""
    nets = home / "classifiers"
    run(monkeypatch, shards, "--group", json.dumps(GROUP), "--splits", home / "splits", "--checkpoints", nets,
        "--diffusion", home / "scenes-diffusion.safetensors", "--seed", 0, "--out", out / "batches")  # fmt: skip
    pairs = [out / f"batches/{name}-0.safetensors" for name in ("pairs/scenes/l2at", "pairs/scenes/standard")]
    draws = [out / "batches/draws/scenes/l2at-0.safetensors"]
    sets = [out / f"batches/{name}/l2at-0.safetensors" for name in ("ID/scenes", "OD/scenes-empty")]
    cues = [out / f"batches/cues/scenes-{name}/l2at-0.safetensors" for name in ("uncued", "corner")]
    run(monkeypatch, measure, "--shards", *pairs, *draws, "--splits", home / "splits", "--oracles", home / "oracles",
        "--panels", "scenes=scenes", "--out", out / "rows.parquet", "--tables", out / "tables",
        "--cost", out / "cost.parquet")  # fmt: skip
    run(monkeypatch, realism, "--shards", *sets, pairs[0], "--worlds", "scenes-empty=scenes", "--splits",
        home / "splits", "--oracles", home / "oracles", "--noise", "scenes=1.5",
        "--pairs-methods", "apgd/l2/k75", "blended", "--out", out / "realism.parquet",
        "--table", out / "tables/realism.csv", "--rated", json.dumps(RATED),
        "--proxies", out / "tables/rating_proxies.csv")  # fmt: skip
    run(monkeypatch, discovery, "--shards", *cues, "--checkpoints",
        *(nets / f"{path.parent.name}/{path.name}" for path in cues), "--splits", *(home / "splits").iterdir(),
        "--out", out / "discovery.parquet", "--table", out / "tables/discovery.csv",
        "--summary", out / "tables/discovery_summary.csv")  # fmt: skip
    run(monkeypatch, robustness, "--checkpoints", *sorted((nets / "scenes").iterdir()), "--splits", home / "splits",
        "--recipe", json.dumps({"n": 20, "iterations": 5, "radii": {"scenes": {"l1": 5.0, "l2": 0.5, "linf": 0.02}}}),
        "--out", out / "robustness.parquet", "--table", out / "tables/robustness.csv")  # fmt: skip
    run(monkeypatch, exactness, "--problems", 6, "--dimension", 64, "--seed", 0, "--out", out / "exactness.parquet")
    names = ("exactness", "realism", "discovery", "robustness")
    run(monkeypatch, verdicts, "--claims", ROOT / "papers/svce/claims.yaml", "--rows", out / "rows.parquet",
        "--tables", *(f"{name}={out}/{name}.parquet" for name in names), "--gate", out / "tables/oracle_gate.csv",
        "--protocol", '{"scale": "test"}', "--level", 0.9, "--out", out)  # fmt: skip


@pytest.fixture(scope="module")
def runs(home):
    """The same commands twice: two output folders."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(verdicts, "MIN_RELIANCE", 0.0)  # nets this brief rely on little
        for name in ("first", "second"):
            chain(monkeypatch, home, home / name)
    return home / "first", home / "second"


def test_the_same_commands_give_the_same_bytes(runs):
    first, second = runs
    costs = {"cost.parquet"}
    names = {str(path.relative_to(first)) for path in first.rglob("*.*") if path.is_file()} - costs
    names = {name for name in names if not name.endswith(".cost.json")}
    assert {"rows.parquet", "claims.json", "realism.parquet", "discovery.parquet", "tables/tests.csv"} <= names
    for name in sorted(names - {"claims.json"}):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    one, two = (json.loads((folder / "claims.json").read_text()) for folder in runs)
    assert one == two


def test_rows_are_complete(runs):
    rows = pd.read_parquet(runs[0] / "rows.parquet")
    assert list(rows.columns) == list(COLUMNS) and not rows.duplicated(KEY).any()
    paths = {"random": 2, "identity": 1, "class-mean": 8, "nearest-real": 8, "twin": 8, "apgd/l2/k75/thresholded": 1}
    paths |= {"afw-b/l1.5/k75": 2, "apgd/l2/k75": 2, "apgd/l1/k75": 2, "pvce/l2": 1, "blended": 1}
    sizes = rows[rows["classifier"] == "l2at"].groupby("method").size()
    more = {"afw-b/l2/k75/draw1": 2, "afw-b/l2/k75/draw2": 2, "minimal/l2/k75": 4}
    assert sizes.to_dict() == {method: 3 * s for method, s in paths.items()} | more
    assert rows["confidence"].between(0, 1).all() and np.isfinite(rows["log_confidence"]).all()
    searched = rows[rows["method"].isin(["afw-b/l1.5/k75", "apgd/l2/k75", "apgd/l1/k75"])]
    assert (searched["forward"] == 76).all() and (searched["backward"] == 76).all()
    for norm in ("l1", "l1.5", "l2"):
        cell = searched[searched["method"].str.contains(f"/{norm}/")]
        assert (cell[norm] <= cell["strength"] * (1 + 1e-4)).all()
    identity, twin = rows[rows["method"] == "identity"], rows[(rows["method"] == "twin") & (rows["strength"] == 1)]
    assert (identity["twin_error"] == 1).all() and identity["on_mask"].isna().all() and (identity["l2"] == 0).all()
    assert (twin["twin_error"] < 1e-3).all() and (twin["on_mask"] > 0.9).all()  # edge pixels count by their cover
    cut, sparse = (rows[rows["method"] == m] for m in ("apgd/l2/k75/thresholded", "afw-b/l1.5/k75"))
    key = ["classifier", "image"]
    for pair, path in sparse.sort_values("strength").groupby(key):
        above = path["confidence"].to_numpy() >= 0.9
        visible = path["pixel_share"].to_numpy()[above.argmax() if above.any() else -1]
        assert cut.set_index(key).loc[pair, "pixel_share"] <= visible + 1e-6


def test_every_claim_has_a_verdict_and_none_beyond_screening(runs):
    report = json.loads((runs[0] / "claims.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    claims = report["claims"]
    assert set(claims) == {f"C{k}" for k in range(1, 13)}
    assert claims["C1"]["verdict"] == "supported" and claims["C3"]["verdict"] == "not tested"
    assert all(claim["verdict"] != "supported" for name, claim in claims.items() if name != "C1")
    assert all(claim["note"] for claim in claims.values() if claim["verdict"] == "not tested")
    assert report["protocol"]["pairs"] == 3 and report["protocol"]["seeds"] == 1


def test_traces_never_fall_and_end_at_the_best(runs):
    shard = read_shard(runs[0] / "batches/pairs/scenes/l2at-0.safetensors")
    for method, trace in shard.traces.items():
        assert trace.shape == (3, 2, 76) and (trace.diff(dim=2) >= 0).all()
        assert torch.allclose(trace[..., -1], shard.batches[method].log_confidence, atol=1e-4)


def test_stopped_samples_save_passes(runs):
    table = pd.read_csv(runs[0] / "tables/minimal.csv")
    assert len(table) == 2 and (table["passes"] <= table["passes_without_stop"]).all()
    assert (table["saved"] == (1 - table["passes"] / table["passes_without_stop"]).round(4)).all()
    assert (table["passes_without_stop"] <= ROUNDS * 76 + 1).all()


def test_diversity_compares_the_draws_of_one_method(runs):
    table = pd.read_csv(runs[0] / "tables/diversity.csv")
    assert table["method"].tolist() == ["afw-b/l2/k75"] and table["draws"].tolist() == [2]
    shard = read_shard(runs[0] / "batches/draws/scenes/l2at-0.safetensors")
    one, two = (shard.batches[f"afw-b/l2/k75/draw{k}"] for k in (1, 2))
    between = (one.images - two.images).abs().flatten(2).mean(2)[:, 0]
    by_hand = (between / ((one.distance + two.distance) / 2)[:, 0]).mean().item()
    assert table["spread"].item() == pytest.approx(by_hand, abs=1e-4) and by_hand > 0


def test_realism_has_controls_and_averages(runs):
    rows = pd.read_parquet(runs[0] / "realism.parquet")
    methods = {"afw-b/l1.5/k25", "apgd/l1/k25", "apgd/l2/k25"}
    for starts in ("ID", "OD", "average"):
        cell = rows[rows["starts"] == starts]
        assert set(cell["method"]) == methods | {"identity", "noise", "real"} and (cell["n"] == 8).all()
    assert set(rows[rows["starts"] == "pairs"]["method"]) == {"apgd/l2/k75", "blended", "identity", "noise", "real"}
    key = ["classifier", "method", "half"]
    parts = [rows[rows["starts"] == starts].set_index(key)["kid"].sort_index() for starts in ("ID", "OD", "average")]
    assert np.allclose((parts[0] + parts[1]) / 2, parts[2])
    shard = read_shard(runs[0] / "batches/ID/scenes/l2at-0.safetensors")
    explained = rows[(rows["classifier"] == "l2at") & rows["starts"].isin(["ID", "OD"])]
    seen = (shard.interventions["label"] != shard.source_prediction).float().mean().item()
    assert np.allclose(explained["reliance"], seen) and rows["oracle_valid"].dropna().between(0, 1).all()
    halves = explained[explained["half"] > 0].groupby(["starts", "method"])["oracle_valid"].nunique()
    assert (halves > 1).any()  # the share of each half, not one number for all


def test_proxies_are_of_the_images_that_raters_see(runs):
    table = pd.read_csv(runs[0] / "tables/rating_proxies.csv").set_index("method")
    assert table.index.tolist() == RATED["methods"] and (table["n"] == 3).all()
    assert all("proxy" in name for name in table.columns[4:])
    shard = read_shard(runs[0] / "batches/pairs/scenes/l2at-0.safetensors")
    originals = datasets.load_ids("scenes", shard.ids, DATA).images
    batch = shard.batches["apgd/l2/k75"]
    for i, path in enumerate(batch.confidence):
        j = next((j for j, p in enumerate(path.tolist()) if p >= 0.9), len(path) - 1)
        assert batch.first_success(0.9)[i] == j
    norms = (batch.at(batch.first_success(0.9)) - originals).flatten(1).norm(dim=1)
    assert table.loc["apgd/l2/k75", "subtle_proxy_l2"] == pytest.approx(norms.mean().item(), rel=1e-5)


def test_targets_are_those_of_the_settings(runs, home):
    inside, outside = (
        read_shard(runs[0] / f"batches/{name}/l2at-0.safetensors") for name in ("ID/scenes", "OD/scenes-empty")
    )
    assert (inside.target != inside.source_prediction).all() and torch.equal(outside.target, outside.source_prediction)
    assert not outside.interventions
    cues = read_shard(runs[0] / "batches/cues/scenes-corner/l2at-0.safetensors")
    assert (cues.source == 1).all() and (cues.target == 0).all()


def test_figures_are_drawn(runs, tmp_path):
    style()
    out, table = runs[0], runs[0] / "tables"
    shard = read_shard(out / "batches/pairs/scenes/l2at-0.safetensors")
    cues = [read_shard(path) for path in sorted((out / "batches/cues").rglob("*.safetensors"))]
    rows = pd.read_parquet(out / "rows.parquet")
    drawn = {
        "grid": grids.grid(shard, DATA),
        "grid-density": grids.grid_density(shard, DATA),
        "grid-cues": grids.grid_cues(cues, DATA),
        "optimisers": figures.optimisers([shard]),
        "sparsity": figures.sparsity(pd.read_csv(table / "methods.csv")),
        "sparsity-confidence": figures.sparsity_confidence(rows),
        "radius": figures.radius(rows),
        "realism": figures.realism(pd.read_csv(table / "realism.csv")),
        "discovery": figures.discovery(pd.read_csv(table / "discovery.csv")),
        "verdicts": verdict_figure(pd.read_csv(table / "tests.csv")),
    }
    for name, figure in drawn.items():
        save_figure(figure, tmp_path / f"{name}.png", {"rule": "svce_figures"})
        assert (tmp_path / f"{name}.svg").stat().st_size > 5_000
    text = (tmp_path / "radius.svg").read_text()
    assert '"rule": "svce_figures"' in text.replace("&quot;", '"') and "<dc:date>" not in text


def test_a_figure_has_the_same_bytes_twice(tmp_path):
    style()
    for name in ("a", "b"):
        figure, axis = plt.subplots()
        axis.plot([0, 1], [1, 0], label="x")
        axis.legend()
        save_figure(figure, tmp_path / f"{name}.png", {"rule": "r"})
    for suffix in ("png", "svg"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_a_method_listed_twice_is_refused():
    with pytest.raises(VceError, match=r"afw-b/l1\.5/k75 is listed twice"):
        shards.parse_cells(CELLS + CELLS[:1])


def test_a_wrong_cell_names_its_field():
    with pytest.raises(VceError, match="radius"):
        shards.parse_cells([{"optimiser": "apgd", "radius": 1}])
    with pytest.raises(VceError, match="'strengths'"):
        shards.parse_cells([{"optimiser": "apgd"}])


def test_a_density_method_without_its_model_is_refused():
    with pytest.raises(VceError, match="pvce needs a diffusion model; give --diffusion"):
        shards.Cell("pvce", (1.0,)).explainer(None)


def test_a_class_without_images_is_named(home):
    table = pd.read_parquet(home / "splits/scenes.parquet")
    starts = shards.Starts("cues", 5, 0, source=1)
    with pytest.raises(VceError, match="scenes: the pairs split has no images of class 1"):
        starts.pairs("scenes", table[table["label"] != 1], DATA, nn.Identity())
    assert (starts.pairs("scenes", table, DATA, nn.Identity())[0].labels == 1).all()


def test_worlds_load_what_the_starts_ask_for(home):
    table = pd.read_parquet(home / "splits/scenes.parquet")
    images, target = shards.Starts("pairs", 4, "drawn").pairs("scenes", table, DATA, nn.Identity())
    assert images.ids == datasets.load("scenes", table, "pairs", DATA, 4).ids and (target != images.labels).all()
