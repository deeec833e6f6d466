"""Job: measure what all methods made of one training seed: rows of the long table with every judge's vote, what judges
and classifier make of every image, what each path hands out, realism of those sets, and cuts to equal area.

python -m comparison.measure --shards F... --checkpoints WORLD=DIR... --oracles DIR --splits DIR
    --level 0.9 --seed 0 --out DIR
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from common.anchors import threshold_to_count
from common.batches import Shard, read_shards
from common.classifiers.checkpoints import load_checkpoint
from common.data import datasets
from common.errors import VceError, one_line_errors
from common.explain import CounterfactualBatch
from common.files import atomic_path
from common.judged_world import World
from common.matching import ROUNDING
from common.measure import by_strength, judge_accuracy, measure_shard, oracle_gate
from common.metrics import ground_truth, perturbation
from common.metrics.im1 import ClassAutoencoders, load_autoencoders
from common.progress import Progress
from comparison.bench import paths_by_world
from comparison.entries import ANCHORS
from comparison.explain import RUNNER_UP

FAILED = ("diverged", "skipped")  # an image that is not the method's answer
TABLES = ("rows", "points", "finals", "cuts", "drawings", "kid", "gate")
READ = ("accuracy", "reconstructed")  # of what a reader sees: in originals, and in a method's drawings of them
AREAS = (0.05, 0.1, 0.2, 0.3, 0.4)  # of the image, at which methods without a target are compared


def merged(shards: list[Shard]) -> list[Shard]:
    """One shard per world, classifier and kind of targets, with the batches of all. Raises VceError when two files
    disagree about the images, or both hold a method."""
    found: dict[tuple[str, str, str], Shard] = {}
    for shard in shards:
        key = shard.world, shard.classifier, shard.starts
        if key not in found:
            found[key] = shard
            continue
        first = found[key]
        twice = set(first.batches) & set(shard.batches)
        if twice or first.ids != shard.ids or not torch.equal(first.target, shard.target):
            what = f"{', '.join(sorted(twice))} twice" if twice else "other images"
            raise VceError(f"shards of {key[0]}/{key[1]} hold {what}; delete them and run snakemake again")
        found[key] = replace(first, batches=first.batches | shard.batches)
    return list(found.values())


@torch.no_grad()
def probabilities(network: nn.Module, images: Tensor) -> Tensor:
    """N×K soft-max of a classifier or judge, in batches."""
    return torch.cat([network(x).softmax(1) for x in images.split(256)])


def keys_of(shard: Shard, s: int = 1) -> dict:
    """The key columns of a shard's samples, repeated for s strengths."""
    columns = {"image": np.array(shard.ids, dtype=object), "source": shard.source, "target": shard.target}
    repeated = {name: np.tile(values, s) for name, values in columns.items()}
    return {"world": shard.world, "classifier": shard.classifier, "seed": shard.seed, **repeated}


@dataclass(frozen=True, eq=False)
class Judged(World):
    """A world with its class autoencoders, where there are any."""

    autoencoders: ClassAutoencoders | None = None


class Readers:
    """The explained classifier and the judges of one shard, and what they see in its N originals."""

    def __init__(self, shard: Shard, networks: dict[str, nn.Module], originals: Tensor):
        self.shard, self.networks = shard, networks
        self.before = {name: probabilities(network, originals) for name, network in networks.items()}

    def changes(self, images: Tensor, start: Tensor | None = None, own: bool = False) -> dict[str, np.ndarray]:
        """Of S·N images, N of each strength in turn, by reader: its probability of the target, `p_`; by how much that
        rose, `gain_`; by how much that of the source fell, `drop_`; with `own`, by how much the first rose since the
        method's N images of `start` (none: the originals), `own_gain_`."""
        s, found = len(images) // len(self.shard.ids), {}
        for name, network in self.networks.items():
            after, before = probabilities(network, images), self.before[name].repeat(s, 1)
            for kind, label, sign in (("gain", self.shard.target, 1), ("drop", self.shard.source, -1)):
                rows = label.repeat(s)[:, None]
                found[f"{kind}_{name}"] = sign * (after - before).gather(1, rows)[:, 0].numpy()
            p = after.gather(1, self.shard.target.repeat(s)[:, None])[:, 0]
            found[f"p_{name}"] = p.numpy()
            if own:
                drawn = self.before[name] if start is None else probabilities(network, start)
                found[f"own_gain_{name}"] = (p - drawn.gather(1, self.shard.target[:, None])[:, 0].repeat(s)).numpy()
        return found


def points(shard: Shard, readers: Readers, originals: Tensor) -> pd.DataFrame:
    """Every image of every path: what readers see, and `own_distance` and `own_gain_`, since the method's own
    reconstruction where it starts from one."""
    frames = []
    for method, batch in shard.batches.items():
        s, facts = len(batch.strengths), {"method": method}
        start = originals if batch.reference is None else batch.reference
        seen = readers.changes(by_strength(batch.images), batch.reference, own=True)
        facts |= {"strength": np.repeat(np.array(batch.strengths, dtype=float), len(shard.ids))}
        facts |= {"distance": by_strength(batch.distance).numpy(), "status": batch.status.T.ravel()}
        own = (batch.images - start[:, None]).abs().flatten(2).mean(2)
        frames.append(pd.DataFrame({**keys_of(shard, s), **facts, "own_distance": by_strength(own).numpy(), **seen}))
    return pd.concat(frames, ignore_index=True)


def handed_out(method: str, batch: CounterfactualBatch, level: float) -> Tensor:
    """The image N×C×H×W that somebody gets who asks for one: the first success of a path, else the last image that did
    not fail, else the last; of what is trivial the end, the whole way to the twin."""
    if method in ANCHORS:
        return batch.images[:, -1]
    sound = torch.from_numpy(~np.isin(batch.status, FAILED))
    success = sound & (batch.confidence >= level - ROUNDING)
    last = torch.where(sound.any(1), sound.shape[1] - 1 - sound.flip(1).int().argmax(1), sound.shape[1] - 1)
    return batch.at(torch.where(success.any(1), success.int().argmax(1), last))


def finals(shard: Shard, readers: Readers, originals: datasets.Images, world: Judged, level: float) -> pd.DataFrame:
    """The usual metrics of what every path hands out, and on rendered worlds G1, the twin error; G2, the progress π_j
    along every factor j; G3, the average precision of |x′ − x| (of a map, where the method draws one) for the mask of a
    face's attribute, or of the object of a scene, whose area is chance."""
    changed = {}
    if datasets.world(shard.world).rendered:
        changed = datasets.interventions(shard.world, shard.ids, shard.target)
    frames = []
    for method, batch in shard.batches.items():
        images = handed_out(method, batch, level)
        delta, seen = images - originals.images, probabilities(readers.networks["f"], images)
        facts = {
            "method": method,
            "confidence": seen.gather(1, shard.target[:, None])[:, 0].numpy(),
            "valid": (seen.argmax(1) == shard.target).float().numpy(),
            "l1": perturbation.lp_norm(delta, 1).numpy(),
            "l2": perturbation.lp_norm(delta, 2).numpy(),
            "hoyer": perturbation.hoyer(delta).numpy(),
            "gini": perturbation.gini(delta).numpy(),
        }
        if world.autoencoders is not None:
            facts["im1"] = world.autoencoders.im1(images, shard.source, shard.target).numpy()
        if originals.masks is not None:
            shown = batch.saliency if batch.saliency is not None else perturbation.pixel_change(delta)
            facts |= localisation(shown, originals.masks)
        if changed:
            facts["twin_error"] = ground_truth.twin_error(images, originals.images, changed["label"]).numpy()
        for factor, other in changed.items():
            facts[f"progress_{factor}"] = ground_truth.factor_progress(images, originals.images, other).numpy()
        frames.append(pd.DataFrame({**keys_of(shard), **facts}))
    return pd.concat(frames, ignore_index=True)


def localisation(shown: Tensor, masks: Tensor) -> dict[str, list[float] | np.ndarray]:
    """Average precision of N×H×W maps for the pixels inside of N×H×W masks, and the share of those, which is chance."""
    inside, maps = (masks > 0).flatten(1).numpy(), shown.flatten(1).numpy()
    precision = [average_precision_score(mask, score) for mask, score in zip(inside, maps, strict=True)]
    return {"precision": precision, "area": inside.mean(1)}


def cuts(shard: Shard, readers: Readers, originals: Tensor, level: float, untargeted: list[str]) -> pd.DataFrame:
    """The untargeted table: what every path towards the runner-up hands out (of two classes, that is the other one)
    keeps its most changed pixels alone, so many that they make each of `AREAS`; the `untargeted` methods have areas for
    strengths, and are taken as they are."""
    frames, size = [pd.DataFrame()], originals[0, 0].numel()
    asked = shard.starts == RUNNER_UP or len(datasets.world(shard.world).class_names) == 2
    for method, batch in shard.batches.items():
        if not asked and method not in untargeted:
            continue
        if method in untargeted:
            areas, images = batch.strengths, by_strength(batch.images)
        else:
            whole, areas = handed_out(method, batch, level), AREAS
            counts = [torch.full((len(whole),), round(area * size)) for area in areas]
            images = torch.cat([threshold_to_count(originals, whole, count) for count in counts])
        facts = {"method": method, "area": np.repeat(areas, len(shard.ids))}
        frames.append(pd.DataFrame({**keys_of(shard, len(areas)), **facts, **readers.changes(images)}))
    return pd.concat(frames, ignore_index=True)


def drawings(shard: Shard, readers: Readers) -> pd.DataFrame:
    """Of every method that starts from a drawing of its own: the share of originals and of drawings whose label each
    reader sees."""
    lines = []
    for method, batch in shard.batches.items():
        if batch.reference is None:
            continue
        for name, network in readers.networks.items():
            seen = readers.before[name], probabilities(network, batch.reference)
            shares = {
                key: (p.argmax(1) == shard.source).float().mean().item() for key, p in zip(READ, seen, strict=True)
            }
            facts = {"world": shard.world, "classifier": shard.classifier, "seed": shard.seed, "method": method}
            lines.append({**facts, "reader": name, "n": len(shard.ids), **shares})
    return pd.DataFrame(lines, columns=["world", "classifier", "seed", "method", "reader", "n", *READ])


def realism(shard: Shard, world: Judged, level: float) -> pd.DataFrame:
    """KID of what every method hands out, in the features of a net that judges nothing."""
    handed = {name: handed_out(name, batch, level) for name, batch in shard.batches.items()}
    found = world.kid(shard, {(name, level): world.features(images) for name, images in handed.items()})
    return found.assign(classifier=shard.classifier)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, nargs="+", required=True)
    parser.add_argument("--checkpoints", nargs="+", required=True, help="WORLD=DIR of KIND-SEED.safetensors")
    parser.add_argument("--oracles", type=Path, required=True, help="folder of the judges")
    parser.add_argument("--autoencoders", nargs="*", default=[], help="WORLD=FILE of class autoencoders, for IM1")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--untargeted", nargs="*", default=[], help="methods whose strengths are areas")
    parser.add_argument("--level", type=float, required=True, help="own confidence of a success")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of rows, points, finals ... .parquet")
    args = parser.parse_args()
    folders = paths_by_world(args.checkpoints)
    autoencoders = {world: load_autoencoders(path) for world, path in paths_by_world(args.autoencoders).items()}
    shards = merged([shard for path in args.shards for shard in read_shards(path)])
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    worlds: dict[str, Judged] = {}
    with Progress("measure", total=len(shards), unit="classifiers") as progress:
        for shard in shards:
            if shard.world not in worlds:
                table, more = pd.read_parquet(args.splits / f"{shard.world}.parquet"), autoencoders.get(shard.world)
                worlds[shard.world] = Judged.load(shard.world, table, args.oracles, args.data, autoencoders=more)
            world, originals = worlds[shard.world], datasets.load_ids(shard.world, shard.ids, args.data)
            f = load_checkpoint(folders[shard.world] / f"{shard.classifier}-{args.seed}.safetensors")
            readers = Readers(shard, {"f": f, **world.panel.judges}, originals.images)
            tables["cuts"].append(cuts(shard, readers, originals.images, args.level, args.untargeted))
            progress.advance()
            if shard.starts == RUNNER_UP:
                continue
            tables["rows"].append(measure_shard(shard, world.panel, args.data))
            tables["points"].append(points(shard, readers, originals.images))
            tables["finals"].append(finals(shard, readers, originals, world, args.level))
            tables["drawings"].append(drawings(shard, readers))
            tables["kid"].append(realism(shard, world, args.level))
            judges = judge_accuracy(world.panel, world.pairs)
            tables["gate"].append(oracle_gate(shard, judges, len(world.pairs.ids)))
    for name, parts in tables.items():
        with atomic_path(args.out / f"{name}.parquet") as temporary:
            pd.concat(parts, ignore_index=True).to_parquet(temporary, index=False)


if __name__ == "__main__":
    main()
