"""Job: from the edits of all systems and seeds to the tables that the claims are about.

python -m papers.contrastive.cells --measured DIR... --sweeps F... --worlds F... --out DIR --cost F

sets.parquet: every score of every cell, on all latents (`half` 0) and on halves of them. errors.parquet: how far the
scores of a regime are from the truth, in the mean over attributes, on the same halves; single.parquet: each score with
its truths. units.parquet: of single latents, whether the decision after an edit is the one that the rule gives.
"""

import argparse
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from common.data.faces import PARENTS
from common.errors import one_line_errors
from common.files import atomic_path
from common.metrics.causal import FEWEST, SCORES, observational
from common.results import COLUMNS, KEY, write_rows
from common.tables import cost_table
from papers.contrastive import faces
from papers.contrastive.systems import load_world

HALVES = 200
SHOWN = 300  # latents of a cell that the long table holds
NAMES = ("nec", "suf", "nesuf")
EDITED = ("clamp_others", "clamp_nondesc", "free")  # regimes in which somebody asks for something
JUDGED = ("clamp_others", "free", "random", "linear", "conditional", "latent-shift", "optimised")
TOTAL = ("clamp_nondesc", "unadjusted", "adjusted")  # regimes that ask for total effects
FLOOR = "@floor"  # a regime on the latents that all regimes are asked about
KEYS = ["system", "seed", "regime", "attribute"]


def cells(edits: pd.DataFrame) -> Iterator[tuple[dict, str, dict[str, np.ndarray]]]:
    """Facts of every cell, its decision, and its columns `image`, `x`, `reached`, all labels before the edit, and `o`
    and `e`, the decision before and after it.

    A row without a named decision counts for those that no edit asks for and, where asked labels are decisions about
    one another, in every regime that holds none of them for the others too. `clamp_others` comes once more on the
    latents that all regimes are asked about.
    """
    for system, part in edits.groupby("system"):
        labels = [name.removeprefix("before_") for name in part.dropna(axis=1, how="all") if name.startswith("before_")]
        asked, mutual = set(part["attribute"]), (part["decision"] != "").any()
        free = [name for name in labels if name not in asked]
        for keys, cell in part.groupby([*KEYS[1:], "decision"]):
            facts = {"system": system} | dict(zip(KEYS[1:], keys[:-1], strict=True))
            shared = labels if mutual and facts["regime"] not in ("clamp_others", "stay") else free
            if facts["regime"] == "clamp_others":
                few = cell[cell["floor"] == 1]
                parts = [(facts, cell), (facts | {"regime": facts["regime"] + FLOOR}, few)]
            else:
                parts = [(facts, cell)]
            for t in [keys[-1]] if keys[-1] else shared:
                if t != facts["attribute"]:
                    for named, rows in parts:
                        columns = ["image", "x", "reached", *(f"before_{name}" for name in labels)]
                        seen = {"o": rows[f"before_{t}"].to_numpy(int), "e": rows[f"after_{t}"].to_numpy(int)}
                        yield named, t, {name: rows[name].to_numpy() for name in columns} | seen


@functools.lru_cache(maxsize=8)
def halves(n: int) -> np.ndarray:
    """(1 + HALVES)×n weights: everybody, then halves drawn without replacement, the same for every cell of n."""
    rng = np.random.Generator(np.random.Philox(key=n))
    drawn = rng.random((HALVES, n)).argsort(1) < n // 2
    return np.vstack([np.ones((1, n)), drawn])


def halved(columns: list[np.ndarray], weights: np.ndarray, strata: int = 2) -> np.ndarray:
    """Tables …×strata×2×2 of `common.metrics.causal.tabulate` for every row of weights."""
    shape = (strata, *[2] * (len(columns) - 1))
    where = np.ravel_multi_index([np.asarray(column, dtype=int) for column in columns], shape)
    return (weights @ np.eye(int(np.prod(shape)))[where]).reshape(-1, *shape)


def scored(score: str, tables: np.ndarray) -> np.ndarray:
    """A score of a stack of tables, the first of which is of everybody; NaN where that one has too few units."""
    statistic, conditional_on = SCORES[score]
    return statistic(tables) if conditional_on(tables[0]) >= FEWEST else np.full(len(tables), np.nan)


def set_table(edits: pd.DataFrame) -> pd.DataFrame:
    """Every score of every cell, and of the edits that reached their target, on all latents and on halves; `n` units it
    is conditional on, NaN below `FEWEST`. Regime `rule`: of the rule on the labels that the annotator sees."""
    facts_of, values = [], []
    for facts, decision, cell in cells(edits):
        for protocol in ("itt", "per protocol"):
            if protocol != "itt" and facts["regime"] not in EDITED:
                continue
            weights = halves(len(cell["x"])) * (1 if protocol == "itt" else cell["reached"])
            units = {facts["regime"]: [cell["x"], cell["o"], cell["e"]]}
            if facts["regime"] == "clamp_others" and decision in faces.RULES and protocol == "itt":
                units["rule"] = [cell["x"], *(ruled(cell, decision, facts["attribute"], when) for when in ("o", "e"))]
            for regime, columns in units.items():
                tables = halved(columns, weights)
                for score, (_, conditional_on) in SCORES.items():
                    n = int(conditional_on(tables[0]))
                    named = {"regime": regime, "decision": decision, "score": score, "protocol": protocol, "n": n}
                    facts_of.append(facts | named)
                    values.append(scored(score, tables))
    table = pd.DataFrame(facts_of).loc[np.repeat(np.arange(len(values)), HALVES + 1)].reset_index(drop=True)
    return table.assign(half=np.tile(np.arange(HALVES + 1), len(values)), value=np.concatenate(values))


def ruled(cell: dict[str, np.ndarray] | pd.DataFrame, decision: str, attribute: str, when: str) -> np.ndarray:
    """The decision of the rule on what the annotator sees before the edit (`o`), or with the attribute alone turned
    over (`e`)."""
    present = torch.from_numpy(np.stack([cell[f"before_{name}"] for name in faces.ATTRIBUTES], 1).astype(int))
    if when == "e":
        k = faces.ATTRIBUTES.index(attribute)
        present[:, k] = 1 - present[:, k]
    return faces.RULES[decision](present).numpy()


def estimates(edits: pd.DataFrame) -> Iterator[tuple[dict, str, int, dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Facts, decision, number of latents, the scores on all latents and halves, and those of the rule on the same
    latents: of every regime, and of four that need no edit. `zero`: nothing matters. `unadjusted` and `adjusted`:
    LEWIS's estimates, without a back-door set and with the parent of the attribute. `association`: for each score."""
    for facts, decision, cell in cells(edits):
        if decision not in faces.RULES:
            continue
        n, attribute = len(cell["x"]), facts["attribute"]
        weights = halves(n)
        tables = halved([cell["x"], cell["o"], cell["e"]], weights)
        truth = halved([cell["x"], *(ruled(cell, decision, attribute, when) for when in ("o", "e"))], weights)
        matched = {name: scored(name, truth) for name in NAMES}
        yield facts, decision, n, {name: scored(name, tables) for name in NAMES}, matched
        if facts["regime"] != "clamp_others":
            continue
        stratum = np.zeros(n) if attribute not in ("gray", "glasses") else cell["before_old"]
        seen = [cell["x"], cell["o"]]
        without = {
            "zero": dict.fromkeys(NAMES, np.zeros(len(tables))),
            "unadjusted": observational(halved([np.zeros(n), *seen], weights)),
            "adjusted": observational(halved([stratum, *seen], weights)),
            "association": dict.fromkeys(NAMES, SCORES["association"][0](tables)),
        }
        for regime, scores in without.items():
            yield facts | {"regime": regime}, decision, n, scores, matched


def error_tables(edits: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean absolute error over attributes and scores of every regime and rule: against the exact truth, and against the
    rule on the labels of the same latents. And every score apart, with its truths, on all latents.

    Truths are direct effects; of `clamp_nondesc` and LEWIS's estimates they are total ones, of which the rule on labels
    knows nothing where an attribute has descendants. `over`: all attributes, the causes of the rule, the others, and
    those with a parent, a back door.
    """
    rows = []
    for facts, decision, n, scores, matched in estimates(edits):
        total = facts["regime"] in TOTAL
        exact = faces.exact(decision, facts["attribute"], "total" if total else "direct")
        for name in NAMES:
            truths = {"exact": exact[name], "population": matched[name]}
            if total and facts["attribute"] in faces.TOTAL:
                del truths["population"]
            for truth, value in truths.items():
                error = np.abs(scores[name] - value)
                line = facts | {"decision": decision, "truth": truth, "score": name, "n": n}
                rows.append(line | {"error": error, "value": scores[name][0], "true": np.atleast_1d(value)[0]})
    table = pd.DataFrame(rows)
    # without descendants to leave free, both regimes ask for the same
    same = table[(table["regime"] == "clamp_others") & ~table["attribute"].isin(faces.TOTAL)]
    table = pd.concat([table, same.assign(regime="clamp_nondesc")], ignore_index=True)
    causes = [
        attribute in faces.CAUSES[rule] for attribute, rule in zip(table["attribute"], table["decision"], strict=True)
    ]
    groups = {
        "all": np.ones(len(table), bool), "causes": np.array(causes), "irrelevant": ~np.array(causes),
        "confounded": table["attribute"].isin(PARENTS).to_numpy(),
    }  # fmt: skip
    frames = []
    for over, some in groups.items():
        for keys, cell in table[some].groupby(["system", "seed", "regime", "decision", "truth"]):
            mean = np.nanmean(np.stack(cell["error"]), axis=0)
            found = pd.DataFrame({"half": range(len(mean)), "error": mean})
            named = dict(zip(("system", "seed", "regime", "decision", "truth"), keys, strict=True))
            frames.append(found.assign(**named, over=over, n=int(cell["n"].min())))
    single = table.drop(columns="error").assign(error=table["error"].map(lambda errors: errors[0]))
    return pd.concat(frames, ignore_index=True), single


def unit_table(edits: pd.DataFrame) -> pd.DataFrame:
    """Per latent, regime and rule, in the mean over attributes: whether the decision after the edit is not the rule's
    (`wrong`), of true causes alone, and whether it would have been wrong to say that nothing changes (`zero`)."""
    frames = []
    for facts, decision, cell in cells(edits):
        if decision not in faces.RULES or facts["regime"] not in JUDGED:
            continue
        e = ruled(cell, decision, facts["attribute"], "e")
        found = {"wrong": np.abs(cell["e"] - e), "zero": np.abs(cell["o"] - e)}
        frame = pd.DataFrame({"image": cell["image"], **found}).astype({"wrong": float, "zero": float})
        frames.append(
            frame.assign(**facts, decision=decision, cause=float(facts["attribute"] in faces.CAUSES[decision]))
        )
    table = pd.concat(frames, ignore_index=True)
    zero = table[table["regime"] == "clamp_others"].assign(regime="zero")
    zero["wrong"] = zero["zero"]
    return pd.concat([table, zero], ignore_index=True).drop(columns="zero")


def local_table(local: pd.DataFrame) -> pd.DataFrame:
    """Per latent and rule the mean local score of attributes that the rule makes pivotal there, and of the others; of
    latents that have both."""
    frames = []
    for (decision, attribute), cell in local[local["decision"].isin(faces.RULES)].groupby(["decision", "attribute"]):
        now, then = (ruled(cell, decision, attribute, when) for when in ("o", "e"))
        frames.append(cell.assign(pivotal=(now != then).astype(float)))
    keys = ["system", "seed", "decision", "image"]
    table = pd.concat(frames).groupby([*keys, "pivotal"])["effect"].mean().reset_index()
    both = table.groupby(keys)["pivotal"].transform("nunique") == 2
    return table[both].reset_index(drop=True)


def long_table(edits: pd.DataFrame) -> pd.DataFrame:
    """The first latents of every cell in the columns of all papers."""
    some = edits[edits["image"] < f"latent-{SHOWN:05d}"]
    world = np.where(some["system"] == "face-gan", "face-gan", "faces")
    method = some["regime"] + "/" + some["attribute"] + np.where(some["decision"] == "", "", "/") + some["decision"]
    rows = some.assign(
        world=world, method=method, classifier=some["system"], source=some["x"], target=1 - some["x"], strength=1.0,
        status=np.where(some["reached"] == 1, "ok", "not_flipped"), stratum="correct",
        log_confidence=np.log(some["confidence"].clip(lower=1e-30)), oracle_valid=some["audited"],
        oracle_share=some["audited"], steps=some["backward"],
    )  # fmt: skip
    return rows.reindex(columns=list(COLUMNS)).drop_duplicates(KEY)


def gate_table(worlds: list[Path]) -> pd.DataFrame:
    """What every world's file says of its classifiers, by seed."""
    facts = [load_world(path)[1] for path in worlds]
    rows = [{"classifier": name, "seed": fact["seed"], **gate} for fact in facts for name, gate in fact["gate"].items()]
    return pd.DataFrame(rows).assign(world="faces")


def judged(table: pd.DataFrame, gate: pd.DataFrame) -> pd.DataFrame:
    """With `adequate`, 1 where none of the classifiers that a system has lost too much on reconstructions; nothing is
    rebuilt for the GAN."""
    needed = dict.fromkeys(("faces", "faces-partial"), ("annotator", "rules", "auditor"))
    needed["faces-matched"] = ("matched-annotator", "matched-rules", "auditor")
    held = gate.set_index(["seed", "classifier"])["adequate"]
    pairs = table[["system", "seed"]].drop_duplicates().to_records(index=False).tolist()
    adequate = {(s, seed): float(all(held[seed, name] for name in needed.get(s, ()))) for s, seed in pairs}
    return table.assign(adequate=[adequate[pair] for pair in zip(table["system"], table["seed"], strict=True)])


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, nargs="+", required=True, help="a folder per system and seed")
    parser.add_argument("--sweeps", type=Path, nargs="+", required=True, help="the tables of the sweeps over λ")
    parser.add_argument("--worlds", type=Path, nargs="+", required=True, help="the files of the face worlds")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--cost", type=Path, required=True, help="seconds and overhead, which are not deterministic")
    args = parser.parse_args()
    measured = {}
    for name in ("edits", "joint", "local", "frozen"):
        tables = [pd.read_parquet(folder / f"{name}.parquet") for folder in args.measured]
        measured[name] = pd.concat([table for table in tables if len(table)], ignore_index=True)
    edits = measured["edits"]
    rendered = edits[edits["system"] != "face-gan"]
    errors, single = error_tables(rendered)
    outputs = {
        **measured,
        "local": local_table(measured["local"]),
        "sets": set_table(edits),
        "errors": errors,
        "single": single,
        "units": unit_table(rendered),
        "sweep": pd.concat([pd.read_parquet(path) for path in args.sweeps], ignore_index=True),
    }
    gate = gate_table(args.worlds)
    for name, table in outputs.items():
        with atomic_path(args.out / f"{name}.parquet") as temporary:
            judged(table, gate).to_parquet(temporary, index=False)
    with atomic_path(args.out / "tables" / "gate.csv") as temporary:
        gate.to_csv(temporary, index=False, float_format="%.4f")
    write_rows(long_table(edits), args.out / "rows.parquet")
    with atomic_path(args.cost) as temporary:
        costs = [folder / "cost.json" for folder in args.measured]
        cost_table(costs, ["pass_seconds"]).to_parquet(temporary, index=False)


if __name__ == "__main__":
    main()
