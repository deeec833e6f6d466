"""Does this tree still measure what is committed? Measures a scale again and compares it with reference/<scale>/."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from common.errors import VceError
from common.files import ROOT

TIERS = ("bitwise", "tolerance", "statistical", "drift")  # from the best
RELATIVE, ABSOLUTE = 1e-3, 1e-4  # of the second tier: what kernels of another machine may add up to
MEASURING = re.compile(r"^\w+_(measure|cells|realism|discovery|verdicts)(_\w+)?$")  # rules that read finished batches
NUMBERS = ("measured", "low", "high")


@dataclass(frozen=True)
class Compared:
    """One part: the tier it reached, why not a better one, and the claims that moved, a line each."""

    part: str
    tier: str
    why: str = ""
    moved: tuple[str, ...] = ()


def references(scale: str, root: Path = ROOT) -> dict[str, dict]:
    """The committed results of a scale by part. Raises VceError where there are none."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted((root / "reference" / scale).glob("*.json"))}
    if not found:
        known = sorted({path.parent.name for path in (root / "reference").glob("*/*.json")})
        raise VceError(f"--scale {scale}: nothing is committed in reference/{scale}; choose {' or '.join(known)}")
    return found


def measure_again(scale: str, parts: list[str]) -> None:
    """Run every measuring job of the parts again, and before it whatever is not there or stale. Raises VceError when
    the workflow fails."""
    snakemake, config = str(Path(sys.executable).with_name("snakemake")), ["--config", f"scale={scale}"]
    listed = subprocess.run([snakemake, "--list-rules", *config], cwd=ROOT, capture_output=True, text=True)
    rules = [name for name in listed.stdout.split() if MEASURING.match(name) and name.split("_")[0] in parts]
    targets = [f"results/{scale}/{part}/claims.json" for part in parts]
    if subprocess.run([snakemake, *targets, "--forcerun", *rules, *config], cwd=ROOT, stdout=sys.stderr).returncode:
        raise VceError(f"scale {scale}: the workflow failed; its last lines say where")


def compare(part: str, reference: dict, path: Path) -> Compared:
    """A part's results at `path` beside the committed ones."""
    try:
        found = json.loads(path.read_text())
        protocol, claims = found["protocol"], found["claims"]
    except OSError:
        return Compared(part, "drift", f"{path.name} is not there")
    except (ValueError, KeyError):
        return Compared(part, "drift", f"{path.name} cannot be read")
    for name in ("recipe", "rules"):
        ours, theirs = protocol[name], reference["protocol"][name]
        if ours != theirs:
            return Compared(part, "drift", f"other {name} ({ours}) than committed ({theirs}): not comparable")
    if protocol["rows"] == reference["protocol"]["rows"] and claims == reference["claims"]:
        return Compared(part, "bitwise")
    tiers = {name: tier(claim, claims.get(name)) for name, claim in reference["claims"].items()}
    worst = max(tiers.values(), key=TIERS.index)
    moved = tuple(
        f"{part} {name}: {told(reference['claims'][name])} → {told(claims.get(name))} ({found})"
        for name, found in tiers.items()
        if found != "bitwise"
    )
    if worst == "bitwise":  # the rows are others, the claims are not
        return Compared(part, "tolerance", "other rows, the same claims")
    return Compared(part, worst, moved=moved)


def tier(theirs: dict, ours: dict | None) -> str:
    """How near a claim is to the committed one: equal; the same verdict with numbers that differ as kernels do; the
    same verdict, each mean inside of the other's interval; or none of these."""
    if ours is None or ours["verdict"] != theirs["verdict"]:
        return "drift"
    pairs = [(ours[name], theirs[name]) for name in NUMBERS]
    if all(a == b for a, b in pairs) and ours["n"] == theirs["n"]:
        return "bitwise"
    if any((a is None) != (b is None) for a, b in pairs) or ours["n"] != theirs["n"]:
        return "drift"
    if all(abs(a - b) <= ABSOLUTE + RELATIVE * abs(b) for a, b in pairs):
        return "tolerance"
    inside = theirs["low"] <= ours["measured"] <= theirs["high"] and ours["low"] <= theirs["measured"] <= ours["high"]
    return "statistical" if inside else "drift"


def told(claim: dict | None) -> str:
    """A claim in a few words."""
    if claim is None:
        return "missing"
    if claim["measured"] is None:
        return claim["verdict"]
    return f"{claim['verdict']} {claim['measured']:.4g} [{claim['low']:.4g}, {claim['high']:.4g}], n = {claim['n']}"


def differences(reference: dict) -> list[str]:
    """What this machine has otherwise than the one of the committed run; only with the same can bits agree."""
    from common.reference import surroundings

    here, there = surroundings(), reference["protocol"]
    return [f"{name} {there[name]} → {value}" for name, value in here.items() if there.get(name, value) != value]
