"""The reference that was named beforehand: APGD on log p_f(target) in l2 balls; strengths are their radii."""

from functools import partial

from common.anchors import pixel_ascent
from common.explain import Explainer
from comparison.bench import Bench


def explainer(bench: Bench, iterations: int) -> Explainer:
    """The strongest attack there is here, without any idea of what an image looks like."""
    return partial(pixel_ascent, iterations=iterations)
