"""Job: from the labels before and after every edit to scores, validity and leakage.

python -m papers.contrastive.tables --units F... --out DIR
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import one_line_errors
from common.files import write_atomic
from common.metrics.causal import SCORES, bounds, estimate, tabulate
from common.statistics import wilson

CELL = ["seed", "regime", "attribute", "decision"]
EDITED = ("clamp_others", "free")  # regimes in which somebody asks for something


def contexts(cell: pd.DataFrame) -> Iterator[tuple[str, str, np.ndarray]]:
    """Everybody, by intention to treat; those whose edit reached its target, per protocol; and everybody with one value
    of a label that is neither attribute nor decision: protocol, context, and who it is."""
    everybody = np.ones(len(cell), dtype=bool)
    yield "itt", "", everybody
    if cell["regime"].iloc[0] not in EDITED:
        return
    yield "per protocol", "", cell["reached"].to_numpy(bool)
    taken = {f"before_{cell[part].iloc[0]}" for part in ("attribute", "decision")}
    for column in cell.filter(regex="^before_").columns.difference(taken):
        for value in (0, 1):
            yield "itt", f"{column.removeprefix('before_')} = {value}", (cell[column] == value).to_numpy()


def score_table(units: pd.DataFrame) -> pd.DataFrame:
    """NEC, SUF, NESUF and the association of every attribute and decision, with intervals over latents, the units that
    each is conditional on, and the sharp bounds that need no monotonicity."""
    lines = []
    for keys, cell in units.groupby(CELL):
        for protocol, context, where in contexts(cell):
            n = tabulate(*(cell[name] for name in ("x", "o", "e")), where=where)
            sharp = bounds(n) if n.sum() else {}
            for score in SCORES:
                found = vars(estimate(score, n))
                low, high = (float(end) for end in sharp.get(score, (np.nan, np.nan)))
                line = {"protocol": protocol, "context": context, "score": score, **found}
                lines.append(dict(zip(CELL, keys, strict=True)) | line | {"bound_low": low, "bound_high": high})
    return pd.DataFrame(lines)


def validity_table(units: pd.DataFrame) -> pd.DataFrame:
    """How often an edit gives its attribute the value that it had not, both ways, with Wilson intervals; where nobody
    asked, how often it changes all the same."""
    lines = []
    for keys, cell in units.groupby([*CELL, "x"]):
        hits, n = int(cell["reached"].sum()), len(cell)
        low, high = wilson(hits, n)
        found = {"share": hits / n, "low": low, "high": high, "n": n, "length": cell["length"].mean()}
        lines.append(dict(zip([*CELL, "from"], keys, strict=True)) | found)
    return pd.DataFrame(lines)


def leakage_table(units: pd.DataFrame) -> pd.DataFrame:
    """How often a label that nobody wanted to change does, by regime and edited attribute, with Wilson intervals."""
    lines = []
    for keys, cell in units[units["regime"].isin((*EDITED, "random"))].groupby(CELL):
        for label in sorted(set(units["decision"]) - {keys[2]}):
            hits, n = int((cell[f"before_{label}"] != cell[f"after_{label}"]).sum()), len(cell)
            low, high = wilson(hits, n)
            line = {"label": label, "share": hits / n, "low": low, "high": high, "n": n}
            lines.append(dict(zip(CELL, keys, strict=True)) | line)
    return pd.DataFrame(lines)


def rate_table(units: pd.DataFrame) -> pd.DataFrame:
    """How often each label is seen in the population of the generator: what all scores are relative to."""
    images = units.drop_duplicates("image").filter(regex="^before_")
    table = images.mean().rename("share").rename_axis("label").reset_index()
    return table.assign(label=table["label"].str.removeprefix("before_"), n=len(images))


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=Path, nargs="+", required=True, help="the tables of all training seeds")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    args = parser.parse_args()
    units = pd.concat([pd.read_parquet(path) for path in args.units], ignore_index=True)
    made = {"scores": score_table, "validity": validity_table, "leakage": leakage_table, "rates": rate_table}
    for name, make in made.items():
        write_atomic(args.out / f"{name}.csv", make(units).to_csv(index=False, float_format="%.4f"))


if __name__ == "__main__":
    main()
