"""Job: rows of the long table from all shards, the oracle gate, the tables of single methods, and what the shards cost.

python -m papers.svce.measure --shards B... --splits DIR --oracles DIR --out rows.parquet --tables DIR --cost C
"""

import argparse
import json
from pathlib import Path

import pandas as pd
import torch

from common.batches import Shard, read_shard
from common.classifiers.oracles import Panel
from common.data import datasets
from common.errors import one_line_errors
from common.files import atomic_path
from common.measure import judge_accuracy, judged, measure_shard, oracle_gate
from common.progress import Progress
from common.results import PANEL, write_rows
from papers.svce.explain import ROUNDS

CELL = ["world", "classifier", "method", "strength"]


def cost_table(shards: list[Path]) -> pd.DataFrame:
    """One row per shard and method: seconds, gradient evaluations, and overhead = seconds ÷ (evaluations × the model's
    own pass), and the commit that made it."""
    rows = []
    for path in shards:
        cost = json.loads(path.with_suffix(".cost.json").read_text())
        for method, seconds in cost["seconds"].items():
            evaluations = cost["evaluations"][method]
            own = evaluations * cost["pass_seconds"]
            facts = {"shard": f"{path.parent.name}/{path.stem}", "method": method, "evaluations": evaluations}
            passes = {"pass_seconds": cost["pass_seconds"], "overhead": seconds / own}
            rows.append({**facts, "seconds": seconds, **passes, "commit": cost["commit"]})
    return pd.DataFrame(rows)


def minimal_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Counterfactuals of least norm (table F of the spec): per confidence threshold the share that reaches it, the mean
    norms of those, and what letting finished samples leave the batch saved: passes run for a sample ÷ the passes of
    the same rounds without a stop. A sample above its threshold to begin with needs one pass either way."""
    lines = []
    minimal = rows[rows["method"].str.startswith("minimal/")]
    for keys, cell in minimal.groupby(CELL):
        reached = cell[cell["confidence"] >= keys[3] * (1 - 1e-4)]
        passes = int(keys[2].rsplit("/k", 1)[1]) + 1
        norms = reached[["l1", "l1.5", "l2"]].mean()
        # a sample that never reaches its threshold is given up after the first round
        rounds = (reached["l2"] > 0).sum() * ROUNDS + len(cell) - len(reached)
        run, asked = cell["forward"].sum(), len(cell) + passes * rounds
        spent = {"passes": run / len(cell), "passes_without_stop": asked / len(cell), "saved": 1 - run / asked}
        facts = {"n": len(cell), "reached": len(reached) / len(cell), "oracle_valid": reached["oracle_valid"].mean()}
        lines.append({**dict(zip(CELL, keys, strict=True)), **facts, **norms, **spent})
    return pd.DataFrame(lines)


def diversity_rows(shard: Shard) -> list[dict]:
    """Diversity over start draws (table G of the spec): the mean l1 distance between the images of two draws ÷ their
    mean l1 distance to the original: 0 when the start does not matter, 2 when changes share no pixel."""
    lines = []
    draws: dict[str, list[str]] = {}
    for method in shard.batches:
        draws.setdefault(method.split("/draw")[0], []).append(method)
    for method, names in draws.items():
        if len(names) < 2:
            continue
        strengths = set.intersection(*(set(shard.batches[name].strengths) for name in names))
        for strength in sorted(strengths):
            batches = [shard.batches[name] for name in names]
            images = torch.stack([b.images[:, b.strengths.index(strength)] for b in batches], 1)
            change = torch.stack([b.distance[:, b.strengths.index(strength)] for b in batches], 1)
            pairs = torch.combinations(torch.arange(len(names)))
            between = (images[:, pairs[:, 0]] - images[:, pairs[:, 1]]).abs().flatten(2).mean(2)
            spread = between.mean(1) / change.mean(1).clamp_min(1e-9)
            facts = {"world": shard.world, "classifier": shard.classifier, "method": method, "strength": strength}
            size = {"n": len(spread), "draws": len(names)}
            lines.append({**facts, "seed": shard.seed, **size, "spread": spread.mean().item()})
    return lines


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, nargs="+", required=True)
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--oracles", type=Path, required=True, help="folder of the judges")
    parser.add_argument("--panels", nargs="+", required=True, help="WORLD=WORLD whose panel judges it")
    parser.add_argument("--ungated", nargs="*", default=[], help="control classifiers that no judge has to match")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True, help="the long table")
    parser.add_argument("--tables", type=Path, required=True, help="folder of oracle_gate, minimal and diversity .csv")
    parser.add_argument("--cost", type=Path, required=True, help="seconds and overhead, which are not deterministic")
    args = parser.parse_args()
    panel_of = dict(item.split("=", 1) for item in args.panels)
    panels = {
        world: Panel.load({name: args.oracles / f"{world}-{name}.safetensors" for name in PANEL})
        for world in set(panel_of.values())
    }
    rows, gates, diversity = [], [], []
    shards = [read_shard(path) for path in args.shards]
    accuracies: dict[str, tuple[dict[str, float], int]] = {}
    with Progress("measure", total=len(shards), unit="shards") as progress:
        for shard in shards:
            if shard.world not in accuracies:
                table = pd.read_parquet(args.splits / f"{shard.world}.parquet")
                pairs = datasets.load(shard.world, table, "pairs", args.data)
                accuracies[shard.world] = judge_accuracy(panels[panel_of[shard.world]], pairs), len(pairs.ids)
            gates.append(oracle_gate(shard, *accuracies[shard.world]))
            rows.append(measure_shard(shard, panels[panel_of[shard.world]], args.data))
            diversity += diversity_rows(shard)
            progress.advance()
    gate = pd.concat(gates, ignore_index=True).drop_duplicates(["world", "classifier", "seed", "judge"])
    everything = judged(pd.concat(rows, ignore_index=True), gate[~gate["classifier"].isin(args.ungated)])
    tables = {"oracle_gate": gate, "minimal": minimal_table(everything), "diversity": pd.DataFrame(diversity)}
    for name, table in tables.items():
        with atomic_path(args.tables / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, float_format="%.4f")
    with atomic_path(args.cost) as temporary:
        cost_table(args.shards).to_parquet(temporary, index=False)
    write_rows(everything, args.out)


if __name__ == "__main__":
    main()
