"""What it takes to train a shift predictor on the packaged face GAN and the packaged expression classifier, neither of
them retrained, and how often its shifts flip the smile: both directions, beside random shifts of equal length.

    python -m benchmarks.contrastive [--steps 250] [--faces 1000] [--seed 0]

On one thread. Labels are the mean logits over eight transforms that change none; faces are held out, since training
draws its latents anew in every step.
"""

import argparse
import time

import torch

from common.classifiers.expression import EXPRESSIONS, expression
from common.generators.gan import LATENT, face_gan
from common.progress import Progress
from common.statistics import wilson
from papers.contrastive.edits import flipping_shifts, labelled, random_shifts
from papers.contrastive.labels import AgainstRest, Labels
from papers.contrastive.systems import System
from papers.contrastive.train import Recipe, train_shift


def main() -> None:
    """Print seconds of training, lengths of the shifts, and validity with Wilson intervals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--faces", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    smile = Labels(("smile",), (AgainstRest(expression(), (EXPRESSIONS.index("happy"),)),))
    system = System("smile", face_gan(), LATENT, smile, Labels((), (), ()))
    start = time.perf_counter()
    with Progress("train", total=args.steps, unit="steps") as progress:
        recipe = Recipe(args.steps, sparse=True)
        S = train_shift(system, recipe, args.seed, lambda facts: progress.advance())
    print(f"trained in {time.perf_counter() - start:.0f} s, {args.steps} steps of {recipe.batch_size} faces")
    generator = torch.Generator().manual_seed(args.seed + 1)
    w = torch.randn(args.faces, LATENT, generator=generator)
    before = labelled(w, system)
    shifts = flipping_shifts(w, before, S, 0)
    smiling, length = before.float().mean(), shifts.norm(dim=1).mean()
    print(f"{args.faces} faces, {smiling:.3f} of them smile; mean length of a shift {length:.2f}")
    at_random = random_shifts(shifts, torch.randn(shifts.shape, generator=generator))
    for name, moved in {"shift": shifts, "random": at_random}.items():
        flipped = (labelled(w + moved, system) != before)[:, 0]
        for smiles, where in ((0, "towards a smile"), (1, "away from it")):
            asked = flipped[before[:, 0] == smiles]
            hits, n = int(asked.sum()), len(asked)
            low, high = wilson(hits, n)
            print(f"{name:6s} {where:15s} {hits / n:.3f} [{low:.3f}, {high:.3f}], n = {n}")


if __name__ == "__main__":
    main()
