"""The panel: the kernel machine against scikit-learn, the twin reader, the vote by hand."""

from pathlib import Path

import pytest
import torch
from sklearn.svm import SVC
from torch import nn

from common.classifiers.checkpoints import build, save_checkpoint
from common.classifiers.kernel_machine import STRIDE, WINDOW, KernelMachine, features
from common.classifiers.oracles import Panel, majority, read_twins
from common.data import datasets


@pytest.fixture(scope="module")
def pairs():
    table = datasets.draw_splits(
        "scenes", {**dict.fromkeys(datasets.SPLITS, 0), "oracles": 150, "pairs": 40}, 0, Path()
    )
    return [datasets.load("scenes", table, split, Path()) for split in ("oracles", "pairs")]


@pytest.mark.parametrize("grey", [True, False])
def test_the_machine_is_scikit_learns(pairs, grey):
    fit, test = (p.images.mean(1, keepdim=True)[..., :28, :28] if grey else p.images for p in pairs)
    labels = pairs[0].labels
    machine = KernelMachine.fit(fit, labels, 5)
    found = machine(test)
    raw, raw_test = features(fit), features(test)
    mean, scale = raw.mean(0), raw.std() if grey else raw.std(0).clamp_min(0.05)
    for k in range(5):
        svc = SVC(C=10.0, gamma=1 / raw.shape[1]).fit(((raw - mean) / scale).numpy(), (labels == k).numpy())
        expected = torch.from_numpy(svc.decision_function(((raw_test - mean) / scale).numpy())).float()
        assert torch.allclose(found[:, k], expected, atol=2e-3)
    assert (machine(fit).argmax(1) == labels).float().mean() > 0.95


def test_the_machine_learns_the_texture(pairs):
    fit, test = pairs
    machine = KernelMachine.fit(fit.images, fit.labels, 5)
    assert (machine(test.images).argmax(1) == test.labels).float().mean() > 0.7


def test_features_see_texture_not_place():
    x = torch.full((1, 3, 32, 32), 0.5)
    x[..., 8:16, 8:16] = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    moved = x.roll((STRIDE, STRIDE), dims=(2, 3))
    assert torch.allclose(features(moved), features(x), atol=1e-4)
    assert (features(x.transpose(2, 3)) - features(x)).abs().max() > 0.5
    assert features(x).shape == (1, WINDOW * (WINDOW // 2 + 1))
    grey = torch.rand(2, 1, 28, 28)
    inner = features(grey).view(2, 14, 14)[:, 1:-1, 1:-1]
    blurred = [grey[:, 0, i - 1 : i + 2, j - 1 : j + 2].mean((1, 2)) for i in (2, 3) for j in (2, 3)]
    assert torch.allclose(inner[:, 0, 0], sum(blurred) / 4)  # the 2×2 block from (2, 2), each pixel blurred over 3×3
    assert torch.allclose(features(torch.full((1, 1, 28, 28), 0.7)).view(14, 14)[1:-1, 1:-1], torch.tensor(0.7))
    assert torch.allclose(features(grey.roll((2, 2), (2, 3))).view(2, 14, 14)[:, 2:-1, 2:-1], inner[:, :-1, :-1])


def test_the_twin_reader_reads_twins():
    ids = tuple(f"scene-{k:05d}" for k in range(30))
    twins, originals = datasets.twins("scenes", ids), datasets.load_ids("scenes", ids, Path())
    assert torch.equal(read_twins(originals.images, twins), originals.labels)
    for label in range(5):
        noise = 0.01 * torch.randn(twins[:, label].shape, generator=torch.Generator().manual_seed(label))
        assert (read_twins(twins[:, label] + noise, twins) == label).all()
    for source, target in ((0, 1), (3, 2)):
        for share, seen in ((0.4, source), (0.6, target)):
            halfway = (1 - share) * twins[:, source] + share * twins[:, target]
            assert (read_twins(halfway, twins[:, [source, target]]) == (0 if seen == source else 1)).all()


def test_majority_by_hand():
    target = torch.tensor([1, 1, 1, 2])
    votes = {
        "a": torch.tensor([1, 1, 0, 2]),
        "b": torch.tensor([1, 0, 0, 0]),
        "c": torch.tensor([0, 1, 1, 1]),
        "d": torch.tensor([1, 0, 2, 0]),
    }
    assert majority(votes, target).tolist() == [True, False, False, False]  # two of four is no majority
    three = {name: votes[name] for name in "abc"}
    assert majority(three, target).tolist() == [True, True, False, False]


class Constant(nn.Module):
    def __init__(self, label):
        super().__init__()
        self.label = label

    def forward(self, x):
        return nn.functional.one_hot(torch.full((len(x),), self.label), 5).float()


def test_panel_votes_whatever_the_batch():
    ids = tuple(f"scene-{k:05d}" for k in range(7))
    images, twins = datasets.load_ids("scenes", ids, Path()).images, datasets.twins("scenes", ids)
    panel = Panel({"two": Constant(2), "four": Constant(4)})
    votes = panel.predictions(images, twins, batch_size=3)
    assert list(votes) == ["two", "four", "twin"]
    assert votes["two"].tolist() == [2] * 7 and votes["four"].tolist() == [4] * 7
    assert torch.equal(votes["twin"], panel.predictions(images, twins)["twin"])
    assert list(panel.predictions(images, None)) == ["two", "four"]
    assert list(panel.only({"four"}).judges) == ["four"]


def test_panel_comes_from_files(tmp_path):
    torch.manual_seed(0)
    judge = build("plain_cnn", name="n", image_shape=(3, 32, 32), class_names=tuple("abcde")).eval()
    save_checkpoint(judge, tmp_path / "j.safetensors", architecture="plain_cnn", facts={})
    x = torch.rand(4, 3, 32, 32)
    votes = Panel.load({"augmented": tmp_path / "j.safetensors"}).predictions(x, None)
    assert torch.equal(votes["augmented"], judge(x).argmax(1))
