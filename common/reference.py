"""Job by hand: turn a finished run's verdicts into the reviewed, committed copy.

    python -m common.reference --scale cpu --paper svce

Writes reference/<scale>/<paper>.json: the verdicts, the hashes of their protocol, and beside them (unhashed) the
commit, library versions and machine. The working tree must be clean, so that the commit is what ran.
"""

import argparse
import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from common.digest import ROOT
from common.errors import VceError, one_line_errors
from common.files import write_atomic

RECORDED = ("recipe", "rules", "rows", "pairs", "seeds", "scale")
LIBRARIES = ("torch", "numpy", "pandas", "scikit-learn", "snakemake")


def reference(claims: Path, root: Path = ROOT) -> dict:
    """The content of a reference file from a claims.json. Raises VceError when the tree holds uncommitted changes."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    if changed := git("status", "--porcelain"):
        raise VceError(
            f"{changed.split()[-1]}: not committed; commit it and run the scale again, then take the reference"
        )
    report = json.loads(claims.read_text())
    machine = {name.replace("-", "_"): version(name) for name in LIBRARIES} | {"machine": platform.machine()}
    protocol = {name: report["protocol"][name] for name in RECORDED}
    return {"protocol": {**protocol, "commit": git("rev-parse", "HEAD"), **machine}, "claims": report["claims"]}


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
    write_atomic(out, json.dumps(reference(claims), indent=1, sort_keys=True, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
