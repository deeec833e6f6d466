"""Rows of a shard against a loop over strengths, and the panel's word against counting votes by hand."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from common.anchors import towards
from common.classifiers.oracles import Panel
from common.data import datasets
from common.explain import finish, log_confidence
from common.measure import by_strength, judged, measure_shard, passing_judges, reliance
from common.metrics import ground_truth, perturbation
from common.results import JUDGES
from common.shards import pass_seconds, shard_of

NONE, N = Path("none"), 6


class Reads(nn.Module):
    """Logits linear in the image."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(3 * 32 * 32, 5, generator=generator)

    def forward(self, images):
        return images.flatten(1) @ self.weight


@pytest.fixture(scope="module")
def explained():
    """Start images of `scenes`, targets, and a shard of two methods with paths of different lengths."""
    sizes = {"systems": 0, "calibration": 0, "oracles": 0, "tuning": 0, "pairs": 20}
    table = datasets.draw_splits("scenes", sizes, 0, NONE)
    everyone, pairs = (datasets.load("scenes", table, "pairs", NONE, n) for n in (None, N))
    target, classifier = datasets.targets(table, pairs.ids), Reads(0)
    batches = {}
    for name, strengths in (("short", (0.5,)), ("long", (0.2, 0.6, 0.9))):
        paths = towards(pairs.images, pairs.images.flip(3), strengths)
        batches[name] = finish(pairs.images, paths, target, classifier=classifier, strengths=strengths)
    facts = {"starts": "pairs", "classifier": "reads", "seed": 3, "batches": batches, "traces": {}}
    return table, pairs, shard_of("scenes", classifier, pairs, target, everyone, **facts), everyone


def test_targets_are_those_of_the_table_in_any_order(explained):
    table, pairs, shard, _ = explained
    drawn = dict(zip(table["id"], table["target"], strict=True))
    assert shard.target.tolist() == [drawn[image] for image in pairs.ids]
    assert datasets.targets(table, pairs.ids[::-1]).tolist() == shard.target.tolist()[::-1]


def test_a_shard_knows_what_its_classifier_sees(explained):
    _, pairs, shard, everyone = explained
    classifier = Reads(0)
    right = [int(classifier(x[None]).argmax()) == int(y) for x, y in zip(everyone.images, everyone.labels, strict=True)]
    assert shard.accuracy == pytest.approx(np.mean(right))
    assert torch.equal(shard.source_prediction, classifier(pairs.images).argmax(1))
    changed = datasets.interventions("scenes", pairs.ids, shard.target)
    assert set(shard.interventions) == set(changed)
    for factor, images in changed.items():
        assert torch.equal(shard.interventions[factor], classifier(images).argmax(1))
        flips = (shard.interventions[factor] != shard.source_prediction).double().mean().item()
        assert reliance(shard)[factor] == pytest.approx(flips)


def test_rows_are_a_loop_over_methods_and_strengths(explained):
    _, pairs, shard, _ = explained
    panel = Panel({"augmented": Reads(1), "svm": Reads(2)})
    rows = measure_shard(shard, panel, NONE)
    twins = datasets.twins("scenes", pairs.ids)[torch.arange(N), shard.target]
    places = [(method, j) for method, batch in shard.batches.items() for j in range(len(batch.strengths))]
    assert len(rows) == N * len(places)
    for k, (method, j) in enumerate(places):
        block, batch = rows.iloc[N * k : N * (k + 1)].reset_index(drop=True), shard.batches[method]
        x, strength = batch.images[:, j], batch.strengths[j]
        assert set(block["method"]) == {method} and block["strength"].tolist() == [strength] * N
        assert block["image"].tolist() == list(pairs.ids) and block["source"].tolist() == pairs.labels.tolist()
        assert block["status"].tolist() == batch.status[:, j].tolist()
        expected = {
            "confidence": batch.confidence[:, j],
            "distance": batch.distance[:, j],
            "l2": perturbation.lp_norm(pairs.images - x, 2),
            "gini": perturbation.gini(x - pairs.images),
            "on_mask": perturbation.on_mask(x - pairs.images, pairs.masks),
            "mask_area": pairs.masks.flatten(1).mean(1),
            "twin_error": ground_truth.twin_error(x, pairs.images, twins),
            "oracle_svm": (Reads(2)(x).argmax(1) == shard.target).float(),
            "steps": batch.steps[:, j],
        }
        for name, values in expected.items():
            assert np.allclose(block[name], values.numpy(), atol=1e-6), name
        assert block["oracle_l2at"].isna().all() and block["oracle_twin"].notna().all()


def test_by_strength_is_the_order_of_rows():
    values = torch.arange(24).view(4, 3, 2)
    assert torch.equal(by_strength(values), torch.cat([values[:, j] for j in range(3)]))


def gate(passes):
    """A gate of two classifiers: a judge passes beside both or fails beside the second."""
    lines = [
        {"world": world, "classifier": k, "judge": judge, "passes": good or k == 0}
        for world, judges in passes.items()
        for judge, good in judges.items()
        for k in (0, 1)
    ]
    return pd.DataFrame(lines)


def test_only_judges_that_pass_everywhere_vote_and_more_than_half_decide():
    everything = list(itertools.product((0.0, 1.0), repeat=3))
    votes = pd.DataFrame(everything, columns=["oracle_augmented", "oracle_svm", "oracle_l2at"])
    rows = pd.concat([votes.assign(world=world, oracle_twin=np.nan) for world in ("a", "b", "c")], ignore_index=True)
    panels = {
        "a": {"augmented": True, "svm": True, "l2at": True},
        "b": {"augmented": True, "svm": False, "l2at": True},
        "c": {"augmented": False, "svm": False, "l2at": False},
    }
    found = judged(rows, gate(panels))
    assert passing_judges(gate(panels), "b") == {"augmented", "l2at"}
    for world, judges in panels.items():
        part, who = found[found["world"] == world], [name for name, good in judges.items() if good]
        for (_, line), original in zip(part.iterrows(), everything, strict=True):
            cast = [vote for name, vote in zip(judges, original, strict=True) if name in who]
            assert [line[f"oracle_{name}"] for name in who] == cast
            assert all(np.isnan(line[f"oracle_{name}"]) for name in JUDGES if name not in who)
            if cast:
                assert line["oracle_share"] == pytest.approx(np.mean(cast))
                assert line["oracle_valid"] == (sum(cast) > len(cast) / 2)  # half of two is no majority
            else:
                assert np.isnan(line["oracle_share"]) and np.isnan(line["oracle_valid"])
    assert rows["oracle_svm"].notna().all()  # the rows that came in are as they were


def test_the_twin_reader_votes_beside_the_judges_that_pass():
    rows = pd.DataFrame({"world": ["a"] * 2, **{f"oracle_{name}": [1.0, 0.0] for name in JUDGES}})
    rows["oracle_twin"] = [0.0, 1.0]
    found = judged(rows, gate({"a": {"augmented": True, "svm": False, "l2at": False}}))
    assert found["oracle_share"].tolist() == [0.5, 0.5] and found["oracle_valid"].tolist() == [0.0, 0.0]


def test_a_pass_is_timed_at_its_batch(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr("common.shards.time.perf_counter", lambda: next(clock))
    seen = []
    objective = log_confidence(Reads(0), torch.zeros(4, dtype=torch.long))

    def counted(x, rows):
        seen.append(rows.tolist())
        return objective(x, rows)

    assert pass_seconds(counted, torch.rand(4, 3, 32, 32), repeats=3) == pytest.approx(2.0 / 4)  # the median of 3, 1, 2
    assert seen == [[0, 1, 2, 3]] * 3
