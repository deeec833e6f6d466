"""Random streams, the active set, the objective and the finished batch: what every method relies on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from common.errors import VceError
from common.explain import ActiveSet, CounterfactualBatch, Streams, finish, log_confidence

SHAPE = (2, 3)
samples = st.lists(st.tuples(st.text(max_size=6), st.integers(0, 9)), min_size=1, max_size=8)
few = settings(max_examples=40, deadline=None)


def streams(pairs, seed=0):
    return Streams(seed, tuple(image for image, _ in pairs), tuple(target for _, target in pairs))


@few
@given(samples, st.randoms(use_true_random=False), st.integers(0, 2**31))
def test_draws_do_not_depend_on_batch_order_or_split(pairs, random, seed):
    order = random.sample(range(len(pairs)), len(pairs))
    cut = random.randint(0, len(pairs))
    for name in ("normal", "uniform"):
        together = getattr(streams(pairs, seed), name)(SHAPE, "start")
        shuffled = getattr(streams(pairs, seed)[order], name)(SHAPE, "start")
        assert torch.equal(shuffled, together[order])
        parts = [part for part in (pairs[:cut], pairs[cut:]) if part]
        apart = [getattr(streams(part, seed), name)(SHAPE, "start") for part in parts]
        assert torch.equal(torch.cat(apart), together)


@few
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 99), st.integers(0, 99))
def test_draws_differ_by_seed_image_target_and_purpose(seed, image, target, other):
    def draw(seed=seed, image=image, target=target, purpose="start"):
        return Streams(seed, (f"i{image}",), (target,)).normal((4,), purpose)

    assert torch.equal(draw(), draw())
    assert not torch.equal(draw(), draw(seed=seed + 1))
    assert not torch.equal(draw(), draw(image=image + 1))
    assert not torch.equal(draw(), draw(target=target + 1 + other))
    assert not torch.equal(draw(), draw(purpose=f"p{other}"))


def test_draws_have_the_right_moments():
    rng = Streams(3, tuple(f"i{k}" for k in range(200)), (0,) * 200)
    normal, uniform = rng.normal((500,), "a").double(), rng.uniform((500,), "a").double()
    n = normal.numel()
    assert normal.dtype == torch.float64 and rng.normal((1,), "a").dtype == torch.float32
    assert abs(normal.mean()) < 4 / n**0.5 and abs(normal.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((normal**4).mean() - 3) < 4 * (96 / n) ** 0.5
    assert uniform.min() >= 0 and uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 4 / (12 * n) ** 0.5 and abs(uniform.var() - 1 / 12) < 0.001
    # samples are independent: correlations between streams have the variance of noise
    correlation = torch.corrcoef(normal)[~torch.eye(200, dtype=torch.bool)]
    assert abs(correlation.std() * 500**0.5 - 1) < 0.05


def test_lengths_must_agree():
    assert len(Streams(0, ("a", "b"), (0, 1))) == 2
    with pytest.raises(ValueError):
        Streams(0, ("a", "b"), (0,)).normal((1,), "start")


@few
@given(st.integers(1, 40), st.lists(st.lists(st.booleans(), min_size=40, max_size=40), min_size=1, max_size=6))
def test_compaction_never_loses_a_running_sample(n, rounds):
    active, done = ActiveSet(n), torch.zeros(n, dtype=torch.bool)
    for finishing in rounds:
        done |= torch.tensor(finishing[:n])
        before = active.rows.clone()
        keep = active.compact(done[before])
        running = int((~done).sum())
        bucket = next(b for b in (0, 1, 2, 4, 8, 16, 32, 64) if b >= running)
        if keep is None:
            assert torch.equal(active.rows, before) and len(before) <= bucket
        else:
            assert torch.equal(active.rows, before[keep]) and len(keep) == bucket < len(before)
        assert set(active.rows.tolist()) >= set(torch.nonzero(~done)[:, 0].tolist())
        assert len(set(active.rows.tolist())) == len(active.rows)
        assert running or not len(active.rows)


def test_compaction_keeps_the_order_of_running_samples():
    active = ActiveSet(6)
    keep = active.compact(torch.tensor([True, False, True, True, True, False]))
    assert keep.tolist() == [1, 5] and active.rows.tolist() == [1, 5]


def test_objective_is_the_targets_log_probability_and_its_gradient():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(16, 3)).double()
    x, target = torch.rand(5, 2, 4, 4, dtype=torch.float64), torch.tensor([2, 0, 1, 1, 0])
    rows = torch.tensor([4, 1, 3])
    value, gradient = log_confidence(net, target)(x[rows], rows)

    def f(z):
        with torch.no_grad():
            return net(z).softmax(1)[range(3), target[rows]].log()

    assert torch.allclose(value, f(x[rows]), atol=1e-12)
    assert not value.requires_grad and not gradient.requires_grad
    h, finite = 1e-6, torch.zeros_like(gradient)
    for index in np.ndindex(2, 4, 4):
        step = torch.zeros_like(gradient)
        step[(slice(None), *index)] = h
        finite[(slice(None), *index)] = (f(x[rows] + step) - f(x[rows] - step)) / (2 * h)
    assert torch.allclose(gradient, finite, atol=1e-8)


class Reader(nn.Module):
    """Logits are the first row of pixels; a bright corner makes them NaN."""

    def forward(self, images):
        logits = 5 * images[:, 0, 0]
        return torch.where(images[:, 0, 1, :1] > 0.9, torch.nan, logits)


def finished(**options):
    original = torch.zeros(3, 1, 2, 3)
    images = torch.zeros(3, 2, 1, 2, 3)
    images[0, 1, 0, 0, 2] = 0.6  # reaches class 2
    images[1, 1, 0, 0, 1] = 0.6  # reaches class 1, the wrong one
    images[2, :, 0, 1, 0] = 1.0  # breaks the classifier
    target = torch.tensor([2, 2, 0])
    return finish(original, images, target, classifier=Reader(), strengths=(0.5, 1), **options)


def test_finish_gives_status_confidence_and_distance():
    batch = finished()
    assert batch.status.tolist() == [["not_flipped", "ok"], ["not_flipped", "not_flipped"], ["diverged", "diverged"]]
    expected = torch.tensor([0.0, 0.0, 3.0]).softmax(0)
    assert batch.confidence[0].tolist() == pytest.approx([1 / 3, expected[2].item()])
    assert batch.confidence[1, 1].item() == pytest.approx(expected[0].item())
    assert batch.confidence[2].tolist() == [0, 0]
    assert batch.distance[:, 1].tolist() == pytest.approx([0.1, 0.1, 1 / 6])
    assert batch.steps.tolist() == batch.forward.tolist() == [[0, 0]] * 3


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_finish_is_the_same_in_any_batch(batch_size):
    a, b = finished(batch_size=batch_size), finished()
    assert (a.status == b.status).all() and torch.equal(a.log_confidence, b.log_confidence)


def test_finish_keeps_what_the_search_says():
    diverged = torch.tensor([[False, True], [False, False], [False, False]])
    steps = torch.arange(6).view(3, 2)
    batch = finished(diverged=diverged, steps=steps, passes=(steps + 1, steps + 2))
    assert batch.status[0].tolist() == ["not_flipped", "diverged"] and batch.status[2, 0] == "diverged"
    assert torch.equal(batch.forward, steps + 1) and torch.equal(batch.backward, steps + 2)


@pytest.mark.parametrize("name", ["log_confidence", "distance", "status", "steps", "forward", "backward"])
def test_a_batch_with_a_wrong_shape_is_refused(name):
    good = {item: getattr(finished(), item) for item in CounterfactualBatch.__dataclass_fields__}
    with pytest.raises(VceError, match=f"^{name}: expected shape \\(3, 2"):
        CounterfactualBatch(**{**good, name: good[name][:, :1]})
    with pytest.raises(VceError, match="strengths: a path has 1 to 8 images, not 9"):
        CounterfactualBatch(**{**good, "images": good["images"][:, :1].repeat(1, 9, 1, 1, 1)})
