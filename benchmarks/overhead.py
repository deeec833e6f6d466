"""Overhead of Auto-Frank-Wolfe on EfficientNet-Lite0 at 224 px: wall ÷ (passes × measured forward + backward pass).

    python -m benchmarks.overhead [--batch 8] [--iterations 75] [--threads 1]

The model's own pass is timed inside the same run: half of the samples before the ascent, half after it.
"""

import argparse
import statistics
import time

import torch

from common.classifiers.pretrained import load_classifier
from common.data.fetch import fetch
from common.data.images import load_image
from common.data.registry import names
from common.explain import Streams, log_confidence
from papers.svce.explain import explain


def own_pass(objective, x: torch.Tensor, repeats: int) -> list[float]:
    """Seconds of single forward + backward passes over the batch."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        objective(x, torch.arange(len(x)))
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=75)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    classifier = load_classifier("imagenet/efficientnet-lite0")
    photos = [name for name in names() if name.startswith("imagenet_")][: args.batch]
    x = torch.stack([load_image(fetch(name), classifier.image_shape) for name in photos])
    target = torch.full((len(x),), 281)
    objective = log_confidence(classifier, target)
    own_pass(objective, x, 3)
    seconds = own_pass(objective, x, 10)
    passes = 0

    def count(state: dict) -> None:
        nonlocal passes
        passes += 1

    start = time.perf_counter()
    rng = Streams(0, tuple(photos), tuple(target.tolist()))
    explain(
        x, target, target, classifier=classifier, rng=rng, strengths=(50.0,), callback=count, iterations=args.iterations
    )
    wall = time.perf_counter() - start
    seconds += own_pass(objective, x, 10)
    own = statistics.median(seconds)
    print(f"batch {len(x)}, {args.iterations} iterations, {passes} forward + backward passes, {args.threads} thread(s)")
    print(f"wall {wall:.2f} s, own pass {own:.3f} s, overhead {wall / (passes * own):.3f}")


if __name__ == "__main__":
    main()
