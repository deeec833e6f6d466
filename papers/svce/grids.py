"""Job: the image grids of Sparse VCE, from shards alone.

python -m papers.svce.grids --shards DIR --seed 0 --out DIR
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from common.batches import Shard, read_shard
from common.data import datasets
from common.errors import one_line_errors
from common.figures import difference_map, image_grid, picture, save_figures, style, with_maximum
from papers.svce.names import NAMES, SYMBOL


def grid(shard: Shard, data: Path, pairs_shown: int = 6, radii_shown: int = 3) -> plt.Figure:
    """Grids in the layout of spec §4: the original with predicted class, then l1.5 counterfactuals at three radii with
    target confidence, each with its difference map; the l1 and l2 counterfactuals at the largest of them."""
    main = shard.batches["afw-b/l1.5/k75"]
    columns = np.linspace(1, len(main.strengths) - 1, radii_shown).round().astype(int)
    shown = [("afw-b/l1.5/k75", int(j)) for j in columns]
    shown += [(method, -1) for method in ("apgd/l1/k75", "apgd/l2/k75") if method in shard.batches]
    return _grid(shard, data, shown, range(pairs_shown))


def grid_density(shard: Shard, data: Path, pairs_shown: int = 6) -> plt.Figure:
    """The l2 counterfactual beside those that a diffusion model regularises, at the same radius (claim C11)."""
    radius = shard.batches["pvce/l2"].strengths[-1]
    shown = [("apgd/l2/k75", shard.batches["apgd/l2/k75"].strengths.index(radius)), ("pvce/l2", -1), ("blended", -1)]
    return _grid(shard, data, shown, range(pairs_shown))


def grid_cues(shards: list[Shard], data: Path, pairs_shown: int = 2) -> plt.Figure:
    """What a clean net and nets with a planted cue add to class 1 to make it class 0, by norm (claim C10)."""
    shown = [(method, -1) for method in shards[0].batches if not method.endswith("/thresholded")]
    return _grid_of([(shard, i) for shard in shards for i in range(pairs_shown)], data, shown, named=True)


def _grid(shard: Shard, data: Path, shown: list[tuple[str, int]], samples: range) -> plt.Figure:
    return _grid_of([(shard, i) for i in samples if i < len(shard.ids)], data, shown)


def _grid_of(
    samples: list[tuple[Shard, int]], data: Path, shown: list[tuple[str, int]], named: bool = False
) -> plt.Figure:
    """A row per (shard, sample): the original, then each (method, place on its path) and its difference map."""
    rows, labels = [], []
    for shard, i in samples:
        names = datasets.world(shard.world).class_names
        original = datasets.load_ids(shard.world, shard.ids, data).images[i]
        line = [(picture(original), f"sees {names[int(shard.source_prediction[i])]}")]
        for method, j in shown:
            batch = shard.batches[method]
            image, confidence = batch.images[i, j], batch.confidence[i, j].item()
            title = (
                f"{NAMES.get(method, method)}, {SYMBOL.get(method, 'ε')} = {batch.strengths[j]:g}: p = {confidence:.2f}"
            )
            line += [(picture(image), title), with_maximum(difference_map(image, original))]
        rows.append(line)
        world = f"{shard.world}\n" if named else ""
        labels.append(f"{world}→ {names[int(shard.target[i])]}")
    return image_grid(rows, labels, cell=1.6)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="folder of shards: STARTS/WORLD/KIND-SEED")
    parser.add_argument("--seed", required=True, help="the training seed that is shown")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True, help="folder of NAME.png and NAME.svg")
    args = parser.parse_args()
    style()

    def shard(name: str) -> Path:
        return args.shards / f"{name}-{args.seed}.safetensors"

    robust = read_shard(shard("pairs/scenes/l2at"))
    cues = sorted(args.shards.glob(f"cues/*/l2at-{args.seed}.safetensors"))
    drawn = {
        "grid": (grid(robust, args.data), [shard("pairs/scenes/l2at")]),
        "grid-plain": (grid(read_shard(shard("pairs/scenes/standard")), args.data), [shard("pairs/scenes/standard")]),
        "grid-mnist": (grid(read_shard(shard("pairs/mnist/l2at")), args.data), [shard("pairs/mnist/l2at")]),
        "grid-density": (grid_density(robust, args.data), [shard("pairs/scenes/l2at")]),
        "grid-cues": (grid_cues([read_shard(path) for path in cues], args.data), cues),
    }
    save_figures(drawn, args.out, "svce_grids", lambda path: f"{path.parent.name}/{path.name}")


if __name__ == "__main__":
    main()
