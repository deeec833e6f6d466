"""Reading a path: crossings by hand, paths that start above the level or never reach it, labels of the table."""

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from common.matching import At, reached, read, select


def path(confidence, values, seed=0, image="a", strengths=None):
    strengths = strengths or [float(j + 1) for j in range(len(confidence))]
    return pd.DataFrame(
        {"seed": seed, "image": image, "strength": strengths, "confidence": confidence, "metric": values}
    )


def one(confidence, values, at):
    table = read(path(confidence, values), "metric", at)
    assert table.shape == (1, 1)
    return table.iloc[0, 0]


@pytest.mark.parametrize(
    ("confidence", "values", "expected"),
    [
        ([0.1, 0.5, 0.9], [1, 2, 4], 2),  # exactly at a row
        ([0.1, 0.3, 0.7], [1, 2, 4], 3),  # half-way
        ([0.1, 0.4, 0.8], [0, 1, 3], 1.5),  # a quarter of the step
        ([0.6, 0.7, 0.9], [5, 6, 7], 5),  # starts above
        ([0.1, 0.2, 0.4], [5, 6, 7], 7),  # never gets there
        ([0.1, 0.6, 0.2, 0.7], [0, 5, 50, 90], 4),  # the first crossing counts
        ([0.1, 0.3, 0.7], [1, np.nan, 4], 4),  # no value before the crossing
    ],
)
def test_at_confidence(confidence, values, expected):
    assert one(confidence, values, At(confidence=0.5)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("confidence", "values", "expected"),
    [
        ([0.1, 0.5, 0.9], [1, 2, 4], 2),
        ([0.1, 0.3, 0.7], [1, 2, 4], 4),
        ([0.6, 0.7, 0.9], [5, 6, 7], 5),
        ([0.1, 0.2, 0.4], [5, 6, 7], 0),
        ([0.1, 0.6, 0.2], [1, 3, 5], 3),
        ([0.1, np.nan, 0.6], [1, 3, 5], 5),
    ],
)
def test_at_first_success(confidence, values, expected):
    assert one(confidence, values, At(first_success=0.5)) == pytest.approx(expected)


def test_at_strength_and_over_the_path():
    assert one([0.1, 0.2, 0.3], [1, 2, 6], At(strength=2)) == 2
    assert one([0.1, 0.2, 0.3], [1, 2, 6], At(each=True)) == 3
    assert read(path([0.1], [1]), "metric", At(strength=5)).empty


@pytest.mark.parametrize("at", [At(strength=2), At(confidence=0.5), At(first_success=0.5), At(each=True)])
def test_cells_keep_their_seed_and_image_whatever_the_row_order(at):
    cells = [(seed, image) for seed in (2, 0, 1) for image in ("b", "c", "a")]
    parts = [
        path([0.1, 0.6, 0.9], [10 * seed + ord(image)] * 3, seed, image)
        for seed, image in cells
        if (seed, image) != (1, "c")
    ]
    rows = pd.concat(parts).sample(frac=1, random_state=0)
    table = read(rows, "metric", at)
    assert table.index.tolist() == [0, 1, 2] and table.columns.tolist() == ["a", "b", "c"]
    for seed, image in cells:
        expected = np.nan if (seed, image) == (1, "c") else 10 * seed + ord(image)
        assert table.loc[seed, image] == pytest.approx(expected, nan_ok=True)


def test_reached_is_the_share_of_paths():
    rows = pd.concat([path([0.1, 0.95, 0.2], [0] * 3), path([0.1, 0.2, 0.89], [0] * 3, image="b")])
    assert reached(rows, 0.9) == 0.5 and reached(rows, 0.05) == 1 and reached(rows, 0.99) == 0


def test_select():
    rows = pd.DataFrame({"world": ["w", "w", "v"], "method": ["m", "n", "m"]})
    assert select(rows, {"world": "w", "method": "m"}).index.tolist() == [0]
    assert select(rows, {"world": "x"}).empty and len(select(rows, {})) == 3


@pytest.mark.parametrize("fields", [{}, {"strength": 1, "confidence": 0.5}, {"each": False}, {"level": 1}])
def test_at_takes_exactly_one_field(fields):
    with pytest.raises(ValidationError):
        At(**fields)


def test_at_in_words():
    assert [str(At(confidence=0.9)), str(At(first_success=0.8)), str(At(strength=1.5)), str(At(each=True))] == [
        "confidence 0.9", "first success 0.8", "strength 1.5", "mean over the path"
    ]  # fmt: skip
