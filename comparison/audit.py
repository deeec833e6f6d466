"""The metric audit: which of the usual metrics put a right answer above a wrong one, where the right answer is known?

Four things that a method might hand out, in the order that an explanation should be ranked in: the exact twin; the
nearest real image of the target class, true but another image; an adversarial image, pixel ascent on the net that is
not robust; nothing at all. A metric that rewards doing nothing, or noise that only the classifier sees, ranks otherwise
(Hvilshøj et al. 2021).
"""

from itertools import combinations

import numpy as np
import pandas as pd

from common.statistics import REPLICATES

ORDER = ("twin", "nearest-real", "pixel-ascent", "identity")  # from the best to the worst
ROUNDING = 1e-6  # what single precision may add up to: a gain of 1e-26 is no gain
PLAIN = "standard"  # the net on which pixel ascent is adversarial
# metric: 1 where more is better, -1 where less is
METRICS = {
    "valid": 1, "confidence": 1, "l1": -1, "l2": -1, "hoyer": 1, "gini": 1, "im1": -1, "effect": 1, "honest": 1,
    "twin_error": -1, "progress_label": 1, "precision": 1,
}  # fmt: skip
NAMES = {
    "valid": "validity", "confidence": "confidence", "l1": "l1", "l2": "l2", "hoyer": "sparsity (Hoyer)",
    "gini": "sparsity (Gini)", "im1": "IM1", "kid": "KID", "effect": "A, effect at equal change",
    "honest": "B, oracle-valid at first success", "twin_error": "G1, twin error", "progress_label": "G1, progress",
    "precision": "G3, average precision",
}  # fmt: skip


def audit_table(paths: pd.DataFrame, kid: pd.DataFrame) -> pd.DataFrame:
    """For every world and metric the mean of the four; `right`, in how many of their `pairs` the metric has the better
    one strictly above, with a 95 % interval from resampled images (KID: half-samples).

    A metric of a change is no number where nothing changed: it ranks nobody above, and the pair counts as wrong.
    """
    lines = []
    for world, mine in paths[paths["classifier"] == PLAIN].groupby("world"):
        shown = [name for name in ORDER if name in set(mine["method"])]
        for metric, sign in METRICS.items():
            if metric in mine and mine[metric].notna().any():
                values = mine.groupby(["image", "method"])[metric].mean().unstack("method")[shown].to_numpy(float)
                lines.append(_line(world, metric, shown, _resampled(values), sign))
        sets = kid[(kid["world"] == world) & (kid["classifier"] == PLAIN)]
        means = sets.groupby(["half", "method"])["kid"].mean().unstack("method")
        if set(shown) <= set(means):
            lines.append(_line(world, "kid", shown, means[shown].to_numpy(), -1))
    return pd.DataFrame(lines, columns=None if lines else ["world", "metric", "name", "right", "pairs"])


def ordered_pairs(values: np.ndarray, sign: int) -> np.ndarray:
    """Of R×K values of K things, best first, in how many of the K(K−1)/2 pairs `sign` times the value of the better one
    is above by more than `ROUNDING`: R counts. What is no number is above nothing, and nothing is above it."""
    pairs = combinations(range(values.shape[1]), 2)
    with np.errstate(invalid="ignore"):
        above = (sign * (values[:, better] - values[:, worse]) > ROUNDING for better, worse in pairs)
        return sum(each.astype(int) for each in above)


def _resampled(values: np.ndarray) -> np.ndarray:
    """(R+1)×K means of N×K values by image: of all images first, then of R bootstrap samples of them."""
    n = len(values)
    drawn = np.random.Generator(np.random.Philox(key=0)).integers(0, n, (REPLICATES, n))
    weights = np.stack([np.bincount(rows, minlength=n) for rows in drawn])
    present = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means = (weights @ np.nan_to_num(values)) / (weights @ present)
        return np.vstack([np.where(present.any(0), np.nansum(values, 0) / present.sum(0), np.nan), means])


def _line(world: str, metric: str, shown: list[str], means: np.ndarray, sign: int) -> dict:
    right = ordered_pairs(means, sign)
    low, high = np.quantile(right[1:], [0.025, 0.975])
    pairs = len(shown) * (len(shown) - 1) // 2
    facts = {"world": world, "metric": metric, "name": NAMES[metric], "better": "more" if sign > 0 else "less"}
    return {
        **facts,
        **dict(zip(shown, means[0], strict=True)),
        "right": right[0],
        "low": low,
        "high": high,
        "pairs": pairs,
    }
