"""The shift predictor: its loss by hand, conditions of the three regimes, and a linear world whose answer is known."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from common.errors import VceError
from papers.contrastive.labels import TRANSFORMS, AgainstRest, Binary, Labels, transformed
from papers.contrastive.method import ShiftPredictor, condition, counterfactual, random_conditions, shift_loss
from papers.contrastive.prior import standard_normal
from papers.contrastive.systems import System
from papers.contrastive.train import Recipe, train_shift

D, M = 6, 3


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Fixed(nn.Module):
    """A shift that does not depend on anything, and counts as a predictor."""

    def __init__(self, delta):
        super().__init__()
        self.delta = nn.Parameter(delta)

    def forward(self, w, c):
        return self.delta


def test_the_loss_is_the_mean_over_asked_labels_and_the_plain_norm():
    w, delta, logits = draw(4, D), draw(4, D, seed=1), draw(4, M, seed=2)
    c = torch.tensor([[1.0, 0, -1], [0, 0, 0], [0, 1, 0], [-1, -1, 1]])
    asked, total = 0, 0.0
    for b in range(4):
        for k in range(M):
            if c[b, k]:
                p = 1 / (1 + np.exp(-logits[b, k].item()))
                total += -np.log(p if c[b, k] > 0 else 1 - p)
                asked += 1
    lengths = [np.sqrt((delta[b].numpy() ** 2).sum()) for b in range(4)]
    found = shift_loss(Fixed(delta), w, c, lambda w: w, lambda x: logits, 0.3)
    assert found.item() == pytest.approx(total / asked + 0.3 * np.mean(lengths), rel=1e-5)


def test_a_label_that_nobody_asked_for_has_no_gradient():
    logits = draw(5, M).requires_grad_()
    c = random_conditions(5, M, torch.Generator().manual_seed(3))
    shift_loss(Fixed(draw(5, D)), draw(5, D), c, lambda w: w, lambda x: logits, 0.1).backward()
    assert (c == 0).any() and torch.equal(logits.grad != 0, c != 0)


@given(st.integers(0, 50), st.booleans())
def test_conditions_are_of_three_values_and_ask_for_something(seed, sparse):
    c = random_conditions(6, M, torch.Generator().manual_seed(seed), sparse)
    assert set(c.unique().tolist()) <= {-1.0, 0.0, 1.0} and c.any()
    assert not sparse or (c != 0).any(1).all()


def test_frequencies_of_conditions():
    generator = torch.Generator().manual_seed(0)
    c = random_conditions(30000, 5, generator)
    for value in (-1, 0, 1):
        assert (c == value).float().mean().item() == pytest.approx(1 / 3, abs=0.01)
    singles = ((c != 0).sum(1) == 1).float().mean().item()
    assert singles == pytest.approx(2 * 5 / 3**5, abs=0.005)
    counts = (random_conditions(30000, 5, generator, sparse=True) != 0).sum(1).bincount(minlength=6)
    assert counts[0] == 0 and counts[1:] / 30000 == pytest.approx(torch.full((5,), 0.2), abs=0.01)


@pytest.mark.parametrize(
    ("regime", "expected"),
    [
        ("free", [[0.0, 1, 0], [0, 1, 0]]),
        ("clamp_others", [[1.0, 1, -1], [-1, 1, 1]]),
        ("clamp_nondesc", [[1.0, 1, 0], [-1, 1, 0]]),
    ],
)
def test_regimes_hold_what_they_say(regime, expected):
    present = torch.tensor([[1, 0, 0], [0, 1, 1]])
    assert condition(present, 1, 1, regime, descendants=(2,)).tolist() == expected
    opposite = condition(present, 1, 1 - present[:, 1], regime, descendants=(2,))
    assert opposite[:, 1].tolist() == [1, -1]


def test_a_counterfactual_moves_by_alpha():
    w, c = draw(4, D), torch.ones(4, M)
    S = ShiftPredictor(D, M, hidden=16).eval()
    half = counterfactual(w, c, S, lambda w: w, alpha=0.5)
    torch.testing.assert_close(half, w + 0.5 * S(w, c))
    assert torch.equal(counterfactual(w, c, S, lambda w: w, alpha=0.0), w)


# a linear generator and linear labels: label k is the sign of ⟨a_k, w⟩


class Linear:
    def __init__(self):
        self.G = nn.Linear(D, 8, bias=False)
        self.f = nn.Linear(8, M)
        with torch.no_grad():
            self.G.weight.copy_(torch.linalg.qr(draw(8, D)).Q)
            self.f.bias.zero_()
            self.f.weight.copy_(4 * torch.linalg.qr(draw(D, D, seed=1)).Q[:M] @ self.G.weight.T)

    @property
    def system(self):
        asked = Labels(tuple("abc"), (self.f,), ())
        return System("linear", self.G, D, asked, Labels((), (), ()))

    def hashed(self):
        parts = [p.detach().numpy().tobytes() for module in (self.G, self.f) for p in module.parameters()]
        return hashlib.sha256(b"".join(parts)).hexdigest()


def trained(world, seed=0, **changes):
    recipe = Recipe(**{"steps": 250, "hidden": 64, "learning_rate": 5e-3, **changes})
    return train_shift(world.system, recipe, seed)


def flips(world, S, regime="clamp_others"):
    w = draw(400, D, seed=9)
    before = (world.f(world.G(w)) > 0).long()
    c = condition(before, 0, 1 - before[:, 0], regime)
    after = (world.f(counterfactual(w, c, S, world.G)) > 0).long()
    return (after != before).float().mean(0), (S(w, c)).norm(dim=1).mean().item()


def test_one_network_flips_any_label_and_holds_the_others_where_it_is_asked_to():
    world = Linear()
    before = world.hashed()
    S = trained(world)
    changed, _ = flips(world, S)
    assert changed[0] > 0.95 and changed[1:].max() < 0.05
    assert world.hashed() == before and world.G.weight.grad is None and world.f.weight.grad is None


def test_a_larger_lambda_moves_less_and_flips_less():
    world = Linear()
    found = [flips(world, trained(world, lam=lam)) for lam in (0.0, 0.05, 2.0)]
    rates, lengths = [rate[0].item() for rate, _ in found], [length for _, length in found]
    assert lengths[0] > lengths[1] > lengths[2] and rates[1] > 0.95 and rates[2] < 0.2


def identity(f, seen=None):
    """A system whose images are its latents, which `seen` collects."""

    def G(w):
        if seen is not None:
            seen.append(w.detach())
        return w

    return System("identity", G, D, Labels(tuple("abc"), (f,), ()), Labels((), (), ()), standard_normal)


def test_training_is_deterministic_and_says_where_it_diverges():
    world = Linear()
    one, two, other = (trained(world, seed=seed, steps=5) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not one.training
    with pytest.raises(VceError, match="training diverged in step 1"):
        train_shift(identity(lambda x: x[:, :M] * torch.nan), Recipe(3, hidden=4), 0)


def test_a_neighbourhood_is_one_latent_with_noise():
    seen = []
    recipe = Recipe(2, batch_size=50, hidden=4, neighbourhood=0.1, learning_rate=1e-9, lam=0.0)
    train_shift(identity(lambda x: x[:, :M], seen), recipe, 0)
    for w in seen:
        assert 0.05 < (w - w.mean(0)).std() < 0.2  # dropout of an untrained net adds its own


# labels


def test_classes_against_the_rest_have_the_log_odds_of_the_soft_max():
    logits = draw(7, 5)
    p = logits.softmax(1)[:, [2, 4]].sum(1)
    torch.testing.assert_close(AgainstRest(nn.Identity(), (2, 4))(logits)[:, 0], (p / (1 - p)).log())


def test_a_label_of_two_logits_has_the_log_odds_of_their_soft_max():
    logits = draw(7, 2, 4)
    p = logits.softmax(1)[:, 1]
    odds = (p / (1 - p)).log()
    torch.testing.assert_close(Binary(nn.Identity())(logits), odds)
    torch.testing.assert_close(Binary(nn.Identity(), (3, 0))(logits), odds[:, [3, 0]])


@given(st.integers(-2, 2), st.integers(-2, 2), st.booleans())
def test_a_transform_moves_pixels_and_repeats_the_edge(dy, dx, flip):
    images = draw(2, 3, 6, 5)
    found = transformed(images, dy, dx, flip)
    for i in range(6):
        for j in range(5):
            column = 4 - j if flip else j
            source = images[:, :, min(max(i - dy, 0), 5), min(max(column - dx, 0), 4)]
            assert torch.equal(found[:, :, i, j], source)


def test_averaged_labels_do_not_see_a_mirror_and_a_random_transform_is_unbiased():
    f = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 4))
    labels = Labels(("a", "b"), (AgainstRest(f, (1,)), AgainstRest(f, (3,))))
    images = draw(5, 3, 6, 6)
    with torch.no_grad():
        averaged = labels.averaged(images)
        assert averaged.shape == (5, 2)
        torch.testing.assert_close(averaged, labels.averaged(images.flip(3)))
        drawn = labels.at_random(torch.Generator().manual_seed(0))
        mean = torch.stack([drawn(images) for _ in range(1500)]).mean(0)
    torch.testing.assert_close(mean, averaged, atol=0.06, rtol=0)
    assert len(set(TRANSFORMS)) == 8
