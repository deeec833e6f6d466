"""Companions of a classifier: DUQ and DEP against their formulas, finite differences and loops; and what they learn."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from common.classifiers.companion import (
    Companion,
    NearAnyCentroid,
    PredictedError,
    Recipe,
    _update_centroids,
    gradient_penalty,
    kernel_cross_entropy,
    load_companion,
    ranking_loss,
    save_companion,
    train_companion,
)
from common.data import faces
from common.errors import VceError
from common.tensors import read_tensors, write_tensors

SHAPE = (3, 16, 16)


@pytest.fixture
def companion():
    torch.manual_seed(0)
    return Companion(SHAPE, "abc", embedding=5, sigma=0.4)


@pytest.fixture
def images():
    return torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(1))


def test_distances_are_those_of_the_formula(companion, images):
    _, z, _ = companion.read(images)
    found = companion.distances(z)
    for i, c in itertools.product(range(6), range(3)):
        embedded, centroid = companion.W[c] @ z[i], companion.m[c] / companion.N[c]
        by_hand = ((embedded - centroid) ** 2).mean() / (2 * 0.4**2)
        assert found[i, c].item() == pytest.approx(by_hand.item(), rel=1e-4)
    assert (companion.distances(z) >= 0).all()


def test_one_pass_gives_what_the_forward_gives(companion, images):
    logits, z, means = companion.read(images)
    assert torch.equal(logits, companion(images)) and z.shape == (6, 64) and means.shape == (6, 170)
    assert (companion.predicted_error(means) >= 0).all()


def test_the_auxiliaries_read_their_layers(companion, images):
    """What hooks on their layers see is what `read` gives."""
    _, z, means = companion.read(images)
    assert torch.equal(NearAnyCentroid(companion)([z]), companion.distances(z).min(1).values)
    h, activations = images, []
    for block in companion.blocks:
        h = block(h)
        activations.append(h)
    assert torch.allclose(PredictedError(companion)(activations), companion.predicted_error(means))
    known = dict(companion.named_modules())
    assert all(name in known for name in (*NearAnyCentroid(companion).layers, *PredictedError(companion).layers))


def test_the_kernels_cross_entropy_is_that_of_torch_and_stays_finite_far_away():
    generator = torch.Generator().manual_seed(0)
    d = 3 * torch.rand(7, 3, generator=generator) + 0.01
    target = F.one_hot(torch.arange(7) % 3, 3).float()
    assert torch.allclose(kernel_cross_entropy(d, target), F.binary_cross_entropy((-d).exp(), target), atol=1e-6)
    far = torch.full((1, 2), 500.0, requires_grad=True)
    kernel_cross_entropy(far, torch.tensor([[1.0, 0.0]])).backward()
    assert far.grad[0].tolist() == pytest.approx([0.5, 0.0])  # the distance still pulls where K has vanished


def test_the_gradient_penalty_is_two_sided_and_per_image():
    """f(x) = a·Σx over D values has a gradient of norm a·√D at every image."""
    x = torch.rand(3, 1, 4, 4, requires_grad=True)
    for a in (0.0, 0.1, 0.25, 1.0):
        assert gradient_penalty(a * x.flatten(1).sum(1), x).item() == pytest.approx((4 * a - 1) ** 2, abs=1e-4)


def test_the_gradient_penalty_has_the_second_gradient_of_finite_differences():
    torch.manual_seed(0)
    small = Companion((1, 8, 8), "ab", embedding=3, sigma=0.5).double()
    x = torch.rand(4, 1, 8, 8, dtype=torch.double)

    def penalty():
        images = x.clone().requires_grad_()
        return gradient_penalty((-small.distances(small.read(images)[1])).exp().sum(1), images)

    penalty().backward()
    for parameter in (small.W, small.neck[0].bias):
        flat, grad = parameter.data.view(-1), parameter.grad.view(-1)
        for k in (0, 7, len(flat) - 1):
            before = flat[k].item()
            flat[k] = before + 1e-5
            above = penalty().item()
            flat[k] = before - 1e-5
            below = penalty().item()
            flat[k] = before
            assert grad[k].item() == pytest.approx((above - below) / 2e-5, rel=1e-3, abs=1e-8)


def test_the_ranking_loss_is_a_loop_over_pairs():
    generator = torch.Generator().manual_seed(0)
    loss, predicted = 2 * torch.rand(2, 9, generator=generator)
    total = []
    for i, j in itertools.combinations(range(9), 2):
        gap = float(loss[i] - loss[j])
        sign = (gap > 0) - (gap < 0)
        total.append(max(0.0, min(abs(gap), 1.0) - sign * float(predicted[i] - predicted[j])))
    expected = sum(total) / len(total) + 0.5 * F.smooth_l1_loss(predicted, loss).item()
    assert ranking_loss(predicted, loss).item() == pytest.approx(expected, rel=1e-5)
    assert ranking_loss(loss, loss).item() == pytest.approx(0, abs=1e-6)  # the truth loses nothing
    assert ranking_loss(-loss, loss) > ranking_loss(torch.ones(9), loss) > 0


def test_centroids_are_running_means_of_embeddings(companion, images):
    target = F.one_hot(torch.tensor([0, 0, 1, 1, 1, 0]), 3).float()
    n, m = companion.N.clone(), companion.m.clone()
    _update_centroids(companion, images, target, 0.9)
    z = companion.read(images)[1]
    for c in range(3):
        mine = target[:, c] == 1
        assert companion.N[c] == pytest.approx(0.9 * n[c].item() + 0.1 * mine.sum().item())
        expected = 0.9 * m[c] + 0.1 * (z[mine] @ companion.W[c].T).sum(0)
        assert torch.allclose(companion.m[c], expected, atol=1e-5)


def test_temperature_is_confidence_and_nothing_else(companion, images):
    before, read = companion(images), companion.read(images)
    for temperature in (0.25, 1.0, 8.0):
        companion.temperature.fill_(temperature)
        logits = companion(images)
        assert torch.equal(logits, before / temperature) and torch.equal(logits.argmax(1), before.argmax(1))
        sharper = logits.softmax(1).max(1).values - before.softmax(1).max(1).values
        assert (sharper.sign() == (temperature < 1) - (temperature > 1)).all()
        assert all(torch.equal(now, then) for now, then in zip(companion.read(images), read, strict=True))
        assert torch.equal(NearAnyCentroid(companion)([read[1]]), companion.distances(read[1]).min(1).values)


def test_a_companion_on_disk_is_the_same_bit_by_bit(companion, images, tmp_path):
    companion.temperature.fill_(0.37)
    path, facts = tmp_path / "deep/c-0.safetensors", {"recipe": {"epochs": 3}, "accuracy": 0.5}
    save_companion(companion, path, facts)
    loaded = load_companion(path)
    with torch.no_grad():
        assert torch.equal(loaded(images), companion(images)) and loaded.temperature.item() == pytest.approx(0.37)
        logits, z, means = companion.read(images)
        assert torch.equal(loaded.distances(z), companion.distances(z))
        assert torch.equal(loaded.predicted_error(means), companion.predicted_error(means))
        assert torch.equal(loaded.read(images)[0], logits) and not torch.equal(loaded(images), logits)
    assert loaded.image_shape == SHAPE and loaded.class_names == ("a", "b", "c") and loaded.sigma == 0.4
    assert not loaded.training and not any(value.requires_grad for value in loaded.parameters())
    assert read_tensors(path, "companion")[0]["facts"] == facts
    save_companion(loaded, tmp_path / "again.safetensors", facts)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_damaged_companions_and_files_of_another_kind_are_one_line(companion, tmp_path):
    path = tmp_path / "c.safetensors"
    save_companion(companion, path, {})
    whole, (header, state) = path.read_bytes(), read_tensors(path, "companion")
    for content in (whole[: len(whole) // 2], whole[:-4], b"", b"<html>", None):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(VceError, match="not a companion file") as caught:
            load_companion(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    lacking = {name: value for name, value in state.items() if name not in ("temperature", "W")}
    wrong = [
        ("VAE", state, header),
        ("companion", lacking, header),
        ("companion", lacking | {"W": state["W"]}, header),
        ("companion", state, {**header, "class_names": "ab"}),
        ("companion", state, {**header, "image_shape": [1, 8, 8]}),
        ("companion", state, {name: value for name, value in header.items() if name != "sigma"}),
    ]
    for kind, tensors, facts in wrong:
        write_tensors(path, kind, tensors, facts)
        with pytest.raises(VceError, match="not a companion file") as caught:
            load_companion(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def trained():
    """A companion that reads smiles, and held-out faces with their labels."""
    factors = faces.sample(tuple(f"face-{k:05d}" for k in range(1400)), 0)
    x, y = faces.render(factors), factors.attribute("smile")
    return train_companion(x[:1000], y[:1000], ("serious", "smiling"), Recipe(epochs=6), seed=0), x[1000:], y[1000:]


def test_all_heads_learn(trained):
    companion, x, y = trained
    logits, z, means = companion.read(x)
    by_distance = companion.distances(z).argmin(1)
    assert (logits.argmax(1) == y).float().mean() > 0.93 and (by_distance == y).float().mean() > 0.93
    loss, predicted = F.cross_entropy(logits, y, reduction="none"), companion.predicted_error(means)
    assert spearmanr(predicted, loss).statistic > 0.2  # it tells the hard faces, if not by how much


def test_what_is_not_a_face_is_far_from_every_centroid(trained):
    companion, x, _ = trained
    noise = torch.rand(100, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    near, far = (NearAnyCentroid(companion)([companion.read(images)[1]]) for images in (x, noise))
    assert far.median() > 2 * near.median()


def test_same_seed_same_bits_and_the_global_stream_is_left_alone(images):
    labels, states = torch.tensor([0, 1, 0, 1, 0, 1]), []
    for seed in (0, 0, 1):
        torch.rand(3)
        before = torch.random.get_rng_state()
        states.append(train_companion(images, labels, "ab", Recipe(epochs=2, batch_size=4), seed).state_dict())
        assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["W"], states[2]["W"])


def test_no_gradient_of_the_error_head_reaches_the_backbone(companion, images):
    from common.classifiers.companion import _error_loss

    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    _error_loss(companion, images, labels, 0.3, torch.Generator().manual_seed(0)).backward()
    moved = {name for name, value in companion.named_parameters() if value.grad is not None}
    assert moved == {name for name, _ in companion.named_parameters() if name.startswith("error.")}


def test_a_training_that_diverges_is_one_line(images):
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    with pytest.raises(VceError, match="diverged in epoch 1") as caught:
        train_companion(images * torch.nan, labels, "ab", Recipe(epochs=1), 0)
    assert "\n" not in str(caught.value)
