"""Job: from the measured rows of all training seeds to the tables that the claims are about.

python -m papers.disc.cells --measured DIR... --costs F... --level 0.9 --out DIR --cost F
"""

import argparse
import inspect
from pathlib import Path

import numpy as np
import pandas as pd

from common.digest import closure
from common.errors import one_line_errors
from common.files import atomic_path
from common.matching import ROUNDING
from common.measure import judged
from common.results import COLUMNS, JUDGES, write_rows
from common.tables import cost_table, kid_intervals
from papers.disc.explain import explain

CONTRACT = {"images", "source", "target", "classifier", "auxiliary", "rng", "strengths", "callback"}
SETTINGS = {"prior", "layers", "lambdas", "reading", "schedule", "bound", "fitted"}
DATA = ("common.data", "common.batches", "common.tensors", "common.classifiers")  # rooms that read data or weights
VOTES = ("valid", *(f"oracle_{judge}" for judge in JUDGES))
HELD = 0.6  # of the panel's word on clean queries that corrupted ones have to keep (spec §7, C6)


def premise() -> pd.DataFrame:
    """C7 as numbers that have to be 0: parameters of the counterfactual function beyond classifier, companion, image,
    target and settings, and modules that it can reach and that read data, or hold a trained generator."""
    reachable = closure("papers.disc.explain")
    generators = [name for name in reachable if name.startswith("common.generators.")]
    counts = {
        "parameters": len(set(inspect.signature(explain).parameters) - CONTRACT - SETTINGS),
        "data modules": sum(name.startswith(DATA) for name in reachable),
        "trained generators": len(set(generators) - {"common.generators.priors"}),
    }
    return pd.DataFrame([{"quantity": name, "count": float(count)} for name, count in counts.items()])


def failed(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the votes on what failed, a query that the prior could not draw, set to 0: nobody is convinced."""
    votes = {name: rows[name].mask(rows["status"] == "diverged", 0.0) for name in VOTES if name in rows}
    return rows.assign(**votes)


def survival(rows: pd.DataFrame) -> pd.DataFrame:
    """R-b: per finished counterfactual the share of corruptions and severities that it survives, and of each corruption
    apart."""
    keys = ["world", "starts", "seed", "method", "strength", "image"]
    mean = rows.groupby(keys)["survives"].mean().reset_index()
    apart = rows.pivot_table(index=keys, columns="corruption", values="survives", aggfunc="mean").add_prefix(
        "survives_"
    )
    return mean.merge(apart.reset_index(), on=keys)


def corrupted_queries(rows: pd.DataFrame, cells: pd.DataFrame, level: float) -> pd.DataFrame:
    """R-a: per query, method and corruption whether the counterfactual of the corrupted query at its own `level` is
    oracle-valid (`corrupted`; never reached is 0), the same of the clean query, and `held` = corrupted − .6 clean."""

    def first(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
        table = table[np.isclose(table["strength"], level)]
        success = (table["confidence"] >= level - ROUNDING).astype(float)
        return table.assign(valid=success * table["oracle_valid"])[[*keys, "valid"]]

    keys = ["world", "seed", "method", "image"]
    clean = first(cells[cells["starts"] == "pairs"], keys).rename(columns={"valid": "clean"})
    found = first(rows, [*keys, "starts"]).rename(columns={"valid": "corrupted"}).merge(clean, on=keys)
    every = found.groupby(keys)[["corrupted", "clean"]].mean().reset_index().assign(starts="corrupted")
    table = pd.concat([found, every], ignore_index=True)
    return table.assign(held=table["corrupted"] - HELD * table["clean"])


def together(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """One table of all training seeds; what is explained at screening size exists for one of them."""
    return pd.concat([table for table in tables if len(table)], ignore_index=True)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, nargs="+", required=True, help="a folder per training seed")
    parser.add_argument("--costs", type=Path, nargs="+", required=True, help="what each file of shards cost")
    parser.add_argument("--level", type=float, required=True, help="own confidence at which methods are matched")
    parser.add_argument("--out", type=Path, required=True, help="folder of rows, cells, survival ... .parquet")
    parser.add_argument("--cost", type=Path, required=True, help="seconds and overhead, which are not deterministic")
    args = parser.parse_args()
    gate, rows, kid, corrupted, survives, students, hypotheses = (
        together([pd.read_parquet(folder / f"{name}.parquet") for folder in args.measured])
        for name in ("gate", "rows", "kid", "corrupted", "survival", "students", "hypotheses")
    )
    # of worlds without interventions nobody knows what F relies on
    known = {"adequate": ("adequate", "min"), "reliance": ("reliance_label", "min")}
    facts = gate.groupby(["world", "classifier", "seed"]).agg(**known).reset_index()
    cells, corrupted = judged(failed(rows), gate), judged(failed(corrupted), gate)
    survives["survives"] = survives["survives"].mask(survives["status"] == "diverged", 0.0)
    outputs = {
        "cells": cells,
        "survival": survival(survives),
        "corrupted": corrupted_queries(corrupted, cells, args.level),
        "students": students,
        "hypotheses": hypotheses,
        "kid_sets": kid,
        "kid": kid_intervals(kid, ["world", "starts", "method", "strength", "n"]),
        "premise": premise(),
    }
    for name, table in outputs.items():
        if name not in ("hypotheses", "kid", "premise"):
            table = table.drop(columns="classifier", errors="ignore").merge(facts, on=["world", "seed"], how="left")
        with atomic_path(args.out / f"{name}.parquet") as temporary:
            table.to_parquet(temporary, index=False)
    with atomic_path(args.out / "tables" / "oracle_gate.csv") as temporary:
        gate.to_csv(temporary, index=False, float_format="%.4f")
    with atomic_path(args.cost) as temporary:
        cost_table(args.costs, ["pass_seconds", "prior_seconds"]).to_parquet(temporary, index=False)
    # a screening explains some methods again, on fewer images
    again = cells["starts"] != "pairs"
    named = cells.assign(method=cells["method"].mask(again, cells["method"] + "/" + cells["starts"]))
    write_rows(named[list(COLUMNS)], args.out / "rows.parquet")


if __name__ == "__main__":
    main()
