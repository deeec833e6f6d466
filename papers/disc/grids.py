"""Job: the pictures of DISC from shards: the paper's first figure, the path of iterates, what is made progressive,
digits, graded ages.

python -m papers.disc.grids --shards F... --hypotheses F --out DIR
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
from torch import Tensor

from common.batches import Shard, read_shards
from common.data import datasets
from common.errors import one_line_errors
from common.figures import difference_map, drawn_rows, image_grid, picture, save_figures, style, with_maximum
from common.matching import ROUNDING
from papers.disc.hypotheses import Hypotheses, read_hypotheses

ROWS = 5
FIGURE_ONE = {
    "iso": "ISO",
    "lso": "LSO",
    "inr": "+ prior",
    "inr+duq": "+ DUQ",
}  # the columns of the paper's figure 1
READINGS = ("inr+duq", "inr+duq/p-b", "inr+duq/p-c", "inr+duq/p-d", "inr+duq/p-0")


def titled(shard: Shard, method: str, i: int, level: float) -> tuple[Tensor, str]:
    """The image of a method at τ = `level`, or its only one, and a title with its confidence."""
    batch = shard.batches[method]
    j = batch.strengths.index(level) if level in batch.strengths else len(batch.strengths) - 1
    p, status = batch.confidence[i, j].item(), batch.status[i, j]
    short = " not reached" if level < 1 and level in batch.strengths and p < level - ROUNDING else ""
    return batch.images[i, j], f"p = {p:.2f}" + (" diverged" if status == "diverged" else short)


def comparison(shard: Shard, data: Path, columns: dict[str, str], level: float, maps: bool, seed: int) -> plt.Figure:
    """Randomly drawn queries: the image, every method at τ = `level`, where the world is rendered the true twin; and,
    with `maps`, a line below with the change of what each method started from."""
    originals = datasets.load_ids(shard.world, shard.ids, data).images
    names = datasets.world(shard.world).class_names
    twins = datasets.twins(shard.world, shard.ids) if datasets.world(shard.world).rendered else None
    rows, labels = [], []
    for i in drawn_rows(len(shard.ids), seed, ROWS):
        images = [titled(shard, method, i, level) for method in columns]
        heads = [f"{columns[method]}: {title}" for method, (_, title) in zip(columns, images, strict=True)]
        line = [(picture(originals[i]), f"query: {names[int(shard.source[i])]}")]
        line += [(picture(image), head) for (image, _), head in zip(images, heads, strict=True)]
        starts = [shard.batches[method].reference[i] for method in columns]
        maps_of = [difference_map(image, start) for (image, _), start in zip(images, starts, strict=True)]
        below = [(None, ""), *map(with_maximum, maps_of)]
        if twins is not None:
            twin = twins[i, int(shard.target[i])]
            line.append((picture(twin), "true twin"))
            below.append(with_maximum(difference_map(twin, originals[i])))
        rows.append(line)
        labels.append(f"→ {names[int(shard.target[i])]}")
        if maps:
            rows.append(below)
            labels.append("change")
    note = f"queries drawn at random, seed {seed}; training seed {shard.seed}; τ = {level:g}"
    if maps:
        note += "; maps: change of the query, or, with a prior, of what it drew before it was steered"
    return image_grid(rows, labels, cell=1.55, note=note)


def iterates(shard: Shard, data: Path, methods: tuple[str, ...], seed: int) -> plt.Figure:
    """The path of iterates: the query, what the prior drew of it, and the first iterate at every τ."""
    originals = datasets.load_ids(shard.world, shard.ids, data).images
    rows, labels = [], []
    for i in drawn_rows(len(shard.ids), seed, ROWS // 2):
        for method in methods:
            batch = shard.batches[method]
            line = [(picture(originals[i]), "query"), (picture(batch.reference[i]), "drawn by the prior")]
            for j, tau in enumerate(batch.strengths):
                head = f"τ = {tau:g}" if tau < 1 else "whole budget"
                line.append((picture(batch.images[i, j]), f"{head}: p = {batch.confidence[i, j]:.2f}"))
                line.append(with_maximum(difference_map(batch.images[i, j], batch.reference[i])))
            rows.append(line)
            labels.append(method)
    note = f"maps: change of what the prior drew; drawn at random, seed {seed}"
    return image_grid(rows, labels, cell=1.4, note=note)


def ages(found: Hypotheses, data: Path, seed: int) -> plt.Figure:
    """Graded hypotheses about age: the face, a rendering of its older twin, and what was drawn for each request."""
    originals = datasets.load_ids(found.world, found.ids, data).images
    twins = datasets.twins(found.world, found.ids)[:, 1]
    rows = []
    for i in drawn_rows(len(found.ids), seed, ROWS):
        line = [(picture(originals[i]), f"reads {found.before[i, 0]:.2f}"), (picture(twins[i]), "rendered old")]
        for j in range(found.requested.shape[1]):
            asked, got = found.requested[i, j], found.after[i, j]
            line.append((picture(found.images[i, j]), f"asked {asked:.2f}: {got:.2f}"))
            line.append(with_maximum(difference_map(found.images[i, j], originals[i])))
        rows.append(line)
    note = f"depth of wrinkles as the regressor reads it; drawn at random, seed {seed}"
    return image_grid(rows, [""] * len(rows), cell=1.4, note=note)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, nargs="+", required=True, help="those of one training seed")
    parser.add_argument("--hypotheses", type=Path, required=True, help="those of the same seed")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True, help="folder of NAME.png and NAME.svg")
    args = parser.parse_args()
    style()
    shards = {(shard.world, shard.starts): shard for path in args.shards for shard in read_shards(path)}
    ladder, screening = shards["faces-smile", "pairs"], shards["faces-smile", "screening"]
    bald, digits = shards["faces-bald", "pairs"], shards["mnist", "pairs"]
    older = next(found for found in read_hypotheses(args.hypotheses) if found.kind == "regression")
    readings = {name: name.partition("/")[2].upper() or "P-A" for name in READINGS}
    halves = {name: readings[name] for name in bald.batches if name in readings}
    seed = ladder.seed
    drawn = {
        "fig1-ladder": comparison(ladder, args.data, FIGURE_ONE, 0.9, True, seed),
        "iterates": iterates(ladder, args.data, ("inr", "inr+duq"), seed),
        "progressive": comparison(screening, args.data, readings, 1.0, False, seed),
        "progressive-bald": comparison(bald, args.data, halves, 1.0, True, seed),
        "digits": comparison(
            digits, args.data, {"iso": "ISO", "inr": "INR", "inr+duq": "INR + DUQ"}, 0.9, True, seed
        ),
        "ages": ages(older, args.data, seed),
    }  # fmt: skip
    inputs = [*args.shards, args.hypotheses]
    save_figures({name: (figure, inputs) for name, figure in drawn.items()}, args.out, "disc_grids")


if __name__ == "__main__":
    main()
