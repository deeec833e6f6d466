"""Job: shifts of several λ and what they do: the trade of validity against the size of the change.

python -m papers.contrastive.sweep --system faces --world F --recipe '{"steps": 500}' --lams 0 0.05 --n 300 --out F

One row per λ, latent and asked label, whose opposite is asked for while the others are held.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd

from common.errors import one_line_errors
from common.files import atomic_path
from common.progress import Progress
from common.scales import parse_recipe
from papers.contrastive.edits import flipping_shifts, generated, look
from papers.contrastive.systems import load_system
from papers.contrastive.train import Recipe, train_shift


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", required=True, help="face-gan, or a system of the face world")
    parser.add_argument("--world", type=Path, help="the file of the face world")
    parser.add_argument("--recipe", type=json.loads, required=True, help="JSON: fields of train.Recipe but λ")
    parser.add_argument("--lams", type=float, nargs="+", required=True, help="every λ")
    parser.add_argument("--n", type=int, required=True, help="latents that are asked")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the table")
    args = parser.parse_args()
    system, recipe = load_system(args.system, args.world), parse_recipe(Recipe, args.recipe)
    ids, w = system.population(args.n)
    before = look(generated(w, system), system)
    frames = []
    with Progress(f"sweep {args.system}", total=recipe.steps * len(args.lams), unit="steps") as progress:
        for lam in args.lams:
            S = train_shift(system, replace(recipe, lam=lam), args.seed, lambda facts: progress.advance())
            for k, name in enumerate(system.asked.names):
                shift = flipping_shifts(w, before.labels, S, k)
                seen, x = look(generated(w + shift, system), system), before.labels[:, k]
                judges = {"reached": seen.labels[:, k]} | (
                    {} if seen.audited is None else {"audited": seen.audited[:, k]}
                )
                columns = {judge: (label != x).float().numpy() for judge, label in judges.items()}
                frame = pd.DataFrame({"image": ids, "length": shift.norm(dim=1).numpy(), **columns})
                frames.append(frame.assign(system=system.name, seed=args.seed, lam=lam, attribute=name))
    with atomic_path(args.out) as temporary:
        pd.concat(frames, ignore_index=True).to_parquet(temporary, index=False)


if __name__ == "__main__":
    main()
