"""FIDO: the smallest region whose deletion destroys the class that is seen (SDR); strengths are the shares of pixels
that are in-filled. It knows no target, and takes part where none is asked for.
"""

from collections.abc import Callable, Sequence
from functools import partial

from common.explain import Explainer
from common.generators.infill import Local
from common.generators.inpainting import Learned, Recipe, load_infill, save_infill, train_infill
from comparison.bench import Bench
from papers.fido.explain import explain
from papers.fido.method import Settings

WINDOW = 5  # of the local mean, pixels
SHARED = True  # an in-painting net knows the images of a world and no classifier


def prepare(benches: list[Bench], progress: Callable[[], None], **recipe) -> None:
    """The in-painting net of a world, one for all classifiers."""
    bench = benches[0]
    network = train_infill(bench.training.images, Recipe(**recipe), bench.seed)
    save_infill(network, bench.file("infill"), {"recipe": recipe, "seed": bench.seed})
    for _ in range(1 + len(benches)):
        progress()


def explainer(bench: Bench, painted: Sequence[str], **search: float) -> Explainer:
    """In-filled by the in-painting net in the worlds of `painted`, else with the local mean of what is kept."""
    if bench.world in painted:
        fill = Learned(load_infill(bench.file("infill"), tuple(bench.training.images.shape[1:])))
    else:
        fill = Local(WINDOW, bench.training.images.mean((0, 2, 3)))
    return partial(explain, infill=fill, objective="sdr", settings=Settings(**search))
