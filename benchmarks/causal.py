"""How often the 95 % intervals of NEC, SUF and NESUF hold the truth, and how far the estimates are from it, where the
truth is known exactly: the faces' structural model, both decision rules of the contrastive spec (§9.1), direct effects.

    python -m benchmarks.causal [--repeats 1600] [--units 2000]

Truths of exactly 0 or 1 have no interval to speak of, and are left out of the coverage. First a unit is an individual
of the model, whose other arm the model itself answers: no generator and no classifier, so that what is seen is the
estimator. Then it is a rendered face: a classifier trained on other faces decides, and the renderer, which moves one
attribute and nothing else, is the generator.
"""

import argparse
import itertools

import numpy as np
import torch

from common.classifiers.architectures import digit_cnn
from common.classifiers.training import Recipe, train
from common.data import faces
from common.data.faces import ATTRIBUTES, propagate
from common.metrics.causal import SCORES, estimate, tabulate
from common.progress import Progress
from common.statistics import wilson
from papers.contrastive.faces import CAUSES, RULES, exact

NAMES = ("nec", "suf", "nesuf")
TRAINED_ON = 6000  # faces


def table(rule, name: str, uniforms: torch.Tensor) -> np.ndarray:
    """The counts n[x, o, e] of individuals, every other attribute held where it is."""
    factual = propagate(uniforms)
    held = {other: factual[:, ATTRIBUTES.index(other)] for other in ATTRIBUTES if other != name}
    x = factual[:, ATTRIBUTES.index(name)]
    return tabulate(x.numpy(), rule(factual).numpy(), rule(propagate(uniforms, {**held, name: 1 - x})).numpy())


def rendered(rule, units: int) -> tuple[dict[str, np.ndarray], float]:
    """The counts n[x, o, e] of rendered faces by edited attribute, decided by a classifier that learned the rule from
    other faces, and its accuracy."""
    learn, ask = (
        faces.sample(tuple(f"{name}-{k}" for k in range(n)), 0, bald=0.0)
        for name, n in (("learn", TRAINED_ON), ("ask", units))
    )
    torch.manual_seed(0)
    f = digit_cnn(3, 2)
    train(f, faces.render(learn), rule(learn.attributes), Recipe("digit_cnn", epochs=20), 0)

    @torch.no_grad()
    def decides(factors: faces.Factors) -> np.ndarray:
        return torch.cat([f(x).argmax(1) for x in faces.render(factors).split(128)]).numpy()

    f.eval()
    o = decides(ask)
    found = {
        name: tabulate(ask.attribute(name).numpy(), o, decides(faces.twin(ask, name))) for name in faces.ATTRIBUTES[:5]
    }
    return found, float((o == rule(ask.attributes).numpy()).mean())


def print_coverage(repeats: int, units: int, generator: torch.Generator) -> None:
    """Mean absolute error and coverage of each score, with its Wilson interval."""
    errors, inside = {name: [] for name in NAMES}, {name: [] for name in NAMES}
    cells = list(itertools.product(RULES, CAUSES["majority"]))
    truth = {cell: exact(*cell) for cell in cells}
    with Progress("repeat", total=repeats, unit="repeats") as progress:
        for repeat in range(repeats):
            uniforms = torch.rand(units, len(ATTRIBUTES), generator=generator)
            for cell in cells:
                counts = table(RULES[cell[0]], cell[1], uniforms)
                for name in NAMES:
                    true, found = truth[cell][name], estimate(name, counts, key=repeat)
                    errors[name].append(abs(found.value - true))
                    if 0 < round(true, 9) < 1:
                        inside[name].append(found.low <= true <= found.high)
            progress.advance()
    print(f"{repeats} repeats of {units} individuals, {len(RULES)} rules × 3 attributes")
    for name in NAMES:
        hits, n = int(np.sum(inside[name])), len(inside[name])
        low, high = wilson(hits, n)
        print(f"{name:6s} error {np.mean(errors[name]):.4f}   coverage {hits / n:.3f} [{low:.3f}, {high:.3f}], n = {n}")


def print_renderer(units: int, generator: torch.Generator) -> None:
    """Mean absolute error of all scores with the renderer as generator, over all attributes and over true causes."""
    print(f"the renderer as generator, {units} faces")
    for title, rule in RULES.items():
        found, accuracy = rendered(rule, units)
        errors = {
            attribute: [abs(float(SCORES[name][0](counts)) - exact(title, attribute)[name]) for name in NAMES]
            for attribute, counts in found.items()
        }
        every, causes = (np.mean([errors[attribute] for attribute in some]) for some in (found, CAUSES[title]))
        print(f"{title}: accuracy {accuracy:.3f}, error {every:.4f}, of true causes {causes:.4f}")


def main() -> None:
    """Print the errors and the coverage of the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1600)
    parser.add_argument("--units", type=int, default=2000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    print_coverage(args.repeats, args.units, generator)
    print_renderer(args.units, generator)


if __name__ == "__main__":
    main()
