"""The contract functions: batches, radii and broken samples do not disturb one another; least norms are least."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import nn

from common.classifiers.checkpoints import load_checkpoint
from common.classifiers.train import train_classifiers
from common.data import datasets
from common.errors import VceError
from common.explain import Streams
from common.metrics.perturbation import lp_norm
from papers.svce.explain import ROUNDS, explain, explain_minimal

DATA = Path("none")


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    """Images, labels, targets, streams and a briefly trained robust classifier."""
    folder = tmp_path_factory.mktemp("contract")
    sizes = {"systems": 300, "calibration": 60, "oracles": 0, "tuning": 0, "pairs": 20}
    table = datasets.draw_splits("scenes", sizes, 0, DATA)
    recipe = {"architecture": "strided_cnn", "epochs": 3, "batch_size": 32, "adversary": {"l2": 0.5}}
    train_classifiers("scenes", table, DATA, {"l2at": recipe}, 0, folder)
    pairs = datasets.load("scenes", table, "pairs", DATA, 6)
    target = (pairs.labels + 1) % 5
    net = load_checkpoint(folder / "l2at-0.safetensors")
    return pairs.images, pairs.labels, target, Streams(0, pairs.ids, tuple(target.tolist())), net


def solve(problem, rows=None, strengths=(1.0, 3.0), classifier=None, **options):
    x, source, target, rng, net = problem
    rows = list(range(len(x))) if rows is None else rows
    return explain(x[rows], source[rows], target[rows], classifier=classifier or net, rng=rng[rows],
                   strengths=strengths, **{"iterations": 10, **options})  # fmt: skip


@pytest.mark.parametrize("optimiser, p", [("afw-b", 1.5), ("afw-a", 2), ("fw", 1.5), ("apgd", 2), ("apgd", 1)])
def test_batch_and_order_change_nothing_but_rounding(problem, optimiser, p):
    """Network kernels differ by about 1e-6 between batch sizes; ten iterations keep confidence and distance to 1e-4."""
    reference = solve(problem, optimiser=optimiser, p=p)
    order = [3, 0, 5, 1, 4, 2]
    for rows, batch_size in ((order, 64), (list(range(6)), 5), ([4, 2], 1)):
        other = solve(problem, rows, optimiser=optimiser, p=p, batch_size=batch_size)
        assert (other.status == reference.status[rows]).all()
        assert torch.allclose(other.confidence, reference.confidence[rows], atol=1e-4)
        assert torch.allclose(other.distance, reference.distance[rows], atol=1e-4)
    assert torch.equal(problem[3][order].normal((3, 32, 32), "start"), problem[3].normal((3, 32, 32), "start")[order])


def test_a_radius_does_not_see_the_others(problem):
    both, alone = solve(problem), solve(problem, strengths=(3.0,))
    assert torch.allclose(both.confidence[:, 1], alone.confidence[:, 0], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"strengths": (0.0,)}, "epsilon"),
        ({"strengths": (1.0, -2.0)}, "epsilon"),
        ({"p": 0.5}, "p: the norm's order"),
        ({"optimiser": "adam"}, "optimiser 'adam' is unknown; choose one of afw-a"),
        ({"optimiser": "afw-c"}, "afw-c"),
        ({"optimiser": "apgd", "p": 1.5}, "apgd projects onto l1 and l2 balls only"),
        ({"optimiser": "apgd", "p": 2, "strengths": (0.0,)}, "epsilon"),
    ],
)
def test_wrong_options_are_refused(problem, options, named):
    with pytest.raises(VceError, match=named):
        solve(problem, **options)


class Breaks(nn.Module):
    """The classifier, but not a number for images with a top left pixel above a half."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return torch.where(x[:, :1, 0, 0] > 0.5, torch.nan, self.net(x))


@pytest.mark.parametrize("optimiser, p", [("afw-b", 1.5), ("apgd", 2), ("apgd", 1)])
def test_one_broken_sample_breaks_no_other(problem, optimiser, p):
    x, source, target, rng, net = problem
    harmless, broken = x.clone(), x.clone()
    harmless[:, :, 0, 0] = 0
    broken[:, :, 0, 0], broken[2, :, 0, 0] = 0, 1
    small = {"strengths": (0.3,), "optimiser": optimiser, "p": p, "classifier": Breaks(net)}
    a, b = (solve((images, source, target, rng, net), **small) for images in (harmless, broken))
    assert b.status[2].tolist() == ["diverged"] and b.confidence[2].item() == 0
    assert torch.equal(b.images[2, 0], broken[2]) and b.steps[2].item() == 1
    rest = [0, 1, 3, 4, 5]
    for item in fields(a):
        one, two = getattr(a, item.name), getattr(b, item.name)
        if isinstance(one, torch.Tensor):
            assert torch.equal(one[rest], two[rest]), item.name
    assert (a.status[rest] == b.status[rest]).all() and (a.status != "diverged").all()


class Halfspace(nn.Module):
    """log-odds of class 1 = 6(w·x − b) with |w_i| equal: the least lp change is known in closed form."""

    def __init__(self, d, b):
        super().__init__()
        self.w = torch.randn(d, generator=torch.Generator().manual_seed(3)).sign() / d**0.5
        self.b = b

    def forward(self, x):
        z = 6 * (x.flatten(1) @ self.w - self.b)
        return torch.stack([-z / 2, z / 2], 1)


@pytest.mark.parametrize("p", [1.5, 2.0])
def test_least_norms_of_a_linear_classifier_are_the_dual_distance(p):
    """min ‖δ‖_p with 6(w·(x+δ) − b) = log-odds of the threshold is that gap over 6‖w‖_q, while the box is far."""
    x = 0.5 + 0.01 * torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    net = Halfspace(48, 0.8)
    net.b += (x.flatten(1) @ net.w).mean().item()
    target, thresholds = torch.ones(5, dtype=torch.long), (0.5, 0.8, 0.99)
    rng = Streams(0, tuple("abcde"), (1,) * 5)
    batch = explain_minimal(
        x,
        1 - target,
        target,
        classifier=net,
        rng=rng,
        strengths=thresholds,
        p=p,
        iterations=40,
        ceiling=40.0,
        batch_size=3,
    )
    q = p / (p - 1)
    for j, threshold in enumerate(thresholds):
        wanted = torch.logit(torch.tensor(threshold)) / 6
        least = (wanted - (x.flatten(1) @ net.w - net.b)) / torch.linalg.vector_norm(net.w, ord=q)
        found = lp_norm(batch.images[:, j] - x, p)
        assert (batch.confidence[:, j] >= threshold * (1 - 1e-5)).all()
        assert (found >= least * (1 - 1e-4)).all() and (found <= least * 1.05 + 40 / 2 ** (ROUNDS - 1)).all()
    assert (batch.forward < ROUNDS * 41).all() and (batch.forward >= batch.steps).all()
    there = explain_minimal(
        batch.images[:, 2],
        1 - target,
        target,
        classifier=net,
        rng=rng,
        strengths=(0.6,),
        p=p,
        iterations=5,
        ceiling=1.0,
    )
    assert (there.distance == 0).all() and (there.forward == 1).all()  # above the threshold to begin with


def test_a_threshold_out_of_reach_leaves_the_best_image_at_the_ceiling(problem):
    x, source, target, rng, net = problem
    batch = explain_minimal(
        x, source, target, classifier=net, rng=rng, strengths=(0.3, 0.9999999), p=2, iterations=10, ceiling=0.05
    )
    assert (lp_norm(batch.images[:, 1] - x, 2) <= 0.05 * (1 + 1e-4)).all() and (batch.confidence[:, 1] < 0.9999).all()
    assert (batch.forward[:, 1] == 12).all()  # given up after the first round


def test_higher_thresholds_need_larger_changes_and_samples_do_not_see_each_other(problem):
    x, source, target, rng, net = problem
    options = {"classifier": net, "strengths": (0.6, 0.9), "p": 1.5, "iterations": 20, "ceiling": 12.0}
    batch = explain_minimal(x, source, target, rng=rng, **options)
    reached = (batch.confidence >= torch.tensor([0.6, 0.9]) - 1e-5).all(1)
    norm = torch.stack([lp_norm(batch.images[:, j] - x, 1.5) for j in range(2)], 1)
    assert reached.any() and (norm[reached, 1] >= norm[reached, 0] * 0.98).all()
    alone = explain_minimal(x[2:3], source[2:3], target[2:3], rng=rng[[2]], **options)
    assert torch.allclose(alone.confidence[0], batch.confidence[2], atol=2e-2)


@pytest.mark.parametrize("strengths", [(0.9, 0.8), (0.0,), (1.0,), (0.5, 0.5)])
def test_thresholds_must_ascend_inside_the_unit_interval(problem, strengths):
    x, source, target, rng, net = problem
    with pytest.raises(VceError, match="thresholds must ascend"):
        explain_minimal(x, source, target, classifier=net, rng=rng, strengths=strengths, ceiling=1.0)
