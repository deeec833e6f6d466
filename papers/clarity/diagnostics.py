"""Job: what is known of the systems before anything is explained: accuracy, the reconstruction gate, and the quality of
their gradients at the start (Q1 to Q5 of Clarity spec §2.3).

python -m papers.clarity.diagnostics --systems F... --diagnosed '{"mnist": {"p": [1, 5]}}' --splits DIR --out DIR
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.data import datasets
from common.errors import one_line_errors
from common.explain import Streams, log_confidence
from common.files import atomic_path
from common.progress import Progress
from papers.clarity.names import cell_names, cell_of, parse
from papers.clarity.systems import System, Systems, load_systems

PLATEAU = 1e-4  # Q1: a gradient of p_t shorter than this is a plateau
NUDGE = 0.1  # Q4
PARTITIONS = 8  # Q3: random pairs of disjoint ensembles of each size
MAX_COST = 0.10  # of accuracy, that a reconstruction may cost the explained classifier


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine along the last axis; 0 where a vector is 0."""
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp_min(1e-30)


def start_gradients(system: System, z0: Tensor, target: Tensor, means: Tensor, nudge: Tensor) -> dict[str, Tensor]:
    """Per sample, at z0: Q1 the norms of ∇p_t and ∇log p_t and whether the first is a plateau, Q4 the cosine of
    ∇log p_t with itself a nudge N×d away, Q5 its cosine with the way to the class mean of the target."""
    objective, rows = log_confidence(system.log_probabilities, target), torch.arange(len(z0))
    log_p, g = objective(z0, rows)
    _, moved = objective(z0 + NUDGE * nudge, rows)
    norm = g.norm(dim=1)
    return {
        "log_p": log_p,
        "grad_log_p": norm,
        "grad_p": norm * log_p.exp(),
        "plateau": (norm * log_p.exp() < PLATEAU).float(),
        "smoothness": cosine(g, moved),
        "usefulness": cosine(g, means[target] - z0),
    }


def member_gradients(system: System, z0: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """M×N log p_{m,t} and M×N×d gradients of every member, at the temperature of the system."""
    found, rows = [], torch.arange(len(z0))
    for member in range(len(system.ensemble)):
        alone = System("", system.space, system.world, system.vae, system.ensemble.only([member]))
        found.append(log_confidence(alone.log_probabilities, target)(z0, rows))
    return torch.stack([log_p for log_p, _ in found]), torch.stack([g for _, g in found])


def agreement(g: Tensor) -> dict[str, float]:
    """Q2 of M×N×d member gradients: the mean pairwise cosine c, c/(1 − c), and the median over samples of
    SNR = ‖mean_m u_m‖² / mean_m ‖u_m − mean‖² with u_m = g_m/‖g_m‖, which depends on M even between equal members."""
    u = g / g.norm(dim=2, keepdim=True).clamp_min(1e-30)
    m = len(u)
    mean = u.mean(0)
    between = (m * mean.square().sum(1) - u.square().sum(2).mean(0)) / (m - 1)
    c = between.mean().item()
    snr = mean.square().sum(1) / (u - mean).square().sum(2).mean(0)
    return {"cosine": c, "ratio": c / (1 - c), "snr": snr.median().item()}


def mixture_gradient(log_p: Tensor, g: Tensor) -> Tensor:
    """∇log p̄_t N×d of M members from their M×N log-probabilities and M×N×d gradients: Σ_m w_m g_m, w = softmax."""
    return (log_p.softmax(0)[..., None] * g).sum(0)


def convergence(log_p: Tensor, g: Tensor, rng: np.random.Generator) -> dict[int, float]:
    """Q3: mean cosine between the gradients of two disjoint ensembles of size m, by m, over random partitions."""
    found: dict[int, float] = {}
    for m in (1, 2, 3, 5, 10):
        if 2 * m > len(g):
            continue
        cosines = []
        for _ in range(PARTITIONS):
            order = rng.permutation(len(g))
            one, other = (mixture_gradient(log_p[half], g[half]) for half in (order[:m], order[m : 2 * m]))
            cosines.append(cosine(one, other).mean())
        found[m] = torch.stack(cosines).mean().item()
    return found


def hits(system: System, images: Tensor, labels: Tensor) -> np.ndarray:
    """N values, 1 where the system reads the label."""
    with torch.no_grad():
        seen = torch.cat([system(x).argmax(1) for x in images.split(256)])
    return (seen == labels).float().numpy()


def variant_accuracy(variant: Systems, name: str, main: Systems, table: pd.DataFrame, data: Path) -> pd.DataFrame:
    """How the single pixel classifiers of the main VAE read images and their reconstructions by the VAE `name`."""
    everyone = datasets.load(main.world, table, "pairs", data)
    reconstruction = variant.vae.reconstruct(everyone.images)
    lines = []
    for classifier in main.names("p", [1]):
        system = main.system(classifier)
        right = {"correct": hits(system, everyone.images, everyone.labels)}
        right["correct_reconstruction"] = hits(system, reconstruction, everyone.labels)
        lines.append(pd.DataFrame({"world": main.world, "seed": main.seed, "vae": name, **right}))
    return pd.concat(lines, ignore_index=True)


def measure_systems(
    systems: Systems, names: list[str], n: int, table: pd.DataFrame, data: Path, progress: Progress
) -> dict[str, pd.DataFrame]:
    """Tables of one world and training seed, over `names`: accuracy on all images of the pairs split, and gradients at
    the latents of its first n."""
    world, seed = systems.world, systems.seed
    everyone, pairs = (datasets.load(world, table, "pairs", data, k) for k in (None, n))
    target = datasets.targets(table, pairs.ids)
    rng = Streams(seed, pairs.ids, tuple(target.tolist()))
    mean, reconstruction = systems.vae.latents(everyone.images)[0], systems.vae.reconstruct(everyone.images)
    z0 = mean[:n]
    nudge = rng.normal(z0.shape[1:], "nudge")
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in ("accuracy", "gradients", "agreement", "convergence")}
    for name in names:
        system, (space, m) = systems.system(name), cell_of(name)
        facts = {"world": world, "seed": seed, "space": space, "m": m, "classifier": name}

        right = {"correct": hits(system, everyone.images, everyone.labels)}
        right["correct_reconstruction"] = hits(system, reconstruction, everyone.labels)
        found["accuracy"].append(pd.DataFrame({**facts, "image": everyone.ids, **right}))
        progress.advance()
        if space == "schut":  # it searches pixels
            continue
        values = start_gradients(system, z0, target, systems.class_means, nudge)
        columns = {key: value.numpy() for key, value in values.items()}
        found["gradients"].append(pd.DataFrame({**facts, "image": pairs.ids, **columns}))
        if m > 1:
            log_p, g = member_gradients(system, z0, target)
            found["agreement"].append(pd.DataFrame([{**facts, **agreement(g)}]))
            if m == max(len(parse(other)[1]) for other in names if parse(other)[0] == space):
                generator = np.random.Generator(np.random.Philox(key=seed))
                curve = convergence(log_p, g, generator)
                found["convergence"].append(
                    pd.DataFrame([{**facts, "size": size, "cosine": value} for size, value in curve.items()])
                )
    return {name: pd.concat(frames, ignore_index=True) for name, frames in found.items()}


def over_members(table: pd.DataFrame) -> pd.DataFrame:
    """The same with single members, the cell m = 1, averaged; `classifier` then names the cell."""
    keys = ["world", "seed", "space", "m", "image"]
    mean = table.groupby(keys, as_index=False).mean(numeric_only=True)
    return mean.assign(classifier=cell_names(mean))


def reconstruction_gate(accuracy: pd.DataFrame) -> pd.DataFrame:
    """What the reconstructions of each VAE cost the explained pixel classifiers, from whether they read each image and
    each reconstruction; a generator that costs them more than 10 points is inadequate, and not judged."""
    gate = accuracy.groupby(["world", "seed", "vae"], as_index=False)[["correct", "correct_reconstruction"]].mean()
    gate["cost"] = gate["correct"] - gate["correct_reconstruction"]
    return gate.assign(adequate=(gate["cost"] <= MAX_COST + 1e-6).astype(float))  # exactly 10 points pass


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", type=Path, nargs="+", required=True, help="files of systems")
    parser.add_argument("--variants", type=Path, nargs="*", default=[], help="NAME-SEED.safetensors of other VAEs")
    parser.add_argument("--diagnosed", type=json.loads, required=True, help="JSON: ensemble sizes by world and space")
    parser.add_argument("--n", type=int, required=True, help="start images of the gradients")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True, help="folder of NAME.parquet")
    args = parser.parse_args()
    found: dict[str, list[pd.DataFrame]] = {}
    loaded = [load_systems(path) for path in args.systems]
    names = [
        [name for space, sizes in args.diagnosed[systems.world].items() for name in systems.names(space, sizes)]
        for systems in loaded
    ]
    total = sum(map(len, names))
    with Progress("diagnostics", total=total, unit="systems") as progress:
        for systems, mine in zip(loaded, names, strict=True):
            table = pd.read_parquet(args.splits / f"{systems.world}.parquet")
            tables = measure_systems(systems, mine, args.n, table, args.data, progress)
            for name, frame in tables.items():
                found.setdefault(name, []).append(frame)
    tables = {name: pd.concat(frames, ignore_index=True) for name, frames in found.items()}
    tables["accuracy"], tables["gradients"] = (over_members(tables[name]) for name in ("accuracy", "gradients"))
    accuracy = tables["accuracy"]
    read = [accuracy[(accuracy["space"] == "p") & (accuracy["m"] == 1)].assign(vae="")]
    main_of = {(systems.world, systems.seed): systems for systems in loaded}
    for path in args.variants:
        variant = load_systems(path)
        table = pd.read_parquet(args.splits / f"{variant.world}.parquet")
        name = path.stem.removesuffix(f"-{variant.seed}")
        read.append(variant_accuracy(variant, name, main_of[variant.world, variant.seed], table, args.data))
    gate = reconstruction_gate(pd.concat(read, ignore_index=True))
    adequate = gate.loc[gate["vae"] == "", ["world", "seed", "adequate"]]
    tables = {name: table.merge(adequate, on=["world", "seed"]) for name, table in tables.items()}
    tables["reconstruction_gate"] = gate
    for name, table in tables.items():
        with atomic_path(args.out / f"{name}.parquet") as temporary:
            table.to_parquet(temporary, index=False)


if __name__ == "__main__":
    main()
