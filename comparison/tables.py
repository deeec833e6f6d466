"""Job: the tables of the comparison: both outcomes with everything secondary, areas without a target, what a method
says of the factors that f relies on, realism, and the audit of the metrics themselves.

python -m comparison.tables --results DIR --methods '{...}' --out DIR
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from common.errors import one_line_errors
from common.files import write_atomic
from common.results import JUDGES, PANEL
from common.tables import kid_intervals, summary
from common.verdicts import relied_on
from comparison.audit import audit_table
from comparison.cells import CELL
from comparison.entries import Entry, parse_entries

OUTCOMES = [
    "effect", "effect_reached", "effect_own", "within", *(f"effect_{judge}" for judge in PANEL), "honest",
    *(f"honest_{judge}" for judge in JUDGES), "valid", "reached", "change", "precision", "area", "twin_error",
    "progress_label", "l1", "l2", "hoyer", "gini", "im1",
]  # fmt: skip
CAUSE, NO_CAUSE, SHOWN = 0.5, 0.05, 0.1  # reliance of a cause and of none; progress along a factor that is shown (G2)


def outcome_table(paths: pd.DataFrame, entries: dict[str, Entry]) -> pd.DataFrame:
    """A and B of every method with their intervals, and what stands beside them, of classifiers that rely on the target
    factor. Training seeds whose generator costs f too much are not scored, and `adequate` says in which share they are;
    `mark` what a cell is not: a method without a target, one that explains a classifier of its own."""
    share = paths.groupby(CELL)["adequate"].mean().rename("adequate").reset_index()
    scored = relied_on(paths[paths["adequate"] == 1], paths, "reliance")
    table = summary(scored, CELL, [name for name in OUTCOMES if name in paths]).merge(share, on=CELL, how="left")
    for name, entry in entries.items():
        if entry.untargeted:
            off = [column for column in table if column.startswith(("effect", "honest", "reached", "valid"))]
            table.loc[table["method"] == name, off] = np.nan
    return table.assign(mark=table.apply(_mark, axis=1, entries=entries))


def _mark(line: pd.Series, entries: dict[str, Entry]) -> str:
    entry = entries.get(line["method"])
    said = []
    if entry and entry.untargeted:
        said.append("no target: A and B not applicable")
    if entry and entry.own:
        said.append("B of its own classifier")
    if line["adequate"] < 1:
        said.append(f"generator adequate in {line['adequate']:.0%} of training seeds")
    return "; ".join(said)


def area_table(cuts: pd.DataFrame) -> pd.DataFrame:
    """By how much f's and the judges' probability of the source falls where so much of the image may change."""
    return summary(cuts, [*CELL, "area"], ["drop_f", "drop", *(f"drop_{judge}" for judge in PANEL)])


def reliance_table(paths: pd.DataFrame, gate: pd.DataFrame) -> pd.DataFrame:
    """G2: of every factor j the reliance R_j of f, P(f flips | do(j)), and how far a method went along it, mean |π_j|
    with its interval over images."""
    relied = gate.groupby(["world", "classifier"]).mean(numeric_only=True).filter(like="reliance_")
    relied = relied.rename(columns=lambda name: name.removeprefix("reliance_")).rename_axis(columns="factor")
    columns = [name for name in paths if name.startswith("progress_")]
    went = paths.melt([*CELL, "seed", "image"], columns, "factor", "progress")
    went["factor"] = went["factor"].str.removeprefix("progress_")
    went["progress"] = went["progress"].abs().replace(np.inf, np.nan)  # a factor that does not show in an image
    table = summary(went.dropna(subset="progress"), [*CELL, "factor"], ["progress"])
    return table.merge(relied.stack().rename("reliance").reset_index(), on=["world", "classifier", "factor"])


def cause_table(reliance: pd.DataFrame) -> pd.DataFrame:
    """G2 in a line per method: Kendall's τ between R and mean |π|, missed causes (R ≥ .5 and π < .1) and false ones
    (R ≤ .05 and π ≥ .1)."""
    lines = []
    for cell, mine in reliance.groupby(CELL):
        R, shown = mine["reliance"], mine["progress"]
        found = {"factors": len(mine), "tau": kendalltau(R, shown).statistic}
        found["missed"] = int(((R >= CAUSE) & (shown < SHOWN)).sum())
        found["false"] = int(((R <= NO_CAUSE) & (shown >= SHOWN)).sum())
        lines.append({**dict(zip(CELL, cell, strict=True)), **found})
    return pd.DataFrame(lines)


def sanity_table(sanity: pd.DataFrame) -> pd.DataFrame:
    """G5: how far a method goes towards the twin for f and for nets that know nothing, and by how much less it does
    there (`drop`, per image, with its interval); of f also the way back: what is `left` of the change, and f's
    probability of where it came from (`back`)."""
    keys = ["world", "method", "image"]
    of_f = sanity.loc[sanity["how"] == "f", [*keys, "progress"]]
    both = sanity.merge(of_f, on=keys, suffixes=("", "_of_f"))
    both["drop"] = (both["progress_of_f"] - both["progress"]).where(both["how"] != "f")
    metrics = ["progress", "twin_error", "precision", "change", "left", "back", "drop"]
    return summary(both, ["world", "method", "how"], metrics)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder of paths, cuts, kid, sanity .parquet")
    parser.add_argument("--methods", type=json.loads, required=True, help="JSON: the methods of the comparison")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    args = parser.parse_args()
    names = ("paths", "cuts", "kid", "sanity")
    paths, cuts, kid, sanity = (pd.read_parquet(args.results / f"{name}.parquet") for name in names)
    gate = pd.read_csv(args.results / "tables" / "gate.csv")
    entries = {entry.name: entry for entry in parse_entries(args.methods)}
    reliance = reliance_table(paths, gate)
    tables = {
        "outcomes": outcome_table(paths, entries),
        "areas": area_table(cuts),
        "reliance": reliance,
        "causes": cause_table(reliance),
        "audit": audit_table(paths, kid),
        "realism": kid_intervals(kid, CELL),
        "sanity": sanity_table(sanity),
    }
    for name, table in tables.items():
        write_atomic(args.out / f"{name}.csv", table.to_csv(index=False, float_format="%.6g"))


if __name__ == "__main__":
    main()
