"""The face world: the specification's table by enumeration, its decision rules, its prior, its systems and its file."""

import numpy as np
import pytest
import torch
from face_rules import cells, exclusive, majority
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from common.data.faces import render
from common.errors import VceError
from common.generators.vae import VAE
from papers.contrastive import faces
from papers.contrastive.edits import conditions, labelled
from papers.contrastive.labels import Labels
from papers.contrastive.prior import Mixture, standard_normal
from papers.contrastive.systems import (
    NETWORKS,
    FaceWorld,
    System,
    load_system,
    load_world,
    network,
    nuisance_reader,
    save_world,
)  # fmt: skip
from papers.contrastive.train import frozen_hash
from papers.contrastive.worlds import nuisance_values, training_faces


@pytest.mark.parametrize(
    ("rule", "attribute", "effect", "expected"),
    [
        ("majority", "old", "total", (1 - 0.02 / 0.92, 0.90 / 0.98, 0.900)),
        ("majority", "old", "direct", (0.478, 0.265, 0.350)),
        ("majority", "gray", "total", (0.17 / 0.41, 0.13 / 0.49, 0.300)),
        ("majority", "gray", "direct", (0.17 / 0.41, 0.13 / 0.49, 0.300)),
        ("majority", "glasses", "direct", (0.226, 0.182, 0.150)),
        ("majority", "smile", "total", (0, 0, 0)),
        ("exclusive", "old", "total", (0.818, 0.486, 0.360)),
        ("exclusive", "old", "direct", (0, 0, 0)),
        ("exclusive", "gray", "direct", (1, 1, 0.600)),
        ("exclusive", "glasses", "direct", (1, 1, 0.550)),
        ("exclusive", "mustache", "direct", (0, 0, 0)),
    ],
)
def test_the_exact_scores_are_those_of_the_specification(rule, attribute, effect, expected):
    found = faces.exact(rule, attribute, effect)
    assert [found[name] for name in ("nec", "suf", "nesuf")] == pytest.approx(expected, abs=6e-4)


def test_the_rules_are_those_of_another_enumeration():
    _, weights = cells()
    assert weights.sum().item() == pytest.approx(1.0)
    attributes = (torch.rand(200, 5, generator=torch.Generator().manual_seed(0)) < 0.5).long()
    assert torch.equal(faces.decided(attributes), torch.stack([majority(attributes), exclusive(attributes)], 1))


def test_worlds_differ_where_they_say_and_nowhere_else():
    model, coins = faces.draw("a", 4000), faces.draw("a", 4000, independent=True)
    rates = faces.present(model).float().mean(0)
    assert rates == pytest.approx(torch.tensor([0.5, 0.45, 0.4, 0.5, 0.3]), abs=0.03)
    assert faces.present(coins).float().mean(0) == pytest.approx(torch.full((5,), 0.5), abs=0.03)
    correlation = np.corrcoef(faces.present(coins).T)
    assert np.abs(correlation - np.eye(5)).max() < 0.06
    assert np.corrcoef(faces.present(model).T)[0, 1] > 0.5
    assert torch.equal(coins.noise, 2 * model.noise) and torch.equal(coins.centre, model.centre)
    assert not model.attribute("bald").any() and not coins.attribute("bald").any()


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_mustache_says_the_smile_as_often_as_asked(share):
    drawn = faces.draw("b", 3000, share, independent=True)
    agrees = (drawn.attribute("smile") == drawn.attribute("mustache")).float().mean().item()
    assert agrees == pytest.approx(share, abs=0.03)
    assert drawn.attribute("smile").float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_training_faces_are_shared_only_by_an_annotator_and_its_decisions():
    images, labels = training_faces("annotator", 0, 6)
    same, decisions = training_faces("rules", 0, 6)
    assert torch.equal(images, same) and torch.equal(decisions, faces.decided(labels))
    for other in ("matched-annotator", "auditor"):
        assert not torch.equal(images, training_faces(other, 0, 6)[0])
    assert training_faces("confounded", 0, 6)[1].shape == (6, 1)


# prior


def test_a_mixture_has_the_moments_of_its_components_and_a_draw_depends_on_itself_alone():
    weights, means = torch.tensor([0.3, 0.7], dtype=torch.float64), torch.tensor([[5.0, 0], [-5, 1]])
    roots = torch.tensor([[[1.0, 0], [0.5, 0.2]], [[0.3, 0], [0, 2]]])
    prior = Mixture(weights, means, roots)
    generator = torch.Generator().manual_seed(0)
    uniform, normal = torch.rand(40000, generator=generator), torch.randn(40000, 2, generator=generator)
    z = prior(uniform, normal)
    left = z[z[:, 0] < 0]
    assert len(left) / len(z) == pytest.approx(0.7, abs=0.01)
    torch.testing.assert_close(left.T.cov(), roots[1] @ roots[1].T, atol=0.06, rtol=0.05)
    torch.testing.assert_close(prior(uniform[3:5], normal[3:5]), z[3:5])
    assert standard_normal(uniform, normal) is normal


def test_a_mixture_is_fitted_and_a_singular_one_is_refused():
    generator = torch.Generator().manual_seed(0)
    latents = torch.cat([torch.randn(500, 3, generator=generator) - 4, torch.randn(500, 3, generator=generator) + 4])
    prior = Mixture.fit(latents, 2, 0)
    assert sorted(prior.means[:, 0].round().tolist()) == [-4, 4]
    assert prior.weights.tolist() == pytest.approx([0.5, 0.5], abs=0.01)
    with pytest.raises(VceError, match="singular"):
        Mixture.fit(torch.cat([latents, torch.zeros(1000, 1)], 1), 2, 0)


# systems


@pytest.fixture(scope="module")
def world():
    torch.manual_seed(0)
    vae = VAE("conv", (3, 32, 32), 2, (4, 4, 4)).eval().requires_grad_(False)
    prior = Mixture(torch.ones(1, dtype=torch.float64), torch.zeros(1, 32), torch.eye(32)[None])
    networks = {name: network(name).eval().requires_grad_(False) for name in NETWORKS}
    return FaceWorld(vae, prior, networks, nuisance_reader().requires_grad_(False))


def test_a_world_comes_back_from_its_file(world, tmp_path):
    save_world(world, tmp_path / "w.safetensors", {"seed": 3})
    again, facts = load_world(tmp_path / "w.safetensors")
    assert facts == {"seed": 3}
    for name in ("faces", "faces-matched", "faces-partial"):
        assert frozen_hash(again.system(name)) == frozen_hash(world.system(name))
    assert frozen_hash(world.system("faces")) != frozen_hash(world.system("faces-matched"))
    with pytest.raises(VceError, match="'faces-other' is unknown"):
        world.system("faces-other")
    with pytest.raises(VceError, match="give the file of its face world"):
        load_system("faces", None)
    (tmp_path / "broken.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:300])
    with pytest.raises(VceError, match="not a face world file"):
        load_world(tmp_path / "broken.safetensors")


def test_what_is_left_out_is_a_decision_and_reads_the_same(world):
    full, partial = world.system("faces"), world.system("faces-partial")
    assert partial.asked.names == ("old", "gray", "smile", "mustache") and partial.decisions.names[0] == "glasses"
    _, w = full.population(5)
    images = full.G(w)
    ours, theirs = full.labels(images), partial.labels(images)
    for name in full.labels.names:
        at = (full.labels.names.index(name), partial.labels.names.index(name))
        torch.testing.assert_close(ours[:, at[0]], theirs[:, at[1]])
    assert full.descendants == {"old": (1, 2)} and partial.descendants == {"old": (1,)}


def test_the_hash_sees_the_decoder(world):
    system = world.system("faces")
    before, bias = frozen_hash(system), next(world.vae.decoder.parameters())
    bias += 1e-3
    assert frozen_hash(system) != before
    bias -= 1e-3


def test_a_decision_is_never_its_own_attribute(world):
    system = world.system("faces")
    with pytest.raises(VceError, match="label 'old' occurs twice"):
        System("x", system.G, system.d, system.asked, Labels(("old",), system.asked.networks, ()))


def test_conditions_hold_what_they_say_and_never_ask_for_a_decision(world):
    system = world.system("faces")
    present = labelled(system.population(6)[1], system)[:, : system.m]
    found = {regime: c for regime, _, c in conditions(present, 0, system)}
    assert set(found) == {"free", "clamp_others", "clamp_nondesc"}
    assert (found["clamp_nondesc"][:, [1, 2]] == 0).all() and (found["clamp_nondesc"][:, [3, 4]] != 0).all()
    mutual = System("m", system.G, system.d, system.asked, system.decisions, system.prior, mutual=True)
    named = [(regime, decision) for regime, decision, _ in conditions(present, 0, mutual) if decision]
    assert named == [("clamp_others", name) for name in system.asked.names[1:]]
    for _, decision, c in conditions(present, 0, mutual):
        assert not decision or (c[:, system.asked.names.index(decision)] == 0).all()


@given(st.integers(1, 6))
def test_a_population_is_the_same_whatever_its_size(n):
    system = System("x", nn.Identity(), 7, Labels(("a",), (nn.Identity(),), ()), Labels((), (), ()))
    few, many = system.population(n), system.population(9)
    assert few[0] == many[0][:n] and torch.equal(few[1], many[1][:n])


def test_nuisances_are_what_they_are_called():
    drawn = faces.draw("c", 3)
    values = nuisance_values(drawn)
    assert torch.equal(values[:, :2], drawn.centre) and torch.equal(values[:, 2], drawn.scale)
    assert render(drawn).shape == (3, 3, 32, 32)
