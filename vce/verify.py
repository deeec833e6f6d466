"""Does this tree still measure what is committed? Measures a scale again and compares it with reference/<scale>/."""

import fcntl
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from common.errors import VceError
from common.files import ROOT

TIERS = ("bitwise", "tolerance", "statistical", "drift")  # from the best
RELATIVE, ABSOLUTE = 1e-3, 1e-4  # of the second tier: what kernels of another machine may add up to
# rules that read explained batches or finished nets, up to the verdicts
MEASURING = (
    "measure", "cells", "verdicts", "diagnostics", "exactness", "robustness", "realism", "discovery", "corruptions",
    "likeness",
)  # fmt: skip
# rules between batches and verdicts that train, explain or draw themselves, and are trusted as such jobs are
TRUSTED = ("students", "hypotheses", "sweep", "world", "sanity", "shortcuts", "zoo")
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
    the workflow fails, or runs already."""
    snakemake, config = str(Path(sys.executable).with_name("snakemake")), ["--config", f"scale={scale}"]
    listed = subprocess.run([snakemake, "--list-rules", *config], cwd=ROOT, capture_output=True, text=True)
    rules = [name for name in listed.stdout.split() if kind(name, parts) in MEASURING]
    command = [snakemake, *(f"results/{scale}/{part}/claims.json" for part in parts), "--forcerun", *rules, *config]
    with (ROOT / ".run.lock").open("w") as lock:  # as scripts/run.sh does
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise VceError("another make runs in this folder; wait for it, or stop it") from error
        if subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode:
            raise VceError(f"scale {scale}: the workflow failed; its last lines say where")


def kind(rule: str, parts: list[str]) -> str:
    """What a rule of one of the parts does, the second word of its name; "" for a rule of none."""
    part, _, rest = rule.partition("_")
    return rest.partition("_")[0] if part in parts else ""


def compare(part: str, reference: dict, path: Path) -> Compared:
    """A part's results at `path` beside the committed ones."""
    try:
        found = json.loads(path.read_text())
        protocol, claims = ({**found[name]} for name in ("protocol", "claims"))
        ours = {name: protocol[name] for name in ("recipe", "rules", "rows")}
        whole = all({*NUMBERS, "verdict", "n"} <= set(claim) for claim in claims.values())
    except OSError:
        return Compared(part, "drift", f"{path.name} is not there")
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        return Compared(part, "drift", f"{path.name} cannot be read")
    for name in ("recipe", "rules"):
        if ours[name] != reference["protocol"][name]:
            theirs = reference["protocol"][name]
            return Compared(part, "drift", f"other {name} ({ours[name]}) than committed ({theirs}): not comparable")
    committed, same = reference["claims"], ours["rows"] == reference["protocol"]["rows"]
    if same and claims == committed:
        return Compared(part, "bitwise")
    tiers = {name: tier(committed.get(name), claims.get(name)) for name in {**committed, **claims}}
    moved = tuple(
        f"{part} {name}: {told(committed.get(name))} → {told(claims.get(name))} ({found})"
        for name, found in tiers.items()
        if found != "bitwise"
    )
    if not moved:
        return Compared(part, "tolerance", "the same claims from other rows")
    return Compared(part, max(tiers.values(), key=TIERS.index), moved=moved)


def tier(theirs: dict | None, ours: dict | None) -> str:
    """How near a claim is to the committed one: equal in every word; the same verdict with numbers that differ as
    kernels do; the same verdict, each mean inside of the other's interval; or none of these."""
    if ours == theirs:
        return "bitwise"
    if ours is None or theirs is None or (ours["verdict"], ours["n"]) != (theirs["verdict"], theirs["n"]):
        return "drift"
    pairs = [(ours[name], theirs[name]) for name in NUMBERS]
    if all(a == b for a, b in pairs):
        return "tolerance"  # a p-value in the note, the wording of the statement
    if any(a is None or b is None for a, b in pairs):
        return "drift"
    if all(abs(a - b) <= ABSOLUTE + RELATIVE * abs(b) for a, b in pairs):
        return "tolerance"
    inside = theirs["low"] <= ours["measured"] <= theirs["high"] and ours["low"] <= theirs["measured"] <= ours["high"]
    return "statistical" if inside else "drift"


def told(claim: dict | None) -> str:
    """A claim in a few words."""
    if claim is None:
        return "missing"
    if any(claim[name] is None for name in NUMBERS):
        return claim["verdict"]
    return f"{claim['verdict']} {claim['measured']:.4g} [{claim['low']:.4g}, {claim['high']:.4g}], n = {claim['n']}"


def differences(reference: dict) -> list[str]:
    """What this machine has otherwise than the one of the committed run; only with the same can bits agree."""
    from common.reference import surroundings

    here, there = surroundings(), reference["protocol"]
    return [f"{name} {there[name]} → {value}" for name, value in here.items() if there.get(name, value) != value]
