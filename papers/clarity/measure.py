"""Job: measure the shards of one training seed: long-table rows with every judge's vote and what the latents
add, KID of every set of counterfactuals, and the judges beside the systems.

python -m papers.clarity.measure --shards F... --systems DIR --splits DIR --oracles DIR --out DIR
"""

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common import judged_world
from common.batches import Shard, read_shards
from common.data import datasets
from common.errors import one_line_errors
from common.explain import CounterfactualBatch
from common.files import atomic_path
from common.generators.vae import VAE
from common.measure import by_strength, judge_accuracy, measure_shard, oracle_gate, reliance
from common.metrics.im1 import ClassAutoencoders, load_autoencoders
from common.progress import Progress
from papers.clarity.names import cell_of
from papers.clarity.systems import System, Systems, load_systems


@dataclass(frozen=True, eq=False)
class World(judged_world.World):
    """With class autoencoders where they exist."""

    autoencoders: ClassAutoencoders | None = None


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
    shard: Shard, batch: CounterfactualBatch, system: System, world: World, density: AggregatePosterior
) -> dict[str, Tensor]:
    """What the latents add to the long table for a path of counterfactuals, strength by strength (spec §5)."""
    s = len(batch.strengths)
    x, source, target = by_strength(batch.images), shard.source.repeat(s), shard.target.repeat(s)
    missing = torch.full((len(x),), torch.nan)
    originals = datasets.load_ids(shard.world, shard.ids, world.data).images
    reference = originals if batch.reference is None else batch.reference
    names = ("dz", "latent_norm", "latent_nll", "bald", "round_trip", "im1")
    found = dict.fromkeys(names, missing)
    found["change"] = (x - reference.repeat(s, 1, 1, 1)).abs().flatten(1).sum(1)
    if world.autoencoders is not None:
        found["im1"] = world.autoencoders.im1(x, source, target)
    if batch.latent_shift is None:
        return found
    z = by_strength(system.vae.latents(originals)[0][:, None] + batch.latent_shift)
    with torch.no_grad():
        members = system.ensemble.member_log_probabilities(z if system.reads_latents else system.vae.decode(z))
        again = system(x).gather(1, target[:, None])[:, 0].exp()
    mean = members.exp().mean(0)
    entropy = -(mean * mean.clamp_min(1e-30).log()).sum(1)
    return found | {
        "dz": by_strength(batch.latent_shift).norm(dim=1),
        "latent_norm": z.norm(dim=1),
        "latent_nll": density.negative_log_likelihood(z, target),
        "bald": entropy + (members.exp() * members).sum(2).mean(0),
        "round_trip": again,
    }


def measured_shard(
    shard: Shard, system: System, world: World, density: AggregatePosterior
) -> tuple[pd.DataFrame, dict[tuple[str, float], Tensor]]:
    """Long-table rows of a shard with what the latents and the features add, and the features of every image set."""
    rows = measure_shard(shard, world.panel, world.data)
    n, more, features = len(shard.ids), [], {}
    for method, batch in shard.batches.items():
        s, way = len(batch.strengths), shard.traces.get(method)
        seen = world.features(by_strength(batch.images))
        features |= {(method, float(strength)): seen[n * j : n * (j + 1)] for j, strength in enumerate(batch.strengths)}
        values = latent_metrics(shard, batch, system, world, density)
        values["knn"] = world.neighbour_distance(seen, shard.target.repeat(s)).float()
        values["straightness"] = torch.full((n * s,), torch.nan)
        if way is not None:
            # the way is that of the whole search, to its largest τ; one that diverged has taken a step that is not kept
            straightness = batch.latent_shift[:, -1].norm(dim=1) / way[:, 0, 0]
            straightness[torch.from_numpy(batch.status[:, -1] == "diverged")] = torch.nan
            values["straightness"][n * (s - 1) :] = straightness
        more.append(pd.DataFrame({name: value.numpy() for name, value in values.items()}))
    space, m = cell_of(shard.classifier)
    with torch.no_grad():
        own = system(datasets.load_ids(shard.world, shard.ids, world.data).images).max(1).values.exp()
    facts = {"starts": shard.starts, "space": space, "m": m, "reliance": reliance(shard).get("label", np.nan)}
    already, paths = (shard.source_prediction == shard.target).float(), len(rows) // n
    confident = {"source_confidence": own.repeat(paths).numpy(), "already": already.repeat(paths).numpy()}
    rows = pd.concat([rows, pd.concat(more, ignore_index=True)], axis=1)
    return rows.assign(**facts, **confident), features


def kid_table(shard: Shard, sets: dict[tuple[str, float], Tensor], world: World) -> pd.DataFrame:
    """KID of every set of counterfactuals in a shard, by its cell (`common.judged_world.World.kid`)."""
    space, m = cell_of(shard.classifier)
    return world.kid(shard, sets).assign(classifier=f"{space}-m{m}")


def systems_file(folder: Path, shard: Shard) -> Path:
    """The file of the systems that a shard explains: its world's, or a variant's."""
    return folder / f"{shard.classifier.rpartition(':')[0] or shard.world}-{shard.seed}.safetensors"


def judge_gate(shards: list[Shard], worlds: dict[str, World], folder: Path) -> pd.DataFrame:
    """Each judge beside each explained system of the main VAEs: its accuracy on real images, whether that is no more
    than 3 points below (`passes`), and its accuracy on reconstructions."""
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
    return pd.concat(gates, ignore_index=True).drop_duplicates(["world", "classifier", "seed", "judge"])


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, nargs="+", required=True, help="those of one training seed")
    parser.add_argument("--systems", type=Path, required=True, help="folder of NAME-SEED.safetensors")
    parser.add_argument("--autoencoders", nargs="*", default=[], help="WORLD=FILE of class autoencoders")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--oracles", type=Path, required=True, help="folder of the judges")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True, help="folder of rows, kid and gate .parquet")
    args = parser.parse_args()
    files = dict(item.split("=", 1) for item in args.autoencoders)
    trained_autoencoders = {name: load_autoencoders(Path(path)) for name, path in files.items()}
    shards = [shard for path in args.shards for shard in read_shards(path)]
    tables = {name: pd.read_parquet(args.splits / f"{name}.parquet") for name in {shard.world for shard in shards}}
    worlds = {
        name: World.load(name, table, args.oracles, args.data, autoencoders=trained_autoencoders.get(name))
        for name, table in tables.items()
    }
    rows, kid = [], []
    trained: dict[Path, tuple[Systems, AggregatePosterior]] = {}
    with Progress("measure", total=len(shards), unit="systems") as progress:
        for shard in shards:
            world, file = worlds[shard.world], systems_file(args.systems, shard)
            if file not in trained:
                systems = load_systems(file)
                trained[file] = systems, AggregatePosterior(systems.vae, world.systems)
            systems, density = trained[file]
            system = systems.system(shard.classifier.rpartition(":")[2])
            table, features = measured_shard(shard, system, world, density)
            rows.append(table)
            if not shard.starts.startswith("coverage"):
                kid.append(kid_table(shard, features, world))
            progress.advance()
    outputs = {"rows": rows, "kid": kid, "gate": [judge_gate(shards, worlds, args.systems)]}
    for name, parts in outputs.items():
        with atomic_path(args.out / f"{name}.parquet") as temporary:
            pd.concat(parts, ignore_index=True).to_parquet(temporary, index=False)


if __name__ == "__main__":
    main()
