"""From explained batches to rows of the long table: every metric that needs no knowledge of the method."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.batches import Shard
from common.classifiers.oracles import JUDGES, Panel, majority
from common.data import datasets
from common.explain import CounterfactualBatch
from common.metrics import ground_truth, perturbation


def measure_shard(shard: Shard, panel: Panel, data: Path) -> pd.DataFrame:
    """Rows (columns of `common.results.COLUMNS`) of every method in a shard, judged by `panel`."""
    originals = datasets.load_ids(shard.world, shard.ids, data)
    twins = datasets.twins(shard.world, shard.ids) if datasets.world(shard.world).rendered else None
    shared = {
        "world": shard.world,
        "classifier": shard.classifier,
        "seed": shard.seed,
        "image": shard.ids,
        "source": shard.source.numpy(),
        "target": shard.target.numpy(),
        "stratum": np.where(shard.source_prediction.numpy() == shard.source.numpy(), "correct", "misclassified"),
    }
    frames = []
    for method, batch in shard.batches.items():
        for j, strength in enumerate(batch.strengths):
            metrics = _metrics(batch, j, originals, shard.target, twins, panel)
            frames.append(pd.DataFrame({**shared, "method": method, "strength": float(strength), **metrics}))
    return pd.concat(frames, ignore_index=True)


def _metrics(
    batch: CounterfactualBatch, j: int, originals: datasets.Images, target: Tensor, twins: Tensor | None, panel: Panel
) -> dict[str, np.ndarray]:
    x, images = originals.images, batch.images[:, j]
    delta = images - x
    votes = panel.predictions(images, twins)
    missing = torch.full((len(x),), torch.nan)
    agree = torch.stack([vote == target for vote in votes.values()]).float().mean(0) if votes else missing
    twin = None if twins is None else twins[torch.arange(len(x)), target]
    found = {
        "confidence": batch.confidence[:, j],
        "log_confidence": batch.log_confidence[:, j],
        "distance": batch.distance[:, j],
        "l1": perturbation.lp_norm(delta, 1),
        "l1.5": perturbation.lp_norm(delta, 1.5),
        "l2": perturbation.lp_norm(delta, 2),
        "hoyer": perturbation.hoyer(delta),
        "gini": perturbation.gini(delta),
        "pixel_share": perturbation.pixel_share(delta),
        "on_mask": missing if originals.masks is None else perturbation.on_mask(delta, originals.masks),
        "mask_area": missing if originals.masks is None else originals.masks.flatten(1).mean(1),
        "oracle_valid": majority(votes, target).float() if votes else missing,
        "oracle_share": agree,
        **{f"oracle_{judge}": (votes[judge] == target).float() if judge in votes else missing for judge in JUDGES},
        "twin_error": missing if twin is None else ground_truth.twin_error(images, x, twin),
        "factor_progress": missing if twin is None else ground_truth.factor_progress(images, x, twin),
        "steps": batch.steps[:, j],
        "forward": batch.forward[:, j],
        "backward": batch.backward[:, j],
    }
    return {"status": batch.status[:, j], **{name: value.numpy() for name, value in found.items()}}


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
