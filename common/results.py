"""The long table of results: its columns, its writer, and the recipe hash that says which numbers are comparable."""

import hashlib
import json
from pathlib import Path

import pandas as pd

from common.errors import VceError
from common.files import atomic_path

STATUSES = ("ok", "not_flipped", "diverged", "skipped", "unreadable")
PANEL = ("augmented", "svm", "l2at")  # the trained judges of the oracle panel
JUDGES = (*PANEL, "twin")
KEY = ["world", "method", "classifier", "image", "source", "target", "seed", "strength"]

COLUMNS = {
    "world": "data set the image comes from",
    "method": "method and its variant, as in the paper's README",
    "classifier": "explained classifier's kind, trained once per seed",
    "image": "image id",
    "source": "class of the image (its label)",
    "target": "class asked for",
    "seed": "training seed of the classifier",
    "strength": "position on the method's path: radius, iterate, α or share",
    "status": "one of " + ", ".join(STATUSES),
    "stratum": "`correct` or `misclassified`: whether the classifier reads the original as its label",
    "confidence": "p_f(target | x′), temperature-scaled",
    "log_confidence": "natural logarithm of it",
    "distance": "mean |x′ − x| over all colour values",
    "l1": "‖x′ − x‖₁",
    "l1.5": "‖x′ − x‖_1.5",
    "l2": "‖x′ − x‖₂",
    "hoyer": "Hoyer sparsity of x′ − x",
    "gini": "Gini index of |x′ − x|",
    "pixel_share": "share of pixels with Σ_c |x′ − x| > 0.1",
    "on_mask": "share of the l1 mass of x′ − x on the object (chance: mask_area)",
    "mask_area": "share of the image that the object covers",
    "oracle_valid": "1 when most of the oracle panel sees the target",
    "oracle_share": "share of the oracle panel that sees the target",
    "oracle_augmented": "1 when this judge sees the target: a CNN trained with noise and blur",
    "oracle_svm": "likewise: an RBF support vector machine",
    "oracle_l2at": "likewise: an l2-adversarially trained net",
    "oracle_twin": "likewise: the reader of exact twins (rendered worlds)",
    "twin_error": "‖x′ − x*‖₂ / ‖x − x*‖₂ against the exact twin x*",
    "factor_progress": "⟨x′ − x, x* − x⟩ / ‖x* − x‖²",
    "steps": "gradient evaluations of the search",
    "forward": "forward passes per image",
    "backward": "backward passes per image",
}


def write_rows(rows: pd.DataFrame, path: Path) -> None:
    """Write the long table in key order, atomically.

    Raises VceError when a column is missing or unknown, a key occurs twice or a status has no name.
    """
    wrong = set(rows.columns) ^ set(COLUMNS)
    if wrong:
        raise VceError(f"{path}: columns {', '.join(sorted(wrong))} are missing or unknown; see common/results.py")
    if rows.duplicated(KEY).any():
        raise VceError(
            f"{path}: row {dict(rows[rows.duplicated(KEY)].iloc[0][KEY])} occurs twice; fix the measuring job"
        )
    if not rows["status"].isin(STATUSES).all():
        raise VceError(f"{path}: a status is none of {', '.join(STATUSES)}; fix the explaining job")
    with atomic_path(path) as temporary:
        rows[list(COLUMNS)].sort_values(KEY, ignore_index=True).to_parquet(temporary, index=False)


def recipe_hash(recipe: dict) -> str:
    """sha256 (16 hex digits) of everything that decides a number: scale, seeds, ids, data, classifiers, metrics.

    Two numbers are comparable only when their recipe hashes agree.
    """
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
