"""Job: explain one group of shards: every method of every classifier in it, from the same start images.

python -m papers.svce.shards --group '[{...}]' --settings '{...}' --splits DIR --checkpoints DIR --seed 0 --out DIR

Each shard becomes <out>/<starts>/<world>/<kind>-<seed>.safetensors; what it cost stands beside it.
"""

import argparse
import json
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from common import anchors
from common.batches import Shard, write_shard
from common.classifiers.checkpoints import load_checkpoint
from common.data import datasets
from common.errors import VceError, one_line_errors
from common.explain import CounterfactualBatch, Explainer, Streams, finish, log_confidence
from common.files import commit, write_atomic
from common.generators.diffusion import load_diffusion
from common.metrics.perturbation import pixel_share
from common.progress import Progress
from common.shards import pass_seconds, shard_of
from papers.svce.density import blended_diffusion, pvce
from papers.svce.explain import explain, explain_minimal


@dataclass(frozen=True)
class Cell:
    """One method of the tables and the strengths of its path.

    optimiser: `afw-a`, `afw-b`, `fw`, `apgd` (radii of the l_p ball, K iterations), `minimal` (confidence thresholds;
    by Auto-Frank-Wolfe B below `ceiling`), `pvce` (l2 radii) or `blended` (guidance weights). `draw` numbers the start
    draw, for diversity.
    """

    optimiser: str
    strengths: tuple[float, ...]
    p: float = 2
    iterations: int = 75
    ceiling: float = 0.0
    draw: int = 0

    @property
    def method(self) -> str:
        """Its name in the long table, e.g. `afw-b/l1.5/k75`."""
        name = {"pvce": "pvce/l2", "blended": "blended"}.get(
            self.optimiser, f"{self.optimiser}/l{self.p:g}/k{self.iterations}"
        )
        return f"{name}/draw{self.draw}" if self.draw else name

    def explainer(self, score_model: nn.Module | None) -> Explainer:
        """Its contract function. Raises VceError for a density method without `score_model`."""
        if self.optimiser in ("pvce", "blended"):
            if score_model is None:
                raise VceError(f"cells: {self.optimiser} needs a diffusion model; give --diffusion")
            return partial({"pvce": pvce, "blended": blended_diffusion}[self.optimiser], score_model=score_model)
        if self.optimiser == "minimal":
            return partial(explain_minimal, p=self.p, iterations=self.iterations, ceiling=self.ceiling)
        return partial(explain, optimiser=self.optimiser, p=self.p, iterations=self.iterations)


@dataclass(frozen=True)
class Starts:
    """Which images are explained, and towards what.

    The first `n` images of the pairs split, of class `source` where given. `target`: `drawn` (the seeded target of the
    split table), `second` (the classifier's second most probable class), `first` (its most probable class, for images
    that are none), or a class index.
    """

    name: str
    n: int
    target: str | int
    source: int | None = None

    def pairs(
        self, world: str, table: pd.DataFrame, data: Path, classifier: nn.Module
    ) -> tuple[datasets.Images, Tensor]:
        """The images and N target classes. Raises VceError when there is no such image."""
        table = table[table["split"] == "pairs"]
        if self.source is not None:
            table = table[table["label"] == self.source]
        if table.empty:
            which = "" if self.source is None else f" of class {self.source}"
            raise VceError(f"{world}: the pairs split has no images{which}; raise its size in `splits`")
        images = datasets.load(world, table, "pairs", data, self.n)
        if self.target in ("second", "first"):
            with torch.no_grad():
                order = classifier(images.images).argsort(1, descending=True)
            return images, order[:, 1 if self.target == "second" else 0]
        if self.target == "drawn":
            return images, datasets.targets(table, images.ids)
        return images, torch.full((len(images.ids),), self.target)


def thresholded(
    x: Tensor,
    target: Tensor,
    dense: CounterfactualBatch,
    sparse: CounterfactualBatch,
    level: float,
    classifier: nn.Module,
) -> CounterfactualBatch:
    """The geometry control: the first dense counterfactual with own confidence ≥ `level` keeps only as many pixels as
    the first such sparse one visibly changes.

    One image per sample; a path that never gets there gives its last image.
    """
    count = pixel_share(sparse.at(sparse.first_success(level)) - x) * x.shape[2] * x.shape[3]
    cut = anchors.threshold_to_count(x, dense.at(dense.first_success(level)), count.round())
    return finish(x, cut[:, None], target, classifier=classifier, strengths=(level,))


def parse_cells(fields: list[dict]) -> list[Cell]:
    """The cells of a config file. Raises VceError for a wrong field or a method listed twice."""
    try:
        cells = [Cell(**{**cell, "strengths": tuple(cell["strengths"])}) for cell in fields]
    except (TypeError, KeyError) as error:
        raise VceError(f"cells: {error} in {fields}; fix it in config/") from error
    twice = [name for name, count in Counter(cell.method for cell in cells).items() if count > 1]
    if twice:
        raise VceError(f"cells: {', '.join(twice)} is listed twice; put its strengths into one cell")
    return cells


def explain_shard(
    world: str,
    table: pd.DataFrame,
    data: Path,
    classifier: nn.Module,
    kind: str,
    seed: int,
    recipe: dict,
    progress: Progress,
    score_model: nn.Module | None = None,
) -> tuple[Shard, dict]:
    """All cells of a recipe on its start images; returns the shard and seconds per method.

    `recipe`: `starts`, `cells`, and as wanted `traced` (methods that keep their running objective), `thresholded` (the
    geometry control) and `random_radii` (adds the anchors).
    """
    starts = Starts(**recipe["starts"])
    pairs, target = starts.pairs(world, table, data, classifier)
    batches, traces, cost = {}, {}, {}
    for cell in parse_cells(recipe["cells"]):
        running: list[Tensor] = []

        def record(state: dict, running=running, passes=cell.iterations + 1) -> None:
            if state["i"] == 0:
                running.append(state["L_best"].new_empty(len(state["rows"]), passes))
            running[-1][state["rows"], state["i"] :] = state["L_best"][:, None]  # kept by samples that leave
            progress(state)

        traced = cell.method in recipe.get("traced", ())
        rng = Streams(seed + 1000 * cell.draw, pairs.ids, tuple(target.tolist()))
        start = time.perf_counter()
        batches[cell.method] = cell.explainer(score_model)(
            pairs.images,
            pairs.labels,
            target,
            classifier=classifier,
            rng=rng,
            strengths=cell.strengths,
            callback=record if traced else progress,
        )
        cost[cell.method] = time.perf_counter() - start
        if traced:
            traces[cell.method] = torch.cat(running).view(len(target), len(cell.strengths), -1)
        progress.advance()
    if recipe.get("thresholded"):
        dense, sparse = recipe["thresholded"]["dense"], recipe["thresholded"]["sparse"]
        level = recipe["thresholded"]["level"]
        cut = thresholded(pairs.images, target, batches[dense], batches[sparse], level, classifier)
        batches[f"{dense}/thresholded"] = cut
    if recipe.get("random_radii"):
        reference = datasets.load(world, table, "systems", data)
        rng = Streams(seed, pairs.ids, tuple(target.tolist()))
        batches |= anchors.explain_anchors(pairs, target, reference, world, classifier, rng, recipe["random_radii"])
    everyone = datasets.load(world, table, "pairs", data)
    explained = {"starts": starts.name, "classifier": kind, "seed": seed, "batches": batches, "traces": traces}
    return shard_of(world, classifier, pairs, target, everyone, **explained), cost


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", type=json.loads, required=True, help="JSON list: world, classifiers, starts, cells")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder of WORLD/KIND-SEED.safetensors")
    parser.add_argument("--diffusion", type=Path, help="the diffusion model of density methods")
    parser.add_argument("--seed", type=int, required=True, help="the training seed, also the seed of the methods")
    parser.add_argument("--out", type=Path, required=True, help="folder of shards")
    args = parser.parse_args()
    score_model = load_diffusion(args.diffusion) if args.diffusion else None
    shards = [(recipe, kind) for recipe in args.group for kind in recipe["classifiers"]]
    own_pass: dict[str, float] = {}  # by architecture
    total = sum(len(recipe["cells"]) for recipe, _ in shards)
    with Progress("explain", total=total, unit="methods") as progress:
        for recipe, kind in shards:
            world, table = recipe["world"], pd.read_parquet(args.splits / f"{recipe['world']}.parquet")
            trained_on = recipe.get("trained_on", world)
            classifier = load_checkpoint(args.checkpoints / trained_on / f"{kind}-{args.seed}.safetensors")
            shard, seconds = explain_shard(
                world, table, args.data, classifier, kind, args.seed, recipe, progress, score_model
            )
            architecture = repr(classifier.network)
            if architecture not in own_pass:
                sample = datasets.load(world, table, "tuning", args.data, 64)
                own_pass[architecture] = pass_seconds(log_confidence(classifier, sample.labels), sample.images)
            cost = {
                "commit": commit(),
                "seconds": seconds,
                "pass_seconds": own_pass[architecture],
                "evaluations": {name: int(shard.batches[name].forward.sum()) for name in seconds},
            }
            out = args.out / shard.starts / world / f"{kind}-{args.seed}.safetensors"
            write_atomic(out.with_suffix(".cost.json"), json.dumps(cost, indent=1, sort_keys=True))
            write_shard(shard, out)


if __name__ == "__main__":
    main()
