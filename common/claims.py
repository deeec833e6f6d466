"""A paper's claims as committed rules, and the verdict that the rows give them (MEASUREMENT: verdicts).

`claims.yaml` states each claim, where the paper makes it, the paper's value or `unknown`, and the tests that decide it.
A test compares two cells of the long table, or holds one cell against a bound. Rules are committed before the run.
"""

import hashlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from common.errors import VceError
from common.matching import At, read, select
from common.results import COLUMNS
from common.statistics import Estimate, half_sample_interval, paired_bootstrap, wilson

MIN_PAIRS = 100
MIN_SEEDS = 3
ROUNDING = 1e-9  # a mean of resampled differences may miss 0 by so much
Verdict = Literal["supported", "partly", "contradicted", "inconclusive", "not tested"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Test(_Strict):
    """One decision rule on one table.

    difference: mean of metric(a) − metric(b) > 0, or > bound (below 0: not worse by more than that) · parity: that mean
    within ± margin · above: the mean of metric(a) > bound · share_below: the mean of metric(a), a share, < bound ·
    max_below: the largest metric(a) ≤ bound · rises: along the path of a, the share of adjacent strengths at which the
    metric falls by more than 0.001 is < bound · set_difference: as `difference`, of a metric of whole image sets, with
    an interval from half-samples.

    `gate` names a column that is 1 where a training seed of cell a may be judged; others are left out of both cells.
    """

    name: str
    role: Literal["primary", "control"]
    kind: Literal["difference", "parity", "above", "share_below", "max_below", "rises", "set_difference"]
    table: str = "rows"
    metric: str
    gate: str | None = None
    a: dict[str, str | float]
    b: dict[str, str | float] | None = None
    at: At = At(each=True)
    margin: float | None = None
    bound: float | None = None
    also_metric: list[str] = []
    also_at: list[At] = []

    @model_validator(mode="after")
    def _complete(self):
        compares = self.kind in ("difference", "parity", "set_difference")
        if compares != (self.b is not None):
            raise ValueError(f"`b`: a {self.kind} test {'needs' if compares else 'takes no'} second cell")
        if (self.kind == "parity") != (self.margin is not None):
            raise ValueError("`margin`: parity tests need one, others take none")
        if self.kind in ("difference", "set_difference") and self.bound is not None:
            if self.bound >= 0:
                raise ValueError("`bound`: of a difference it lies below 0, the loss that is still not worse")
        elif compares == (self.bound is not None):
            raise ValueError(f"`bound`: a {self.kind} test {'takes none' if compares else 'needs one'}")
        return self


class Claim(_Strict):
    """`where` and `paper_value` stay `unknown` until somebody fills them from the paper itself; `untested` is the
    reason why a claim has no tests, `screening` the reason why its verdict is at most partly."""

    statement: str
    where: str | Literal["unknown"]
    paper_value: str | float | Literal["unknown"]
    source: str
    tests: list[Test] = []
    untested: str | None = None
    screening: str | None = None

    @model_validator(mode="after")
    def _decidable(self):
        if (self.untested is None) != any(test.role == "primary" for test in self.tests):
            raise ValueError("`tests`: a claim needs a primary test, or else `untested` with the reason")
        return self


class Claims(_Strict):
    paper: str
    claims: dict[str, Claim]


class Outcome(_Strict):
    """What one test found; `share` is the share of its specification curve that has the claimed direction.

    `line` is where the rule draws it: 0 for a difference, the margin, or the bound.
    """

    claim: str
    test: str
    role: str
    rule: str
    verdict: Verdict
    mean: float
    low: float
    high: float
    n: int
    seeds: str
    share: float
    kind: str
    line: float
    reason: str = ""


def load_claims(path: Path) -> Claims:
    """Read and validate a `claims.yaml`. Raises VceError naming the file and the field."""
    try:
        claims = Claims.model_validate(yaml.safe_load(path.read_text()))
    except (ValidationError, yaml.YAMLError) as error:
        detail = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        message = f"{path}: {'.'.join(map(str, detail['loc']))} {detail['msg']}"
        raise VceError(" ".join(message.split())) from error
    for name, claim in claims.claims.items():
        for test in claim.tests:
            for metric in (test.metric, *test.also_metric):
                if metric not in COLUMNS and test.table == "rows":
                    raise VceError(f"{path}: {name}/{test.name}: metric {metric!r} is not a column of the long table")
    return claims


def rules_hash(claims: Claims) -> str:
    """Hash of everything that decides a verdict: the tests, not the prose."""
    rules = {name: [test.model_dump(mode="json") for test in claim.tests] for name, claim in claims.claims.items()}
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:16]


def judge(claims: Claims, tables: dict[str, pd.DataFrame]) -> tuple[dict[str, dict], list[Outcome]]:
    """Verdicts by claim (the `claims` of reference/<scale>/<paper>.json) and every test's outcome.

    `tables` are what the tests read, by name: `rows`, the long table, and others. Raises VceError for a table or column
    that is not there.
    """
    outcomes = [
        run_test(name, test, _table(name, test, tables))
        for name, claim in claims.claims.items()
        for test in claim.tests
    ]
    verdicts = {
        name: _summary(claim, [o for o in outcomes if o.claim == name]) for name, claim in claims.claims.items()
    }
    return verdicts, outcomes


def _table(claim: str, test: Test, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    if test.table not in tables:
        raise VceError(f"{claim}/{test.name}: there is no table {test.table!r}; it is one of {', '.join(tables)}")
    table = tables[test.table]
    columns = {test.metric, *test.also_metric, *test.a, *(test.b or {})} | ({test.gate} if test.gate else set())
    absent = columns - set(table.columns)
    if absent:
        raise VceError(f"{claim}/{test.name}: table {test.table!r} has no column {', '.join(sorted(absent))}")
    return table


def run_test(claim: str, test: Test, rows: pd.DataFrame) -> Outcome:
    """Apply one rule to its table. A cell without rows gives `not tested`, with the reason."""
    base = {"claim": claim, "test": test.name, "role": test.role, "rule": _describe(test), "kind": test.kind}
    base["line"] = test.margin or test.bound or 0.0
    nothing = {"mean": np.nan, "low": np.nan, "high": np.nan, "n": 0, "seeds": "", "share": np.nan}
    cells = [select(rows, where) for where in (test.a, test.b) if where is not None]
    for cell, where in zip(cells, (test.a, test.b), strict=False):
        if cell.empty:
            reason = "no rows with " + ", ".join(f"{k}={v}" for k, v in where.items())
            return Outcome(**base, **nothing, verdict="not tested", reason=reason)
    if test.kind == "max_below":
        values = cells[0][test.metric].to_numpy(float)
        worst = float(values.max()) if not np.isnan(values).any() else np.nan
        verdict = "supported" if worst <= test.bound else "contradicted"
        found = {"mean": worst, "low": float(values.min()), "high": worst, "n": len(values)}
        return Outcome(**base, **found, seeds="", share=float(worst <= test.bound), verdict=verdict)
    if test.gate:
        passing = cells[0].groupby("seed")[test.gate].min()
        cells = [cell[cell["seed"].isin(passing.index[passing == 1])] for cell in cells]
        if cells[0].empty:
            return Outcome(**base, **nothing, verdict="not tested", reason=f"no training seed passes its {test.gate}")
    if test.kind == "set_difference":
        estimate = _set_difference(test, cells)
        directions = [_direction(test, mean) for mean in estimate.by_seed]
    else:
        estimate = paired_bootstrap(_values(test, cells, test.metric, test.at))
        directions = [_direction(test, mean) for mean in _specifications(test, cells) if np.isfinite(mean)]
    if test.kind in ("share_below", "rises"):
        # a share near 0 has a bootstrap interval of width 0; Wilson's, with images as trials, has not
        low, high = wilson(estimate.mean * estimate.n, estimate.n)
        estimate = replace(estimate, low=low, high=high)
    if not estimate.n or np.isnan(estimate.mean):
        return Outcome(**base, **nothing, verdict="not tested", reason=f"no {test.metric} at {test.at}")
    return Outcome(
        **base,
        verdict=_decide(test, estimate),
        mean=estimate.mean,
        low=estimate.low,
        high=estimate.high,
        n=estimate.n,
        seeds=" ".join(f"{value:+.4f}" for value in estimate.by_seed),
        share=float(np.mean(directions)),
    )


def _set_difference(test: Test, cells: list[pd.DataFrame]) -> Estimate:
    """metric(a) − metric(b) over whole sets: the mean over seeds at half 0, the interval from the other halves."""
    for cell, where in zip(cells, (test.a, test.b), strict=True):
        if cell.duplicated(["seed", "half"]).any():
            raise VceError(f"test {test.name}: {where} is more than one set per seed; name its strength too")
    a, b = (cell.pivot(index="seed", columns="half", values=test.metric) for cell in cells)
    if not (a.index.equals(b.index) and a.columns.equals(b.columns)):
        raise VceError(f"test {test.name}: its cells hold other seeds or halves; measure the same images")
    difference = (a - b).to_numpy()
    low, high = half_sample_interval(difference.mean(0))
    by_seed = tuple(difference[:, 0].tolist())
    return Estimate(float(np.mean(by_seed)), low, high, int(min(cell["n"].min() for cell in cells)), by_seed)


def _values(test: Test, cells: list[pd.DataFrame], metric: str, at: At) -> pd.DataFrame:
    if test.kind == "rises":
        return _falls(cells[0], metric)
    a = read(cells[0], metric, at)
    if test.b is None:
        return a
    b = read(cells[1], metric, at)
    if not (a.empty or b.empty or (a.index.equals(b.index) and a.columns.equals(b.columns))):
        raise VceError(
            f"test {test.name}: its cells hold other seeds or images, {a.shape} and {b.shape}; explain the same pairs"
        )
    return a - b


def _falls(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """seeds×images: share of adjacent strengths at which the metric falls by more than 0.001."""
    ordered = rows.sort_values(["seed", "image", "strength"])
    step = ordered.groupby(["seed", "image"])[metric].diff()
    falls = ordered.assign(fall=(step < -1e-3).where(step.notna()).astype(float), strength=0.0)
    return read(
        falls.groupby(["seed", "image"], as_index=False).agg({"fall": "mean", "strength": "first"}),
        "fall",
        At(each=True),
    )


def _specifications(test: Test, cells: list[pd.DataFrame]) -> Iterator[float]:
    """The mean of every seed under every recorded choice of metric and match."""
    for metric, at in product((test.metric, *test.also_metric), (test.at, *test.also_at)):
        values = _values(test, cells, metric, at)
        yield from values.mean(axis=1)  # leaves out what is no number; a seed without any has no mean


def _direction(test: Test, mean: float) -> bool:
    if test.kind == "parity":
        return abs(mean) < test.margin
    if test.kind in ("difference", "set_difference", "above"):
        return mean > (test.bound or 0.0)
    return mean < test.bound


def _decide(test: Test, estimate: Estimate) -> Verdict:
    low, high = estimate.low, estimate.high
    if test.kind in ("difference", "set_difference", "above"):
        line = test.bound or 0.0
        holds, fails = low > line + ROUNDING, high < line - ROUNDING
    elif test.kind == "parity":
        holds, fails = -test.margin < low and high < test.margin, low > test.margin or high < -test.margin
    else:
        holds, fails = high < test.bound, low > test.bound
    holds = holds and all(_direction(test, mean) for mean in estimate.by_seed)
    return "supported" if holds else "contradicted" if fails else "inconclusive"


def _summary(claim: Claim, outcomes: list[Outcome]) -> dict:
    facts = {"statement": claim.statement, "where": claim.where, "paper": claim.paper_value}
    if claim.untested:
        nothing = {"measured": None, "low": None, "high": None, "n": 0}
        return {**facts, **nothing, "verdict": "not tested", "note": claim.untested}
    primary = [o for o in outcomes if o.role == "primary"]
    head = primary[0]
    found = {o.verdict for o in primary}
    failed = [o for o in outcomes if o.verdict != "supported"]
    screening = any(_is_screening(o) for o in primary)
    controls = {o.verdict for o in outcomes if o.role == "control"} - {"not tested"}
    if found == {"supported"} and controls and "supported" not in controls:
        verdict = "inconclusive"  # it holds under no control
    elif found == {"supported"}:
        verdict = "partly" if screening or claim.screening or failed else "supported"
    elif "contradicted" in found:
        verdict = "contradicted"
    elif "supported" in found:
        verdict = "partly"
    else:
        verdict = "inconclusive" if "inconclusive" in found else "not tested"
    notes = [f"{o.test}: {o.verdict}" + (f" ({o.reason})" if o.reason else _size(o)) for o in failed]
    if screening:
        notes.append(f"screening size (fewer than {MIN_PAIRS} pairs or {MIN_SEEDS} seeds): at most partly")
    measured = {"measured": head.mean, "low": head.low, "high": head.high}
    if claim.screening:
        notes.append(f"{claim.screening}: at most partly")
    return {
        **facts,
        **{name: value if np.isfinite(value) else None for name, value in measured.items()},
        "n": head.n,
        "verdict": verdict,
        "note": "; ".join(notes),
    }


def _size(outcome: Outcome) -> str:
    if outcome.role == "primary" or not _is_screening(outcome):
        return ""
    return f" at screening size, n = {outcome.n}, training seeds: {len(outcome.seeds.split())}"


def _is_screening(outcome: Outcome) -> bool:
    return bool(outcome.seeds) and (outcome.n < MIN_PAIRS or len(outcome.seeds.split()) < MIN_SEEDS)


def _describe(test: Test) -> str:
    """The rule in words, for tables."""

    def cell(where: dict) -> str:
        return " ".join(str(value) for value in where.values())

    subject = f"{test.metric} of {cell(test.a)}"
    if test.kind == "max_below":
        return f"largest {subject} ≤ {test.bound:g}"
    if test.kind == "rises":
        return f"{subject} falls by more than 0.001 at under {test.bound:.0%} of the steps along the path"
    if test.kind == "above":
        return f"{subject} at {test.at} > {test.bound:g}"
    if test.kind == "set_difference" and test.bound is None:
        return f"{subject} greater than {cell(test.b)}"
    if test.kind == "share_below":
        return f"{subject} at {test.at} < {test.bound:g}"
    relation = f"within ±{test.margin:g} of" if test.kind == "parity" else "greater than"
    if test.bound is not None:
        relation = f"not more than {-test.bound:g} below"
    return f"{subject} {relation} {cell(test.b)}, at {test.at}"


def require_older_rules(reference: Path, claims_path: Path, root: Path) -> None:
    """Refuse a reference whose verdict rules were not committed, as they stand, when its rows were made.

    `reference` is a reference/<scale>/<paper>.json. Raises VceError naming the file.
    """
    protocol = json.loads(reference.read_text())["protocol"]
    relative = claims_path.resolve().relative_to(root.resolve())
    shown = subprocess.run(
        ["git", "show", f"{protocol['commit']}:{relative}"], cwd=root, capture_output=True, text=True
    )
    if shown.returncode:
        raise VceError(f"{reference}: its run's commit {protocol['commit']} holds no {relative}; run it from a commit")
    then = rules_hash(Claims.model_validate(yaml.safe_load(shown.stdout)))
    if not then == rules_hash(load_claims(claims_path)) == protocol["rules"]:
        raise VceError(
            f"{reference}: the rules in {relative} are younger than the rows they judge; run the scale again"
        )
