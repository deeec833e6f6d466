"""FIDO: the smallest region whose deletion destroys the class that is seen (SDR); strengths are the shares of pixels
that are in-filled. It knows no target, and takes part where none is asked for.
"""

from functools import partial

from common.explain import Explainer
from common.generators.infill import Local
from comparison.bench import Bench
from papers.fido.explain import explain
from papers.fido.method import Settings

WINDOW = 5  # of the local mean, pixels


def explainer(bench: Bench, **search: float) -> Explainer:
    """In-filled with the local mean of what is kept: the conditional in-filler that needs no training."""
    fill = Local(WINDOW, bench.training.images.mean((0, 2, 3)))
    return partial(explain, infill=fill, objective="sdr", settings=Settings(**search))
