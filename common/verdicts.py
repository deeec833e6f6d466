"""Job: rows and committed rules in, verdicts and tables out.

python -m common.verdicts --claims C.yaml --rows R --tables NAME=F... --gate G --protocol '{...}' --level 0.9 --out DIR
"""

import argparse
import json
from pathlib import Path

import pandas as pd

from common.claims import judge, load_claims, rules_hash
from common.errors import one_line_errors
from common.files import sha256, write_atomic
from common.matching import At, reached, read, read_all, start_above
from common.results import recipe_hash
from common.statistics import paired_bootstrap

MIN_RELIANCE = 0.8
TABLE_METRICS = (
    "l1", "l2", "distance", "hoyer", "gini", "pixel_share", "on_mask", "oracle_valid", "twin_error", "factor_progress",
)  # fmt: skip
WITH_INTERVAL = [f"{name}{end}" for name in ("honest", *TABLE_METRICS) for end in ("", "_low", "_high")]
METHOD_COLUMNS = ["world", "classifier", "method", "reached", "start_above", "n", "seeds", *WITH_INTERVAL]


def relied_on(rows: pd.DataFrame, gate: pd.DataFrame, column: str = "reliance_label") -> pd.DataFrame:
    """The rows of classifiers that rely on the target factor: mean reliance over seeds of at least `MIN_RELIANCE`.

    `gate` has the reliance by world, classifier and seed in `column`; without it all rows stay. An explanation shows
    what the classifier uses; one that hardly uses the target factor leaves the tables and tests.
    """
    if column not in gate:
        return rows
    mean = gate.groupby(["world", "classifier"])[column].mean()
    dropped = mean.index[mean < MIN_RELIANCE]
    return rows[~pd.MultiIndex.from_frame(rows[["world", "classifier"]]).isin(dropped)]


def method_table(rows: pd.DataFrame, level: float) -> pd.DataFrame:
    """Every method and anchor of every cell at matched confidence `level`: mean and 95 % interval of each metric.

    `reached` is the share of paths that get there; the others count with their last image. `start_above` is the share
    already there at its first image, which is what counts for them. `honest` is the share whose
    first success the oracle panel confirms (never reached counts as 0).
    """
    table = []
    for (world, classifier, method), cell in rows.groupby(["world", "classifier", "method"]):
        line = {"world": world, "classifier": classifier, "method": method, "reached": reached(cell, level)}
        line["start_above"] = start_above(cell, level)
        honest = paired_bootstrap(read(cell, "oracle_valid", At(first_success=level)))
        line |= {"n": honest.n, "seeds": len(honest.by_seed), "honest": honest.mean}
        line |= {"honest_low": honest.low, "honest_high": honest.high}
        for metric, values in read_all(cell, TABLE_METRICS, At(confidence=level)).items():
            estimate = paired_bootstrap(values)
            line |= {metric: estimate.mean, f"{metric}_low": estimate.low, f"{metric}_high": estimate.high}
        table.append(line)
    return pd.DataFrame(table, columns=METHOD_COLUMNS)


def strength_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean confidence and validity of every method at every strength, with the confidence's 95 % interval."""
    table = []
    for keys, cell in rows.groupby(["world", "classifier", "method", "strength"]):
        estimate = paired_bootstrap(read(cell, "confidence", At(strength=keys[3])))
        line = dict(zip(("world", "classifier", "method", "strength"), keys, strict=True))
        valid = (cell["status"] == "ok").mean()
        oracle = cell["oracle_valid"].mean()
        line |= {"n": estimate.n, "confidence": estimate.mean, "low": estimate.low, "high": estimate.high}
        table.append({**line, "valid": valid, "oracle_valid": oracle, "distance": cell["distance"].mean()})
    return pd.DataFrame(table)


def status_table(rows: pd.DataFrame) -> pd.DataFrame:
    """How many rows of every method have each status; failures stay in every denominator."""
    counts = rows.groupby(["world", "classifier", "method", "stratum", "status"]).size()
    return counts.unstack("status", fill_value=0).reset_index()


def usual_pairs(rows: pd.DataFrame) -> int:
    """How many images a method explains that most rows come from; a screening or a coverage of all images does not
    change it."""
    methods = rows.groupby(["world", "classifier", "method"])["image"].agg(["nunique", "size"])
    return int(methods.groupby("nunique")["size"].sum().idxmax())


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claims", type=Path, required=True, help="the committed rules")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--tables", nargs="*", default=[], help="NAME=PARQUET of the other tables that tests read")
    parser.add_argument("--gate", type=Path, required=True, help="the oracle gate, with reliance")
    parser.add_argument("--protocol", type=json.loads, required=True, help="JSON: everything that decides the numbers")
    parser.add_argument("--level", type=float, required=True, help="the confidence at which methods are matched")
    parser.add_argument("--out", type=Path, required=True, help="folder of claims.json and tables/")
    args = parser.parse_args()
    claims, everything = load_claims(args.claims), pd.read_parquet(args.rows)
    rows = relied_on(everything, pd.read_csv(args.gate))
    others = {name: pd.read_parquet(path) for name, path in (item.split("=", 1) for item in args.tables)}
    others = {name: relied_on(table, table, "reliance") for name, table in others.items()}
    verdicts, outcomes = judge(claims, {"rows": rows, **others})
    tables = {
        "tests": pd.DataFrame([outcome.model_dump() for outcome in outcomes]),
        "methods": method_table(rows, args.level),
        "strengths": strength_table(everything),
        "statuses": status_table(everything),
    }
    for name, table in tables.items():
        write_atomic(args.out / "tables" / f"{name}.csv", table.to_csv(index=False, float_format="%.6g"))
    protocol = {
        **args.protocol,
        "recipe": recipe_hash(args.protocol),
        "rules": rules_hash(claims),
        "rows": sha256(args.rows),
        "tables": {name: sha256(path) for name, path in (item.split("=", 1) for item in sorted(args.tables))},
        "pairs": usual_pairs(everything),
        "seeds": int(everything["seed"].nunique()),
    }
    report = {"protocol": protocol, "claims": verdicts}
    write_atomic(args.out / "claims.json", json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False))
    for name, verdict in verdicts.items():
        print(f"{name:>4}  {verdict['verdict']:<13} {verdict['statement']}")


if __name__ == "__main__":
    main()
