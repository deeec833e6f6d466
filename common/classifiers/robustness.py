"""Robust accuracy per norm: which images an adaptive attack in each ball can turn (SVCE spec §5.2).

python -m common.classifiers.robustness --checkpoints F... --splits DIR --recipe '{"n": 200, ...}' --out R --table T
"""

import argparse
import json
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from common.attacks import apgd_l1, apgd_l2, apgd_linf
from common.classifiers.checkpoints import load_checkpoint
from common.data import datasets
from common.errors import VceError, one_line_errors
from common.explain import Objective, Streams
from common.files import atomic_path
from common.progress import Progress
from common.statistics import paired_bootstrap

ATTACKS = {"l1": apgd_l1, "l2": apgd_l2, "linf": apgd_linf}


def margin(model: nn.Module, y: Tensor) -> Objective:
    """The objective max_{k≠y} z_k − z_y and its gradient: 0 or more exactly where the label is not the arg-max."""

    def value_and_grad(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            z, label = model(x), y[rows, None]
            L = z.scatter(1, label, -torch.inf).amax(1) - z.gather(1, label)[:, 0]
            (g,) = torch.autograd.grad(L.sum(), x)
        return L.detach(), g

    return value_and_grad


def withstands(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    norm: str,
    epsilon: float,
    K: int,
    z: Tensor,
    batch_size: int = 128,
) -> Tensor:
    """N booleans: still read as its label after K iterations of Auto-PGD on the margin in the ball of `norm`.

    Images N×C×H×W in [0, 1]; z is a normal draw of their shape. An image that falls leaves the batch. Raises VceError
    for a norm other than l1, l2, linf.
    """
    if norm not in ATTACKS:
        raise VceError(f"robustness: norm {norm!r} is unknown; choose from {', '.join(ATTACKS)}")
    falls = []
    for rows in torch.arange(len(images)).split(batch_size):
        ascent = ATTACKS[norm](images[rows], margin(model, labels[rows]), epsilon, z[rows], K, stop_at=0.0)
        falls.append(ascent.L >= 0)
    return ~torch.cat(falls)


def measure_robustness(
    world: str, kind: str, seed: int, classifier: nn.Module, sample: datasets.Images, radii: dict, K: int
) -> pd.DataFrame:
    """One row per image: 1 where it is read as its label, unperturbed (`accurate`), under each norm of `radii`
    (`robust_<norm>`) and under all of them (`robust_union`). An image that is misread counts as fallen. Raises VceError
    for an empty sample."""
    x, y = sample.images, sample.labels
    if not len(x):
        raise VceError(f"robustness: {world} has no images to attack; raise its split `pairs`")
    z = Streams(seed, sample.ids, tuple(y.tolist())).normal(x.shape[1:], "robustness")
    with torch.no_grad():
        accurate = classifier(x).argmax(1) == y
    found, union = {"accurate": accurate}, accurate.clone()
    for norm, epsilon in radii.items():
        stands = accurate.clone()
        if accurate.any():
            stands[accurate] = withstands(classifier, x[accurate], y[accurate], norm, epsilon, K, z[accurate])
        found[f"robust_{norm}"] = stands
        union &= stands
    found["robust_union"] = union
    facts = {"world": world, "classifier": kind, "seed": seed, "image": sample.ids}
    return pd.DataFrame({**facts, **{name: value.float().numpy() for name, value in found.items()}})


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per world, classifier and measure: the mean over images and seeds with its 95 % interval."""
    measures = [name for name in rows if name == "accurate" or name.startswith("robust_")]
    lines = []
    for (world, kind), cell in rows.groupby(["world", "classifier"]):
        for measure in measures:
            if cell[measure].notna().any():
                found = paired_bootstrap(cell.pivot(index="seed", columns="image", values=measure))
                facts = {"world": world, "classifier": kind, "measure": measure, "n": found.n}
                seeds = " ".join(f"{value:.3f}" for value in found.by_seed)
                lines.append({**facts, "share": found.mean, "low": found.low, "high": found.high, "seeds": seeds})
    return pd.DataFrame(lines)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, nargs="+", required=True, help="WORLD/KIND-SEED.safetensors")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--recipe", type=json.loads, required=True, help="JSON: n, iterations, radii by norm by world")
    parser.add_argument("--out", type=Path, required=True, help="one row per image")
    parser.add_argument("--table", type=Path, required=True, help="shares with intervals, as CSV")
    args = parser.parse_args()
    tables, n = [], args.recipe["n"]
    with Progress("robustness", total=len(args.checkpoints), unit="classifiers") as progress:
        for path in args.checkpoints:
            world, (kind, seed) = path.parent.name, path.stem.rsplit("-", 1)
            table = pd.read_parquet(args.splits / f"{world}.parquet")
            sample = datasets.load(world, table, "pairs", args.data, n)
            radii, K = args.recipe["radii"][world], args.recipe["iterations"]
            tables.append(measure_robustness(world, kind, int(seed), load_checkpoint(path), sample, radii, K))
            progress.advance()
    rows = pd.concat(tables, ignore_index=True)
    with atomic_path(args.out) as temporary:
        rows.to_parquet(temporary, index=False)
    with atomic_path(args.table) as temporary:
        summary(rows).to_csv(temporary, index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
