"""Job: from the edits to the tables of scores, validity, leakage, errors and sweeps.

python -m papers.contrastive.tables --results DIR --out DIR
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import one_line_errors
from common.files import write_atomic
from common.metrics.causal import SCORES, bounds, estimate, tabulate
from common.statistics import half_sample_interval, wilson
from papers.contrastive import faces
from papers.contrastive.cells import EDITED, KEYS, NAMES, cells

CELL = [*KEYS, "decision"]
MODEL = {"old": 0.5, "gray": 0.45, "glasses": 0.4, "smile": 0.5, "mustache": 0.3, "majority": 0.47, "exclusive": 0.35}


def contexts(
    cell: dict[str, np.ndarray], facts: dict, decision: str, asked: set[str]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Everybody, by intention to treat; those whose edit reached its target, per protocol; and with `clamp_others`
    everybody with one value of a label that is neither attribute nor decision: protocol, context, and who it is."""
    everybody = np.ones(len(cell["x"]), dtype=bool)
    yield "itt", "", everybody
    if facts["regime"] not in EDITED:
        return
    yield "per protocol", "", cell["reached"] == 1
    if facts["regime"] != "clamp_others":
        return
    for name in sorted(asked - {facts["attribute"], decision}):
        for value in (0, 1):
            yield "itt", f"{name} = {value}", cell[f"before_{name}"] == value


def score_table(edits: pd.DataFrame) -> pd.DataFrame:
    """NEC, SUF, NESUF and the association of every attribute and decision, with intervals over latents, the units that
    each is conditional on, and the sharp bounds that need no monotonicity."""
    labels = {system: _labels(part) for system, part in edits.groupby("system")}
    lines = []
    for facts, decision, cell in cells(edits):
        for protocol, context, where in contexts(cell, facts, decision, labels[facts["system"]]):
            n = tabulate(*(cell[name] for name in ("x", "o", "e")), where=where)
            sharp = bounds(n) if n.sum() else {}
            for score in SCORES:
                low, high = (float(end) for end in sharp.get(score, (np.nan, np.nan)))
                line = facts | {"decision": decision, "protocol": protocol, "context": context, "score": score}
                lines.append(line | vars(estimate(score, n)) | {"bound_low": low, "bound_high": high})
    return pd.DataFrame(lines)


def _labels(part: pd.DataFrame) -> set[str]:
    """The labels that are contexts: those that S steers and, of real models, all."""
    known = {name.removeprefix("before_") for name in part.dropna(axis=1, how="all") if name.startswith("before_")}
    return known & set(faces.ATTRIBUTES) if known & set(faces.RULES) else known


def validity_table(edits: pd.DataFrame) -> pd.DataFrame:
    """How often an edit gives its attribute the value that it had not, both ways, with Wilson intervals, what the
    auditor says, and how far latent, image, other labels and nuisances went."""
    edits = edits.reindex(columns=edits.columns.union(["audited", "leaked", "drift"], sort=False))  # not all are known
    lines = []
    for keys, cell in edits.groupby([*CELL, "x"]):
        line = dict(zip([*CELL, "from"], keys, strict=True)) | {"n": len(cell)}
        for judge in ("reached", "audited"):
            known = cell[judge].dropna()
            low, high = wilson(known.sum(), len(known)) if len(known) else (np.nan, np.nan)
            line |= {judge: known.mean(), f"{judge}_low": low, f"{judge}_high": high}
        lines.append(line | cell[["length", "distance", "leaked", "drift"]].mean().to_dict())
    return pd.DataFrame(lines)


def leakage_table(edits: pd.DataFrame) -> pd.DataFrame:
    """How often a label that nobody wanted to change does, by regime and edited attribute, with Wilson intervals: by
    the auditor where there is one."""
    lines = []
    some = edits[edits["regime"].isin((*EDITED, "random", "linear", "conditional", "optimised", "stay"))]
    for keys, cell in some.groupby(CELL):
        facts = dict(zip(CELL, keys, strict=True))
        for label in sorted({name.removeprefix("before_") for name in cell.filter(regex="^before_")} - {keys[3]}):
            judge = "audit_" if cell.get(f"audit_before_{label}", pd.Series([np.nan])).notna().all() else ""
            pair = cell[[f"{judge}before_{label}", f"{judge}after_{label}"]].dropna()
            if pair.empty:
                continue
            hits, n = int((pair.iloc[:, 0] != pair.iloc[:, 1]).sum()), len(pair)
            low, high = wilson(hits, n)
            found = {"label": label, "judge": "auditor" if judge else "annotator"}
            lines.append(facts | found | {"share": hits / n, "low": low, "high": high, "n": n})
    return pd.DataFrame(lines)


def rate_table(edits: pd.DataFrame) -> pd.DataFrame:
    """How often each label is seen in the population of the generator, what all scores are relative to, beside the
    share in the structural model; and how often the auditor sees the same."""
    lines = []
    for (system, seed), part in edits.groupby(["system", "seed"]):
        images = part.drop_duplicates("image")
        for column in images.filter(regex="^before_").dropna(axis=1):
            label = column.removeprefix("before_")
            audit = images.get(f"audit_before_{label}")
            agrees = np.nan if audit is None or audit.isna().all() else (audit == images[column]).mean()
            model = MODEL.get(label, np.nan) if system != "face-gan" else np.nan
            line = {"system": system, "seed": seed, "label": label, "share": images[column].mean(), "model": model}
            lines.append(line | {"auditor_agrees": agrees, "n": len(images)})
    return pd.DataFrame(lines)


def error_table(errors: pd.DataFrame) -> pd.DataFrame:
    """The mean absolute error of every regime, with the interval of half-samples."""
    keys = ["system", "seed", "regime", "decision", "truth", "over"]
    lines = []
    for values, cell in errors.groupby(keys):
        ordered = cell.sort_values("half")["error"].to_numpy()
        low, high = half_sample_interval(ordered) if np.isfinite(ordered).all() else (np.nan, np.nan)
        line = {"error": ordered[0], "low": low, "high": high, "n": int(cell["n"].iloc[0])}
        lines.append(dict(zip(keys, values, strict=True)) | line)
    return pd.DataFrame(lines)


def truth_table(single: pd.DataFrame) -> pd.DataFrame:
    """Every score beside its exact value and that of the rule on the labels of the same latents."""
    keys = [*KEYS, "decision", "score", "value"]
    exact, population = (
        single[single["truth"] == truth][[*keys, "true"]].rename(columns={"true": truth})
        for truth in ("exact", "population")
    )
    return exact.merge(population, on=keys, how="left")


def ordered_as(values: np.ndarray, truth: np.ndarray) -> float:
    """Kendall's τ over the pairs that the truth orders: 1 where they all agree."""
    pairs = list(itertools.combinations(range(len(truth)), 2))
    signs = [(np.sign(truth[i] - truth[j]), np.sign(values[i] - values[j])) for i, j in pairs]
    return float(np.mean([a * b for a, b in signs if a != 0]))


def ranking_table(truth: pd.DataFrame) -> pd.DataFrame:
    """Kendall's τ of the order of attributes, in the mean over seeds: against the exact scores, over the pairs that
    these order, and between seeds."""
    from scipy.stats import kendalltau

    lines = []
    for keys, cell in truth.groupby(["system", "regime", "decision", "score"]):
        wide = cell.pivot(index="attribute", columns="seed", values="value").dropna()
        exact = cell.drop_duplicates("attribute").set_index("attribute").loc[wide.index, "exact"]
        if len(wide) < 3 or exact.nunique() < 2:
            continue
        to_truth = [ordered_as(wide[seed].to_numpy(), exact.round(9).to_numpy()) for seed in wide]
        between = [kendalltau(wide[a], wide[b]).statistic for a, b in itertools.combinations(wide, 2)]
        line = {"tau_truth": np.mean(to_truth), "tau_seeds": np.mean(between) if between else np.nan}
        lines.append(dict(zip(("system", "regime", "decision", "score"), keys, strict=True)) | line)
    return pd.DataFrame(lines, columns=["system", "regime", "decision", "score", "tau_truth", "tau_seeds"])


def share_table(table: pd.DataFrame, keys: list[str], share: str, others: list[str]) -> pd.DataFrame:
    """The mean of a share of 0 and 1 in every cell, with its Wilson interval, and the means of others."""
    lines = []
    for values, cell in table.groupby(keys):
        low, high = wilson(cell[share].sum(), len(cell))
        found = {share: cell[share].mean(), "low": low, "high": high, "n": len(cell)}
        lines.append(dict(zip(keys, values, strict=True)) | found | cell[others].mean().to_dict())
    return pd.DataFrame(lines)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder of edits, errors ... .parquet")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    args = parser.parse_args()
    names = ("edits", "errors", "single", "joint", "sweep")
    edits, errors, single, joint, sweep = (pd.read_parquet(args.results / f"{name}.parquet") for name in names)
    truth = truth_table(single[single["score"].isin(NAMES)])
    made = {
        "scores": score_table(edits),
        "validity": validity_table(edits),
        "leakage": leakage_table(edits),
        "rates": rate_table(edits),
        "errors": error_table(errors),
        "truth": truth,
        "ranking": ranking_table(truth),
        "joint": share_table(joint, ["system", "seed", "judge", "method", "asked"], "exact", ["share"]),
        "sweep": share_table(sweep, ["system", "seed", "lam", "attribute"], "reached", ["audited", "length"]),
    }
    for name, table in made.items():
        write_atomic(args.out / f"{name}.csv", table.to_csv(index=False, float_format="%.4f"))


if __name__ == "__main__":
    main()
