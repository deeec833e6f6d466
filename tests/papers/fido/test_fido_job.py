"""The whole chain on a few scenes with hardly trained nets: systems and in-fillers → shards → measures → verdicts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jobs import failing, run

from common import verdicts
from common.batches import read_shard, read_shards, write_shards
from common.claims import load_claims
from common.classifiers import train as oracle_job
from common.classifiers.checkpoints import load_checkpoint
from common.data import datasets, split
from common.explain import Streams
from common.generators import diffusion, train_infill
from common.results import COLUMNS, KEY
from common.scales import load_scale
from papers.fido import (
    cells,
    explain,
    figures,
    grids,
    likeness,
    measure,
    method,
    metrics,
    regions,
    shards,
    tables,
    train,
)
from papers.fido.fills import Fills
from papers.fido.names import cell_name, parse_name, title
from papers.fido.recipe import Recipe, sweep

# torchvision 0.29, which is pinned, announces that its JPEG codec will move
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

CLAIMS = Path(__file__).parents[3] / "papers/fido/claims.yaml"
SIZES = {"systems": 250, "calibration": 50, "oracles": 60, "tuning": 20, "pairs": 40}
WORLDS = ("scenes", "scenes-tied")
BRIEF = {"architecture": "strided_cnn", "epochs": 1, "batch_size": 32}
N, FEW = 10, 5
CLASSIFIERS = {
    "scenes": {"cnn": {**BRIEF, "epochs": 8}, "l2at": BRIEF, "residual": {**BRIEF, "architecture": "residual_cnn"}},
    "scenes-tied": {"cnn": BRIEF},
}
RECIPE = {
    "search": {"grid": 8, "steps": 6, "masks": 2, "lam": 0.005, "tau": 0.1, "learning_rate": 1.0, "warm_up": 1},
    "bbmp": {"lam": 0.025, "steps": 8},
    "area": 0.1,
}
RECIPES = json.dumps(dict.fromkeys(WORLDS, RECIPE))
SEARCHED = [
    *({"method": "ssr", "fill": fill} for fill in ("mean", "blur", "random", "local", "vae", "net")),
    {"method": "sdr", "fill": "mean"}, {"method": "sdr", "fill": "net"}, {"method": "bbmp", "fill": "blur"},
    {"method": "bbmp", "fill": "random"}, {"method": "bbmp", "fill": "net"},
    {"method": "bbmp", "fill": "net", "observed": 0.5},
]  # fmt: skip
BASELINES = [
    {"method": name} for name in ("max", "center", "box", "object", "random", "gradient", "rise", "extremal", "masker")
]
SWEPT = [
    *({"method": "ssr", "fill": "net", "lam": lam} for lam in (0.001, 0.01)),
    *({"method": "bbmp", "fill": fill, "lam": lam} for fill in ("blur", "random") for lam in (0.005, 0.05)),
    *({"method": "ssr", "fill": fill, "grid": grid} for fill in ("mean", "net") for grid in (4, 16)),
    {"method": "ssr", "fill": "mean"}, {"method": "ssr", "fill": "net"}, {"method": "ssr", "fill": "net", "draw": 1},
    {"method": "ssr", "fill": "net", "tv": 0.1},
]  # fmt: skip
MAIN = {
    "world": "scenes", "classifier": "cnn", "starts": "pairs", "n": N, "shares": [0.1, 0.2],
    "cells": [*SEARCHED, *BASELINES],
}  # fmt: skip
SWEEPS = {**MAIN, "starts": "sweeps", "n": FEW, "shares": [0.1], "cells": SWEPT}
CONTROL = {**MAIN, "n": FEW, "cells": [*SEARCHED[:2], *SEARCHED[5:8], *BASELINES[:2]]}
ENTRIES = [
    MAIN, SWEEPS, {**CONTROL, "world": "scenes-tied"}, {**CONTROL, "classifier": "l2at"},
    {**CONTROL, "classifier": "residual"},
]  # fmt: skip
SETTINGS = {
    "suppress": {"pairs": ["net", "mean", "background"]},
    "slow": {"repaint": ["ssr/net"]},
    "few": 2,
    "recover": {"scenes": ["mean", "local", "net", "vae", "road", "repaint"], "scenes-tied": ["local", "net"]},
}
FILLS = {"scenes-unet": "unet", "scenes-cvae": "cvae", "scenes-tied-unet": "unet"}
TABLES = ("rows", "maps", "suppression", "recovery", "likeness", "sweeps", "trends")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Splits, judges, in-fillers, a diffusion model, and the systems of one training seed."""
    home = tmp_path_factory.mktemp("fido")
    where = ("--splits", home / "splits")
    nets = {judge: {**BRIEF, "architecture": "grid_cnn"} for judge in ("augmented", "l2at", "features")}
    fills = {
        name: {"world": name.rpartition("-")[0], "architecture": kind, "steps": 40, "widths": [8, 16], "latent": 2}
        for name, kind in FILLS.items()
    }
    with pytest.MonkeyPatch.context() as monkeypatch:
        sizes = json.dumps(dict.fromkeys(WORLDS, SIZES))
        run(monkeypatch, split, "--sizes", sizes, "--seed", 0, "--out", home / "splits")
        run(monkeypatch, oracle_job, "oracles", *where, "--recipes", json.dumps({"scenes": nets}), "--out",
            home / "oracles")  # fmt: skip
        run(monkeypatch, train_infill, *where, "--recipes", json.dumps(fills), "--out", home / "infillers")
        run(monkeypatch, train, *where, "--recipes", json.dumps(CLASSIFIERS), "--maskers",
            json.dumps({"scenes": {"epochs": 1}}), "--seed", 0, "--out", home / "systems")  # fmt: skip
    images = datasets.load("scenes", pd.read_parquet(home / "splits/scenes.parquet"), "tuning", Path("data")).images
    untrained = diffusion.build(2 * images.mean(0) - 1, 2 * images.std(), (8, 8)).eval().requires_grad_(False)
    diffusion.save_diffusion(untrained, home / "infillers/scenes-diffusion.safetensors", {})
    return home


def explained(home, out, entries=ENTRIES):
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(monkeypatch, shards, "--entries", json.dumps(entries), "--recipes", RECIPES, "--systems", home / "systems",
            "--infillers", home / "infillers", "--splits", home / "splits", "--seed", 0, "--out", out)  # fmt: skip


def measured(home, batch, out):
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(monkeypatch, measure, "--shards", batch, "--settings", json.dumps(SETTINGS), "--systems", home / "systems",
            "--infillers", home / "infillers", "--splits", home / "splits", "--oracles", home / "oracles", "--panel",
            "scenes", "--out", out)  # fmt: skip


@pytest.fixture(scope="module")
def results(home):
    """Everything up to the verdicts."""
    batch, out = home / "batches/all-0.safetensors", home / "results"
    explained(home, batch)
    measured(home, batch, home / "measured/0")
    with pytest.MonkeyPatch.context() as monkeypatch:
        alike = home / "measured/likeness.parquet"
        run(monkeypatch, likeness, "--shards", batch, "--out", alike)
        run(monkeypatch, cells, "--measured", home / "measured/0", "--likeness", alike, "--costs",
            batch.with_suffix(".cost.json"), "--recipe", json.dumps(RECIPE), "--out", out, "--cost",
            home / "cost.parquet")  # fmt: skip
        extra = [f"{name}={out / name}.parquet" for name in TABLES[1:]]
        run(monkeypatch, verdicts, "--claims", CLAIMS, "--rows", out / "rows.parquet", "--tables", *extra, "--gate",
            out / "tables/oracle_gate.csv", "--protocol", "{}", "--level", 0.9, "--out", out)  # fmt: skip
        run(monkeypatch, tables, "--results", out, "--out", out / "tables")
    return out


def maps_of(results, method, **where):
    table = pd.read_parquet(results / "maps.parquet")
    for column, value in ({"world": "scenes", "classifier": "cnn", "starts": "pairs"} | where).items():
        table = table[table[column] == value]
    return table[table["method"] == method].sort_values("image").reset_index(drop=True)


def test_every_claim_is_tried_and_screening_supports_nothing(results):
    found = json.loads((results / "claims.json").read_text())["claims"]
    rules = load_claims(CLAIMS).claims
    assert set(found) == set(rules) and found["C13"]["verdict"] == "not tested"
    assert "supported" not in {claim["verdict"] for claim in found.values()}
    tests = pd.read_csv(results / "tables/tests.csv")
    assert len(tests) == sum(len(claim.tests) for claim in rules.values())
    # what this small run leaves out: judges and controls, and whatever a gate refuses
    assert tests["n"].max() == N


def test_shards_hold_maps_paths_and_what_they_cost(home, results):
    found = {
        (shard.world, shard.classifier, shard.starts): shard
        for shard in read_shards(home / "batches/all-0.safetensors")
    }
    assert len(found) == len(ENTRIES)
    main = found["scenes", "cnn", "pairs"]
    originals = datasets.load_ids("scenes", main.ids, Path("data"))
    for name, batch in main.batches.items():
        assert batch.saliency.shape == (N, 32, 32) and batch.images.shape == (N, 2, 3, 32, 32)
        assert batch.saliency.min() >= 0 and batch.images.min() >= 0 and batch.images.max() <= 1
        changed = ((batch.images - originals.images[:, None]).abs().sum(2) > 0).flatten(2).sum(2)
        assert (changed <= torch.tensor([102, 205])).all(), name
    assert (main.target != main.source).all()
    cost = json.loads((home / "batches/all-0.cost.json").read_text())["cells"]
    by_name = {(line["starts"], line["method"]): line for line in cost if line["world"] == "scenes"}
    assert by_name["pairs", "ssr/net"]["fill_seconds"] > 0 == by_name["pairs", "ssr/mean"]["fill_seconds"]
    spent = {
        line["method"]: line["evaluations"] for line in cost if line["starts"] == "pairs" and line["method"] != "max"
    }
    assert spent["ssr/net"] == FEW * 12 and "max" not in spent  # the last entry has FEW images
    assert len([line for line in cost if line["starts"] == "sweeps"]) == len(SWEPT)
    table = pd.read_parquet(home / "cost.parquet")
    assert (table["overhead"] > 0.3).all() and len(table) == len(cost)


def test_rows_are_the_long_table(results):
    rows = pd.read_parquet(results / "rows.parquet")
    assert list(rows) == list(COLUMNS) and not rows.duplicated(KEY).any()
    assert {"ssr/net", "max", "ssr/net/sweeps"} <= set(rows["method"])
    ok = rows[(rows["method"] == "max") & (rows["classifier"] == "cnn") & (rows["world"] == "scenes")]
    assert sorted(ok["strength"].unique()) == [0.1, 0.2] and set(ok["status"]) <= {"ok", "not_flipped", "skipped"}
    assert ((ok["status"] == "skipped") == (ok["stratum"] == "misclassified")).all()
    steps = rows.groupby("method")[["steps", "forward", "backward"]].max()
    assert steps.loc["ssr/net"].tolist() == [6, 12, 12] and steps.loc["bbmp/net"].tolist() == [8, 8, 8]
    assert steps.loc["rise"].tolist() == [0, 500, 0] and steps.loc["max"].tolist() == [0, 0, 0]


def test_the_saliency_metric_of_max_is_the_cross_entropy(home, results):
    table = maps_of(results, "max")
    classifier = load_checkpoint(home / "systems/scenes-cnn.safetensors")
    images = datasets.load_ids("scenes", tuple(table["image"]), Path("data"))
    with torch.no_grad():
        entropy = torch.nn.functional.cross_entropy(classifier(images.images), images.labels, reduction="none")
    np.testing.assert_allclose(table["metric"], entropy, atol=1e-4)
    assert (table["status"] == "full").all() and (table["area"] == 1).all()
    box = maps_of(results, "box")
    assert (box["overflow"] == 0).all() and (box["localisation"] == 0).all() and box["overflow_object"].mean() > 0.1
    assert (maps_of(results, "object")["overflow"] == 0).all() and (maps_of(results, "object")["pointing"] == 1).all()


def test_matched_areas_are_equal_and_statistics_of_theta_are_its_own(home, results):
    shard = next(
        s for s in read_shards(home / "batches/all-0.safetensors") if s.starts == "pairs" and s.classifier == "cnn"
    )
    table = maps_of(results, "sdr/net").set_index("image").loc[list(shard.ids)]
    theta = 1 - shard.batches["sdr/net"].saliency
    np.testing.assert_allclose(table["entropy"], metrics.entropy(theta), atol=1e-5)
    np.testing.assert_allclose(table["area"], (theta < 0.5).float().mean((1, 2)), atol=1e-6)
    for name in ("max", "gradient", "rise", "ssr/net"):
        assert maps_of(results, name)["overflow_matched"].between(0, 1).all()
    assert maps_of(results, "gradient")["area"].to_numpy() == pytest.approx(102 / 1024)
    assert table["expected"].notna().all() and maps_of(results, "rise")["expected"].isna().all()


def test_gaps_are_differences_per_image(results):
    gap, sdr, ssr = (maps_of(results, name) for name in ("gap/net", "sdr/net", "ssr/net"))
    np.testing.assert_allclose(gap["overflow_matched"], sdr["overflow_matched"] - ssr["overflow_matched"])


def test_suppression_under_every_judge(results):
    table = pd.read_parquet(results / "suppression.parquet")
    here = table[(table["world"] == "scenes") & (table["classifier"] == "cnn")]
    assert set(here["fill"]) == {"net", "mean", "background", "repaint"}
    assert set(here[here["fill"] == "repaint"]["method"]) == {"ssr/net"}
    assert here[here["fill"] == "repaint"]["image"].nunique() == 2
    assert here.loc[here["stratum"] == "misclassified", "pixels"].isna().all()
    wide = here[here["fill"] == "mean"].pivot(index=["method", "image"], columns="strength", values="pixels").dropna()
    assert (wide.diff(axis=1).iloc[:, 1:] >= 0).all(axis=None) and wide.to_numpy().max() <= 1024


def test_recovery_and_the_gate_of_the_in_fills(results):
    table = pd.read_parquet(results / "recovery.parquet")
    assert set(table["kind"]) == {"iid", "block"} and table["probability"].between(0, 1).all()
    assert table[table["method"] == "repaint"]["image"].nunique() == 2  # a slow one
    gate = pd.read_csv(results / "tables/infills.csv").set_index(["world", "classifier", "method"])
    own = gate.loc[("scenes", "cnn", "net")]
    local = gate.loc[("scenes", "cnn", "local")]
    nearer = own["error_iid"] < local["error_iid"] and own["error_block"] < local["error_block"]
    assert own["adequate"] == float(nearer and own["correct_original_iid"] - own["correct_iid"] <= 0.1)
    assert np.isnan(local["adequate"]) and own["n"] == N


def test_likeness_compares_draws_seeds_images_and_architectures(home, results):
    table = pd.read_parquet(results / "likeness.parquet")
    assert set(table["kind"]) == {"draws", "images", "architectures"}
    assert table["correlation"].between(-1, 1 + 1e-6).all() and table["image"].nunique() == FEW
    assert set(table[table["kind"] == "draws"]["method"]) == {"ssr/net"}
    first = read_shards(home / "batches/all-0.safetensors")
    main = next(shard for shard in first if shard.starts == "pairs" and shard.classifier == "cnn")
    turned = {name: replace(batch, saliency=1 - batch.saliency) for name, batch in main.batches.items()}
    again = likeness.likeness([*first, replace(main, seed=1), replace(main, seed=2, batches=turned)])
    seeds = again[(again["kind"] == "seeds") & (again["world"] == "scenes") & (again["method"] == "ssr/net")]
    assert len(seeds) == FEW and (seeds["seed"] == 0).all()
    np.testing.assert_allclose(seeds["correlation"], (1 - 1 - 1) / 3, atol=1e-5)  # one pair agrees, two are reversed


def test_trends_of_sweeps():
    image = {"world": "w", "starts": "sweeps", "classifier": "cnn", "seed": 0, "image": "a", "stratum": "correct"}
    rows = [
        {**image, "method": name, "overflow_object_matched": 0.1 * g, "area": 0.0}
        for name, g in {"ssr/mean/grid4": 4, "ssr/mean": 8, "ssr/mean/grid16": 16}.items()  # the recipe's grid is 8
    ]
    rows += [
        {**image, "method": f"ssr/net/lam{v:g}", "area": 0.05 / v, "overflow_object_matched": 0.0} for v in (0.1, 0.2)
    ]
    rows += [
        {**image, "method": f"bbmp/blur/lam{v:g}", "area": 0.2 / v, "overflow_object_matched": 0.0} for v in (0.1, 1.6)
    ]
    recipe = Recipe({**RECIPE["search"], "lam": 0.1}, RECIPE["bbmp"], 0.1)
    found = cells.trends(cells.sweeps(pd.DataFrame(rows), recipe), recipe)
    assert found.loc[found["trend"] == "grid", "slope"].item() == pytest.approx((1.6 - 0.4) / 2)
    # BBMP has FIDO's area of .5 between its λ of .1 (2.0) and 1.6 (.125)
    expected = np.exp(np.interp(0.5, [0.125, 2.0], np.log([1.6, 0.1]))) / 0.1
    line = found[found["trend"] == "lam"]
    assert line["ratio"].item() == pytest.approx(expected) and line["five_fold"].item() == float(2.5 <= expected <= 10)


def test_a_sweep_is_a_base_with_what_differs_in_one_setting():
    recipe = Recipe(RECIPE["search"], RECIPE["bbmp"], 0.1)
    names = [
        "ssr/net/lam0.01",
        "ssr/net/lam1e-05",
        "ssr/net",
        "ssr/net/draw1",
        "ssr/mean",
        "bbmp/blur/lam0.1",
        "bbmp/blur",
        "max",
    ]
    assert sweep(names, "lam", recipe) == {
        "bbmp/blur": ("bbmp/blur", 0.025), "bbmp/blur/lam0.1": ("bbmp/blur", 0.1),
        "ssr/net/lam1e-05": ("ssr/net", 1e-05), "ssr/net": ("ssr/net", 0.005), "ssr/net/lam0.01": ("ssr/net", 0.01),
    }  # fmt: skip
    assert sweep(names, "draw", recipe) == {"ssr/net": ("ssr/net", 0), "ssr/net/draw1": ("ssr/net", 1)}
    assert sweep(names, "tv", recipe) == {}


@given(
    st.sampled_from([("ssr", "net"), ("bbmp-sdr", "vae"), ("max", "")]),
    st.dictionaries(
        st.sampled_from(["lam", "grid", "tv", "observed", "draw"]), st.sampled_from([0, 3, 0.5, 1e-5, 2e7])
    ),
)
def test_a_name_is_read_back(cell, settings):
    assert parse_name(cell_name(*cell, **settings)) == (*cell, settings)


def test_the_lambda_of_an_area_is_the_middle_of_a_plateau_and_none_outside():
    areas = pd.Series([0.5, 0.1, 0.1, 0.1, 0.0], index=[0.001, 0.005, 0.02, 0.08, 0.1])
    assert cells.lam_at(areas, 0.1) == pytest.approx((0.005 * 0.02 * 0.08) ** (1 / 3))
    assert cells.lam_at(areas, 0.5) == pytest.approx(0.001)
    assert np.isnan(cells.lam_at(areas, 0.0)) and np.isnan(cells.lam_at(areas, 0.6))
    assert cells.lam_at(areas, 0.3) == pytest.approx((0.001 * 0.005) ** 0.5)  # half way down to the plateau's first λ
    assert cells.lam_at(areas, 0.05) == pytest.approx((0.08 * 0.1) ** 0.5)  # and from its last one


def test_table_one_has_the_papers_values_beside_ours(results):
    table = pd.read_csv(results / "tables/table1.csv").set_index("method")
    assert table.loc["ssr/net", "paper_imagenet_metric"] == -0.092 and np.isnan(
        table.loc["rise", "paper_imagenet_metric"]
    )
    assert table.loc["max", "paper_imagenet_localisation"] == 0.635
    assert set(tables.PAPER) <= set(table.index) and table["n"].unique().tolist() == [N]


def test_the_same_commands_give_the_same_bytes(home, results, tmp_path):
    few = [{**CONTROL, "cells": [*SEARCHED[4:6], SEARCHED[7], *BASELINES[5:]]}]
    explained(home, tmp_path / "again.safetensors", few)
    explained(home, tmp_path / "twice.safetensors", few)
    first, second = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("again", "twice"))
    assert first == second
    for name in ("one", "two"):
        measured(home, tmp_path / "again.safetensors", tmp_path / name)
    for table in ("rows", "maps", "suppression", "recovery"):
        assert (tmp_path / "one" / f"{table}.parquet").read_bytes() == (
            tmp_path / "two" / f"{table}.parquet"
        ).read_bytes()


def test_figures_are_drawn(home, results, tmp_path, monkeypatch):
    run(monkeypatch, figures, "--results", results, "--out", tmp_path)
    run(monkeypatch, grids, "--shards", home / "batches/all-0.safetensors", "--systems", home / "systems", "--splits",
        home / "splits", "--infillers", home / "infillers", "--recipe", json.dumps(RECIPE), "--out",
        tmp_path)  # fmt: skip
    drawn = {path.stem for path in tmp_path.glob("*.png")}
    assert drawn == {path.stem for path in tmp_path.glob("*.svg")} and len(drawn) == 16


def test_plots_survive_a_run_in_which_nothing_was_suppressed(results):
    nothing = pd.read_parquet(results / "suppression.parquet").assign(pixels=np.nan)
    for figure in (figures.suppression(nothing), figures.circularity(nothing)):
        figure.draw_without_rendering()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "ssr"}, "cells: ssr needs a `fill`"),
        ({"method": "max", "fill": "net"}, "cells: max takes no `fill`"),
        ({"method": "ssr", "fill": "road"}, "cells: in-fill 'road' is none for a search; choose one of mean, blur"),
        ({"method": "sssr", "fill": "net"}, "cells: method 'sssr' is unknown; choose one of ssr, sdr"),
        ({"method": "ssr", "fill": "net", "lamda": 1}, "cells: "),
    ],
)
def test_a_wrong_cell_is_one_line(home, monkeypatch, capsys, tmp_path, change, message):
    arguments = ("--entries", json.dumps([{**MAIN, "cells": [change]}]), "--recipes", RECIPES, "--systems",
                 home / "systems", "--infillers", home / "infillers", "--splits", home / "splits", "--seed", 0, "--out",
                 tmp_path / "x.safetensors")  # fmt: skip
    assert message in failing(monkeypatch, capsys, shards, *arguments)


def test_more_images_than_there_are_or_a_missing_in_filler_is_one_line(home, monkeypatch, capsys, tmp_path):
    def arguments(entry, infillers):
        return ("--entries", json.dumps([entry]), "--recipes", RECIPES, "--systems",
                home / "systems", "--infillers", infillers, "--splits", home / "splits", "--seed", 0, "--out",
                tmp_path / "x.safetensors")  # fmt: skip

    assert "pairs for n = 99" in failing(monkeypatch, capsys, shards, *arguments({**MAIN, "n": 99}, home / "infillers"))
    assert "scenes-unet.safetensors" in failing(
        monkeypatch, capsys, shards, *arguments({**MAIN, "cells": SEARCHED[5:6]}, tmp_path)
    )
    with pytest.raises(Exception, match="in-fill 'gan' is unknown"):
        Fills("scenes", torch.full((3,), 0.5), tmp_path)["gan"]


def test_a_saturated_classifier_and_one_without_a_span_are_counted(home, results):
    """p = 1 leaves log-odds finite; an image whose class no in-fill suppresses leaves its suppression empty."""
    images = datasets.load_ids("scenes", tuple(f"scene-{k:05d}" for k in range(3)), Path("data"))
    real = load_checkpoint(home / "systems/scenes-cnn.safetensors")

    class Saturated(torch.nn.Module):
        def forward(self, x):
            return 1000 * real(x)

    class Constant(torch.nn.Module):
        def forward(self, x):
            return torch.eye(5)[0].expand(len(x), 5) * 9

    rng = Streams(0, images.ids, (0, 0, 0))
    settings = method.Settings(grid=8, steps=5, masks=2)
    fill = Fills("scenes", torch.full((3,), 0.4), home / "infillers")
    for net in (Saturated(), Constant()):
        mask = explain.saliency(
            images.images,
            images.labels,
            classifier=net,
            rng=rng,
            infill=fill["mean"],
            objective="ssr",
            settings=settings,
        )
        assert mask.theta.isfinite().all()
    here = measure.Explained(images, Constant(), fill, 0)
    s = measure.deletion_scores(regions.ranks(mask.theta, rng), here, "mean", torch.tensor(measure.COUNTS))
    assert metrics.suppression_pixels(s, torch.tensor(measure.COUNTS), 0.1).isnan().all()


def test_empty_and_full_maps_have_a_status_and_are_counted(home, results):
    shard = next(
        s for s in read_shards(home / "batches/all-0.safetensors") if s.starts == "pairs" and s.classifier == "cnn"
    )
    batch = shard.batches["ssr/net"]
    shown = batch.saliency.clone()
    shown[0], shown[1] = 0.2, 0.9
    originals = datasets.load_ids("scenes", shard.ids, Path("data"))
    fills = Fills("scenes", torch.full((3,), 0.4), home / "infillers")
    here = measure.Explained(originals, load_checkpoint(home / "systems/scenes-cnn.safetensors"), fills, 0)
    values = measure.map_metrics("ssr/net", shown, regions.ranks(shown, here.rng), here)
    status = measure.statuses(replace(batch, saliency=shown), values)
    assert status[:2].tolist() == ["empty", "full"] and np.isnan(values["overflow"][0])
    full = metrics.saliency_metric(
        originals.images,
        torch.tensor([[0, 0, 32, 32]]).expand(N, 4),
        explain.class_score(here.classifier, originals.labels),
    )
    assert values["metric"][0] == pytest.approx(full[0].item(), abs=1e-5)  # no box is the whole image
    counted = pd.read_csv(results / "tables/map_statuses.csv")
    assert counted.filter(["ok", "empty", "full", "diverged"]).sum(axis=1).isin([N, FEW]).all()


def test_fills_of_a_known_background_are_that(home):
    ids = ("scene-00001", "scene-00002")
    images = datasets.load_ids("scenes", ids, Path("data"))
    fill = Fills("scenes", torch.full((3,), 0.4), home / "infillers")["background"]
    streams = method._at(Streams(0, ids, (0, 0)), 3)  # as a search asks
    clean = fill(images.images, torch.zeros(2, 2, 32, 32), streams)
    outside = (images.masks == 0)[:, None, None].expand_as(clean)
    torch.testing.assert_close(clean[outside], images.images[:, None].expand_as(clean)[outside])
    assert ((clean - images.images[:, None]).abs().sum(2)[:, 0][images.masks == 1] > 0).float().mean() > 0.9


def test_every_scale_parses():
    for scale in ("smoke", "cpu"):
        fido = load_scale(scale)["fido"]
        for entries in fido["groups"].values():
            for entry in entries:
                for cell in shards.parse_cells(entry["cells"]):
                    cell.settings(Recipe(**fido["recipes"][entry["world"]]))
                    assert title(cell.name)
        measure.Settings(**fido["measure"])


def test_a_shard_survives_its_file(home, tmp_path):
    shard = read_shards(home / "batches/all-0.safetensors")[1]
    write_shards([shard], tmp_path / "one.safetensors")
    same = read_shard(tmp_path / "one.safetensors")
    assert torch.equal(same.batches["ssr/net"].saliency, shard.batches["ssr/net"].saliency)
    assert regions.SALIENT == 0.5
