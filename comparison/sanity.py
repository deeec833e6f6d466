"""Job: does a method read f, and does it find the way back? (MEASUREMENT G5, on one training seed.)

python -m comparison.sanity --world faces-smile --kind l2at --n 40 --methods '{...}' --shards F... --checkpoints DIR
    --prepared DIR --splits DIR --level 0.9 --seed 0 --folder DIR --out F

Every method explains two nets that know nothing of the class, on images that it explained for f: f with new random
weights, and f trained on shuffled labels. A method whose changes still go towards the exact twin reads its generator or
the image, not f (Adebayo et al. 2018). Then it explains what it handed out for f back to where it came from.
"""

import argparse
import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from common.batches import Shard, read_shards
from common.classifiers.base import Classifier
from common.classifiers.checkpoints import checkpoint_facts
from common.classifiers.training import Recipe, train
from common.data import datasets
from common.errors import VceError, one_line_errors
from common.explain import CounterfactualBatch
from common.files import atomic_path
from common.metrics import ground_truth, perturbation
from common.progress import Progress
from comparison.bench import Bench, load_benches
from comparison.entries import Entry, ask, parse_entries
from comparison.explain import STARTS
from comparison.measure import handed_out, localisation, merged

KNOWING_NOTHING = ("untrained", "shuffled")
OTHER = 3000  # added to the seed: f itself began with the weights and the batches of its own


def knowing_nothing(
    how: str, classifier: Classifier, training: datasets.Images, recipe: Recipe, seed: int
) -> Classifier:
    """f with new random weights, `untrained`, or trained from them on its images with permuted labels, `shuffled`."""
    net = deepcopy(classifier).requires_grad_(True)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed + OTHER)
        for module in net.network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        labels = training.labels[torch.randperm(len(training.labels))]
    if how == "shuffled":
        train(net, training.images, labels, recipe, seed + OTHER)
    return net.eval().requires_grad_(False)


def towards_twin(batch: CounterfactualBatch, images: Tensor, pairs: datasets.Images, twin: Tensor) -> dict:
    """G1 and G3 of N handed-out images, and how much they changed."""
    delta = images - pairs.images
    shown = batch.saliency if batch.saliency is not None else perturbation.pixel_change(delta)
    return {
        "twin_error": ground_truth.twin_error(images, pairs.images, twin).numpy(),
        "progress": ground_truth.factor_progress(images, pairs.images, twin).numpy(),
        "precision": localisation(shown, pairs.masks)["precision"],
        "change": delta.abs().flatten(1).mean(1).numpy(),
    }


def way_back(
    entry: Entry, bench: Bench, pairs: datasets.Images, images: Tensor, target: Tensor, level: float, callback
) -> dict:
    """Of N handed-out images explained back to their labels: ‖x″ − x‖₂ / ‖x′ − x‖₂, 1 for staying, and f's probability
    of the label at the end of the way."""
    start = replace(pairs, images=images, labels=target)
    back = handed_out(entry.name, ask(entry, bench, start, pairs.labels, callback)[0], level)
    went = (images - pairs.images).flatten(1).norm(dim=1)
    left = (back - pairs.images).flatten(1).norm(dim=1) / torch.where(went > 0, went, torch.nan)
    with torch.no_grad():
        p = bench.classifier(back).softmax(1).gather(1, pairs.labels[:, None])[:, 0]
    return {"left": left.numpy(), "back": p.numpy()}


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", required=True, help="a rendered world")
    parser.add_argument("--kind", required=True, help="the classifier that is f")
    parser.add_argument("--n", type=int, required=True, help="how many of the explained images")
    parser.add_argument("--methods", type=json.loads, required=True, help="JSON: the methods of the comparison")
    parser.add_argument("--shards", type=Path, nargs="+", required=True, help="what they made of f")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder of KIND-SEED.safetensors")
    parser.add_argument("--prepared", type=Path, required=True, help="folder made by comparison.train")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--level", type=float, required=True, help="own confidence of a success")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="folder for what methods train for these nets")
    parser.add_argument("--out", type=Path, required=True, help="the table")
    args = parser.parse_args()
    table = pd.read_parquet(args.splits / f"{args.world}.parquet")
    (f,) = load_benches(args.world, [args.kind], args.seed, args.checkpoints, table, args.data, args.prepared)
    shards = merged([shard for path in args.shards for shard in read_shards(path)])
    mine = (args.world, args.kind, STARTS)
    (shard,) = (found for found in shards if (found.world, found.classifier, found.starts) == mine)
    pairs = datasets.load_ids(args.world, shard.ids[: args.n], args.data)
    target = shard.target[: args.n]
    twin = datasets.twins(args.world, pairs.ids)[torch.arange(len(target)), target]
    entries = [entry for entry in parse_entries(args.methods) if entry.name in shard.batches]
    if not entries:
        raise VceError(f"{args.world}/{args.kind}: the shards hold none of the methods; see refused.csv")
    recipe = Recipe(**checkpoint_facts(args.checkpoints / f"{args.kind}-{args.seed}.safetensors")["recipe"])
    nets = [
        replace(f, kind=how, classifier=knowing_nothing(how, f.classifier, f.training, recipe, args.seed))
        for how in KNOWING_NOTHING
    ]
    frames: list[pd.DataFrame] = []

    def note(how: str, entry: Entry, found: dict) -> None:
        facts = {"world": args.world, "classifier": args.kind, "how": how, "method": entry.name, "seed": args.seed}
        frames.append(pd.DataFrame({**facts, "image": list(pairs.ids), **found}))

    total = len(entries) * (1 + len(nets))
    with Progress("sanity", total=total, unit="methods") as progress:
        for entry in entries:
            batch = part_of(shard, entry.name, args.n)
            images = handed_out(entry.name, batch, args.level)
            found = towards_twin(batch, images, pairs, twin)
            if not entry.untargeted:
                found |= way_back(entry, f, pairs, images, target, args.level, progress)
            note("f", entry, found)
            progress.advance()
        shutil.copytree(f.folder, args.folder, dirs_exist_ok=True)
        nets = [replace(net, folder=args.folder) for net in nets]
        for entry in entries:
            if args.world in entry.prepare and not entry.shared:
                entry.prepare_all(nets, lambda: progress({}))
        for net in nets:
            for entry in entries:
                batch, _ = ask(entry, net, pairs, target, progress)
                note(net.kind, entry, towards_twin(batch, handed_out(entry.name, batch, args.level), pairs, twin))
                progress.advance()
    with atomic_path(args.out) as temporary:
        pd.concat(frames, ignore_index=True).to_parquet(temporary, index=False)


def part_of(shard: Shard, method: str, n: int) -> CounterfactualBatch:
    """A method's batch of the first n images of a shard."""
    batch = shard.batches[method]
    cut = {name: value[:n] for name, value in vars(batch).items() if name != "strengths" and value is not None}
    return replace(batch, **cut)


if __name__ == "__main__":
    main()
