"""What methods of the comparison do with the papers' functions: conditions, answers, latents between images."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from common.batches import Shard
from common.data.datasets import Images
from common.explain import Streams, finish
from comparison.cells import adequacy, panel_change, second_gate
from comparison.figures import areas, outcomes
from comparison.measure import Readers, finals, handed_out, localisation
from comparison.methods.clarity import mixed, read_by
from comparison.methods.contrastive import Classes, wanted
from papers.contrastive.labels import Labels
from papers.contrastive.systems import System


class Reads(nn.Module):
    """Logits linear in the image."""

    def __init__(self, k, seed=0, shape=(3, 4, 4)):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(int(np.prod(shape)), k, generator=generator)

    def forward(self, images):
        return images.flatten(1) @ self.weight


def images(n=6, shape=(3, 4, 4)):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))


def test_the_log_odds_of_every_class_are_those_of_its_probability():
    f, x = Reads(5), images()
    p = f(x).double().softmax(1)
    torch.testing.assert_close(Classes(f)(x).double(), (p / (1 - p)).log(), rtol=1e-4, atol=1e-4)


def test_a_confident_class_has_finite_log_odds():
    f, x = Reads(3), images()
    f.weight *= 1e3
    assert Classes(f)(x).isfinite().all()


def test_digits_ask_for_the_target_and_for_no_other_class():
    system = System("digits", nn.Identity(), 4, Labels(tuple("abc"), (Reads(3),), ()), Labels((), (), ()))
    c = wanted(system, images(2), torch.tensor([2, 0]))
    assert c.tolist() == [[-1, -1, 1], [1, -1, -1]]


def test_faces_ask_for_the_target_and_hold_the_rest_where_it_is():
    f, x, target = Reads(3), images(), torch.tensor([0, 1, 0, 1, 0, 1])
    system = System("faces", nn.Identity(), 4, Labels(("target", "old", "bald"), (f,), ()), Labels((), (), ()))
    c = wanted(system, x, target)
    assert (c[:, 0] == 2 * target - 1).all()
    assert (c[:, 1:] == (f(x)[:, 1:] > 0) * 2.0 - 1).all()


def test_latents_lie_on_the_way_between_two_of_those_given():
    z = torch.eye(3)
    found = mixed(z, 200, seed=0)
    assert found.shape == (200, 3) and (found >= 0).all() and torch.allclose(found.sum(1), torch.ones(200))
    assert ((found > 0).sum(1) <= 2).all() and torch.equal(found, mixed(z, 200, seed=0))


def test_another_reader_changes_confidence_and_status_but_nothing_that_was_done():
    x, target = images(), torch.tensor([0, 1, 2, 0, 1, 2])
    paths = torch.stack([x, 1 - x], 1)
    diverged = torch.zeros(6, 2, dtype=torch.bool)
    diverged[0] = True
    batch = finish(x, paths, target, classifier=Reads(3, 5), strengths=(0.5, 1.0), diverged=diverged)
    f = Reads(3, 9)
    read = read_by(batch, x, target, f)
    expected = f(paths.flatten(0, 1)).log_softmax(1).view(6, 2, 3)
    torch.testing.assert_close(read.log_confidence, expected.gather(2, target.view(6, 1, 1).expand(6, 2, 1))[..., 0])
    assert (read.status[0] == "diverged").all()
    assert ((read.status[1:] == "ok") == (expected.argmax(2) == target[:, None]).numpy()[1:]).all()
    assert torch.equal(read.images, batch.images) and torch.equal(read.distance, batch.distance)


def shard_of_digits(f):
    x, source, target = images(4, (1, 28, 28)), torch.tensor([0, 1, 2, 3]), torch.tensor([1, 2, 3, 4])
    ids = tuple(f"mnist-{k:04d}" for k in range(4))
    rng = Streams(0, ids, tuple(target.tolist()))
    paths = (x[:, None] + 0.3 * rng.normal((2, 1, 28, 28), "noise")).clamp(0, 1)
    batch = finish(x, paths, target, classifier=f, strengths=(1.0, 2.0))
    return x, Shard(
        "mnist", "pairs", "l2at", 0, ids, source, target, 1.0, source, {}, {"mine": batch}, {}
    )  # fmt: skip


def test_gains_and_drops_are_differences_of_probabilities():
    f = Reads(10, shape=(1, 28, 28))
    f.weight /= 20
    x, shard = shard_of_digits(f)
    seen = Readers(shard, {"f": f}, x).changes(shard.batches["mine"].images.transpose(0, 1).flatten(0, 1))
    for s, n in np.ndindex(2, 4):
        before, after = f(x[n][None]).softmax(1)[0], f(shard.batches["mine"].images[n, s][None]).softmax(1)[0]
        t, c, row = int(shard.target[n]), int(shard.source[n]), 4 * s + n
        assert seen["gain_f"][row] == pytest.approx(float(after[t] - before[t]), abs=1e-6)
        assert seen["drop_f"][row] == pytest.approx(float(before[c] - after[c]), abs=1e-6)
        assert seen["p_f"][row] == pytest.approx(float(after[t]), abs=1e-6)


def test_who_asks_for_one_image_gets_the_first_success_that_did_not_fail():
    x = images(3)
    paths = torch.stack([x, x / 2, x / 4], 1)
    batch = finish(x, paths, torch.zeros(3, dtype=torch.long), classifier=Reads(3), strengths=(1.0, 2.0, 3.0))
    confidence = torch.tensor([[0.95, 0.95, 0.95], [0.1, 0.95, 0.2], [0.1, 0.2, 0.3]])
    status = np.array([["diverged", "ok", "ok"], ["ok", "diverged", "ok"], ["ok", "ok", "diverged"]])
    batch = replace(batch, log_confidence=confidence.log(), status=status)
    assert torch.equal(handed_out("mine", batch, 0.9), torch.stack([paths[0, 1], paths[1, 2], paths[2, 1]]))
    assert torch.equal(handed_out("twin", batch, 0.9), paths[:, -1])  # of what is trivial the end


def test_gains_of_a_drawing_are_counted_from_the_drawing():
    f = Reads(10, shape=(1, 28, 28))
    f.weight /= 20
    x, shard = shard_of_digits(f)
    start = (x + 0.3).clamp(0, 1)
    flat = shard.batches["mine"].images.transpose(0, 1).flatten(0, 1)
    seen = Readers(shard, {"f": f}, x).changes(flat, start, own=True)
    rows = shard.target.repeat(2)[:, None]
    before = f(start).softmax(1).repeat(2, 1).gather(1, rows)[:, 0]
    expected = f(flat).softmax(1).gather(1, rows)[:, 0] - before
    np.testing.assert_allclose(seen["own_gain_f"], expected, atol=1e-6)


def test_judges_that_cannot_read_the_drawings_of_an_adequate_generator_have_no_vote():
    gate = pd.DataFrame({"world": "w", "judge": ["augmented", "svm", "l2at"], "passes": [True, True, False]})
    facts = {"world": "w", "classifier": "f", "seed": 0, "accuracy": 1.0}
    drawn = pd.DataFrame(
        [
            {**facts, "method": method, "reader": reader, "reconstructed": value}
            for method, values in {"good": (0.95, 0.8, 0.95, 0.95), "bad": (0.1, 0.99, 0.99, 0.2)}.items()
            for reader, value in zip(("augmented", "svm", "l2at", "f"), values, strict=True)
        ]
    )
    assert second_gate(gate, drawn, adequacy(drawn))["passes"].tolist() == [True, False, False]


def test_a_world_without_masks_has_no_place():
    f = Reads(10, shape=(1, 28, 28))
    x, shard = shard_of_digits(f)
    world = SimpleNamespace(autoencoders=None)
    table = finals(shard, Readers(shard, {"f": f}, x), Images(x, shard.source, shard.ids), world, 2.0)  # out of reach
    assert "precision" not in table and not any(name.startswith("progress_") for name in table)
    last = shard.batches["mine"].images[:, -1]
    np.testing.assert_allclose(table["l2"], (last - x).flatten(1).norm(dim=1), rtol=1e-6)


def test_the_average_precision_of_a_map_is_that_of_its_ranking():
    """By hand: the two pixels of the mask are first and third, (1/1 + 2/3) / 2; a constant map has the share of the
    mask, which is chance."""
    masks = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]).repeat(2, 1, 1)
    maps = torch.tensor([[[0.9, 0.8], [0.7, 0.1]], [[0.5, 0.5], [0.5, 0.5]]])
    found = localisation(maps, masks)
    assert found["precision"] == pytest.approx([(1 + 2 / 3) / 2, 0.5]) and found["area"] == pytest.approx([0.5, 0.5])


def test_only_judges_that_pass_their_gate_are_in_the_mean():
    gate = pd.DataFrame({"world": "w", "judge": ["augmented", "svm", "l2at"], "passes": [True, False, True]})
    table = pd.DataFrame({"world": ["w"]}).assign(
        **{f"{kind}_{judge}": [value] for kind in ("gain", "drop", "p") for judge, value in
           {"augmented": 0.2, "svm": 9.0, "l2at": 0.4}.items()}
    )  # fmt: skip
    assert panel_change(table, gate)[["gain", "drop", "p"]].to_numpy() == pytest.approx(0.3)


def test_a_generator_is_adequate_up_to_ten_points():
    drawn = pd.DataFrame(
        {"world": "w", "classifier": "f", "method": ["a", "b", "a"], "seed": 0, "reader": ["f", "f", "svm"],
         "accuracy": [1.0, 1.0, 1.0], "reconstructed": [0.9, 0.89, 0.1]}
    )  # fmt: skip
    assert adequacy(drawn).set_index("method")["adequate"].to_dict() == {"a": 1.0, "b": 0.0}


def test_a_method_looks_the_same_in_every_axes_of_a_figure():
    """Worlds hold different methods: colours must not follow the order within a world."""
    rows = [
        {"world": world, "classifier": "f", "method": method, "area": area, "drop_f": 0.5, "drop": 0.5}
        for world, methods in {"a": ("one", "two", "three", "twin"), "b": ("three", "twin")}.items()
        for method in methods
        for area in (0.1, 0.2)
    ]
    table = pd.DataFrame(rows).assign(drop_f_low=0.4, drop_f_high=0.6, drop_low=0.4, drop_high=0.6)
    figure = areas(table)
    shown = [
        {label: bars[0].get_color() for bars, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        for axis in figure.axes
    ]
    assert shown[0] == shown[2] and shown[1] == {name: shown[0][name] for name in ("three", "twin")}
    assert len(set(shown[0].values())) == 4


def test_who_answers_for_itself_is_marked_whatever_the_last_world_holds_and_gaps_are_not_silent():
    facts = {"classifier": "f", "effect": 0.1, "honest": 0.2, "mark": ""}
    rows = [
        {**facts, "world": "a", "method": "own", "mark": "B of its own classifier"},
        {**facts, "world": "a", "method": "twin"},
        {**facts, "world": "b", "method": "twin"},
    ]
    bounds = {f"{name}_{end}": value for name, value in (("effect", 0.1), ("honest", 0.2)) for end in ("low", "high")}
    figure = outcomes(pd.DataFrame(rows).assign(**bounds))
    assert all([label.get_text() for label in axis.get_yticklabels()] == ["own †", "twin"] for axis in figure.axes[::2])
    assert [[text.get_text() for text in axis.texts] for axis in figure.axes] == [[], [], ["n/a"], ["n/a"]]
