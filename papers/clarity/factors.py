"""What decides the judges' score: shares of {space, M, λ, τ} (claim C7), and whether a plateau foretells failure (C6).

Both come with half-samples of the images, from which the verdicts take their intervals.
"""

import numpy as np
import pandas as pd

from common.metrics.realism import Halves

SEARCHES = ("search", "search/lambda")
PICTURES = ("p", "pr")
# by grid: spaces, methods, and the factors that are crossed, each with its column
GRIDS = {
    "thresholds": ((*PICTURES, "l-sample"), SEARCHES, {"space": "space", "M": "m", "λ": "method", "τ": "strength"}),
    "thresholds, both readings": (
        (*PICTURES, "l-mean", "l-sample"), SEARCHES, {"space": "space", "M": "m", "λ": "method", "τ": "strength"},
    ),
    "matched distance": ((*PICTURES, "l-sample"), ("direction",), {"space": "space", "M": "m", "r": "strength"}),
}  # fmt: skip
SIZES = (1, 5)
SCORE = "oracle_share"


def squared_effect(effects: np.ndarray, halves: np.ndarray) -> np.ndarray:
    """Unbiased squares of mean effects: for n×L per-image effects and (R+1)×n indicators, (R+1) means over the L levels
    of Σ_{i≠j} e_i e_j / (k(k − 1)), k images in the half: noise between images adds nothing."""
    k = halves.sum(1, keepdims=True)
    return (((halves @ effects) ** 2 - halves @ effects**2) / (k * (k - 1))).mean(1)


def factor_shares(cells: pd.DataFrame) -> pd.DataFrame:
    """Shares of the variance between the cells of each full grid that the main effect of each factor has: columns seed,
    half (0: all images), grid, factor, share, n."""
    lines = []
    for grid, (spaces, methods, factors) in GRIDS.items():
        chosen = cells["space"].isin(spaces) & cells["method"].isin(methods) & cells["m"].isin(SIZES)
        for seed, here in cells[chosen].groupby("seed"):
            table = here.pivot_table(index="image", columns=list(factors.values()), values=SCORE, dropna=False)
            y = table.to_numpy().reshape(len(table), *(len(level) for level in table.columns.levels))
            y = y - y.reshape(len(y), -1).mean(1).reshape(-1, *(1,) * len(factors))
            halves = Halves.draw(len(y), 0).generated.numpy()
            total = squared_effect(y.reshape(len(y), -1), halves)
            for axis, name in enumerate(factors):
                others = tuple(k + 1 for k in range(len(factors)) if k != axis)
                share = squared_effect(y.mean(others), halves) / total
                facts = {"seed": seed, "half": np.arange(len(share)), "grid": grid, "factor": name}
                lines.append(pd.DataFrame({**facts, "share": share, "n": len(y)}))
    return pd.concat(lines, ignore_index=True)


def halved_auc(score: np.ndarray, positive: np.ndarray, halves: np.ndarray) -> np.ndarray:
    """(R+1) areas under the ROC curve: how often a positive has the larger of two scores, ties counting half."""
    larger = (score[:, None] > score[None]) + 0.5 * (score[:, None] == score[None])
    one, other = halves * positive, halves * (1 - positive)
    wins = ((one @ larger) * other).sum(1)
    with np.errstate(invalid="ignore"):
        return wins / (one.sum(1) * other.sum(1))


def plateau_auc(cells: pd.DataFrame, gradients: pd.DataFrame, level: float) -> pd.DataFrame:
    """How well a short gradient of p_t at the start foretells failure, as an AUC: columns seed, half, quantity, auc, n.

    P1 and Clarity fail where their counterfactual at own confidence `level` does not exist or most of the panel reject
    it (single members: for most of them). Beside it, chance, and the AUC of a small p_t at the start, which is
    part of ∇p_t = p_t·∇log p_t: what the length of the gradient adds to how far away the target is.
    """
    lines = []
    for quantity, space, m in (("P1 rejected", "p", 1), ("Clarity rejected", "l-sample", 5)):
        where = (cells["space"] == space) & (cells["m"] == m) & (cells["method"] == "search")
        here = cells[where & np.isclose(cells["strength"], level)]
        start = gradients[(gradients["space"] == space) & (gradients["m"] == m)]
        joined = here.merge(start[["world", "seed", "image", "grad_p", "log_p"]], on=["world", "seed", "image"])
        for seed, pairs in joined.groupby("seed"):
            failed = (pairs["covered"] < 0.5).to_numpy(float)
            halves = Halves.draw(len(pairs), 0).generated.numpy()
            scores = {
                quantity: halved_auc(-pairs["grad_p"].to_numpy(), failed, halves),
                f"{quantity}, by p alone": halved_auc(-pairs["log_p"].to_numpy(), failed, halves),
            }
            scores["chance"] = np.where(np.isnan(scores[quantity]), np.nan, 0.5)
            for name, auc in scores.items():
                facts = {"seed": seed, "half": np.arange(len(auc)), "predicted": quantity, "quantity": name}
                lines.append(pd.DataFrame({**facts, "auc": auc, "n": len(pairs)}))
    return pd.concat(lines, ignore_index=True)
