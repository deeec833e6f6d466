"""Job: find the maps of groups of images with every method, for one training seed, and in-fill along them.

python -m papers.fido.shards --entries '[{...}]' --recipes '{...}' --systems DIR --infillers DIR --splits DIR --seed 0
    --out F

The file holds one shard per entry; what it cost stands beside it in F.cost.json.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from common.batches import Shard, write_shards
from common.classifiers.checkpoints import load_checkpoint
from common.data import datasets
from common.errors import VceError, one_line_errors
from common.explain import Streams
from common.files import commit, write_atomic
from common.progress import Progress
from common.scales import parse_recipe
from common.shards import pass_seconds, shard_of
from papers.fido import baselines
from papers.fido.explain import chunks, class_score, in_filled, runner_up, saliency, salient
from papers.fido.fills import SEARCHED, Fills
from papers.fido.masker import load_masker
from papers.fido.method import Mask, Settings, bbmp, fido
from papers.fido.names import BASELINES, OBJECTIVES, cell_name
from papers.fido.recipe import Recipe
from papers.fido.regions import bounding_boxes, box_masks

PATH_FILL = "net"  # of the paths of maps that come without an in-filler


@dataclass(frozen=True)
class Cell:
    """One map per image: an objective with its in-fill, or a baseline. `lam`, `grid`, `tv` replace the recipe's;
    `observed` is BBMP's threshold of what its in-filler sees; `draw` another stream of random numbers."""

    method: str
    fill: str = ""
    lam: float | None = None
    grid: int | None = None
    tv: float | None = None
    observed: float | None = None
    draw: int | None = None

    @property
    def name(self) -> str:
        return cell_name(
            self.method, self.fill, lam=self.lam, grid=self.grid, tv=self.tv, observed=self.observed, draw=self.draw
        )

    def settings(self, recipe: Recipe) -> Settings:
        """The recipe's, with what BBMP and this cell replace."""
        found = {key: value for key in ("lam", "grid", "tv", "observed") if (value := getattr(self, key)) is not None}
        return recipe.settings(self.method, **found)


def parse_cells(cells: list[dict]) -> list[Cell]:
    """The cells of a config file. Raises VceError for a wrong field, an unknown method or in-fill, or one twice."""
    try:
        parsed = [Cell(**fields) for fields in cells]
    except TypeError as error:
        raise VceError(f"cells: {error}; fix it in config/") from error
    for cell in parsed:
        if cell.method not in (*OBJECTIVES, *BASELINES):
            known = ", ".join((*OBJECTIVES, *BASELINES))
            raise VceError(f"cells: method {cell.method!r} is unknown; choose one of {known}")
        if (cell.method in OBJECTIVES) != bool(cell.fill):
            needs = "needs a `fill`" if cell.method in OBJECTIVES else "takes no `fill`"
            raise VceError(f"cells: {cell.method} {needs}; fix it in config/")
        if cell.fill not in ("", *SEARCHED):
            raise VceError(f"cells: in-fill {cell.fill!r} is none for a search; choose one of {', '.join(SEARCHED)}")
    names = [cell.name for cell in parsed]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise VceError(f"cells: {', '.join(sorted(twice))} stands twice in one entry; remove one")
    return parsed


@dataclass(frozen=True)
class Job:
    """N images and their labels: all that the cells of an entry share; `masker` is the file of the classifier's."""

    pairs: datasets.Images
    classifier: nn.Module
    fills: Fills
    recipe: Recipe
    seed: int
    masker: Path
    progress: Progress

    def streams(self, cell: Cell) -> Streams:
        return Streams(self.seed + 1000 * (cell.draw or 0), self.pairs.ids, tuple(self.pairs.labels.tolist()))

    def run(self, cell: Cell) -> tuple[Tensor, Mask | None]:
        """The map N×H×W of a cell, larger where a pixel matters more, and the mask that it was made from, if any."""
        if cell.method not in OBJECTIVES:
            return self._baseline(cell), None
        objective = "sdr" if cell.method in ("sdr", "bbmp-sdr") else "ssr"
        mask = saliency(
            self.pairs.images, self.pairs.labels, classifier=self.classifier, rng=self.streams(cell),
            infill=self.fills[cell.fill], objective=objective, settings=cell.settings(self.recipe),
            search=bbmp if cell.method.startswith("bbmp") else fido, callback=self.progress,
        )  # fmt: skip
        return salient(mask.theta, objective), mask

    def _baseline(self, cell: Cell) -> Tensor:
        x, c, masks = self.pairs.images, self.pairs.labels, self.pairs.masks
        if cell.method == "extremal":
            parts = [
                baselines.extremal(x[rows], class_score(self.classifier, c[rows]), self.fills["blur"], self.recipe.area)
                for rows in chunks(len(x), 1, x[0, 0].numel())
            ]
            return torch.cat(parts)
        return {
            "max": lambda: baselines.whole(x),
            "center": lambda: baselines.centre(x),
            "box": lambda: box_masks(bounding_boxes(masks > 0.5), *masks.shape[1:]),
            "object": lambda: masks,
            "random": lambda: self.streams(cell).uniform(masks.shape[1:], "random map"),
            "gradient": lambda: baselines.gradient_times_input(x, c, self.classifier),
            "rise": lambda: baselines.rise(x, c, self.classifier, self.fills.colour),
            "masker": lambda: load_masker(self.masker)(x, c),
        }[cell.method]()


def explain_entry(
    entry: dict, recipe: Recipe, classifier: nn.Module, fills: Fills, masker: Path, table: pd.DataFrame, data: Path,
    seed: int, progress: Progress,
) -> tuple[Shard, list[dict]]:  # fmt: skip
    """All cells of an entry, and what each cost: seconds, gradient evaluations of the classifier and in-fills."""
    world, n, shares = entry["world"], entry["n"], entry["shares"]
    pairs = datasets.load(world, table, "pairs", data, n)
    if len(pairs.ids) < n or not n:
        raise VceError(f"{world}: {len(pairs.ids)} pairs for n = {n}; mend `n` or `splits` in config/")
    job = Job(pairs, classifier, fills, recipe, seed, masker, progress)
    target, batches, traces, cost = runner_up(classifier, pairs.images, pairs.labels), {}, {}, []
    for cell in parse_cells(entry["cells"]):
        start = time.perf_counter()
        shown, mask = job.run(cell)
        seconds = time.perf_counter() - start
        spent = (mask.steps, mask.fills, mask.fills) if mask else baselines.COSTS.get(cell.method, (0, 0, 0))
        batches[cell.name] = in_filled(
            pairs.images, shown, pairs.labels, target, classifier=classifier, rng=job.streams(cell), strengths=shares,
            infill=fills[cell.fill or PATH_FILL], cost=spent, lost=mask.bad_fills == mask.fills if mask else None,
        )  # fmt: skip
        if mask:
            traces[cell.name] = mask.bad_fills[:, None] / mask.fills
            cost.append(cost_of(cell, job, seconds, mask.fills * n))
        progress.advance()
    shard = shard_of(
        world, classifier, pairs, target, datasets.load(world, table, "pairs", data), batches=batches,
        starts=entry["starts"], classifier=entry["classifier"], seed=seed, traces=traces,
    )  # fmt: skip
    return shard, cost


def cost_of(cell: Cell, job: Job, seconds: float, evaluations: int) -> dict:
    """What a cell cost, beside the measured passes of classifier and in-filler at its batch."""
    masks = 1 if cell.method.startswith("bbmp") else job.recipe.search["masks"]
    rows = chunks(len(job.pairs.ids), masks, job.pairs.images[0, 0].numel())[0]
    x, c, fill = job.pairs.images[rows], job.pairs.labels[rows], job.fills[cell.fill]
    keep = torch.ones(len(x), masks, *x.shape[2:]) * (torch.arange(x.shape[3]) % 2)
    score, rng = class_score(job.classifier, c), job.streams(cell)[range(len(x))]

    def evaluate(images: Tensor, _: Tensor) -> None:
        images = images.detach().requires_grad_()
        torch.autograd.grad(score(images).sum(), images)

    mixed = x[:, None].repeat(1, masks, 1, 1, 1)
    once = 0.0 if fill.constant else pass_seconds(lambda images, _: fill(images, keep, rng), x) / masks
    facts = {"method": cell.name, "seconds": seconds, "evaluations": evaluations}
    return {**facts, "pass_seconds": pass_seconds(evaluate, mixed) / masks, "fill_seconds": once}


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=json.loads, required=True, help="JSON list: world, classifier, n, cells, ...")
    parser.add_argument("--recipes", type=json.loads, required=True, help="JSON: settings by world")
    parser.add_argument("--systems", type=Path, required=True, help="folder of classifiers and maskers of this seed")
    parser.add_argument("--infillers", type=Path, required=True, help="folder of the learned in-fillers")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--seed", type=int, required=True, help="the training seed, also the seed of the methods")
    parser.add_argument("--out", type=Path, required=True, help="the file of shards")
    args = parser.parse_args()
    shards, cost = [], []
    total = sum(len(entry["cells"]) for entry in args.entries)
    with Progress("explain", total=total, unit="maps") as progress:
        for entry in args.entries:
            world = entry["world"]
            table = pd.read_parquet(args.splits / f"{world}.parquet")
            classifier = load_checkpoint(args.systems / f"{world}-{entry['classifier']}.safetensors")
            fills = Fills.of(world, datasets.load(world, table, "systems", args.data), args.infillers)
            recipe, masker = parse_recipe(Recipe, args.recipes[world]), args.systems / f"{world}-masker.safetensors"
            shard, spent = explain_entry(
                entry, recipe, classifier, fills, masker, table, args.data, args.seed, progress
            )
            shards.append(shard)
            cost += [{"world": world, "starts": shard.starts, **line} for line in spent]
    facts = {"commit": commit(), "seed": args.seed, "cells": cost}
    write_atomic(args.out.with_suffix(".cost.json"), json.dumps(facts, indent=1, sort_keys=True))
    write_shards(shards, args.out)


if __name__ == "__main__":
    main()
