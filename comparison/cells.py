"""Job: from what was measured of all training seeds to the tables that the claims are about.

python -m comparison.cells --measured DIR... --costs F... --level 0.9 --out DIR --cost F
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import one_line_errors
from common.files import atomic_path
from common.matching import At, read_all
from common.measure import judged, passing_judges
from common.results import COLUMNS, JUDGES, PANEL, write_rows
from comparison.effect import mean_gain, mean_gain_reached
from comparison.explain import STARTS
from comparison.measure import FAILED

CELL = ["world", "classifier", "method"]
PATH = [*CELL, "seed", "image", "source", "target"]
LOST = 0.1  # accuracy of f that a generator's drawings may cost
MIN_RECONSTRUCTED = 0.9  # accuracy that a judge must keep on them


def horizon(rows: pd.DataFrame) -> pd.Series:
    """D of each world: the median mean |x* − x| of the twins, else of the nearest real images of the target class."""
    ends = rows[rows["strength"] == 1].groupby(["world", "method"])["distance"].median().unstack("method")
    nearest = ends["nearest-real"]
    return ends["twin"].fillna(nearest) if "twin" in ends else nearest


def panel_change(table: pd.DataFrame, gate: pd.DataFrame) -> pd.DataFrame:
    """The mean over the trained judges that pass their gate, of `gain_`, `own_gain_`, `drop_` and `p_`, as far as they
    are there: columns `gain` ... The reader of exact twins has no probabilities."""
    kinds = [kind for kind in ("gain", "own_gain", "drop", "p") if f"{kind}_{PANEL[0]}" in table]
    table = table.assign(**dict.fromkeys(kinds, np.nan))
    for world, mine in table.groupby("world"):
        judges = sorted(passing_judges(gate, world))
        for kind in kinds:
            table.loc[mine.index, kind] = mine[[f"{kind}_{judge}" for judge in judges]].mean(axis=1)
    return table


def effects(points: pd.DataFrame, D: pd.Series) -> pd.DataFrame:
    """Outcome A of every path: `effect`, without interpolation `effect_reached`, since the method's own drawing
    `effect_own`, and by each judge alone; `within`, whether an image of the path lies within D at all. Images that
    failed are left out."""
    failed = points["status"].isin(FAILED)
    points = points.assign(**{name: points[name].mask(failed) for name in ("distance", "own_distance")})
    found = []
    for (world, *_), cell in points.groupby(CELL):
        ordered = cell.sort_values([*PATH, "strength"])
        size = ordered["strength"].nunique()

        def paths(column: str, ordered=ordered, size=size) -> np.ndarray:
            return ordered[column].to_numpy(float).reshape(-1, size)

        d, own = paths("distance"), paths("own_distance")
        outcome = {
            "effect": mean_gain(d, paths("gain"), D[world]),
            "effect_reached": mean_gain_reached(d, paths("gain"), D[world]),
            "effect_own": mean_gain(own, paths("own_gain"), D[world]),
            **{f"effect_{judge}": mean_gain(d, paths(f"gain_{judge}"), D[world]) for judge in PANEL},
        }
        outcome["within"] = (d <= D[world]).any(1).astype(float)
        found.append(ordered[PATH].iloc[::size].reset_index(drop=True).assign(**outcome, horizon=D[world]))
    return pd.concat(found, ignore_index=True)


def honesty(rows: pd.DataFrame, level: float) -> pd.DataFrame:
    """Outcome B of every path, `honest`: is its first image at own confidence `level` oracle-valid? Never reached is 0,
    and an image that failed reaches nothing. By each judge alone too; `reached`, and the change at which it was."""
    votes = ["oracle_valid", *(f"oracle_{judge}" for judge in JUDGES)]
    found = []
    for cell, mine in rows.groupby(CELL):
        confidence = mine["confidence"].mask(mine["status"].isin(FAILED), 0.0)
        reached = mine.assign(reached=1.0, confidence=confidence)
        tables = read_all(reached, [*votes, "reached", "distance"], At(first_success=level))
        columns = pd.concat({name: table.stack(future_stack=True) for name, table in tables.items()}, axis=1)
        facts = dict(zip(CELL, cell, strict=True))
        found.append(columns.reset_index().assign(**facts))
    table = pd.concat(found, ignore_index=True).rename(columns=lambda name: name.replace("oracle_", "honest_"))
    table = table.rename(columns={"honest_valid": "honest", "distance": "change"})
    return table.assign(change=table["change"].where(table["reached"] == 1))


def adequacy(drawings: pd.DataFrame) -> pd.DataFrame:
    """By world, classifier, method and seed: whether the drawings that a method starts from cost f no more than `LOST`
    of its accuracy; what they cost stands beside it. A method that draws nothing needs no gate."""
    mine = drawings[drawings["reader"] == "f"]
    lost = mine["accuracy"] - mine["reconstructed"]
    return mine[[*CELL, "seed"]].assign(lost=lost, adequate=(lost <= LOST + 1e-6).astype(float))


def second_gate(gate: pd.DataFrame, drawings: pd.DataFrame, enough: pd.DataFrame) -> pd.DataFrame:
    """The gate, closed to judges that see the label in less than `MIN_RECONSTRUCTED` of the drawings of an adequate
    generator: who cannot read drawings cannot judge them."""
    read = drawings.merge(enough[enough["adequate"] == 1], on=[*CELL, "seed"])
    worst = read.groupby(["world", "reader"])["reconstructed"].min()
    blind = worst.index[worst < MIN_RECONSTRUCTED - 1e-6]
    return gate.assign(passes=gate["passes"] & ~pd.MultiIndex.from_frame(gate[["world", "judge"]]).isin(blind))


def together(folders: list[Path], name: str) -> pd.DataFrame:
    """One table of all training seeds."""
    return pd.concat([pd.read_parquet(folder / f"{name}.parquet") for folder in folders], ignore_index=True)


def costs(files: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """What every method took, with its overhead: seconds ÷ (evaluations × f's own forward and backward pass); what
    methods say of themselves; the cells that were refused, with the reason."""
    spent, facts, refused = [], [], []
    for path in files:
        cost = json.loads(path.read_text())
        for cell in cost["cells"]:
            key, said = {name: cell[name] for name in CELL} | {"seed": cost["seed"]}, cell.pop("facts")
            if cell["starts"] == STARTS:
                facts += [{**key, "fact": name, "value": value} for name, value in said.items()]
            spent.append({**cell, "seed": cost["seed"], "commit": cost["commit"]})
        refused += [{"cell": cell, "seed": cost["seed"], "reason": reason} for cell, reason in cost["refused"].items()]
    table = pd.DataFrame(spent)
    overhead = table["seconds"] / (table["evaluations"] * table["pass_seconds"]).where(table["evaluations"] > 0)
    return (
        table.assign(overhead=overhead),
        pd.DataFrame(facts, columns=[*CELL, "seed", "fact", "value"]),
        pd.DataFrame(refused, columns=["cell", "seed", "reason"]),
    )


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, nargs="+", required=True, help="a folder per training seed")
    parser.add_argument("--costs", type=Path, nargs="+", required=True, help="what each file of shards cost")
    parser.add_argument("--level", type=float, required=True, help="own confidence of a success")
    parser.add_argument("--out", type=Path, required=True, help="folder of rows, paths, cuts ... .parquet")
    parser.add_argument("--cost", type=Path, required=True, help="seconds and overhead, which are not deterministic")
    args = parser.parse_args()
    gate, drawn = together(args.measured, "gate"), together(args.measured, "drawings")
    enough = adequacy(drawn)
    gate = second_gate(gate, drawn, enough)
    rows = judged(together(args.measured, "rows"), gate)
    points, cuts = (panel_change(together(args.measured, name), gate) for name in ("points", "cuts"))
    reliance = gate.reindex(columns=["world", "classifier", "reliance_label"]).groupby(["world", "classifier"]).mean()
    reliance = reliance.rename(columns={"reliance_label": "reliance"}).reset_index()
    strata = rows[[*PATH, "stratum"]].drop_duplicates(PATH)
    paths = effects(points, horizon(rows))
    for table in (honesty(rows, args.level), together(args.measured, "finals"), strata):
        shared = [name for name in PATH if name in table]
        paths = paths.merge(table, on=shared, how="left", validate="one_to_one")
    paths = paths.merge(enough, on=[*CELL, "seed"], how="left").fillna({"adequate": 1.0})
    paths = paths.merge(reliance, on=["world", "classifier"], how="left")
    spent, facts, refused = costs(args.costs)
    kid = together(args.measured, "kid")
    for name, table in {"paths": paths, "points": points, "cuts": cuts, "kid": kid}.items():
        with atomic_path(args.out / f"{name}.parquet") as temporary:
            table.to_parquet(temporary, index=False)
    for name, table in {"gate": gate, "drawings": drawn, "facts": facts, "refused": refused}.items():
        with atomic_path(args.out / "tables" / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, float_format="%.4f")
    with atomic_path(args.cost) as temporary:
        spent.to_parquet(temporary, index=False)
    write_rows(rows[list(COLUMNS)], args.out / "rows.parquet")


if __name__ == "__main__":
    main()
