"""Job: explain one group of cells: every method for every system in it, from the same start images.

python -m papers.clarity.shards --group '[{...}]' --systems DIR --splits DIR --seed 0 --out F

The file holds one shard per start set and system; what it cost stands beside it in F.cost.json.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from common import anchors
from common.batches import Shard, write_shards
from common.data import datasets
from common.errors import VceError, one_line_errors
from common.explain import CounterfactualBatch, Streams, log_confidence
from common.files import commit, write_atomic
from common.progress import Progress
from common.shards import pass_seconds, shard_of
from papers.clarity.baselines import latent_ascent, revise_adam, revise_plain, schut
from papers.clarity.explain import class_mean_shift, decoded, directions, explain
from papers.clarity.method import straight
from papers.clarity.names import system_names
from papers.clarity.systems import System, Systems, load_systems

METHODS = {
    "direction": directions,
    "search": explain,
    "revise-plain": revise_plain,
    "revise-adam": revise_adam,
    "latent-ascent": latent_ascent,
    "schut": schut,
    "pixel-ascent": anchors.pixel_ascent,
}


@dataclass(frozen=True)
class Cell:
    """One method for the systems called `names` and those of some `spaces` and `sizes`, along a path of `strengths`:
    latent distances of `direction`, l2 radii of `pixel-ascent`, confidences τ of the others. `settings` change the
    method's defaults, and then `label` names it in the long table.
    """

    method: str
    strengths: list[float]
    names: list[str] = field(default_factory=list)
    spaces: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    label: str = ""
    settings: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.label or self.method

    def systems(self, singles: int) -> list[str]:
        return [*self.names, *system_names(self.spaces, self.sizes, singles)]

    def explainer(self) -> Callable[..., CounterfactualBatch]:
        """Its contract function. Raises VceError for an unknown method."""
        if self.method not in METHODS:
            raise VceError(f"cells: method {self.method!r} is unknown; choose one of {', '.join(METHODS)}")
        return partial(METHODS[self.method], **self.settings)


class Recorder:
    """A callback that keeps how far each sample has travelled in the latent, N×1×1, and passes every state on."""

    def __init__(self, n: int, callback: Callable[[dict], None]):
        self.length, self.callback = torch.zeros(n, 1, 1), callback

    def __call__(self, state: dict) -> None:
        if "travelled" in state:
            self.length[state["rows"], 0, 0] = state["travelled"]
        self.callback(state)


def parse_cells(cells: list[dict]) -> list[Cell]:
    """The cells of a config file. Raises VceError for a wrong field."""
    try:
        return [Cell(**fields) for fields in cells]
    except TypeError as error:
        raise VceError(f"cells: {error}; fix it in config/") from error


def controls(
    pairs: datasets.Images, target: Tensor, system: System, systems: Systems, rng: Streams, radii: list[float]
) -> dict[str, CounterfactualBatch]:
    """What needs no classifier's gradient, at the latent distances `radii`: the class-mean shift, a random direction,
    on rendered worlds the way to the true twin's latent; and the reconstruction alone."""
    z0 = system.vae.latents(pairs.images)[0]
    ways = {"random-latent": z0 + rng.normal(z0.shape[1:], "latent")}
    if datasets.world(systems.world).rendered:
        twins = datasets.twins(systems.world, pairs.ids)[torch.arange(len(target)), target]
        ways["twin-latent"] = system.vae.latents(twins)[0]
    paths = {name: (straight(z0, way, radii), radii) for name, way in ways.items()}
    paths["reconstruction"] = (z0[:, None], [0.0])
    shifted = class_mean_shift(
        pairs.images, pairs.labels, target, classifier=system, class_means=systems.class_means, strengths=radii
    )
    return {"class-mean-shift": shifted} | {
        name: decoded(pairs.images, pairs.labels, target, z0, z, strengths, system)
        for name, (z, strengths) in paths.items()
    }


def start_images(world: str, table: pd.DataFrame, data: Path, entry: dict) -> datasets.Images:
    """The images of the pairs split that an entry explains: those of rank `first` (0) up to `n`."""
    ids = datasets.load(world, table, "pairs", data, entry["n"]).ids[entry.get("first", 0) :]
    return datasets.load_ids(world, ids, data)


def explain_system(
    entry: dict, name: str, systems: Systems, table: pd.DataFrame, data: Path, progress: Progress
) -> tuple[Shard, list[dict]]:
    """All cells of an entry that explain the system `name`; returns the shard and what each method cost: seconds,
    gradient evaluations, and whether those are of pixels or of latents."""
    world, seed = systems.world, systems.seed
    pairs = start_images(world, table, data, entry)
    target = datasets.targets(table, pairs.ids)
    system, rng = systems.system(name), Streams(seed, pairs.ids, tuple(target.tolist()))
    batches, traces, cost = {}, {}, []
    for cell in parse_cells(entry["cells"]):
        if name not in cell.systems(entry["singles"]):
            continue
        record, start = Recorder(len(target), progress), time.perf_counter()
        batches[cell.name] = cell.explainer()(
            pairs.images, pairs.labels, target, classifier=system, rng=rng, strengths=cell.strengths, callback=record
        )
        spent, forward = time.perf_counter() - start, batches[cell.name].forward
        # one path serves all thresholds and distances; every radius of pixel ascent is a run of its own
        evaluations = forward.sum(1) if cell.method == "pixel-ascent" else forward.max(1).values
        facts = {"method": cell.name, "seconds": spent, "evaluations": int(evaluations.sum())}
        cost.append({**facts, "pixels": cell.method in ("schut", "pixel-ascent")})
        if cell.method == "search":
            traces[cell.name] = record.length
        progress.advance()
    if name == entry.get("controls"):
        batches |= controls(pairs, target, system, systems, rng, entry["radii"])
        if "random_radii" in entry:
            reference = datasets.load(world, table, "systems", data)
            batches |= anchors.explain_anchors(pairs, target, reference, world, system, rng, entry["random_radii"])
    everyone = datasets.load(world, table, "pairs", data)
    explained = {"starts": entry["starts"], "classifier": name, "seed": seed, "batches": batches, "traces": traces}
    if entry.get("variant"):
        explained["classifier"] = f"{entry['variant']}:{name}"
    return shard_of(world, system, pairs, target, everyone, **explained), cost


def gradient_seconds(system: System, shard: Shard, data: Path, pixels: bool) -> float:
    """Seconds per image of one gradient of the system's log-probability, in pixels or in the latent, at the batch of a
    shard: the yardstick of overhead."""
    x = datasets.load_ids(shard.world, shard.ids, data).images
    if pixels:
        return pass_seconds(log_confidence(system, shard.target), x)
    return pass_seconds(log_confidence(system.log_probabilities, shard.target), system.vae.latents(x)[0])


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", type=json.loads, required=True, help="JSON list: systems, starts, n, cells")
    parser.add_argument("--systems", type=Path, required=True, help="folder of NAME-SEED.safetensors")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--seed", type=int, required=True, help="the training seed, also the seed of the methods")
    parser.add_argument("--out", type=Path, required=True, help="the file of shards")
    args = parser.parse_args()
    jobs = []
    for entry in args.group:
        cells = parse_cells(entry["cells"])
        names = [name for cell in cells for name in cell.systems(entry["singles"])]
        jobs += [(entry, name) for name in dict.fromkeys([*names, *filter(None, [entry.get("controls")])])]
    shards, cost = [], []
    loaded: dict[str, Systems] = {}
    own: dict[tuple[str, str, bool], float] = {}  # seconds of one gradient
    with Progress("explain", total=sum(len(entry["cells"]) for entry, _ in jobs), unit="methods") as progress:
        for entry, name in jobs:
            file = f"{entry['systems']}-{args.seed}.safetensors"
            if file not in loaded:
                loaded[file] = load_systems(args.systems / file)
            systems = loaded[file]
            table = pd.read_parquet(args.splits / f"{systems.world}.parquet")
            shard, spent = explain_system(entry, name, systems, table, args.data, progress)
            facts = {"starts": shard.starts, "classifier": shard.classifier}
            for line in spent:
                pixels = line.pop("pixels")
                if (file, name, pixels) not in own:
                    own[file, name, pixels] = gradient_seconds(systems.system(name), shard, args.data, pixels)
                cost.append({**facts, **line, "pass_seconds": own[file, name, pixels]})
            shards.append(shard)
    facts = {"commit": commit(), "seed": args.seed, "cells": cost}
    write_atomic(args.out.with_suffix(".cost.json"), json.dumps(facts, indent=1, sort_keys=True))
    write_shards(shards, args.out)


if __name__ == "__main__":
    main()
