"""From rows to tables: means with intervals, realism of whole sets, what a run cost. Imports no torch."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from common.results import JUDGES
from common.statistics import half_sample_interval, paired_bootstrap

JUDGED = ("oracle_share", "oracle_valid", *(f"oracle_{judge}" for judge in JUDGES))  # metrics of the panel


def summary(rows: pd.DataFrame, keys: list[str], metrics: list[str]) -> pd.DataFrame:
    """One line per cell: n images, training seeds, and the mean of each metric with its 95 % interval over images."""
    lines = []
    for values, cell in rows.groupby(keys):
        by_image = cell.groupby("image")[metrics].mean()
        line = dict(zip(keys, values, strict=True)) | {"n": len(by_image), "seeds": cell["seed"].nunique()}
        for metric in metrics:
            estimate = paired_bootstrap(by_image[metric].to_numpy(float))
            line |= {metric: estimate.mean, f"{metric}_low": estimate.low, f"{metric}_high": estimate.high}
        lines.append(line)
    columns = [*keys, "n", "seeds", *(f"{metric}{end}" for metric in metrics for end in ("", "_low", "_high"))]
    return pd.DataFrame(lines, columns=columns)


def kid_intervals(kid: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """KID of every set that `keys` name: mean over training seeds, interval from half-samples (column `half`, of which
    0 is everything)."""
    table = kid.groupby([*keys, "half"])["kid"].mean().unstack("half")
    intervals = np.array([half_sample_interval(estimates) for estimates in table.to_numpy()])
    found = {"kid": table[0].to_numpy(), "kid_low": intervals[:, 0], "kid_high": intervals[:, 1]}
    return table.index.to_frame(index=False).assign(**found)


def cost_table(files: list[Path], passes: list[str]) -> pd.DataFrame:
    """What the cells of some shards cost: seconds, gradient evaluations, training seed, commit, and overhead = seconds
    ÷ (evaluations × the measured passes, columns `passes`, that one evaluation takes)."""
    rows = []
    for path in files:
        cost = json.loads(path.read_text())
        rows += [{**cell, "seed": cost["seed"], "commit": cost["commit"]} for cell in cost["cells"]]
    table = pd.DataFrame(rows)
    return table.assign(overhead=table["seconds"] / (table["evaluations"] * table[passes].sum(axis=1)))
