"""Toy methods for the conformance kit: one that is honest, and one for every way to be broken."""

import numpy as np
import torch

from common.anchors import pixel_ascent, random_direction
from common.explain import CounterfactualBatch, finish


def honest(images, source, target, *, classifier, rng, strengths, callback=None) -> CounterfactualBatch:
    """Pixel ascent that leaves an image alone whose target is its source."""
    found = pixel_ascent(
        images, source, target, classifier=classifier, rng=rng, strengths=strengths, callback=callback, iterations=10
    )
    path = torch.where((source == target).view(-1, 1, 1, 1, 1), images[:, None], found.images)
    return finish(images, path, target, classifier=classifier, strengths=strengths)


def redrawn(draw):
    """The method whose path is `draw(path, images, target, lent)` of the honest one, and read honestly; `lent` are its
    keyword arguments."""

    def explain(images, source, target, *, strengths, **lent):
        path = draw(honest(images, source, target, strengths=strengths, **lent).images, images, target, lent)
        return finish(images, path, target, classifier=lent["classifier"], strengths=strengths)

    return explain


def misreported(method, **report):
    """The method, but its field `name` is `report[name](batch)`."""

    def explain(images, source, target, *, strengths, **lent):
        batch = method(images, source, target, strengths=strengths, **lent)
        return CounterfactualBatch(**{**vars(batch), **{name: wrong(batch) for name, wrong in report.items()}})

    return explain


def pattern(shape):
    """The same uniform draws at every call."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def hurt(path, images, target, lent):
    path[0, -1, 0, 0, 0] = torch.nan
    return path


def shun(path, images, target, lent):
    """Goes to the last class and away from all others."""
    last = lent["classifier"](images).shape[1] - 1
    return torch.where((target == last).view(-1, 1, 1, 1, 1), path, (2 * images[:, None] - path).clamp(0, 1))


def moved(path, amount):
    return (path + amount).clamp(0, 1)


# what it draws
out_of_range = redrawn(lambda path, images, target, lent: path + lent["rng"].normal(path.shape[1:], "noise"))
nan = redrawn(hurt)
identity = redrawn(lambda path, images, target, lent: images[:, None].expand_as(path))
pasted = redrawn(lambda path, images, target, lent: pattern(path.shape[2:]).expand_as(path))
undirected = redrawn(lambda path, images, target, lent: random_direction(images, [4.0] * path.shape[1], lent["rng"]))
one_way = redrawn(shun)

# what its result depends on
by_position = redrawn(lambda path, images, target, lent: moved(path, 0.05 * pattern(path.shape)))
by_neighbours = redrawn(lambda path, images, target, lent: path.lerp(path.mean(0, keepdim=True), 0.01))
global_state = redrawn(lambda path, images, target, lent: moved(path, 0.05 * torch.rand(path.shape)))
watched = redrawn(lambda path, images, target, lent: moved(path, 0.0 if lent["callback"] is None else 0.01))

# what it says
cropped = misreported(honest, images=lambda batch: batch.images[..., 1:])
one_strength = misreported(honest, strengths=lambda batch: batch.strengths[:1])
unknown_status = misreported(honest, status=lambda batch: np.full(batch.status.shape, "success"))
claims_ok = misreported(identity, status=lambda batch: np.full(batch.status.shape, "ok"))
claims_nothing = misreported(honest, status=lambda batch: np.full(batch.status.shape, "not_flipped"))
claims_confidence = misreported(honest, log_confidence=lambda batch: batch.log_confidence / 2)
claims_nearness = misreported(honest, distance=lambda batch: batch.distance / 2)


# what it does to what it was lent, and how it ends


def modifies_images(images, source, target, *, strengths, **lent):
    images.mul_(0.5)
    return honest(images, source, target, strengths=strengths, **lent)


def modifies_classifier(images, source, target, *, strengths, **lent):
    batch = honest(images, source, target, strengths=strengths, **lent)
    with torch.no_grad():
        next(lent["classifier"].parameters()).add_(1e-3)
    return batch


def leaves_gradients(images, source, target, *, strengths, **lent):
    lent["classifier"](images.clone().requires_grad_()).sum().backward()
    return honest(images, source, target, strengths=strengths, **lent)


def crashes_when_already_there(images, source, target, *, strengths, **lent):
    if (source == target).any():
        raise ZeroDivisionError("no way to go")
    return honest(images, source, target, strengths=strengths, **lent)


def never_ends(images, source, target, *, strengths, **lent):
    while True:
        pass
