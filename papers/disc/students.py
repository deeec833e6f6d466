"""Job: do counterfactuals teach the classifier's boundary (DISC spec §6.1, claim C5)? Students, trained on them alone.

python -m papers.disc.students --shards F... --companions DIR --splits DIR --recipe JSON --test 500 --out F.parquet

B-1 trains on counterfactuals with their target labels, B-2 (`METHOD/b2`) on the queries with the classifier's labels as
well; students are tested on real images that nobody explained. Targets are 1 − label, so the flips are deterministic. A
pixel attack teaches too, once it is large enough: what counts lies above its curve at equal change (`pixel-ascent@…`).
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.batches import Shard
from common.classifiers.base import Classifier
from common.classifiers.checkpoints import build
from common.classifiers.companion import load_companion
from common.classifiers.training import Recipe, train
from common.data import datasets
from common.errors import VceError, one_line_errors
from common.explain import CounterfactualBatch
from common.files import atomic_path
from common.progress import Progress
from common.scales import parse_recipe
from papers.disc.corruptions import predictions, read_from

BOTH = "/b2"  # ends the names of sets that hold the queries too
CURVE, ORIGIN, REAL = "pixel-ascent", "identity", "real"


@dataclass(frozen=True)
class StudentSet:
    """What a student learns from: images M×C×H×W in [0, 1], labels M; `distance` is the mean |x̄ − x| of those that are
    counterfactuals."""

    images: Tensor
    labels: Tensor
    distance: float


def student_sets(
    shard: Shard, queries: Tensor, methods: Sequence[str], levels: Sequence[float], both: Sequence[str] = ()
) -> dict[tuple[str, float], StudentSet]:
    """The training sets of a shard by (name, strength), given its N×C×H×W original images, the `queries`.

    `real` holds the queries with the classifier's labels (the ceiling); the set of one of the `methods` its images at
    one strength with their targets, B-1; `<method>/b2`, for the methods in `both`, those and the queries, B-2. Images
    that diverged or were skipped are left out, so that a set may be small, or empty. Methods whose strengths are
    confidences enter at `levels`, `twin` at its full change, all others at every strength. Raises VceError for a method
    that the shard lacks, or one that has none of the levels.
    """
    lacking = ", ".join(sorted({*methods, *both} - set(shard.batches)))
    if lacking:
        raise VceError(f"--methods: {lacking} is not in the shard {shard.world}-{shard.seed}; explain or leave it out")
    sets = {(REAL, 0.0): StudentSet(queries, shard.source_prediction, 0.0)}
    for method in dict.fromkeys((*methods, *both)):
        batch = shard.batches[method]
        for j in _positions(method, batch, levels):
            made = torch.from_numpy(np.isin(batch.status[:, j], ("ok", "not_flipped")))
            images, labels = batch.images[made, j], shard.target[made]
            strength, distance = float(batch.strengths[j]), batch.distance[made, j].mean().item()
            sets[method, strength] = StudentSet(images, labels, distance)
            if method in both:
                labels = torch.cat([shard.source_prediction, labels])
                sets[method + BOTH, strength] = StudentSet(torch.cat([queries, images]), labels, distance)
    return sets


def _positions(method: str, batch: CounterfactualBatch, levels: Sequence[float]) -> list[int]:
    """The positions on a method's path that students learn from."""
    everything = list(range(len(batch.strengths)))
    if method == "twin":
        return everything[-1:]
    if method in (CURVE, ORIGIN) or "@" in method:
        return everything
    found = [j for j in everything if batch.strengths[j] in levels]
    if not found:
        has = ", ".join(f"{strength:g}" for strength in batch.strengths)
        raise VceError(f"--levels: {method} has none of them; its strengths are {has}")
    return found


def train_students(
    x: Tensor, y: Tensor, class_names: tuple[str, ...], recipe: Recipe, seeds: Sequence[int]
) -> list[Classifier]:
    """One student per seed on M×C×H×W images and M labels, normalised by their own channels, in eval mode; the same
    seed gives every set the same initial weights. Raises VceError for an unknown architecture or a loss that is not
    finite."""
    students = []
    for seed in seeds:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            student = build(
                recipe.architecture, name=f"student-{seed}", image_shape=tuple(x.shape[1:]), class_names=class_names
            )
        channels = x.transpose(0, 1).flatten(1)
        student.mean.data = channels.mean(1).view(1, -1, 1, 1)
        student.std.data = channels.std(1).clamp_min(1e-3).view(1, -1, 1, 1)
        train(student, x, y, recipe, seed)
        students.append(student)
    return students


def student_rows(
    sets: dict[tuple[str, float], StudentSet],
    test: datasets.Images,
    own: Tensor,
    class_names: tuple[str, ...],
    recipe: Recipe,
    seeds: Sequence[int],
    progress: Progress,
) -> pd.DataFrame:
    """One row per set and test image: the shares of students that are `correct` and that agree with the classifier
    (`agrees`; `own` are its N classes of the test images), and the set's `used` images and `distance`. An empty set has
    no student: its shares are no number."""
    frames = []
    for (method, strength), data in sets.items():
        correct = agrees = np.full(len(test.ids), np.nan)
        if len(data.labels):
            students = train_students(data.images, data.labels, class_names, recipe, seeds)
            seen = torch.stack([predictions(student, test.images) for student in students])
            correct, agrees = ((seen == truth).double().mean(0).numpy() for truth in (test.labels, own))
        facts = {"method": method, "strength": strength, "image": np.array(test.ids, dtype=object)}
        measured = {"correct": correct, "agrees": agrees, "used": len(data.labels), "distance": data.distance}
        frames.append(pd.DataFrame({**facts, **measured}))
        progress.advance()
    return pd.concat(frames, ignore_index=True)


def pixel_curve(table: pd.DataFrame) -> pd.DataFrame:
    """What pixel attacks of equal change teach: the rows of `table` that are none of `pixel-ascent`, `identity` and
    `real`, as `pixel-ascent@<method>`, with the shares linearly interpolated between the sets of pixel ascent at their
    `distance`.

    The curve begins at `identity` where there is one and is held beyond its ends. Sets with the queries, `/b2`, are
    compared with a curve of such sets, and where there is no curve there are no rows. `strength`, `used` and `distance`
    stay those of the set that is compared.
    """
    parts = []
    for (_, _, second), cell in table.groupby(["world", "seed", table["method"].str.endswith(BOTH)]):
        protocol = BOTH if second else ""
        attack, origin = CURVE + protocol, ORIGIN + protocol
        points = cell[cell["method"].isin([attack, origin]) & (cell["used"] > 0)]
        if not (points["method"] == attack).any():
            continue
        key = ["distance", "method", "strength"]  # pivoted rows come in the order of distance
        shares = {name: points.pivot(index=key, columns="image", values=name) for name in ("correct", "agrees")}
        along = shares["correct"].index.get_level_values("distance").to_numpy()
        compared = cell[~cell["method"].isin([attack, origin, REAL])]
        for (method, _), rows in compared.groupby(["method", "strength"]):
            at = rows["distance"].iloc[0]
            weights = np.array([np.interp(at, along, point) for point in np.eye(len(along))])
            read = {name: (weights @ share)[rows["image"]].to_numpy() for name, share in shares.items()}
            parts.append(rows.assign(method=f"{CURVE}@{method}", **read))
    return pd.concat(parts, ignore_index=True) if parts else table.head(0)


def untouched(shard: Shard, table: pd.DataFrame, n: int, data: Path) -> datasets.Images:
    """The first `n` images of the pairs split that the shard does not explain. Raises VceError when they are fewer."""
    rest = table[~table["id"].isin(shard.ids)]
    images = datasets.load(shard.world, rest, "pairs", data, n)
    if len(images.ids) < n:
        raise VceError(f"{shard.world}: {len(images.ids)} pairs are left for --test {n}; raise the split `pairs`")
    return images


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, nargs="+", required=True, help="those of pairs are read")
    parser.add_argument("--companions", type=Path, required=True, help="folder of WORLD-SEED.safetensors")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--recipe", type=json.loads, required=True, help="JSON: fields of Recipe for the students")
    parser.add_argument("--seeds", type=int, nargs="+", required=True, help="seeds of the students of each set")
    parser.add_argument("--methods", nargs="+", required=True, help="methods whose counterfactuals teach")
    parser.add_argument("--levels", type=float, nargs="+", required=True, help="τ of the counterfactuals")
    parser.add_argument("--both", nargs="*", default=[], help="methods whose sets are also joined with the queries")
    parser.add_argument("--test", type=int, default=500, help="number of test images")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True, help="table of all rows, .parquet")
    args = parser.parse_args()
    recipe, shards, tables = parse_recipe(Recipe, args.recipe), read_from(args.shards, ("pairs",)), []
    sets = []
    for shard in shards:
        queries = datasets.load_ids(shard.world, shard.ids, args.data).images
        sets.append(student_sets(shard, queries, args.methods, args.levels, args.both))
    with Progress("students", total=sum(map(len, sets)), unit="sets") as progress:
        for shard, mine in zip(shards, sets, strict=True):
            companion = load_companion(args.companions / f"{shard.world}-{shard.seed}.safetensors")
            test = untouched(shard, pd.read_parquet(args.splits / f"{shard.world}.parquet"), args.test, args.data)
            own, names = predictions(companion, test.images), datasets.world(shard.world).class_names
            # no two classifiers share their students
            seeds = [len(args.seeds) * shard.seed + k for k in args.seeds]
            rows = student_rows(mine, test, own, names, recipe, seeds, progress)
            tables.append(rows.assign(world=shard.world, seed=shard.seed))
    table = pd.concat(tables, ignore_index=True)
    with atomic_path(args.out) as temporary:
        pd.concat([table, pixel_curve(table)], ignore_index=True).to_parquet(temporary, index=False)


if __name__ == "__main__":
    main()
