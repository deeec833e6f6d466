"""Training, the adversary and calibration: cheap runs on rendered scenes, digits and toy problems."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.classifiers.checkpoints import build, checkpoint_facts, load_checkpoint
from common.classifiers.robustness import withstands
from common.classifiers.train import train_classifiers
from common.classifiers.training import (
    NORMS,
    Recipe,
    accuracy,
    attack,
    choose_norm,
    fit_temperature,
    noise_and_blur,
    train,
)
from common.data import datasets
from common.data.fetch import ROOT, fetch
from common.errors import VceError

N, CLASSES = 192, 3


@pytest.fixture(scope="module")
def blobs():
    """Grey 12×12 images whose brightness tells one of three classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % CLASSES
    images = 0.25 + 0.25 * labels.view(-1, 1, 1, 1) + 0.1 * torch.randn(N, 1, 12, 12, generator=generator)
    return images.clamp(0, 1), labels


def fresh(seed=0, architecture="strided_cnn", shape=(1, 12, 12), classes=CLASSES):
    torch.manual_seed(seed)
    return build(architecture, name="n", image_shape=shape, class_names=tuple(map(str, range(classes))))


def fitted(blobs, seed=0, **recipe):
    model, losses = fresh(seed), []
    fields = {"architecture": "strided_cnn", "epochs": 4, "batch_size": 48, **recipe}
    train(model, *blobs, Recipe(**fields), seed, lambda state: losses.append(state["loss"]))
    return model, losses


@pytest.mark.parametrize(
    "recipe", [{}, {"augment": True}, {"adversary": {"l2": 0.5}}, {"adversary": {"linf": 0.05, "l1": 2.0}}]
)
def test_training_lowers_the_loss_and_repeats_bit_for_bit(blobs, recipe):
    (model, losses), (again, same) = fitted(blobs, **recipe), fitted(blobs, **recipe)
    assert len(losses) == 4 and losses[-1] < 0.6 * losses[0] and losses == same
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert not model.training
    other, _ = fitted(blobs, seed=1, **recipe)
    assert not torch.equal(other(blobs[0]), model(blobs[0]))


@pytest.mark.parametrize("learning_rate", [1e20, float("inf")])
def test_diverging_training_is_reported(blobs, learning_rate):
    with pytest.raises(VceError, match="diverged in epoch 1: the loss is not finite; lower `learning_rate`"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(144, 64), nn.ReLU(), nn.Linear(64, CLASSES))
        train(model, *blobs, Recipe("none", 2, learning_rate=learning_rate, batch_size=48), 0)


def test_an_infinite_loss_is_reported_too(blobs):
    class Overflows(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([3e38, -3e38, -3e38]))

        def forward(self, x):
            return self.logits.expand(len(x), -1)

    recipe = Recipe("none", 1, batch_size=N)
    with pytest.raises(VceError, match="not finite"):
        train(Overflows(), *blobs, recipe, 0)


RADII = {"l1": 6.0, "l2": 1.0, "linf": 0.1}


def size(delta, norm):
    return torch.linalg.vector_norm(delta.flatten(1), ord={"l1": 1, "l2": 2, "linf": float("inf")}[norm], dim=1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_the_adversary_stays_in_ball_and_box_and_hurts(blobs, steps, norm):
    model, (x, y) = fitted(blobs)[0], blobs
    epsilon = RADII[norm]
    delta = attack(model, x, y, norm, epsilon, steps, torch.Generator().manual_seed(0))
    assert size(delta, norm).max() <= epsilon * (1 + 1e-5)
    assert (x + delta).min() >= -1e-6 and (x + delta).max() <= 1 + 1e-6
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    noise *= (epsilon / size(noise, norm)).view(-1, 1, 1, 1)
    with torch.no_grad():
        plain, random, attacked = (F.cross_entropy(model(z), y) for z in (x, (x + noise).clamp(0, 1), x + delta))
    assert attacked > max(plain, random) + 0.1
    assert not delta.requires_grad and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("norm", NORMS)
def test_more_steps_find_more(blobs, norm):
    model, (x, y) = fitted(blobs)[0], blobs

    def loss(steps):
        delta = attack(model, x, y, norm, RADII[norm], steps, torch.Generator().manual_seed(0))
        return F.cross_entropy(model(x + delta), y).item()

    assert loss(20) > loss(1)


def test_an_unknown_norm_is_named(blobs):
    with pytest.raises(VceError, match="norm 'l3' is unknown"):
        attack(fresh(), *blobs, "l3", 1.0, 2, torch.Generator())


def test_the_weaker_norm_is_drawn_more_often():
    """E-AT: weights 1 − running robust accuracy, here .1 against .3."""
    generator = torch.Generator().manual_seed(0)
    draws = [choose_norm(torch.tensor([90.0, 70.0]), torch.tensor([100.0, 100.0]), generator) for _ in range(4000)]
    assert sum(draws) / len(draws) == pytest.approx(0.75, abs=0.03)
    unseen = [choose_norm(torch.zeros(2), torch.zeros(2), generator) for _ in range(4000)]
    assert sum(unseen) / len(unseen) == pytest.approx(0.5, abs=0.03)
    assert choose_norm(torch.zeros(1), torch.zeros(1), generator) == 0


def test_augmentation_keeps_images_and_repeats():
    x = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    one, two = (noise_and_blur(x, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two) and one.min() >= 0 and one.max() <= 1
    change = (one - x).flatten(1).norm(dim=1)
    assert change.min() > 0 and change.std() > 0.1 * change.mean()  # each image gets its own strength
    flat = torch.full((1, 1, 6, 6), 0.5)
    assert (noise_and_blur(flat, torch.Generator().manual_seed(0)) - 0.5).abs().max() < 0.5


@pytest.mark.parametrize("temperature", [0.25, 1.0, 2.0])
def test_temperature_of_calibrated_logits_is_recovered(temperature):
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(4_000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert fit_temperature(temperature * logits, labels) == pytest.approx(temperature, rel=0.1)


def expected_calibration_error(logits, labels, bins=20):
    confidence, prediction = logits.softmax(1).max(1)
    total = 0.0
    for k in range(bins):
        chosen = (confidence >= k / bins) & ((confidence < (k + 1) / bins) | (k == bins - 1))
        total += (confidence[chosen].sum() - (prediction == labels)[chosen].sum()).abs().item()
    return total / len(labels)


def test_the_temperature_has_the_least_calibration_error():
    generator = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn(400, 4, generator=generator)
    labels = torch.where(torch.rand(400, generator=generator) < 0.6, logits.argmax(1), torch.randint(4, (400,)))
    best = expected_calibration_error(logits / fit_temperature(logits, labels), labels)
    for temperature in torch.linspace(-3, 1, 60).exp():
        assert best <= expected_calibration_error(logits / temperature, labels) + 1e-6


def test_accuracy_by_hand():
    class Reader(nn.Module):
        def forward(self, x):
            return x[:, 0, 0]

    images = torch.eye(3)[[0, 1, 2, 0, 1]].view(5, 1, 1, 3)
    assert accuracy(Reader(), images, torch.tensor([0, 1, 2, 1, 1]), batch_size=2) == pytest.approx(0.8)


def test_fine_tuning_starts_from_the_named_kind(tmp_path):
    sizes = {"systems": 200, "calibration": 50, "oracles": 0, "tuning": 0, "pairs": 0}
    table = datasets.draw_splits("scenes", sizes, 0, Path("none"))
    base = {"architecture": "strided_cnn", "epochs": 2, "batch_size": 64}
    frozen = {**base, "epochs": 1, "learning_rate": 1e-9, "start": "plain"}
    train_classifiers("scenes", table, Path("none"), {"plain": base, "again": frozen}, 5, tmp_path)
    first, second = (load_checkpoint(tmp_path / f"{kind}-5.safetensors") for kind in ("plain", "again"))
    for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert checkpoint_facts(tmp_path / "again-5.safetensors")["recipe"]["start"] == "plain"


def test_a_class_without_images_is_named(tmp_path):
    sizes = {"systems": 50, "calibration": 50, "oracles": 0, "tuning": 0, "pairs": 0}
    table = datasets.draw_splits("scenes", sizes, 0, Path("none"))
    table = table[(table["label"] != 3) | (table["split"] != "systems")]
    with pytest.raises(VceError, match="scenes: split 'systems' has no image of rings"):
        train_classifiers(
            "scenes", table, Path("none"), {"a": {"architecture": "strided_cnn", "epochs": 1}}, 0, tmp_path
        )
    assert not list(tmp_path.iterdir())


def test_a_diverged_training_names_world_and_kind(tmp_path):
    sizes = {"systems": 50, "calibration": 50, "oracles": 0, "tuning": 0, "pairs": 0}
    table = datasets.draw_splits("scenes", sizes, 0, Path("none"))
    recipe = {"architecture": "strided_cnn", "epochs": 1, "learning_rate": float("inf")}
    with pytest.raises(VceError, match="scenes wild-0: training diverged in epoch 1"):
        train_classifiers("scenes", table, Path("none"), {"wild": recipe}, 0, tmp_path)
    assert not list(tmp_path.iterdir())


def normalised(world, images, classes):
    model = fresh(0, shape=datasets.world(world).image_shape, classes=classes)
    channels = images.transpose(0, 1).flatten(1)
    model.mean.data, model.std.data = (v.view(1, -1, 1, 1) for v in (channels.mean(1), channels.std(1)))
    return model


def test_a_robust_net_is_more_robust_on_scenes():
    sizes = {"systems": 400, "calibration": 100, "oracles": 0, "tuning": 0, "pairs": 0}
    table = datasets.draw_splits("scenes", sizes, 0, Path("none"))
    fit, test = (datasets.load("scenes", table, split, Path("none")) for split in ("systems", "calibration"))
    robust = {}
    z = torch.randn(test.images.shape, generator=torch.Generator().manual_seed(0))
    for epsilon in (0.0, 0.75):
        model = normalised("scenes", fit.images, 5)
        adversary = {"l2": epsilon} if epsilon else {}
        train(model, fit.images, fit.labels, Recipe("strided_cnn", 7, adversary=adversary, batch_size=64), 0)
        assert accuracy(model, test.images, test.labels) > 0.6
        robust[epsilon] = withstands(model, test.images, test.labels, "l2", 0.75, 10, z).float().mean()
    assert robust[0.75] > robust[0.0] + 0.1


@pytest.fixture(scope="module")
def digits():
    try:
        folder = fetch("mnist_5k.csv.gz").parent
    except VceError:
        if not (ROOT / "data" / "mnist_5k.csv.gz").exists():
            pytest.skip("the digits are not here and cannot be fetched")
        raise
    sizes = {"systems": 1500, "calibration": 300, "oracles": 0, "tuning": 0, "pairs": 0}
    table = datasets.draw_splits("mnist", sizes, 0, folder)
    return [datasets.load("mnist", table, split, folder) for split in ("systems", "calibration")]


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_digits_are_learnt(digits, epsilon):
    fit, test = digits
    model = normalised("mnist", fit.images, 10)
    adversary = {"l2": epsilon} if epsilon else {}
    train(model, fit.images, fit.labels, Recipe("strided_cnn", 2, adversary=adversary, batch_size=64), 0)
    assert accuracy(model, test.images, test.labels) > 0.4
