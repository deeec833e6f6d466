"""From explained batches to rows of the long table: every metric that needs no knowledge of the method."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.batches import Shard
from common.classifiers.oracles import Panel, majority
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
    agree = torch.stack([vote == target for vote in votes.values()]).float().mean(0)
    missing = torch.full((len(x),), torch.nan)
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
        "oracle_valid": majority(votes, target).float(),
        "oracle_share": agree,
        "twin_error": missing if twin is None else ground_truth.twin_error(images, x, twin),
        "factor_progress": missing if twin is None else ground_truth.factor_progress(images, x, twin),
        "steps": batch.steps[:, j],
        "forward": batch.forward[:, j],
        "backward": batch.backward[:, j],
    }
    return {"status": batch.status[:, j], **{name: value.numpy() for name, value in found.items()}}


def oracle_gate(shard: Shard, panel: Panel, data: Path) -> pd.DataFrame:
    """Accuracy of each judge and of the explained classifier on the shard's original images, and whether the judge
    passes: within 3 points of the classifier."""
    originals = datasets.load_ids(shard.world, shard.ids, data)
    own = (shard.source_prediction == shard.source).float().mean().item()
    rows = []
    for judge, vote in panel.predictions(originals.images, None).items():
        accuracy = (vote == originals.labels).float().mean().item()
        rows.append(
            {"judge": judge, "accuracy": accuracy, "classifier_accuracy": own, "passes": accuracy >= own - 0.03}
        )
    return pd.DataFrame(rows).assign(world=shard.world, classifier=shard.classifier, seed=shard.seed, n=len(shard.ids))
