"""What an ensemble's gradient costs: M stacked members against one member, and against a Python loop over members.

    python -m benchmarks.ensemble [--rounds 15]

One run times everything in turn, so that ratios are of the same machine in the same state; the least of the rounds
counts. `products` are the two 256×256 matrix products per member alone, forward and back: what no way of running the
ensemble can save. One member runs without stacking; `stacked 1` is one member run as the others are.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import vmap

from common.classifiers.ensembles import Ensemble, combine
from common.explain import log_confidence

REPEATS, LATENT, CLASSES, WIDTH = 10, 16, 10, 256


def gradient(forward: Callable[[Tensor], Tensor], batch: int) -> Callable[[], Tensor]:
    """A call that takes ∇ log p̄(t|z) of a batch of latents."""
    generator = torch.Generator().manual_seed(0)
    z, target = torch.randn(batch, LATENT, generator=generator), torch.zeros(batch, dtype=torch.long)
    objective, rows = log_confidence(forward, target), torch.arange(batch)
    return lambda: objective(z, rows)[1]


def stacked(ensemble: Ensemble) -> Callable[[Tensor], Tensor]:
    """All members by `vmap`, one member too."""
    return lambda z: combine(vmap(ensemble._call, in_dims=(0, None))(ensemble.state, z).log_softmax(2), "mixture")


def looped(ensemble: Ensemble) -> Callable[[Tensor], Tensor]:
    """The same, one member after the other."""
    members = [ensemble.only([k]) for k in range(len(ensemble))]
    return lambda z: combine(torch.cat([member.member_log_probabilities(z) for member in members]), "mixture")


def products(members: int, batch: int) -> Callable[[], tuple[Tensor, Tensor]]:
    a, b = torch.rand(members, batch, WIDTH), torch.rand(members, WIDTH, WIDTH)
    return lambda: (torch.bmm(a, b), torch.bmm(a, b))


def least_seconds(calls: dict, rounds: int) -> dict:
    """The least mean seconds of a call over the rounds, every call timed in every round."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for key, call in calls.items():
            start = time.perf_counter()
            for _ in range(REPEATS):
                call()
            best[key] = min(best[key], (time.perf_counter() - start) / REPEATS)
    return best


def main() -> None:
    """Print one line per batch and ensemble size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("batch   M     ensemble         loop     products   ÷ M = 1   ÷ stacked 1   largest difference")
    for batch in (32, 200):
        calls, gaps = {}, {}
        for m in (1, 3, 5, 10, 20):
            ensemble = Ensemble.create("mlp", (LATENT,), CLASSES, m, seed=0)
            calls[m, "ensemble"], calls[m, "loop"] = gradient(ensemble, batch), gradient(looped(ensemble), batch)
            calls[m, "stacked"], calls[m, "products"] = gradient(stacked(ensemble), batch), products(m, batch)
            gaps[m] = (calls[m, "ensemble"]() - calls[m, "loop"]()).abs().max().item()
        best = least_seconds(calls, args.rounds)
        for m, gap in gaps.items():
            own, loop, bare = (1e3 * best[m, kind] for kind in ("ensemble", "loop", "products"))
            one, one_stacked = (1e3 * best[1, kind] for kind in ("ensemble", "stacked"))
            print(
                f"{batch:>5} {m:>3} {own:>9.2f} ms {loop:>9.2f} ms {bare:>9.2f} ms {own / one:>9.1f} "
                f"{own / one_stacked:>13.1f} {gap:>20.1e}"
            )


if __name__ == "__main__":
    main()
