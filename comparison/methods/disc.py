"""DISC: a coordinate network is fitted to the image and steered; strengths are own confidences.

The explained classifier comes without a companion that was trained with it, so manifold consistency is off.
"""

from functools import partial

from common.explain import Explainer
from comparison.bench import Bench
from papers.disc.explain import explain
from papers.disc.method import Schedule


def explainer(bench: Bench, fit: int, steer: int, ramp: float, functional: dict[str, float]) -> Explainer:
    """λ₃ of the target is that of the `functional` weights by world, as the paper's own folder tuned them."""
    return partial(
        explain, prior="inr", schedule=Schedule(fit, steer, ramp), lambdas=(1.0, 0.0, functional[bench.world])
    )
