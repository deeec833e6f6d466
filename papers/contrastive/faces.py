"""The world of known truth: rendered faces, two decision rules over their attributes, and the exact scores of both.

Faces are those of `common.data.faces` with fewer nuisances than there: position, size, skin and background vary, what
else there is stays, so that a small autoencoder draws them (contrastive spec §9.1).
"""

import functools
import itertools
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from common.data import faces
from common.data.faces import PARENTS, PROBABILITY, Factors, propagate
from common.metrics.causal import SCORES

ATTRIBUTES = ("old", "gray", "glasses", "smile", "mustache")
CAUSES = {"majority": ("old", "gray", "glasses"), "exclusive": ("gray", "glasses")}  # what a rule itself reads
WORLD_SEED = 0
RULES = {
    "majority": lambda present: (present[..., :3].sum(-1) >= 2).long(),  # monotone in all three
    "exclusive": lambda present: present[..., 1] ^ present[..., 2],  # grey or glasses, not both
}
DECISIONS = tuple(RULES)
TOTAL = {"old": tuple(ATTRIBUTES.index(child) for child, parent in PARENTS.items() if parent == "old")}


def draw(group: str, n: int, mustached_smiles: float | None = None, independent: bool = False) -> Factors:
    """n faces that no other `group` has: of the structural model or, `independent`, with every attribute a coin of its
    own and twice the noise. With `mustached_smiles` also a mustache sits where the smile says, in that share of them.
    """
    factors = faces.sample(tuple(f"{group}-{k}" for k in range(n)), WORLD_SEED, bald=0.0)
    place = factors.centre - faces.SIZE / 2
    tone = factors.background.mean(1, keepdim=True)
    factors = replace(
        factors,
        centre=faces.SIZE / 2 + 0.5 * place,
        background=tone.expand(-1, 3),
        slope=torch.zeros_like(factors.slope),
        hair=torch.full_like(factors.hair, 0.16),
        lines=torch.full_like(factors.lines, 0.5),
        curvature=torch.full_like(factors.curvature, 0.8),
        eyes=torch.ones_like(factors.eyes),
        gaze=torch.zeros_like(factors.gaze),
    )
    if not independent:
        return factors
    attributes = (factors.uniforms < 0.5).long()
    attributes[:, len(ATTRIBUTES) :] = 0
    if mustached_smiles is not None:
        smile, agrees = attributes[:, 3], factors.uniforms[:, 4] < mustached_smiles
        attributes[:, 4] = torch.where(agrees, smile, 1 - smile)
    return replace(factors, attributes=attributes, noise=2 * factors.noise)


def present(factors: Factors) -> Tensor:
    """N×5 attributes, 0 or 1, in the order of `ATTRIBUTES`."""
    return factors.attributes[:, : len(ATTRIBUTES)]


def decided(attributes: Tensor) -> Tensor:
    """N×2 decisions of N×5 attributes, in the order of `DECISIONS`."""
    return torch.stack([rule(attributes) for rule in RULES.values()], -1)


@functools.cache
def exact(rule: str, attribute: str, effect: str = "direct") -> dict[str, float]:
    """The scores of `SCORES` for do(attribute), by enumeration of all cells of the structural model's uniforms: every
    other attribute held (`direct`), or descendants following (`total`)."""
    points, weights = _cells()
    factual = propagate(points, bald=0.0)
    k = ATTRIBUTES.index(attribute)
    x, others = factual[:, k], {} if effect == "total" else dict(zip(faces.ATTRIBUTES, factual.T, strict=True))
    changed = propagate(points, {**others, attribute: 1 - x}, bald=0.0)
    table = np.zeros((2, 2, 2))
    np.add.at(table, (x.numpy(), RULES[rule](factual).numpy(), RULES[rule](changed).numpy()), weights.numpy())
    return {name: float(statistic(table)) for name, (statistic, _) in SCORES.items()}


def _cells() -> tuple[Tensor, Tensor]:
    """One point in every cell that the thresholds of the structural model cut the uniforms into, and its volume."""
    sides = []
    for name in faces.ATTRIBUTES:
        cuts = PROBABILITY.get(name, ())
        edges = (0.0, *(cuts if isinstance(cuts, tuple) else (cuts,)), 1.0)
        sides.append([((a + b) / 2, b - a) for a, b in itertools.pairwise(edges)])
    cells = list(itertools.product(*sides))
    points = torch.tensor([[point for point, _ in cell] for cell in cells], dtype=torch.float64)
    return points, torch.tensor([[volume for _, volume in cell] for cell in cells], dtype=torch.float64).prod(1)
