"""The long table's writer and the recipe hash."""

import numpy as np
import pandas as pd
import pytest

from common.errors import VceError
from common.results import COLUMNS, KEY, recipe_hash, write_rows


def table(n=6):
    text = {"world": "scenes", "method": "m", "classifier": "c", "status": "ok", "stratum": "correct"}
    frame = pd.DataFrame({column: text.get(column, np.arange(n) / 7) for column in COLUMNS})
    return frame.assign(image=[f"i{k}" for k in range(n)], source=0, target=1, seed=0)


def test_rows_come_back_in_key_order(tmp_path):
    write_rows(table().sample(frac=1, random_state=0), tmp_path / "rows.parquet")
    back = pd.read_parquet(tmp_path / "rows.parquet")
    assert list(back.columns) == list(COLUMNS)
    pd.testing.assert_frame_equal(back, table()[list(COLUMNS)])


def test_same_rows_same_bytes(tmp_path):
    for k in range(2):
        write_rows(table().sample(frac=1, random_state=k), tmp_path / f"{k}.parquet")
    assert (tmp_path / "0.parquet").read_bytes() == (tmp_path / "1.parquet").read_bytes()


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda t: t.drop(columns="gini"), "gini"),
        (lambda t: t.assign(extra=1), "extra"),
        (lambda t: pd.concat([t, t.head(1)]), "occurs twice"),
        (lambda t: t.assign(status="fine"), "status"),
    ],
)
def test_bad_rows_are_refused_and_nothing_is_written(tmp_path, spoil, named):
    path = tmp_path / "rows.parquet"
    with pytest.raises(VceError, match=named):
        write_rows(spoil(table()), path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("column", KEY)
def test_every_key_column_tells_rows_apart(tmp_path, column):
    one = table(1)
    other = one.assign(**{column: "x" if one[column].dtype == object else one[column] + 1})
    write_rows(pd.concat([one, other]), tmp_path / "rows.parquet")


def test_recipe_hash_sees_values_not_order():
    assert recipe_hash({"a": 1, "b": [1, 2]}) == recipe_hash({"b": [1, 2], "a": 1})
    assert recipe_hash({"a": 1, "b": [1, 2]}) != recipe_hash({"a": 1, "b": [2, 1]})
    assert len(recipe_hash({})) == 16
