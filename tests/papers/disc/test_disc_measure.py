"""What DISC's claims read, by hand: the added metrics on images whose answer is known, and the tables made of them."""

import functools
import inspect
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn

from common.batches import Shard
from common.classifiers.checkpoints import build, load_checkpoint, save_checkpoint
from common.classifiers.oracles import Panel
from common.data import datasets, faces
from common.digest import closure
from common.explain import CounterfactualBatch, finish
from common.files import ROOT
from common.metrics.realism import Features
from common.results import JUDGES
from papers.disc import cells, explain, measure
from papers.disc.hypotheses import Hypotheses

DATA = Path("no such folder")  # faces are rendered


def ids(first, last):
    return tuple(f"face-{k:05d}" for k in range(first, last))


def faced(first, last, world="faces-smile"):
    return datasets.load_ids(world, ids(first, last), DATA)


class Brightness(nn.Module):
    """Class 1 where the mean of an image, times `sign`, exceeds `bound`."""

    def __init__(self, bound=0.5, sign=1.0):
        super().__init__()
        self.bound, self.sign = bound, sign

    def forward(self, x):
        level = self.sign * (x.flatten(1).mean(1) - self.bound)
        return torch.stack([-level, level], 1)


@pytest.fixture(scope="module")
def world():
    """The world of smiles, with the features of a random net."""
    torch.manual_seed(0)
    names = datasets.world("faces-smile").class_names
    net = build("grid_cnn", name="features", image_shape=(3, 32, 32), class_names=names).eval()
    features = Features(net, faced(2000, 2100).images)
    return measure.World("faces-smile", Panel({}), features, faced(0, 400), faced(1000, 1060), DATA)


def shard_of(images, batches, **changed):
    facts = {
        "world": "faces-smile", "starts": "pairs", "classifier": "companion", "seed": 0, "ids": images.ids,
        "source": images.labels, "target": 1 - images.labels, "accuracy": 0.8, "source_prediction": images.labels,
        "interventions": {}, "batches": batches, "traces": {},
    }  # fmt: skip
    return Shard(**facts | changed)


def path_of(images, *changed, reference=None):
    """The path through some images N×C×H×W; strengths are .1, .2, …"""
    strengths = tuple((1 + s) / 10 for s in range(len(changed)))
    batch = finish(
        images.images, torch.stack(changed, 1), 1 - images.labels, classifier=Brightness(), strengths=strengths
    )
    return CounterfactualBatch(**{**vars(batch), "reference": reference})


# metrics


WAVES = [(3, 0, 0), (0, 8, 0), (9, 0, 1), (0, 16, 1), (5, 5, 0), (6, 6, 1), (1, 31, 0), (0, 0, None)]


@pytest.mark.parametrize(("down", "right", "high"), WAVES)
def test_a_sinusoid_is_high_above_a_quarter_of_a_cycle_per_pixel(down, right, high):
    v, u = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    wave, low = torch.cos(2 * math.pi * (down * v + right * u) / 32), torch.cos(2 * math.pi * 2 * u / 32)
    found = measure.high_frequency(torch.stack([wave, -wave, 2 * wave])[None] + 0.3)[0].item()
    if high is None:
        assert math.isnan(found)  # its mean is left out, and there is nothing else
        return
    assert found == pytest.approx(high, abs=1e-5)
    power = 0.25 * wave.square().mean().item() / low.square().mean().item()
    both = measure.high_frequency((0.5 * wave + low).expand(1, 3, 32, 32))[0].item()
    assert both == pytest.approx(high * power / (power + 1), abs=1e-5)  # shares of the energy


def test_drift_is_the_mean_way_along_what_nobody_asked_for():
    """Beyond what the way to the twin, here with glasses, takes an image anyway."""
    factors, x = datasets.face_factors(ids(0, 24)), faced(0, 24).images
    others = {name: faces.render(faces.twin(factors, name)) for name in ("old", "gray", "bald")}
    changed = {"label": faces.render(faces.twin(factors, "glasses"))} | others
    images = x + 0.3 * (changed["label"] - x) + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    found, bald = measure.drift(images, x, changed), factors.attribute("bald") == 1
    assert 0 < bald.sum() < 24
    for i in range(24):
        ways = {name: (other[i] - x[i]).double() for name, other in changed.items()}
        twin, mine, drifts = ways.pop("label"), (images[i] - x[i]).double(), []
        beyond = mine - (mine * twin).sum() / twin.square().sum() * twin
        if bald[i]:
            del ways["gray"]  # has no hair to show it
        for way in ways.values():
            drifts.append(abs((beyond * way).sum() / way.square().sum()).item())
        assert found[i].item() == pytest.approx(np.mean(drifts), rel=1e-3)
    for share in (0.0, 0.5, 1.0):  # neither doing nothing nor the true twin drifts
        along = measure.drift(x + share * (changed["label"] - x), x, changed)
        assert torch.allclose(along, torch.zeros(24), atol=1e-4)
    smiling = {"label": faces.render(faces.twin(factors, "smile")), "old": others["old"]}
    for share in (-0.5, 0.5):  # younger or older; a smile hardly moves along wrinkles
        along = measure.drift(x + share * (others["old"] - x), x, smiling)
        assert torch.allclose(along, torch.full((24,), 0.5), atol=0.05)


def test_localisation_is_one_by_chance_and_looks_at_the_own_change_too(world):
    originals = faced(0, 5)
    x, mask = originals.images, originals.masks[:, None]
    everywhere, inside = torch.full_like(x, 0.1), 0.2 * mask.expand_as(x)
    path = path_of(
        originals, x + everywhere, x + inside, x + everywhere + inside, x + 0.1 * (1 - mask), reference=x + everywhere
    )
    found = measure.more_metrics(shard_of(originals, {"inr": path}), "inr", path, {}, DATA)
    ones, nothing, area = torch.ones(5), torch.zeros(5), mask.mean((1, 2, 3))
    expected = {
        "localisation": [ones, 1 / area, 3 / (1 + 2 * area), nothing],
        "localisation_own": [ones * torch.nan, ones, 1 / area, 1 / area],  # the first is the reconstruction itself
        "own_distance": [nothing, 0.1 * ones, 0.2 * area, 0.1 * area],
    }
    for name, values in expected.items():
        assert torch.allclose(found[name], torch.cat(values), rtol=1e-3, atol=1e-5, equal_nan=True), name
    without = measure.more_metrics(shard_of(originals, {}), "inr", replace(path, reference=None), {}, DATA)
    assert torch.equal(without["localisation_own"], without["localisation"])


def test_a_path_is_valid_where_it_reached_its_threshold_and_pushed_ones_have_none(world):
    originals = faced(0, 6)
    x = originals.images
    path = path_of(originals, *(x * share for share in (0.2, 0.6, 1.0)))
    batch = replace(path, strengths=(0.4, path.confidence[0, 1].item(), 1.0))
    found = {name: measure.more_metrics(shard_of(originals, {}), name, batch, {}, DATA)["valid"].view(3, 6)
             for name in ("iso", "dip+duq", "inr", "iso@inr", "pixel-ascent", "twin")}  # fmt: skip
    expected = (path.confidence[:, :2] >= torch.tensor(batch.strengths[:2]) - 1e-6).float().T
    assert 0 < expected.mean() < 1
    for name, values in found.items():
        threshold = name in ("iso", "dip+duq", "inr")
        assert values[2].isnan().all() and (torch.equal(values[:2], expected) if threshold else values.isnan().all())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.permutations(range(5))] * 2), min_size=1, max_size=4))
def test_rank_correlation_is_that_of_scipy(rows):
    a, b = (torch.tensor(values).float().exp() for values in zip(*rows, strict=True))
    expected = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    assert measure.spearman(a, b).tolist() == pytest.approx(expected, abs=1e-6)
    assert (measure.spearman(a, a) == 1).all() and (measure.spearman(a, -a) == -1).all()
    tied = torch.tensor([[1.0, 2.0, 2.0], [1.0, 1.0, 1.0], [1.0, torch.nan, 3.0]])
    order = torch.tensor([[0.2, 0.4, 0.6]]).expand(3, 3)
    assert measure.spearman(order, tied).tolist() == pytest.approx([spearmanr([1, 2, 3], [1, 2, 2]).statistic, 0, 0])


def test_real_images_are_at_no_distance_from_real_images(world):
    some = faced(0, 200)
    noise = torch.rand(some.images.shape, generator=torch.Generator().manual_seed(0))
    made = {"real": some.images, "dimmed": 0.7 * some.images, "noise": noise}
    sets = {(name, 0.5): world.features(images) for name, images in made.items()}
    table = world.kid(shard_of(some, {}), sets)
    assert (table["n"] == 200).all() and table.groupby("method").size().to_dict() == dict.fromkeys(made, 401)
    kid = table[table["half"] == 0].set_index("method")["kid"]
    spread = table[(table["half"] > 0) & (table["method"] == "real")]["kid"].std()
    assert abs(kid["real"]) < 3 * spread and 10 * abs(kid["real"]) < kid["dimmed"] < kid["noise"]


def test_kid_leaves_out_the_images_that_were_explained(world):
    """Against copies of themselves real images would seem nearer than others."""
    some = faced(0, 200)
    sets = {("real", 0.5): world.features(some.images)}
    table = world.kid(shard_of(some, {}), sets)
    rest = replace(world, pairs=faced(200, 400))
    pd.testing.assert_frame_equal(table, rest.kid(shard_of(some, {}), sets))
    copies = world.kid(shard_of(faced(200, 400), {}), sets)
    assert copies["kid"][0] < table["kid"][0]


def test_a_judge_has_to_read_what_the_prior_draws(world):
    """A classifier of brightness, and judges: itself, its opposite, one that sees smiles everywhere. On some faces a
    smile is brightness; the prior draws the first few as their negatives."""
    everyone = faced(0, 200)
    bright = Brightness(everyone.images.mean().item())
    agree = (bright(everyone.images).argmax(1) == everyone.labels).nonzero()[:40, 0].tolist()
    some = datasets.load_ids("faces-smile", tuple(everyone.ids[k] for k in agree), DATA)
    judges = {"augmented": bright, "svm": Brightness(bright.bound, -1.0), "l2at": Brightness(-1.0)}
    here, smiling = replace(world, panel=Panel(judges), pairs=some), some.labels.float().mean().item()
    assert 0.3 < smiling < 0.7
    for turned in (0, 4, 5, 40):  # 4 of 40 are what a judge may miss, and what the drawings may cost
        drawn = some.images.clone()
        drawn[:turned] = 2 * bright.bound - drawn[:turned]
        batches = {"inr+duq": path_of(some, drawn, reference=drawn), "iso": path_of(some, some.images)}
        shard, right = shard_of(some, batches, accuracy=1.0), 1 - turned / 40
        gate = measure.judge_gate(shard, here, bright).set_index("judge")
        assert gate["accuracy"].to_dict() == pytest.approx({"augmented": 1, "svm": 0, "l2at": smiling})
        assert gate["reconstructed"].to_dict() == pytest.approx({"augmented": right, "svm": 1 - right, "l2at": smiling})
        assert (gate["adequate"] == float(turned <= 4)).all()
        assert gate["passes"].to_dict() == {"augmented": turned <= 4, "svm": False, "l2at": False}
        dip = replace(shard, starts="dip", batches={"dip+duq": batches["inr+duq"], "inr+duq": batches["iso"]})
        other = measure.judge_gate(dip, here, bright).set_index("judge")
        assert (gate.pop("starts") == "pairs").all() and (other.pop("starts") == "dip").all() and gate.equals(other)


# hypotheses


def deepened(factors, depth):
    """The same faces with wrinkles of these depths."""
    attributes = factors.attributes.clone()
    attributes[:, faces.ATTRIBUTES.index("old")] = 1
    return faces.render(replace(factors, attributes=attributes, lines=(depth - 0.55) / 0.45))


def test_the_exact_reader_gives_the_depth_of_the_wrinkles(tmp_path):
    for seed, name in enumerate(("age", "age-reader")):
        torch.manual_seed(seed)
        regressor = build("grid_cnn", name=name, image_shape=(3, 32, 32), class_names=("depth",)).eval()
        save_checkpoint(regressor, tmp_path / f"{name}-7.safetensors", architecture="grid_cnn", facts={})
    own, reader = (load_checkpoint(tmp_path / f"{name}-7.safetensors") for name in ("age", "age-reader"))
    everyone = faced(0, 20, "faces-old")
    young = tuple(image for image, old in zip(everyone.ids, everyone.labels, strict=True) if not old)[:6]
    factors, asked = datasets.face_factors(young), torch.tensor([0.1, 0.25, 0.6])
    x = faces.render(factors)
    assert torch.allclose(deepened(factors, factors.wrinkles), x, atol=1e-5)
    images = torch.stack([deepened(factors, factors.wrinkles + depth) for depth in asked.tolist()], 1)
    before, after = own(x).expand(6, 3).contiguous(), own(images.flatten(0, 1)).view(6, 3)
    target, error = torch.ones(6).long(), torch.zeros(6)
    found = Hypotheses("faces-old", "regression", 7, young, target, images, before + asked, before, after, error)
    rows = measure.hypothesis_rows(found, tmp_path, DATA).set_index(["image", "strength"])
    assert len(rows) == 18 and not rows.index.duplicated().any()
    for i, image in enumerate(young):
        twins, depths = datasets.twins("faces-old", (image,))[0], faces.twin(factors[[i]], "old", 1).wrinkles
        reliance = ((own(twins[1:]) - own(twins[:1])) / (depths - factors.wrinkles[i])).item()
        for j, depth in enumerate(asked.tolist()):
            row, reached = rows.loc[(image, j)], (after - before)[i, j].item()
            seen = (reader(images[i, j][None]) - reader(x[i][None])).item()
            expected = {
                "requested": depth, "reached": reached, "rank": 1, "exact": depth, "reader": seen,
                "reliance": reliance, "half_exact": depth / 2, "half_reader": seen - depth / 2,
                "met": float(abs(reached - depth) <= 0.05),
            }  # fmt: skip
            assert row[list(expected)].to_dict() == pytest.approx(expected, abs=2e-3)
    backwards = replace(found, images=images.flip(1))
    assert (measure.hypothesis_rows(backwards, tmp_path, DATA)["rank"] == -1).all()


def test_a_probability_is_met_within_five_points():
    requested = torch.tensor([0.25, 0.5, 0.75]).expand(2, 3).contiguous()
    after = torch.tensor([[0.29, 0.56, 0.71], [0.5, 0.46, 0.1]])
    images = faced(0, 2).images[:, None].repeat(1, 3, 1, 1, 1)
    found = Hypotheses(
        "faces-smile", "graded", 0, ids(0, 2), torch.ones(2).long(), images, requested, 0 * after, after, torch.zeros(2)
    )
    rows = measure.hypothesis_rows(found, DATA, DATA)
    assert rows["met"].tolist() == [1, 0, 1, 0, 1, 0] and rows["rank"].tolist() == [1] * 3 + [-1] * 3
    assert np.allclose(rows["reached"], after.flatten()) and np.allclose(rows["requested"], requested.flatten())
    assert rows[["exact", "reader", "reliance", "half_exact", "half_reader"]].isna().all(axis=None)


# tables


def test_what_failed_convinces_nobody():
    rows = pd.DataFrame({
        "status": ["ok", "diverged", "not_flipped", "diverged"], "valid": [1.0, 1, 0, np.nan],
        **{f"oracle_{judge}": [1.0, 1, 1, np.nan] for judge in JUDGES}, "distance": [0.1, 0.2, 0.3, 0.4],
    })  # fmt: skip
    found = cells.failed(rows)
    assert found["valid"].tolist() == [1, 0, 0, 0] and found["distance"].equals(rows["distance"])
    assert all(found[f"oracle_{judge}"].tolist() == [1, 0, 1, 0] for judge in JUDGES)
    assert "valid" not in cells.failed(rows.drop(columns="valid"))  # corrupted queries have none


def test_corrupted_queries_by_hand():
    facts = {"world": "w", "seed": 0, "strength": 0.9}
    lines = [  # starts, method, image, confidence at its own level, the panel's word
        ("pairs", "m", "a", 0.95, 1), ("pairs", "m", "b", 0.95, 1), ("pairs", "m", "c", 0.5, 1),
        ("screening", "m", "a", 0.2, 0), ("corrupted-x", "m", "a", 0.95, 1), ("corrupted-x", "m", "b", 0.6, 1),
        ("corrupted-x", "m", "c", 0.9 - 5e-7, 1), ("corrupted-y", "m", "a", 0.95, 0),
        ("corrupted-y", "m", "b", 0.95, 1), ("corrupted-y", "m", "c", 0.95, 0), ("corrupted-y", "other", "a", 0.95, 1),
    ]  # fmt: skip
    names = ["starts", "method", "image", "confidence", "oracle_valid"]
    everything = pd.DataFrame(lines, columns=names).assign(**facts)
    earlier = everything.assign(strength=0.5, oracle_valid=1.0, confidence=1.0)  # no strength but the own level counts
    everything = pd.concat([earlier, everything], ignore_index=True)
    corrupted = everything["starts"].str.startswith("corrupted")
    found = cells.corrupted_queries(everything[corrupted], everything[~corrupted], 0.9)
    read = found.set_index(["starts", "image"])[["corrupted", "clean", "held"]].round(9)
    assert {key: tuple(row) for key, row in zip(read.index, read.to_numpy(), strict=True)} == {
        ("corrupted-x", "a"): (1, 1, 0.4), ("corrupted-x", "b"): (0, 1, -0.6), ("corrupted-x", "c"): (1, 0, 1),
        ("corrupted-y", "a"): (0, 1, -0.6), ("corrupted-y", "b"): (1, 1, 0.4), ("corrupted-y", "c"): (0, 0, 0),
        ("corrupted", "a"): (0.5, 1, -0.1), ("corrupted", "b"): (0.5, 1, -0.1), ("corrupted", "c"): (0.5, 0, 0.5),
    }  # fmt: skip


def test_survival_by_hand():
    keys = {"world": "w", "starts": "pairs", "seed": 0, "strength": 0.9}
    lines = [
        ("m", "a", "noise", 1, 1), ("m", "a", "noise", 3, 0), ("m", "a", "blur", 1, 1), ("m", "a", "blur", 3, 1),
        ("m", "b", "noise", 1, 0), ("m", "b", "noise", 3, 0), ("m", "b", "blur", 1, 1), ("m", "b", "blur", 3, 0),
        ("m+dep", "a", "blur", 1, 1), ("m+dep", "a", "blur", 3, 0),
    ]  # fmt: skip
    rows = pd.DataFrame(lines, columns=["method", "image", "corruption", "severity", "survives"]).assign(**keys)
    found = cells.survival(rows).set_index(["method", "image"])[["survives", "survives_noise", "survives_blur"]]
    assert found.loc[("m", "a")].tolist() == [0.75, 0.5, 1] and found.loc[("m", "b")].tolist() == [0.25, 0, 0.5]
    assert found.loc["m+dep", "survives"].tolist() == [0.5] and found.loc["m+dep", "survives_noise"].isna().all()


def code_of(package, folder):
    """A copy of the code of a package of this repository, below `folder`."""
    for path in (ROOT / package).rglob("*.py"):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


def test_the_premise_holds_and_would_not_with_data_within_reach(monkeypatch, tmp_path):
    assert cells.premise().set_index("quantity")["count"].to_dict() == {
        "parameters": 0, "data modules": 0, "trained generators": 0
    }  # fmt: skip
    code_of("common", tmp_path)
    code_of("papers", tmp_path)
    monkeypatch.setattr(cells, "closure", functools.partial(closure, root=tmp_path))
    path = tmp_path / "papers/disc/consistency.py"  # which `explain` imports
    source = path.read_text()
    for line, more in (
        ("", set()),
        ("from common.data import datasets", {"data modules"}),
        ("def late():\n    from common.classifiers.companion import load_companion", {"data modules"}),
        ("import common.generators.vae", {"trained generators", "data modules"}),
    ):
        path.write_text(f"{source}\n{line}\n")
        table = cells.premise()
        assert set(table.loc[table["count"] > 0, "quantity"]) == more, line

    def greedy(images, source, target, *, classifier, rng, training_images):
        """One parameter too many."""

    path.write_text(source)
    monkeypatch.setattr(cells, "explain", greedy)
    assert cells.premise()["count"].tolist() == [1, 0, 0]
    assert set(inspect.signature(explain.explain).parameters) == cells.CONTRACT | cells.SETTINGS
