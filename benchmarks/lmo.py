"""Time of the linear maximisation oracle in units of torch.sort of the same batch.

    python -m benchmarks.lmo [--threads 2] [--rows 16] [--size 150528] [--repeats 9]

The published oracle sorts; ours must not cost more than 0.7 of a sort at ImageNet size. Sort and oracle alternate in
one process and the medians are compared, so that a busy machine slows both alike. 44 % of the image values are
saturated. With two threads, run it on an idle machine: threads that wait for each other measure their neighbours.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from papers.svce.lmo import lmo

RADII = {1: 400.0, 1.1: 250.0, 1.5: 50.0, 2: 12.0}  # near the paper's ImageNet radii (SVCE §2.2)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(w: torch.Tensor, x: torch.Tensor, p: float, repeats: int) -> tuple[float, float]:
    """Median seconds of one oracle call and of one sort, interleaved."""
    pairs = [
        (seconds(lambda: lmo(w, x, RADII[p], p)), seconds(lambda: torch.sort(w, dim=1))) for _ in range(repeats + 1)
    ][1:]
    oracle, sort = zip(*pairs, strict=True)
    return statistics.median(oracle), statistics.median(sort)


def main() -> None:
    """Print one line per norm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--size", type=int, default=150528)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(args.rows, args.size, generator=generator)
    x = (torch.rand(args.rows, args.size, generator=generator) * 1.8 - 0.4).clamp(0, 1)
    print(f"{args.rows} x {args.size} float32, {args.threads} thread(s), median of {args.repeats}")
    for p in RADII:
        oracle, sort = measure(w, x, p, args.repeats)
        print(f"p = {p:<4}  lmo {1e3 * oracle:7.1f} ms   sort {1e3 * sort:7.1f} ms   ratio {oracle / sort:.3f}")


if __name__ == "__main__":
    main()
