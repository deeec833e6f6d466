"""Job: the picture of the counterfactuals: faces of the generator with each label flipped (slot S-B of the spec).

python -m papers.contrastive.grids --shift F --out DIR
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from common.errors import one_line_errors
from common.figures import image_grid, picture, save_figures, style
from papers.contrastive.measure import flipping_shifts, population
from papers.contrastive.method import ShiftPredictor
from papers.contrastive.systems import System, packaged_faces
from papers.contrastive.train import load_shift

ROWS = 8


@torch.no_grad()
def faces(system: System, S: ShiftPredictor) -> plt.Figure:
    """The first latents of the population, in order and not chosen: the image, and the image with every label flipped
    and the others held; above each what the classifiers see, in % of probability."""
    _, w = population(ROWS, system.d)
    names = system.labels.names

    def read(logits: Tensor) -> str:
        return ", ".join(f"{name} {100 * p:.0f}" for name, p in zip(names, logits.sigmoid(), strict=True))

    images = system.G(w)
    present = (system.labels.averaged(images) > 0).long()
    columns = [images, *(system.G(w + flipping_shifts(w, present, S, k)) for k in range(system.m))]
    seen = [system.labels.averaged(column) for column in columns]
    heads = ["generated", *(f"{name} flipped" for name in system.asked.names)]
    cells = [
        [(picture(image), f"{head}\n{read(p)}") for image, p in zip(column, logits, strict=True)]
        for head, column, logits in zip(heads, columns, seen, strict=True)
    ]
    rows = [list(row) for row in zip(*cells, strict=True)]
    note = "the first latents of the population, none chosen; % of probability, averaged over eight transforms"
    return image_grid(rows, [""] * ROWS, cell=1.75, note=note)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shift", type=Path, required=True, help="the file of S")
    parser.add_argument("--out", type=Path, required=True, help="folder of faces.png and .svg")
    args = parser.parse_args()
    style()
    system = packaged_faces()
    S = load_shift(args.shift, system.d, system.m)
    save_figures({"faces": (faces(system, S), [args.shift])}, args.out, "contrastive_grids")


if __name__ == "__main__":
    main()
