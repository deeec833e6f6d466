"""Two methods on one image: which classifiers and target they share, what each finds, and what can be compared."""

from dataclasses import dataclass
from pathlib import Path

import torch

from common.classifiers.base import Classifier
from common.data.images import load_image
from common.errors import VceError
from common.metrics.perturbation import pixel_change
from common.progress import Progress
from vce.explain import find_class
from vce.explanation import Explanation, Request, explain_batch
from vce.methods import find_method
from vce.readings import Reading, chance_overlap, cosine, most_changed, overlap, points, read_at

DIFFERENT = "these two confidences are of different classifiers and are not comparable"


@dataclass(frozen=True)
class Equal:
    """Both paths read where `name`, a column of `readings.READ`, rises to `level`, the smaller value of the two chosen
    counterfactuals, or `falling` to the larger. Where that makes no sense `missing` says why, and there are no
    readings."""

    name: str
    falling: bool = False
    level: float | None = None
    readings: tuple[Reading, ...] = ()
    missing: str = ""


@dataclass(frozen=True)
class Agreement:
    """How much the two chosen changes agree: cosine in [-1, 1], intersection over union of their most changed pixels
    and what chance gives, both in [0, 1]; None where a value is no number. `missing` says why there is none at all."""

    cosine: float | None = None
    overlap: float | None = None
    chance: float | None = None
    missing: str = ""


@dataclass(frozen=True)
class Diff:
    """What two methods found for one image, in the order asked for. `shared`: both explain the same classifier."""

    explanations: tuple[Explanation, Explanation]
    shared: bool
    change: Equal
    confidence: Equal
    agreement: Agreement


def load_classifiers(names: tuple[str, str], classifier: str | None) -> tuple[Classifier, Classifier]:
    """The classifiers that two methods explain: one and the same object where both explain any.

    `classifier` goes to the methods that explain any classifier; the others explain their own, the default one. Raises
    VceError for a name that means nothing, and for classifiers without a common class.
    """
    first, second = methods = tuple(find_method(name) for name in names)
    if first.loader == second.loader:
        model = first.load_classifier(classifier)
        return model, model
    models = tuple(method.load_classifier(None if method.own_classifier else classifier) for method in methods)
    known = [{name.casefold() for name in model.class_names} for model in models]
    if not known[0] & known[1]:
        free = next((name for name, method in zip(names, methods, strict=True) if not method.own_classifier), None)
        own = models[0] if first.own_classifier else models[1]
        fix = f"give {free} a --classifier that knows {' or '.join(own.class_names[:2])}" if free else "choose others"
        told = (
            f"{name} explains {model.name} ({', '.join(model.class_names[:3])}{' ...' * (len(model.class_names) > 3)})"
            for name, model in zip(names, models, strict=True)
        )
        raise VceError(f"{' and '.join(told)}, which have no class in common; {fix}")
    return models


def find_targets(models: tuple[Classifier, Classifier], target: str | None) -> tuple[int | None, int | None]:
    """The index of the class `target` in both classifiers; None twice for None, the runner-up class. Raises VceError
    where it is not one class of both."""
    if target is None:
        return None, None
    found = tuple(find_class(model, target) for model in models)
    first, second = (model.class_names[index] for model, index in zip(models, found, strict=True))
    if first.casefold() != second.casefold():
        why = f"{first!r} of {models[0].name}, but {second!r} of {models[1].name}"
        raise VceError(f"--target {target!r}: {why}; give a name that both know")
    return found


def compare(
    image: Path,
    names: tuple[str, str],
    models: tuple[Classifier, Classifier],
    targets: tuple[int | None, int | None],
    seed: int,
    progress: Progress,
) -> Diff:
    """Explain `image` by both methods, each at its default strengths, and compare what they found.

    Raises VceError for an unreadable image and for one that a classifier already sees as the target.
    """
    inputs = tuple(load_image(image, model.image_shape) for model in models)
    for model, x, target in zip(models, inputs, targets, strict=True):  # before the work, not after it
        with torch.no_grad():
            seen = int(model(x[None]).argmax())
        if seen == target:
            raise VceError(
                f"{image}: {model.name} already predicts {model.class_names[seen]!r}; choose another --target"
            )
    methods, explanations = tuple(find_method(name) for name in names), []
    for name, method, model, x, target in zip(names, methods, models, inputs, targets, strict=True):
        request = Request(name, method.load(), model, target, method.strengths(model.image_shape), seed, 1)
        ((_, explanation),) = explain_batch([image], {0: x}, request, progress)
        explanations.append(explanation)
        progress.advance()
    pair, shared = tuple(explanations), models[0] is models[1]
    untargeted = any(method.untargeted for method in methods)  # leaves the class seen, and moves to none
    followed = "source_confidence" if untargeted else "confidence"
    return Diff(
        pair,
        shared,
        equal(pair, "mean_abs_change"),
        equal(pair, followed, falling=untargeted) if shared else Equal(followed, untargeted, missing=DIFFERENT),
        agreement(pair),
    )


def equal(pair: tuple[Explanation, Explanation], name: str, falling: bool = False) -> Equal:
    """Both paths read at the smaller of the two values of `name` that the chosen counterfactuals have, the larger where
    it is `falling` along a path."""
    if lost := _diverged(pair):
        return Equal(name, falling, missing=lost)
    level = (max if falling else min)(explanation.rows[explanation.chosen][name] for explanation in pair)
    return Equal(name, falling, level, tuple(read_at(points(each), name, level, falling) for each in pair))


def agreement(pair: tuple[Explanation, Explanation]) -> Agreement:
    """How much the changes of the two chosen counterfactuals agree, each from where its path starts."""
    if lost := _diverged(pair):
        return Agreement(missing=lost)
    first, second = (explanation.delta[explanation.chosen] for explanation in pair)
    if first.shape != second.shape:
        shapes = " and ".join("×".join(map(str, delta.shape)) for delta in (first, second))
        return Agreement(missing=f"the pictures have different sizes, {shapes}")
    masks = [most_changed(change) for change in pixel_change(torch.stack([first, second]))]
    counts = [int(mask.sum()) for mask in masks]
    return Agreement(cosine(first, second), overlap(*masks), chance_overlap(masks[0].numel(), *counts))


def _diverged(pair: tuple[Explanation, Explanation]) -> str:
    lost = [each.record["method"] for each in pair if each.record["status"] == "diverged"]
    return f"{' and '.join(lost)} diverged" if lost else ""
