"""Job: the labels of generated images before and after every edit: what validity, leakage and all scores are made of.

python -m papers.contrastive.measure --settings '{"faces": {"n": 2000, ...}}' --world F --shifts DIR --seed 0 --out DIR

Every system has a folder SYSTEM-SEED of tables.

edits.parquet has a row per latent, regime and edited attribute: `x`, the attribute as it is, whether its opposite was
`reached`, the `audited` word of somebody else, the share of other labels that `leaked` by that word, the `drift` of
nuisances in standard deviations, what the change looks like, and all labels as `before_LABEL` and `after_LABEL`;
`floor` is 1 for the latents that every regime is asked about. A row counts for the `decision` that it names, which then
was not asked to stay, or else for every decision that nobody can ask for. Regimes beside those of the method: `random`,
shifts in random directions as long as those of `clamp_others`; `stay`, which asks for all labels as they are, `move`,
`mirror` and `blur`, which change none: the floor of every score; and the baselines.

joint.parquet: conditions that ask for several labels at once. local.parquet: what an edit does in the neighbourhood of
one latent. frozen.parquet: how often generator or classifiers changed, hashed before and after S was trained and after
measuring. cost.json: seconds.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from common.errors import VceError, one_line_errors
from common.explain import Streams
from common.files import atomic_path, commit, write_atomic
from common.progress import Progress
from common.scales import parse_recipe
from papers.contrastive.edits import CHUNK, Seen, compare, edits, flipping_shifts, generated, labelled, look
from papers.contrastive.method import ShiftPredictor, random_conditions
from papers.contrastive.systems import POPULATION, System, load_system
from papers.contrastive.train import frozen_hash, load_shift

NEIGHBOURHOOD = 0.1  # of a local score: the noise that S is trained in as released


@dataclass(frozen=True)
class Settings:
    """How many latents are asked: `n` about edits, the first `floor` of them about random shifts and, where that is
    asked for, `nuisances` and baselines (`compared`); `joint` about several labels at once, `local` in `neighbours`
    places around each."""

    n: int
    floor: int
    nuisances: bool = False
    compared: bool = False
    joint: int = 0
    local: int = 0
    neighbours: int = 8


def joint(system: System, S: ShiftPredictor, before: Seen, seed: int) -> pd.DataFrame:
    """Random conditions on the first latents, of which `before` is known, by how many labels they ask for: whether all
    of those are seen afterwards (`exact`), which share is, and both of the image as it was (`unmoved`)."""
    n = len(before.labels)
    ids, w = system.population(n)
    c = random_conditions(n, system.m, torch.Generator().manual_seed(seed), sparse=True)
    frames = []
    for method, seen in (("S", look(generated(w + S(w, c), system), system)), ("unmoved", before)):
        for judge, labels in (("annotator", seen.labels[:, : system.m]), ("auditor", seen.audited)):
            if labels is None:
                continue
            hit = ((2.0 * labels - 1) == c) & (c != 0)
            asked = (c != 0).sum(1)
            columns = {"exact": (hit.sum(1) == asked).long(), "share": hit.sum(1) / asked, "asked": asked}
            frame = pd.DataFrame({"image": ids, **{name: values.numpy() for name, values in columns.items()}})
            frames.append(frame.assign(system=system.name, seed=seed, method=method, judge=judge))
    return pd.concat(frames, ignore_index=True)


def local(system: System, S: ShiftPredictor, settings: Settings, seed: int) -> pd.DataFrame:
    """Local scores of the first latents: the share of places around each, w + .1·ε, in which setting the attribute to
    its opposite changes the decision. With a decision that was made, removing an attribute that is there: NEC; adding
    one that is not, to a decision that was not: SUF."""
    ids, w = system.population(settings.local)
    before = labelled(w, system)
    streams = Streams(POPULATION, ids, (0,) * len(ids))
    noise = NEIGHBOURHOOD * streams.normal((settings.neighbours, system.d), "neighbourhood")
    around = (w[:, None] + noise).flatten(0, 1)
    there = labelled(around, system)
    frames = []
    for k in range(system.m):
        shift = flipping_shifts(around, there, S, k)
        changed = (labelled(around + shift, system) != there).view(len(ids), settings.neighbours, -1).float().mean(1)
        for t in range(system.m, len(system.labels.names)):
            columns = {"x": before[:, k], "o": before[:, t], "effect": changed[:, t]}
            columns |= {f"before_{name}": before[:, j] for j, name in enumerate(system.labels.names)}
            frame = pd.DataFrame({"image": ids, **{name: values.numpy() for name, values in columns.items()}})
            facts = {"attribute": system.labels.names[k], "decision": system.labels.names[t]}
            frames.append(frame.assign(system=system.name, seed=seed, **facts))
    return pd.concat(frames, ignore_index=True)


def measured(system: System, settings: Settings, shift: Path, seed: int) -> tuple[dict[str, pd.DataFrame], dict]:
    """All tables of a system and what its edits cost. Raises VceError when there are no latents to ask about."""
    if not 0 < settings.floor <= settings.n:
        raise VceError(f"settings: floor {settings.floor} of n {settings.n} latents; mend `contrastive` in config/")
    S, facts = load_shift(shift, system)
    began = time.perf_counter()
    with Progress(f"measure {system.name}", total=system.m + 1, unit="parts") as progress:
        found = edits(system, S, settings.n, settings.floor, seed, progress.advance, settings.nuisances)
    cost = {"system": system.name, "seconds": time.perf_counter() - began, "evaluations": found.looked}
    if settings.compared:
        compare(found, seed)
    changed = len({*facts["frozen"].values(), frozen_hash(system)}) - 1.0
    tables = {
        "edits": found.table,
        "joint": joint(system, S, found.before[: settings.joint], seed) if settings.joint else pd.DataFrame(),
        "local": local(system, S, settings, seed) if settings.local else pd.DataFrame(),
        "frozen": pd.DataFrame([{"system": system.name, "seed": seed, "changed": changed}]),
    }
    began = time.perf_counter()
    look(generated(found.w[:CHUNK], system), system)
    cost["pass_seconds"] = (time.perf_counter() - began) / min(CHUNK, settings.n)
    return tables, cost


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=json.loads, required=True, help="JSON: fields of Settings by system")
    parser.add_argument("--world", type=Path, help="the file of the face world, for its systems")
    parser.add_argument("--shifts", type=Path, required=True, help="folder of the files of S")
    parser.add_argument("--seed", type=int, required=True, help="the training seed of S")
    parser.add_argument("--out", type=Path, required=True, help="folder of one folder per system")
    args = parser.parse_args()
    for name, fields in args.settings.items():
        shift, folder = args.shifts / f"{name}-{args.seed}.safetensors", args.out / f"{name}-{args.seed}"
        tables, cost = measured(load_system(name, args.world), parse_recipe(Settings, fields), shift, args.seed)
        for table, rows in tables.items():
            with atomic_path(folder / f"{table}.parquet") as temporary:
                rows.to_parquet(temporary, index=False)
        report = {"commit": commit(), "seed": args.seed, "cells": [cost]}
        write_atomic(folder / "cost.json", json.dumps(report, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
