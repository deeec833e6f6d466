"""Scores of classifiers of one's own, and the explanation of one's own image: `vce scores`, `vce explain`."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from common.errors import VceError
from common.explain import Streams
from common.files import ROOT
from common.generators.vae import VAE, save_vae
from papers.contrastive import explain as contrastive
from papers.contrastive import scores
from papers.contrastive.labels import Labels
from papers.contrastive.systems import System
from papers.contrastive.train import Recipe, load_shift, train_shift
from vce import cli

MINE = '''
import torch
from torch import nn

class Painter(nn.Module):
    """Four latents are the brightness of four quarters."""
    latent_shape = (4,)

    def forward(self, z):
        return z.sigmoid().view(-1, 1, 2, 2).repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)

class Signed(Painter):
    def forward(self, z):
        return 2 * super().forward(z) - 1

class Larger(Painter):
    latent_shape = (5,)

class Quarters(nn.Module):
    """Which quarter is bright: four independent pairs would be labels; here a soft-max over two quarters."""
    image_shape = (3, 8, 8)
    class_names = ("left", "right")

    def forward(self, x):
        means = x.mean((1, 2))
        return 40 * torch.stack([means[:, :4].mean(1), means[:, 4:].mean(1)], 1)

class Upper(Quarters):
    class_names = ("upper", "lower")

    def forward(self, x):
        means = x.mean((1, 3))
        return 40 * torch.stack([means[:, :4].mean(1), means[:, 4:].mean(1)], 1)

class Never(Quarters):
    class_names = ("never", "always")

    def forward(self, x):
        return torch.tensor([-50.0, 50.0]).expand(len(x), 2)

class Grey(Quarters):
    image_shape = (1, 8, 8)
'''
LABEL, DECISION = "right=right@paint:Quarters", "lower=1@paint:Upper"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a generator and classifiers."""
    (tmp_path / "paint.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("paint", None)
    return tmp_path


def test_scores_of_one_s_own_classifiers(here):
    arguments = ["scores", "--generator", "paint:Painter", "--label", LABEL, "--decision", DECISION, "--n", "200"]
    found = CliRunner().invoke(cli.app, [*arguments, "--steps", "150", "--out", "out"])
    assert found.exit_code == 0, found.output
    assert "right for lower:" in found.output and "tables in out" in found.output
    table = pd.read_csv(here / "out/scores.csv", keep_default_na=False, na_values=[""])
    table = table.query("regime == 'clamp_others' and protocol == 'itt'").set_index(["decision", "score"])
    line = table.loc[("lower", "nesuf")]
    assert line["n"] == 200 and line["low"] <= line["value"] <= line["high"]
    validity = pd.read_csv(here / "out/validity.csv", keep_default_na=False, na_values=[""])
    assert validity.query("regime == 'clamp_others'")["reached"].min() > 0.9
    system = scores.own_system("paint:Painter", [LABEL], [DECISION])
    assert load_shift(here / "out/shift.safetensors", system)[0].m == 1
    before = (here / "out/scores.csv").read_bytes()
    CliRunner().invoke(cli.app, [*arguments, "--steps", "150", "--out", "again"])
    assert (here / "again/scores.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("generator", "labels", "decisions", "message"),
    [
        ("paint:Signed", [LABEL], [DECISION], "images reach from -.* classifiers read \\[0, 1\\]"),
        ("paint:Larger", [LABEL], [DECISION], "8 latents of size 5 give"),
        ("paint:Nothing", [LABEL], [DECISION], "AttributeError"),
        ("paint:Quarters", [LABEL], [DECISION], "size of its latents is unknown"),
        ("paint:Painter", [LABEL], ["same=1@paint:Quarters"], "is 'right' again"),
        ("paint:Painter", [LABEL], ["right=1@paint:Upper"], "label 'right' occurs twice"),
        ("paint:Painter", ["right"], [DECISION], "write NAME=CLASS@CLASSIFIER"),
        ("paint:Painter", ["right=top@paint:Quarters"], [DECISION], "no class 'top'; choose from left, right"),
        ("paint:Painter", ["right=0..1@paint:Quarters"], [DECISION], "against none is no label"),
        ("paint:Painter", ["right=7@paint:Quarters"], [DECISION], "classes go from 0 to 1"),
        ("paint:Painter", ["right=1@paint:Grey"], [DECISION], "reads images of 1 channels, the generator draws 3"),
        ("paint:Painter", [], [DECISION], "name at least one attribute"),
        ("paint:Painter", [LABEL], [], "one label alone tells nothing"),
        ("missing.safetensors", [LABEL], [DECISION], "no such file"),
    ],
)
def test_what_cannot_be_scored_is_named(here, generator, labels, decisions, message):
    with pytest.raises(VceError, match=message):
        scores.own_system(generator, labels, decisions)


def test_an_attribute_that_never_occurs_is_named(here):
    system = scores.own_system("paint:Painter", [LABEL], ["never=never@paint:Never"])
    with pytest.raises(VceError, match="label 'never' never occurs among 20 images"):
        scores.scores(system, Recipe(2, hidden=4), 20, 0, here / "out", lambda: None)
    assert not (here / "out").exists()


def test_a_shift_that_hardly_works_is_said_to(here):
    system = scores.own_system("paint:Painter", [LABEL], [DECISION])
    tables = scores.scores(system, Recipe(1, hidden=4), 120, 0, here / "out", lambda: None)
    assert "many edits fail" in scores.summary(tables)


def test_classes_are_names_numbers_and_ranges():
    names = [str(age) for age in range(81)]
    assert scores.chosen_classes("30..33,5", names, "") == (5, 30, 31, 32, 33)
    assert scores.chosen_classes("happy", ("sad", "happy"), "") == (1,)


def test_a_vae_is_a_generator_with_its_own_prior(tmp_path):
    torch.manual_seed(0)
    vae = VAE("conv", (3, 16, 16), 2, (4, 4)).eval()
    save_vae(vae, tmp_path / "vae.safetensors", {})
    generator = scores.load_generator(str(tmp_path / "vae.safetensors"))
    z = torch.randn(2, 32)
    torch.testing.assert_close(generator(z), vae.decode(z))


# the contract


class Blend(nn.Module):
    """A linear generator whose first latent is the brightness of the upper half."""

    latent_shape, image_shape = (3,), (3, 8, 8)

    def forward(self, z):
        rows = torch.sigmoid(z[:, :2]).repeat_interleave(4, 1)[:, None, :, None].expand(-1, 3, -1, 8)
        return 0.9 * rows + 0.1 * z[:, 2, None, None, None].sigmoid()


class Halves(nn.Module):
    """Log-odds that the upper, and that the lower half is bright."""

    def forward(self, x):
        return 20 * torch.stack([x[:, :, :4].mean((1, 2, 3)), x[:, :, 4:].mean((1, 2, 3))], 1) - 10


@pytest.fixture(scope="module")
def classifier():
    system = System("blend", Blend(), 3, Labels(("upper", "lower"), (Halves(),), ()), Labels((), (), ()))
    S = train_shift(system, Recipe(250, hidden=32, learning_rate=5e-3, sparse=True), 0)
    return contrastive.LabelClassifier(system, S, "upper", (3, 8, 8))


def test_an_explanation_flips_its_label_holds_the_other_and_says_where_it_starts(classifier):
    images = Blend()(torch.randn(12, 3, generator=torch.Generator().manual_seed(1)))
    source = classifier(images).argmax(1)
    rng = Streams(0, tuple(f"i{k}" for k in range(12)), tuple((1 - source).tolist()))
    batch = contrastive.explain(images, source, 1 - source, classifier=classifier, rng=rng, strengths=(0.5, 1.0))
    assert (batch.status[:, 1] == "ok").mean() > 0.9
    assert (batch.reference - images).abs().max() < 0.05
    torch.testing.assert_close(batch.latent_shift[:, 0] * 2, batch.latent_shift[:, 1])
    lower = classifier.system.asked(images)[:, 1] > 0
    assert ((classifier.system.asked(batch.images[:, 1])[:, 1] > 0) == lower).float().mean() > 0.9
    skipped = contrastive.explain(images, source, source, classifier=classifier, rng=rng, strengths=(1.0,))
    assert (skipped.status == "skipped").all()


def test_bad_images_steps_and_labels_are_named(classifier):
    x, y, rng = torch.zeros(1, 3, 9, 9), torch.zeros(1, dtype=torch.long), Streams(0, ("a",), (1,))
    with pytest.raises(VceError, match="the generator draws"):
        contrastive.explain(x, y, y + 1, classifier=classifier, rng=rng)
    with pytest.raises(VceError, match="α = 0 is no positive step"):
        contrastive.explain(x[..., :8, :8], y, y + 1, classifier=classifier, rng=rng, strengths=(0.0, 1.0))
    with pytest.raises(VceError, match="label 'age': no shift moves it; choose one of upper, lower"):
        contrastive.LabelClassifier(classifier.system, classifier.S, "age", (3, 8, 8))
    with pytest.raises(VceError, match="choose contrastive/smile"):
        contrastive.load_shipped("imagenet/efficientnet-lite0")


def test_an_untrained_shift_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(contrastive, "ROOT", tmp_path)
    with pytest.raises(VceError, match="run `snakemake work/cpu/contrastive/shifts/face-gan-0"):
        contrastive.load_shipped("contrastive/smile")
    assert tmp_path != ROOT


def test_an_image_of_one_s_own_is_explained(classifier, monkeypatch, tmp_path):
    monkeypatch.setattr(contrastive, "load_shipped", lambda name: classifier)
    image = Blend()(torch.tensor([[-1.5, 1.0, 0.0]]))[0]
    Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)).save(tmp_path / "mine.png")
    line = ["explain", "--method", "contrastive", "--image", str(tmp_path / "mine.png"), "--target", "1"]
    found = CliRunner().invoke(cli.app, [*line, "--out", str(tmp_path / "out")])
    assert found.exit_code == 0, found.output
    record = pd.read_json(tmp_path / "out/mine/explanation.json", typ="series")
    assert record["status"] == "ok" and record["reconstruction_error"]["rms"] < 0.05
    assert record["reconstruction_error"]["target_confidence"] < 0.5 and "its drawing is" in found.output
    assert all(row["seconds"] > 0 for row in record["counterfactuals"])
    assert (tmp_path / "out/mine/reconstruction.png").is_file()
