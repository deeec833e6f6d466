"""Job: verdicts of the comparison, with Holm's adjustment over all of its tests (MEASUREMENT: comparison protocol, line
11).

python -m comparison.verdicts --claims C.yaml --results DIR --protocol '{...}' --level 0.9

A test is `supported` or `contradicted` only where the 95 % interval says so (and, for support, all training seeds) and
the p-value of its sign-flip permutation test, adjusted over the whole family, is below .05.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from common.claims import Claims, Outcome, judge, load_claims, rules_hash
from common.errors import VceError, one_line_errors
from common.files import sha256, write_atomic
from common.matching import read, select
from common.results import recipe_hash
from common.statistics import holm, sign_flip
from common.verdicts import method_table, relied_on, status_table, strength_table

ALPHA = 0.05
MOST = 20  # tests of the family, by the protocol


def family(claims: Claims) -> list[tuple[str, int]]:
    """The primary tests, by claim and position. Raises VceError for more than the protocol allows."""
    tests = [
        (name, k)
        for name, claim in claims.claims.items()
        for k, test in enumerate(claim.tests)
        if test.role == "primary"
    ]
    if len(tests) > MOST:
        raise VceError(f"claims: {len(tests)} primary tests; the protocol has {MOST} at most, move some to `control`")
    return tests


def p_values(claims: Claims, paths: pd.DataFrame) -> pd.DataFrame:
    """The sign-flip p-value of every primary test, on per-image differences averaged over the training seeds that pass
    its gate, and Holm's adjustment. A test without such rows has none and does not count."""
    lines = []
    for name, k in family(claims):
        test = claims.claims[name].tests[k]
        cells = [select(paths, where) for where in (test.a, test.b)]
        if test.gate:  # as common.claims.run_test leaves seeds out
            passing = cells[0].groupby("seed")[test.gate].min()
            cells = [cell[cell["seed"].isin(passing.index[passing == 1])] for cell in cells]
        p = np.nan
        if all(len(cell) for cell in cells):
            a, b = (read(cell, test.metric, test.at) for cell in cells)
            differences = (a - b).mean().to_numpy()
            p = sign_flip(differences) if np.isfinite(differences).any() else np.nan
        lines.append({"claim": name, "test": test.name, "p": p})
    table = pd.DataFrame(lines)
    there = table["p"].notna()
    table["adjusted"] = np.nan
    table.loc[there, "adjusted"] = holm(table.loc[there, "p"].to_numpy())
    return table


def kept(verdict: str, p: float) -> str:
    """What is left of a verdict whose test has the adjusted p-value: `inconclusive` where it is not below `ALPHA`."""
    return "inconclusive" if np.isfinite(p) and p >= ALPHA and verdict != "not tested" else verdict


def adjusted(verdicts: dict[str, dict], p: pd.DataFrame) -> dict[str, dict]:
    """The verdicts by claim, as far as the adjusted p-value of their primary test keeps them; the note has it."""
    values, found = p.set_index("claim")["adjusted"], {}
    for name, verdict in verdicts.items():
        value = values.get(name, np.nan)
        note = "; ".join(filter(None, [f"adjusted p {value:.4f}" if np.isfinite(value) else "", verdict["note"]]))
        found[name] = {**verdict, "verdict": kept(verdict["verdict"], value), "note": note}
    return found


def with_p_values(outcomes: list[Outcome], p: pd.DataFrame) -> pd.DataFrame:
    """Every test with its p-values; `verdict` is what they keep of `unadjusted`, that of the interval."""
    table = pd.DataFrame([outcome.model_dump() for outcome in outcomes]).merge(p, on=["claim", "test"], how="left")
    said = [kept(verdict, value) for verdict, value in zip(table["verdict"], table["adjusted"], strict=True)]
    return table.assign(unadjusted=table["verdict"], verdict=said)


def check_one_run(rows: pd.DataFrame, paths: pd.DataFrame) -> None:
    """Raises VceError unless both tables hold the same paths: a table of another run or scale beside them."""
    keys = ["world", "classifier", "method", "seed", "image"]
    ours, theirs = rows[keys].drop_duplicates(), paths[keys].drop_duplicates()
    if not len(ours) == len(theirs) == len(ours.merge(theirs)):
        raise VceError(
            f"rows.parquet has {len(ours)} paths and paths.parquet {len(theirs)}, not the same: they are of different"
            " runs; delete both and run snakemake again"
        )


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claims", type=Path, required=True, help="the committed rules")
    parser.add_argument("--results", type=Path, required=True, help="folder of rows and paths .parquet")
    parser.add_argument("--protocol", type=json.loads, required=True, help="JSON: everything that decides the numbers")
    parser.add_argument("--level", type=float, required=True, help="the confidence at which methods are matched")
    args = parser.parse_args()
    claims, paths = load_claims(args.claims), pd.read_parquet(args.results / "paths.parquet")
    everything = pd.read_parquet(args.results / "rows.parquet")
    check_one_run(everything, paths)
    relied = relied_on(paths, paths, "reliance")
    verdicts, outcomes = judge(claims, {"paths": relied})
    p = p_values(claims, relied)
    rows = relied_on(everything, paths[["world", "classifier", "reliance"]], "reliance")
    tables = {
        "tests": with_p_values(outcomes, p),
        "methods": method_table(rows, args.level),
        "strengths": strength_table(everything),
        "statuses": status_table(everything),
    }
    for name, table in tables.items():
        write_atomic(args.results / "tables" / f"{name}.csv", table.to_csv(index=False, float_format="%.6g"))
    protocol = {
        **args.protocol,
        "recipe": recipe_hash(args.protocol),
        "rules": rules_hash(claims),
        "rows": sha256(args.results / "rows.parquet"),
        "paths": sha256(args.results / "paths.parquet"),
        "pairs": int(paths.groupby(["world", "classifier", "method"])["image"].nunique().max()),
        "seeds": int(paths["seed"].nunique()),
    }
    report = {"protocol": protocol, "claims": adjusted(verdicts, p)}
    write_atomic(args.results / "claims.json", json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False))
    for name, claim in report["claims"].items():
        print(f"{name:>4}  {claim['verdict']:<13} {claim['statement']}")


if __name__ == "__main__":
    main()
