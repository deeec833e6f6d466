"""Two paths compared: read at one level of change or confidence, and how much their changes agree."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from scipy.stats import hypergeom
from torch import Tensor

from common.matching import At, read_all
from vce.explanation import Explanation, sizes

READ = ("confidence", "source_confidence", "mean_abs_change", "l1", "l2", "hoyer", "pixel_share")
TOP = 0.05  # share of the pixels that count as the most changed


@dataclass(frozen=True)
class Reading:
    """A path read at one level. `values` are those of `READ`, None where a value is no number; `between` are the places
    on the path, 0 for its start, whose values are interpolated, twice the same where a point has that level. Where the
    path never has it `missing` says why, and there are no values."""

    values: dict[str, float | None] | None = None
    between: tuple[int, int] = (0, 0)
    missing: str = ""


def points(explanation: Explanation) -> list[dict[str, float | None] | None]:
    """S + 1 rows of `READ`: where the path starts, which is the reconstruction where there is one, then the path; None
    where the method diverged."""
    source, drawn = explanation.record["source"], explanation.record.get("reconstruction_error")
    first = {
        **sizes((explanation.start - explanation.image)[None])[0],
        "confidence": (drawn or source)["target_confidence"],
        "source_confidence": drawn["source_confidence"] if drawn else source["confidence"],
        "status": "start",
    }
    return [
        None if row["status"] == "diverged" else {name: row[name] for name in READ}
        for row in (first, *explanation.rows)
    ]


def read_at(rows: Sequence[dict[str, float | None] | None], name: str, level: float, falling: bool = False) -> Reading:
    """The rows of `points`, read where `name`, which each of them has, first rises to `level`, or falls to it: linear
    interpolation between neighbouring points, as in the tables of the papers. A value that the point before does not
    have (the sparsity of no change) is that of the point after."""
    sign = -1 if falling else 1
    kept = [place for place, row in enumerate(rows) if row is not None]
    followed = [sign * rows[place][name] for place in kept]
    crossing = next((i for i, value in enumerate(followed) if value >= sign * level), None)
    below, above = ("above", "below") if falling else ("below", "above")
    if crossing is None:
        return Reading(missing=f"stays {below}")
    if crossing == 0 and followed[0] != sign * level:
        return Reading(missing=f"starts {above}, at {sign * followed[0]:.3g}")
    names = [f"read {column}" for column in READ]
    columns = {new: [rows[place][column] for place in kept] for new, column in zip(names, READ, strict=True)}
    # the reader of paths follows what it calls `confidence`
    table = pd.DataFrame({**columns, "confidence": followed}, dtype=float).assign(strength=kept, seed=0, image="")
    found = read_all(table, names, At(confidence=sign * level))
    values = [float(found[new].iat[0, 0]) for new in names]
    before = crossing if followed[crossing] == sign * level else crossing - 1
    return Reading(
        {column: None if math.isnan(value) else value for column, value in zip(READ, values, strict=True)},
        (kept[before], kept[crossing]),
    )


def cosine(a: Tensor, b: Tensor) -> float | None:
    """Cosine of the angle between two changes of equal shape, in [-1, 1]; 0 for unrelated ones, None where either is
    no change."""
    a, b = a.flatten().double(), b.flatten().double()
    norms = a.norm() * b.norm()
    return float((a @ b / norms).clamp(-1, 1)) if norms > 0 else None


def most_changed(change: Tensor, share: float = TOP) -> Tensor:
    """The `share` of the pixels, at least one, that change most in a map H×W ≥ 0, as H×W booleans: fewer where fewer
    change at all, and of equal ones the earlier."""
    flat = change.flatten()
    top = torch.zeros_like(flat, dtype=torch.bool)
    top[flat.argsort(descending=True, stable=True)[: max(1, round(share * len(flat)))]] = True
    return (top & (flat > 0)).view_as(change)


def overlap(a: Tensor, b: Tensor) -> float | None:
    """Intersection over union of two masks of equal shape, in [0, 1]; None for two empty ones."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else None


def chance_overlap(n: int, a: int, b: int) -> float | None:
    """The mean intersection over union of `a` and `b` pixels drawn at random from `n`; None where both are 0."""
    if not a + b:
        return None
    common = range(max(0, a + b - n), min(a, b) + 1)
    return float(sum(i / (a + b - i) * hypergeom.pmf(i, n, a, b) for i in common))
