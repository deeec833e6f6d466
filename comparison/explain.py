"""Job: explain the classifiers of one training seed with some methods of the comparison, from the same images
towards the same targets.

python -m comparison.explain --methods '{...}' --worlds '{...}' --checkpoints WORLD=DIR... --prepared DIR --splits DIR
    --seed 0 --out F

The file holds one shard per world and classifier, and one more where the runner-up class is asked for; what it cost
stands beside it in F.cost.json, with the reason why a method was refused: one that breaks the contract leaves the
tables, and the others are explained.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from torch import Tensor

from common import anchors
from common.batches import Shard, write_shards
from common.data import datasets
from common.errors import VceError, one_line_errors
from common.explain import CounterfactualBatch, Streams, log_confidence
from common.files import commit, write_atomic
from common.progress import Progress
from common.shards import pass_seconds, shard_of
from comparison.bench import Bench, load_benches, paths_by_world
from comparison.entries import Entry, ask, parse_entries
from papers.fido.explain import runner_up

STARTS = "pairs"  # targets that were drawn
RUNNER_UP = "runner-up"  # the class that f finds likeliest but for the label: of the untargeted table


def start_images(world: str, table: pd.DataFrame, data: Path, n: int) -> datasets.Images:
    """The first n images of the pairs split. Raises VceError for fewer."""
    pairs = datasets.load(world, table, "pairs", data, n)
    if len(pairs.ids) < n or not n:
        raise VceError(f"{world}: {len(pairs.ids)} pairs for n = {n}; mend `n` or `splits` in config/")
    return pairs


def explain_all(
    entries: list[Entry], bench: Bench, pairs: datasets.Images, target: Tensor, progress: Callable[[dict], None]
) -> tuple[dict[str, CounterfactualBatch], list[dict], dict[str, str]]:
    """Batches by method, what each cost, and the reasons of those that were refused."""
    batches, cost, refused = {}, [], {}
    for entry in entries:
        try:
            batch, seconds = ask(entry, bench, pairs, target, progress)
            facts = entry.facts(bench, pairs.images)
        except Exception as error:  # whatever a stranger's method does, the others are explained
            refused[entry.name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            continue
        batches[entry.name] = batch
        # one path serves all thresholds; radii are runs of their own
        forward = batch.forward.sum(1) if entry.each_strength else batch.forward.max(1).values
        spent = {"method": entry.name, "seconds": seconds, "evaluations": int(forward.sum())}
        cost.append({**spent, "facts": facts | {"gradient evaluations per image": int(forward.sum()) / len(target)}})
    return batches, cost, refused


def explain_bench(
    entries: list[Entry],
    bench: Bench,
    table: pd.DataFrame,
    data: Path,
    starts: str,
    n: int,
    radii: list[float],
    progress: Callable[[dict], None],
) -> tuple[Shard, list[dict], dict[str, str]]:
    """The shard of one classifier, of targets that were drawn or, of methods that have one, of the runner-up; with
    `radii` its trivial anchors are there too."""
    pairs = start_images(bench.world, table, data, n)
    if starts == RUNNER_UP:
        target = runner_up(bench.classifier, pairs.images, pairs.labels)
        entries = [entry for entry in entries if not entry.untargeted]
    else:
        target = datasets.targets(table, pairs.ids)
    batches, cost, refused = explain_all(entries, bench, pairs, target, progress)
    if radii:
        rng = Streams(bench.seed, pairs.ids, tuple(target.tolist()))
        batches |= anchors.explain_anchors(pairs, target, bench.training, bench.world, bench.classifier, rng, radii)
    own = pass_seconds(log_confidence(bench.classifier, target), pairs.images)
    facts = {"world": bench.world, "classifier": bench.kind, "starts": starts}
    shard = shard_of(
        bench.world, bench.classifier, pairs, target, datasets.load(bench.world, table, "pairs", data),
        batches=batches, starts=starts, classifier=bench.kind, seed=bench.seed, traces={},
    )  # fmt: skip
    return shard, [{**facts, **line, "pass_seconds": own} for line in cost], refused


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=json.loads, required=True, help="JSON: methods by name")
    parser.add_argument(
        "--worlds", type=json.loads, required=True, help="JSON: classifiers, n, runner_up, radii by world"
    )
    parser.add_argument("--anchors", action="store_true", help="explain the trivial anchors too")
    parser.add_argument("--checkpoints", nargs="+", required=True, help="WORLD=DIR of KIND-SEED.safetensors")
    parser.add_argument("--prepared", type=Path, required=True, help="folder of WORLD-SEED/, made by comparison.train")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--seed", type=int, required=True, help="the training seed, also the seed of the methods")
    parser.add_argument("--out", type=Path, required=True, help="the file of shards")
    args = parser.parse_args()
    folders = paths_by_world(args.checkpoints)
    entries, shards, cost, refused = parse_entries(args.methods), [], [], {}
    total = sum(len(settings["classifiers"]) + len(settings["runner_up"]) for settings in args.worlds.values())
    with Progress("explain", total=total, unit="classifiers") as progress:
        for world, settings in args.worlds.items():
            table, prepared = pd.read_parquet(args.splits / f"{world}.parquet"), args.prepared / f"{world}-{args.seed}"
            mine = [entry for entry in entries if world in entry.strengths]
            kinds, radii = settings["classifiers"], settings["random_radii"] if args.anchors else []
            for bench in load_benches(world, kinds, args.seed, folders[world], table, args.data, prepared):
                sizes = {STARTS: settings["n"][bench.kind], RUNNER_UP: settings["runner_up"].get(bench.kind)}
                for starts, n in sizes.items():
                    if n is None:
                        continue
                    found = explain_bench(mine, bench, table, args.data, starts, n, radii, progress)
                    shards.append(found[0])
                    cost += found[1]
                    refused |= {f"{world}/{bench.kind}/{starts}/{name}": why for name, why in found[2].items()}
                    progress.advance()
    for cell, reason in refused.items():
        print(f"refused {cell}: {reason}")
    facts = {"commit": commit(), "seed": args.seed, "cells": cost, "refused": refused}
    write_atomic(args.out.with_suffix(".cost.json"), json.dumps(facts, indent=1, sort_keys=True))
    write_shards(shards, args.out)


if __name__ == "__main__":
    main()
