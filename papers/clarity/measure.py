"""Job: rows of the long table from all shards, what the latents add to them, and the cells that the claims are about.

python -m papers.clarity.measure --shards F... --systems DIR --diagnostics DIR --splits DIR --oracles DIR --out DIR
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.batches import Shard, read_shards
from common.classifiers.checkpoints import load_checkpoint
from common.classifiers.oracles import JUDGES, Panel
from common.data import datasets
from common.errors import one_line_errors
from common.explain import CounterfactualBatch
from common.files import atomic_path
from common.generators.vae import VAE
from common.measure import judge_accuracy, measure_shard, oracle_gate, passing_judges, reliance
from common.metrics.im1 import ClassAutoencoders, load_autoencoders
from common.metrics.realism import Features, Halves, Reference
from common.progress import Progress
from common.results import COLUMNS, write_rows
from common.statistics import half_sample_interval
from papers.clarity.factors import factor_shares, plateau_auc
from papers.clarity.names import cell_of
from papers.clarity.systems import System, Systems, load_systems

PANEL = ("augmented", "svm", "l2at")
CLOSE = 0.8  # a correct image of lower confidence is close to its boundary
MIN_RECONSTRUCTED = 0.9  # accuracy that a judge must keep on reconstructions
NEIGHBOURS = 5
KEYS = ["world", "space", "m", "classifier", "method", "strength", "seed", "image"]
JUDGED = ("oracle_valid", "oracle_share", *(f"oracle_{judge}" for judge in JUDGES))
PICTURE = (*JUDGED, "im1", "knn", "distance", "twin_error", "factor_progress")  # metrics of the picture alone
CONFIDENCES = ("search", "plain", "revise", "latent-ascent", "schut")  # methods whose strengths are thresholds τ


class World:
    """What measuring needs to know of one world: its panel, the features of a net that judges nothing, real images, and
    class autoencoders where they exist."""

    def __init__(self, name: str, table: pd.DataFrame, oracles: Path, data: Path, autoencoders: Path | None):
        self.data = data
        self.panel = Panel.load({judge: oracles / f"{name}-{judge}.safetensors" for judge in PANEL})
        self.pairs = datasets.load(name, table, "pairs", data)
        self.systems = datasets.load(name, table, "systems", data)
        held = datasets.load(name, table, "oracles", data)
        self.features = Features(load_checkpoint(oracles / f"{name}-features.safetensors"), held.images)
        self.real, self.train = self.features(self.pairs.images), self.features(self.systems.images)
        self.autoencoders: ClassAutoencoders | None = load_autoencoders(autoencoders) if autoencoders else None

    def neighbour_distance(self, features: Tensor, target: Tensor) -> Tensor:
        """Mean distance of N×D features to the 5 nearest training images of their target classes."""
        distance = torch.cdist(features, self.train)
        distance = distance.masked_fill(self.systems.labels[None] != target[:, None], torch.inf)
        return distance.topk(NEIGHBOURS, dim=1, largest=False).values.mean(1)


class AggregatePosterior:
    """q(z|t), the mean of q(z|x) over the training images of class t: how plausible a latent is for its class."""

    def __init__(self, vae: VAE, train: datasets.Images):
        self.mean, self.std = vae.latents(train.images)
        self.labels = train.labels

    def negative_log_likelihood(self, z: Tensor, target: Tensor) -> Tensor:
        """−log q(z|t) in nats: N values for N×d latents and N classes."""
        found = torch.empty(len(z))
        for label in target.unique():
            mine, theirs = target == label, self.labels == label
            normal = torch.distributions.Normal(self.mean[theirs], self.std[theirs])
            log_q = torch.cat([normal.log_prob(part[:, None]).sum(2) for part in z[mine].split(64)])
            found[mine] = math.log(int(theirs.sum())) - log_q.logsumexp(1)
        return found


def latent_metrics(
    shard: Shard, batch: CounterfactualBatch, j: int, system: System, world: World, density: AggregatePosterior
) -> dict[str, Tensor]:
    """What the latents add to the long table, for the counterfactuals of one strength (spec §5)."""
    x = batch.images[:, j]
    missing = torch.full((len(x),), torch.nan)
    names = ("dz", "latent_norm", "latent_nll", "bald", "round_trip", "im1")
    found = dict.fromkeys(names, missing)
    reference = datasets.load_ids(shard.world, shard.ids, world.data).images
    if batch.reference is not None:
        reference = batch.reference
    found["change"] = (x - reference).abs().flatten(1).sum(1)
    if world.autoencoders is not None:
        found["im1"] = world.autoencoders.im1(x, shard.source, shard.target)
    if batch.latent_shift is None:
        return found
    z0, _ = system.vae.encode(datasets.load_ids(shard.world, shard.ids, world.data).images)
    z = z0 + batch.latent_shift[:, j]
    with torch.no_grad():
        members = system.ensemble.member_log_probabilities(z if system.reads_latents else system.vae.decode(z))
        again = system(x).gather(1, shard.target[:, None])[:, 0].exp()
    mean = members.exp().mean(0)
    entropy = -(mean * mean.clamp_min(1e-30).log()).sum(1)
    return found | {
        "dz": batch.latent_shift[:, j].norm(dim=1),
        "latent_norm": z.norm(dim=1),
        "latent_nll": density.negative_log_likelihood(z, shard.target),
        "bald": entropy + (members.exp() * members).sum(2).mean(0),
        "round_trip": again,
    }


def measured_shard(
    shard: Shard, system: System, world: World, panel: Panel, density: AggregatePosterior
) -> tuple[pd.DataFrame, dict[tuple[str, float], Tensor]]:
    """Long-table rows of a shard with what the latents and the features add, and the features of every image set."""
    rows = measure_shard(shard, panel, world.data)
    more, features = [], {}
    for method, batch in shard.batches.items():
        way = shard.traces.get(method)
        straightness = torch.full((len(shard.ids),), torch.nan)
        if way is not None:
            straightness = batch.latent_shift[:, -1].norm(dim=1) / way[:, 0, 0]
        for j, strength in enumerate(batch.strengths):
            features[method, float(strength)] = world.features(batch.images[:, j])
            values = latent_metrics(shard, batch, j, system, world, density)
            values["knn"] = world.neighbour_distance(features[method, float(strength)], shard.target).float()
            values["straightness"] = straightness
            more.append(pd.DataFrame({name: value.numpy() for name, value in values.items()}))
    space, m = cell_of(shard.classifier)
    with torch.no_grad():
        own = system(datasets.load_ids(shard.world, shard.ids, world.data).images).max(1).values.exp()
    facts = {"starts": shard.starts, "space": space, "m": m, "reliance": reliance(shard).get("label", np.nan)}
    already = (shard.source_prediction == shard.target).float()
    seen = {"source_confidence": own.repeat(len(more)).numpy(), "already": already.repeat(len(more)).numpy()}
    rows = pd.concat([rows, pd.concat(more, ignore_index=True)], axis=1)
    return rows.assign(**facts, **seen), features


def cells_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with single members, the cells of M = 1, averaged: one row per cell, method, strength, seed and image.

    `valid`: the own confidence reached the threshold τ of a search; `covered`: and most of the panel agree.
    `classifier` names the cell.
    """
    searched = rows["method"].str.startswith(CONFIDENCES)
    # a threshold is met up to the rounding of its logarithm
    valid = (rows["confidence"] >= rows["strength"] - 1e-6).astype(float).where(searched)
    diverged = (rows["status"] == "diverged").astype(float)
    rows = rows.assign(diverged=diverged, valid=valid, covered=valid * rows["oracle_valid"])
    rows = rows.assign(classifier=rows["space"] + "-m" + rows["m"].astype(str))
    numbers = [column for column in rows.select_dtypes("number") if column not in (*KEYS, "source", "target")]
    return rows.groupby(KEYS)[numbers].mean().reset_index()


def at_equal_change(cells: pd.DataFrame, levels: dict[str, list[float]]) -> pd.DataFrame:
    """The directions read at equal change of the picture, ‖x′ − g(z_0)‖₁ = `levels` of their world, instead of equal
    ‖z − z_0‖, of which a latent that the decoder ignores may swallow a part: method `direction/change`.

    Metrics are interpolated along the path from the reconstruction; a path that ends short of a level keeps its last.
    """
    keys = ["world", "space", "m", "classifier", "seed", "image"]
    metrics = [name for name in (*PICTURE, "adequate", "reliance") if name in cells]
    start = cells[cells["method"] == "reconstruction"].set_index(["world", "seed", "image"])[metrics]
    followed = cells["method"].isin(["direction", "class-mean-shift"])
    # the reconstructions of a variant's VAE are not those of the main one
    paths = cells[followed & ~cells["space"].str.contains(":")].sort_values("strength")
    lines = []
    for path_keys, path in paths.groupby([*keys, "method"]):
        *cell, method = path_keys
        change = np.concatenate([[0.0], np.maximum.accumulate(path["change"])])
        values = np.vstack([start.loc[(cell[0], cell[4], cell[5])], path[metrics]])
        for level in levels[cell[0]]:
            found = [np.interp(level, change, column) for column in values.T]
            facts = dict(zip(keys, cell, strict=True)) | {"method": f"{method}/change", "strength": level}
            lines.append({**facts, "change": min(level, change[-1]), **dict(zip(metrics, found, strict=True))})
    return pd.DataFrame(lines)


def interactions(cells: pd.DataFrame) -> pd.DataFrame:
    """(L-sample M − L-sample 1) − (P M − P 1) of every metric, per method, strength, seed and image, for every common
    M: does an ensemble help a latent classifier more than a pixel one?"""
    shared = ["world", "method", "strength", "seed", "image"]
    facts = ["adequate", "reliance"]  # of the world and seed, not to be subtracted
    metrics = cells.columns.difference([*KEYS, *facts])
    chosen = cells[cells["space"].isin(["p", "l-sample"])]
    parts = []

    def values(space: str, m: int, columns: list[str]) -> pd.DataFrame:
        return chosen[(chosen["space"] == space) & (chosen["m"] == m)].set_index(shared)[columns]

    for m in sorted(set(chosen.loc[chosen["space"] == "p", "m"]) - {1}):
        four = [values(space, size, metrics) for space, size in (("l-sample", m), ("l-sample", 1), ("p", m), ("p", 1))]
        gain = ((four[0] - four[1]) - (four[2] - four[3])).dropna(how="all")
        gain = gain.join(values("l-sample", m, facts))
        parts.append(gain.reset_index().assign(space="interaction", m=m))
    table = pd.concat(parts, ignore_index=True)
    return table.assign(classifier="interaction-m" + table["m"].astype(str))[list(cells.columns)]


def coverage_table(rows: pd.DataFrame, adequate: pd.DataFrame, level: float) -> pd.DataFrame:
    """Coverage per image: is there a counterfactual whose own confidence reached `level` and that most of the panel
    accept? Clarity (L-sample, M = 10) beside REVISE and plain latent search on one pixel net.

    `shared` marks the images that all of them explained. `stratum`, of the system that is explained: `misclassified`;
    `close`, correct with a confidence below .8; `correct`; `target`, read as the target to begin with.
    """
    wanted = {"l-sample-m10": ["search"], "p.0": ["search", "revise-plain/tuned"]}
    chosen = [
        (rows["classifier"] == name) & rows["method"].isin(methods) & np.isclose(rows["strength"], level)
        for name, methods in wanted.items()
    ]
    table = rows[np.logical_or.reduce(chosen)].copy()
    valid = (table["confidence"] >= level - 1e-6).astype(float)
    for judge in ("valid", *(name for name in PANEL)):
        table["covered" if judge == "valid" else f"covered_{judge}"] = valid * table[f"oracle_{judge}"]
    close = (table["stratum"] == "correct") & (table["source_confidence"] < CLOSE)
    table["stratum"] = table["stratum"].mask(close, "close").mask(table["already"] == 1, "target")
    explained = table.groupby(["image", "seed"]).size()
    shared = explained.index[explained == len(table.drop_duplicates(["classifier", "method"]))]
    table["shared"] = pd.MultiIndex.from_frame(table[["image", "seed"]]).isin(shared).astype(float)
    columns = ["world", "seed", "image", "classifier", "method", "stratum", "shared", "covered"]
    table = table.assign(valid=valid)[[*columns, "valid", *(f"covered_{judge}" for judge in PANEL)]]
    return table.merge(adequate, on=["world", "seed"])


def kid_table(measured: list[tuple[Shard, dict[tuple[str, float], Tensor]]], worlds: dict[str, World]) -> pd.DataFrame:
    """KID of every set of counterfactuals, given their features, against real images of the pairs split that are not
    explained: mean over seeds (and single members), interval from half-samples."""
    references: dict[tuple[str, int], Reference] = {}
    found: dict[tuple, list[Tensor]] = {}
    for shard, sets in measured:
        world, n = worlds[shard.world], len(shard.ids)
        if (shard.world, n) not in references:
            references[shard.world, n] = Reference(world.real[n:], Halves.draw(n, len(world.real) - n))
        space, m = cell_of(shard.classifier)
        for (method, strength), features in sets.items():
            kid = references[shard.world, n].kid(features)
            found.setdefault((shard.world, f"{space}-m{m}", method, strength), []).append(kid)
    lines = []
    for keys, estimates in found.items():
        kid = torch.stack(estimates).mean(0).numpy()
        low, high = half_sample_interval(kid)
        facts = dict(zip(("world", "classifier", "method", "strength"), keys, strict=True))
        lines.append({**facts, "kid": kid[0], "kid_low": low, "kid_high": high})
    return pd.DataFrame(lines)


def cost_table(files: list[Path]) -> pd.DataFrame:
    """Seconds, gradient evaluations and overhead = seconds ÷ (evaluations × the system's own gradient), by cell."""
    rows = []
    for path in files:
        cost = json.loads(path.with_suffix(".cost.json").read_text())
        rows += [{**cell, "seed": cost["seed"], "commit": cost["commit"]} for cell in cost["cells"]]
    table = pd.DataFrame(rows)
    return table.assign(overhead=table["seconds"] / (table["evaluations"] * table["pass_seconds"]))


def systems_file(folder: Path, shard: Shard) -> Path:
    """The file of the systems that a shard explains: its world's, or a variant's."""
    return folder / f"{shard.classifier.rpartition(':')[0] or shard.world}-{shard.seed}.safetensors"


def judge_gate(shards: list[Shard], worlds: dict[str, World], folder: Path) -> pd.DataFrame:
    """Each judge beside each explained system of the main VAEs, and whether it passes: no more than 3 points below on
    real images, and at least .9 on reconstructions, mean over training seeds."""
    gates, real, reconstructed = [], {}, {}
    for shard in (shard for shard in shards if ":" not in shard.classifier):
        world = worlds[shard.world]
        if shard.world not in real:
            real[shard.world] = judge_accuracy(world.panel, world.pairs)
        if (shard.world, shard.seed) not in reconstructed:
            vae = load_systems(folder / f"{shard.world}-{shard.seed}.safetensors").vae
            decoded = replace(world.pairs, images=vae.reconstruct(world.pairs.images))
            reconstructed[shard.world, shard.seed] = judge_accuracy(world.panel, decoded)
        gate = oracle_gate(shard, real[shard.world], len(world.pairs.ids))
        gates.append(gate.assign(reconstructed=gate["judge"].map(reconstructed[shard.world, shard.seed])))
    gate = pd.concat(gates, ignore_index=True).drop_duplicates(["world", "classifier", "seed", "judge"])
    mean = gate.groupby(["world", "judge"])["reconstructed"].transform("mean")
    return gate.assign(passes=gate["passes"] & (mean >= MIN_RECONSTRUCTED))


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, nargs="+", required=True)
    parser.add_argument("--systems", type=Path, required=True, help="folder of NAME-SEED.safetensors")
    parser.add_argument("--diagnostics", type=Path, required=True, help="folder of gradients and reconstruction_gate")
    parser.add_argument("--autoencoders", nargs="*", default=[], help="WORLD=FILE of class autoencoders")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--oracles", type=Path, required=True, help="folder of the judges")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--level", type=float, required=True, help="own confidence at which coverage is counted")
    parser.add_argument(
        "--changes", type=json.loads, required=True, help="JSON: ‖x′ − g(z_0)‖₁ to compare at, by world"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of rows, cells, coverage ... .parquet")
    parser.add_argument("--cost", type=Path, required=True, help="seconds and overhead, which are not deterministic")
    args = parser.parse_args()
    autoencoders = dict(item.split("=", 1) for item in args.autoencoders)
    shards = [shard for path in args.shards for shard in read_shards(path)]
    tables = {name: pd.read_parquet(args.splits / f"{name}.parquet") for name in {shard.world for shard in shards}}
    worlds = {
        name: World(name, table, args.oracles, args.data, autoencoders.get(name)) for name, table in tables.items()
    }
    gate = judge_gate(shards, worlds, args.systems)
    rows, features = [], []
    trained: dict[Path, tuple[Systems, AggregatePosterior]] = {}
    with Progress("measure", total=len(shards), unit="systems") as progress:
        for shard in shards:
            world, file = worlds[shard.world], systems_file(args.systems, shard)
            if file not in trained:
                systems = load_systems(file)
                trained[file] = systems, AggregatePosterior(systems.vae, world.systems)
            systems, density = trained[file]
            system, panel = systems.system(shard.classifier.rpartition(":")[2]), world.panel
            panel = panel.only(passing_judges(gate, shard.world))
            table, found = measured_shard(shard, system, world, panel, density)
            rows.append(table)
            features.append((shard, found))
            progress.advance()
    everything = pd.concat(rows, ignore_index=True)
    adequate = pd.read_parquet(args.diagnostics / "reconstruction_gate.parquet")[["world", "seed", "adequate"]]
    paired = everything[~everything["starts"].str.startswith("coverage")]
    cells = cells_of(paired).merge(adequate, on=["world", "seed"])
    cells = pd.concat([cells, at_equal_change(cells, args.changes)], ignore_index=True)
    digits = cells[cells["world"] == "mnist"]
    gradients = pd.read_parquet(args.diagnostics / "gradients.parquet")
    outputs = {
        "cells": pd.concat([cells, interactions(cells)], ignore_index=True),
        "coverage": coverage_table(everything, adequate, args.level),
        "factors": factor_shares(digits).merge(adequate[adequate["world"] == "mnist"], on="seed"),
        "plateau": plateau_auc(digits, gradients, args.level).merge(adequate[adequate["world"] == "mnist"], on="seed"),
        "kid": kid_table([item for item in features if not item[0].starts.startswith("coverage")], worlds),
    }
    for name, table in outputs.items():
        with atomic_path(args.out / f"{name}.parquet") as temporary:
            table.to_parquet(temporary, index=False)
    with atomic_path(args.out / "tables" / "oracle_gate.csv") as temporary:
        gate.to_csv(temporary, index=False, float_format="%.4f")
    with atomic_path(args.cost) as temporary:
        cost_table(args.shards).to_parquet(temporary, index=False)
    write_rows(everything[list(COLUMNS)], args.out / "rows.parquet")


if __name__ == "__main__":
    main()
