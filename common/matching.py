"""Reading a metric off a path: at a strength, at a fixed confidence, or at the first own success."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, model_validator

ROUNDING = 1e-6  # a search that stopped at a confidence may be read a little below it in another batch


class At(BaseModel):
    """Where on its path a method is read; exactly one field is set.

    strength: the row with this strength · confidence: linear interpolation at the first crossing of p_f(target), the
    first row where the path starts above it, the last row where it never gets there · first_success: the first row with
    p_f(target) at or above this value, and 0 where there is none · each: every strength, averaged.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    strength: float | None = None
    confidence: float | None = None
    first_success: float | None = None
    each: Literal[True] | None = None

    @model_validator(mode="after")
    def _exactly_one(self):
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("`at` takes exactly one of strength, confidence, first_success, each")
        return self

    def __str__(self) -> str:
        ((name, value),) = self.model_dump(exclude_none=True).items()
        return "mean over the path" if name == "each" else f"{name.replace('_', ' ')} {value:g}"


def select(rows: pd.DataFrame, where: dict) -> pd.DataFrame:
    """Rows whose columns equal the values in `where`."""
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows


def read(rows: pd.DataFrame, metric: str, at: At) -> pd.DataFrame:
    """seeds×images table of `metric`, labelled by both (ascending); NaN where a cell does not exist.

    `rows` holds one method, classifier and world.
    """
    return read_all(rows, [metric], at)[metric]


def read_all(rows: pd.DataFrame, metrics: Sequence[str], at: At) -> dict[str, pd.DataFrame]:
    """The tables of `read` for several metrics of the same rows."""
    if at.strength is not None:
        rows = rows[np.isclose(rows["strength"], at.strength)]
        return _matrices(rows, {metric: rows[metric].to_numpy(float) for metric in metrics})
    if at.each:
        mean = rows.groupby(["seed", "image"], as_index=False)[list(metrics)].mean()
        return _matrices(mean, {metric: mean[metric].to_numpy(float) for metric in metrics})
    ordered = rows.sort_values(["seed", "image", "strength"])
    first = ~ordered.duplicated(["seed", "image"]).to_numpy()
    path = first.cumsum() - 1
    place = np.arange(len(ordered)) - np.flatnonzero(first)[path] if len(ordered) else path
    shape = (path[-1] + 1, place.max() + 1) if len(path) else (0, 1)

    def paths(column: str) -> np.ndarray:
        """Paths × strengths, shorter paths padded with NaN."""
        values = np.full(shape, np.nan)
        values[path, place] = ordered[column]
        return values

    confidence = paths("confidence")
    read_path = _at_confidence if at.confidence is not None else _at_first_success
    level = at.confidence if at.confidence is not None else at.first_success
    return _matrices(ordered[first], {metric: read_path(confidence, paths(metric), level) for metric in metrics})


def reached(rows: pd.DataFrame, level: float) -> float:
    """Share of paths whose confidence reaches `level`."""
    return float((rows.groupby(["seed", "image"])["confidence"].max() >= level).mean())


def start_above(rows: pd.DataFrame, level: float) -> float:
    """Share of paths whose first image already has confidence `level` or more."""
    return float((rows.sort_values("strength").groupby(["seed", "image"])["confidence"].first() >= level).mean())


def _at_confidence(confidence: np.ndarray, values: np.ndarray, level: float) -> np.ndarray:
    """P values from paths × strengths."""
    above = confidence >= level
    everyone, last = np.arange(len(values)), (~np.isnan(confidence)).sum(1) - 1
    j = np.where(above.any(1), above.argmax(1), last)
    i = np.maximum(j - 1, 0)
    found, before = values[everyone, j], values[everyone, i]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (level - confidence[everyone, i]) / (confidence[everyone, j] - confidence[everyone, i])
        crossing = above.any(1) & (j > 0) & ~np.isnan(before)
        return np.where(crossing, before + share * (found - before), found)


def _at_first_success(confidence: np.ndarray, values: np.ndarray, level: float) -> np.ndarray:
    """P values from paths × strengths."""
    above = confidence >= level - ROUNDING
    nothing = np.nan if np.isnan(values).all() else 0.0  # what nobody measured is no failure
    return np.where(above.any(1), values[np.arange(len(values)), above.argmax(1)], nothing)


def _matrices(keys: pd.DataFrame, columns: dict[str, np.ndarray]) -> dict[str, pd.DataFrame]:
    index, row = np.unique(keys["seed"].to_numpy(), return_inverse=True)
    images, column = np.unique(keys["image"].to_numpy(dtype=object), return_inverse=True)
    if len(np.unique(row * len(images) + column)) < len(keys):
        raise ValueError("a seed and image occur twice")
    tables = {}
    for name, values in columns.items():
        table = np.full((len(index), len(images)), np.nan)
        table[row, column] = values
        tables[name] = pd.DataFrame(table, pd.Index(index, name="seed"), pd.Index(images, name="image"))
    return tables
