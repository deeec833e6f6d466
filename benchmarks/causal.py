"""How often the 95 % intervals of NEC, SUF and NESUF hold the truth, and how far the estimates are from it, where the
truth is known exactly: the faces' structural model, both decision rules of the contrastive spec (§9.1), direct effects.

    python -m benchmarks.causal [--repeats 400] [--units 2000]

Truths of exactly 0 or 1 have no interval to speak of, and are left out of the coverage. A unit is an individual of the
model, whose other arm the model itself answers: no generator and no classifier, so that what is seen is the estimator.
"""

import argparse
import itertools

import numpy as np
import torch

from common.data.faces import ATTRIBUTES, propagate
from common.metrics.causal import SCORES, estimate, tabulate
from common.progress import Progress
from common.statistics import wilson

RULES = {
    "majority of old, grey, glasses": lambda attributes: (attributes[:, :3].sum(1) >= 2).long(),
    "either grey or glasses": lambda attributes: attributes[:, 1] ^ attributes[:, 2],
}
CAUSES = ("old", "gray", "glasses")
TRUTH = 1_000_000  # units whose score stands in for the exact one: within .001


def table(rule, name: str, uniforms: torch.Tensor) -> np.ndarray:
    """The counts n[x, o, e] of individuals, every other attribute held where it is."""
    factual = propagate(uniforms)
    held = {other: factual[:, ATTRIBUTES.index(other)] for other in ATTRIBUTES if other != name}
    x = factual[:, ATTRIBUTES.index(name)]
    return tabulate(x.numpy(), rule(factual).numpy(), rule(propagate(uniforms, {**held, name: 1 - x})).numpy())


def main() -> None:
    """Print, per score, mean absolute error and coverage with its Wilson interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--units", type=int, default=2000)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    names = ("nec", "suf", "nesuf")
    errors, inside = {name: [] for name in names}, {name: [] for name in names}
    with Progress("repeat", total=args.repeats, unit="repeats") as progress:
        cells = list(itertools.product(RULES.values(), CAUSES))
        many = torch.rand(TRUTH, len(ATTRIBUTES), generator=generator)
        truth = {cell: table(*cell, many) for cell in cells}
        for repeat in range(args.repeats):
            uniforms = torch.rand(args.units, len(ATTRIBUTES), generator=generator)
            for cell in cells:
                counts = table(*cell, uniforms)
                for name in names:
                    exact, found = float(SCORES[name][0](truth[cell])), estimate(name, counts, key=repeat)
                    errors[name].append(abs(found.value - exact))
                    if 0 < exact < 1:
                        inside[name].append(found.low <= exact <= found.high)
            progress.advance()
    print(f"{args.repeats} repeats of {args.units} individuals, {len(RULES)} rules × {len(CAUSES)} attributes")
    for name in names:
        hits, n = int(np.sum(inside[name])), len(inside[name])
        low, high = wilson(hits, n)
        print(f"{name:6s} error {np.mean(errors[name]):.4f}   coverage {hits / n:.3f} [{low:.3f}, {high:.3f}], n = {n}")


if __name__ == "__main__":
    main()
