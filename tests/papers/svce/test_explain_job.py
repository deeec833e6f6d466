"""The whole chain on rendered scenes with briefly trained nets: train → explain → measure → verdicts → figures."""

import json
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from common import verdicts
from common.batches import read_shard
from common.classifiers.checkpoints import load_checkpoint
from common.classifiers.train import train_classifier, train_oracles
from common.classifiers.training import Recipe
from common.data import datasets
from common.errors import VceError
from common.explain import Streams
from common.figures import plt, save_figure, style
from common.results import COLUMNS, KEY
from papers.svce import exactness, figures, measure
from papers.svce import explain as job
from papers.svce.explain import explain

ROOT = Path(__file__).parents[3]
DATA = Path("none")
SIZES = {"systems": 300, "calibration": 60, "oracles": 150, "tuning": 64, "pairs": 20}
CELLS = [
    {"optimiser": "afw-b", "p": 1.5, "iterations": 75, "radii": [1.0, 4.0]},
    {"optimiser": "apgd", "p": 2, "iterations": 75, "radii": [0.4, 1.5]},
    {"optimiser": "apgd", "p": 1, "iterations": 75, "radii": [4.0, 20.0]},
]
RECIPE = {
    "n_pairs": 3,
    "cells": CELLS,
    "traced": ["afw-b/l1.5/k75", "apgd/l2/k75"],
    "thresholded": {"dense": "apgd/l2/k75", "sparse": "afw-b/l1.5/k75", "level": 0.9},
    "random_radii": [0.4, 1.5],
}
BRIEF = {"epochs": 3, "batch_size": 32}


def run(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", ["job", *map(str, arguments)])
    module.main()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Split table, two explained classifiers and the panel."""
    home = tmp_path_factory.mktemp("svce")
    table = datasets.draw_splits("scenes", SIZES, 0, DATA)
    table.to_parquet(home / "scenes.parquet")
    for kind, epsilon in (("l2at", 0.5), ("standard", 0.0)):
        recipe = Recipe("strided_cnn", epsilon=epsilon, **BRIEF)
        train_classifier("scenes", table, DATA, recipe, 0, "systems", home / f"{kind}-0.safetensors")
    panel = {
        "augmented": Recipe("plain_cnn", augment=True, **BRIEF),
        "l2at": Recipe("residual_cnn", epsilon=0.5, **BRIEF),
    }
    train_oracles("scenes", table, DATA, panel, home / "oracles")
    return home


def chain(monkeypatch, home, out):
    """Explain both classifiers, measure and judge into `out`."""
    shards = []
    for kind in ("l2at", "standard"):
        shards.append(out / "scenes" / f"{kind}-0.safetensors")
        run(monkeypatch, job, "--world", "scenes", "--splits", home / "scenes.parquet", "--kind", kind, "--seed", 0,
            "--checkpoint", home / f"{kind}-0.safetensors", "--recipe", json.dumps(RECIPE),
            "--out", shards[-1])  # fmt: skip
    panel = [f"{name}={home}/oracles/scenes-{name}.safetensors" for name in ("augmented", "svm", "l2at")]
    run(monkeypatch, measure, "--shards", *shards, "--splits", home / "scenes.parquet", "--panel", *panel,
        "--out", out / "rows.parquet", "--gate", out / "gate.csv", "--cost", out / "cost.parquet")  # fmt: skip
    run(monkeypatch, exactness, "--problems", 6, "--dimension", 64, "--seed", 0, "--out", out / "exactness.parquet")
    run(monkeypatch, verdicts, "--claims", ROOT / "papers/svce/claims.yaml", "--rows", out / "rows.parquet",
        "--exactness", out / "exactness.parquet", "--gate", out / "gate.csv", "--protocol", '{"scale": "test"}',
        "--level", 0.9, "--out", out)  # fmt: skip
    return shards


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
    names = ["rows.parquet", "claims.json", "gate.csv", "exactness.parquet", "scenes/l2at-0.safetensors"]
    names += [f"tables/{name}.csv" for name in ("tests", "methods", "strengths", "statuses")]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_rows_are_complete(runs):
    rows = pd.read_parquet(runs[0] / "rows.parquet")
    assert list(rows.columns) == list(COLUMNS) and not rows.duplicated(KEY).any()
    paths = {"random": 2, "identity": 1, "class-mean": 8, "nearest-real": 8, "twin": 8, "apgd/l2/k75/thresholded": 1}
    paths |= {"afw-b/l1.5/k75": 2, "apgd/l2/k75": 2, "apgd/l1/k75": 2}
    sizes = rows.groupby(["classifier", "method"]).size().unstack("classifier")
    assert sizes.index.tolist() == sorted(paths) and all((sizes.loc[m] == 3 * s).all() for m, s in paths.items())
    assert rows["confidence"].between(0, 1).all() and np.isfinite(rows["log_confidence"]).all()
    searched = rows[rows["method"].str.endswith("k75")]
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
    assert claims["C1"]["verdict"] == "supported" and claims["C3"]["verdict"] == "not tested"
    assert all(claim["verdict"] != "supported" for name, claim in claims.items() if name != "C1")
    assert report["protocol"]["pairs"] == 3 and report["protocol"]["seeds"] == 1


def test_traces_never_fall_and_end_at_the_best(runs):
    shard = read_shard(runs[0] / "scenes" / "l2at-0.safetensors")
    for method, trace in shard.traces.items():
        assert trace.shape == (3, 2, 76) and (trace.diff(dim=2) >= 0).all()
        assert torch.allclose(trace[..., -1], shard.batches[method].log_confidence, atol=1e-4)


def test_figures_are_drawn(runs, monkeypatch):
    out = runs[0]
    shard, plain = (out / "scenes" / f"{kind}-0.safetensors" for kind in ("l2at", "standard"))
    run(monkeypatch, figures, "--robust", shard, "--plain", plain, "--rows", out / "rows.parquet", "--methods",
        out / "tables" / "methods.csv", "--tests", out / "tables" / "tests.csv", "--out", out / "figures")  # fmt: skip
    drawn = {path.name for path in (out / "figures").iterdir()}
    names = ("grid", "grid-plain", "optimisers", "sparsity", "radius", "verdicts")
    assert {f"{name}.{suffix}" for name in names for suffix in ("png", "svg")} <= drawn
    text = (out / "figures" / "radius.svg").read_text()
    assert '"rule": "svce_figures"' in text.replace("&quot;", '"') and "<dc:date>" not in text


def test_a_figure_has_the_same_bytes_twice(tmp_path):
    style()
    for name in ("a", "b"):
        figure, axis = plt.subplots()
        axis.plot([0, 1], [1, 0], label="x")
        axis.legend()
        save_figure(figure, tmp_path / f"{name}.png", {"rule": "r"})
    for suffix in (".png", ".svg"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.fixture(scope="module")
def problem(home):
    """Images, labels, targets, streams and the robust classifier."""
    pairs = datasets.load("scenes", pd.read_parquet(home / "scenes.parquet"), "pairs", DATA, 6)
    target = (pairs.labels + 1) % 5
    return pairs.images, pairs.labels, target, Streams(0, pairs.ids, tuple(target.tolist())), load_checkpoint(
        home / "l2at-0.safetensors"
    )  # fmt: skip


def solve(problem, rows=None, strengths=(1.0, 3.0), classifier=None, **options):
    x, source, target, rng, net = problem
    rows = list(range(len(x))) if rows is None else rows
    return explain(x[rows], source[rows], target[rows], classifier=classifier or net, rng=rng[rows],
                   strengths=strengths, **{"iterations": 10, **options})  # fmt: skip


@pytest.mark.parametrize("optimiser, p", [("afw-b", 1.5), ("afw-a", 2), ("fw", 1.5), ("apgd", 2), ("apgd", 1)])
def test_batch_and_order_change_nothing_but_rounding(problem, optimiser, p):
    """Network kernels differ by about 1e-6 between batch sizes; ten iterations keep confidence and distance to 1e-4."""
    reference = solve(problem, optimiser=optimiser, p=p)
    order = [3, 0, 5, 1, 4, 2]
    for rows, batch_size in ((order, 64), (list(range(6)), 5), ([4, 2], 1)):
        other = solve(problem, rows, optimiser=optimiser, p=p, batch_size=batch_size)
        assert (other.status == reference.status[rows]).all()
        assert torch.allclose(other.confidence, reference.confidence[rows], atol=1e-4)
        assert torch.allclose(other.distance, reference.distance[rows], atol=1e-4)
    assert torch.equal(problem[3][order].normal((3, 32, 32), "start"), problem[3].normal((3, 32, 32), "start")[order])


def test_a_radius_does_not_see_the_others(problem):
    both, alone = solve(problem), solve(problem, strengths=(3.0,))
    assert torch.allclose(both.confidence[:, 1], alone.confidence[:, 0], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"strengths": (0.0,)}, "epsilon"),
        ({"strengths": (1.0, -2.0)}, "epsilon"),
        ({"p": 0.5}, "p: the norm's order"),
        ({"optimiser": "adam"}, "optimiser 'adam' is unknown; choose one of afw-a"),
        ({"optimiser": "afw-c"}, "afw-c"),
        ({"optimiser": "apgd", "p": 1.5}, "apgd projects onto l1 and l2 balls only"),
        ({"optimiser": "apgd", "p": 2, "strengths": (0.0,)}, "epsilon"),
    ],
)
def test_wrong_options_are_refused(problem, options, named):
    with pytest.raises(VceError, match=named):
        solve(problem, **options)


class Breaks(nn.Module):
    """The classifier, but not a number for images with a top left pixel above a half."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return torch.where(x[:, :1, 0, 0] > 0.5, torch.nan, self.net(x))


@pytest.mark.parametrize("optimiser, p", [("afw-b", 1.5), ("apgd", 2), ("apgd", 1)])
def test_one_broken_sample_breaks_no_other(problem, optimiser, p):
    x, source, target, rng, net = problem
    harmless, broken = x.clone(), x.clone()
    harmless[:, :, 0, 0] = 0
    broken[:, :, 0, 0], broken[2, :, 0, 0] = 0, 1
    small = {"strengths": (0.3,), "optimiser": optimiser, "p": p, "classifier": Breaks(net)}
    a, b = (solve((images, source, target, rng, net), **small) for images in (harmless, broken))
    assert b.status[2].tolist() == ["diverged"] and b.confidence[2].item() == 0
    assert torch.equal(b.images[2, 0], broken[2]) and b.steps[2].item() == 1
    rest = [0, 1, 3, 4, 5]
    for item in fields(a):
        one, two = getattr(a, item.name), getattr(b, item.name)
        if isinstance(one, torch.Tensor):
            assert torch.equal(one[rest], two[rest]), item.name
    assert (a.status[rest] == b.status[rest]).all() and (a.status != "diverged").all()


def test_a_method_listed_twice_is_refused(home):
    table = pd.read_parquet(home / "scenes.parquet")
    with pytest.raises(VceError, match=r"afw-b/l1\.5/k75 is listed twice"):
        job.explain_shard("scenes", table, DATA, nn.Identity(), "k", 0, {**RECIPE, "cells": CELLS + CELLS[:1]}, print)


@pytest.mark.parametrize("p", [1.1, 1.5, 2.0, 4.0])
def test_bisection_agrees_with_scipy(p):
    rng = np.random.default_rng(0)
    for size in (0.1, 0.6, 1.5):
        w, x = rng.normal(size=6), rng.random(6)
        x[0], x[1] = 0.0, 1.0
        gamma = np.where(w > 0, 1 - x, x)
        ball = {"type": "ineq", "fun": lambda s, size=size: size**p - (np.abs(s) ** p).sum()}
        found = minimize(lambda s, w=w: -np.abs(w) @ s, np.minimum(gamma, size / 12), bounds=[(0, g) for g in gamma],
                         constraints=[ball], options={"maxiter": 500, "ftol": 1e-12})  # fmt: skip
        best = exactness.bisection(torch.tensor(w)[None], torch.tensor(x)[None], torch.tensor([size]).double(), p)
        assert best.item() == pytest.approx(-found.fun, rel=1e-4)


def test_bisection_for_p_1_is_the_knapsack():
    w, x = torch.tensor([[3.0, -2.0, 1.0, 5.0]]), torch.tensor([[0.6, 0.5, 0.2, 1.0]])  # rooms .4, .5, .8, 0
    for epsilon, best in ((0.3, 0.9), (0.6, 1.2 + 0.4), (1.0, 1.2 + 1.0 + 0.1), (9.0, 1.2 + 1.0 + 0.8)):
        assert exactness.bisection(w, x, torch.tensor([epsilon]), 1.0).item() == pytest.approx(best, rel=1e-6)


def test_exactness_table_sees_an_inexact_oracle(monkeypatch):
    honest = exactness.measure_exactness(4, 48, 0)
    assert honest["gap"].max() < 1e-5 and len(honest) == 4 * 5 * 2
    monkeypatch.setattr(exactness, "lmo", lambda w, x, e, p, lmo=exactness.lmo: 0.999 * lmo(w, x, e, p))
    assert exactness.measure_exactness(4, 48, 0)["gap"].min() > 5e-4
