"""The methods of the comparison: one entry of the config file and one module each.

The module has `explainer(bench, **settings)`, which returns the contract function of `common.explain`. It may have
`prepare(benches, progress, **recipe)`, which trains what it needs for all classifiers of one world and seed (`SHARED`
says that this is the same for every classifier), and `facts(bench, images, **settings)`, numbers to know beside its
results.
"""

import importlib
import inspect
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from common.data import datasets
from common.errors import VceError
from common.explain import CounterfactualBatch, Explainer, Streams, finish
from common.results import STATUSES
from common.scales import parse_recipe
from comparison.bench import Bench

ANCHORS = ("identity", "random", "class-mean", "nearest-real", "twin")  # trivial: they need no idea
TOLERANCE = 1e-3  # of a distance or confidence that a method says of its own images: kernels differ between batches


@dataclass(frozen=True)
class Entry:
    """`module`: import path; `strengths`: of the path, by world: worlds that are not named are not explained;
    `settings`: of the explainer; `prepare`: the recipe of what is trained, by world; `untargeted`: it explains the
    class that is seen, and no target; `own`: its confidence is that of a classifier of its own, not of f;
    `each_strength`: every strength is a run of its own, not a place on one path."""

    name: str
    module: str
    strengths: dict[str, list[float]]
    settings: dict = field(default_factory=dict)
    prepare: dict[str, dict] = field(default_factory=dict)
    untargeted: bool = False
    own: bool = False
    each_strength: bool = False

    def load(self) -> ModuleType:
        """Raises VceError when there is no such module, or it has no `explainer`."""
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            raise VceError(f"method {self.name}: {error}; mend `module` in config/") from error
        if not hasattr(module, "explainer"):
            raise VceError(f"method {self.name}: {self.module} has no explainer(bench, **settings); add it")
        return module

    def explainer(self, bench: Bench) -> Explainer:
        """Its contract function for one classifier. Raises VceError for a setting that it does not know."""
        try:
            return self.load().explainer(bench, **self.settings)
        except TypeError as error:
            raise VceError(f"method {self.name}: {error}; mend `settings` in config/") from error

    def facts(self, bench: Bench, images: Tensor) -> dict[str, float]:
        """What its module has to say of one classifier and N images, by name; nothing of most methods."""
        module = self.load()
        return module.facts(deepcopy(bench), images.clone(), **self.settings) if hasattr(module, "facts") else {}

    @property
    def shared(self) -> bool:
        """What it trains is the same for every classifier."""
        return getattr(self.load(), "SHARED", False)

    def prepare_all(self, benches: list[Bench], progress: Callable[[], None]) -> None:
        """Train what it needs for all classifiers of one world and seed. Raises VceError for a recipe that it does not
        know."""
        recipe, train = self.prepare[benches[0].world], self.load().prepare
        try:
            inspect.signature(train).bind(benches, progress, **recipe)
        except TypeError as error:
            raise VceError(f"method {self.name}: {error} in its recipe; mend `prepare` in config/") from error
        train(deepcopy(benches), progress, **recipe)


def parse_entries(methods: dict[str, dict]) -> list[Entry]:
    """The methods of a config file, in its order. Raises VceError for a wrong field."""
    return [parse_recipe(Entry, {"name": name, **fields}) for name, fields in methods.items()]


def ask(
    entry: Entry, bench: Bench, pairs: datasets.Images, target: Tensor, callback: Callable[[dict], None]
) -> tuple[CounterfactualBatch, float]:
    """What a method answers to N images, by the contract and checked against it, and the seconds that it took. It gets
    copies of everything, the classifier too, so that what it does to them is nobody else's. Raises VceError for an
    answer that breaks the contract, and whatever the method raises."""
    mine, strengths = deepcopy(bench), entry.strengths[bench.world]
    rng, lent = Streams(bench.seed, pairs.ids, tuple(target.tolist())), (pairs.images, pairs.labels, target)
    start = time.perf_counter()
    explain = entry.explainer(mine)
    batch = explain(
        *(part.clone() for part in lent), classifier=mine.classifier, rng=rng, strengths=strengths, callback=callback
    )
    seconds = time.perf_counter() - start
    f = None if entry.own else bench.classifier
    return checked(batch, pairs.images, target, strengths, f), seconds


def checked(
    batch: CounterfactualBatch, images: Tensor, target: Tensor, strengths: Sequence[float], f: nn.Module | None
) -> CounterfactualBatch:
    """The batch, when it keeps the contract. Raises VceError with what is wrong: its type, its shape, a status that has
    no name, other strengths than were asked for, a pixel that is no number or outside of [0, 1], a distance that is not
    that of its images, or a confidence that is not the answer of `f` to them (None: the method answers for a classifier
    of its own)."""
    if not isinstance(batch, CounterfactualBatch):
        raise VceError(f"returned a {type(batch).__name__}, not a CounterfactualBatch")
    expected = (len(images), len(strengths), *images.shape[1:])
    if tuple(batch.images.shape) != expected:
        raise VceError(f"returned images of shape {tuple(batch.images.shape)}, not {expected}")
    if tuple(map(float, batch.strengths)) != tuple(map(float, strengths)):
        raise VceError(f"returned strengths {tuple(batch.strengths)}, asked for were {tuple(strengths)}")
    for name, part, shape in (
        ("reference", batch.reference, images.shape),
        ("saliency", batch.saliency, (len(images), *images.shape[2:])),
    ):
        if part is not None and (part.shape != shape or not torch.isfinite(part).all()):
            raise VceError(f"returned a {name} of shape {tuple(part.shape)}, not finite numbers of {tuple(shape)}")
    if not np.isin(batch.status, STATUSES).all():
        raise VceError(f"returned a status that is none of {', '.join(STATUSES)}")
    if not torch.isfinite(batch.images).all():
        raise VceError("returned pixels that are no numbers; a sample that diverged keeps its last finite image")
    low, high = batch.images.min().item(), batch.images.max().item()
    if low < 0 or high > 1:
        raise VceError(f"returned pixels from {low:.3g} to {high:.3g}, outside of [0, 1]")
    read = finish(images, batch.images, target, classifier=f, strengths=strengths) if f else batch
    distance = (batch.images - images[:, None]).abs().flatten(2).mean(2)
    for name, found, own in (
        ("a distance", distance, batch.distance),
        ("a confidence", read.confidence, batch.confidence),
    ):
        off = (found - own).abs().max().item()
        if not off <= TOLERANCE:
            raise VceError(f"returned {name} that is {off:.3g} off what is read of its images")
    return batch
