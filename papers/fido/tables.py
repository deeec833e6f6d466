"""Job: the tables of FIDO: the paper's Table 1 beside ours, the maps, the circularity of the suppression test,
in-fills, sweeps, likeness.

python -m papers.fido.tables --results DIR --out DIR
"""

import argparse
from pathlib import Path

import pandas as pd

from common.errors import one_line_errors
from common.files import write_atomic
from common.statistics import paired_bootstrap
from common.tables import summary

CELL = ["world", "starts", "classifier", "method"]
MAPS = [
    "area", "empty", "full", "overflow", "overflow_object", "overflow_matched", "overflow_object_matched",
    "localisation", "metric", "localisation_matched", "metric_matched", "pointing", "place", "kept_net", "half_net",
    "matched_net", "kept_background", "matched_background", "enough_net", "enough_background", "entropy", "expected",
    "map_score", "deletion", "insertion", "road_morf", "road_lerf", "bad_fills", "original",
]  # fmt: skip
SWEPT = ["area", "empty", "overflow_object", "overflow_object_matched", "expected", "map_score"]
# Table 1 of the review version: a ResNet on 1,000 ImageNet images; `ssr/net` is its CA-GAN, `masker` the model of
# Dabkowski and Gal. Other data and another recipe than ours; the final version, on 50,000 images, was not available.
PAPER = {
    "max": (63.5, 1.118),
    "center": (45.3, 0.434),
    "ssr/mean": (51.7, 0.862),
    "ssr/blur": (48.7, 0.763),
    "ssr/random": (53.3, 0.784),
    "ssr/local": (38.1, 0.467),
    "ssr/vae": (43.5, 0.359),
    "ssr/net": (52.1, -0.092),
    "masker": (38.5, 0.129),
    "box": (0.0, 0.432),
}


def main_cell(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the explained classifier on `scenes`."""
    return table[(table["world"] == "scenes") & (table["starts"] == "pairs") & (table["classifier"] == "cnn")]


def table_one(maps: pd.DataFrame) -> pd.DataFrame:
    """Localisation error (M3, a share) and Saliency Metric (M4) of the MAP masks, and at the matched area; the paper's
    own values, for the in-painting net those of its CA-GAN, in columns `paper_imagenet_…`."""
    table = summary(
        main_cell(maps), CELL, ["localisation", "metric", "localisation_matched", "metric_matched", "area", "empty"]
    )
    error, metric = (table["method"].map({name: values[k] for name, values in PAPER.items()}) for k in (0, 1))
    return table.assign(paper_imagenet_localisation=error / 100, paper_imagenet_metric=metric)


def circularity_table(suppression: pd.DataFrame) -> pd.DataFrame:
    """Mean pixels to suppress 10–40 % of the class, maps in lines, evaluating in-fills in columns with n, interval and
    the share of images left out, misclassified or with nothing at stake: a map wins under the in-fill that it was
    optimised against, so look at those that none was."""
    lines = []
    for keys, cell in suppression.groupby([*CELL, "fill"]):
        estimate = paired_bootstrap(cell.groupby("image")["pixels"].mean().to_numpy(float))
        found = {
            "n": estimate.n,
            "left_out": cell["pixels"].isna().mean(),
            "pixels": estimate.mean,
            "low": estimate.low,
            "high": estimate.high,
        }
        lines.append(dict(zip([*CELL, "fill"], keys, strict=True)) | found)
    return pd.DataFrame(lines).pivot(index=CELL, columns="fill").swaplevel(axis=1).sort_index(axis=1).pipe(_flat)


def _flat(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_axis(["_".join(names) for names in table.columns], axis=1).reset_index()


def status_table(maps: pd.DataFrame) -> pd.DataFrame:
    """How many maps are empty, full or diverged; they stay in every denominator but that of their own undefined
    overflow."""
    counts = maps.dropna(subset="status").groupby([*CELL, "status"]).size()
    return counts.unstack("status", fill_value=0).reset_index()


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder of maps, suppression ... .parquet")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    args = parser.parse_args()
    names = ("maps", "suppression", "recovery", "likeness", "sweeps", "trends")
    maps, suppression, recovery, likeness, sweeps, trends = (
        pd.read_parquet(args.results / f"{name}.parquet") for name in names
    )
    tables = {
        "table1": table_one(maps),
        "maps": summary(maps[~maps["method"].str.startswith("gap/")], CELL, MAPS),
        "map_statuses": status_table(maps),
        "circularity": circularity_table(suppression),
        "recovery": summary(
            recovery, ["world", "classifier", "kind", "method"], ["probability", "median", "correct", "error"]
        ),
        "likeness": summary(likeness, ["world", "classifier", "kind", "method"], ["correlation"]),
        "sweeps": summary(sweeps, ["setting", "method", "value"], SWEPT),
        "trends": summary(trends, ["world", "trend", "method"], ["slope", "ratio", "five_fold"]),
    }
    for name, table in tables.items():
        write_atomic(args.out / f"{name}.csv", table.to_csv(index=False, float_format="%.4f"))


if __name__ == "__main__":
    main()
