"""Job: from the measured rows of all training seeds to the cells that the claims are about.

python -m papers.clarity.cells --measured DIR... --costs F... --diagnostics DIR --level 0.9 --out DIR
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import one_line_errors
from common.files import atomic_path
from common.measure import judged
from common.results import COLUMNS, PANEL, write_rows
from common.tables import JUDGED, cost_table, kid_intervals
from papers.clarity.factors import factor_shares, plateau_auc
from papers.clarity.names import cell_names

CLOSE = 0.8  # a correct image of lower confidence is close to its boundary
MIN_RECONSTRUCTED = 0.9  # accuracy that a judge must keep on reconstructions
KEYS = ["world", "space", "m", "classifier", "method", "strength", "seed", "image"]
PICTURE = (*JUDGED, "im1", "knn", "distance", "twin_error", "factor_progress")  # metrics of the picture alone
CONFIDENCES = ("search", "plain", "revise", "latent-ascent", "schut")  # methods whose strengths are thresholds τ


def passing_gate(gate: pd.DataFrame) -> pd.DataFrame:
    """The gate with the second condition on `passes`: at least .9 on reconstructions, mean over training seeds."""
    mean = gate.groupby(["world", "judge"])["reconstructed"].transform("mean")
    return gate.assign(passes=gate["passes"] & (mean >= MIN_RECONSTRUCTED - 1e-6))  # exactly .9 passes


def reached(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with `valid`: the own confidence reached the threshold τ of a search; `covered`: and most of the panel
    agree; `diverged`."""
    searched = rows["method"].str.startswith(CONFIDENCES)
    # a threshold is met up to the rounding of its logarithm
    valid = (rows["confidence"] >= rows["strength"] - 1e-6).astype(float).where(searched)
    diverged = (rows["status"] == "diverged").astype(float)
    return rows.assign(diverged=diverged, valid=valid, covered=valid * rows["oracle_valid"])


def cells_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with single members, the cells of M = 1, averaged: one row per cell, method, strength, seed and image.
    `classifier` names the cell."""
    rows = rows.assign(classifier=cell_names(rows))
    numbers = [column for column in rows.select_dtypes("number") if column not in (*KEYS, "source", "target")]
    return rows.groupby(KEYS)[numbers].mean().reset_index()


def at_equal_change(rows: pd.DataFrame, levels: dict[str, list[float]]) -> pd.DataFrame:
    """The directions read at equal change of the picture, ‖x′ − g(z_0)‖₁ = `levels` of their world, instead of equal
    ‖z − z_0‖, of which a latent that the decoder ignores may swallow a part: method `direction/change`.

    Metrics are interpolated along the path from the reconstruction; a path that ends short of a level keeps its last.
    """
    facts = ["world", "space", "m", "classifier", "seed", "image", "reliance"]
    metrics = [name for name in PICTURE if name in rows]
    followed = rows["method"].isin(["direction", "class-mean-shift"])
    # the reconstructions of a variant's VAE are not those of the main one
    paths = rows[followed & ~rows["space"].str.contains(":")].sort_values([*facts, "method", "strength"])
    reconstructions = rows[rows["method"] == "reconstruction"].set_index(["world", "seed", "image"])[metrics]
    lines = []
    length = paths.groupby([*facts, "method"], dropna=False)["strength"].transform("size")
    for (world, _), here in paths.groupby(["world", length]):
        path = here.drop_duplicates([*facts, "method"])
        change = here["change"].to_numpy().reshape(len(path), -1)
        values = here[metrics].to_numpy(float).reshape(*change.shape, -1)
        start = reconstructions.loc[pd.MultiIndex.from_frame(path[["world", "seed", "image"]])].to_numpy(float)
        change = np.concatenate([np.zeros((len(path), 1)), np.maximum.accumulate(change, 1)], 1)
        values = np.concatenate([start[:, None], values], 1)
        for level in levels[world]:
            found = np.column_stack([along(change, values[..., k], level) for k in range(len(metrics))])
            read = path[facts].assign(method=path["method"] + "/change", strength=level)
            taken = np.minimum(level, change[:, -1])
            lines.append(read.assign(change=taken, **dict(zip(metrics, found.T, strict=True))))
    return pd.concat(lines, ignore_index=True)


def vae_of(names: pd.Series) -> pd.Series:
    """The variant of the VAE that a space or cell is of, empty for the main one."""
    return names.where(names.str.contains(":"), ":").str.split(":").str[0]


def along(change: np.ndarray, values: np.ndarray, level: float) -> np.ndarray:
    """P values at change `level` by linear interpolation, from P×(S + 1) changes that ascend from 0; past its end a
    path keeps its last value."""
    after = np.minimum((change <= level).sum(1), change.shape[1] - 1)
    rows, before = np.arange(len(change)), after - 1
    gap = change[rows, after] - change[rows, before]
    share = np.divide(level - change[rows, before], gap, out=np.ones(len(change)), where=gap > 0).clip(0, 1)
    last = share == 1  # a start that is no number is not carried to the end
    between = values[rows, before] + share * (values[rows, after] - values[rows, before])
    return np.where(last, values[rows, after], between)


def interactions(cells: pd.DataFrame) -> pd.DataFrame:
    """(L-sample M − L-sample 1) − (P M − P 1) of every metric, per method, strength, seed and image, for every common
    M: does an ensemble help a latent classifier more than a pixel one?"""
    shared = ["world", "method", "strength", "seed", "image"]
    facts = ["adequate", "reliance"]  # of the world and seed, not to be subtracted
    metrics = cells.columns.difference([*KEYS, *facts])
    chosen = cells[cells["space"].isin(["p", "l-sample"])]
    parts = []

    def values(space: str, m: int, columns: list[str]) -> pd.DataFrame:
        return chosen[(chosen["space"] == space) & (chosen["m"] == m)].set_index(shared)[columns]

    for m in sorted(set(chosen.loc[chosen["space"] == "p", "m"]) - {1}):
        four = [values(space, size, metrics) for space, size in (("l-sample", m), ("l-sample", 1), ("p", m), ("p", 1))]
        gain = ((four[0] - four[1]) - (four[2] - four[3])).dropna(how="all")
        gain = gain.join(values("l-sample", m, facts))
        parts.append(gain.reset_index().assign(space="interaction", m=m))
    table = pd.concat(parts, ignore_index=True)
    return table.assign(classifier="interaction-m" + table["m"].astype(str))[list(cells.columns)]


def coverage_table(rows: pd.DataFrame, adequate: pd.DataFrame, level: float) -> pd.DataFrame:
    """Coverage per image: is there a counterfactual whose own confidence reached `level` and that most of the panel
    accept? Clarity (L-sample, M = 10) beside REVISE and plain latent search on one pixel net.

    `shared` marks the images that all of them explained. `stratum`, of the system that is explained: `misclassified`;
    `close`, correct with a confidence below .8; `correct`; `target`, read as the target to begin with.
    """
    wanted = {"l-sample-m10": ["search"], "p.0": ["search", "revise-plain/tuned"]}
    chosen = [
        (rows["classifier"] == name) & rows["method"].isin(methods) & np.isclose(rows["strength"], level)
        for name, methods in wanted.items()
    ]
    table = rows[np.logical_or.reduce(chosen)].copy()
    valid = (table["confidence"] >= level - 1e-6).astype(float)
    for judge in ("valid", *PANEL):
        table["covered" if judge == "valid" else f"covered_{judge}"] = valid * table[f"oracle_{judge}"]
    close = (table["stratum"] == "correct") & (table["source_confidence"] < CLOSE)
    table["stratum"] = table["stratum"].mask(close, "close").mask(table["already"] == 1, "target")
    explained = table.groupby(["image", "seed"]).size()
    shared = explained.index[explained == len(table.drop_duplicates(["classifier", "method"]))]
    table["shared"] = pd.MultiIndex.from_frame(table[["image", "seed"]]).isin(shared).astype(float)
    columns = ["world", "seed", "image", "classifier", "method", "stratum", "shared", "covered"]
    table = table.assign(valid=valid)[[*columns, "valid", *(f"covered_{judge}" for judge in PANEL)]]
    return table.merge(adequate, on=["world", "seed"])


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, nargs="+", required=True, help="a folder per training seed")
    parser.add_argument("--costs", type=Path, nargs="+", required=True, help="what each file of shards cost")
    parser.add_argument("--diagnostics", type=Path, required=True, help="folder of gradients and reconstruction_gate")
    parser.add_argument("--level", type=float, required=True, help="own confidence at which coverage is counted")
    parser.add_argument(
        "--changes", type=json.loads, required=True, help="JSON: ‖x′ − g(z_0)‖₁ to compare at, by world"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of rows, cells, coverage ... .parquet")
    parser.add_argument("--cost", type=Path, required=True, help="seconds and overhead, which are not deterministic")
    args = parser.parse_args()
    gate, rows, kid = (
        pd.concat([pd.read_parquet(folder / f"{name}.parquet") for folder in args.measured], ignore_index=True)
        for name in ("gate", "rows", "kid")
    )
    gate = passing_gate(gate)
    rows = reached(judged(rows, gate))
    every_vae = pd.read_parquet(args.diagnostics / "reconstruction_gate.parquet")[["world", "seed", "vae", "adequate"]]
    adequate = every_vae[every_vae["vae"] == ""].drop(columns="vae")
    covering = rows["starts"].str.startswith("coverage")
    paired = rows[~covering]
    cells = cells_of(pd.concat([paired, at_equal_change(paired, args.changes)], ignore_index=True))
    cells = cells.assign(vae=vae_of(cells["space"])).merge(every_vae, on=["world", "seed", "vae"]).drop(columns="vae")
    kid = kid.assign(vae=vae_of(kid["classifier"])).merge(every_vae, on=["world", "seed", "vae"])
    digits = cells[cells["world"] == "mnist"]
    gradients = pd.read_parquet(args.diagnostics / "gradients.parquet")
    outputs = {
        "cells": pd.concat([cells, interactions(cells)], ignore_index=True),
        "coverage": coverage_table(rows, adequate, args.level),
        "factors": factor_shares(digits).merge(adequate[adequate["world"] == "mnist"], on="seed"),
        "plateau": plateau_auc(digits, gradients, args.level).merge(adequate[adequate["world"] == "mnist"], on="seed"),
        "kid": kid_intervals(kid[kid["adequate"] == 1], ["world", "classifier", "method", "strength"]),
    }
    for name, table in outputs.items():
        with atomic_path(args.out / f"{name}.parquet") as temporary:
            table.to_parquet(temporary, index=False)
    with atomic_path(args.out / "tables" / "oracle_gate.csv") as temporary:
        gate.to_csv(temporary, index=False, float_format="%.4f")
    with atomic_path(args.cost) as temporary:
        cost_table(args.costs, ["pass_seconds"]).to_parquet(temporary, index=False)
    # what is explained for coverage alone has other images than the method of that name
    rows["method"] = rows["method"].mask(covering, rows["method"] + "/coverage")
    write_rows(rows[list(COLUMNS)], args.out / "rows.parquet")


if __name__ == "__main__":
    main()
