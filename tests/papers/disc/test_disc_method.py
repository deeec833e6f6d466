"""DISC's inversion on generators and classifiers with closed forms, and its contract with real ones."""

import inspect
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from common.classifiers.architectures import strided_cnn
from common.classifiers.base import Classifier
from common.digest import closure
from common.errors import VceError
from common.explain import Streams
from common.generators.priors import CoordinateNetwork, DeepImagePrior, Optimiser
from papers.disc import baselines
from papers.disc.consistency import (
    class_confidence,
    class_target,
    coarse_to_fine,
    graded_target,
)
from papers.disc.explain import explain, prior_for
from papers.disc.layers import Layers
from papers.disc.method import JOINT, PROGRESSIVE, Schedule, fit, invert

SHAPE, TAUS = (3, 8, 8), (0.5, 0.7, 0.9)
QUICK = Schedule(fit=5, steer=60)


@dataclass(frozen=True)
class Pixels:
    """A prior without a prior: the image itself, in logits."""

    learning_rate: float = 0.05

    def __call__(self, weights):
        return weights["logits"].sigmoid()


class Linear(nn.Module):
    """Two logits, linear in the image; `bad` images get no number."""

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(192, 2, generator=torch.Generator().manual_seed(0))
        self.bad = False

    def forward(self, x):
        logits = x.flatten(1) @ self.weight * 0.3
        return torch.where((x[:, :1, 0, 0] > 0.95) & self.bad, torch.nan, logits)


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(3)
    x = 0.1 + 0.8 * torch.rand(6, *SHAPE, generator=generator)
    x[:, :, 0, 0] = 0.5
    classifier = Linear()
    return x, 1 - classifier(x).argmax(1), classifier


def run(x, target, classifier, **settings):
    model = settings.pop("model", lambda images: (classifier(images), [], [images]))
    settings = {"schedule": QUICK, "lambdas": (0.1, 1.0, 1.0)} | settings
    start = fit(x, Pixels(), {"logits": torch.logit(x)}, model, settings["schedule"].fit)
    return invert(x, start, model, class_target(target), class_confidence(target), TAUS, **settings)


def test_the_schedule_rises_from_nothing_to_one():
    progressive, joint = PROGRESSIVE, JOINT
    assert progressive.fit + progressive.steer == joint.fit + joint.steer
    assert [progressive.share(k) for k in (0, 40, 160)] == [0, 0.25, 1]
    assert [progressive.weight(k) for k in (0, 40, 80)] == pytest.approx([0, 0.3, 0.6])
    assert progressive.weight(133) < 1 == progressive.weight(134) == progressive.weight(160)  # 160 / 1.2 = 133.3
    assert all(joint.weight(k) == 1 for k in (0, 7, 400))


def test_each_image_is_the_first_iterate_that_reaches_its_confidence(problem):
    x, target, classifier = problem
    seen = []

    def watch(state):
        p = classifier(state["images"]).softmax(1).gather(1, target[state["rows"], None])[:, 0]
        seen.append({int(row): (image, float(value)) for row, image, value in zip(
            state["rows"], state["images"], p, strict=True)})  # fmt: skip

    found = run(x, target, classifier, callback=watch)
    assert found.reached.all() and (found.steps[:, 1:] >= found.steps[:, :-1]).all()
    for i in range(6):
        for s, tau in enumerate(TAUS):
            steer = [state[i] for state in seen if i in state]
            first = next(k for k, (_, p) in enumerate(steer) if p >= tau)
            assert found.steps[i, s] == first + 1 and torch.equal(found.images[i, s], steer[first][0])


def test_the_fit_reconstructs_and_its_last_iterate_is_kept(problem):
    x, _, classifier = problem
    start = torch.logit(x) + torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    states, model = {}, lambda images: (classifier(images), [], [images])
    watch = lambda state: states.__setitem__(state["k"], state["images"])  # noqa: E731
    found = fit(x, Pixels(), {"logits": start}, model, 150, callback=watch)
    first = (states[0] - x).square().flatten(1).mean(1)
    assert (found.error < 0.01 * first).all() and list(states) == list(range(150))
    assert torch.allclose(found.error, (found.images - x).square().flatten(1).mean(1))
    again = torch.stack([states[k].sub(x).square().mean() for k in (0, 50, 100, 149)])
    assert (again.diff() < 0).all()


def test_two_searches_may_start_from_one_fit(problem):
    """A search leaves its start as it was, and a start in parts is the start of the parts."""
    x, target, classifier = problem
    model = lambda images: (classifier(images), [], [images])  # noqa: E731
    start = fit(x, Pixels(), {"logits": torch.logit(x.flip(0))}, model, 30)
    search = lambda x, target, start: invert(  # noqa: E731
        x, start, model, class_target(target), class_confidence(target), TAUS, schedule=QUICK, lambdas=(0.1, 1.0, 1.0)
    )
    one, two = search(x, target, start), search(x, target, start)
    assert torch.equal(one.images, two.images) and torch.equal(one.steps, two.steps)
    rows = torch.tensor([4, 1])
    part = search(x[rows], target[rows], start[rows])
    assert torch.equal(part.steps, one.steps[rows]) and torch.allclose(part.images, one.images[rows], atol=1e-5)
    assert torch.equal(start[rows].images, start.images[rows]) and torch.equal(start[rows].error, start.error[rows])
    state = start.optimiser.adam.state_dict()["state"][0]
    assert (start[rows].optimiser.adam.state_dict()["state"][0]["exp_avg"] == state["exp_avg"][rows]).all()
    fresh = search(x, target, fit(x, Pixels(), {"logits": start.optimiser.weights["logits"].detach()}, model, 0))
    assert not torch.equal(fresh.images, one.images)  # moments go along


def test_a_query_is_inverted_as_if_it_were_alone(problem):
    x, target, classifier = problem
    together = run(x, target, classifier)
    for i in range(6):
        alone = run(x[i : i + 1], target[i : i + 1], classifier)
        assert torch.equal(alone.steps[0], together.steps[i])
        assert torch.allclose(alone.images[0], together.images[i], atol=1e-5)


def test_a_query_whose_loss_is_no_number_diverges_and_leaves_the_others_alone(problem):
    x, target, classifier = problem
    before = run(x, target, classifier)
    x = x.clone()
    x[2, :, 0, 0] = 0.99
    classifier.bad = True
    found = run(x, target, classifier)
    assert found.diverged.tolist() == [False, False, True, False, False, False]
    others = [0, 1, 3, 4, 5]
    assert torch.allclose(found.images[others], before.images[others], atol=1e-5) and found.images.isfinite().all()
    assert not found.reached[2].any() and found.reached[others].all()


def test_manifold_consistency_pulls_where_it_is_switched_on(problem):
    """A manifold of dark images: with it the counterfactuals are darker at equal confidence."""
    x, target, classifier = problem
    dark = lambda read: 4 * read[0].flatten(1).mean(1)  # noqa: E731
    plain, pulled = run(x, target, classifier), run(x, target, classifier, manifold=dark)
    assert (pulled.images[:, -1].mean((1, 2, 3)) < plain.images[:, -1].mean((1, 2, 3)) - 1e-3).all()
    off = run(x, target, classifier, manifold=dark, lambdas=(0.1, 0.0, 1.0))
    assert torch.equal(off.images, plain.images)


def test_a_graded_hypothesis_is_met_and_not_passed(problem):
    x, target, classifier = problem
    level = torch.full((6,), 0.7)
    model = lambda images: (classifier(images), [], [images])  # noqa: E731
    found = invert(
        x, fit(x, Pixels(), {"logits": torch.logit(x)}, model, 0), model, graded_target(target, level),
        class_confidence(target), (0.999,), lambdas=(0.0, 0.0, 5.0), schedule=Schedule(fit=0, steer=250, ramp=0.0),
    )  # fmt: skip
    assert torch.allclose(
        class_confidence(target)(None, classifier(found.images[:, 0]), torch.arange(6)), level, atol=0.02
    )


@pytest.mark.parametrize("prior", [CoordinateNetwork((3, 16, 16), hidden=8), DeepImagePrior((3, 16, 16), (4, 6))])
def test_weights_are_set_free_coarse_to_fine(prior):
    weights = prior.initial(Streams(0, ("a", "b"), (0, 1)))
    groups, moving = prior.groups, coarse_to_fine(prior.groups)
    named = {name for group in groups for name in group}
    assert set(weights) - {"noise"} <= named and len(named) == sum(map(len, groups))  # each weight in one group
    assert set(groups[0]) == moving(0.0) == moving(1e-6) and moving(1.0) == named
    optimiser = Optimiser(prior, weights)
    for _ in range(2):
        optimiser.step((optimiser.images() - 0.2).square().flatten(1).sum(1), moving(1e-6))
    for name, value in weights.items():
        assert torch.equal(optimiser.weights[name], value) == (name not in groups[0]), name


def test_a_step_count_does_not_depend_on_who_else_is_explained(problem):
    """Others finish early and the batch shrinks while one goes on."""
    x, target, classifier = problem
    slow = target.clone()
    together = run(x, slow, classifier, lambdas=(0.1, 1.0, 0.05))
    for i in range(6):
        alone = run(x[i : i + 1], slow[i : i + 1], classifier, lambdas=(0.1, 1.0, 0.05))
        assert torch.equal(alone.steps[0], together.steps[i])


# layers


@pytest.fixture
def convolutional():
    torch.manual_seed(0)
    network = strided_cnn(3, 4)
    return Classifier(network, "abcd", name="cnn", image_shape=(3, 16, 16)).eval().requires_grad_(False)


def test_default_layers_are_the_last_convolution_of_each_size(convolutional):
    model, x = Layers(convolutional, (3, 16, 16)), torch.rand(2, 3, 16, 16)
    sizes, expected = {}, {}
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: sizes.__setitem__(name, out))
        for name, module in convolutional.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    logits = convolutional(x)
    for hook in hooks:
        hook.remove()
    for name, out in sizes.items():
        expected[out.shape[-1]] = name
    assert list(model.names) == list(expected.values()) and len(expected) > 1
    again, features, _ = model(x)
    assert torch.equal(again, logits)
    assert all(torch.equal(feature, sizes[name]) for feature, name in zip(features, model.names, strict=True))
    assert not any(module._forward_hooks for module in convolutional.modules())  # nothing stays behind


def test_named_layers_and_those_that_do_not_exist(convolutional):
    name = Layers(convolutional, (3, 16, 16)).names[0]
    assert Layers(convolutional, (3, 16, 16), [name]).names == (name,)
    with pytest.raises(VceError, match=r"no layer 'layer9'; its convolutions are network\.") as caught:
        Layers(convolutional, (3, 16, 16), [name, "layer9"])
    assert "\n" not in str(caught.value)
    assert Layers(Linear(), SHAPE).names == ()


# the contract


def streams(n, seed=0):
    return Streams(seed, tuple(f"i{k}" for k in range(n)), (1,) * n)


@pytest.fixture
def pictures():
    """Smooth images that a small prior can draw."""
    v, u = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 16), indexing="ij")
    return torch.stack([torch.stack([u, v, 0.5 * (u + v)]).pow(1 + k / 2) for k in range(4)])


BRIEF = {"schedule": Schedule(fit=60, steer=60), "prior": CoordinateNetwork((3, 16, 16), hidden=16, learning_rate=1e-2)}


def test_the_contract(convolutional, pictures):
    source = convolutional(pictures).argmax(1)
    target = torch.where(torch.arange(4) == 2, source, (source + 1) % 4)
    batch = explain(pictures, source, target, classifier=convolutional, rng=streams(4), strengths=TAUS, **BRIEF)
    assert batch.images.shape == (4, 3, 3, 16, 16) and batch.images.min() >= 0 and batch.images.max() <= 1
    assert (batch.status[2] == "skipped").all() and torch.equal(batch.images[2, 0], pictures[2])
    assert (batch.steps[2] == 0).all() and (batch.steps[[0, 1, 3]] > 60).all()
    assert torch.equal(batch.forward, batch.steps) and torch.equal(batch.backward, batch.steps)
    log_p = convolutional(batch.images.flatten(0, 1)).log_softmax(1).view(4, 3, 4)
    expected = log_p.gather(2, target[:, None, None].expand(4, 3, 1))[..., 0]
    assert torch.allclose(batch.log_confidence, expected, atol=1e-5)
    assert torch.allclose(batch.distance, (batch.images - pictures[:, None]).abs().flatten(2).mean(2))
    assert ((batch.reference - pictures)[[0, 1, 3]].abs().mean() < 0.05) and torch.equal(
        batch.reference[2], pictures[2]
    )
    again = explain(pictures, source, target, classifier=convolutional, rng=streams(4), strengths=TAUS, **BRIEF)
    assert torch.equal(batch.images, again.images) and np.array_equal(batch.status, again.status)
    one = explain(
        pictures[3:], source[3:], target[3:], classifier=convolutional, rng=streams(4)[[3]], strengths=TAUS, **BRIEF
    )
    assert torch.equal(one.steps[0], batch.steps[3]) and torch.allclose(one.images[0], batch.images[3], atol=1e-3)


@pytest.mark.parametrize("reading", ["P-A", "P-B", "P-C", "P-D", "P-0"])
def test_every_reading_of_progressive_spends_the_same_iterations(convolutional, pictures, reading):
    source, counted = convolutional(pictures).argmax(1), []
    batch = explain(
        pictures, source, (source + 1) % 4, classifier=convolutional, rng=streams(4), strengths=(1.0,), bound=1.0,
        reading=reading, callback=lambda state: counted.append(state["k"]), **BRIEF,
    )  # fmt: skip
    fitting = 0 if reading == "P-0" else 60
    assert counted == [*range(fitting), *range(121 - fitting)] and (batch.steps == 121).all()
    drawn = (batch.reference - pictures).abs().mean()
    assert 0 < drawn < 0.05 if reading != "P-0" else drawn == 0  # which is asked for everything from the start
    assert (batch.status != "diverged").all()


def test_nothing_to_explain_is_nothing_done(convolutional, pictures):
    source = convolutional(pictures).argmax(1)
    batch = explain(pictures, source, source, classifier=convolutional, rng=streams(4), **BRIEF)
    assert (batch.status == "skipped").all() and (batch.steps == 0).all() and torch.equal(batch.reference, pictures)


@pytest.mark.parametrize("method", [baselines.iso, baselines.lso, baselines.statistics])
def test_baselines_keep_the_contract_and_start_at_the_image(pictures, method):
    """On a network that reads every place on its own, and so can be turned by pixels."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 256, 4))
    classifier = (
        Classifier(network, "abcd", name="places", image_shape=(3, 16, 16), temperature=0.1)
        .eval()
        .requires_grad_(False)
    )
    source = classifier(pictures).argmax(1)
    settings = {"classifier": classifier, "strengths": (0.5, 0.9), "lambdas": (1.0, 0.0, 5.0)}
    batch = method(pictures, source, (source + 1) % 4, **settings)
    assert batch.images.shape == (4, 2, 3, 16, 16) and batch.images.min() >= 0 and batch.images.max() <= 1
    assert torch.equal(batch.reference, pictures)
    assert (batch.confidence[:, 1] >= 0.9 - 1e-4).all() and (batch.status == "ok").all()
    assert (batch.steps[:, 1] >= batch.steps[:, 0]).all() and (batch.steps <= 401).all()


def test_image_space_optimisation_is_pushed_to_the_change_of_another_run(convolutional, pictures):
    source = convolutional(pictures).argmax(1)
    target = torch.where(torch.arange(4) == 1, source, (source + 1) % 4)
    distance = torch.tensor([0.01, 0.02, 0.03, 0.05])
    way = baselines.to_change(pictures, distance, target, 1e-6)
    batch = baselines.iso_at(pictures, source, target, way, classifier=convolutional, learning_rate=0.05)
    others = [0, 2, 3]
    assert (batch.distance[others, 0] >= distance[others] - 1e-6).all()
    assert (batch.distance[others, 0] <= 1.25 * distance[others]).all()  # the first iterate beyond it
    assert batch.status[1, 0] == "skipped" and batch.distance[1, 0] == 0


def test_what_is_far_enough_and_not_convinced_is_pushed_further(problem):
    x, target, classifier = problem
    settings = {"classifier": classifier, "learning_rate": 0.01, "lambdas": (1.0, 0.0, 5.0)}
    way = baselines.to_change(x, torch.full((6,), 1e-3), target, 0.8)
    batch = baselines.iso_at(x, 1 - target, target, way, **settings)
    assert (batch.confidence[:, 0] >= 0.8 - 1e-5).all() and (batch.distance[:, 0] > 2e-3).all()


def test_a_query_that_the_prior_cannot_draw_diverges(convolutional, pictures):
    noise = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    x = torch.cat([pictures[:1], noise])
    source = convolutional(x).argmax(1)
    batch = explain(
        x, source, (source + 1) % 4, classifier=convolutional, rng=streams(2), strengths=(0.5,), bound=0.01, **BRIEF
    )
    assert (batch.status[1] == "diverged").all() and (batch.status[0] != "diverged").all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strengths": (1.1,)}, "τ = 1.1 is no confidence"),
        ({"prior": "gan"}, "prior 'gan' is unknown; choose one of inr, dip"),
        ({"reading": "P-E"}, "reading 'P-E' is unknown; choose one of P-A, P-B, P-C, P-D, P-0"),
        ({"layers": ["conv9"]}, "no layer 'conv9'"),
        ({"images": torch.rand(1, 1, 16, 16)}, r"images of shape \(1, 16, 16\): the classifier reads \(3, 16, 16\)"),
    ],
)
def test_wrong_input_is_one_line(convolutional, pictures, change, message):
    images = change.pop("images", pictures[:1])
    with pytest.raises(VceError, match=message) as caught:
        explain(images, torch.zeros(1).long(), torch.ones(1).long(), classifier=convolutional, rng=streams(1), **change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "name", "kind"),
    [
        ((3, 32, 32), None, CoordinateNetwork),
        ((3, 224, 224), None, DeepImagePrior),
        ((1, 28, 28), "dip", DeepImagePrior),
        ((3, 224, 224), "inr", CoordinateNetwork),
    ],
)
def test_the_prior_fits_the_size_of_the_image(shape, name, kind):
    prior = prior_for(shape, name)
    assert isinstance(prior, kind) and prior_for(shape, prior) is prior
    assert prior(prior.initial(streams(1))).shape == (1, *shape)


@pytest.fixture(scope="module")
def opened():
    """`names` of the files that Python opens, while it is a list; a hook stays for good, so there is one. What compiled
    code opens goes by unseen: safetensors', which nothing within reach imports."""
    state = {"names": None}

    def hook(event, arguments):
        if event == "open" and state["names"] is not None:
            state["names"].append(str(arguments[0]))

    sys.addaudithook(hook)
    yield state
    state["names"] = None


@pytest.mark.parametrize("reading", ["P-A", "P-0"])
def test_no_file_is_opened_while_it_explains(convolutional, pictures, opened, tmp_path, reading):
    """C7 at run time. What it imports is imported by the first call."""
    source, settings = convolutional(pictures).argmax(1), {**BRIEF, "reading": reading}

    def run():
        return explain(
            pictures, source, (source + 1) % 4, classifier=convolutional, rng=streams(4), strengths=TAUS, **settings
        )

    run()
    opened["names"] = []
    batch = run()
    assert opened["names"] == [] and (batch.steps > 0).all()
    np.save(tmp_path / "data.npy", pictures.numpy())
    np.load(tmp_path / "data.npy")
    seen, opened["names"] = opened["names"], None
    assert [name.endswith("data.npy") for name in seen] == [True, True]  # the hook sees what it is there to see


def test_only_classifier_auxiliary_image_and_target_are_seen():
    """C7: no parameter carries data, and nothing that is imported can load any."""
    given = set(inspect.signature(explain).parameters)
    assert given == {
        "images", "source", "target", "classifier", "auxiliary", "rng", "strengths", "callback",  # the contract
        "prior", "layers", "lambdas", "reading", "schedule", "bound", "fitted",  # settings
    }  # fmt: skip
    reachable = closure("papers.disc.explain")
    assert not any(name.startswith(("common.data", "common.batches", "common.tensors")) for name in reachable)
    assert {name for name in reachable if name.startswith("common.generators.")} == {"common.generators.priors"}


def test_a_search_is_pushed_to_the_confidence_of_another_run(problem):
    """On a classifier that any pixel turns; the target is passed by one step at most, and 1 is never reached."""
    x, target, classifier = problem
    wanted = torch.tensor([0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
    way = baselines.to_confidence(target, wanted)
    settings = {"classifier": classifier, "learning_rate": 0.01, "lambdas": (1.0, 0.0, 5.0)}
    batch = baselines.iso_at(x, 1 - target, target, way, **settings)
    reached = batch.confidence[:, 0]
    assert (reached >= wanted - 1e-4)[:5].all() and (reached < wanted + 0.05)[:5].all()
    assert batch.steps[5, 0] == 401 or reached[5] >= 1 - 1e-6


def test_a_joint_run_may_not_stop_before_a_progressive_one_could(problem):
    """No level counts before k = hold, whatever an image that nobody has drawn yet may seem to be."""
    x, target, classifier = problem
    held = run(x, target, classifier, schedule=Schedule(fit=0, steer=60, ramp=0.0, hold=25))
    free = run(x, target, classifier, schedule=Schedule(fit=0, steer=60, ramp=0.0))
    assert (free.steps < 25).any() and (held.steps > 25).all() and held.reached.all()


def test_certainty_is_never_reached_however_it_is_rounded():
    """The strength 1 asks for the last iterate: a float that is rounded to 1 must not end the search."""
    sure = torch.tensor([[0.0, 60.0]])
    assert sure.softmax(1)[0, 1] == 1 and class_confidence(torch.tensor([1]))(None, sure, torch.tensor([0]))[0] < 1
