"""The whole chain on a few faces with hardly trained nets: generators → shards → measures → tables → verdicts; a method
that is one file and one entry, and methods that break the contract."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from jobs import failing, run

from common.batches import Shard, read_shards
from common.classifiers import train as classifier_job
from common.data import split
from common.errors import VceError
from common.explain import finish
from common.files import ROOT
from common.scales import load_scale
from comparison import cells, explain, figures, grids, measure, sanity, tables, train, verdicts
from comparison.entries import parse_entries

WORLD, SEED, N = "faces-smile", 0, 4
SIZES = {"systems": 120, "calibration": 40, "oracles": 60, "tuning": 20, "pairs": 40}
NET = {"architecture": "digit_cnn", "epochs": 6, "batch_size": 20, "learning_rate": 5e-3}
VAE = {"images": 60, "architecture": "conv", "latent": 1, "epochs": 1, "widths": [8, 8], "likelihood": "gaussian"}
TOY = '''"""Blends towards the mean image of the target class."""

import torch

from common.anchors import towards
from common.explain import finish
from common.files import ROOT


def explainer(bench, sharpness):
    means = torch.stack([bench.training.images[bench.training.labels == k].mean(0) for k in (0, 1)])

    def explain(images, source, target, *, classifier, rng, strengths, callback=None):
        paths = towards(images, means[target], [sharpness * strength for strength in strengths])
        return finish(images, paths, target, classifier=classifier, strengths=strengths)

    return explain
'''
BROKEN = '''"""Breaks the contract as its setting says."""

from dataclasses import replace

import torch

from common.explain import finish
from common.files import ROOT


def explainer(bench, how):
    def explain(images, source, target, *, classifier, rng, strengths, callback=None):
        paths = images[:, None].repeat(1, len(strengths), 1, 1, 1)
        if how == "range":
            paths = paths + 1
        if how == "shape":
            paths = paths[..., :-1]
            images = images[..., :-1]
        if how == "error":
            raise RuntimeError("no such" + chr(10) + "thing")
        batch = finish(images, paths, target, classifier=classifier, strengths=strengths)
        if how == "nan":
            batch.images[0, 0, 0, 0, 0] = torch.nan
        if how == "distance":
            batch = replace(batch, distance=batch.distance + 0.1)
        if how == "confidence":
            batch = replace(batch, log_confidence=batch.log_confidence * 0)
        if how == "status":
            batch.status[0, 0] = "fine"
        if how == "strengths":
            batch = replace(batch, strengths=(0.25,))
        if how == "reference":
            batch = replace(batch, reference=images[:, :1])
        if how == "saliency":
            batch = replace(batch, saliency=images.mean(1) / 0)
        return batch if how != "type" else paths

    return explain
'''
SPOILER = '''"""Spoils whatever it can lay its hands on, and answers as it should."""

import torch

from common.explain import finish
from common.files import ROOT


def explainer(bench):
    def explain(images, source, target, *, classifier, rng, strengths, callback=None):
        batch = finish(images.clone(), images[:, None].clone(), target, classifier=classifier, strengths=strengths)
        bench.training.images.zero_()
        for thing in (images, target, *classifier.parameters()):
            thing.data.zero_()
        return batch

    return explain
'''
WAYS = ("range", "shape", "nan", "type", "error", "distance", "confidence", "status")
WAYS += ("strengths", "reference", "saliency")
STRENGTHS = {
    "pixel-ascent": [0.4, 3.2], "svce": [0.8, 6.4], "disc": [0.5, 0.9], "clarity": [0.5, 0.9],
    "clarity-to-f": [0.5, 0.9], "contrastive": [0.5, 1.0], "fido": [0.05, 0.1, 0.2, 0.3, 0.4],
}  # fmt: skip
SETTINGS = {
    "pixel-ascent": {"iterations": 4},
    "svce": {"p": 1.5, "iterations": 4},
    "disc": {"fit": 4, "steer": 4, "ramp": 1.2, "functional": {WORLD: 0.2}},
    "clarity-to-f": {"distilled": True},
    "fido": {"painted": [WORLD], "grid": 8, "steps": 2, "masks": 2},
}
PREPARE = {
    "fido": {"architecture": "unet", "steps": 2},
    "clarity": {"members": 2, "epochs": 1, "batch_size": 32, "learning_rate": 1e-3, "between": 60},
    "contrastive": {
        "components": 1, "annotator_epochs": 1,
        "shift": {"steps": 4, "batch_size": 8, "hidden": 16, "learning_rate": 1e-3, "sparse": True},
    },
}  # fmt: skip


def methods():
    """The methods of the committed config at the least size; the toy beside them, one entry."""
    found = {}
    for name, method in load_scale("cpu")["comparison"]["methods"].items():
        mine = {**method, "strengths": {WORLD: STRENGTHS[name]}}
        mine |= {"settings": SETTINGS[name]} if "settings" in method else {}
        found[name] = mine | ({"prepare": {WORLD: PREPARE[name]}} if "prepare" in method else {})
    toy = {"module": "toy_method", "strengths": {WORLD: [0.5, 1.0]}, "settings": {"sharpness": 1.0}}
    broken = {
        f"broken-{how}": {"module": "broken_method", "strengths": {WORLD: [1.0]}, "settings": {"how": how}}
        for how in WAYS
    }
    spoiler = {"module": "spoiling_method", "strengths": {WORLD: [1.0]}}
    return {"pixel-ascent": found.pop("pixel-ascent"), "spoiler": spoiler} | found | {"toy": toy} | broken


def world(kinds, runner_up=()):
    sizes = {"n": dict.fromkeys(kinds, N), "runner_up": dict.fromkeys(runner_up, N - 1)}
    facts = {"classifiers": kinds, "random_radii": [0.4, 3.2], **sizes}
    return json.dumps({WORLD: facts})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a whole run, by the jobs of the pipeline."""
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "toy_method.py").write_text(TOY)
    (folder / "broken_method.py").write_text(BROKEN)
    (folder / "spoiling_method.py").write_text(SPOILER)
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(folder)
    nets = json.dumps({WORLD: {"l2at": NET, "standard": NET | {"epochs": 3}}})
    judges = json.dumps({WORLD: dict.fromkeys(("augmented", "l2at", "features"), NET | {"architecture": "grid_cnn"})})
    every, everything = json.dumps(methods()), ("l2at", "standard")
    where = [f"{WORLD}={folder / 'nets' / WORLD}"]
    shared = ["--splits", folder / "splits", "--seed", SEED]
    run(patch, split, "--sizes", json.dumps({WORLD: SIZES}), "--seed", 0, "--out", folder / "splits")
    run(patch, classifier_job, "classifiers", "--recipes", nets, "--out", folder / "nets", *shared)
    run(patch, classifier_job, "oracles", "--recipes", judges, "--out", folder / "judges", *shared)
    prepared = folder / "prepared" / f"{WORLD}-{SEED}"
    run(
        patch, train, "--worlds", json.dumps({WORLD: {"classifiers": everything, "vae": VAE}}), "--methods", every,
        "--checkpoints", *where, "--out", folder / "prepared", *shared,
    )  # fmt: skip
    for job, names in {"first": ["pixel-ascent", "spoiler", "svce"], "second": [*methods()][3:]}.items():
        mine = json.dumps({name: methods()[name] for name in names})
        anchors = ["--anchors"] if job == "first" else []
        run(
            patch, explain, "--methods", mine, "--worlds", world(everything), *anchors, "--checkpoints", *where,
            "--prepared", folder / "prepared", "--out", folder / f"{job}.safetensors", *shared,
        )  # fmt: skip
    run(
        patch, measure, "--shards", folder / "first.safetensors", folder / "second.safetensors", "--checkpoints",
        *where, "--oracles", folder / "judges", "--untargeted", "fido", "--level", 0.9, "--out", folder / "measured",
        *shared,
    )  # fmt: skip
    # judges, nets and generators of so few images pass no gate: here they all do
    gate = pd.read_parquet(folder / "measured" / "gate.parquet")
    gate.assign(passes=True, reliance_label=1.0).to_parquet(folder / "measured" / "gate.parquet")
    drawn = pd.read_parquet(folder / "measured" / "drawings.parquet")
    drawn.assign(reconstructed=1.0).to_parquet(folder / "measured" / "drawings.parquet")
    results = folder / "results"
    costs = [folder / f"{job}.cost.json" for job in ("first", "second")]
    run(
        patch, cells, "--measured", folder / "measured", "--costs", *costs, "--level", 0.9, "--out", results, "--cost",
        folder / "cost.parquet",
    )  # fmt: skip
    run(
        patch, sanity, "--world", WORLD, "--kind", "l2at", "--n", 3, "--methods", every, "--shards",
        folder / "first.safetensors", folder / "second.safetensors", "--checkpoints", folder / "nets" / WORLD,
        "--prepared", prepared, "--level", 0.9, "--folder", folder / "sanity", "--out",
        results / "sanity.parquet", *shared,
    )  # fmt: skip
    run(patch, tables, "--results", results, "--methods", every, "--out", results / "tables")
    run(
        patch, verdicts, "--claims", "comparison/claims.yaml", "--results", results, "--protocol", '{"scale": "test"}',
        "--level", 0.9,
    )  # fmt: skip
    yield folder
    patch.undo()


def again(patch, made, names, worlds, out, *more):
    """Explain with some methods and the nets of the whole run; the shards."""
    mine = json.dumps({name: methods()[name] for name in names})
    run(
        patch, explain, "--methods", mine, "--worlds", worlds, *more, "--checkpoints",
        f"{WORLD}={made / 'nets' / WORLD}", "--prepared", made / "prepared", "--splits", made / "splits",
        "--seed", SEED, "--out", out,
    )  # fmt: skip
    return read_shards(out)


@pytest.fixture(scope="module")
def outcomes(made):
    return pd.read_csv(made / "results" / "tables" / "outcomes.csv").set_index(["classifier", "method"])


def test_a_method_that_is_one_file_and_one_entry_stands_in_every_table(made, outcomes):
    for kind in ("l2at", "standard"):
        assert outcomes.loc[(kind, "toy"), "n"] == N
        assert np.isfinite(
            outcomes.loc[(kind, "toy"), ["effect", "honest", "precision", "reached"]].astype(float)
        ).all()
    for name in ("areas", "reliance", "causes", "methods", "strengths", "statuses"):
        assert "toy" in set(pd.read_csv(made / "results" / "tables" / f"{name}.csv")["method"]), name


def test_every_method_and_anchor_is_measured_and_five_methods_are_there(outcomes):
    expected = {*STRENGTHS, "toy", "spoiler", "identity", "random", "class-mean", "nearest-real", "twin"}
    assert {method for _, method in outcomes.index} == expected


def test_methods_that_break_the_contract_are_refused_with_a_reason_and_the_rest_is_built(made, outcomes):
    refused = pd.read_csv(made / "results" / "tables" / "refused.csv").set_index("cell")["reason"]
    assert len(refused) == 2 * len(WAYS) and not any("broken" in method for _, method in outcomes.index)
    reasons = {how: refused[f"{WORLD}/l2at/pairs/broken-{how}"] for how in WAYS}
    assert "outside of [0, 1]" in reasons["range"] and "no numbers" in reasons["nan"]
    assert reasons["error"] == "RuntimeError: no such thing" and "none of ok" in reasons["status"]
    assert "a distance that is 0.1 off" in reasons["distance"] and "a confidence" in reasons["confidence"]
    assert "returned strengths (0.25,), asked for were [1.0]" in reasons["strengths"].replace("(1.0,)", "[1.0]")
    assert "returned a reference of shape" in reasons["reference"] and "a saliency" in reasons["saliency"]
    assert "shape" in reasons["shape"] and "not a CounterfactualBatch" in reasons["type"]


def test_cells_that_are_not_what_others_are_say_so(outcomes):
    assert "not applicable" in outcomes.loc[("l2at", "fido"), "mark"]
    assert "own classifier" in outcomes.loc[("l2at", "clarity"), "mark"]


def test_trivial_anchors_are_what_they_are(outcomes):
    """Doing nothing gains nothing and convinces nobody; the mask of the twin holds all that the twin changes."""
    nothing = outcomes.loc[("l2at", "identity")]
    assert nothing["effect"] == 0 and nothing["progress_label"] == 0
    assert outcomes.loc[("l2at", "twin"), "precision"] == pytest.approx(1)
    assert outcomes["area"].nunique() == 1


def test_an_edit_leaves_as_many_pixels_as_its_area_allows(made):
    cuts = pd.read_parquet(made / "results" / "cuts.parquet")
    assert set(cuts["area"].round(6)) == set(measure.AREAS)
    nothing = cuts[cuts["method"] == "identity"]
    np.testing.assert_allclose(nothing[["drop_f", "gain_f", "drop"]], 0, atol=1e-6)


def test_the_effect_of_a_path_is_read_off_its_points(made):
    """Recomputed for one path by hand: D is the median change of the twins, failed images gain nothing."""
    points, paths = (pd.read_parquet(made / "results" / f"{name}.parquet") for name in ("points", "paths"))
    rows = pd.read_parquet(made / "results" / "rows.parquet")
    twin = rows[(rows["method"] == "twin") & (rows["strength"] == 1)]
    D = twin["distance"].median()
    assert paths["horizon"].unique() == pytest.approx([D])
    here = {"classifier": "l2at", "method": "svce", "image": paths["image"].iloc[0]}
    mine = points.loc[(points[list(here)] == pd.Series(here)).all(axis=1)].sort_values("distance")
    gain = mine[["gain_augmented", "gain_svm", "gain_l2at"]].mean(axis=1)
    grid = (np.arange(100_000) + 0.5) / 100_000 * D
    expected = np.interp(grid, [0, *mine["distance"]], [0, *gain]).mean()
    found = paths.loc[(paths[list(here)] == pd.Series(here)).all(axis=1), "effect"]
    assert found.to_numpy() == pytest.approx([expected], abs=1e-4)


def test_nets_that_know_nothing_are_explained_by_every_method(made):
    table = pd.read_csv(made / "results" / "tables" / "sanity.csv")
    expected = {*STRENGTHS, "toy", "spoiler"}
    for how in ("f", *sanity.KNOWING_NOTHING):
        assert set(table.loc[table["how"] == how, "method"]) == expected
    rows = pd.read_parquet(made / "results" / "sanity.parquet")
    blind = rows[rows["method"] == "toy"].pivot(index="image", columns="how", values="progress")
    np.testing.assert_allclose(blind["f"], blind["untrained"], atol=1e-5)  # it never looks at f: nothing drops
    assert table.loc[(table["method"] == "toy") & (table["how"] == "untrained"), "drop"].to_numpy() == pytest.approx(0)


def test_every_rule_has_a_verdict_and_judges_what_exists(made):
    report = json.loads((made / "results" / "claims.json").read_text())
    assert len(report["claims"]) == 20 and report["protocol"]["pairs"] == N
    found = {name: claim["verdict"] for name, claim in report["claims"].items()}
    assert {found[f"C{k}"] for k in range(11, 21)} == {"not tested"}  # no digits here
    assert all(claim["n"] == N for name, claim in report["claims"].items() if int(name[1:]) <= 10 and claim["n"])


def test_the_table_of_tests_says_what_the_claims_say(made):
    shown = pd.read_csv(made / "results" / "tables" / "tests.csv").set_index("claim")
    report = json.loads((made / "results" / "claims.json").read_text())["claims"]
    assert {"p", "adjusted", "unadjusted"} <= set(shown)
    for name, claim in report.items():
        strong = shown.loc[name, "verdict"] in ("contradicted", "inconclusive", "not tested")
        assert claim["verdict"] == (shown.loc[name, "verdict"] if strong else "partly")  # few images: at most partly


def test_tables_of_different_runs_are_refused(made, monkeypatch, capsys, tmp_path):
    """Rows of one run beside paths of another, smaller one."""
    shutil.copytree(made / "results", tmp_path / "results")
    path = tmp_path / "results" / "paths.parquet"
    paths = pd.read_parquet(path)
    paths[paths["image"] != paths["image"].iloc[0]].to_parquet(path)
    before = (tmp_path / "results" / "claims.json").read_bytes()
    said = failing(
        monkeypatch, capsys, verdicts, "--claims", "comparison/claims.yaml", "--results", tmp_path / "results",
        "--protocol", "{}", "--level", 0.9,
    )  # fmt: skip
    assert "they are of different runs; delete both" in said
    assert (tmp_path / "results" / "claims.json").read_bytes() == before


def test_what_no_classifier_relies_on_is_in_no_targeted_table(made, monkeypatch, tmp_path):
    """And the figures say so instead of failing."""
    shutil.copytree(made / "results", tmp_path / "results")
    path = tmp_path / "results" / "paths.parquet"
    pd.read_parquet(path).assign(reliance=0.5).to_parquet(path)
    every = json.dumps(methods())
    run(
        monkeypatch,
        tables,
        "--results",
        tmp_path / "results",
        "--methods",
        every,
        "--out",
        tmp_path / "results" / "tables",
    )
    assert pd.read_csv(tmp_path / "results" / "tables" / "outcomes.csv").empty
    run(monkeypatch, figures, "--results", tmp_path / "results", "--out", tmp_path)
    assert (tmp_path / "outcomes.png").is_file()


def test_figures_are_drawn(made, monkeypatch, tmp_path):
    run(monkeypatch, figures, "--results", made / "results", "--out", tmp_path)
    shards = [made / f"{job}.safetensors" for job in ("first", "second")]
    run(monkeypatch, grids, "--shards", *shards, "--level", 0.9, "--out", tmp_path / "side_by_side.png")
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"{n}.png" for n in ("outcomes", "paths", "areas", "audit", "side_by_side")
    }


def test_the_same_job_gives_the_same_bits(made, monkeypatch, tmp_path):
    for name in ("a", "b"):
        again(monkeypatch, made, ["svce"], world(["l2at"]), tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_runner_up_is_asked_of_methods_that_have_a_target_and_kept_apart(made, monkeypatch, tmp_path):
    """On faces it is the other class, so that the untargeted table has both kinds of targets; of nothing else is it a
    part."""
    both, worlds = tmp_path / "both.safetensors", world(["l2at"], ["l2at"])
    drawn, runner_up = again(monkeypatch, made, ["pixel-ascent", "fido"], worlds, both, "--anchors")
    assert (drawn.starts, runner_up.starts) == (explain.STARTS, explain.RUNNER_UP)
    assert runner_up.ids == drawn.ids[: N - 1] and torch.equal(runner_up.target, 1 - runner_up.source)
    assert set(drawn.batches) - set(runner_up.batches) == {"fido"} and "twin" in runner_up.batches
    run(
        monkeypatch, measure, "--shards", both, "--checkpoints",
        f"{WORLD}={made / 'nets' / WORLD}", "--oracles", made / "judges", "--untargeted", "fido", "--level", 0.9,
        "--out", tmp_path / "measured", "--splits", made / "splits", "--seed", SEED,
    )  # fmt: skip
    found = {name: pd.read_parquet(tmp_path / "measured" / f"{name}.parquet") for name in measure.TABLES}
    assert len(found["rows"][found["rows"]["method"] == "fido"]) == N * len(STRENGTHS["fido"])
    assert len(found["finals"][found["finals"]["method"] == "pixel-ascent"]) == N
    counts = found["cuts"].groupby("method").size() / len(measure.AREAS)
    assert counts["fido"] == N and counts["pixel-ascent"] == 2 * N - 1


def test_of_many_classes_only_the_runner_up_is_cut():
    """Towards a target that was drawn a method may be behind for its target's sake."""
    x, f = torch.rand(4, 1, 28, 28), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    batch = finish(x, x[:, None] / 2, torch.zeros(4).long(), classifier=f, strengths=[0.2])
    fields = {
        "world": "mnist", "classifier": "l2at", "seed": 0, "ids": tuple("abcd"), "source": torch.ones(4).long(),
        "target": torch.zeros(4).long(), "accuracy": 1.0, "source_prediction": torch.ones(4).long(),
        "interventions": {}, "traces": {}, "batches": {"maps": batch, "mine": batch},
    }  # fmt: skip
    for starts, expected in {explain.STARTS: {"maps"}, explain.RUNNER_UP: {"maps", "mine"}}.items():
        shard = Shard(starts=starts, **fields)
        found = measure.cuts(shard, measure.Readers(shard, {"f": f}, x), x, 0.9, ["maps"])
        assert set(found["method"]) == expected


def test_what_a_method_does_to_its_arguments_is_nobody_elses(made, monkeypatch, tmp_path):
    """After a method that zeroes images, targets, training images and weights, the next one answers the same bits."""
    (expected,) = again(monkeypatch, made, ["svce"], world(["l2at"]), tmp_path / "alone.safetensors")
    found, _ = read_shards(made / "first.safetensors")
    assert "spoiler" in found.batches
    assert torch.equal(found.batches["svce"].images, expected.batches["svce"].images)
    assert torch.equal(found.target, expected.target) and found.accuracy == expected.accuracy


def test_shards_that_do_not_belong_together_are_refused(made):
    (shard, _) = read_shards(made / "first.safetensors")
    with pytest.raises(VceError, match="pixel-ascent, random, spoiler, svce, twin twice"):
        measure.merged([shard, shard])


def test_too_few_pairs_are_one_line(made, monkeypatch, capsys):
    said = failing(
        monkeypatch, capsys, explain, "--methods", "{}", "--worlds",
        world(["l2at"]).replace(f'"l2at": {N}', '"l2at": 1000'),
        "--checkpoints", f"{WORLD}={made / 'nets' / WORLD}", "--prepared", made, "--splits", made / "splits",
        "--seed", 0, "--out", made / "none.safetensors",
    )  # fmt: skip
    assert "40 pairs for n = 1000" in said and not (made / "none.safetensors").exists()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"module": "no_such_module", "strengths": {}}, "mend `module`"),
        ({"module": "json", "strengths": {}}, "has no explainer"),
    ],
)
def test_a_method_that_is_not_there_is_one_line(fields, says):
    (entry,) = parse_entries({"mine": fields})
    with pytest.raises(VceError, match=says):
        entry.load()


def test_a_recipe_that_a_method_does_not_know_is_one_line():
    (entry,) = parse_entries(
        {"mine": {"module": "comparison.methods.clarity", "strengths": {}, "prepare": {WORLD: {"members": 2}}}}
    )
    with pytest.raises(VceError, match="mine: missing a required argument: 'epochs' in its recipe; mend `prepare`"):
        entry.prepare_all([SimpleNamespace(world=WORLD)], lambda: None)


def test_what_no_classifier_changes_is_not_trained_again(made):
    """The nets that know nothing get the in-painting net of f's world, and shifts of their own."""
    prepared, again = made / "prepared" / f"{WORLD}-{SEED}", made / "sanity"
    assert (prepared / "infill.safetensors").read_bytes() == (again / "infill.safetensors").read_bytes()
    assert {f"{how}-shift.safetensors" for how in sanity.KNOWING_NOTHING} <= {path.name for path in again.iterdir()}


def test_an_unknown_field_of_an_entry_is_one_line():
    with pytest.raises(VceError, match="strength"):
        parse_entries({"mine": {"module": "json", "strength": {}}})


def test_methods_that_cannot_be_meant_stop_the_workflow_with_one_line(tmp_path):
    """A job of no method, a method of no job, a world that is not there: else they are silently not explained."""
    comparison = load_scale("smoke")["comparison"]
    comparison["jobs"] = [["pixel-ascent", "mien"], *[[name] for name in comparison["methods"] if name != "fido"][1:]]
    comparison["methods"]["svce"]["strengths"]["faces"] = [1.0]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"scale": "smoke", "comparison": comparison}))
    command = [Path(sys.executable).with_name("snakemake"), "all", "-n", "--configfile", tmp_path / "mine.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "job of mien: no such method" in line and "fido: in 0 jobs" in line
    assert "svce: faces is none of faces-smile, mnist, scenes, zoo" in line
