"""What a shift does: validity, the share of images whose label becomes what was asked for (contrastive spec §5)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.statistics import wilson
from papers.contrastive.labels import Labels
from papers.contrastive.method import Generator, ShiftPredictor, condition

CHUNK = 64  # images of a pass


@dataclass(frozen=True)
class Validity:
    """Of `n` images that had not the label `value`: the share that has it after the shift, with its Wilson interval."""

    value: int
    share: float
    low: float
    high: float
    n: int


@torch.no_grad()
def labelled(w: Tensor, G: Generator, f: Labels) -> Tensor:
    """N×m labels, 0 or 1, of the images of N latents, by the logits averaged over transforms."""
    return torch.cat([f.averaged(G(part)) > 0 for part in w.split(CHUNK)]).long()


@torch.no_grad()
def flipping_shifts(w: Tensor, present: Tensor, S: ShiftPredictor, k: int = 0) -> Tensor:
    """N×d shifts that ask for the opposite of label k and hold the others, N×m `present`."""
    return S(w, condition(present, k, 1 - present[:, k], "clamp_others"))


def random_shifts(shifts: Tensor, generator: torch.Generator) -> Tensor:
    """Directions at random, each as long as the shift in its place: the floor of validity."""
    directions = torch.randn(shifts.shape, generator=generator)
    return directions * (shifts.norm(dim=1) / directions.norm(dim=1))[:, None]


def validity(before: Tensor, after: Tensor) -> list[Validity]:
    """Of N labels before and after, in both directions."""
    found = []
    for value in (1, 0):
        asked = before != value
        hits, n = int((after[asked] == value).sum()), int(asked.sum())
        found.append(Validity(value, hits / n if n else float("nan"), *wilson(hits, n), n))
    return found
