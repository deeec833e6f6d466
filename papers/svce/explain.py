"""Sparse VCE: the contract function, and the job that explains one shard.

python -m papers.svce.explain --world scenes --splits S --checkpoint F --kind l2at --seed 0 --recipe '{...}' --out B
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from common import anchors
from common.attacks import apgd_l1, apgd_l2
from common.batches import Shard, write_shard
from common.classifiers.checkpoints import load_checkpoint
from common.classifiers.training import accuracy
from common.data import datasets
from common.errors import VceError, one_line_errors
from common.explain import CounterfactualBatch, Streams, finish, log_confidence
from common.files import commit, write_atomic
from common.metrics.perturbation import pixel_share
from common.progress import Progress
from papers.svce.lmo import oracle
from papers.svce.method import auto_frank_wolfe, frank_wolfe

ALPHAS = tuple(j / 8 for j in range(1, 9))
OPTIMISERS = ("afw-a", "afw-b", "fw", "apgd")


@dataclass(frozen=True)
class Cell:
    """One method of the tables: optimiser, norm p of the ball, iterations K, radii ε."""

    optimiser: str
    p: float
    iterations: int
    radii: tuple[float, ...]

    @property
    def method(self) -> str:
        """Its name in the long table, e.g. `afw-b/l1.5/k75`."""
        return f"{self.optimiser}/l{self.p:g}/k{self.iterations}"


def explain(
    images: Tensor,
    source: Tensor,
    target: Tensor,
    *,
    classifier: nn.Module,
    rng: Streams,
    strengths: Sequence[float],
    callback: Callable[[dict], None] | None = None,
    optimiser: str = "afw-b",
    p: float = 1.5,
    iterations: int = 75,
    batch_size: int = 64,
) -> CounterfactualBatch:
    """Sparse visual counterfactuals: argmax log p_f(target | x) in the l_p ball of each radius, inside [0, 1] (§2.1).

    `strengths` are the radii ε. All N·S (image, radius) problems run in batches of `batch_size`, each with
    `iterations` + 1 passes; the start draw of an image is the same at all its radii. Raises VceError for a radius ≤ 0,
    p < 1, an unknown optimiser or an optimiser that has no such p.
    """
    solve = _solver(optimiser, p, iterations)
    n, s = len(images), len(strengths)
    radii = torch.tensor([float(radius) for radius in strengths]).repeat(n)
    z = rng.normal(images.shape[1:], "start")
    found, diverged, steps = [], [], []
    for rows in torch.arange(n * s).split(batch_size):
        sample = rows // s
        ascent = solve(images[sample], log_confidence(classifier, target[sample]), radii[rows], z[sample], callback)
        found.append(ascent.x)
        diverged.append(ascent.diverged)
        steps.append(ascent.steps)
    evaluations = torch.cat(steps).view(n, s)
    return finish(
        images,
        torch.cat(found).view(n, s, *images.shape[1:]),
        target,
        classifier=classifier,
        strengths=strengths,
        diverged=torch.cat(diverged).view(n, s),
        steps=evaluations,
        passes=(evaluations, evaluations),
        batch_size=batch_size,
    )


def _solver(optimiser: str, p: float, K: int) -> Callable:
    """`solve(x0, value_and_grad, ε, z, callback) -> Ascent` of an optimiser's name."""
    if optimiser not in OPTIMISERS:
        raise VceError(f"optimiser {optimiser!r} is unknown; choose one of {', '.join(OPTIMISERS)}")
    if optimiser == "apgd":
        if p not in (1, 2):
            raise VceError(f"apgd projects onto l1 and l2 balls only, not p = {p:g}; choose afw-b for other norms")
        attack = apgd_l2 if p == 2 else apgd_l1
        return lambda x0, f, epsilon, z, callback: attack(x0, f, epsilon, z, K, callback=callback)
    if optimiser == "fw":
        return lambda x0, f, epsilon, z, callback: frank_wolfe(x0, f, oracle(epsilon, p), z, K, callback=callback)
    variant = optimiser[-1].upper()
    return lambda x0, f, epsilon, z, callback: auto_frank_wolfe(
        x0, f, oracle(epsilon, p), z, K, variant, callback=callback
    )


def explain_anchors(
    pairs: datasets.Images,
    target: Tensor,
    reference: datasets.Images,
    world: str,
    classifier: nn.Module,
    rng: Streams,
    radii,
) -> dict[str, CounterfactualBatch]:
    """The trivial anchors on the same samples; the twin where the world is rendered."""
    x, source = pairs.images, pairs.labels
    mean_shift = anchors.class_mean_difference(x, source, target, reference.images, reference.labels)
    nearest = anchors.nearest_real(x, target, reference.images, reference.labels)
    paths = {
        "identity": (anchors.identity(x, (0.0,)), (0.0,)),
        "random": (anchors.random_direction(x, radii, rng), radii),
        "class-mean": (anchors.towards(x, mean_shift, ALPHAS), ALPHAS),
        "nearest-real": (anchors.towards(x, nearest, ALPHAS), ALPHAS),
    }
    if datasets.world(world).rendered:
        twin = datasets.twins(world, pairs.ids)[torch.arange(len(x)), target]
        paths["twin"] = (anchors.towards(x, twin, ALPHAS), ALPHAS)
    return {
        name: finish(x, images, target, classifier=classifier, strengths=strengths)
        for name, (images, strengths) in paths.items()
    }


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
    count = pixel_share(_first_success(sparse, level) - x) * x.shape[2] * x.shape[3]
    cut = anchors.threshold_to_count(x, _first_success(dense, level), count.round())
    return finish(x, cut[:, None], target, classifier=classifier, strengths=(level,))


def _first_success(batch: CounterfactualBatch, level: float) -> Tensor:
    """N×C×H×W: on each path the first image with p_f(target) ≥ `level`, else the last."""
    above = batch.confidence >= level
    first = torch.where(above.any(1), above.int().argmax(1), above.shape[1] - 1)
    return batch.images[torch.arange(len(first)), first]


def explain_shard(
    world: str,
    table: pd.DataFrame,
    data: Path,
    classifier: nn.Module,
    kind: str,
    seed: int,
    recipe: dict,
    progress: Progress,
) -> tuple[Shard, dict]:
    """All cells of a recipe and the anchors on the first `n_pairs` pairs; returns the shard and seconds per method."""
    pairs = datasets.load(world, table, "pairs", data, recipe["n_pairs"])
    target = torch.tensor(table.set_index("id").loc[list(pairs.ids), "target"].to_numpy())
    rng = Streams(seed, pairs.ids, tuple(target.tolist()))
    batches, traces, cost = {}, {}, {}
    cells = [Cell(**{**fields, "radii": tuple(fields["radii"])}) for fields in recipe["cells"]]
    twice = [name for name, count in Counter(cell.method for cell in cells).items() if count > 1]
    if twice:
        raise VceError(f"cells: {', '.join(twice)} is listed twice; put its radii into one cell")
    for cell in cells:
        running: list[Tensor] = []

        def record(state: dict, running=running, passes=cell.iterations + 1) -> None:
            if state["i"] == 0:
                running.append(state["L_best"].new_empty(len(state["rows"]), passes))
            running[-1][state["rows"], state["i"] :] = state["L_best"][:, None]  # kept by samples that leave
            progress(state)

        start = time.perf_counter()
        batches[cell.method] = explain(
            pairs.images,
            pairs.labels,
            target,
            classifier=classifier,
            rng=rng,
            strengths=cell.radii,
            callback=record,
            optimiser=cell.optimiser,
            p=cell.p,
            iterations=cell.iterations,
        )
        cost[cell.method] = time.perf_counter() - start
        if cell.method in recipe["traced"]:
            traces[cell.method] = torch.cat(running).view(len(target), len(cell.radii), -1)
        progress.advance()
    if recipe.get("thresholded"):
        dense, sparse = recipe["thresholded"]["dense"], recipe["thresholded"]["sparse"]
        level = recipe["thresholded"]["level"]
        cut = thresholded(pairs.images, target, batches[dense], batches[sparse], level, classifier)
        batches[f"{dense}/thresholded"] = cut
    reference = datasets.load(world, table, "systems", data)
    batches |= explain_anchors(pairs, target, reference, world, classifier, rng, recipe["random_radii"])
    everyone = datasets.load(world, table, "pairs", data)
    with torch.no_grad():
        prediction = classifier(pairs.images).argmax(1)
        changed = datasets.interventions(world, pairs.ids, target) if datasets.world(world).rendered else {}
        interventions = {factor: classifier(images).argmax(1) for factor, images in changed.items()}
    return Shard(
        world=world,
        classifier=kind,
        seed=seed,
        ids=pairs.ids,
        source=pairs.labels,
        target=target,
        accuracy=accuracy(classifier, everyone.images, everyone.labels),
        source_prediction=prediction,
        interventions=interventions,
        batches=batches,
        traces=traces,
    ), cost


def model_pass_seconds(classifier: nn.Module, images: Tensor, target: Tensor, repeats: int = 20) -> float:
    """Median seconds of one forward + backward pass per image at the batch of `images`: the yardstick of overhead."""
    objective, rows = log_confidence(classifier, target), torch.arange(len(images))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        objective(images, rows)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[repeats // 2] / len(images)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", required=True)
    parser.add_argument("--splits", type=Path, required=True, help="the split table of the world")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the explained classifier")
    parser.add_argument("--kind", required=True, help="its name in the tables, e.g. l2at")
    parser.add_argument("--seed", type=int, required=True, help="its training seed, also the seed of the method")
    parser.add_argument("--recipe", type=json.loads, required=True, help="JSON: n_pairs, cells, traced, random_radii")
    parser.add_argument("--out", type=Path, required=True, help="the shard to write; costs go beside it")
    args = parser.parse_args()
    classifier = load_checkpoint(args.checkpoint)
    table = pd.read_parquet(args.splits)
    with Progress(f"explain {args.out.stem}", total=len(args.recipe["cells"]), unit="methods") as progress:
        shard, seconds = explain_shard(
            args.world, table, args.data, classifier, args.kind, args.seed, args.recipe, progress
        )
    sample = datasets.load(args.world, table, "tuning", args.data, 64)
    cost = {
        "commit": commit(),
        "seconds": seconds,
        "pass_seconds": model_pass_seconds(classifier, sample.images, sample.labels),
        "evaluations": {name: int(shard.batches[name].steps.sum()) for name in seconds},
    }
    write_atomic(args.out.with_suffix(".cost.json"), json.dumps(cost, indent=1, sort_keys=True))
    write_shard(shard, args.out)


if __name__ == "__main__":
    main()
