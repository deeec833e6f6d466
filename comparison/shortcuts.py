"""Job: can a method tell which nets of the zoo rely on a cue? (MEASUREMENT G4: the unit is a classifier.)

python -m comparison.shortcuts --zoo F --methods '{...}' --key F --seal SHA256 --n 12 --seed 0 --out DIR

Every method moves images of class 1 to class 0 for every net. Its evidence is how much more its changes resemble a cue
than the cue's control patch, of all cues the most: the same question to clean and to planted nets. Whether a net relies
on a cue is measured by pasting it, not assumed; of sealed nets it is not told. A net that has not learned its task is
not scored.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from common.classifiers.base import Classifier
from common.classifiers.training import accuracy
from common.data import cues, datasets
from common.errors import VceError, one_line_errors
from common.files import atomic_path
from common.progress import Progress
from comparison.bench import Bench
from comparison.entries import Entry, ask, parse_entries
from comparison.measure import handed_out
from comparison.zoo import CLEAN, load_zoo, open_key
from papers.svce.discovery import auroc_test, control_alignment, cue_alignment, overlay_effect, overlay_sites

SOURCE, TARGET = 1, cues.CARRIER
WORLD = "zoo"  # under this name an entry has its strengths
LEARNED = 0.5  # accuracy on plain scenes of five classes, two of them alike, that makes a net one to be explained
RELIES = 0.2  # gain of reliance from which a planted net has a shortcut to find; a cast of hue is faint


def start_images(n: int, first: int = 0) -> datasets.Images:
    """n plain scenes of class 1 that no net has seen, from the number `first` on."""
    ids = tuple(f"zoo-shown-{k}" for k in range(first, first + 20 * n))
    found = datasets.load_ids(CLEAN, ids, Path("data"))
    rows = (found.labels == SOURCE).nonzero()[:n, 0]
    if len(rows) < n:
        raise VceError(f"zoo: {len(rows)} scenes of class {SOURCE} for n = {n}; lower it in config/")
    return datasets.Images(found.images[rows], found.labels[rows], tuple(ids[k] for k in rows))


def reliance(net: Classifier, images: datasets.Images, seed: int) -> dict[str, float]:
    """Of every cue: how much more often the net sees class 0 with it than with its control patch, or plainly."""
    target, found = torch.full((len(images.ids),), TARGET), {}
    for name in cues.CUES:
        site = overlay_sites(name, images.ids, seed)
        with_cue, control, plain = overlay_effect(net, images.images, name, target, site)
        found[name] = (with_cue.float().mean() - torch.maximum(control.float().mean(), plain.float().mean())).item()
    return found


def evidence(
    entry: Entry, net: Classifier, images: datasets.Images, seed: int, level: float, callback: Callable[[dict], None]
) -> dict[str, float]:
    """Of every cue: the mean over images of how much more the change resembles it than its control patch."""
    nothing = datasets.Images(images.images[:0], images.labels[:0], ())
    bench = Bench(WORLD, net.name, seed, net, nothing, nothing, Path())
    batch, _ = ask(entry, bench, images, torch.full((len(images.ids),), TARGET), callback)
    delta = handed_out(entry.name, batch, level) - images.images
    return {
        cue: (cue_alignment(delta, images.images, cue) - control_alignment(delta, images.images, cue).clamp_min(0))
        .mean()
        .item()
        for cue in cues.CUES
    }


def score_table(nets: pd.DataFrame, methods: list[str], truth: dict[str, str]) -> pd.DataFrame:
    """By method, for nets that everybody knows, for those of each cue among them, and for sealed ones: AUROC of its
    evidence, planted against clean, with the one-sided permutation p-value, and how many planted nets lie above all
    clean ones. A net that has not learned its task (`unfit`, accuracy below `LEARNED`), or that is planted and does not
    rely on its cue (`unused`, below `RELIES`), counts for nothing: there is no shortcut to find."""
    cue, sealed = nets["net"].map(truth), nets["net"].str.startswith("sealed")
    relies = np.array([name == "" or nets[f"reliance_{name}"].iloc[k] >= RELIES for k, name in enumerate(cue)])
    fit = nets["accuracy"] >= LEARNED
    groups = {"known": ~sealed} | {name: ~sealed & cue.isin(["", name]) for name in cues.CUES} | {"sealed": sealed}
    lines = []
    for group, mine in groups.items():
        for method in methods:
            value = nets[f"evidence_{method}"]
            planted, clean = (value[mine & fit & kind].dropna() for kind in ((cue != "") & relies, cue == ""))
            auroc, p = auroc_test(planted.to_numpy(), clean.to_numpy())
            above = int((planted > clean.max()).sum()) if len(clean) else 0
            facts = {"method": method, "nets": group, "planted": len(planted), "clean": len(clean)}
            facts |= {"unused": int((mine & fit & ~relies).sum()), "unfit": int((mine & ~fit).sum())}
            lines.append({**facts, "auroc": auroc, "p": p, "above_all_clean": above})
    return pd.DataFrame(lines)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True, help="the nets, made by comparison.zoo")
    parser.add_argument("--methods", type=json.loads, required=True, help="JSON: methods, with strengths for `zoo`")
    parser.add_argument("--key", type=Path, required=True, help="the sealed key")
    parser.add_argument("--seal", required=True, help="its committed sha256")
    parser.add_argument("--n", type=int, required=True, help="images that are explained for every net")
    parser.add_argument("--level", type=float, required=True, help="own confidence of a success")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of shortcut_nets, shortcuts, shortcut_refused .csv"
    )
    args = parser.parse_args()
    nets, entries = load_zoo(args.zoo), [entry for entry in parse_entries(args.methods) if WORLD in entry.strengths]
    shown, held = start_images(args.n), start_images(100, first=100_000)
    plain = datasets.load_ids(CLEAN, tuple(f"zoo-plain-{k}" for k in range(500)), Path("data"))
    lines, refused = [], []
    with Progress("shortcuts", total=len(nets) * len(entries), unit="explanations of a net") as progress:
        for name, net in nets.items():
            line = {"net": name, "accuracy": accuracy(net, plain.images, plain.labels)}
            line["sees_class_1"] = accuracy(net, held.images, held.labels)
            line |= {f"reliance_{cue}": value for cue, value in reliance(net, held, args.seed).items()}
            for entry in entries:
                try:
                    found = evidence(entry, net, shown, args.seed, args.level, progress)
                except Exception as error:  # whatever a stranger's method does, the others are scored
                    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                    refused.append({"net": name, "method": entry.name, "reason": reason})
                    found = {"": np.nan}
                line |= {f"evidence_{entry.name}": max(found.values()), f"cue_{entry.name}": max(found, key=found.get)}
                progress.advance()
            lines.append(line)
    table = pd.DataFrame(lines)
    sealed = [name for name in nets if name.startswith("sealed")]
    truth = {name: "" if name.startswith("clean") else name.rpartition("-")[0] for name in nets}
    truth |= dict(zip(sealed, open_key(args.key, args.seal), strict=True))
    scores = score_table(table, [entry.name for entry in entries], truth)
    told = [f"reliance_{cue}" for cue in cues.CUES]
    table[told] = table[told].mask(table["net"].isin(sealed))
    unscored = pd.DataFrame(refused, columns=["net", "method", "reason"])
    for name, found in {"shortcut_nets": table, "shortcuts": scores, "shortcut_refused": unscored}.items():
        with atomic_path(args.out / f"{name}.csv") as temporary:
            found.to_csv(temporary, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
