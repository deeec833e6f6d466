"""Job: the tables of Clarity (spec §4): the ablation grid R-T1, the baselines R-T2, the gradient diagnostics R-T3.

python -m papers.clarity.tables --results DIR --diagnostics DIR --level 0.9 --out DIR
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import one_line_errors
from common.files import write_atomic
from common.tables import JUDGED, summary
from papers.clarity.names import cell_names

CHANGES = ["im1", "knn", "change", "distance", "dz", "twin_error", "steps"]
LATENTS = ["bald", "latent_norm", "latent_nll", "round_trip", "diverged", "straightness"]
CELL = ["world", "space", "m", "method", "strength"]
MATCHED = ("direction", "class-mean-shift", "random-latent", "twin-latent")
AT_EQUAL_CHANGE = ("direction/change", "class-mean-shift/change")
OWN_THRESHOLD = {
    "revise-plain": [0.5, 0.9], "revise-plain/tuned": [0.5, 0.9], "revise-adam": [0.5, 0.9],
    "revise-adam/tuned": [0.5, 0.9], "latent-ascent": [0.9, 0.99], "schut": [0.9, 0.99],
}  # fmt: skip
ANCHORS = ("identity", "reconstruction", "random", "class-mean", "nearest-real", "twin")


def with_kid(table: pd.DataFrame, kid: pd.DataFrame) -> pd.DataFrame:
    """The table with the KID of each cell's images and its half-sample interval."""
    named = table.assign(classifier=cell_names(table))
    on = ["world", "classifier", "method", "strength"]
    return named.merge(kid, on=on, how="left").drop(columns="classifier")


def grid_table(cells: pd.DataFrame) -> pd.DataFrame:
    """R-T1: every cell of the grid space × ensemble size, at matched latent distances and at its own thresholds; the
    class-mean shift, which needs no classifier, and the trivial anchors among them."""
    searches = ("search", "search/lambda", "plain-p", "plain-log-p")
    chosen = cells["method"].isin([*MATCHED, *AT_EQUAL_CHANGE, *searches, *ANCHORS, "pixel-ascent"])
    return summary(cells[chosen], CELL, [*JUDGED, "valid", "covered", *CHANGES, *LATENTS])


def baseline_table(cells: pd.DataFrame, level: float) -> pd.DataFrame:
    """R-T2: Clarity (L-sample, M = 10) at its threshold and at matched distance beside the baselines with
    published and tuned settings, the class-mean shift and the trivial anchors, on the same pairs."""
    cells = cells[cells["world"] == "mnist"]
    own = [
        (cells["method"] == method) & cells["strength"].isin(thresholds) for method, thresholds in OWN_THRESHOLD.items()
    ]
    clarity = (cells["space"] == "l-sample") & (cells["m"] == 10)
    mine = clarity & (((cells["method"] == "search") & (cells["strength"] >= level)) | cells["method"].isin(MATCHED))
    anchors = clarity & cells["method"].isin(ANCHORS)
    ascent = cells["method"] == "pixel-ascent"
    chosen = np.logical_or.reduce([*own, mine, anchors, ascent])
    return summary(cells[chosen], CELL, [*JUDGED, "valid", "covered", *CHANGES])


def gradient_table(
    gradients: pd.DataFrame, agreement: pd.DataFrame, convergence: pd.DataFrame, cells: pd.DataFrame
) -> pd.DataFrame:
    """R-T3: Q1 to Q5 at the start and Q7 of the search, per space and ensemble size, means over images and seeds.

    Q2 is the agreement of that many members, so compare it at equal M; Q3 the cosine of disjoint halves of all
    members, by their size.
    """
    keys = ["world", "space", "m"]
    start = gradients.groupby(keys).agg(
        n=("image", "nunique"), seeds=("seed", "nunique"), plateau_rate=("plateau", "mean"),
        median_grad_p=("grad_p", "median"), median_grad_log_p=("grad_log_p", "median"),
        smoothness=("smoothness", "mean"), usefulness=("usefulness", "mean"),
    )  # fmt: skip
    members = agreement.groupby(keys)[["cosine", "ratio", "snr"]].mean().add_prefix("member_")
    halves = convergence.pivot_table(index=["world", "space"], columns="size", values="cosine").add_prefix("disjoint_")
    search = cells[cells["method"] == "search"]
    largest = search.groupby("world")["strength"].transform("max")
    paths = search[search["strength"] == largest].groupby(keys)[["straightness", "steps"]].mean()
    return start.join(members).join(paths).reset_index().merge(halves.reset_index(), on=["world", "space"], how="left")


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder of cells.parquet and kid.parquet")
    parser.add_argument("--diagnostics", type=Path, required=True, help="folder of gradients, agreement, convergence")
    parser.add_argument("--level", type=float, required=True, help="Clarity's own threshold")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    args = parser.parse_args()
    cells, kid = (pd.read_parquet(args.results / f"{name}.parquet") for name in ("cells", "kid"))
    cells = cells[(cells["adequate"] == 1) & (cells["space"] != "interaction")]
    gradients, agreement, convergence = (
        pd.read_parquet(args.diagnostics / f"{name}.parquet") for name in ("gradients", "agreement", "convergence")
    )
    gradients, agreement, convergence = (table[table["adequate"] == 1] for table in (gradients, agreement, convergence))
    tables = {
        "rt1-grid": with_kid(grid_table(cells), kid),
        "rt2-baselines": with_kid(baseline_table(cells, args.level), kid),
        "rt3-gradients": gradient_table(gradients, agreement, convergence, cells),
    }
    for name, table in tables.items():
        write_atomic(args.out / f"{name}.csv", table.to_csv(index=False, float_format="%.4f"))


if __name__ == "__main__":
    main()
