"""The gallery: of images drawn by seed, what every method of the comparison made along its path, as one sheet of tiles
each."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from PIL import Image

from common.batches import Shard
from common.data import datasets
from common.explain import CounterfactualBatch
from common.figures import difference_map, drawn_rows, picture
from common.files import atomic_path
from comparison.entries import ANCHORS

IMAGES = 12  # of every world


def sheets(shards: list[Shard], rows: pd.DataFrame, own: set[str], data: Path, out: Path) -> list[dict]:
    """Write a sheet for each image of the first classifier of every world, and say what stands where: of every method a
    row of pictures and below it one of their difference maps, each on its own scale; the original is in front. `rows`
    are the measured ones, `own` methods that answer for a classifier of their own."""
    firsts = {shard.world: shard for shard in reversed(shards)}
    votes = rows.set_index(["world", "classifier", "seed", "method", "image", "strength"])["oracle_valid"].sort_index()
    found = []
    for shard in (shard for shard in shards if firsts[shard.world] is shard):
        originals, names = datasets.load_ids(shard.world, shard.ids, data), datasets.world(shard.world).class_names
        judged = votes.loc[(shard.world, shard.classifier, shard.seed)].to_dict()
        batches = {name: shard.batches[name] for name in sorted(shard.batches, key=lambda name: name in ANCHORS)}
        for place in drawn_rows(len(shard.ids), 0, IMAGES):
            file, image = f"{shard.world}-{place}.webp", originals.images[place]
            tiles = {name: _tiles(batch, place, image) for name, batch in batches.items()}
            write_sheet(picture(image), list(tiles.values()), out / file)
            found.append(
                {
                    "file": file, "tile": image.shape[-1], "world": shard.world, "classifier": shard.classifier,
                    "image": shard.ids[place], "source": names[int(shard.source[place])],
                    "target": names[int(shard.target[place])], "columns": 1 + max(map(len, tiles.values())),
                    "methods": [
                        {
                            "name": name, "own": name in own,
                            "path": _path(batch, place, tiles[name], name, shard.ids[place], judged),
                        }
                        for name, batch in batches.items()
                    ],
                }
            )  # fmt: skip
    return found


def _tiles(batch: CounterfactualBatch, place: int, image) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every picture of a path, H×W×3, and how it differs from the image, H×W."""
    return [(picture(x), difference_map(x, image)) for x in batch.images[place]]


def _path(batch: CounterfactualBatch, place: int, tiles: list, name: str, image: str, judged: dict) -> list[dict]:
    steps = []
    for k, strength in enumerate(batch.strengths):
        vote = judged.get((name, image, strength))
        steps.append(
            {
                "strength": round(float(strength), 6), "confidence": round(float(batch.confidence[place, k]), 4),
                "change": round(float(batch.distance[place, k]), 5), "largest": round(float(tiles[k][1].max()), 3),
                "status": str(batch.status[place, k]), "judges": None if vote is None or np.isnan(vote) else bool(vote),
            }
        )  # fmt: skip
    return steps


def write_sheet(original: np.ndarray, methods: list[list[tuple[np.ndarray, np.ndarray]]], path: Path) -> None:
    """One lossless picture of all tiles."""
    size, columns = len(original), 1 + max(map(len, methods))
    sheet = np.zeros((2 * len(methods) * size, columns * size, 3))
    magma = matplotlib.colormaps["magma"]
    for row, tiles in enumerate(methods):
        top = 2 * row * size
        sheet[top : top + size, :size] = original
        for column, (shown, change) in enumerate(tiles, 1):
            left = column * size
            sheet[top : top + size, left : left + size] = shown
            scaled = change / max(change.max(), 1e-12)
            sheet[top + size : top + 2 * size, left : left + size] = magma(scaled)[..., :3]
    with atomic_path(path) as temporary:
        Image.fromarray((sheet * 255).round().astype(np.uint8)).save(temporary, "WEBP", lossless=True, quality=40)
