"""Job: the comparison picture: the same images, explained by every method, each at its first own success.

python -m comparison.grids --shards F... --level 0.9 --out F.png
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

from common.batches import Shard, read_shards
from common.data import datasets
from common.errors import one_line_errors
from common.figures import difference_map, drawn_rows, image_grid, picture, save_figure, style, with_maximum
from common.files import sha256
from comparison.explain import STARTS
from comparison.measure import merged

ROWS = 3  # images of each world
LAST = ("nearest-real", "twin")  # trivial, but worth a look
HIDDEN = ("identity", "random", "class-mean")


def side_by_side(shards: list[Shard], level: float, data: Path) -> plt.Figure:
    """Images drawn by seed and not by hand, for the first classifier of every world; under each method what it
    changed."""
    rows, labels = [], []
    firsts = {shard.world: shard for shard in reversed(shards)}
    for shard in (shard for shard in shards if firsts[shard.world] is shard):
        originals = datasets.load_ids(shard.world, shard.ids, data)
        names = datasets.world(shard.world).class_names
        methods = [name for name in shard.batches if name not in (*HIDDEN, *LAST)]
        methods += [name for name in LAST if name in shard.batches]
        found = {name: (batch.first_success(level), batch) for name, batch in shard.batches.items()}
        for row in drawn_rows(len(shard.ids), 0, ROWS):
            x = originals.images[row]
            shown = [(picture(x), names[int(shard.source[row])])]
            maps = [(None, "")]
            for name in methods:
                place, batch = found[name]
                image, k = batch.images[row, place[row]], int(place[row])
                shown.append((picture(image), f"{name}\n{100 * float(batch.confidence[row, k]):.0f} %"))
                maps.append(with_maximum(difference_map(image, x)))
            rows += [shown, maps]
            labels += [f"{shard.world}, {shard.classifier}: to {names[int(shard.target[row])]}", ""]
    note = (
        f"each method at its first own confidence of {level:g}, else at its end; % is its confidence in the target"
        " (clarity: of its own classifier); below, Σ|δ| on its own scale"
    )
    return image_grid(rows, labels, cell=1.35, note=note)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, nargs="+", required=True)
    parser.add_argument("--level", type=float, required=True, help="own confidence of a success")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True, help="the PNG; its SVG stands beside it")
    args = parser.parse_args()
    style()
    shards = merged([shard for path in args.shards for shard in read_shards(path) if shard.starts == STARTS])
    inputs = {path.name: sha256(path) for path in args.shards}
    provenance = {"rule": "comparison_grids", "level": args.level, "inputs": inputs}
    save_figure(side_by_side(shards, args.level, args.data), args.out, provenance)


if __name__ == "__main__":
    main()
