"""Job: measure the shards of one training seed: long-table rows with every judge's vote and what DISC's claims need,
KID of every set of counterfactuals, corrupted queries, hypotheses, and the judges beside the classifier.

python -m papers.disc.measure --shards F... --hypotheses F --systems DIR --splits DIR --oracles DIR --out DIR
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import Tensor

from common.batches import Shard, read_shards
from common.classifiers.checkpoints import load_checkpoint
from common.classifiers.companion import Companion, load_companion
from common.classifiers.training import accuracy
from common.data import datasets, faces
from common.errors import one_line_errors
from common.explain import CounterfactualBatch
from common.files import atomic_path
from common.judged_world import World
from common.matching import ROUNDING
from common.measure import by_strength, judge_accuracy, measure_shard, oracle_gate
from common.metrics import ground_truth, perturbation
from common.progress import Progress
from papers.disc.explain import FIT
from papers.disc.hypotheses import Hypotheses, read_hypotheses

MIN_RECONSTRUCTED = 0.9  # accuracy that a judge must keep on what a prior drew
MOST_LOST = 0.1  # accuracy that the drawings may cost the classifier
HALF_NYQUIST = 0.25  # cycles per pixel
CONFIDENCES = ("iso", "lso", "statistics", "inr", "dip")  # methods whose strengths are thresholds τ


def high_frequency(delta: Tensor) -> Tensor:
    """Share of the energy of a change N×C×H×W above half the Nyquist frequency, its mean left out; NaN for none."""
    energy = torch.fft.fft2(delta).abs().square().sum(1)
    energy[:, 0, 0] = 0
    vertical, horizontal = (torch.fft.fftfreq(size) for size in delta.shape[2:])
    high = (vertical[:, None].square() + horizontal.square()).sqrt() > HALF_NYQUIST
    return (energy * high).flatten(1).sum(1) / energy.flatten(1).sum(1)


def drift(images: Tensor, originals: Tensor, changed: dict[str, Tensor]) -> Tensor:
    """Mean over the factors j that nobody asked for of |π_j − π_label π_j(twin)|: how far N images went along the exact
    intervention on j, beyond what the way to the true twin takes them anyway (who goes bald loses hair, whatever its
    colour). A factor that does not show in an image is left out of its mean. `changed` holds N×C×H×W images by factor,
    the twin as `label`."""
    twin = changed["label"]
    label, drifts = ground_truth.factor_progress(images, originals, twin), []
    for name, other in changed.items():
        if name != "label":
            own, shared = (ground_truth.factor_progress(x, originals, other) for x in (images, twin))
            drifts.append((own - label * shared).abs())
    return torch.stack(drifts).nan_to_num(torch.nan, posinf=torch.nan).nanmean(0)


def more_metrics(
    shard: Shard, method: str, batch: CounterfactualBatch, changed: dict[str, Tensor], data: Path
) -> dict[str, Tensor]:
    """What DISC's claims add to the long table for a path, strength by strength.

    `valid`: the own confidence reached τ. `localisation`: share of the change inside the mask ÷ the mask's share of the
    image (1 is chance); `localisation_own` of the change of the method's own reconstruction. `drift`: see `drift`;
    `changed` are the images under every intervention, none in a world without.
    """
    s = len(batch.strengths)
    x, originals = by_strength(batch.images), datasets.load_ids(shard.world, shard.ids, data)
    start = originals.images.repeat(s, 1, 1, 1)
    delta = x - start
    reference = originals.images if batch.reference is None else batch.reference
    own = x - reference.repeat(s, 1, 1, 1)
    missing = torch.full((len(x),), torch.nan)
    found = {
        "valid": missing,
        "diverged": torch.from_numpy((batch.status.T.ravel() == "diverged").astype(np.float32)),
        "own_distance": own.abs().flatten(1).mean(1),
        "high_frequency": high_frequency(delta),
        "localisation": missing,
        "localisation_own": missing,
        "drift": missing,
    }
    if method.startswith(CONFIDENCES) and "@" not in method:
        tau = torch.tensor(batch.strengths).repeat_interleave(len(shard.ids))
        # a threshold is met up to the rounding of its logarithm; τ = 1 asks for the last iterate
        found["valid"] = torch.where(tau < 1, (by_strength(batch.confidence) >= tau - ROUNDING).float(), torch.nan)
    if originals.masks is not None:
        masks = originals.masks.repeat(s, 1, 1)
        area = masks.flatten(1).mean(1)
        found["localisation"] = perturbation.on_mask(delta, masks) / area
        found["localisation_own"] = perturbation.on_mask(own, masks) / area
    if changed:
        found["drift"] = drift(x, start, {name: images.repeat(s, 1, 1, 1) for name, images in changed.items()})
    return found


def measured_shard(shard: Shard, world: World) -> tuple[pd.DataFrame, dict[tuple[str, float], Tensor]]:
    """Long-table rows of a shard with what the claims and the features add, and the features of every image set."""
    rows, n, more, features = measure_shard(shard, world.panel, world.data), len(shard.ids), [], {}
    rendered = datasets.world(shard.world).rendered
    changed = datasets.interventions(shard.world, shard.ids, shard.target) if rendered else {}
    for method, batch in shard.batches.items():
        s = len(batch.strengths)
        seen = world.features(by_strength(batch.images))
        features |= {(method, float(strength)): seen[n * j : n * (j + 1)] for j, strength in enumerate(batch.strengths)}
        values = more_metrics(shard, method, batch, changed, world.data)
        values["knn"] = world.neighbour_distance(seen, shard.target.repeat(s)).float()
        more.append(pd.DataFrame({name: value.numpy() for name, value in values.items()}))
    rows = pd.concat([rows, pd.concat(more, ignore_index=True)], axis=1)
    return rows.assign(starts=shard.starts), features


def judge_gate(shard: Shard, world: World, companion: Companion) -> pd.DataFrame:
    """Each judge beside the classifier: its accuracy on real images, and on what a prior drew of the explained ones
    before it was steered (`reconstructed`). A judge passes with no more than 3 points below the classifier on the
    first, and at least .9 on the second; `adequate` says that the drawings cost the classifier itself no more than 10
    points."""
    prior = "dip+duq" if shard.starts == "dip" else "inr+duq"
    originals, drawn = datasets.load_ids(shard.world, shard.ids, world.data), shard.batches[prior].reference
    reconstructed = judge_accuracy(world.panel, replace(originals, images=drawn))
    gate = oracle_gate(shard, judge_accuracy(world.panel, world.pairs), len(world.pairs.ids))
    cost = accuracy(companion, originals.images, originals.labels) - accuracy(companion, drawn, originals.labels)
    gate = gate.assign(
        starts=shard.starts, reconstructed=gate["judge"].map(reconstructed), adequate=float(cost <= MOST_LOST + 1e-6)
    )
    return gate.assign(passes=gate["passes"] & (gate["reconstructed"] >= MIN_RECONSTRUCTED - 1e-6))  # exactly .9 passes


def hypothesis_rows(found: Hypotheses, folder: Path, data: Path) -> pd.DataFrame:
    """One row per image and hypothesis: what was `requested` of the output and how much it changed (`reached`); of an
    age, in units of the wrinkles' depth, what the exact reader (`exact`: progress towards the twin × its depth) and an
    independent regressor (`reader`) see, and the regressor's own `reliance` on the depth.

    `rank` is Spearman's ρ of an image between requested and exact change, or of a graded hypothesis the output's; `met`
    says that the output is within .05 of it, `half_…` by how much a reader sees more than half of it. What the prior
    could not draw counts as not changed.
    """
    n, size = found.requested.shape
    originals = datasets.load_ids(found.world, found.ids, data).images
    flat, start = found.images.flatten(0, 1), originals.repeat_interleave(size, 0)
    names = ("exact", "reader", "reliance")
    values = {name: torch.full((n, size), torch.nan) for name in names}
    if found.kind == "regression":
        factors = datasets.face_factors(found.ids)
        twins = datasets.twins(found.world, found.ids)
        old, young = twins[:, 1], twins[:, 0]
        depth = faces.twin(factors, "old", 1).wrinkles - faces.twin(factors, "old", 0).wrinkles
        progress = ground_truth.factor_progress(flat, start, old.repeat_interleave(size, 0)).view(n, size)
        own, reader = (load_checkpoint(folder / f"{name}-{found.seed}.safetensors") for name in ("age", "age-reader"))
        with torch.no_grad():
            seen = reader(flat)[:, 0].view(n, size) - reader(originals)
            slope = (own(old) - own(young))[:, 0] / depth
        values = {"exact": progress * depth[:, None], "reader": seen, "reliance": slope[:, None].expand(n, size)}
    requested = found.requested if found.kind == "graded" else found.requested - found.before
    reached = found.after if found.kind == "graded" else found.after - found.before
    rank = spearman(requested, reached if found.kind == "graded" else values["exact"])
    numbers = {"requested": requested, "reached": reached, "rank": rank[:, None].expand(n, size), **values}
    numbers["met"] = ((reached - requested).abs() <= 0.05).float()
    numbers |= {f"half_{name}": values[name] - requested / 2 for name in ("exact", "reader")}
    undrawn = (found.error > FIT)[:, None].expand(n, size)
    for name, nothing in {"met": 0.0, "rank": 0.0, "half_exact": -requested / 2, "half_reader": -requested / 2}.items():
        numbers[name] = torch.where(undrawn & numbers[name].isfinite(), nothing, numbers[name])
    rows = pd.DataFrame({name: value.flatten().numpy() for name, value in numbers.items()})
    strength = np.tile(np.arange(size, dtype=float), n)  # the place of the hypothesis, whatever its float
    image = np.repeat(np.array(found.ids, dtype=object), size)
    facts = {"world": found.world, "kind": found.kind, "seed": found.seed, "classifier": found.kind}
    return rows.assign(**facts, method=found.kind, strength=strength, image=image)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation along the rows of two N×L tables, ties with their mean rank: N values in [−1, 1], 0 where there
    is no order, because all values are equal or one is no number."""
    ranks = [rankdata(values.numpy(), axis=1) for values in (a, b)]
    x, y = (torch.from_numpy(rank - rank.mean(1, keepdims=True)) for rank in ranks)
    return ((x * y).sum(1) / (x.square().sum(1) * y.square().sum(1)).sqrt()).nan_to_num(0.0).float()


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, nargs="+", required=True, help="those of one training seed")
    parser.add_argument("--hypotheses", type=Path, nargs="*", default=[], help="those of the same seed, if any")
    parser.add_argument("--systems", type=Path, required=True, help="folder of companions and regressors")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--oracles", type=Path, required=True, help="folder of the judges")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True, help="folder of rows, corrupted, kid, gate, hypotheses")
    args = parser.parse_args()
    shards = [shard for path in args.shards for shard in read_shards(path)]
    tables = {name: pd.read_parquet(args.splits / f"{name}.parquet") for name in {shard.world for shard in shards}}
    worlds = {name: World.load(name, table, args.oracles, args.data) for name, table in tables.items()}
    rows, corrupted, kid, gate = [], [], [], []
    with Progress("measure", total=len(shards), unit="shards") as progress:
        for shard in shards:
            world = worlds[shard.world]
            if shard.starts.startswith("corrupted"):
                corrupted.append(measure_shard(shard, world.panel, args.data).assign(starts=shard.starts))
            else:
                table, features = measured_shard(shard, world)
                rows.append(table)
                kid.append(world.kid(shard, features))
                if shard.starts in ("pairs", "dip"):
                    companion = load_companion(args.systems / f"{shard.world}-{shard.seed}.safetensors")
                    gate.append(judge_gate(shard, world, companion))
            progress.advance()
    asked = [found for path in args.hypotheses for found in read_hypotheses(path)]
    hypotheses = [hypothesis_rows(found, args.systems, args.data) for found in asked]
    outputs = {"rows": rows, "corrupted": corrupted, "kid": kid, "gate": gate, "hypotheses": hypotheses}
    for name, parts in outputs.items():
        with atomic_path(args.out / f"{name}.parquet") as temporary:
            table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
            table.to_parquet(temporary, index=False)


if __name__ == "__main__":
    main()
