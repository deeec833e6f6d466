"""The chain on few images, of rendered faces and of the packaged GAN: worlds → shifts → edits → cells → tables."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from jobs import failing, run

from common.claims import judge, load_claims
from common.metrics.causal import estimate, observational, tabulate
from common.results import COLUMNS
from papers.contrastive import cells, faces, figures, grids, measure, sweep, tables, train, worlds
from papers.contrastive.edits import generated, labelled, look
from papers.contrastive.method import ShiftPredictor, condition
from papers.contrastive.systems import OLDER, load_world, packaged_faces

N, FEW = 36, 12
WORLD = {
    "faces": 2500,
    "vae": {"architecture": "conv", "latent": 2, "epochs": 8, "widths": [16, 32, 48], "likelihood": "gaussian",
            "sigma": 0.03, "learning_rate": 0.004, "batch_size": 64},
    "components": 1, "images": 800, "epochs": 5, "audit_epochs": 3,
}  # fmt: skip
SHIFT = {"steps": 40, "batch_size": 16, "hidden": 32, "learning_rate": 0.003, "sparse": True}
SYSTEMS = ("face-gan", "faces", "faces-matched", "faces-partial")
CLAIMS = Path(__file__).parents[3] / "papers" / "contrastive" / "claims.yaml"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Folders and files of a small run: the GAN measured once, the face world in all of its systems."""
    home = tmp_path_factory.mktemp("contrastive")
    world = home / "world.safetensors"
    gan = json.dumps({"face-gan": {"steps": 3, "batch_size": 4, "hidden": 16, "sparse": True}})
    rendered = json.dumps(dict.fromkeys(SYSTEMS[1:], SHIFT))
    settings = {"n": N, "floor": FEW, "nuisances": True, "joint": 30}
    more = {"face-gan": {}, "faces": {"n": 120, "compared": True, "local": 20, "neighbours": 4}}
    with pytest.MonkeyPatch.context() as patch:
        run(patch, worlds, "--recipe", json.dumps(WORLD), "--seed", 0, "--out", world)
        run(patch, train, "--recipes", gan, "--seed", 0, "--out", home)
        run(patch, train, "--recipes", rendered, "--world", world, "--seed", 0, "--out", home)
        asked = json.dumps({name: settings | more.get(name, {"n": 120}) for name in SYSTEMS})
        run(patch, measure, "--settings", asked, "--world", world, "--shifts", home, "--seed", 0, "--out", home)
        recipe = json.dumps({**SHIFT, "steps": 5})
        run(patch, sweep, "--system", "faces", "--world", world, "--recipe", recipe, "--lams", 0, 2, "--n", 8, "--seed",
            0, "--out", home / "sweep.parquet")  # fmt: skip
        folders = (home / f"{name}-0" for name in SYSTEMS)
        run(patch, cells, "--measured", *folders, "--sweeps", home / "sweep.parquet", "--worlds", world, "--out",
            home / "out", "--cost", home / "cost.parquet")  # fmt: skip
        run(patch, tables, "--results", home / "out", "--out", home / "out" / "tables")
    return home


@pytest.fixture(scope="module")
def out(home):
    """The tables of the run by their names."""
    return {path.stem: pd.read_parquet(path) for path in (home / "out").glob("*.parquet")}


def cell_of(edits, system, regime, attribute, decision=""):
    keys = {"system": system, "regime": regime, "attribute": attribute, "decision": decision}
    return edits[np.logical_and.reduce([edits[name] == value for name, value in keys.items()])]


def test_the_labels_are_what_three_packaged_classifiers_see():
    system = packaged_faces()
    images = system.G(torch.randn(3, system.d, generator=torch.Generator().manual_seed(0)))
    logits = system.labels(images)
    assert logits.shape == (3, 3) and system.labels.names == ("smile", "male", "older")
    for k, chosen in enumerate([[3], [1], list(range(OLDER, 81))]):
        p = system.labels.networks[k].classifier(images).softmax(1)[:, chosen].sum(1)
        torch.testing.assert_close(logits[:, k].sigmoid(), p, atol=1e-4, rtol=1e-3)


def test_edits_hold_every_regime_and_the_facts_agree(out):
    edits = out["edits"]
    sizes = edits[edits["system"] == "face-gan"].groupby(["regime", "attribute", "decision"]).size()
    floor = {name: {FEW} for name in ("random", "move", "mirror", "blur", "stay")}
    assert {r: set(sizes[r]) for r in sizes.index.levels[0]} == {"clamp_others": {N}, "free": {N}, **floor}
    assert set(sizes["clamp_others"].index) == {("smile", ""), ("smile", "male"), ("male", ""), ("male", "smile")}
    rendered = edits[edits["system"] == "faces"]
    assert {"linear", "conditional", "latent-shift", "optimised", "clamp_nondesc"} < set(rendered["regime"])
    for row in rendered.sample(60, random_state=0).to_dict("records"):
        name = row["attribute"]
        assert row["x"] == row[f"before_{name}"]
        assert row["reached"] == (row[f"after_{name}"] != row["x"])
        assert row["audited"] == (row[f"audit_after_{name}"] != row["x"])
        leaked = [row[f"audit_before_{k}"] != row[f"audit_after_{k}"] for k in faces.ATTRIBUTES if k != name]
        assert row["leaked"] == pytest.approx(np.mean(leaked))
    assert (edits.loc[edits["regime"] == "move", "length"] == 0).all()
    assert (edits.groupby(["system", "regime", "attribute", "decision"])["floor"].sum() == FEW).all()


def test_a_mirror_changes_no_averaged_label(out):
    mirrored = out["edits"].query("regime == 'mirror' and system == 'face-gan'")
    for name in ("smile", "male", "older"):
        assert (mirrored[f"before_{name}"] == mirrored[f"after_{name}"]).all()


def test_edits_by_hand_give_the_same_labels(home, out):
    system = packaged_faces()
    S, _ = train.load_shift(home / "face-gan-0.safetensors", system)
    ids, w = system.population(N)
    before = labelled(w, system)
    c = condition(before[:, :2], 1, 1 - before[:, 1], "clamp_others")
    c[:, 0] = 0
    after = labelled(w + S(w, c), system)
    here = cell_of(out["edits"], "face-gan", "clamp_others", "male", "smile").set_index("image").loc[list(ids)]
    assert here["after_smile"].tolist() == after[:, 0].tolist()
    np.testing.assert_allclose(here["length"], S(w, c).norm(dim=1), rtol=1e-4)
    random, held = (cell_of(out["edits"], "face-gan", regime, "male") for regime in ("random", "clamp_others"))
    np.testing.assert_allclose(random["length"], held["length"].iloc[:FEW], rtol=1e-4)


def test_scores_are_those_of_their_units_with_contexts_and_per_protocol(home, out):
    table = pd.read_csv(home / "out/tables/scores.csv", keep_default_na=False, na_values=[""])
    cell = cell_of(out["edits"], "faces", "clamp_others", "gray")
    lines = table.query("system == 'faces' and regime == 'clamp_others' and attribute == 'gray'")
    lines = lines[lines["decision"] == "majority"]
    others = [name for name in faces.ATTRIBUTES if name != "gray"]
    assert set(lines["context"].dropna()) == {f"{name} = {value}" for name in others for value in (0, 1)}
    for where, protocol, context in (
        (cell["reached"] == 1, "per protocol", None), (cell["x"] >= 0, "itt", None),
        (cell["before_old"] == 1, "itt", "old = 1"),
    ):  # fmt: skip
        n = tabulate(cell["x"], cell["before_majority"], cell["after_majority"], where=where.to_numpy())
        line = lines[(lines["protocol"] == protocol) & (lines["score"] == "nesuf")]
        line = line[line["context"].isna() if context is None else line["context"] == context].iloc[0]
        found = estimate("nesuf", n)
        assert line["n"] == found.n and line["value"] == pytest.approx(found.value, abs=1e-4, nan_ok=True)
        assert isinstance(line["reason"], str) == (found.n < 30)


def test_errors_are_distances_from_the_exact_scores_and_from_the_rule_on_the_same_labels(out):
    cell = cell_of(out["edits"], "faces", "clamp_others", "gray")
    x, o, e = cell["x"], cell["before_exclusive"], cell["after_exclusive"]
    nesuf = (((x == 1) & (o == 1) & (e == 0)) | ((x == 0) & (o == 0) & (e == 1))).mean()
    gray = out["single"].query("system == 'faces' and attribute == 'gray' and decision == 'exclusive'")
    single = gray.query("regime == 'clamp_others' and score == 'nesuf'").set_index("truth")
    assert single.loc["exact", "value"] == pytest.approx(nesuf) and single.loc["exact", "true"] == pytest.approx(0.6)
    rule = cell["before_gray"] != cell["before_glasses"]  # turning grey over always turns the rule over
    assert single.loc["population", "true"] == pytest.approx((x == rule).mean())
    zero = out["errors"].query("system == 'faces' and regime == 'zero' and truth == 'exact' and over == 'all'")
    means = zero[zero["half"] == 0].set_index("decision")["error"]
    assert means["majority"] == pytest.approx(0.175, abs=5e-4) and means["exclusive"] == pytest.approx(0.343, abs=5e-4)
    seen = observational(tabulate(np.zeros(len(cell)), x, o, strata=1))
    old = out["single"].query("system == 'faces' and attribute == 'old' and decision == 'majority' and score == 'nec'")
    total = old.query("regime == 'adjusted'").set_index("truth")["true"]
    assert total.to_dict() == {"exact": pytest.approx(1 - 0.02 / 0.92)}  # a total effect, and the rule knows no other
    unadjusted = gray.query("regime == 'unadjusted' and truth == 'exact'").set_index("score")["value"]
    assert unadjusted["suf"] == pytest.approx(float(seen["suf"]), nan_ok=True)


def test_sets_and_units_count_what_they_say(out):
    cell = cell_of(out["edits"], "faces", "clamp_others", "glasses")
    sets = out["sets"].query(
        "system == 'faces' and regime == 'clamp_others' and attribute == 'glasses' and decision == 'majority'"
        " and score == 'nesuf' and protocol == 'itt'"
    )
    o, x = cell["before_majority"], cell["x"]
    e = cell["after_majority"]
    followed = ((x == 1) & (o == 1) & (e == 0)) | ((x == 0) & (o == 0) & (e == 1))
    assert sets.loc[sets["half"] == 0, "value"].item() == pytest.approx(followed.mean())
    assert (sets["n"] == len(cell)).all()
    assert sets["half"].nunique() == cells.HALVES + 1
    units = out["units"].query("system == 'faces' and attribute == 'glasses' and decision == 'majority'")
    present = cell[[f"before_{name}" for name in faces.ATTRIBUTES]].to_numpy()
    counts = present[:, :3].sum(1) + 1 - 2 * present[:, 2]
    wrong = units[units["regime"] == "clamp_others"].set_index("image").loc[cell["image"], "wrong"]
    assert wrong.tolist() == (cell["after_majority"] != (counts >= 2)).astype(float).tolist()
    nothing = units[units["regime"] == "zero"].set_index("image").loc[cell["image"], "wrong"]
    assert nothing.tolist() == (o != (counts >= 2)).astype(float).tolist()


def test_halves_are_halves_and_their_tables_are_counted():
    weights = cells.halves(11)
    assert weights.shape == (cells.HALVES + 1, 11) and (weights[0] == 1).all() and (weights[1:].sum(1) == 5).all()
    assert len(np.unique(weights, axis=0)) > 50
    rng = np.random.default_rng(0)
    columns = [rng.integers(0, 2, 11) for _ in range(3)]
    found = cells.halved(columns, weights)
    for row in (0, 3):
        where = weights[row] == 1
        np.testing.assert_array_equal(found[row], tabulate(*columns, where=where))


def test_joint_conditions_are_hit_or_not(home, out):
    joint = out["joint"].query("system == 'faces' and judge == 'annotator'")
    world, _ = load_world(home / "world.safetensors")
    system = world.system("faces")
    S, _ = train.load_shift(home / "faces-0.safetensors", system)
    seen = look(generated(system.population(30)[1], system), system)
    again = measure.joint(system, S, seen, 0).query("judge == 'annotator'")
    merged = joint.merge(again, on=["image", "method"])
    assert len(merged) == 60 and (merged["exact_x"] == merged["exact_y"]).all()
    assert ((joint["exact"] == 1) == (joint["share"] == 1)).all()
    table = pd.read_csv(home / "out/tables/joint.csv")
    line = table.query("system == 'faces' and judge == 'annotator' and method == 'S' and asked == 1").iloc[0]
    cell = joint[(joint["method"] == "S") & (joint["asked"] == 1)]
    assert line["n"] == len(cell) and line["exact"] == pytest.approx(cell["exact"].mean(), abs=1e-4)


def test_local_scores_part_pivotal_attributes_from_others(out):
    local = out["local"]
    assert set(local["decision"]) <= set(faces.RULES) and local["effect"].between(0, 1).all()
    assert (local.groupby(["decision", "image"])["pivotal"].nunique() == 2).all()


def test_nothing_frozen_changed_and_the_long_table_has_its_columns(home, out):
    assert set(out["frozen"]["system"]) == set(SYSTEMS)
    assert (out["frozen"]["changed"] == 0).all()
    assert list(out["rows"].columns) == list(COLUMNS) and set(out["rows"]["status"]) <= {"ok", "not_flipped"}
    cost = pd.read_parquet(home / "cost.parquet")
    assert (cost["overhead"] > 0).all() and len(cost) == 4
    gate = pd.read_csv(home / "out/tables/gate.csv")
    assert {"annotator", "rules", "auditor", "nuisances"} < set(gate["classifier"])


def test_every_rule_finds_its_cells(home, out):
    everywhere = {name: table.assign(adequate=1.0) for name, table in out.items()}
    verdicts, outcomes = judge(load_claims(CLAIMS), everywhere)
    assert set(verdicts) == {f"C{k}" for k in range(1, 12)}
    # this run has no sweep over all λ, few joint conditions and local scores, and few smiles of the GAN
    absent = {o.claim for o in outcomes if o.reason.startswith("no rows")}
    assert absent <= {"C1", "C9", "C10", "C11"}
    assert verdicts["C3"]["verdict"] == "supported"
    lost = {name: table.assign(adequate=0.0) for name, table in out.items()}
    gated = [
        o for o in judge(load_claims(CLAIMS), lost)[1] if "faces" in o.test and "GAN" not in o.test and o.claim != "C3"
    ]
    assert gated and all(o.verdict == "not tested" for o in gated)


def test_validity_leakage_and_rates_count(home, out):
    validity = pd.read_csv(home / "out/tables/validity.csv", keep_default_na=False, na_values=[""])
    line = validity.query("system == 'face-gan' and regime == 'free' and attribute == 'male'")
    line = line[line["from"] == 0].iloc[0]
    cell = cell_of(out["edits"], "face-gan", "free", "male")
    assert line["reached"] == pytest.approx(cell.loc[cell["x"] == 0, "reached"].mean(), abs=1e-4)
    leakage = pd.read_csv(home / "out/tables/leakage.csv", keep_default_na=False, na_values=[""])
    here = leakage.query("system == 'faces' and regime == 'free' and attribute == 'old' and label == 'gray'").iloc[0]
    cell = cell_of(out["edits"], "faces", "free", "old")
    assert here["judge"] == "auditor"
    assert here["share"] == pytest.approx((cell["audit_before_gray"] != cell["audit_after_gray"]).mean(), abs=1e-4)
    rates = pd.read_csv(home / "out/tables/rates.csv").set_index(["system", "label"])
    images = out["edits"].query("system == 'faces'").drop_duplicates("image")
    assert rates.loc[("faces", "smile"), "share"] == pytest.approx(images["before_smile"].mean(), abs=1e-4)


def test_figures_are_drawn(home, tmp_path, monkeypatch):
    run(monkeypatch, figures, "--tables", home / "out/tables", "--out", tmp_path)
    S, ours, world = (home / f"{name}.safetensors" for name in ("face-gan-0", "faces-0", "world"))
    run(monkeypatch, grids, "--gan", S, "--shift", ours, "--world", world, "--out", tmp_path)
    names = ("scores", "truth", "errors", "sweep", "faces", "rendered", "local")
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.{end}" for name in names for end in ("png", "svg")}


def test_the_same_commands_give_the_same_bytes(home, tmp_path, monkeypatch):
    world = home / "world.safetensors"
    recipes = json.dumps({"faces": SHIFT})
    for seed in (0, 1):
        run(monkeypatch, train, "--recipes", recipes, "--world", world, "--seed", seed, "--out", tmp_path)
    assert (tmp_path / "faces-0.safetensors").read_bytes() == (home / "faces-0.safetensors").read_bytes()
    assert (tmp_path / "faces-1.safetensors").read_bytes() != (home / "faces-0.safetensors").read_bytes()
    asked = json.dumps({"faces-matched": {"n": 120, "floor": FEW, "nuisances": True, "joint": 30}})
    run(monkeypatch, measure, "--settings", asked, "--world", world, "--shifts", home, "--seed", 0, "--out", tmp_path)
    again, first = (folder / "faces-matched-0/edits.parquet" for folder in (tmp_path, home))
    assert again.read_bytes() == first.read_bytes()


def test_a_shift_of_another_size_or_a_damaged_file_is_one_line(home, tmp_path, monkeypatch, capsys):
    file = tmp_path / "face-gan-0.safetensors"

    def message(**settings):
        asked = json.dumps({"face-gan": {"n": N, "floor": FEW} | settings})
        return failing(monkeypatch, capsys, measure, "--settings", asked, "--shifts", tmp_path, "--seed", 0, "--out",
                       tmp_path / "x")  # fmt: skip

    train.save_shift(ShiftPredictor(7, 2, 4), file, {"labels": ["smile", "male"]})
    assert "made for latents of size 7 and the labels smile, male, not for size 100 and smile, male" in message()
    good = (home / "face-gan-0.safetensors").read_bytes()
    file.write_bytes(good[:200])
    assert "not a shift predictor file" in message() and not (tmp_path / "x").exists()
    file.write_bytes(good)
    assert "floor 9 of n 5 latents" in message(n=5, floor=9)
    assert "occurs among 1 images" in message(n=1, floor=1)
