"""Sparse VCE: Auto-Frank-Wolfe in an l1.5 ball around the image; strengths are its radii."""

from functools import partial

from common.explain import Explainer
from comparison.bench import Bench
from papers.svce.explain import explain


def explainer(bench: Bench, p: float, iterations: int) -> Explainer:
    """The second release, `afw-b`, as in the paper's main figures."""
    return partial(explain, optimiser="afw-b", p=p, iterations=iterations)
