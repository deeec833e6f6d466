"""The whole chain on a few digits with hardly trained nets: VAE → systems → shards → diagnostics → rows → verdicts."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from jobs import failing, run

from common import verdicts
from common.batches import read_shards
from common.classifiers import train as oracle_job
from common.data import datasets, split
from common.generators import train as generator_job
from common.generators.vae import load_vae
from common.metrics.im1 import ClassAutoencoders
from common.results import COLUMNS, KEY, STATUSES
from common.tensors import read_tensors, write_tensors
from papers.clarity import cells, diagnostics, measure, shards, tables, train
from papers.clarity.systems import load_systems

ROOT = Path(__file__).parents[3]
SIZES = {"systems": 100, "calibration": 30, "oracles": 80, "tuning": 0, "pairs": 50}
VAE = {"world": "mnist", "seeds": [0], "architecture": "mlp", "latent": 4, "epochs": 2, "widths": [32], "shift": 1}
BRIEF = {"epochs": 1, "batch_size": 32}
MLP, LATENT = {**BRIEF, "architecture": "mlp"}, {**BRIEF, "architecture": "mlp", "epochs": 4}
ENTRY = {"world": "mnist", "singles": 2, "copies": 2, "shift": 1}
SPACES = {
    "p": {**MLP, "members": 5},
    "pr": {**MLP, "members": 5},
    "l-mean": {**LATENT, "members": 5},
    "l-sample": {**LATENT, "members": 10},
    "schut": {**MLP, "architecture": "schut_mlp", "members": 2, "fgsm": 0.15},
}
ENTRIES = {
    "mnist": {**ENTRY, "spaces": SPACES},
    "variant": {**ENTRY, "classes": [4, 7, 9], "spaces": {"l-sample": {**LATENT, "members": 2}}},
}
GRID = {"spaces": ["p", "pr", "l-mean", "l-sample"], "sizes": [1, 5]}
TAUS, STEPS = [0.2, 0.5], {"steps": 15, "lr": 0.2}
CELLS = [
    {"method": "direction", "strengths": [1.0, 2.0], **GRID},
    {"method": "search", "strengths": TAUS, "settings": STEPS, **GRID},
    {"method": "search", "label": "search/lambda", "strengths": TAUS, "settings": {**STEPS, "lam": 0.05}, **GRID},
    {"method": "search", "strengths": TAUS, "settings": STEPS, "names": ["l-sample-m10"]},
    {"method": "revise-plain", "strengths": TAUS, "settings": {"steps": 5}, "names": ["p.0"]},
    {"method": "revise-plain", "label": "revise-plain/tuned", "strengths": TAUS, "settings": {"steps": 5, "lam": 0.01},
     "names": ["p.0"]},
    {"method": "revise-adam", "strengths": [0.5], "settings": {"steps": 5}, "names": ["p.0"]},
    {"method": "latent-ascent", "strengths": TAUS, "settings": {"steps": 5}, "names": ["p.0"]},
    {"method": "schut", "strengths": [0.2, 0.99], "settings": {"iterations": 8}, "names": ["schut.0"]},
    {"method": "pixel-ascent", "strengths": [1.0], "settings": {"iterations": 5}, "names": ["p.0"]},
]  # fmt: skip
PAIRS = {"systems": "mnist", "starts": "pairs", "n": 4, "singles": 2, "cells": CELLS, "controls": "l-sample-m10",
         "radii": [1.0, 2.0], "random_radii": [1.5]}  # fmt: skip
COVERAGE = {
    "systems": "mnist",
    "starts": "coverage",
    "first": 4,
    "n": 10,
    "singles": 2,
    "cells": [{"method": "search", "strengths": [0.5], "settings": STEPS, "names": ["l-sample-m10"]}],
}
ON_VARIANT = {
    "systems": "variant",
    "variant": "variant",
    "starts": "screening",
    "n": 3,
    "singles": 2,
    "cells": [{"method": "search", "strengths": TAUS, "settings": STEPS, "names": ["l-sample-m2"]}],
}
PANEL = {
    "augmented": {**BRIEF, "architecture": "grid_cnn", "augment": True},
    "l2at": {**BRIEF, "architecture": "grid_cnn"},
    "features": {**BRIEF, "architecture": "grid_cnn"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Three hundred digits, their splits and the panel."""
    home = tmp_path_factory.mktemp("clarity")
    everything = pd.read_csv(ROOT / "data/mnist_5k.csv.gz", header=None)
    digits = everything.groupby(784).head(30)
    (home / "data").mkdir()
    digits.to_csv(home / "data/mnist_5k.csv.gz", header=False, index=False, compression="gzip")
    write_tensors(home / "autoencoders", "class-autoencoder", ClassAutoencoders(10).state_dict(), {"n_classes": 10})
    with pytest.MonkeyPatch.context() as monkeypatch:
        where = ("--data", home / "data", "--out", home / "splits")
        run(monkeypatch, split, "--sizes", json.dumps({"mnist": SIZES}), "--seed", 0, *where)
        run(monkeypatch, oracle_job, "oracles", "--splits", home / "splits", "--data", home / "data", "--recipes",
            json.dumps({"mnist": PANEL}), "--out", home / "oracles")  # fmt: skip
    return home


def chain(monkeypatch, home, out):
    """Train, explain and measure into `out`."""
    data = ("--splits", home / "splits", "--data", home / "data")
    recipes = {"mnist": VAE, "variant": {**VAE, "latent": 2, "classes": [4, 7, 9]}}
    run(monkeypatch, generator_job, "vae", *data, "--recipes", json.dumps(recipes), "--out", out / "vaes")
    run(monkeypatch, train, "--entries", json.dumps(ENTRIES), "--vaes", out / "vaes", *data, "--seed", 0,
        "--out", out / "systems")  # fmt: skip
    for name, group in (("grid", [PAIRS, COVERAGE]), ("variants", [ON_VARIANT])):
        run(monkeypatch, shards, "--group", json.dumps(group), "--systems", out / "systems", *data, "--seed", 0,
            "--out", out / f"batches/{name}-0.safetensors")  # fmt: skip
    diagnosed = {"mnist": {space: [1, recipe["members"]] for space, recipe in SPACES.items()}}
    run(monkeypatch, diagnostics, "--systems", out / "systems/mnist-0.safetensors", "--variants",
        out / "systems/variant-0.safetensors", "--diagnosed", json.dumps(diagnosed), "--n", 4, *data, "--out",
        out / "diagnostics")  # fmt: skip
    run(monkeypatch, measure, "--shards", *sorted((out / "batches").glob("*.safetensors")), "--systems",
        out / "systems", "--autoencoders", f"mnist={home}/autoencoders", *data, "--oracles", home / "oracles",
        "--out", out / "measured/0")  # fmt: skip
    run(monkeypatch, cells, "--measured", out / "measured/0", "--costs", *sorted((out / "batches").glob("*.cost.json")),
        "--diagnostics", out / "diagnostics", "--level", 0.5, "--changes", '{"mnist": [5.0, 20.0]}', "--out", out,
        "--cost", out / "cost.parquet")  # fmt: skip


def judged(monkeypatch, out):
    """Tables, of few metrics for the time they take, and verdicts of what `chain` measured."""
    for name, metrics in (("JUDGED", ["oracle_share"]), ("CHANGES", ["im1", "dz"]), ("LATENTS", ["bald"])):
        monkeypatch.setattr(tables, name, metrics)
    run(monkeypatch, tables, "--results", out, "--diagnostics", out / "diagnostics", "--level", 0.5, "--out",
        out / "tables")  # fmt: skip
    read = {name: out / f"{name}.parquet" for name in ("cells", "coverage", "factors", "plateau")}
    read |= {name: out / f"diagnostics/{name}.parquet" for name in ("accuracy", "gradients")}
    run(monkeypatch, verdicts, "--claims", ROOT / "papers/clarity/claims.yaml", "--rows", out / "rows.parquet",
        "--gate", out / "tables/oracle_gate.csv", "--tables", *(f"{name}={path}" for name, path in read.items()),
        "--protocol", '{"scale": "test"}', "--level", 0.5, "--out", out)  # fmt: skip


def lenient(gate):
    """An oracle gate that lets judges of any accuracy pass."""
    return lambda *arguments: gate(*arguments).assign(passes=True)


@pytest.fixture(scope="module")
def runs(home):
    """The same commands twice: two output folders. Judges this brief would pass no gate."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(cells, "MIN_RECONSTRUCTED", 0.0)
        monkeypatch.setattr(measure, "oracle_gate", lenient(measure.oracle_gate))
        monkeypatch.setattr(diagnostics, "MAX_COST", 1.0)
        for name in ("first", "second"):
            chain(monkeypatch, home, home / name)
    return home / "first", home / "second"


@pytest.fixture(scope="module")
def explained(runs):
    """All shards by start set and system."""
    found = [shard for path in sorted((runs[0] / "batches").glob("*.safetensors")) for shard in read_shards(path)]
    return {(shard.starts, shard.classifier): shard for shard in found}


@pytest.fixture
def table(home):
    return pd.read_parquet(home / "splits/mnist.parquet")


def test_the_same_commands_give_the_same_bytes(runs):
    first, second = runs
    names = {str(path.relative_to(first)) for path in first.rglob("*.*") if path.is_file()}
    bits = {name for name in names if not name.endswith(("cost.json", "cost.parquet"))}
    assert {f"{kind}/{name}-0.safetensors" for kind in ("vaes", "systems") for name in ("mnist", "variant")} <= bits
    measured = ("rows", "cells", "coverage", "factors", "plateau", "kid")
    gradients = ("accuracy", "gradients", "agreement", "convergence", "reconstruction_gate")
    assert {f"{name}.parquet" for name in measured} | {f"diagnostics/{name}.parquet" for name in gradients} <= bits
    assert {"batches/grid-0.safetensors", "batches/variants-0.safetensors", "tables/oracle_gate.csv"} <= bits
    assert len(names) - len(bits) == 3
    for name in sorted(bits):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


# training


def test_a_vae_knows_its_recipe_and_its_held_out_loss(runs, home, table):
    path = runs[0] / "vaes/mnist-0.safetensors"
    vae, facts = load_vae(path, (1, 28, 28)), read_tensors(path, "VAE")[0]["facts"]
    assert facts["recipe"] == {
        "architecture": "mlp", "latent": 4, "epochs": 2, "widths": [32], "likelihood": "bernoulli", "beta": 1.0,
        "sigma": None, "shift": 1, "batch_size": 128, "learning_rate": 1e-3,
    }  # fmt: skip
    held = datasets.load("mnist", table, "calibration", home / "data").images
    error = (vae.reconstruct(held) - held).square().mean().item()
    assert facts["held_out"]["mse"] == pytest.approx(error, rel=1e-5) and facts["held_out"]["kl"] > 0


def test_systems_are_those_of_the_config(runs, home, table):
    systems = load_systems(runs[0] / "systems/mnist-0.safetensors")
    sizes = {space: [m for m in (2, 3, 5, 10) if m <= fields["members"]] for space, fields in SPACES.items()}
    expected = {f"{space}.{k}" for space in SPACES for k in range(2)}
    expected |= {f"{space}-m{m}" for space, mine in sizes.items() for m in mine}
    expected |= {f"l-sample-m{m}-log" for m in sizes["l-sample"]}
    assert set(systems.temperatures) == expected and systems.seed == 0
    assert {space: len(ensemble) for space, ensemble in systems.ensembles.items()} == {
        space: fields["members"] for space, fields in SPACES.items()
    }
    fit = datasets.load("mnist", table, "systems", home / "data")
    vae = load_vae(runs[0] / "vaes/mnist-0.safetensors")
    mean = vae.encode(fit.images)[0]
    for label in range(10):
        assert torch.allclose(systems.class_means[label], mean[fit.labels == label].mean(0), atol=1e-5)
    assert all(torch.equal(value, systems.vae.state_dict()[key]) for key, value in vae.state_dict().items())


def test_a_variant_knows_only_its_classes(runs):
    systems = load_systems(runs[0] / "systems/variant-0.safetensors")
    known = [label for label in range(10) if systems.class_means[label].isfinite().all()]
    assert known == [4, 7, 9] and systems.vae.latent_shape == (2,)


def test_copies_are_the_images_and_shifted_ones():
    x = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    copies = train.augmented(x, 3, 1, 0)
    assert copies.shape == (3, 5, 1, 28, 28) and torch.equal(copies[0], x)
    for copy in copies[1:].flatten(0, 1):
        assert any(
            torch.equal(copy[:, 1:-1, 1:-1], image[:, 1 + dy : 27 + dy, 1 + dx : 27 + dx])
            for image in x for dy in (-1, 0, 1) for dx in (-1, 0, 1)
        )  # fmt: skip
    assert torch.equal(train.augmented(x, 1, 2, 0), x[None])


# shards


def test_every_cell_was_explained(explained):
    grid = [f"{space}{end}" for space in GRID["spaces"] for end in (".0", ".1", "-m5")]
    assert set(explained) == {
        *(("pairs", name) for name in [*grid, "l-sample-m10", "schut.0"]),
        ("coverage", "l-sample-m10"),
        ("screening", "variant:l-sample-m2"),
    }
    searched = {"direction", "search", "search/lambda"}
    assert all(set(explained["pairs", name].batches) == searched for name in grid if name != "p.0")
    baselines = {"revise-plain", "revise-plain/tuned", "revise-adam", "latent-ascent", "pixel-ascent"}
    assert set(explained["pairs", "p.0"].batches) == searched | baselines
    assert set(explained["pairs", "schut.0"].batches) == {"schut"}
    controls = {"class-mean-shift", "random-latent", "reconstruction"}
    anchors = {"identity", "random", "class-mean", "nearest-real"}
    assert set(explained["pairs", "l-sample-m10"].batches) == {"search"} | controls | anchors


def test_starts_and_targets_are_those_of_the_split(explained, home, table):
    ids = datasets.load("mnist", table, "pairs", home / "data").ids
    spans = {"pairs": slice(0, 4), "coverage": slice(4, 10), "screening": slice(0, 3)}
    targets = table.set_index("id")["target"]
    for (starts, _), shard in explained.items():
        assert shard.ids == ids[spans[starts]] and shard.target.tolist() == targets[list(shard.ids)].tolist()
        assert shard.seed == 0 and (shard.source != shard.target).all() and not shard.interventions


def test_shards_say_what_the_system_sees(explained, runs, home, table):
    pairs = datasets.load("mnist", table, "pairs", home / "data")
    systems = load_systems(runs[0] / "systems/mnist-0.safetensors")
    for name in ("pr-m5", "l-sample-m10", "p.0"):
        seen = systems.system(name)(pairs.images).argmax(1)
        shard = explained["pairs", name]
        assert torch.equal(shard.source_prediction, seen[:4])
        assert shard.accuracy == pytest.approx((seen == pairs.labels).float().mean().item())


def test_batches_keep_the_contract(explained):
    for (_, name), shard in explained.items():
        n = len(shard.ids)
        for method, batch in shard.batches.items():
            assert set(batch.status.flat) <= set(STATUSES) and batch.images.shape[:2] == (n, len(batch.strengths))
            assert batch.images.min() >= 0 and batch.images.max() <= 1, (name, method)
            latent = method not in ("schut", "pixel-ascent", "identity", "random", "class-mean", "nearest-real")
            assert (batch.reference is not None) == (batch.latent_shift is not None) == latent
        for method in {"direction", "class-mean-shift", "random-latent"} & set(shard.batches):
            shift = shard.batches[method].latent_shift.norm(dim=2)
            assert torch.allclose(shift, torch.tensor([[1.0, 2.0]]).expand(n, 2), atol=1e-4)


def test_traces_are_the_length_of_the_way(explained):
    for shard in explained.values():
        assert set(shard.traces) == {method for method in shard.batches if method.startswith("search")}
        for method, way in shard.traces.items():
            end = shard.batches[method].latent_shift[:, -1].norm(dim=1)
            assert way.shape == (len(shard.ids), 1, 1) and (way[:, 0, 0] >= end - 1e-4).all()


def test_costs_stand_beside_the_shards(runs, explained):
    cost = json.loads((runs[0] / "batches/grid-0.cost.json").read_text())
    assert cost["seed"] == 0 and cost["commit"]
    assert len(cost["cells"]) == 12 * 3 + 5 + 1 + 1 + 1  # the grid, baselines of p.0, schut, Clarity twice
    for cell in cost["cells"]:
        batch = explained[cell["starts"], cell["classifier"]].batches[cell["method"]]
        assert cell["evaluations"] == batch.forward[:, -1].sum() > 0 and cell["seconds"] > 0
        assert cell["pass_seconds"] > 0
    table = pd.read_parquet(runs[0] / "cost.parquet")
    assert np.allclose(table["overhead"], table["seconds"] / table["evaluations"] / table["pass_seconds"])


# diagnostics and rows


def test_diagnostics_cover_every_cell(runs):
    accuracy, gradients, agreement, convergence, gate = (
        pd.read_parquet(runs[0] / f"diagnostics/{name}.parquet")
        for name in ("accuracy", "gradients", "agreement", "convergence", "reconstruction_gate")
    )
    cells = {(space, m) for space, fields in SPACES.items() for m in (1, fields["members"])}
    latent = {(space, m) for space, m in cells if space != "schut"}  # which searches pixels
    assert set(zip(accuracy["space"], accuracy["m"], strict=True)) == cells and len(accuracy) == 50 * len(cells)
    assert set(zip(gradients["space"], gradients["m"], strict=True)) == latent and len(gradients) == 4 * len(latent)
    assert set(zip(agreement["space"], agreement["m"], strict=True)) == {(s, m) for s, m in latent if m > 1}
    assert convergence.groupby("space")["size"].apply(list).to_dict() == {
        "p": [1, 2], "pr": [1, 2], "l-mean": [1, 2], "l-sample": [1, 2, 3, 5]
    }  # fmt: skip
    single = accuracy[(accuracy["space"] == "p") & (accuracy["m"] == 1)]
    by_vae = gate.set_index("vae")
    assert set(by_vae.index) == {"", "variant"} and by_vae.loc["", "correct"] == pytest.approx(single["correct"].mean())
    assert by_vae.loc["variant", "correct"] == pytest.approx(by_vae.loc["", "correct"])  # the same images and readers
    assert set(single["correct"].unique()) <= {0, 0.5, 1}  # of two members
    ensembles = gradients[gradients["m"] > 1]  # means over single members are no products
    assert np.allclose(ensembles["grad_p"], ensembles["grad_log_p"] * np.exp(ensembles["log_p"]), rtol=1e-4)


def test_rows_and_cells_are_complete(runs, explained):
    rows, found = (pd.read_parquet(runs[0] / f"{name}.parquet") for name in ("rows", "cells"))
    assert list(rows.columns) == list(COLUMNS)
    strengths = sum(len(s.ids) * len(b.strengths) for s in explained.values() for b in s.batches.values())
    assert len(rows) == strengths
    assert not rows.duplicated(KEY).any() and not found.duplicated(cells.KEYS).any()
    single = rows[(rows["method"] == "search") & rows["classifier"].isin(["p.0", "p.1"])]
    mean = single.groupby(["image", "strength"])["confidence"].mean()
    cell = found[(found["space"] == "p") & (found["m"] == 1) & (found["method"] == "search")]
    assert np.allclose(cell.set_index(["image", "strength"])["confidence"].sort_index(), mean.sort_index())
    ended = found[(found["method"] == "search") & (found["space"] != "interaction")]
    assert ended["straightness"].dropna().between(0, 1 + 1e-4).all() and ended["straightness"].notna().any()
    assert (found.loc[found["method"] == "direction", "dz"].dropna().round(3) % 1 == 0).all()
    found = found[found["space"].isin(["p", "l-sample"])]
    assert found["bald"].dropna().min() > -1e-5 and (found.loc[found["m"] == 5, "bald"].max() > 1e-4)
    coverage = pd.read_parquet(runs[0] / "coverage.parquet")
    assert coverage.groupby(["classifier", "method"]).size().to_dict() == {
        ("l-sample-m10", "search"): 10, ("p.0", "search"): 4, ("p.0", "revise-plain/tuned"): 4,
    }  # fmt: skip
    assert coverage["shared"].sum() == 12


def test_bald_of_a_single_member_is_nothing(runs):
    table = pd.read_parquet(runs[0] / "cells.parquet")
    own = table["space"].isin(GRID["spaces"]) & ~table["method"].str.endswith("/change")
    single = table.loc[own & (table["m"] == 1), "bald"].dropna()
    assert len(single) and single.abs().max() < 1e-5


def test_every_claim_finds_its_tables_and_nothing_is_proven_by_four_images(runs, monkeypatch):
    out = runs[0]
    judged(monkeypatch, out)
    report = json.loads((out / "claims.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert set(report["claims"]) == {f"C{k}" for k in range(1, 9)}
    assert all(claim["verdict"] != "supported" for claim in report["claims"].values())
    assert all(claim["note"] for claim in report["claims"].values() if claim["verdict"] == "not tested")
    assert report["protocol"]["pairs"] == 4 and report["protocol"]["seeds"] == 1
    grid, baselines, gradients = (
        pd.read_csv(out / f"tables/{name}.csv") for name in ("rt1-grid", "rt2-baselines", "rt3-gradients")
    )
    assert {"direction", "search", "class-mean-shift"} <= set(grid["method"]) and grid["kid"].notna().any()
    assert {"schut", "pixel-ascent", "nearest-real", "search"} <= set(baselines["method"])
    assert set(zip(gradients["space"], gradients["m"], strict=True)) >= {("p", 5), ("l-sample", 1), ("l-sample", 10)}


# errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": [{"method": "serach", "strengths": [0.5], "names": ["p.0"]}]}, "method 'serach' is unknown"),
        ({"cells": [{"method": "search", "strength": [0.5]}]}, "unexpected keyword argument 'strength'"),
        ({"cells": [{"method": "search", "strengths": [0.5], "names": ["p-m7"]}]}, "system 'p-m7' is unknown"),
        ({"cells": [{"method": "search", "strengths": [1.0], "names": ["p.0"]}]}, "τ = 1 is no confidence"),
        ({"systems": "gone"}, "gone-0.safetensors: not a systems file"),
    ],
)
def test_a_wrong_cell_is_one_line_and_writes_nothing(runs, home, tmp_path, monkeypatch, capsys, change, message):
    where = ("--systems", runs[0] / "systems", "--splits", home / "splits", "--data", home / "data", "--seed", 0)
    out = tmp_path / "s.safetensors"
    group = json.dumps([{**COVERAGE, **change}])
    assert message in failing(monkeypatch, capsys, shards, "--group", group, *where, "--out", out)
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_diverges_names_space_and_member(runs, home, tmp_path, monkeypatch, capsys):
    entry = {"mnist": {**ENTRY, "spaces": {"l-mean": {**LATENT, "members": 2, "learning_rate": 1e30}}}}
    said = failing(
        monkeypatch, capsys, train, "--entries", json.dumps(entry), "--vaes", runs[0] / "vaes", "--splits",
        home / "splits", "--data", home / "data", "--seed", 0, "--out", tmp_path,
    )  # fmt: skip
    assert "l-mean: member 0 diverged in epoch " in said and "lower `learning_rate` in config/" in said
    assert list(tmp_path.iterdir()) == []


def test_a_missing_vae_is_one_line(home, tmp_path, monkeypatch, capsys):
    said = failing(
        monkeypatch, capsys, train, "--entries", json.dumps(ENTRIES), "--vaes", tmp_path, "--splits", home / "splits",
        "--data", home / "data", "--seed", 0, "--out", tmp_path,
    )  # fmt: skip
    assert "mnist-0.safetensors: not a VAE file" in said


def test_a_wrong_recipe_of_a_vae_is_one_line(home, tmp_path, monkeypatch, capsys):
    recipes = json.dumps({"mnist": {**VAE, "layers": 3}})
    where = ("--splits", home / "splits", "--data", home / "data", "--out", tmp_path)
    said = failing(monkeypatch, capsys, generator_job, "vae", "--recipes", recipes, *where)
    assert "unexpected keyword argument 'layers'" in said and "fix it in config/" in said
