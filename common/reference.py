"""Job by hand: turn a finished run's verdicts into the reviewed, committed copy.

    python -m common.reference --scale cpu --paper svce

Writes reference/<scale>/<paper>.json: the verdicts, the hashes of their protocol, and beside them (unhashed) the
commit at which the counterfactuals were made, library versions and machine; and reference/curves/<scale>/<paper>.csv,
the mean path of every method, for `dvc plots diff`.
"""

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from common.errors import VceError, one_line_errors
from common.files import ROOT, write_atomic

CURVE = ["world", "classifier", "method", "strength", "n", "distance", "confidence", "oracle_valid"]
RECORDED = ("recipe", "rules", "rows", "pairs", "seeds", "scale")
LIBRARIES = ("torch", "numpy", "pandas", "scikit-learn", "snakemake")


def surroundings() -> dict[str, str]:
    """Versions of the libraries that make numbers, and the machine: only with the same can bits agree."""
    return {name.replace("-", "_"): version(name) for name in LIBRARIES} | {"machine": platform.machine()}


def reference(claims: Path, cost: Path) -> dict:
    """The content of a reference file from a run's claims.json and cost.parquet.

    Raises VceError unless all rows were made at one commit without uncommitted changes.
    """
    made = sorted(pd.read_parquet(cost)["commit"].unique())
    if len(made) != 1 or made[0] == "unknown" or made[0].endswith("-dirty"):
        raise VceError(f"{cost}: rows made at {', '.join(made)}; run the scale in a fresh clone of one commit")
    report = json.loads(claims.read_text())
    protocol = {name: report["protocol"][name] for name in RECORDED}
    return {"protocol": {**protocol, "commit": made[0], **surroundings()}, "claims": report["claims"]}


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--paper", required=True)
    args = parser.parse_args()
    claims = ROOT / "results" / args.scale / args.paper / "claims.json"
    if not claims.is_file():
        raise VceError(f"{claims.relative_to(ROOT)}: not there; run `snakemake all --config scale={args.scale}` first")
    out = ROOT / "reference" / args.scale / f"{args.paper}.json"
    cost = ROOT / "work" / args.scale / args.paper / "cost.parquet"
    write_atomic(out, json.dumps(reference(claims, cost), indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    paths = pd.read_csv(claims.parent / "tables" / "strengths.csv")[CURVE]
    write_atomic(ROOT / "reference" / "curves" / args.scale / f"{args.paper}.csv", paths.to_csv(index=False))


if __name__ == "__main__":
    main()
