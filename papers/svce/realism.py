"""Job: realism of whole sets of counterfactuals beside their oracle effect (SVCE spec §5.3, claims C5, C7, C8, C11).

python -m papers.svce.realism --shards B... --splits DIR --oracles DIR --out R.parquet --table T.csv --proxies P.csv

Two settings, because doing nothing looks perfectly real from real images: `ID` starts from held-out images of the world
and asks for the second most probable class, `OD` starts from images without an object and asks for the most probable
one. `average` is their mean; `pairs` are the images of the other tables. An image enters once per cell.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from common.anchors import random_direction
from common.batches import Shard, read_shard
from common.classifiers.checkpoints import load_checkpoint
from common.classifiers.oracles import Panel, majority
from common.data import datasets
from common.errors import VceError, one_line_errors
from common.explain import Streams
from common.files import atomic_path
from common.measure import judge_accuracy, oracle_gate, passing_judges, reliance
from common.metrics.perturbation import lp_norm, on_mask
from common.metrics.realism import Features, Halves, Reference
from common.progress import Progress
from common.results import PANEL
from common.statistics import half_sample_interval

SETTINGS = ("ID", "OD")
CELL = ["world", "starts", "classifier", "method", "strength"]


class Judge:
    """Everything that one world's sets are held against: real images, feature net, panel; half-samples by set size.

    The real images are those of the pairs split that nobody explains: `reserved` is how many are, from the first on.
    """

    def __init__(self, world: str, table: pd.DataFrame, data: Path, oracles: Path, reserved: int):
        network = load_checkpoint(oracles / f"{world}-features.safetensors")
        self.features = Features(network, datasets.load(world, table, "oracles", data).images)
        self.panel = Panel.load({name: oracles / f"{world}-{name}.safetensors" for name in PANEL})
        self.pairs = datasets.load(world, table, "pairs", data)
        if len(self.pairs.ids) < reserved + 2:
            raise VceError(
                f"{world}: no pairs are left beside {reserved} starts to stand for real; raise the split `pairs`"
            )
        self.real = self.features(self.pairs.images[reserved:])
        self.held_out = datasets.load(world, table, "calibration", data).images
        self._references: dict[int, Reference] = {}

    def reference(self, n: int) -> Reference:
        """The real images with half-samples for sets of n."""
        if n not in self._references:
            self._references[n] = Reference(self.real, Halves.draw(n, len(self.real)))
        return self._references[n]


def measure_set(judge: Judge, images: Tensor, target: Tensor | None, facts: dict) -> pd.DataFrame:
    """Rows half 0…R of one cell: `kid`, `n`, and `oracle_valid`, the share of its images that most of the panel sees as
    `target`."""
    reference = judge.reference(len(images))
    kid, valid = reference.kid(judge.features(images)).numpy(), np.nan
    if target is not None:
        votes = majority(judge.panel.predictions(images, None), target).double()
        valid = (reference.halves.generated @ votes / reference.halves.generated.sum(1)).numpy()
    return pd.DataFrame({**facts, "half": range(len(kid)), "kid": kid, "n": len(images), "oracle_valid": valid})


def measure_shard(judge: Judge, shard: Shard, world: str, methods: list[str]) -> pd.DataFrame:
    """Some methods of a shard at every strength, with the classifier's mean `confidence` and the mean `l1` change."""
    facts = {"world": world, "starts": shard.starts, "classifier": shard.classifier, "seed": shard.seed}
    return pd.concat(
        [
            measure_set(
                judge,
                batch.images[:, j],
                shard.target,
                {
                    **facts,
                    "method": method,
                    "strength": strength,
                    "confidence": batch.confidence[:, j].mean().item(),
                    "distance": batch.distance[:, j].mean().item(),
                },
            )
            for method, batch in shard.batches.items()
            if method in methods
            for j, strength in enumerate(batch.strengths)
        ]
    )


def controls(judge: Judge, shard: Shard, world: str, originals: Tensor, noise: float) -> pd.DataFrame:
    """What means nothing: the start images themselves, with Gaussian noise of l2 norm `noise`, and held-out real images
    of the same number (the floor)."""
    facts = {"world": world, "starts": shard.starts, "classifier": "none", "seed": shard.seed, "strength": 0.0}
    rng = Streams(shard.seed, shard.ids, (0,) * len(shard.ids))
    sets = {
        "identity": originals,
        "noise": random_direction(originals, (noise,), rng)[:, 0],
        "real": judge.held_out[: len(originals)],
    }
    return pd.concat([measure_set(judge, x, None, {**facts, "method": name}) for name, x in sets.items()])


def with_average(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` and the mean over ID and OD of every cell measured in both, half by half."""
    both = rows[rows["starts"].isin(SETTINGS)]
    key = ["world", "classifier", "method", "strength", "seed", "half"]
    means = {name: (name, "mean") for name in ("kid", "oracle_valid", "confidence", "distance")}
    mean = both.groupby(key, as_index=False).agg(**means, n=("n", "min"), settings=("starts", "nunique"))
    mean = mean[mean["settings"] == len(SETTINGS)].drop(columns="settings")
    return pd.concat([rows, mean.assign(starts="average")], ignore_index=True)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per cell: mean KID over seeds with its 95 % interval, oracle-valid share, n, seeds."""
    lines = []
    for keys, cell in rows.groupby(CELL):
        kid = cell.pivot(index="seed", columns="half", values="kid").to_numpy().mean(0)
        low, high = half_sample_interval(kid)
        full = cell[cell["half"] == 0]
        facts = {"n": int(full["n"].min()), "seeds": len(full), "kid": kid[0], "low": low, "high": high}
        means = full[["oracle_valid", "confidence", "distance"]].mean()
        lines.append({**dict(zip(CELL, keys, strict=True)), **facts, **means})
    return pd.DataFrame(lines)


def proxies(judge: Judge, shard: Shard, methods: list[str], level: float, originals: datasets.Images) -> pd.DataFrame:
    """What a machine can say where claim C12 asks people, about the very images of the rating sheet: the first with own
    confidence ≥ `level`, else the last. Each column says of which question it is a proxy; none of them is a rating."""
    rows = []
    for method in methods:
        images = shard.batches[method].at(shard.batches[method].first_success(level))
        found = measure_set(judge, images, shard.target, {}).iloc[0]
        delta = images - originals.images
        rows.append(
            {
                "world": shard.world,
                "classifier": shard.classifier,
                "seed": shard.seed,
                "method": method,
                "n": len(images),
                "realistic_proxy_kid": found["kid"],
                "meaningful_proxy_oracle_valid": found["oracle_valid"],
                "subtle_proxy_l2": lp_norm(delta, 2).mean().item(),
                "subtle_proxy_on_mask": on_mask(delta, originals.masks).mean().item(),
            }
        )
    return pd.DataFrame(rows)


def gate_panels(judges: dict[str, Judge], shards: list[Shard]) -> None:
    """Let judges leave their panel that are too inaccurate beside a classifier explained here from real images."""
    for world, judge in judges.items():
        accuracy, n = judge_accuracy(judge.panel, judge.pairs), len(judge.pairs.ids)
        gate = pd.concat([oracle_gate(shard, accuracy, n) for shard in shards if shard.world == world])
        judge.panel = judge.panel.only(passing_judges(gate, world))


def with_reliance(rows: pd.DataFrame, shards: list[Shard]) -> pd.DataFrame:
    """`rows` with each classifier's reliance on the class factor (G2), NaN on worlds that are not rendered."""
    inside = [shard for shard in shards if shard.starts == "ID" and shard.interventions]
    known = {(s.world, s.classifier, s.seed): reliance(s)["label"] for s in inside}
    keys = zip(rows["world"], rows["classifier"], rows["seed"], strict=True)
    return rows.assign(reliance=[known.get(key, np.nan) for key in keys])


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, nargs="+", required=True)
    parser.add_argument("--worlds", nargs="+", required=True, help="START=WORLD: the world that real images come from")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--oracles", type=Path, required=True, help="folder of the judges and feature nets")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--pairs-methods", nargs="*", default=[], help="methods measured on shards of other starts")
    parser.add_argument("--rated", type=json.loads, required=True, help="JSON: methods and level of the rating sheet")
    parser.add_argument("--noise", nargs="+", required=True, help="WORLD=NORM: l2 norm of its noise control")
    parser.add_argument("--out", type=Path, required=True, help="all halves, for the tests")
    parser.add_argument("--table", type=Path, required=True, help="the summary with intervals")
    parser.add_argument("--proxies", type=Path, required=True, help="automatic proxies of the rating sheet's questions")
    args = parser.parse_args()
    real_world = dict(item.split("=", 1) for item in args.worlds)
    noise = {world: float(norm) for world, norm in (item.split("=", 1) for item in args.noise)}
    shards = [read_shard(path) for path in args.shards]
    reserved = max(len(shard.ids) for shard in shards)
    judges: dict[str, Judge] = {}
    for world in sorted({real_world.get(shard.world, shard.world) for shard in shards}):
        table = pd.read_parquet(args.splits / f"{world}.parquet")
        judges[world] = Judge(world, table, args.data, args.oracles, reserved)
    gate_panels(judges, shards)
    rows, proxied, controlled = [], [], set()
    with Progress("realism", total=len(shards), unit="shards") as progress:
        for shard in shards:
            world = real_world.get(shard.world, shard.world)
            methods = list(shard.batches) if shard.starts in SETTINGS else args.pairs_methods
            rows.append(measure_shard(judges[world], shard, world, methods))
            if shard.starts not in SETTINGS:
                originals = datasets.load_ids(shard.world, shard.ids, args.data)
                rated = args.rated["methods"], args.rated["level"]
                proxied.append(proxies(judges[world], shard, *rated, originals))
            if (world, shard.starts, shard.seed) not in controlled:
                controlled.add((world, shard.starts, shard.seed))
                originals = datasets.load_ids(shard.world, shard.ids, args.data).images
                rows.append(controls(judges[world], shard, world, originals, noise[world]))
            progress.advance()
    table = with_reliance(with_average(pd.concat(rows, ignore_index=True)), shards)
    table = table.sort_values([*CELL, "seed", "half"], ignore_index=True)
    with atomic_path(args.out) as temporary:
        table.to_parquet(temporary, index=False)
    for path, frame in ((args.table, summary(table)), (args.proxies, pd.concat(proxied))):
        with atomic_path(path) as temporary:
            frame.to_csv(temporary, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
