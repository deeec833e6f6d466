"""Job: explain groups of start images with every method, for one training seed.

python -m papers.disc.shards --entries '[{...}]' --recipes '{...}' --systems DIR --splits DIR --seed 0 --out F

The file holds one shard per entry; what it cost stands beside it in F.cost.json.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from common import anchors
from common.batches import Shard, write_shards
from common.classifiers.companion import Companion, NearAnyCentroid, PredictedError, load_companion
from common.data import datasets
from common.errors import VceError, one_line_errors
from common.explain import CounterfactualBatch, Streams, log_confidence
from common.files import commit, write_atomic
from common.generators.priors import CoordinateNetwork, DeepImagePrior, Optimiser, Prior
from common.progress import Progress
from common.scales import parse_recipe
from common.shards import pass_seconds, shard_of
from papers.disc import baselines
from papers.disc.corruptions import corrupted
from papers.disc.explain import explain, fit_prior
from papers.disc.method import Fit, Schedule
from papers.disc.names import MARKS, cell_name

BASELINES = {"iso": baselines.iso, "iso/fast": baselines.iso, "lso": baselines.lso, "statistics": baselines.statistics}
PRIORS = {"inr": CoordinateNetwork, "dip": DeepImagePrior}
COMPANIONS = {"duq": NearAnyCentroid, "dep": PredictedError}
FAST = 10.0  # how much longer the steps of iso/fast are
PUSH = 2.5  # and those of ISO pushed to the change of another cell, or its budget ends before
SHARE_FIT = ("P-A", "P-B", "P-D")  # P-C fits other layers, P-0 nothing
METHODS = (*BASELINES, *PRIORS, "pixel-ascent")


@dataclass(frozen=True)
class Cell:
    """One method along a path of `strengths`: confidences τ, of `pixel-ascent` l2 radii. `manifold` is duq, dep or
    nothing, `reading` what is made progressive; `iso/fast` steps ten times as far. A cell `like` another is pushed
    until it is as far as that one at its first success, `by` its change of the original, its change of its own drawing,
    or its confidence."""

    method: str
    strengths: list[float] = field(default_factory=lambda: [1.0])
    manifold: str = ""
    reading: str = "P-A"
    like: str = ""
    by: str = "change"

    @property
    def name(self) -> str:
        return cell_name(self.method, self.manifold, self.reading, self.like, self.by)


@dataclass(frozen=True)
class Recipe:
    """The settings that all cells of a world share: λ₁, another λ₁ of the feature statistics, λ₃, and λ₂ by companion;
    iterations of fit and steering, and how fast w rises; the rate of free pixels."""

    semantics: float
    statistics: float
    functional: float
    manifold: dict[str, float]
    fit: int
    steer: int
    ramp: float
    pixel_rate: float

    @property
    def schedule(self) -> Schedule:
        """P-A's."""
        return Schedule(self.fit, self.steer, self.ramp)

    @property
    def joint(self) -> Schedule:
        """All iterations at once: what baselines get."""
        return Schedule(0, self.fit + self.steer, 0.0)

    def lambdas(self, companion: str) -> tuple[float, float, float]:
        """Raises VceError for a companion without a weight."""
        if companion and companion not in self.manifold:
            raise VceError(f"recipes: no λ₂ of {companion}; add it to `manifold` in config/")
        return self.semantics, self.manifold[companion] if companion else 0.0, self.functional

    def prior(self, name: str, shape: tuple[int, int, int]) -> Prior:
        """The prior called `name`, for images of this shape."""
        return PRIORS[name](shape)


def parse_cells(cells: list[dict]) -> list[Cell]:
    """The cells of a config file. Raises VceError for a wrong field or an unknown method."""
    try:
        parsed = [Cell(**fields) for fields in cells]
    except TypeError as error:
        raise VceError(f"cells: {error}; fix it in config/") from error
    for cell in parsed:
        if cell.method not in METHODS:
            raise VceError(f"cells: method {cell.method!r} is unknown; choose one of {', '.join(METHODS)}")
        if cell.by not in MARKS:
            raise VceError(f"cells: by {cell.by!r} is unknown; choose one of {', '.join(MARKS)}")
        if cell.like and cell.method not in ("iso", *PRIORS):
            raise VceError(f"cells: {cell.method} cannot be pushed; choose one of iso, {', '.join(PRIORS)}")
        if not cell.strengths or (cell.method != "pixel-ascent" and not all(0 < tau <= 1 for tau in cell.strengths)):
            raise VceError(f"cells: strengths {cell.strengths} of {cell.name} are no confidences above 0 and up to 1")
        if cell.manifold and cell.method not in PRIORS:
            raise VceError(f"cells: {cell.method} has no manifold term; choose one of {', '.join(PRIORS)}")
        if cell.manifold not in ("", *COMPANIONS):
            raise VceError(f"cells: companion {cell.manifold!r} is unknown; choose one of {', '.join(COMPANIONS)}")
    twice = {cell.name for cell in parsed if [other.name for other in parsed].count(cell.name) > 1}
    if twice:
        raise VceError(f"cells: {', '.join(sorted(twice))} stands twice in one entry; remove one")
    return parsed


@dataclass(frozen=True)
class Job:
    """N images on their way to their targets: all that the cells of an entry share."""

    images: Tensor
    source: Tensor
    target: Tensor
    companion: Companion
    rng: Streams
    recipe: Recipe
    level: float
    callback: Callable[[dict], None] | None = None
    fits: dict[str, Fit] = field(default_factory=dict)

    def fitted(self, name: str) -> Fit:
        """The fit of a prior to all images, done once and kept in `fits`."""
        if name not in self.fits:
            prior = self.recipe.prior(name, tuple(self.images.shape[1:]))
            self.fits[name] = fit_prior(
                self.images, self.companion, self.rng, prior, None, self.recipe.fit, callback=self.callback
            )
        return self.fits[name]

    def run(self, cell: Cell, done: dict[str, CounterfactualBatch]) -> CounterfactualBatch:
        """Explain with one cell; `done` are the batches so far, which a cell at equal change looks at."""
        here = {"classifier": self.companion, "callback": self.callback}
        three = (self.images, self.source, self.target)
        if cell.like:
            return self._pushed(cell, done, three, here)
        if cell.method == "pixel-ascent":
            return anchors.pixel_ascent(*three, rng=self.rng, strengths=cell.strengths, **here)
        lambdas = self.recipe.lambdas(cell.manifold)
        here |= {"strengths": cell.strengths, "lambdas": lambdas}
        if cell.method == "statistics":
            here["lambdas"] = (self.recipe.statistics, *lambdas[1:])
        if cell.method in BASELINES:
            rate = self.recipe.pixel_rate * (FAST if cell.method == "iso/fast" else 1)
            here |= {"schedule": self.recipe.joint, "learning_rate": rate}
            return BASELINES[cell.method](*three, **here)
        prior = self.recipe.prior(cell.method, tuple(self.images.shape[1:]))
        fitted = self.fitted(cell.method) if cell.reading in SHARE_FIT else None
        here["auxiliary"] = COMPANIONS[cell.manifold](self.companion) if cell.manifold else None
        return explain(
            *three,
            rng=self.rng,
            prior=prior,
            reading=cell.reading,
            schedule=self.recipe.schedule,
            fitted=fitted,
            **here,
        )

    def _pushed(
        self, cell: Cell, done: dict[str, CounterfactualBatch], three: tuple, here: dict
    ) -> CounterfactualBatch:
        if cell.like not in done:
            raise VceError(f"cells: {cell.name} needs the cell {cell.like} before it in the same entry")
        other = done[cell.like]
        place = other.first_success(self.level)
        start = other.reference if cell.by == "own" else self.images
        if start is None:
            raise VceError(f"cells: {cell.name}: {cell.like} draws nothing of its own; leave out `by`")
        if cell.by == "confidence":
            reached = baselines.to_confidence(self.target, other.confidence[torch.arange(len(place)), place])
        else:
            distance = (other.at(place) - start).abs().flatten(1).mean(1)
            reached = baselines.to_change(self.images, distance, self.target, self.level)
        here["lambdas"] = self.recipe.lambdas("")
        if cell.method == "iso":
            here |= {"schedule": self.recipe.joint, "learning_rate": PUSH * self.recipe.pixel_rate}
            return baselines.iso_at(*three, reached, **here)
        schedule, start = self.recipe.schedule, self.fitted(cell.method)
        return baselines.pushed(*three, reached, start=start, schedule=schedule, **here)


def recipe_of(recipes: dict[str, dict], world: str) -> Recipe:
    """The recipe of a world. Raises VceError when there is none, or one with a wrong field."""
    if world not in recipes:
        raise VceError(f"recipes: none for {world}; add it to config/")
    return parse_recipe(Recipe, recipes[world])


def start_images(entry: dict, table: pd.DataFrame, data: Path, seed: int) -> tuple[datasets.Images, Tensor]:
    """The first `n` images of the pairs split, those of the class `source` alone where it is named, and their targets;
    with a `corruption`, name and severity, corrupted."""
    chosen = table if "source" not in entry else table[table["label"] == entry["source"]]
    pairs = datasets.load(entry["world"], chosen, "pairs", data, entry["n"])
    if len(pairs.ids) < entry["n"] or not entry["n"]:
        raise VceError(
            f"{entry['world']}: {len(pairs.ids)} pairs for n = {entry['n']}; mend `n` or `splits` in config/"
        )
    target = datasets.targets(table, pairs.ids)
    if "corruption" in entry:
        rng = Streams(seed, pairs.ids, tuple(target.tolist()))
        pairs = replace(pairs, images=corrupted(pairs.images, *entry["corruption"], rng))
    return pairs, target


def explain_entry(
    entry: dict,
    recipe: Recipe,
    level: float,
    companion: Companion,
    table: pd.DataFrame,
    data: Path,
    seed: int,
    progress: Progress,
) -> tuple[Shard, list[dict]]:
    """All cells of an entry, and what each cost: seconds, gradient evaluations of the classifier."""
    world = entry["world"]
    pairs, target = start_images(entry, table, data, seed)
    rng = Streams(seed, pairs.ids, tuple(target.tolist()))
    job = Job(pairs.images, pairs.labels, target, companion, rng, recipe, level, progress)
    batches, cost = {}, []
    for cell in parse_cells(entry["cells"]):
        start, known = time.perf_counter(), set(job.fits)
        batches[cell.name] = job.run(cell, batches)
        steps = batches[cell.name].forward
        # one path serves all thresholds, and one fit several cells; every radius of pixel ascent is a run of its own
        evaluations = steps.sum() if cell.method == "pixel-ascent" else steps.max(1).values.sum()
        if cell.method in known and cell.reading in SHARE_FIT:
            evaluations -= recipe.fit * (target != pairs.labels).sum()
        seconds = time.perf_counter() - start
        cost.append({"method": cell.name, "prior": cell.method, "seconds": seconds, "evaluations": int(evaluations)})
        progress.advance()
    if "random_radii" in entry:
        reference = datasets.load(world, table, "systems", data)
        batches |= anchors.explain_anchors(pairs, target, reference, world, companion, rng, entry["random_radii"])
    shard = shard_of(
        world, companion, pairs, target, datasets.load(world, table, "pairs", data), batches=batches,
        starts=entry["starts"], classifier="companion", seed=seed, traces={},
    )  # fmt: skip
    yardstick = {
        "pass_seconds": pass_seconds(log_confidence(companion, target), pairs.images),
        "prior_seconds": {
            name: prior_seconds(recipe.prior(name, tuple(pairs.images.shape[1:])), rng) for name in job.fits
        },
    }
    for line in cost:
        prior = yardstick["prior_seconds"].get(line.pop("prior"), 0.0)
        line |= {"pass_seconds": yardstick["pass_seconds"], "prior_seconds": prior}
    return shard, cost


def prior_seconds(prior: Prior, rng: Streams) -> float:
    """Seconds per query of one forward and backward pass of a prior, at the batch of these streams."""
    optimiser = Optimiser(prior, prior.initial(rng))

    def value_and_grad(x: Tensor, rows: Tensor) -> None:
        optimiser.images().sum().backward()

    return pass_seconds(value_and_grad, torch.empty(len(rng)))


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=json.loads, required=True, help="JSON list: world, starts, n, cells")
    parser.add_argument("--recipes", type=json.loads, required=True, help="JSON: settings by world")
    parser.add_argument("--level", type=float, required=True, help="the confidence of a first success")
    parser.add_argument("--systems", type=Path, required=True, help="folder of WORLD-SEED.safetensors")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--seed", type=int, required=True, help="the training seed, also the seed of the methods")
    parser.add_argument("--out", type=Path, required=True, help="the file of shards")
    args = parser.parse_args()
    shards, cost = [], []
    total = sum(len(entry["cells"]) for entry in args.entries)
    with Progress("explain", total=total, unit="methods") as progress:
        for entry in args.entries:
            world = entry["world"]
            table = pd.read_parquet(args.splits / f"{world}.parquet")
            companion = load_companion(args.systems / f"{world}-{args.seed}.safetensors")
            recipe = recipe_of(args.recipes, world)
            shard, spent = explain_entry(entry, recipe, args.level, companion, table, args.data, args.seed, progress)
            cost += [{"world": world, "starts": shard.starts, **line} for line in spent]
            shards.append(shard)
    facts = {"commit": commit(), "seed": args.seed, "cells": cost}
    write_atomic(args.out.with_suffix(".cost.json"), json.dumps(facts, indent=1, sort_keys=True))
    write_shards(shards, args.out)


if __name__ == "__main__":
    main()
