"""The whole chain on a few faces and digits with hardly trained nets: companions → shards → rows → verdicts."""

import json
import math
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from jobs import failing, run

from common import verdicts
from common.batches import read_shards
from common.claims import load_claims
from common.classifiers import train as oracle_job
from common.classifiers.checkpoints import checkpoint_facts, load_checkpoint
from common.classifiers.companion import load_companion
from common.classifiers.training import accuracy
from common.data import datasets, faces, split
from common.explain import Streams
from common.matching import select
from common.results import COLUMNS, KEY
from common.scales import load_scale
from common.tensors import read_tensors
from papers.disc import cells, corruptions, explain, hypotheses, measure, shards, students, train
from papers.disc.hypotheses import read_hypotheses

# torchvision 0.29, which is pinned, announces that its JPEG codec will move
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

ROOT = Path(__file__).parents[3]
SIZES = {"systems": 120, "calibration": 40, "oracles": 60, "tuning": 20, "pairs": 40}
WORLDS = ("faces-smile", "faces-bald", "faces-old", "mnist")
N, FIT, STEER, LEVEL = 4, 6, 6, 0.9
BRIEF = {"architecture": "grid_cnn", "epochs": 1, "batch_size": 32}
HARDLY = {"epochs": 1, "batch_size": 40}
SYSTEMS = {  # by training seed; the classifier of the first knows a smile
    0: {
        "companions": {
            "faces-smile": {"epochs": 12, "batch_size": 20, "learning_rate": 5e-3},
            "faces-bald": HARDLY,
            "mnist": HARDLY,
        },
        "regressors": {
            "age": {"architecture": "digit_cnn", "epochs": 1, "split": "systems"},
            "age-reader": {"architecture": "grid_cnn", "epochs": 1, "split": "oracles"},
        },
    },
    1: {"companions": {"faces-smile": HARDLY}},
}
RECIPE = {
    "semantics": 1.0, "statistics": 0.3, "functional": 5.0, "manifold": {"duq": 0.5, "dep": 3.0}, "fit": FIT,
    "steer": STEER, "ramp": 1.2, "pixel_rate": 0.1,
}  # fmt: skip
RECIPES = dict.fromkeys(WORLDS, RECIPE)
PATH, SHORT = [0.5, 0.9, 1.0], [0.5, 0.9]
PUSHED = [
    {"method": "iso", "like": "inr"},
    {"method": "iso", "like": "inr+duq"},
    {"method": "inr", "like": "inr+duq"},
]
INR = [{"method": "inr", "strengths": PATH}, {"method": "inr", "manifold": "duq", "strengths": PATH}]
READINGS = [
    {"method": "inr", "manifold": "duq", "reading": name, "strengths": PATH} for name in ("P-0", "P-B", "P-C", "P-D")
]
LADDER = {
    "world": "faces-smile", "starts": "pairs", "n": N, "random_radii": [0.4, 1.6],
    "cells": [
        {"method": "iso", "strengths": PATH}, {"method": "iso/fast", "strengths": SHORT},
        {"method": "lso", "strengths": SHORT}, {"method": "statistics", "strengths": SHORT}, *INR, *PUSHED,
        {"method": "iso", "like": "inr", "by": "own"}, {"method": "iso", "like": "inr+duq", "by": "confidence"},
        {"method": "pixel-ascent", "strengths": [0.4, 1.6]},
    ],
}  # fmt: skip
SCREENING = {
    "world": "faces-smile", "starts": "screening", "n": N,
    "cells": [{"method": "iso", "strengths": SHORT}, *INR, {"method": "inr", "manifold": "dep", "strengths": PATH},
              *READINGS],
}  # fmt: skip
DIP = {
    "world": "faces-smile", "starts": "dip", "n": N,
    "cells": [{"method": "iso", "strengths": SHORT}, {"method": "dip", "strengths": SHORT},
              {"method": "dip", "manifold": "duq", "strengths": SHORT}, {"method": "iso", "like": "dip"}],
}  # fmt: skip
CORRUPTED = [
    {"world": "faces-smile", "starts": f"corrupted-{name}", "corruption": [name, 3], "n": N,
     "cells": [{"method": "iso", "strengths": [LEVEL]}, {"method": "inr", "manifold": "duq", "strengths": [LEVEL]}]}
    for name in ("noise", "contrast")
]  # fmt: skip
BALD = {"world": "faces-bald", "starts": "pairs", "n": N, "random_radii": [0.8], "cells": [INR[1], READINGS[0]]}
DIGITS = {
    "world": "mnist", "starts": "pairs", "n": N, "random_radii": [1.5],
    "cells": [{"method": "iso", "strengths": PATH}, *INR, *PUSHED, {"method": "pixel-ascent", "strengths": [2.0]}],
}  # fmt: skip
GROUPS = {"ladder": [LADDER], "rest": [SCREENING, DIP, *CORRUPTED, BALD, DIGITS]}
HYPOTHESES = [
    {"world": "faces-smile", "kind": "graded", "n": N, "levels": [0.25, 0.5, 0.75], "weight": 2.0},
    {"world": "faces-old", "kind": "regression", "regressor": "age", "source": 0, "n": N, "levels": [0.2, 0.4, 0.6],
     "weight": 2.0},
]  # fmt: skip
TAUGHT = ["iso", "inr", "inr+duq", "iso@inr+duq", "iso@p:inr+duq", "pixel-ascent", "identity", "twin"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Splits and the panel; a few of the digits."""
    home = tmp_path_factory.mktemp("disc")
    everything = pd.read_csv(ROOT / "data/mnist_5k.csv.gz", header=None)
    (home / "data").mkdir()
    few = everything.groupby(784).head(28)
    few.to_csv(home / "data/mnist_5k.csv.gz", header=False, index=False, compression="gzip")
    where = ("--splits", home / "splits", "--data", home / "data")
    nets = dict.fromkeys(("augmented", "l2at", "features"), BRIEF)
    panels = {world: nets for world in WORLDS if world != "faces-old"}
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(monkeypatch, split, "--sizes", json.dumps(dict.fromkeys(WORLDS, SIZES)), "--seed", 0, "--out",
            home / "splits", "--data", home / "data")  # fmt: skip
        run(monkeypatch, oracle_job, "oracles", *where, "--recipes", json.dumps(panels), "--out", home / "oracles")
    return home


def chain(monkeypatch, home, out, seeds=(0, 1)):
    """Train, explain and measure into `out`; all but the ladder for the first training seed alone."""
    where = ("--splits", home / "splits", "--data", home / "data")
    for seed in seeds:
        seeded, systems, measured = (*where, "--seed", seed), out / "systems", out / f"measured/{seed}"
        run(monkeypatch, train, "--recipes", json.dumps(SYSTEMS[seed]), *seeded, "--out", systems)
        files, asked = [], []
        recipes = ("--recipes", json.dumps(RECIPES), "--systems", systems)
        for name, group in GROUPS.items() if seed == 0 else [("ladder", [LADDER])]:
            files.append(out / f"batches/{name}-{seed}.safetensors")
            run(
                monkeypatch,
                shards,
                "--level",
                LEVEL,
                "--entries",
                json.dumps(group),
                *recipes,
                *seeded,
                "--out",
                files[-1],
            )
        if seed == 0:
            asked = [out / "batches/hypotheses-0.safetensors"]
            run(monkeypatch, hypotheses, "--entries", json.dumps(HYPOTHESES), *recipes, *seeded, "--out", *asked)
        read = ("--shards", files[0], "--companions", systems, "--data", home / "data")
        run(monkeypatch, students, *read, "--splits", home / "splits", "--recipe", json.dumps(BRIEF), "--seeds", 0,
            "--methods", *TAUGHT, "--levels", LEVEL, "--both", "iso", "inr+duq", "--test", 10,
            "--out", measured / "students.parquet")  # fmt: skip
        run(monkeypatch, corruptions, *read, "--out", measured / "survival.parquet")
        run(monkeypatch, measure, "--shards", *files, "--hypotheses", *asked, "--systems", systems, *where,
            "--oracles", home / "oracles", "--out", measured)  # fmt: skip
    run(monkeypatch, cells, "--measured", *(out / f"measured/{seed}" for seed in seeds), "--costs",
        *sorted((out / "batches").glob("*.cost.json")), "--level", LEVEL, "--out", out,
        "--cost", out / "cost.parquet")  # fmt: skip


@pytest.fixture(scope="module")
def runs(home):
    """The same commands twice: two output folders. Such judges pass no gate, and no prior draws a face in six steps."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        gate = measure.oracle_gate
        monkeypatch.setattr(measure, "oracle_gate", lambda *arguments: gate(*arguments).assign(passes=True))
        monkeypatch.setattr(measure, "MIN_RECONSTRUCTED", 0.0)
        monkeypatch.setattr(measure, "MOST_LOST", 1.0)
        monkeypatch.setattr(explain, "FIT", 1.0)
        for name in ("first", "second"):
            chain(monkeypatch, home, home / name)
    return home / "first", home / "second"


@pytest.fixture(scope="module")
def explained(runs):
    """All shards by world, start set and training seed."""
    found = [shard for path in sorted((runs[0] / "batches").glob("[lr]*.safetensors")) for shard in read_shards(path)]
    return {(shard.world, shard.starts, shard.seed): shard for shard in found}


@pytest.fixture(scope="module")
def smiles(home):
    """What measuring knows of the world of smiles."""
    table = pd.read_parquet(home / "splits/faces-smile.parquet")
    return measure.World.load("faces-smile", table, home / "oracles", home / "data")


def load(home, world, split, n=None):
    return datasets.load(world, pd.read_parquet(home / f"splits/{world}.parquet"), split, home / "data", n)


def test_the_same_commands_give_the_same_bytes(runs):
    first, second = runs
    names = {str(path.relative_to(first)) for path in first.rglob("*.*") if path.is_file()}
    bits = {name for name in names if not name.endswith(("cost.json", "cost.parquet"))}
    systems = ("faces-smile-0", "faces-smile-1", "faces-bald-0", "mnist-0", "age-0", "age-reader-0")
    batches = ("ladder-0", "ladder-1", "rest-0", "hypotheses-0")
    measured = ("rows", "corrupted", "kid", "gate", "hypotheses", "students", "survival")
    tables = ("rows", "cells", "survival", "corrupted", "students", "hypotheses", "kid_sets", "kid", "premise")
    assert bits == {
        *(f"systems/{name}.safetensors" for name in systems), *(f"batches/{name}.safetensors" for name in batches),
        *(f"measured/{seed}/{name}.parquet" for name in measured for seed in (0, 1)),
        *(f"{name}.parquet" for name in tables), "tables/oracle_gate.csv",
    }  # fmt: skip
    assert len(names) - len(bits) == 4
    for name in sorted(bits):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


# training


def test_companions_know_their_accuracy_and_are_calibrated(runs, home):
    for seed, world in [(seed, world) for seed, systems in SYSTEMS.items() for world in systems["companions"]]:
        path, held = runs[0] / f"systems/{world}-{seed}.safetensors", load(home, world, "calibration")
        companion, facts = load_companion(path), read_tensors(path, "companion")[0]["facts"]
        with torch.no_grad():
            logits, z, means = companion.read(held.images)
            own = torch.nn.functional.cross_entropy(logits, held.labels, reduction="none")
        assert facts["recipe"] == vars(train.Recipe(**SYSTEMS[seed]["companions"][world])) and facts["seed"] == seed
        assert facts["accuracy"] == pytest.approx((logits.argmax(1) == held.labels).float().mean().item())
        by_centroid = (companion.distances(z).argmin(1) == held.labels).float().mean().item()
        assert facts["centroid_accuracy"] == pytest.approx(by_centroid)
        correlation = np.corrcoef(companion.predicted_error(means).numpy(), own.numpy())[0, 1]
        assert facts["error_correlation"] == pytest.approx(correlation, abs=1e-4)
        confidence, hits = companion(held.images).softmax(1).amax(1), (logits.argmax(1) == held.labels).sum().item()
        wanted, bound = (hits + 1) / (len(held.ids) + 2), abs(math.log(facts["temperature"])) > 2.99
        assert facts["temperature"] == companion.temperature.item()
        assert confidence.mean().item() == pytest.approx(wanted, abs=1e-4) or bound
    fit, names = load(home, "faces-smile", "systems"), datasets.world("faces-smile").class_names
    again = train.train_companion(fit.images, fit.labels, names, train.Recipe(**HARDLY), 1).state_dict()
    hardly = read_tensors(runs[0] / "systems/faces-smile-1.safetensors", "companion")[1]
    assert all(torch.equal(value, again[name]) for name, value in hardly.items() if name != "temperature")


def test_regressors_are_trained_on_splits_of_their_own(runs, home):
    held = load(home, "faces-old", "calibration")
    truth = datasets.face_factors(held.ids).wrinkles
    for name, where in (("age", "systems"), ("age-reader", "oracles")):
        path, fit = runs[0] / f"systems/{name}-0.safetensors", load(home, "faces-old", where)
        regressor, facts = load_checkpoint(path), checkpoint_facts(path)
        recipe, depths = SYSTEMS[0]["regressors"][name], datasets.face_factors(fit.ids).wrinkles
        again = train.train_regressor(fit.images, depths, recipe["architecture"], recipe["epochs"], 0)
        assert facts["recipe"] == recipe and recipe["split"] == where
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in regressor.state_dict().items())
        error = (regressor(held.images)[:, 0] - truth).abs().mean().item()
        assert facts["mean_error"] == pytest.approx(error, rel=1e-5)


# shards


ANCHORS = {"identity", "random", "class-mean", "nearest-real"}
IN_LADDER = {
    "iso", "iso/fast", "lso", "statistics", "inr", "inr+duq", "iso@inr", "iso@inr+duq", "inr@inr+duq", "iso@own:inr",
    "iso@p:inr+duq", "pixel-ascent", "twin", *ANCHORS,
}  # fmt: skip
NAMES = {
    ("faces-smile", "pairs", 0): IN_LADDER,
    ("faces-smile", "pairs", 1): IN_LADDER,
    ("faces-smile", "screening", 0): {
        "iso", "inr", "inr+duq", "inr+dep", "inr+duq/p-0", "inr+duq/p-b", "inr+duq/p-c", "inr+duq/p-d",
    },
    ("faces-smile", "dip", 0): {"iso", "dip", "dip+duq", "iso@dip"},
    ("faces-smile", "corrupted-noise", 0): {"iso", "inr+duq"},
    ("faces-smile", "corrupted-contrast", 0): {"iso", "inr+duq"},
    ("faces-bald", "pairs", 0): {"inr+duq", "inr+duq/p-0", "twin", *ANCHORS},
    ("mnist", "pairs", 0): {
        "iso", "inr", "inr+duq", "iso@inr", "iso@inr+duq", "inr@inr+duq", "pixel-ascent", *ANCHORS,
    },
}  # fmt: skip
BUDGET = FIT + STEER + 1


def test_every_configured_cell_was_explained(explained):
    assert {key: set(shard.batches) for key, shard in explained.items()} == NAMES
    for shard in explained.values():
        for name, batch in shard.batches.items():
            n, s = batch.images.shape[:2]
            assert (n, s) == (N, len(batch.strengths)) and (s == 1 or "@" not in name)
            assert batch.images.min() >= 0 and batch.images.max() <= 1
            assert set(batch.status.flat) <= {"ok", "not_flipped"}
            if name.startswith(("iso", "inr")) and "@" not in name:
                whole = [strength == 1 for strength in batch.strengths]  # τ = 1 asks for the last iterate
                assert (batch.steps[:, whole] == BUDGET).all() and (batch.steps <= BUDGET).all()


def test_starts_and_targets_are_those_of_the_split(explained, home):
    for (world, starts, seed), shard in explained.items():
        table = pd.read_parquet(home / f"splits/{world}.parquet")
        pairs, targets = load(home, world, "pairs", N), table.set_index("id")["target"]
        assert shard.ids == pairs.ids and shard.source.tolist() == pairs.labels.tolist() and shard.seed == seed
        assert shard.target.tolist() == targets[list(shard.ids)].tolist() and (shard.target != shard.source).all()
        x = pairs.images
        if starts.startswith("corrupted"):
            rng = Streams(seed, shard.ids, tuple(shard.target.tolist()))
            x = corruptions.corrupted(x, starts.split("-")[1], 3, rng)
            assert (x - pairs.images).abs().mean() > 0.01
        assert torch.equal(shard.batches["iso" if "iso" in shard.batches else "inr+duq/p-0"].reference, x)


def test_shards_say_what_the_classifier_sees(explained, runs, home):
    for (world, _, seed), shard in explained.items():
        companion = load_companion(runs[0] / f"systems/{world}-{seed}.safetensors")
        pairs, attribute = load(home, world, "pairs"), datasets.world(world).attribute
        assert shard.accuracy == pytest.approx(accuracy(companion, pairs.images, pairs.labels))
        assert set(shard.interventions) == ({"label", *faces.ATTRIBUTES} - {attribute} if attribute else set())
        for name, seen in shard.interventions.items():
            do = datasets.interventions(world, shard.ids, shard.target)[name]
            assert torch.equal(seen, companion(do).argmax(1))


def test_one_fit_serves_all_cells_of_a_prior(explained):
    """P-C fits other layers, and P-0 nothing, though it may not stop before the others could."""
    screening = explained["faces-smile", "screening", 0].batches
    drawn, iso = screening["inr"].reference, screening["iso"].reference
    for name in ("inr+duq", "inr+dep", "inr+duq/p-b", "inr+duq/p-d"):
        assert torch.equal(screening[name].reference, drawn)
    assert not torch.equal(screening["inr+duq/p-c"].reference, drawn)
    assert torch.equal(screening["inr+duq/p-0"].reference, iso) and not torch.equal(drawn, iso)
    ladder, dip = (explained["faces-smile", starts, 0].batches for starts in ("pairs", "dip"))
    assert torch.equal(ladder["inr@inr+duq"].reference, drawn) and torch.equal(ladder["inr"].reference, drawn)
    assert torch.equal(dip["dip"].reference, dip["dip+duq"].reference) and not torch.equal(dip["dip"].reference, drawn)


FITTED_BEFORE = {
    "pairs": {"inr@inr+duq"}, "screening": {"inr+duq", "inr+dep", "inr+duq/p-b", "inr+duq/p-d"}, "dip": {"dip+duq"},
}  # fmt: skip


def test_a_fit_is_paid_once_and_counted_in_every_path(explained, runs):
    costs = {}
    for path in (runs[0] / "batches").glob("*.cost.json"):
        cost = json.loads(path.read_text())
        assert cost["commit"]
        for line in cost["cells"]:
            costs.setdefault((line["world"], line["starts"], cost["seed"]), {})[line["method"]] = line
    for key, shard in explained.items():
        assert set(costs[key]) == set(shard.batches) - ANCHORS - {"twin"}
        before = FITTED_BEFORE.get(key[1], set()) | ({"inr+duq"} if "inr" in shard.batches else set())
        for name, line in costs[key].items():
            forward = shard.batches[name].forward
            spent = forward.sum() if name == "pixel-ascent" else forward.max(1).values.sum()
            assert line["evaluations"] == spent - (FIT * N if name in before else 0), (key, name)
            assert (shard.batches[name].steps > FIT).all() or not name.startswith(("inr", "dip"))
            assert line["seconds"] > 0 and line["pass_seconds"] > 0
            assert (line["prior_seconds"] > 0) == name.startswith(("inr", "dip")), name
    table = pd.read_parquet(runs[0] / "cost.parquet")
    assert len(table) == sum(map(len, costs.values()))
    own = table["evaluations"] * (table["pass_seconds"] + table["prior_seconds"])
    assert np.allclose(table["overhead"], table["seconds"] / own)


def test_a_pushed_search_goes_as_far_as_its_partner_or_through_its_budget(explained, home):
    early = {}
    for shard in explained.values():
        x = datasets.load_ids(shard.world, shard.ids, home / "data").images
        for name, batch in shard.batches.items():
            if "@" not in name:
                continue
            by, like = name.split("@")[1].split(":") if ":" in name else ("", name.split("@")[1])
            other = shard.batches[like]
            first = [next((s for s, p in enumerate(path) if p >= LEVEL), -1) for path in other.confidence.tolist()]
            found = torch.stack([other.images[i, s] for i, s in enumerate(first)])
            if by == "p":
                asked, got = other.confidence[torch.arange(N), first], batch.confidence[:, 0]
            else:
                start = other.reference if by == "own" else x
                asked, got = (found - start).abs().flatten(1).mean(1), batch.distance[:, 0]
            assert ((got >= asked - 1e-5) | (batch.steps[:, 0] == BUDGET)).all(), name
            early.setdefault(name, []).append((batch.steps[:, 0] < BUDGET).any().item())
    assert len(early) == 6 and all(any(stopped) for stopped in early.values())


# rows


ADDED = {
    "starts", "valid", "diverged", "own_distance", "high_frequency", "localisation", "localisation_own", "drift", "knn",
    "reliance", "adequate",
}  # fmt: skip


def test_rows_and_cells_are_complete(runs, explained):
    rows, found, kid = (pd.read_parquet(runs[0] / f"{name}.parquet") for name in ("rows", "cells", "kid_sets"))
    assert list(rows.columns) == list(COLUMNS) and set(found.columns) == set(COLUMNS) | ADDED
    whole = [shard for (_, starts, _), shard in explained.items() if not starts.startswith("corrupted")]
    paths = [(shard, name, batch) for shard in whole for name, batch in shard.batches.items()]
    assert len(rows) == len(found) == N * sum(len(batch.strengths) for _, _, batch in paths)
    assert not rows.duplicated(KEY).any() and not found.duplicated([*KEY, "starts"]).any()
    again = {name if shard.starts == "pairs" else f"{name}/{shard.starts}" for shard, name, _ in paths}
    assert set(rows["method"]) == again and (found["adequate"] == 1).all()
    for shard, name, batch in paths:
        where = {"world": shard.world, "starts": shard.starts, "seed": shard.seed, "method": name}
        mine = select(found, where).set_index(["image", "strength"])["confidence"]
        for i, image in enumerate(shard.ids):
            assert mine[image].loc[list(batch.strengths)].tolist() == pytest.approx(batch.confidence[i].tolist())
    sets = [(shard.seed, shard.starts, shard.world, name, s) for shard, name, batch in paths for s in batch.strengths]
    keys = ["seed", "starts", "world", "method", "strength"]
    assert sorted(sets) == sorted(kid[keys].drop_duplicates().itertuples(index=False, name=None))


def test_added_metrics_are_those_of_a_loop(runs, explained, smiles):
    found = pd.read_parquet(runs[0] / "cells.parquet")
    found = select(found, {"world": "faces-smile", "starts": "pairs", "seed": 0})
    shard = explained["faces-smile", "pairs", 0]
    originals = datasets.load_ids("faces-smile", shard.ids, Path("data"))
    others = datasets.interventions("faces-smile", shard.ids, shard.target)
    real = smiles.features(smiles.systems.images)
    for method in ("inr", "iso@own:inr", "iso", "twin", "pixel-ascent"):
        batch, mine = shard.batches[method], found[found["method"] == method].set_index(["image", "strength"])
        reference = originals.images if batch.reference is None else batch.reference
        for i, image in enumerate(shard.ids):
            x, mask = originals.images[i], originals.masks[i] == 1
            for s, strength in enumerate(batch.strengths):
                row, delta, own = mine.loc[(image, strength)], batch.images[i, s] - x, batch.images[i, s] - reference[i]
                for name, change in (("localisation", delta), ("localisation_own", own)):
                    share = change[:, mask].abs().sum() / change.abs().sum() / mask.float().mean()
                    assert row[name] == pytest.approx(share.item(), rel=1e-4, nan_ok=True), (method, name)
                assert row["own_distance"] == pytest.approx(own.abs().mean().item(), rel=1e-4)
                smile, tilted = others["label"][i] - x, []
                beyond = delta - (delta * smile).sum() / smile.square().sum() * smile
                for name in ("old", "gray", "glasses", "mustache", "bald"):
                    way = others[name][i] - x
                    if way.abs().sum() > 0:
                        tilted.append(abs((beyond * way).sum() / way.square().sum()).item())
                assert row["drift"] == pytest.approx(np.mean(tilted), rel=1e-3, abs=1e-6)
                seen = smiles.features(batch.images[i, s][None])[0]
                class_mates = real[smiles.systems.labels == shard.target[i]]
                nearest = sorted((seen - mate).norm().item() for mate in class_mates)[:5]
                assert row["knn"] == pytest.approx(np.mean(nearest), rel=1e-4)
                tau = method in ("inr", "iso") and strength < 1
                valid = float(batch.confidence[i, s].item() >= strength - 1e-6) if tau else math.nan
                assert row["valid"] == pytest.approx(valid, nan_ok=True)
    assert found.loc[found["method"] == "iso", "valid"].max() == 1


def test_survival_students_and_corrupted_queries_are_of_all_their_sets(runs):
    survival, taught = (pd.read_parquet(runs[0] / f"{name}.parquet") for name in ("survival", "students"))
    methods = IN_LADDER - ANCHORS | {"real"}
    assert set(survival["method"]) == methods and set(survival["seed"]) == {0, 1}
    assert not survival.duplicated(["seed", "method", "strength", "image"]).any()
    parts = [f"survives_{name}" for name in corruptions.CORRUPTIONS]
    assert np.allclose(survival["survives"], survival[parts].mean(axis=1))  # as many severities of each
    curves = {f"pixel-ascent@{name}" for name in {*TAUGHT} - {"pixel-ascent", "identity"}}
    assert set(taught["method"]) == {*TAUGHT, "real", "iso/b2", "inr+duq/b2", *curves}
    assert (taught.groupby(["seed", "method", "strength"]).size() == 10).all() and taught["correct"].between(0, 1).all()
    corrupted = pd.read_parquet(runs[0] / "corrupted.parquet").groupby(["starts", "method"]).size().to_dict()
    starts = ("corrupted", "corrupted-noise", "corrupted-contrast")
    assert corrupted == {(start, method): N for start in starts for method in ("iso", "inr+duq")}


# verdicts


CLAIMS = load_claims(ROOT / "papers/disc/claims.yaml")


def test_every_claim_finds_its_rows_and_nothing_but_the_premise_is_proven_by_four_images(runs, monkeypatch, tmp_path):
    out = runs[0]
    monkeypatch.setattr(verdicts, "MIN_RELIANCE", -np.inf)
    read = ("cells", "survival", "corrupted", "students", "hypotheses", "kid_sets", "premise")
    run(monkeypatch, verdicts, "--claims", ROOT / "papers/disc/claims.yaml", "--rows", out / "rows.parquet", "--gate",
        out / "tables/oracle_gate.csv", "--tables", *(f"{name}={out}/{name}.parquet" for name in read),
        "--protocol", '{"scale": "test"}', "--level", LEVEL, "--out", tmp_path)  # fmt: skip
    report = json.loads((tmp_path / "claims.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert set(report["claims"]) == {f"C{k}" for k in range(1, 10)}
    assert {name for name, claim in report["claims"].items() if claim["verdict"] == "supported"} == {"C7"}
    assert report["protocol"]["pairs"] == N and report["protocol"]["seeds"] == 2
    tests = pd.read_csv(tmp_path / "tables/tests.csv")
    assert len(tests) == sum(len(claim.tests) for claim in CLAIMS.claims.values())
    assert tests.loc[tests["verdict"] == "not tested", "test"].tolist() == []


@pytest.mark.parametrize("scale", ["cpu", "smoke"])
def test_every_cell_that_a_claim_names_is_configured(scale):
    config = load_scale(scale)["disc"]
    entries, paths = [entry for job in config["jobs"] for group in job for entry in config["groups"][group]], {}
    for entry in entries:
        recipe, before = shards.parse_recipe(shards.Recipe, config["recipes"][entry["world"]]), set()
        for cell in shards.parse_cells(entry["cells"]):
            assert cell.manifold in ("", *recipe.manifold) and cell.like in ("", *before), cell
            before.add(cell.name)
            paths[entry["world"], entry["starts"], cell.name] = set(cell.strengths)
    ladder = {cell.name for cell in shards.parse_cells(config["groups"]["ladder"][0]["cells"])}
    pupils = config["students"]
    assert set(pupils["methods"]) <= ladder | {*ANCHORS, "twin"} and set(pupils["both"]) <= set(pupils["methods"])
    asked = {(entry["world"], entry["kind"]) for entry in config["hypotheses"]}
    for claim in CLAIMS.claims.values():
        for test in claim.tests:
            for where in filter(None, (test.a, test.b)):
                if test.table == "premise":
                    continue
                world, method, what = where["world"], where.get("method"), f"{test.name}: {where}"
                if test.table == "hypotheses":
                    assert (world, where["kind"]) in asked, what
                elif test.table == "students":
                    taught = method.removeprefix("pixel-ascent@").removesuffix("/b2")
                    assert taught in pupils["both" if method.endswith("/b2") else "methods"], what
                    assert where["strength"] in pupils["levels"] or "@" in method, what
                else:
                    starts = [where["starts"]] if where["starts"] != "corrupted" else [
                        entry["starts"] for entry in entries if entry["starts"].startswith("corrupted")
                    ]  # fmt: skip
                    for start in starts:
                        strengths = paths[world, start, method]
                        levels = {where.get("strength"), test.at.strength, test.at.first_success} - {None}
                        assert levels <= strengths, what


# hypotheses


def test_a_graded_hypothesis_is_read_off_the_output(runs, home):
    graded, aged = read_hypotheses(runs[0] / "batches/hypotheses-0.safetensors")
    companion = load_companion(runs[0] / "systems/faces-smile-0.safetensors")
    p = companion(graded.images.flatten(0, 1)).softmax(1).view(N, 3, 2)[torch.arange(N), :, graded.target]
    assert torch.allclose(graded.after, p, atol=1e-5) and graded.requested.tolist() == [[0.25, 0.5, 0.75]] * N
    rows = pd.read_parquet(runs[0] / "hypotheses.parquet")
    mine = rows[rows["kind"] == "graded"]
    assert np.allclose(mine["reached"], p.flatten()) and mine["exact"].isna().all()
    near, undrawn = (p - graded.requested).abs() <= 0.05, graded.error > explain.FIT
    assert mine["met"].tolist() == (near & ~undrawn[:, None]).flatten().float().tolist()
    pairs = load(home, "faces-old", "pairs")
    assert aged.ids == tuple(image for image, old in zip(pairs.ids, pairs.labels, strict=True) if not old)[:N]
    regressor = load_checkpoint(runs[0] / "systems/age-0.safetensors")
    now = regressor(datasets.load_ids("faces-old", aged.ids, home / "data").images)
    assert torch.allclose(aged.before, now.expand(N, 3), atol=1e-5)
    assert torch.allclose(aged.requested, now + torch.tensor([0.2, 0.4, 0.6]), atol=1e-5)
    assert torch.allclose(aged.after, regressor(aged.images.flatten(0, 1)).view(N, 3), atol=1e-5)


def test_hypotheses_on_disk_are_the_same(runs, tmp_path):
    found = read_hypotheses(runs[0] / "batches/hypotheses-0.safetensors")
    hypotheses.write_hypotheses(found, tmp_path / "h.safetensors")
    assert (tmp_path / "h.safetensors").read_bytes() == (runs[0] / "batches/hypotheses-0.safetensors").read_bytes()
    for one, two in zip(found, read_hypotheses(tmp_path / "h.safetensors"), strict=True):
        for item in fields(one):
            mine, other = getattr(one, item.name), getattr(two, item.name)
            assert torch.equal(mine, other) if isinstance(mine, torch.Tensor) else mine == other, item.name


# errors


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"method": "gan"}, "cells: method 'gan' is unknown; choose one of iso, iso/fast, lso, statistics, inr"),
        ({"method": "inr", "manifold": "vae"}, "cells: companion 'vae' is unknown; choose one of duq, dep"),
        ({"method": "inr", "strength": [0.5]}, "unexpected keyword argument 'strength'; fix it in config/"),
        ({"method": "iso", "like": "inr", "by": "size"}, "cells: by 'size' is unknown; choose one of change, own"),
        ({"method": "iso", "like": "inr"}, "cells: iso@inr needs the cell inr before it in the same entry"),
        ({"method": "inr", "reading": "P-E"}, "reading 'P-E' is unknown; choose one of P-A"),
        ({"method": "inr", "strengths": [1.5]}, "strengths [1.5] of inr are no confidences above 0 and up to 1"),
        ({"method": "iso", "strengths": []}, "strengths [] of iso are no confidences"),
        ({"method": "lso", "like": "inr"}, "cells: lso cannot be pushed; choose one of iso, inr, dip"),
    ],
)
def test_a_wrong_cell_is_one_line_and_writes_nothing(runs, home, tmp_path, monkeypatch, capsys, cell, message):
    entry = {"world": "faces-smile", "starts": "pairs", "n": 2, "cells": [cell]}
    said = failing(
        monkeypatch, capsys, shards, "--level", LEVEL,
        "--entries", json.dumps([entry]), "--recipes", json.dumps(RECIPES), "--systems",
        runs[0] / "systems", "--splits", home / "splits", "--data", home / "data", "--seed", 0,
        "--out", tmp_path / "s.safetensors",
    )  # fmt: skip
    assert message in said and list(tmp_path.iterdir()) == []


def test_a_wrong_entry_is_one_line_and_writes_nothing(runs, home, tmp_path, monkeypatch, capsys):
    iso, ascent = {"method": "iso", "strengths": [0.5]}, {"method": "pixel-ascent", "strengths": [0.5]}
    whole = {"world": "faces-smile", "starts": "pairs", "n": 2, "cells": [iso]}
    recipes = {**RECIPES, "faces-smile": {**RECIPE, "manifold": {"duq": 0.4}}}
    for change, message in (
        ({"cells": [iso, iso]}, "cells: iso stands twice in one entry; remove one"),
        ({"cells": [{"method": "inr", "manifold": "dep"}]}, "recipes: no λ₂ of dep; add it to `manifold` in config/"),
        ({"cells": [ascent, {"method": "iso", "like": "pixel-ascent", "by": "own"}]}, "draws nothing of its own"),
        ({"n": 4000}, "pairs for n = 4000; mend `n` or `splits` in config/"),
        ({"world": "faces-bald"}, "recipes: none for faces-bald; add it to config/"),
    ):
        given = {name: recipe for name, recipe in recipes.items() if name != "faces-bald"}
        said = failing(
            monkeypatch, capsys, shards, "--level", LEVEL,
        "--entries", json.dumps([whole | change]), "--recipes", json.dumps(given),
            "--systems", runs[0] / "systems", "--splits", home / "splits", "--data", home / "data", "--seed", 0,
            "--out", tmp_path / "s.safetensors",
        )  # fmt: skip
        assert message in said and list(tmp_path.iterdir()) == []


def test_a_wrong_corruption_or_field_of_a_recipe_is_one_line(runs, home, tmp_path, monkeypatch, capsys):
    entry = {"world": "faces-smile", "starts": "pairs", "n": 2, "cells": [{"method": "iso", "strengths": [0.5]}]}
    where = ("--systems", runs[0] / "systems", "--splits", home / "splits", "--data", home / "data", "--seed", 0)
    for change, recipe, message in (
        ({"corruption": ["fog", 1]}, RECIPE, "corruption 'fog' is unknown; choose one of noise"),
        ({}, {**RECIPE, "lambda": 1}, "unexpected keyword argument 'lambda'; fix it in config/"),
    ):
        given = ("--level", LEVEL, "--entries", json.dumps([entry | change]))
        given += ("--recipes", json.dumps({"faces-smile": recipe}))
        assert message in failing(monkeypatch, capsys, shards, *given, *where, "--out", tmp_path / "s.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", [shards, hypotheses, students, corruptions, measure])
def test_a_missing_companion_is_one_line_and_writes_nothing(runs, home, tmp_path, monkeypatch, capsys, module):
    """And a regressor in its place."""
    out, empty, other = tmp_path / "out", tmp_path / "empty", tmp_path / "other"
    empty.mkdir(), other.mkdir()
    shutil.copy(runs[0] / "systems/age-0.safetensors", other / "faces-smile-0.safetensors")
    where, ladder = ("--splits", home / "splits", "--data", home / "data"), runs[0] / "batches/ladder-0.safetensors"
    recipes = ("--recipes", json.dumps(RECIPES), "--seed", 0)
    arguments = {
        shards: ("--level", LEVEL,
                 "--entries", json.dumps([LADDER]), *recipes, *where, "--systems"),
        hypotheses: ("--entries", json.dumps(HYPOTHESES[:1]), *recipes, *where, "--systems"),
        students: ("--shards", ladder, "--recipe", json.dumps(BRIEF), "--methods", "iso", "--levels", LEVEL,
                   "--seeds", 0, "--test", 5, *where, "--companions"),
        corruptions: ("--shards", ladder, *where[2:], "--companions"),
        measure: ("--shards", ladder, *where, "--oracles", home / "oracles", "--systems"),
    }[module]  # fmt: skip
    for folder, reason in ((empty, "No such file"), (other, "it holds classifier")):
        said = failing(monkeypatch, capsys, module, *arguments, folder, "--out", out / "file")
        assert "faces-smile-0.safetensors: not a companion file" in said and reason in said
    assert not out.exists()


def test_a_regressor_that_is_none_is_one_line_and_writes_nothing(runs, home, tmp_path, monkeypatch, capsys):
    entry = {**HYPOTHESES[1], "regressor": "faces-smile"}
    where = ("--systems", runs[0] / "systems", "--splits", home / "splits", "--data", home / "data", "--seed", 0)
    given = ("--entries", json.dumps([entry]), "--recipes", json.dumps(RECIPES))
    said = failing(monkeypatch, capsys, hypotheses, *given, *where, "--out", tmp_path / "h.safetensors")
    assert "faces-smile-0.safetensors: not a classifier file (it holds companion)" in said
    unknown = ("--entries", json.dumps([{**HYPOTHESES[1], "kind": "ordinal"}]), *given[2:])
    said = failing(monkeypatch, capsys, hypotheses, *unknown, *where, "--out", tmp_path / "h.safetensors")
    assert "kind 'ordinal' is unknown; choose one of graded, regression" in said
    said = failing(monkeypatch, capsys, measure, "--shards", runs[0] / "batches/hypotheses-0.safetensors", "--systems",
                   runs[0] / "systems", "--splits", home / "splits", "--oracles", home / "oracles",
                   "--out", tmp_path / "out")  # fmt: skip
    assert "not a shard file (it holds hypotheses)" in said and list(tmp_path.iterdir()) == []


def test_a_training_that_diverges_names_its_world(home, tmp_path, monkeypatch, capsys):
    where = ("--splits", home / "splits", "--data", home / "data", "--seed", 0, "--out", tmp_path)
    for fields_, message in (
        ({"epochs": 1, "learning_rate": 1e30}, "faces-smile: training diverged in epoch 1"),
        ({"epoch": 1}, "unexpected keyword argument 'epoch'; fix it in config/"),
    ):
        recipes = json.dumps({"companions": {"faces-smile": fields_}})
        assert message in failing(monkeypatch, capsys, train, "--recipes", recipes, *where)
    assert list(tmp_path.iterdir()) == []
