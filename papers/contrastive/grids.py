"""Job: pictures of counterfactuals: faces with each label flipped, and what each flip does to a decision (slots S-B and
S-E of the spec).

python -m papers.contrastive.grids --gan F --shift F --world F --out DIR
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from common.errors import one_line_errors
from common.figures import image_grid, picture, save_figures, style
from papers.contrastive.edits import Seen, flipping_shifts, generated, look
from papers.contrastive.method import ShiftPredictor
from papers.contrastive.systems import System, load_system
from papers.contrastive.train import load_shift

ROWS = 8
EXPLAINED = 6
DECISION = "majority"


@torch.no_grad()
def flips(system: System, S: ShiftPredictor, n: int) -> tuple[list[str], list[torch.Tensor], list[Seen]]:
    """The images of the first n latents, in order and not chosen, and with every label flipped while the others are
    held: heads, images and what is said of them."""
    _, w = system.population(n)
    images = generated(w, system)
    present = look(images, system).labels
    columns = [images, *(generated(w + flipping_shifts(w, present, S, k), system) for k in range(system.m))]
    return (
        ["generated", *(f"{name} flipped" for name in system.asked.names)],
        columns,
        [look(x, system) for x in columns],
    )


def faces(system: System, S: ShiftPredictor, shown: tuple[str, ...], note: str) -> plt.Figure:
    """Faces with each label flipped; above each what the classifiers say of `shown` labels, in % of probability."""
    heads, columns, seen = flips(system, S, ROWS)
    names = system.labels.names

    def read(probability: torch.Tensor) -> str:
        return ", ".join(f"{name} {100 * probability[names.index(name)]:.0f}" for name in shown)

    cells = [
        [(picture(image), f"{head}\n{read(p)}") for image, p in zip(column, said.probability, strict=True)]
        for head, column, said in zip(heads, columns, seen, strict=True)
    ]
    rows = [list(row) for row in zip(*cells, strict=True)]
    return image_grid(rows, [""] * ROWS, cell=1.75, note=f"the first latents of the population, none chosen; {note}")


def local(system: System, S: ShiftPredictor) -> plt.Figure:
    """Single faces: the image, its flips, and how much each moves the probability of the decision."""
    heads, columns, seen = flips(system, S, EXPLAINED)
    at, m = system.labels.names.index(DECISION), system.m
    figure, axes = plt.subplots(
        EXPLAINED, m + 2, figsize=(1.15 * (m + 1) + 2.6, 1.25 * EXPLAINED), width_ratios=[*[1] * (m + 1), 2.2]
    )
    for i in range(EXPLAINED):
        p = [float(said.probability[i, at]) for said in seen]
        for j, column in enumerate(columns):
            axes[i, j].imshow(picture(column[i]), interpolation="nearest")
            axes[i, j].set_axis_off()
            axes[i, j].set_title((f"{heads[j]}\n" if i == 0 else "") + f"{DECISION} {100 * p[j]:.0f}", fontsize=7)
        change = [value - p[0] for value in p[1:]]
        bars = axes[i, -1]
        bars.barh(range(m), change, color=["C2" if value > 0 else "C3" for value in change])
        bars.axvline(0, color="black", lw=0.8)
        bars.set_yticks(range(m), system.asked.names, fontsize=7)
        bars.yaxis.tick_right()
        bars.tick_params(axis="x", labelsize=7, labelbottom=i == EXPLAINED - 1)
        bars.set(xlim=(-1.05, 1.05))
        bars.invert_yaxis()
    axes[-1, -1].set_xlabel("change of the probability", fontsize=7)
    figure.tight_layout(h_pad=0.6, w_pad=0.2)
    return figure


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gan", type=Path, required=True, help="the file of S for the packaged face GAN")
    parser.add_argument("--shift", type=Path, required=True, help="the file of S for the rendered faces")
    parser.add_argument("--world", type=Path, required=True, help="the file of the face world")
    parser.add_argument("--out", type=Path, required=True, help="folder of NAME.png and .svg")
    args = parser.parse_args()
    style()
    gan, rendered = load_system("face-gan", None), load_system("faces", args.world)
    S, ours = load_shift(args.gan, gan)[0], load_shift(args.shift, rendered)[0]
    percent = "% of probability"
    drawn = {
        "faces": (faces(gan, S, gan.labels.names, f"{percent}, averaged over eight transforms"), [args.gan]),
        "rendered": (faces(rendered, ours, ("majority", "exclusive"), percent), [args.shift, args.world]),
        "local": (local(rendered, ours), [args.shift, args.world]),
    }
    save_figures(drawn, args.out, "contrastive_grids")


if __name__ == "__main__":
    main()
