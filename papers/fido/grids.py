"""Job: the pictures of FIDO from shards: maps by in-fill, SSR beside SDR, architectures, sweeps, in-filled holes
(figures 2 to 4, 6, 7, 9, 11 to 14 and 16 of the paper's review version).

python -m papers.fido.grids --shards F... --systems DIR --splits DIR --infillers DIR --out DIR
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.batches import Shard, read_shards
from common.classifiers.base import Classifier
from common.classifiers.checkpoints import load_checkpoint
from common.data import datasets
from common.errors import one_line_errors
from common.explain import Streams
from common.figures import drawn_rows, image_grid, picture, save_figures, style
from common.scales import parse_recipe
from papers.fido.fills import SEARCHED, Fills
from papers.fido.metrics import filled
from papers.fido.names import FILLS, parse_name, title
from papers.fido.pictures import overlay
from papers.fido.recipe import Recipe, sweep
from papers.fido.regions import SALIENT, UNBOUNDED

ROWS = 4
SYMBOLS = {"lam": "λ", "grid": "grid", "tv": "tv", "draw": "draw"}
HOLED = (*SEARCHED, "road", "biharmonic", "background")


def cell(shard: Shard, method: str, i: int, image: Tensor) -> tuple[np.ndarray, str]:
    """The overlay of one map, and the share of the image that its mask covers."""
    saliency = shard.batches[method].saliency[i]
    area = (saliency > SALIENT).float().mean()
    return overlay(image, saliency), "" if method in UNBOUNDED else f"{100 * area:.0f} % of pixels"


def maps(shard: Shard, data: Path, columns: dict[str, str], *, share: float | None = None) -> plt.Figure:
    """Images drawn at random, with the maps of some methods; with a `share`, below each map the image whose most
    salient pixels are in-filled."""
    originals, seed = datasets.load_ids(shard.world, shard.ids, data), shard.seed
    names = datasets.world(shard.world).class_names
    rows, labels = [], []
    for i in drawn_rows(len(shard.ids), seed, ROWS):
        image = originals.images[i]
        line, below = [(picture(image), names[int(shard.source[i])])], [(None, "")]
        for method, text in columns.items():
            drawn, area = cell(shard, method, i, image)
            line.append((drawn, f"{text}\n{area}"))
            batch = shard.batches[method]
            if share is not None:
                j = batch.strengths.index(share)
                left = {"ok": "no longer", "not_flipped": "still"}.get(batch.status[i, j], "never seen as")
                seen, runner_up = names[int(shard.source[i])], names[int(shard.target[i])]
                head = f"{left} {seen}\n{runner_up}: p = {batch.confidence[i, j]:.2f}"
                below.append((picture(batch.images[i, j]), head))
        rows.append(line)
        labels.append("map")
        if share is not None:
            rows.append(below)
            labels.append(f"top {100 * share:.0f} % in-filled")
    return image_grid(rows, labels, cell=1.5, note=f"{_drawn(shard)}; share: pixels of the MAP mask, map > .5")


def _drawn(shard: Shard) -> str:
    return f"{shard.world}: images drawn at random, seed {shard.seed}"


@torch.no_grad()
def read(classifier: Classifier, image: Tensor, c: Tensor) -> str:
    """p(c) of one image, as a title."""
    return f"p(c) = {classifier(image[None]).softmax(1)[0, c]:.2f}"


def holes(shard: Shard, data: Path, fills: Fills, classifier: Classifier) -> plt.Figure:
    """Figure 3: the same hole as every in-fill closes it, a centred square of half the side; and 70 % of the pixels."""
    originals = datasets.load_ids(shard.world, shard.ids, data)
    rows, labels = [], []
    side = originals.images.shape[2]
    square = torch.ones(side, side)
    square[side // 4 : -side // 4, side // 4 : -side // 4] = 0
    for i in drawn_rows(len(shard.ids), shard.seed, 3):
        image, rng = originals.images[i : i + 1], Streams(shard.seed, (shard.ids[i],), (0,))
        random = (rng.uniform((side, side), "figure")[0] < 0.3).float()
        for keep, label in ((square, "square"), (random, "70 % hidden")):
            shown = torch.where(keep > 0, image[0], 0.0)
            line = [(picture(image[0]), read(classifier, image[0], shard.source[i])), (picture(shown), "kept")]
            for name in HOLED:
                closed = filled(image, keep[None, None], fills[name], rng)[0, 0]
                line.append((picture(closed), f"{FILLS[name]}\n{read(classifier, closed, shard.source[i])}"))
            rows.append(line)
            labels.append(label)
    return image_grid(rows, labels, cell=1.35, note=f"{_drawn(shard)}; classifier {shard.classifier}")


def sufficiency(shard: Shard, data: Path, fills: Fills, classifier: Classifier) -> plt.Figure:
    """Figures 4 and 16: what the mask of a map keeps, the rest in-filled by the net, and what a random half of it
    keeps."""
    originals = datasets.load_ids(shard.world, shard.ids, data)
    methods = ("masker", "ssr/local", "ssr/net")
    rows = []
    for i in drawn_rows(len(shard.ids), shard.seed, ROWS):
        image, rng = originals.images[i : i + 1], Streams(shard.seed, (shard.ids[i],), (0,))
        masks = {title(name): (shard.batches[name].saliency[i] > SALIENT).float() for name in methods}
        half = (rng.uniform(image.shape[2:], "half")[0] < 0.5).float()
        masks["half of it"] = masks[title("ssr/net")] * half
        line = [(picture(image[0]), f"image\n{read(classifier, image[0], shard.source[i])}")]
        for name, mask in masks.items():
            kept = filled(image, mask[None, None], fills["net"], rng)[0, 0]
            line.append((picture(torch.where(mask > 0, image[0], 0.0)), f"{name}\nkeeps {100 * mask.mean():.0f} %"))
            line.append((picture(kept), f"rest in-filled\n{read(classifier, kept, shard.source[i])}"))
        rows.append(line)
    note = f"{_drawn(shard)}; kept: what of the image the MAP mask keeps, map > .5"
    return image_grid(rows, [""] * len(rows), cell=1.35, note=note)


def architectures(shards: list[Shard], data: Path) -> plt.Figure:
    """Figure 9: the map of one method for several classifiers."""
    by_name = {shard.classifier: shard for shard in shards}
    first = by_name["cnn"]
    originals = datasets.load_ids(first.world, first.ids, data).images
    n = min(len(shard.ids) for shard in shards)
    rows = []
    for i in drawn_rows(n, first.seed, ROWS):
        line = [(picture(originals[i]), "image")]
        for name, shard in by_name.items():
            drawn, area = cell(shard, "ssr/net", i, originals[i])
            line.append((drawn, f"{name}\n{area}"))
        rows.append(line)
    note = f"{_drawn(first)}; {title('ssr/net')}; share: pixels of the MAP mask, map > .5"
    return image_grid(rows, [""] * len(rows), cell=1.5, note=note)


def swept_cells(shard: Shard, setting: str, recipe: Recipe) -> dict[str, str]:
    """The cells of a sweep in order of its values, with short titles."""
    kinds = {"ssr": "FIDO", "bbmp": "BBMP"}
    titles = {}
    for name, (base, value) in sweep(shard.batches, setting, recipe).items():
        method, fill, _ = parse_name(base)
        titles[name] = f"{kinds[method]}, {fill}, {SYMBOLS[setting]} {value:g}"
    return titles


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, nargs="+", required=True, help="those of one training seed")
    parser.add_argument("--systems", type=Path, required=True, help="folder of the classifiers of this seed")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--infillers", type=Path, required=True, help="folder of the learned in-fillers")
    parser.add_argument("--recipe", type=json.loads, required=True, help="JSON: the settings that cells share")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True, help="folder of NAME.png and NAME.svg")
    args = parser.parse_args()
    style()
    shards = [shard for path in args.shards for shard in read_shards(path)]
    explained = [shard for shard in shards if shard.world == "scenes" and shard.starts == "pairs"]
    main_shard = next(shard for shard in explained if shard.classifier == "cnn")
    swept = next(shard for shard in shards if shard.starts == "sweeps")
    tied = next(shard for shard in shards if shard.world == "scenes-tied")
    table = pd.read_parquet(args.splits / "scenes.parquet")
    classifier = load_checkpoint(args.systems / "scenes-cnn.safetensors")
    fills = Fills.of("scenes", datasets.load("scenes", table, "systems", args.data), args.infillers)
    recipe = parse_recipe(Recipe, args.recipe)
    drawn = {
        "fig2-7-infills": maps(main_shard, args.data, {f"ssr/{fill}": FILLS[fill] for fill in SEARCHED}, share=0.2),
        "fig3-holes": holes(main_shard, args.data, fills, classifier),
        "fig4-16-sufficiency": sufficiency(main_shard, args.data, fills, classifier),
        "fig6-ssr-sdr": maps(
            main_shard,
            args.data,
            {name: title(name) for name in ("ssr/mean", "sdr/mean", "ssr/net", "sdr/net")},
            share=0.1,
        ),
        "fig9-architectures": architectures(explained, args.data),
        "baselines": maps(
            main_shard,
            args.data,
            {
                name: title(name)
                for name in ("ssr/net", "bbmp/blur", "bbmp/net", "gradient", "rise", "extremal", "masker")
            },
        ),
        "fig13-draws": maps(swept, args.data, swept_cells(swept, "draw", recipe)),
        "fig11-lambda": maps(swept, args.data, swept_cells(swept, "lam", recipe)),
        "fig12-grid": maps(swept, args.data, swept_cells(swept, "grid", recipe)),
        "fig14-variation": maps(swept, args.data, swept_cells(swept, "tv", recipe)),
        "tied": maps(tied, args.data, {name: title(name) for name in ("ssr/mean", "ssr/net")}, share=0.2),
    }
    save_figures({name: (figure, args.shards) for name, figure in drawn.items()}, args.out, "fido_grids")


if __name__ == "__main__":
    main()
