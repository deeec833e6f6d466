"""Job: the labels of generated images before and after every edit: what validity, leakage and all scores are made of.

python -m papers.contrastive.measure --shift F --settings '{"n": 1000, "floor": 300}' --seed 0 --out F.parquet

One row per latent, regime, edited attribute and decision: `x` and `o`, attribute and decision as they are, `e`, the
decision after the edit, whether the attribute `reached` its target, the `length` of the shift, and all labels as
`before_LABEL` and `after_LABEL`. Regimes beside those of the method: `random`, shifts in random directions as long as
those of `free`, and `move`, `mirror` and `blur`, which change no label: the floor of every score.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from common.errors import VceError, one_line_errors
from common.explain import Streams
from common.files import atomic_path
from common.progress import Progress
from common.scales import parse_recipe
from papers.contrastive.labels import transformed
from papers.contrastive.method import ShiftPredictor, condition
from papers.contrastive.systems import System, packaged_faces
from papers.contrastive.train import load_shift

CHUNK = 64  # images of a pass
POPULATION = 0  # the seed of the latents, whatever the training seed of S
NUISANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "move": lambda images: transformed(images, 2, 0, False),
    "mirror": lambda images: transformed(images, 0, 0, True),
    "blur": lambda images: torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, 0.8, 0.8))),
}


@dataclass(frozen=True)
class Settings:
    """`n` latents, of which the first `floor` are asked about random shifts and nuisances."""

    n: int
    floor: int


def population(n: int, d: int) -> tuple[tuple[str, ...], Tensor]:
    """Ids and latents of n images, the same whatever n and the training seed."""
    ids = tuple(f"latent-{k:05d}" for k in range(n))
    return ids, Streams(POPULATION, ids, (0,) * n).normal((d,), "latent")


@torch.no_grad()
def labelled(w: Tensor, system: System, nuisance: Callable[[Tensor], Tensor] = lambda images: images) -> Tensor:
    """N×m labels, 0 or 1, of the images of N latents, by logits averaged over transforms."""
    parts = [system.labels.averaged(nuisance(system.G(part))) > 0 for part in w.split(CHUNK)]
    return torch.cat(parts).long()


def flipping_shifts(w: Tensor, present: Tensor, S: ShiftPredictor, k: int) -> Tensor:
    """N×d shifts that ask for the opposite of label k, and for the other labels of S as they are in N×K `present`."""
    return S(w, condition(present[:, : S.m], k, 1 - present[:, k], "clamp_others"))


def random_shifts(shifts: Tensor, directions: Tensor) -> Tensor:
    """Along N×d `directions`, each as long as the shift in its place."""
    return directions * (shifts.norm(dim=1) / directions.norm(dim=1))[:, None]


def units(system: System, S: ShiftPredictor, settings: Settings, seed: int, progress: Progress) -> pd.DataFrame:
    """All rows for one S. Raises VceError when there are no latents to ask about."""
    if not 0 < settings.floor <= settings.n:
        raise VceError(f"settings: floor {settings.floor} of n {settings.n} latents; mend `contrastive` in config/")
    ids, w = population(settings.n, system.d)
    names, m, few = system.labels.names, system.m, slice(0, settings.floor)
    before = labelled(w, system)
    present = before[:, :m]
    frames = []

    def keep(regime: str, k: int, decisions: list[int], after: Tensor, lengths: Tensor) -> None:
        n = len(after)
        labels = {f"before_{name}": before[:n, j].numpy() for j, name in enumerate(names)}
        labels |= {f"after_{name}": after[:, j].numpy() for j, name in enumerate(names)}
        for t in decisions:
            facts = {"regime": regime, "attribute": names[k], "decision": names[t], "seed": seed}
            seen = {"x": before[:n, k], "o": before[:n, t], "e": after[:, t], "reached": after[:, k] != before[:n, k]}
            columns = {name: values.numpy() for name, values in seen.items()} | {"length": lengths.numpy()}
            image = np.array(ids[:n], dtype=object)
            frames.append(pd.DataFrame({"image": image, **columns, **labels}).assign(**facts))
        progress.advance()

    for k in range(m):
        others = [t for t in range(len(names)) if t != k]
        opposite = 1 - present[:, k]
        for t in others:
            c = condition(present, k, opposite, "clamp_others")
            if t < m:
                c[:, t] = 0  # the decision is never asked for
            shifts = S(w, c)
            keep("clamp_others", k, [t], labelled(w + shifts, system), shifts.norm(dim=1))
        shifts = S(w, condition(present, k, opposite, "free"))
        keep("free", k, others, labelled(w + shifts, system), shifts.norm(dim=1))
        directions = Streams(POPULATION, ids, (k,) * len(ids)).normal((system.d,), "random shift")
        moved = random_shifts(shifts, directions)[few]
        keep("random", k, others, labelled(w[few] + moved, system), moved.norm(dim=1))
    for name, nuisance in NUISANCES.items():
        after = labelled(w[few], system, nuisance)
        for k in range(m):
            keep(name, k, [t for t in range(len(names)) if t != k], after, torch.zeros(len(after)))
    return pd.concat(frames, ignore_index=True)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shift", type=Path, required=True, help="the file of S")
    parser.add_argument("--settings", type=json.loads, required=True, help="JSON: n, floor")
    parser.add_argument("--seed", type=int, required=True, help="the training seed of S")
    parser.add_argument("--out", type=Path, required=True, help="the table")
    args = parser.parse_args()
    system = packaged_faces()
    S = load_shift(args.shift, system.d, system.m)
    decisions = len(system.labels.names) - 1
    with Progress("edit", total=system.m * (decisions + 2 + len(NUISANCES)), unit="edits") as progress:
        found = units(system, S, parse_recipe(Settings, args.settings), args.seed, progress)
    with atomic_path(args.out) as temporary:
        found.to_parquet(temporary, index=False)


if __name__ == "__main__":
    main()
