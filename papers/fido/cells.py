"""Job: from the measured tables of all training seeds to those that the claims are about.

python -m papers.fido.cells --measured DIR... --likeness F --costs F... --recipe '{...}' --out DIR --cost F
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import one_line_errors
from common.files import atomic_path
from common.measure import judged
from common.results import COLUMNS, write_rows
from common.scales import parse_recipe
from common.tables import cost_table
from papers.fido.names import parse_name
from papers.fido.recipe import Recipe, sweep

KEYS = ["world", "starts", "classifier", "seed", "image", "stratum"]
LEARNED = ("net", "vae")
SWEPT = ("lam", "grid", "tv")  # settings
OVERFLOWS = ["overflow", "overflow_object", "overflow_matched", "overflow_object_matched"]
ENOUGH = 0.9  # of p(x), that a sufficient mask keeps
FIVE_FOLD = (2.5, 10.0)  # times FIDO's λ: what still counts as about five times
LOST = 0.1  # accuracy that a classifier may lose on in-filled images


def with_gaps(maps: pd.DataFrame) -> pd.DataFrame:
    """The maps with rows `gap/FILL`: how much more of SDR's mask than of SSR's lies outside, per image (C1)."""
    indexed, gaps = maps.set_index([*KEYS, "method"])[OVERFLOWS], []
    for fill in sorted(
        {fill for method, fill, replaced in map(parse_name, set(maps["method"])) if method == "sdr" and not replaced}
    ):
        sdr, ssr = (indexed.xs(f"{objective}/{fill}", level="method") for objective in ("sdr", "ssr"))
        gaps.append((sdr - ssr).dropna(how="all").reset_index().assign(method=f"gap/{fill}", strength=0.0))
    return pd.concat([maps, *gaps], ignore_index=True)


def with_sufficiency(maps: pd.DataFrame) -> pd.DataFrame:
    """M6 beside the original, for correctly predicted images, as in the paper: `enough_FILL` = p(kept) − .9 p(x), and
    `lost_FILL`, what a random half of the mask takes from p(kept)."""
    correct = maps["stratum"] == "correct"
    found = {}
    for fill in ("net", "background"):
        found[f"enough_{fill}"] = (maps[f"kept_{fill}"] - ENOUGH * maps["original"]).where(correct)
        found[f"lost_{fill}"] = (maps[f"kept_{fill}"] - maps[f"half_{fill}"]).where(correct)
    return maps.assign(**found)


def sweeps(maps: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """The maps of the sweeps: cells METHOD/FILL/SETTINGvalue as `method` METHOD/FILL with `setting` and `value`, the
    recipe's own value among them."""
    here, parts = maps[maps["starts"] == "sweeps"], []
    for setting in SWEPT:
        for name, (base, value) in sweep(here["method"].unique(), setting, recipe).items():
            parts.append(here[here["method"] == name].assign(method=base, setting=setting, value=value))
    return pd.concat(parts, ignore_index=True) if parts else here.assign(setting="", value=np.nan)


def trends(swept: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """What a sweep says per image: `slope`, how much the overflow beyond the object rises from one mask grid to one of
    twice as many cells per side (C9); `ratio`, how many times FIDO's λ BBMP needs for a mask of as many pixels, no
    number where its sweep has no such mask, and whether that is about `five_fold`, which no number is not (C10)."""
    found = []
    for base, cell in swept[swept["setting"] == "grid"].groupby("method"):
        table = cell.pivot(index=KEYS, columns="value", values="overflow_object_matched")
        x = np.log2(table.columns.to_numpy(float))
        slope = table.to_numpy() @ (x - x.mean()) / ((x - x.mean()) ** 2).sum()
        found.append(table.index.to_frame(index=False).assign(method=base, trend="grid", slope=slope))
    areas = {
        base: cell.pivot(index=KEYS, columns="value", values="area")
        for base, cell in swept[swept["setting"] == "lam"].groupby("method")
    }
    if "ssr/net" in areas:
        fido, lam = areas.pop("ssr/net"), recipe.search["lam"]
        wanted = fido.iloc[:, np.abs(np.log(fido.columns / lam)).argmin()]
        for base, table in areas.items():
            ratio = np.array([lam_at(table.loc[key], area) / lam for key, area in wanted.items()])
            five_fold = ((ratio >= FIVE_FOLD[0]) & (ratio <= FIVE_FOLD[1])).astype(float)
            frame = table.index.to_frame(index=False)
            found.append(frame.assign(method=base, trend="lam", ratio=ratio, five_fold=five_fold))
    table = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=[*KEYS, "method", "trend"])
    return table.reindex(columns=[*KEYS, "method", "trend", "slope", "ratio", "five_fold"]).assign(strength=0.0)


def lam_at(areas: pd.Series, wanted: float) -> float:
    """The λ at which a mask has the `wanted` area, from areas by λ: between the last larger and the first smaller one,
    linear in log λ; the middle of those that have that very area; NaN outside of them, and for an empty mask, which
    every large λ gives."""
    if not (wanted > 0 and areas.min() <= wanted <= areas.max()):
        return float("nan")
    log_lam, falling = np.log(areas.index.to_numpy(float)), np.minimum.accumulate(areas.to_numpy())
    if (same := falling == wanted).any():
        return float(np.exp(log_lam[same].mean()))
    first = int((falling > wanted).sum())
    between = [first, first - 1]
    return float(np.exp(np.interp(wanted, falling[between], log_lam[between])))


def infill_gate(recovery: pd.DataFrame) -> pd.DataFrame:
    """Per world, classifier and training seed, of n images: error of each in-fill at hidden pixels, what accuracy it
    costs under independent masks, and whether a learned one is `adequate`: nearer to what was hidden than local means,
    under both kinds of masks, and no more than 10 points of accuracy lost under the independent ones."""
    keys = ["world", "classifier", "seed", "method"]
    metrics = ["error", "correct", "correct_original", "probability", "median"]
    means = recovery.groupby([*keys, "kind"])[metrics].mean().unstack("kind")
    table = pd.DataFrame({f"{metric}_{kind}": means[metric][kind] for metric, kind in means.columns})
    local = table.xs("local", level="method").reindex(table.index.droplevel("method"))
    nearer = np.logical_and(*(table[name].to_numpy() < local[name].to_numpy() for name in ("error_iid", "error_block")))
    kept = table["correct_original_iid"] - table["correct_iid"] <= LOST + 1e-6
    adequate = pd.Series((nearer & kept).astype(float), table.index).where(table.index.isin(LEARNED, level="method"))
    n = recovery.groupby(keys)["image"].nunique()
    return table.assign(n=n, adequate=adequate).reset_index()


def together(folders: list[Path], name: str) -> pd.DataFrame:
    """One table of all training seeds."""
    tables = [pd.read_parquet(folder / f"{name}.parquet") for folder in folders]
    return pd.concat([table for table in tables if len(table)], ignore_index=True)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, nargs="+", required=True, help="a folder per file of shards")
    parser.add_argument("--likeness", type=Path, required=True, help="how alike maps are")
    parser.add_argument("--costs", type=Path, nargs="+", required=True, help="what each file of shards cost")
    parser.add_argument("--recipe", type=json.loads, required=True, help="JSON: the settings that cells share")
    parser.add_argument("--out", type=Path, required=True, help="folder of rows, maps, suppression ... .parquet")
    parser.add_argument("--cost", type=Path, required=True, help="seconds and overhead, which are not deterministic")
    args = parser.parse_args()
    names = ("gate", "rows", "maps", "suppression", "recovery")
    gate, rows, maps, suppression, recovery = (together(args.measured, name) for name in names)
    infills = infill_gate(recovery)
    keys = ["world", "classifier", "seed"]
    net = infills[infills["method"] == "net"].groupby(keys)["adequate"].min()
    both = infills[infills["method"].isin(LEARNED)].groupby(keys)["adequate"].min().rename("adequate_both")
    reliance = gate.groupby(keys)["reliance_label"].min().rename("reliance")
    facts = pd.concat([net, both, reliance], axis=1).reset_index()
    maps = with_sufficiency(maps)
    suppression["pixels"] = suppression["pixels"].where(suppression["stratum"] == "correct")
    recipe = parse_recipe(Recipe, args.recipe)
    swept = sweeps(maps, recipe)
    outputs = {
        "maps": with_gaps(maps),
        "suppression": suppression,
        "recovery": recovery,
        "likeness": pd.read_parquet(args.likeness),
        "sweeps": swept,
        "trends": trends(swept, recipe),
    }
    for name, table in outputs.items():
        with atomic_path(args.out / f"{name}.parquet") as temporary:
            table.merge(facts, on=["world", "classifier", "seed"], how="left").to_parquet(temporary, index=False)
    for name, table in {"oracle_gate": gate, "infills": infills}.items():
        with atomic_path(args.out / "tables" / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, float_format="%.4f")
    with atomic_path(args.cost) as temporary:
        cost_table(args.costs, ["pass_seconds", "fill_seconds"]).to_parquet(temporary, index=False)
    again = rows["starts"] != "pairs"  # a sweep explains some methods again
    named = judged(rows, gate).assign(method=rows["method"].mask(again, rows["method"] + "/" + rows["starts"]))
    write_rows(named[list(COLUMNS)], args.out / "rows.parquet")


if __name__ == "__main__":
    main()
