"""What it costs to invert many queries at once: one batched network of independent weights against one at a time.

    python -m benchmarks.priors [--queries 40] [--iterations 400] [--rounds 3]

Coordinate networks of hidden width 32 at 32×32 against an untrained strided CNN, on one thread; nobody reaches a
target, so that every query runs all its iterations. One run times both in turn, the least of the rounds counts, and one
at a time is timed on a part of the queries and scaled up.
"""

import argparse
import time

import torch

from common.classifiers.architectures import strided_cnn
from common.explain import Streams
from common.generators.priors import CoordinateNetwork
from papers.disc.consistency import class_confidence, class_target
from papers.disc.layers import Layers
from papers.disc.method import Schedule, fit, invert

ALONE = 4  # queries timed one at a time
SHAPE = (3, 32, 32)


def inversion(rows: list[int], queries: int, iterations: int) -> float:
    """Seconds to invert these of `queries` images at once."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(queries, *SHAPE, generator=generator)[rows]
    classifier = strided_cnn(3, 5).eval().requires_grad_(False)
    rng = Streams(0, tuple(map(str, range(queries))), (0,) * queries)[rows]
    prior, target = CoordinateNetwork(SHAPE, hidden=32), torch.zeros(len(rows), dtype=torch.long)
    weights, model = prior.initial(rng), Layers(classifier, SHAPE)
    schedule = Schedule(fit=iterations * 2 // 5, steer=iterations - iterations * 2 // 5)
    start = time.perf_counter()
    fitted = fit(x, prior, weights, model, schedule.fit)
    invert(x, fitted, model, class_target(target), class_confidence(target), (1.0,), schedule=schedule)
    return time.perf_counter() - start


def main() -> None:
    """Print seconds of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    together, alone = float("inf"), float("inf")
    for _ in range(args.rounds):
        together = min(together, inversion(list(range(args.queries)), args.queries, args.iterations))
        singles = sum(inversion([row], args.queries, args.iterations) for row in range(ALONE))
        alone = min(alone, singles * args.queries / ALONE)
    print(f"{args.queries} queries × {args.iterations} iterations")
    print(f"{together:.1f} s at once, {alone:.1f} s one at a time: {alone / together:.1f} times as fast")


if __name__ == "__main__":
    main()
