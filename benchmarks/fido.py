"""What it costs to search many maps at once: images × masks in one batch against one image at a time, and the overhead.

    python -m benchmarks.fido [--images 32] [--steps 20] [--rounds 3]

FIDO at 32×32 with an untrained strided CNN on one thread, for every in-fill of a search. One run times everything in
turn, and the least of the rounds counts. Overhead is wall time ÷ (passes × the classifier's own forward and backward
pass + fills × the in-fill's own pass), both measured at the batch of the search.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from common.classifiers.architectures import strided_cnn
from common.explain import Streams
from common.generators.infill import Blur, Infill, Local, Mean, Random
from common.generators.inpainting import Learned, build
from papers.fido.explain import chunks, class_score, saliency
from papers.fido.method import Settings

SHAPE = (3, 32, 32)
ALONE = 4  # images timed one at a time


def fills() -> dict[str, Infill]:
    """The in-fills of a search; learned ones are untrained, which costs the same."""
    colour = torch.full((3,), 0.5)
    learned = {name: Learned(build(name, SHAPE, (32, 48, 64), 16).eval()) for name in ("unet", "cvae")}
    return {"mean": Mean(colour), "blur": Blur(2.5), "random": Random(), "local": Local(5, colour), **learned}


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Print seconds per image at once and one at a time, their ratio, and the overhead."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    classifier = strided_cnn(3, 5).eval().requires_grad_(False)
    x, c = torch.rand(args.images, *SHAPE), torch.arange(args.images) % 5
    rng = Streams(0, tuple(map(str, range(args.images))), tuple(c.tolist()))

    def search(rows: list[int], fill: Infill, masks: int) -> Callable[[], object]:
        settings = Settings(grid=16, steps=args.steps, masks=masks, lam=0.005)
        how = {"classifier": classifier, "infill": fill, "objective": "ssr", "settings": settings}
        return lambda: saliency(x[rows], c[rows], rng=rng[rows], **how)

    print(f"{args.images} images, {args.steps} steps, milliseconds per image and step")
    for masks in (1, 4):
        rows = chunks(args.images, masks, 32 * 32)[0]
        images, labels, streams = x[rows], c[rows], rng[range(rows.stop)]
        keep = (torch.rand(len(images), masks, 32, 32) < 0.5).float()
        mixed = images[:, None].repeat(1, masks, 1, 1, 1)

        def classifier_pass(mixed: Tensor = mixed, labels: Tensor = labels) -> None:
            inputs = mixed.detach().requires_grad_()
            torch.autograd.grad(class_score(classifier, labels)(inputs).sum(), inputs)

        for name, fill in fills().items():
            best = dict.fromkeys(("together", "alone", "classifier", "fill"), float("inf"))
            for _ in range(args.rounds):
                calls = {
                    "together": (search(list(range(args.images)), fill, masks), args.images * args.steps),
                    "classifier": (classifier_pass, len(images)),
                    "fill": (partial(fill, images, keep, streams), len(images)),
                }
                for key, (call, count) in calls.items():
                    best[key] = min(best[key], seconds(call) / count)
                alone = sum(seconds(search([row], fill, masks)) for row in range(ALONE))
                best["alone"] = min(best["alone"], alone / (ALONE * args.steps))
            passes = best["classifier"] + (0 if fill.constant else best["fill"])
            print(
                f"{masks} masks, {name:6} together {1e3 * best['together']:6.2f}  alone {1e3 * best['alone']:6.2f}"
                f"  {best['alone'] / best['together']:4.1f} times as fast  overhead {best['together'] / passes:.2f}"
            )


if __name__ == "__main__":
    main()
