"""Robust accuracy against closed forms: a linear net falls exactly where its margin is within reach."""

import pytest
import torch
from torch import nn

from common.classifiers import robustness
from common.classifiers.robustness import margin, measure_robustness, withstands
from common.data import datasets
from common.errors import VceError

D = 48
DUAL = {"l1": float("inf"), "l2": 2, "linf": 1}


class Linear(nn.Module):
    """Two logits (w·x + b, 0) whose weights all have one size, so that l1 steps may go anywhere."""

    def __init__(self, bias):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = torch.randn(D, generator=generator).sign() * (0.5 + torch.rand(D, generator=generator))
        self.bias = bias

    def forward(self, x):
        z = x.flatten(1) @ self.w + self.bias
        return torch.stack([z, torch.zeros_like(z)], 1)


@pytest.fixture
def images():
    return 0.5 + 0.02 * torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_a_linear_net_falls_exactly_within_reach(images, norm):
    """The least perturbation that turns sign(w·x + b) has norm |w·x + b| / ‖w‖_dual; the box is far away."""
    middle = Linear(0.0)(images)[:, 0].mean().item()
    model = Linear(-middle)
    z = model(images)[:, 0]
    labels = (z <= 0).long()
    reach = z.abs() / torch.linalg.vector_norm(model.w, ord=DUAL[norm])
    epsilon = reach.median().item()
    draw = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    stands = withstands(model, images, labels, norm, epsilon, 100, draw)
    clear = (reach / epsilon - 1).abs() > 0.05  # a search of 100 steps, not a formula
    assert clear.sum() > 40 and torch.equal(stands[clear], (reach > epsilon)[clear])


def test_the_margin_is_zero_where_the_decision_changes():
    z = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 3.0], [1.0, 4.0, 2.0]])
    model = nn.Flatten()
    L, g = margin(model, torch.tensor([0, 1, 2]))(z.view(3, 3, 1, 1), torch.arange(3))
    assert L.tolist() == [-1.0, 0.0, 2.0]
    assert g.flatten(1)[[0, 2]].tolist() == [[-1.0, 1.0, 0.0], [0.0, 1.0, -1.0]]


def test_a_misread_image_counts_as_fallen_and_the_union_as_the_worst(images):
    middle = Linear(0.0)(images)[:, 0].mean().item()
    model = Linear(-middle)
    wrong = (model(images)[:, 0] > 0).long()  # every label is the other class
    wrong[:32] = 1 - wrong[:32]
    sample = datasets.Images(images, wrong, tuple(f"i{k}" for k in range(64)))
    radii = {"l1": 0.05, "l2": 0.02, "linf": 0.002}
    table = measure_robustness("w", "k", 3, model, sample, radii, 30)
    assert table["accurate"].tolist() == [1.0] * 32 + [0.0] * 32
    robust = table[[f"robust_{norm}" for norm in radii]]
    assert (robust[32:] == 0).all().all()
    assert (table["robust_union"] == robust.min(axis=1)).all() and 0 < table["robust_union"].sum() < 32


def test_a_larger_radius_never_helps(images):
    middle = Linear(0.0)(images)[:, 0].mean().item()
    model = Linear(-middle)
    labels = (model(images)[:, 0] <= 0).long()
    draw = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    shares = [withstands(model, images, labels, "l2", e, 40, draw).float().mean() for e in (0.01, 0.05, 0.2)]
    assert shares[0] > shares[1] > shares[2]


def test_nothing_to_attack_is_named():
    empty = datasets.Images(torch.zeros(0, 3, 4, 4), torch.zeros(0, dtype=torch.long), ())
    with pytest.raises(VceError, match="scenes has no images to attack; raise its split `pairs`"):
        measure_robustness("scenes", "k", 0, Linear(0.0), empty, {"l2": 1.0}, 5)
    with pytest.raises(VceError, match="norm 'l7' is unknown"):
        withstands(Linear(0.0), torch.rand(1, 3, 4, 4), torch.zeros(1, dtype=torch.long), "l7", 1, 5, None)


def test_the_summary_has_shares_with_intervals(images):
    sample = datasets.Images(images, torch.zeros(64, dtype=torch.long), tuple(f"i{k}" for k in range(64)))
    table = measure_robustness("w", "k", 0, Linear(1000.0), sample, {"l2": 0.1}, 5)
    lines = robustness.summary(table).set_index("measure")
    assert (lines["share"] == 1).all() and lines["n"].tolist() == [64] * 3  # nothing falls
