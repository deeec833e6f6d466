"""Job: rows of the long table from all shards, the oracle gate, and what the shards cost.

python -m papers.svce.measure --shards B... --splits S... --panel NAME=F... --out rows.parquet --gate G --cost C
"""

import argparse
import json
from pathlib import Path

import pandas as pd

from common.batches import read_shard
from common.classifiers.oracles import Panel
from common.data import datasets
from common.errors import one_line_errors
from common.files import atomic_path
from common.measure import measure_shard, oracle_gate
from common.progress import Progress
from common.results import write_rows


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


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, nargs="+", required=True)
    parser.add_argument("--splits", type=Path, nargs="+", required=True, help="split tables, named after their worlds")
    parser.add_argument("--panel", nargs="+", required=True, help="NAME=CHECKPOINT of each trained judge")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True, help="the long table")
    parser.add_argument("--gate", type=Path, required=True, help="accuracy of every judge beside the classifier's")
    parser.add_argument("--cost", type=Path, required=True, help="seconds and overhead, which are not deterministic")
    args = parser.parse_args()
    panel = Panel.load({name: Path(path) for name, path in (item.split("=", 1) for item in args.panel)})
    splits = {path.stem: pd.read_parquet(path) for path in args.splits}
    rows, gates = [], []
    with Progress("measure", total=2 * len(args.shards), unit="shards") as progress:
        for path in args.shards:
            shard = read_shard(path)
            pairs = datasets.load(shard.world, splits[shard.world], "pairs", args.data)
            gates.append(oracle_gate(shard, panel, pairs))
            progress.advance()
        # one panel per world: cells that are compared need the same judges
        passes = pd.concat(gates).groupby(["world", "judge"])["passes"].all()
        for path in args.shards:
            shard = read_shard(path)
            judges = passes[shard.world]
            rows.append(measure_shard(shard, panel.only(set(judges[judges].index)), args.data))
            progress.advance()
    with atomic_path(args.cost) as temporary:
        cost_table(args.shards).to_parquet(temporary, index=False)
    with atomic_path(args.gate) as temporary:
        pd.concat(gates).to_csv(temporary, index=False, float_format="%.4f")
    write_rows(pd.concat(rows, ignore_index=True), args.out)


if __name__ == "__main__":
    main()
