"""Job: the tables of DISC: the ladder with both of its controls, what is made progressive, students, robustness,
hypotheses.

python -m papers.disc.tables --results DIR --out DIR
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import one_line_errors
from common.files import write_atomic
from common.tables import JUDGED, summary

LADDER = [
    "confidence", "valid", "diverged", *JUDGED, "distance", "own_distance", "localisation", "localisation_own",
    "high_frequency", "factor_progress", "twin_error", "drift", "knn", "steps",
]  # fmt: skip
LEVEL = 0.9  # of the first success that a cell at equal change is compared with
CELL = ["world", "starts", "method", "strength"]


def ladder_table(cells: pd.DataFrame, kid: pd.DataFrame) -> pd.DataFrame:
    """Every cell at every strength: matched confidence (τ = .9), the whole budget (τ = 1) and equal change (a@b) in one
    table; realism (KID of the whole set) beside what the panel sees."""
    ladder = summary(cells, CELL, LADDER).merge(kid.drop(columns="n"), on=CELL, how="left")
    return ladder.assign(change_ratio=change_ratio(cells, ladder))


def change_ratio(cells: pd.DataFrame, ladder: pd.DataFrame) -> pd.Series:
    """Of every line a@b the median of the change of a ÷ that of b at its first success, query by query: 1 is equal."""
    keys = ["world", "starts", "seed", "image"]
    success = cells[np.isclose(cells["strength"], LEVEL)].set_index([*keys, "method"])["distance"]
    found = {}
    for (world, starts, method), cell in cells[cells["method"].str.contains("@")].groupby(CELL[:3]):
        if "@own" not in method and "@p" not in method:
            other = method.partition("@")[2]
            wanted = success.xs(other, level="method").reindex(pd.MultiIndex.from_frame(cell[keys]))
            found[world, starts, method] = float(np.median(cell["distance"].to_numpy() / wanted.to_numpy()))
    return ladder[CELL[:3]].apply(tuple, axis=1).map(found)


def progressive_table(ladder: pd.DataFrame) -> pd.DataFrame:
    """The readings of "progressive" beside each other, P-A without a mark."""
    screened = ladder["starts"].eq("screening") | ladder["world"].eq("faces-bald")
    return ladder[screened & ladder["method"].str.startswith("inr+duq")]


def student_table(students: pd.DataFrame) -> pd.DataFrame:
    """What the students of every set know: `correct` of untouched real images, `agrees` with the classifier; how many
    images taught them, and how far those were from their queries."""
    keys = ["world", "method", "strength"]
    sizes = students.groupby(keys)[["used", "distance"]].mean().reset_index()
    return summary(students, keys, ["correct", "agrees"]).merge(sizes, on=keys)


def robustness_table(survival: pd.DataFrame, corrupted: pd.DataFrame) -> pd.DataFrame:
    """R-b: share of corruptions that finished counterfactuals survive; R-a: the panel's word on counterfactuals of
    corrupted queries (`corrupted`) and of the clean ones."""
    each = sorted(name for name in survival if name.startswith("survives_"))
    finished = summary(survival, CELL, ["survives", *each]).assign(protocol="R-b")
    from_corrupted = summary(corrupted, ["world", "starts", "method"], ["corrupted", "clean"]).assign(protocol="R-a")
    return pd.concat([finished, from_corrupted], ignore_index=True)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder of cells, kid, students ... .parquet")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    args = parser.parse_args()
    names = ("cells", "kid", "students", "survival", "corrupted", "hypotheses")
    cells, kid, students, survival, corrupted, hypotheses = (
        pd.read_parquet(args.results / f"{name}.parquet") for name in names
    )
    ladder = ladder_table(cells, kid)
    tables = {
        "ladder": ladder,
        "progressive": progressive_table(ladder),
        "students": student_table(students),
        "robustness": robustness_table(survival, corrupted),
        "hypotheses": summary(
            hypotheses,
            ["world", "kind", "strength"],
            ["requested", "reached", "exact", "reader", "rank", "half_exact", "half_reader", "met", "reliance"],
        ),
    }
    for name, table in tables.items():
        write_atomic(args.out / f"{name}.csv", table.to_csv(index=False, float_format="%.4f"))


if __name__ == "__main__":
    main()
