"""Job: how exact the LMO is, over random problems against float64 bisection (claim C1).

    python -m papers.svce.exactness --problems 200 --dimension 512 --seed 0 --out F

A problem draws a gradient, an image of which 0–90 % of the values are exactly 0 or 1, and a radius between a fraction
of a pixel and one that reaches the box; p runs over {1, 1.1, 1.5, 2, 4}.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from common.errors import one_line_errors
from common.files import atomic_path
from papers.svce.lmo import lmo

NORMS = (1.0, 1.1, 1.5, 2.0, 4.0)
BISECTIONS = 90  # of log μ in [−700, 700]: to 1e-24


def bisection(w: Tensor, x: Tensor, epsilon: Tensor, p: float) -> Tensor:
    """The optimum Σ|w_i|s_i of §2.3 by bisection on log μ in float64: N values.

    Independent of `lmo`: it uses the KKT form s_i(μ) = min(γ_i, (|w_i|/(pμ))^{1/(p−1)}) alone; for p = 1, the knapsack
    filled in order of |w|.
    """
    w, x, epsilon = w.double().flatten(1), x.double().flatten(1), epsilon.double()
    gamma = torch.where(w > 0, 1 - x, torch.where(w < 0, x, torch.zeros_like(x)))
    a = torch.where(gamma > 0, w.abs(), torch.zeros_like(w))
    a = a / a.amax(1, keepdim=True)
    scale = w.abs().where(gamma > 0, torch.zeros_like(w)).amax(1)
    if p == 1:
        order = a.argsort(1, descending=True)
        room, worth = gamma.gather(1, order), a.gather(1, order)
        before = room.cumsum(1) - room
        return ((epsilon[:, None] - before).clamp(min=0).minimum(room) * worth).sum(1) * scale
    log_low = torch.full_like(epsilon, -700.0)[:, None]
    log_high = torch.full_like(log_low, 700.0)
    log_a = a.log()

    def move(log_mu: Tensor) -> Tensor:
        return gamma.minimum(((log_a - log_mu) / (p - 1)).clamp(max=50).exp())

    for _ in range(BISECTIONS):
        middle = (log_low + log_high) / 2
        too_far = (move(middle) ** p).sum(1, keepdim=True) > epsilon[:, None] ** p
        log_low, log_high = torch.where(too_far, middle, log_low), torch.where(too_far, log_high, middle)
    return (a * move(log_high)).sum(1) * scale


def measure_exactness(problems: int, dimension: int, seed: int) -> pd.DataFrame:
    """One row per problem, p and dtype: relative objective `gap`, `excess` of the norm over ε, `outside` of the box."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(problems, dimension, generator=generator, dtype=torch.float64)
    x = torch.rand(problems, dimension, generator=generator, dtype=torch.float64)
    walls = torch.rand(problems, 1, generator=generator) * 0.9
    on_wall = torch.rand(problems, dimension, generator=generator) < walls
    x = torch.where(on_wall, x.round(), x)
    size = torch.rand(problems, generator=generator, dtype=torch.float64)
    rows = []
    for p in NORMS:
        epsilon = dimension ** (1 / p) * 10 ** (-3 + 2.7 * size)
        for dtype in (torch.float32, torch.float64):
            w_, x_, e_ = w.to(dtype), x.to(dtype), epsilon.to(dtype)
            best = bisection(w_, x_, e_, p)
            delta = lmo(w_, x_, e_, p).double()
            reached = (w_.double() * delta).sum(1)
            moved = x_.double() + delta
            table = {
                "gap": ((best - reached) / best).abs(),
                "excess": delta.norm(p=p, dim=1) / e_.double() - 1,
                "outside": torch.maximum(-moved, moved - 1).amax(1).clamp(min=0),
            }
            frame = pd.DataFrame({key: value.numpy() for key, value in table.items()})
            rows.append(frame.assign(p=p, dtype=str(dtype).removeprefix("torch."), problem=range(problems)))
    return pd.concat(rows, ignore_index=True)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, required=True)
    parser.add_argument("--dimension", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with atomic_path(args.out) as temporary:
        measure_exactness(args.problems, args.dimension, args.seed).to_parquet(temporary, index=False)


if __name__ == "__main__":
    main()
