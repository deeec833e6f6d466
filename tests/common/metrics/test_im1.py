"""IM1: errors against a loop over images, the formula, training, and the file."""

import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data import datasets
from common.errors import VceError
from common.metrics import im1
from common.metrics.im1 import ClassAutoencoders, Recipe, autoencoder, load_autoencoders, train_autoencoders
from common.tensors import read_tensors, write_tensors

few = settings(max_examples=15, deadline=None)
DATA = Path(__file__).parents[3] / "data"


class Counter:
    def __init__(self):
        self.calls = 0

    def advance(self):
        self.calls += 1


def untrained(n_classes=3, seed=0):
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return ClassAutoencoders(n_classes).requires_grad_(False)


def images(n, seed=0):
    return torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(seed))


def bars(n=60, seed=0):
    """Upright bars, class 0, and lying ones, class 1, at random places."""
    generator = torch.Generator().manual_seed(seed)
    x, labels = torch.zeros(n, 1, 28, 28), torch.arange(n) % 2
    for image, label, at in zip(x, labels, torch.randint(2, 24, (n,), generator=generator), strict=True):
        if label:
            image[0, at : at + 3, 4:24] = 1
        else:
            image[0, 4:24, at : at + 3] = 1
    return datasets.Images(x, labels, tuple(map(str, range(n))))


def test_the_autoencoder_mirrors_its_way_down():
    network, x = autoencoder(), images(2)
    assert network(x).shape == x.shape and network(x).min() >= 0 and network(x).max() <= 1
    assert network[:8](x).shape == (2, 8, 7, 7)  # 392 numbers of 784
    channels = [(m.in_channels, m.out_channels) for m in network if isinstance(m, torch.nn.Conv2d)]
    assert channels == [(1, 16), (16, 8), (8, 8), (8, 8), (8, 16), (16, 1)]


@few
@given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 99))
def test_errors_are_those_of_one_image_after_the_other(classes, batch_size, seed):
    networks, x = untrained(seed=seed), images(len(classes), seed)
    found = networks.errors(x, torch.tensor(classes), batch_size)
    for k, label in enumerate(classes):
        by_hand = (networks.of_class[label](x[[k]]) - x[[k]]).square().mean()
        assert found[k].item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_im1_is_the_ratio_of_both_errors():
    networks, x = untrained(), images(6)
    source, target = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([1, 2, 0, 0, 0, 1])
    expected = networks.errors(x, target) / (networks.errors(x, source) + 1e-7)
    found = networks.im1(x, source, target)
    assert torch.equal(found, expected) and found[3].item() == pytest.approx(1, abs=1e-5)  # the same class
    back = networks.im1(x, target, source)
    assert torch.allclose(found * back, torch.ones(6), atol=1e-4)


BRIEF = Recipe(epochs=25, batch_size=6)


def test_a_picture_is_most_like_its_own_class():
    held_out, counter = bars(20, seed=1), Counter()
    networks = train_autoencoders(bars(), held_out, 2, BRIEF, counter)
    assert counter.calls == 2 and not networks.training
    assert not any(parameter.requires_grad for parameter in networks.parameters())
    stays = networks.im1(held_out.images, held_out.labels, 1 - held_out.labels)  # it has not moved at all
    arrived = networks.im1(held_out.images, 1 - held_out.labels, held_out.labels)
    assert (stays > 1).all() and (arrived < 1).all()


def test_training_gives_the_same_bits_and_leaves_the_global_stream_alone():
    states = []
    for _ in range(2):
        torch.rand(3)
        before = torch.random.get_rng_state()
        states.append(train_autoencoders(bars(), bars(20, seed=1), 2, BRIEF, Counter()).state_dict())
        assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("damage", ["images", "rate"])
def test_an_autoencoder_that_learned_nothing_is_named(damage):
    fit, label = bars(), 0
    recipe = BRIEF if damage == "images" else Recipe(epochs=30, learning_rate=1e38)
    if damage == "images":
        fit.images[1::2], label = torch.nan, 1
    with pytest.raises(VceError, match=rf"autoencoder of class {label} has learned nothing: .*in config/") as caught:
        train_autoencoders(fit, bars(20, seed=1), 2, recipe, Counter())
    assert "\n" not in str(caught.value)


# the file


@pytest.fixture
def path(tmp_path):
    write_tensors(tmp_path / "a.safetensors", "class-autoencoder", untrained().state_dict(), {"n_classes": 3})
    return tmp_path / "a.safetensors"


def test_round_trip_gives_the_same_bits(path):
    back, x, classes = load_autoencoders(path), images(6), torch.arange(6) % 3
    assert torch.equal(back.errors(x, classes), untrained().errors(x, classes))
    assert not back.training and not any(parameter.requires_grad for parameter in back.parameters())


@pytest.mark.parametrize("damage", ["truncated", "html", "missing", "another kind", "a class less", "no number"])
def test_damaged_files_are_one_line(path, damage):
    whole, (_, state) = path.read_bytes(), read_tensors(path, "class-autoencoder")
    if damage == "missing":
        path.unlink()
    elif damage == "another kind":
        write_tensors(path, "VAE", state, {"n_classes": 3})
    elif damage == "a class less":
        write_tensors(path, "class-autoencoder", state, {"n_classes": 4})
    elif damage == "no number":
        write_tensors(path, "class-autoencoder", state, {})
    else:
        path.write_bytes(whole[:-8] if damage == "truncated" else b"<html>404</html>")
    with pytest.raises(VceError) as caught:
        load_autoencoders(path)
    said = str(caught.value)
    fix = "give the file of a" if damage in ("foreign", "another kind") else "delete it"
    assert said.startswith(f"{path}: not a class-autoencoder file (") and fix in said and "\n" not in said


# the job


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The file that the job writes for few real digits, and digits that it did not see."""
    home = tmp_path_factory.mktemp("im1")
    sizes = {"systems": 0, "calibration": 50, "oracles": 200, "tuning": 0, "pairs": 100}
    table = datasets.draw_splits("mnist", sizes, 0, DATA)
    table.to_parquet(home / "mnist.parquet")
    recipe = json.dumps({"epochs": 20, "batch_size": 8})
    arguments = ["--world", "mnist", "--splits", home / "mnist.parquet", "--recipe", recipe, "--out", home / "a"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "argv", ["im1", *map(str, arguments)])
        im1.main()
    return home / "a", datasets.load("mnist", table, "pairs", DATA)


def test_the_autoencoders_of_all_digits_are_alive(trained):
    path, held_out = trained
    networks = load_autoencoders(path)
    errors = torch.stack([networks.errors(held_out.images, torch.full_like(held_out.labels, k)) for k in range(10)], 1)
    own, black = errors.gather(1, held_out.labels[:, None])[:, 0], held_out.images.square().flatten(1).mean(1)
    for label in range(10):
        mine = held_out.labels == label
        assert own[mine].mean() < 0.6 * black[mine].mean(), label  # a dead one draws black
    assert (errors.argmin(1) == held_out.labels).float().mean() > 0.3
    assert read_tensors(path, "class-autoencoder")[0] == {"n_classes": 10, "recipe": {"epochs": 20, "batch_size": 8}}


def test_a_wrong_recipe_stops_the_job_in_one_line(trained, monkeypatch, capsys):
    path = trained[0]
    arguments = ["--world", "mnist", "--splits", path.with_name("mnist.parquet"), "--recipe", '{"epochs": 1}']
    monkeypatch.setattr(sys, "argv", ["im1", *map(str, arguments), "--out", str(path.with_name("b"))])
    with pytest.raises(SystemExit) as stop:
        im1.main()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert stop.value.code == 2 and len(said) == 1 and "class 0 has learned nothing" in said[0]
    assert not path.with_name("b").exists()
