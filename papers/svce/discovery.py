"""Job: do counterfactuals reveal a cue that a classifier learnt instead of the object (claim C10, SVCE spec §6)?

python -m papers.svce.discovery --shards B... --checkpoints F... --splits S... --out rows.parquet --table T --summary U

A shard explains images of class 1 towards class 0 for one net: *planted* when its world pastes a cue on class 0,
*clean* when it was trained in `scenes-uncued` (it is then asked about every cue). A discovery needs both halves: the
change resembles the cue more than the control patch (`signal`), and pasting the cue on the images makes the net see
class 0 more often than pasting the control, or nothing, does (`gate`). Without the causal half nothing is ever claimed.
"""

import argparse
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor, nn

from common.batches import Shard, read_shard
from common.classifiers.checkpoints import checkpoint_facts, load_checkpoint
from common.classifiers.training import accuracy
from common.data import cues, datasets
from common.errors import VceError, one_line_errors
from common.explain import Streams
from common.files import atomic_path
from common.metrics.perturbation import pixel_change
from common.progress import Progress
from common.statistics import paired_bootstrap

CLEAN = "scenes-uncued"
PERMUTATIONS = 20_000
NET = ["world", "cue", "planted", "classifier", "seed", "method"]
MEANS = ["confidence", "cue_alignment", "control_alignment", "cue_mass", "cue_area"]
OVERLAYS = ["overlay_plain", "overlay_cue", "overlay_control"]


def cue_alignment(delta: Tensor, x: Tensor, cue: str) -> Tensor:
    """How much a change looks like the cue: max over its sites of cos(δ, overlay(x) − x), N values; 0 for δ = 0.

    `delta` and `x` are N×3×H×W.
    """
    return _alignment(delta, x, cue, control=False)


def control_alignment(delta: Tensor, x: Tensor, cue: str) -> Tensor:
    """The same for the cue's control patch."""
    return _alignment(delta, x, cue, control=True)


def cue_mass(delta: Tensor, cue: str) -> Tensor:
    """Share of Σ|δ| on the cue's best site: N values; NaN for δ = 0, and for a cast, which has no place.

    Chance for one site is `cue_area`; the best of several lies above it.
    """
    change = pixel_change(delta)
    on_site = torch.einsum("nhw,shw->ns", change, _support(cue, *delta.shape[2:]))
    return on_site.amax(1) / change.flatten(1).sum(1)


def cue_area(cue: str, height: int, width: int) -> float:
    """Share of the image that the cue covers at one site; NaN for a cast."""
    return _support(cue, height, width)[0].mean().item()


@torch.no_grad()
def overlay_effect(
    classifier: nn.Module, x: Tensor, cue: str, target: Tensor, site: Tensor | int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Whether the classifier sees `target` (N) in the images N×3×H×W with the cue, with the control patch, and plain:
    three N bool.

    `site` is where the patches go, one number for all images or N of them.
    """
    versions = (cues.overlay(x, cue, site), cues.overlay(x, cue, site, control=True), x)
    return tuple(classifier(images).argmax(1) == target for images in versions)


def overlay_sites(cue: str, ids: tuple[str, ...], seed: int) -> Tensor:
    """A seeded site per image, N numbers."""
    draw = Streams(seed, ids, (0,) * len(ids)).uniform((), "overlay")
    return (draw * len(cues.find(cue).places)).long()


def measure(shard: Shard, classifier: nn.Module, cue: str, data: Path) -> pd.DataFrame:
    """One row per image, method and strength of a shard, asked about one cue.

    Raises VceError when the shard starts from class-0 images, which may carry the cue already.
    """
    if (shard.source == cues.CARRIER).any():
        raise VceError(
            f"{shard.world} {shard.classifier}-{shard.seed}: starts of class {cues.CARRIER} may carry the "
            "cue; explain images of another class"
        )
    x = datasets.load_ids(shard.world, shard.ids, data).images
    site = overlay_sites(cue, shard.ids, shard.seed)
    with_cue, with_control, plain = overlay_effect(classifier, x, cue, shard.target, site)
    shared = {
        "world": shard.world,
        "cue": cue,
        "planted": datasets.world(shard.world).cue is not None,
        "classifier": shard.classifier,
        "seed": shard.seed,
        "image": shard.ids,
        "cue_area": cue_area(cue, *x.shape[2:]),
        "overlay_cue": with_cue.float().numpy(),
        "overlay_control": with_control.float().numpy(),
        "overlay_plain": plain.float().numpy(),
        "overlay_gain": (with_cue.float() - (with_control | plain).float()).numpy(),
    }
    frames = []
    for method, batch in shard.batches.items():
        for j, strength in enumerate(batch.strengths):
            delta = batch.images[:, j] - x
            own, control = cue_alignment(delta, x, cue), control_alignment(delta, x, cue)
            found = {
                "confidence": batch.confidence[:, j],
                "cue_alignment": own,
                "control_alignment": control,
                "alignment_gain": own - control.clamp_min(0),
                "cue_mass": cue_mass(delta, cue),
            }
            values = {name: value.numpy() for name, value in found.items()}
            frames.append(pd.DataFrame({**shared, "method": method, "strength": float(strength), **values}))
    return pd.concat(frames, ignore_index=True)


def discover(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per net, cue and method, from the rows of `measure`; an image counts with its mean over the path.

    `overlay_gain` (sees the class with the cue, minus: with the control patch or plainly) and `alignment_gain` (with
    the cue, minus with the control where that is positive) have paired 95 % intervals over images: a control that
    repels earns nothing. gate: the interval of the overlay gain lies above 0 · signal: that of the alignment gain ·
    discovered: both.
    """
    nets = []
    for key, group in rows.groupby(NET):
        images = group.groupby("image")[[*MEANS, *OVERLAYS, "overlay_gain", "alignment_gain"]].mean()
        effect = paired_bootstrap(images["overlay_gain"].to_numpy())
        gain = paired_bootstrap(images["alignment_gain"].to_numpy())
        gate, signal = effect.low > 0, gain.low > 0
        nets.append(
            {
                **dict(zip(NET, key, strict=True)),
                "n": len(images),
                **images[OVERLAYS].mean(),
                "overlay_gain": effect.mean,
                "overlay_low": effect.low,
                "overlay_high": effect.high,
                "gate": gate,
                **images[MEANS].mean(),
                "alignment_gain": gain.mean,
                "alignment_low": gain.low,
                "alignment_high": gain.high,
                "signal": signal,
                "discovered": gate and signal,
            }
        )
    return pd.DataFrame(nets)


def summarise(nets: pd.DataFrame) -> pd.DataFrame:
    """One row per cue, classifier kind and method, the unit being a net (MEASUREMENT: G4).

    `found` of `planted` nets, `false_alarms` of `clean` nets, `ungated_false_alarms` had the signal alone decided;
    `auroc` of the nets' mean alignment gain, planted against clean, with its one-sided permutation `p`.
    """
    rows = []
    for key, group in nets.groupby(["cue", "classifier", "method"]):
        planted, clean = group[group["planted"]], group[~group["planted"]]
        auroc, p = auroc_test(planted["alignment_gain"].to_numpy(), clean["alignment_gain"].to_numpy())
        rows.append(
            {
                **dict(zip(["cue", "classifier", "method"], key, strict=True)),
                "planted": len(planted),
                "using_it": int(planted["gate"].sum()),
                "found": int(planted["discovered"].sum()),
                "clean": len(clean),
                "false_alarms": int(clean["discovered"].sum()),
                "ungated_false_alarms": int(clean["signal"].sum()),
                "auroc": auroc,
                "p": p,
            }
        )
    return pd.DataFrame(rows)


def auroc_test(positive: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    """AUROC (a tie counts half) and its one-sided permutation p-value, P(AUROC ≥ the observed) under exchanged labels.

    Exact over all assignments where there are at most `PERMUTATIONS`, else over as many seeded ones. NaN without both.
    """
    m, n = len(positive), len(negative)
    if not m or not n:
        return float("nan"), float("nan")
    ranks = rankdata(np.concatenate([positive, negative]))
    observed = ranks[:m].sum()
    if comb(m + n, m) <= PERMUTATIONS:
        sums = np.array([ranks[list(chosen)].sum() for chosen in combinations(range(m + n), m)])
        p = (sums >= observed - 1e-9).mean()
    else:
        rng = np.random.Generator(np.random.Philox(key=0))
        sums = rng.permuted(np.tile(ranks, (PERMUTATIONS, 1)), axis=1)[:, :m].sum(1)
        p = (1 + (sums >= observed - 1e-9).sum()) / (1 + PERMUTATIONS)
    return float((observed - m * (m + 1) / 2) / (m * n)), float(p)


def _alignment(delta: Tensor, x: Tensor, cue: str, control: bool) -> Tensor:
    patches = [cues.overlay(x, cue, site, control=control) - x for site in range(len(cues.find(cue).places))]
    return torch.stack([F.cosine_similarity(delta.flatten(1), patch.flatten(1)) for patch in patches]).amax(0)


def _support(cue: str, height: int, width: int) -> Tensor:
    """S×H×W: 1 where the tile lies at each site; NaN for a cast."""
    if cues.find(cue).mask is None:
        return torch.full((1, height, width), torch.nan)
    return (cues.coverage(cue, height, width) > 0).float()


def asked(world: str) -> tuple[str, ...]:
    """The cues that a net of this world is asked about. Raises VceError for a world without planted or clean nets."""
    if world == CLEAN:
        return tuple(cues.CUES)
    cue = datasets.world(world).cue
    if cue is None:
        raise VceError(f"world {world!r} has no cue to discover; give shards of {CLEAN} or of a world that plants one")
    return (cue,)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, nargs="+", required=True)
    parser.add_argument("--checkpoints", type=Path, nargs="+", required=True, help="the explained net of every shard")
    parser.add_argument("--splits", type=Path, nargs="+", required=True, help="split tables, named after their worlds")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True, help="rows per image, method and strength")
    parser.add_argument("--table", type=Path, required=True, help="one row per net, cue and method")
    parser.add_argument("--summary", type=Path, required=True, help="found nets, false alarms and AUROC per cue")
    args = parser.parse_args()
    if len(args.shards) != len(args.checkpoints):
        raise VceError(f"--checkpoints: {len(args.checkpoints)} files for {len(args.shards)} shards; give one for each")
    tables = {path.stem: pd.read_parquet(path) for path in args.splits}
    frames = []
    with Progress("discovery", total=len(args.shards), unit="nets") as progress:
        for path, checkpoint in zip(args.shards, args.checkpoints, strict=True):
            shard = read_shard(path)
            if checkpoint_facts(checkpoint)["seed"] != shard.seed:
                raise VceError(f"{checkpoint}: was trained with another seed than {path}; list both in the same order")
            if shard.world not in tables:
                raise VceError(f"--splits: no table named {shard.world}, the world of {path}")
            classifier = load_checkpoint(checkpoint)
            plain = datasets.load(CLEAN, tables[shard.world], "pairs", args.data)
            found = [measure(shard, classifier, cue, args.data) for cue in asked(shard.world)]
            frames.append(pd.concat(found).assign(accuracy=accuracy(classifier, plain.images, plain.labels)))
            progress.advance()
    rows = pd.concat(frames, ignore_index=True)
    nets = discover(rows)
    decided = nets[[*NET, "gate", "discovered"]].astype({"gate": float, "discovered": float})
    rows = rows.merge(decided, on=NET, validate="many_to_one")
    nets = nets.merge(rows[[*NET, "accuracy"]].drop_duplicates(), on=NET, validate="one_to_one")
    with atomic_path(args.out) as temporary:
        rows.sort_values([*NET, "image", "strength"], ignore_index=True).to_parquet(temporary, index=False)
    for frame, path in ((nets, args.table), (summarise(nets), args.summary)):
        with atomic_path(path) as temporary:
            frame.to_csv(temporary, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
