"""What every explaining job ends with: the facts of a shard, and the yardstick of its overhead."""

import time

import torch
from torch import Tensor, nn

from common.batches import Shard
from common.classifiers.training import accuracy
from common.data import datasets
from common.explain import CounterfactualBatch, Objective


def shard_of(
    world: str,
    classifier: nn.Module,
    pairs: datasets.Images,
    target: Tensor,
    everyone: datasets.Images,
    /,
    *,
    batches: dict[str, CounterfactualBatch],
    **facts,
) -> Shard:
    """The shard of explained `batches` from the N images of `pairs` towards N `target` classes: with the accuracy of
    `classifier` on `everyone`, what it sees in the originals and, on rendered worlds, under every intervention."""
    with torch.no_grad():
        prediction = classifier(pairs.images).argmax(1)
        changed = datasets.interventions(world, pairs.ids, target) if datasets.world(world).rendered else {}
        interventions = {factor: classifier(images).argmax(1) for factor, images in changed.items()}
    return Shard(
        world=world,
        ids=pairs.ids,
        source=pairs.labels,
        target=target,
        accuracy=accuracy(classifier, everyone.images, everyone.labels),
        source_prediction=prediction,
        interventions=interventions,
        batches=batches,
        **facts,
    )


def pass_seconds(objective: Objective, x: Tensor, repeats: int = 9) -> float:
    """Median seconds of one evaluation of `objective` and its gradient per sample, at the batch of N inputs `x`: the
    yardstick of overhead."""
    rows, seconds = torch.arange(len(x)), []
    for _ in range(repeats):
        start = time.perf_counter()
        objective(x, rows)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[repeats // 2] / len(x)
