"""The conformance kit: what any method that keeps the contract of common/explain.py has to do, and what it is worth
knowing about it. Run it by `pytest --explainer package.module:function` (README.md beside this file).

Numbers are recorded as properties of the tests and shown at the end; a test fails only where its text says `must`.
"""

import numpy as np
import pytest
import torch

from common.anchors import pixel_ascent
from common.explain import CounterfactualBatch
from common.results import STATUSES
from comparison.conformance import problems
from comparison.conformance.problems import Problem, asked
from comparison.conformance.subject import Subject, find

METRIC = 1e-4  # how far confidences and distances may differ between batches, and from a recomputation
UNCHANGED = 1e-3  # mean |x′ − x| of an image that nothing was asked of
LEVEL = 0.9  # p_f(target) of a counterfactual
SAME = 0.9  # cosine from which two changes are the same


@pytest.fixture(scope="session")
def subject(request) -> Subject:
    """The method under test."""
    if not request.config.getoption("explainer"):
        pytest.skip("no method is named; give --explainer package.module:function")
    return find(request.config)


def pytest_generate_tests(metafunc):
    if "shape" in metafunc.fixturenames:
        option = metafunc.config.getoption("classifier")
        shapes = (None,) if option else problems.SHAPES
        names = ["own" if shape is None else "x".join(map(str, shape)) for shape in shapes]
        metafunc.parametrize("shape", shapes, ids=names)


def same_bits(a: CounterfactualBatch, b: CounterfactualBatch) -> bool:
    """Whether two batches agree in images, confidences, distances, steps and statuses."""
    names = ("images", "log_confidence", "distance", "steps")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names) and np.array_equal(a.status, b.status)


# 1. the contract


def test_shapes(subject, shape):
    """The batch must hold N×S images of the shape that was given and N×S log_confidence, distance, status, steps,
    forward and backward, repeat the strengths that were asked for, and name statuses of `common.results.STATUSES`;
    `reference` has the images' shape, `saliency` one value per pixel. Everything that reads a batch relies on it."""
    answer = subject.answer(shape)
    batch, images = answer.batch, answer.problem.images
    n, s = len(images), len(subject.strengths)
    shape, expected = tuple(batch.images.shape), (n, s, *images.shape[1:])
    assert shape == expected, f"images of shape {shape}, not {expected}"
    assert batch.images.dtype == images.dtype, f"images are {batch.images.dtype}, not {images.dtype}"
    assert tuple(batch.strengths) == tuple(subject.strengths), "the strengths are not those that were asked for"
    for name in ("log_confidence", "distance", "status", "steps", "forward", "backward"):
        assert tuple(getattr(batch, name).shape) == (n, s), name
    assert batch.reference is None or batch.reference.shape == images.shape
    assert batch.saliency is None or batch.saliency.shape == (n, *images.shape[2:])
    assert set(batch.status.flat) <= set(STATUSES)


def test_range(subject, shape):
    """Every returned colour value must be finite and in [0, 1], whatever the status: a sample that diverged holds its
    last finite image. What lies outside is no image, and a classifier may say anything about it."""
    images = subject.answer(shape).batch.images
    assert images.isfinite().all(), "an image holds values that are no numbers"
    assert images.min() >= 0 and images.max() <= 1, "an image leaves [0, 1]"


def test_confidence(subject, shape):
    """`confidence` must be the classifier's own reading of the returned image, |p − p_f(target | x′)| ≤ 1e-4, unless
    the sample diverged: not of a latent, of an image before it was clipped, or of the last step but one."""
    answer = subject.answer(shape)
    target = answer.problem.target[:, None, None].expand(*answer.batch.images.shape[:2], 1)
    off = (answer.batch.confidence - answer.log_p.gather(2, target)[..., 0].exp()).abs()
    worst = off.masked_fill(torch.from_numpy(answer.batch.status == "diverged"), 0).max().item()
    assert worst <= METRIC, "the confidence is not what the classifier says of the image"


def test_status(subject, shape):
    """`ok` must mean that the classifier's prediction for x′ is the target (of an untargeted method: no longer the
    source), `not_flipped` that it is not. A prediction by less than 1e-4 counts as either."""
    answer = subject.answer(shape)
    batch, log_p = answer.batch, answer.log_p
    wanted = answer.problem.source if subject.untargeted else answer.problem.target
    seen = log_p.argmax(2) == wanted[:, None]
    top = log_p.exp().topk(2, 2).values
    clear = ((top[..., 0] - top[..., 1]) > METRIC).numpy()
    flipped = (~seen if subject.untargeted else seen).numpy()
    wrongly_ok = int((clear & ~flipped & (batch.status == "ok")).sum())
    wrongly_not = int((clear & flipped & (batch.status == "not_flipped")).sum())
    assert wrongly_ok == 0, f"of {batch.status.size} images, {wrongly_ok} are called `ok` and are not"
    assert wrongly_not == 0, f"of {batch.status.size} images, {wrongly_not} are called `not_flipped` and are"


def test_distance(subject, shape):
    """`distance` must be mean |x′ − x| over all colour values, from the image that was given, recomputed to 1e-4: a
    generator's error of reconstruction is part of it."""
    answer = subject.answer(shape)
    moved = (answer.batch.images - answer.problem.images[:, None]).abs().flatten(2).mean(2)
    worst = (answer.batch.distance - moved).abs().max().item()
    assert worst <= METRIC, "the distance is not that of the image from the one that was given"


def test_inputs(subject, shape):
    """Images, source, target and the classifier's parameters, buffers and mode are lent: after the call they must be
    what they were, bit for bit. The caller measures x′ against the same x, by the same f."""
    assert subject.answer(shape).touched == ()


def test_gradients(subject):
    """A classifier whose weights are not frozen must come back without gradients in them: they would be added to
    whatever its owner trains next. (Every other test gives a frozen one, as the repository's loaders do.)"""
    problem = subject.problem()[range(2)]
    problem.classifier.zero_grad()
    weights = list(problem.classifier.requires_grad_(True).parameters())
    try:
        subject.ask(problem)
        left = sum(weight.grad is not None for weight in weights)
    finally:
        problem.classifier.requires_grad_(False).zero_grad()
    assert left == 0, f"gradients were left in {left} of {len(weights)} parameters"


def test_callback(subject):
    """With a callback the result must have the same bits as without: watching is free."""
    plain = subject.answer()
    watched = subject.ask(plain.problem, callback=lambda state: None)
    assert same_bits(plain.batch, watched.batch)


# 2. determinism


def test_same_bits(subject):
    """The same call again must give the same bits: all randomness comes from `rng`. A method that draws from a global
    generator is found here, since the first call has moved it on."""
    first = subject.answer()
    assert same_bits(first.batch, subject.ask(first.problem).batch)


def test_batch(subject, record_property):
    """A sample's result must not depend on the samples beside it or on their order: the batch is permuted and split in
    two; statuses must agree, |Δ confidence| and |Δ distance| stay ≤ 1e-4 (kernels round differently by batch size)."""
    whole, n = subject.answer(), len(subject.answer().problem.images)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).tolist()
    parts = [subject.ask(whole.problem[rows]).batch for rows in (order[: n // 3], order[n // 3 :])]
    confidence, distance = (
        (torch.cat([getattr(part, name) for part in parts]) - getattr(whole.batch, name)[order]).abs().max().item()
        for name in ("confidence", "distance")
    )
    status = np.concatenate([part.status for part in parts])
    record_property("strengths", ", ".join(f"{strength:g}" for strength in subject.strengths))
    record_property("largest |Δ confidence| in another batch (at most 1e-4)", confidence)
    record_property("largest |Δ distance| in another batch (at most 1e-4)", distance)
    assert np.array_equal(status, whole.batch.status[order]), "statuses depend on the batch"
    assert confidence <= METRIC and distance <= METRIC, "numbers depend on the batch"


# 3. to 6. classifiers of which something is known


def test_linear(subject, record_property):
    """f = (0, w·x + b) on images near grey, far from the box: the least ‖x′ − x‖₂ with p_f(target) ≥ p is known,

        d(p) = (logit p − s) / ‖w‖₂,   s = ±(w·x + b), the target's logit less the source's,   along x′ − x ∝ ±w.

    Some image of every path must be predicted as the target, and none may claim a confidence p at a length below d(p),
    which is impossible. Reported: the length of the first image with p ≥ .9 over d(.9) (it counts the grid of strengths
    too), and the cosine of that change with the way to the target along w."""
    subject.require_any_classifier()
    subject.require_target()
    problem = problems.linear()
    answer = subject.ask(problem)
    batch, head = answer.batch, problem.classifier[1]
    w = (head.weight[problem.target] - head.weight[problem.source]).detach()
    bias = (head.bias[problem.target] - head.bias[problem.source]).detach()
    score = (w * problem.images.flatten(1)).sum(1) + bias
    claimed = batch.confidence.clamp(max=0.999).logit()  # beyond, float32 has no digits left
    least = (claimed - score[:, None]) / w.norm(dim=1)[:, None]
    impossible = int((answer.length < least * 0.99 - METRIC).sum())
    lost = int((answer.log_p.argmax(2) != problem.target[:, None]).all(1).sum())
    assert impossible == 0, f"{impossible} images claim a confidence that no image so near can have"
    assert lost == 0, f"{lost} of {len(least)} paths never reach their target; try other --strengths"
    reached = (batch.confidence >= LEVEL).any(1)
    record_property("share of paths that reach p = .9", reached.float().mean().item())
    if reached.any():
        at = batch.first_success(LEVEL)
        rows = torch.arange(len(at))
        best = (torch.tensor(LEVEL).logit() - score) / w.norm(dim=1)
        record_property(
            "l2 length over the least possible at p = .9 (least 1)",
            (answer.length[rows, at] / best)[reached].median().item(),
        )
        cosine = torch.cosine_similarity(answer.change[rows, at].flatten(1), w)
        record_property("cosine of the change with w (best 1)", cosine[reached].median().item())


def test_constant(subject):
    """f(x) = const: no image is seen as the target, and the gradient is zero. The method must come to an end with
    finite images in [0, 1] and a status `not_flipped` or `diverged` everywhere; `ok` would be an invention."""
    subject.require_any_classifier()
    batch = subject.ask(problems.constant()).batch
    assert batch.images.isfinite().all() and batch.images.min() >= 0 and batch.images.max() <= 1
    assert not batch.log_confidence.isnan().any() and not batch.distance.isnan().any()
    assert set(batch.status.flat) <= {"not_flipped", "diverged"}


def test_irrelevant(subject, record_property):
    """f reads the left half of the image alone. Reported: the share of the l1 change, Σ_right |Δ| / Σ |Δ| of the last
    image, that falls on the right half; one half is chance, zero what f would justify.

    A targeted method must reach the target on at least half as many images as pixel ascent
    (`common.anchors.pixel_ascent`) does in the l2 ball whose radius is the method's longest ‖x′ − x‖₂: strengths of two
    methods mean different things, lengths do not. Half as many, since a sparse or smooth change buys less by length."""
    subject.require_any_classifier()
    problem = problems.half_blind()
    answer = subject.ask(problem)
    change = answer.change[:, -1].abs()
    right = change[..., change.shape[-1] // 2 :].flatten(1).sum(1) / change.flatten(1).sum(1)
    if right.isfinite().any():
        record_property("share of the l1 change on the irrelevant half (chance .5)", right.nanmedian().item())
    if subject.untargeted:
        return
    ascent = pixel_ascent(
        problem.images, problem.source, problem.target, classifier=problem.classifier, rng=problem.rng,
        strengths=(max(answer.length.max().item(), METRIC),),
    )  # fmt: skip
    reached = (answer.log_p.argmax(2) == problem.target[:, None]).any(1).float().mean().item()
    ascended = float((ascent.status == "ok").mean())
    record_property("share of images that reach the target", reached)
    record_property("share that pixel ascent reaches at equal l2 length", ascended)
    assert reached >= ascended / 2, "less than half as many as pixel ascent; try other --strengths"


def test_randomised(subject, record_property):
    """The same question is asked of the trained network and of the same network with new random weights (Adebayo et
    al., Sanity checks for saliency maps, 2018). The median cosine between the two last changes must be below .9:
    otherwise the change comes from the generator or from the image, and does not explain f."""
    subject.require_any_classifier()
    answer = subject.answer()
    mine = answer.change[:, -1].flatten(1)
    other = subject.ask(problems.randomised(answer.problem)).change[:, -1].flatten(1)
    cosine = torch.cosine_similarity(mine, other)
    cosine = torch.where((mine == other).all(1), 1.0, cosine).median().item()  # nothing twice is the same twice
    record_property("cosine of the changes for trained and random weights (< .9)", cosine)
    assert cosine < SAME, "the change does not depend on the classifier's weights"


# 7. and 8. the way back, and no way at all


def test_way_back(subject, record_property):
    """From x′, the first image with p_f(target) ≥ .9 or else the last, the method is asked back to the source. Some x′
    must be seen as the target; on the way back p_f(source) must rise on every one of these.
    Reported: ‖x″ − x‖₂ / ‖x′ − x‖₂; 0 is a return to x, 1 no nearer than x′."""
    subject.require_target()
    there = subject.answer()
    problem, at = there.problem, there.batch.first_success(LEVEL)
    turned = there.batch.at(at)
    rows = asked(problem.classifier, turned).source.eq(problem.target).nonzero()[:, 0].tolist()
    assert rows, "no image reaches its target, so there is no way back; try other --strengths"
    back = Problem(problem.classifier, turned, problem.target, problem.source, problem.ids)[rows]
    answer = subject.ask(back)
    assert set(answer.batch.status.flat) <= set(STATUSES)
    end = answer.batch.first_success(LEVEL)
    with torch.no_grad():
        before, after = (
            problem.classifier(images).softmax(1).gather(1, back.target[:, None])[:, 0]
            for images in (back.images, answer.batch.at(end))
        )
    away = (answer.batch.at(end) - problem.images[rows]).flatten(1).norm(dim=1)
    record_property(
        "distance from x after there and back, over there (0: returned)",
        (away / (back.images - problem.images[rows]).flatten(1).norm(dim=1)).median().item(),
    )
    away_from_it = int((after <= before).sum())
    assert away_from_it == 0, f"{away_from_it} of {len(rows)} ways back lead away from the source"


def test_already_there(subject):
    """Asked for the class that the classifier sees already, a method must answer `skipped` or leave the image as it is,
    mean |x′ − x| ≤ 1e-3: nothing has to change."""
    subject.require_target()
    asked_for = subject.problem()
    problem = Problem(asked_for.classifier, asked_for.images, asked_for.source, asked_for.source, asked_for.ids)
    answer = subject.ask(problem)
    moved = (answer.batch.images - problem.images[:, None]).abs().flatten(2).mean(2)
    worst = moved.masked_fill(torch.from_numpy(answer.batch.status == "skipped"), 0).max().item()
    assert worst <= UNCHANGED, "an image is changed though the classifier sees the target already"
