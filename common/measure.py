"""From explained batches to rows of the long table: every metric that needs no knowledge of the method."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.batches import Shard
from common.classifiers.oracles import Panel
from common.data import datasets
from common.explain import CounterfactualBatch
from common.metrics import ground_truth, perturbation
from common.results import JUDGES, PANEL


def measure_shard(shard: Shard, panel: Panel, data: Path) -> pd.DataFrame:
    """Rows of every method in a shard with the vote of every judge, method by method and strength by strength; `judged`
    adds what the panel says of them."""
    originals = datasets.load_ids(shard.world, shard.ids, data)
    twins = datasets.twins(shard.world, shard.ids) if datasets.world(shard.world).rendered else None
    shared = {
        "world": shard.world,
        "classifier": shard.classifier,
        "seed": shard.seed,
        "image": np.array(shard.ids, dtype=object),
        "source": shard.source.numpy(),
        "target": shard.target.numpy(),
        "stratum": np.where(shard.source_prediction.numpy() == shard.source.numpy(), "correct", "misclassified"),
    }
    frames = []
    for method, batch in shard.batches.items():
        s = len(batch.strengths)
        repeated = {name: np.tile(value, s) if np.ndim(value) else value for name, value in shared.items()}
        strength = np.repeat(np.array(batch.strengths, dtype=float), len(shard.ids))
        metrics = _metrics(batch, originals, shard.target, twins, panel)
        frames.append(pd.DataFrame({**repeated, "method": method, "strength": strength, **metrics}))
    return pd.concat(frames, ignore_index=True)


def by_strength(values: Tensor) -> Tensor:
    """N×S×… values of a batch as S·N×…, strength by strength: the order of rows."""
    return values.transpose(0, 1).flatten(0, 1)


def _metrics(
    batch: CounterfactualBatch, originals: datasets.Images, target: Tensor, twins: Tensor | None, panel: Panel
) -> dict[str, np.ndarray]:
    s = len(batch.strengths)

    def repeated(values: Tensor) -> Tensor:
        return values.repeat(s, *[1] * (values.ndim - 1))

    x, images, target = repeated(originals.images), by_strength(batch.images), repeated(target)
    twins = None if twins is None else repeated(twins)
    masks = None if originals.masks is None else repeated(originals.masks)
    delta = images - x
    votes = panel.predictions(images, twins)
    missing = torch.full((len(x),), torch.nan)
    twin = None if twins is None else twins[torch.arange(len(x)), target]
    found = {
        "confidence": by_strength(batch.confidence),
        "log_confidence": by_strength(batch.log_confidence),
        "distance": by_strength(batch.distance),
        "l1": perturbation.lp_norm(delta, 1),
        "l1.5": perturbation.lp_norm(delta, 1.5),
        "l2": perturbation.lp_norm(delta, 2),
        "hoyer": perturbation.hoyer(delta),
        "gini": perturbation.gini(delta),
        "pixel_share": perturbation.pixel_share(delta),
        "on_mask": missing if masks is None else perturbation.on_mask(delta, masks),
        "mask_area": missing if masks is None else masks.flatten(1).mean(1),
        **{f"oracle_{judge}": (votes[judge] == target).float() if judge in votes else missing for judge in JUDGES},
        "twin_error": missing if twin is None else ground_truth.twin_error(images, x, twin),
        "factor_progress": missing if twin is None else ground_truth.factor_progress(images, x, twin),
        "steps": by_strength(batch.steps),
        "forward": by_strength(batch.forward),
        "backward": by_strength(batch.backward),
    }
    return {"status": batch.status.T.ravel(), **{name: value.numpy() for name, value in found.items()}}


def reliance(shard: Shard) -> dict[str, float]:
    """R_j = P(f flips | do(j)) of each factor j of a rendered world (G2)."""
    seen = shard.source_prediction
    return {factor: (changed != seen).float().mean().item() for factor, changed in shard.interventions.items()}


def judge_accuracy(panel: Panel, pairs: datasets.Images) -> dict[str, float]:
    """Each judge's accuracy on all images of the pairs split."""
    return {
        judge: (vote == pairs.labels).float().mean().item()
        for judge, vote in panel.predictions(pairs.images, None).items()
    }


def oracle_gate(shard: Shard, judges: dict[str, float], n: int) -> pd.DataFrame:
    """Each judge's accuracy on the n images of the pairs split beside the explained classifier's, and whether it
    passes: no more than 3 points below. The classifier's reliance on each factor stands beside it."""
    rows = []
    for judge, accuracy in judges.items():
        passes = accuracy >= shard.accuracy - 0.03 - 1e-6  # exactly 3 points pass
        rows.append({"judge": judge, "accuracy": accuracy, "classifier_accuracy": shard.accuracy, "passes": passes})
    facts = {"world": shard.world, "classifier": shard.classifier, "seed": shard.seed, "n": n}
    relied = {f"reliance_{factor}": value for factor, value in reliance(shard).items()}
    return pd.DataFrame(rows).assign(**facts, **relied)


def passing_judges(gate: pd.DataFrame, world: str) -> set[str]:
    """The judges that pass beside every classifier of a world: cells that are compared need the same panel."""
    passes = gate[gate["world"] == world].groupby("judge")["passes"].all()
    return set(passes.index[passes])


def judged(rows: pd.DataFrame, gate: pd.DataFrame) -> pd.DataFrame:
    """The rows of `measure_shard` with the panel's word: `oracle_share` of the judges that pass `gate` see the target,
    `oracle_valid` when more than half do. The vote of a judge that does not pass is no number; the reader of exact
    twins needs no gate."""
    votes = rows[[f"oracle_{judge}" for judge in JUDGES]].copy()
    for world in rows["world"].unique():
        failing = set(PANEL) - passing_judges(gate, world)
        votes.loc[rows["world"] == world, [f"oracle_{judge}" for judge in failing]] = np.nan
    share = votes.mean(axis=1)
    valid = (share > 0.5).astype(share.dtype).where(share.notna())
    return rows.assign(**votes, oracle_share=share, oracle_valid=valid)
