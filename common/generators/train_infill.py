"""Job: train in-fillers.

python -m common.generators.train_infill --splits DIR --recipes '{"scenes-unet": {"world": "scenes", ...}}' --out DIR

Files are NAME.safetensors. Their facts hold the recipe, the seed, the mean colour of the training images, and the
errors at hidden pixels of the calibration images, beside those of the local mean and of that colour.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from common.data import datasets
from common.errors import one_line_errors
from common.explain import Streams
from common.generators.infill import Local, Mean
from common.generators.inpainting import BLOCK_DRAWS, Learned, Recipe, block_masks, held_out, save_infill, train_infill
from common.progress import Progress
from common.scales import parse_recipe

SEED = 0
WINDOW = 5  # of the local mean to beat, pixels


def train(world: str, table: pd.DataFrame, data: Path, recipe: Recipe, out: Path) -> None:
    """Train on the images of the explained systems, write a checkpoint with its errors on the calibration images."""
    fit, calibration = datasets.load(world, table, "systems", data), datasets.load(world, table, "calibration", data)
    with Progress(f"train {out.stem}", total=recipe.steps, unit="steps") as progress:
        network = train_infill(fit.images, recipe, SEED, lambda step: progress.advance())
    colour = fit.images.mean((0, 2, 3))
    infills = {"learned": Learned(network), "local": Local(WINDOW, colour), "mean": Mean(colour)}
    rng = Streams(SEED, calibration.ids, (0,) * len(calibration.ids))
    errors = {
        masks: {name: held_out(infill, calibration.images, keep, rng) for name, infill in infills.items()}
        for masks, keep in held_out_masks(len(calibration.ids), tuple(fit.images.shape[2:])).items()
    }
    facts = {"recipe": vars(recipe), "seed": SEED, "colour": colour.tolist(), "held_out": errors}
    save_infill(network, out, facts)


def held_out_masks(n: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """N×1×H×W masks of 0 (hidden) and 1 (kept): `iid` hides each pixel at even odds, `blocks` 40 % in rectangles."""
    generator = torch.Generator().manual_seed(SEED)
    iid = (torch.rand(n, *size, generator=generator) < 0.5).float()
    return {
        "iid": iid[:, None],
        "blocks": block_masks(torch.rand(n, BLOCK_DRAWS, generator=generator), size, 0.4)[:, None],
    }


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument(
        "--recipes", type=json.loads, required=True, help="JSON: `world` and fields of Recipe by the name of a file"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the files")
    args = parser.parse_args()
    for name, fields in args.recipes.items():
        world = fields.pop("world")
        table = pd.read_parquet(args.splits / f"{world}.parquet")
        train(world, table, args.data, parse_recipe(Recipe, fields), args.out / f"{name}.safetensors")


if __name__ == "__main__":
    main()
