"""FIDO's contract function: the map of an image, and the images in which its most salient pixels are in-filled anew."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from common.errors import VceError
from common.explain import CounterfactualBatch, Streams, finish
from common.generators.infill import Infill, LinearImputation
from papers.fido.method import Mask, Objective, Score, Settings, fido, log_odds
from papers.fido.metrics import filled
from papers.fido.regions import ranks, without_top

BATCH = 128  # images × masks of a pass at 32 px: what fits the cache; of larger images as many pixels
PIXELS = BATCH * 32 * 32


def class_score(classifier: nn.Module, c: Tensor) -> Score:
    """s(c) of N×M×C×H×W images for N classes c."""

    def score(images: Tensor) -> Tensor:
        return log_odds(classifier(images.flatten(0, 1)), c.repeat_interleave(images.shape[1])).view(images.shape[:2])

    return score


def chunks(n: int, masks: int, pixels: int) -> list[slice]:
    """Slices of n images so that images × masks of a pass fit the cache."""
    size = max(1, PIXELS // (masks * pixels))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def saliency(
    images: Tensor,
    source: Tensor,
    *,
    classifier: nn.Module,
    rng: Streams,
    infill: Infill,
    objective: Objective,
    settings: Settings,
    search: Callable[..., Mask] = fido,
    callback: Callable[[dict], None] | None = None,
) -> Mask:
    """θ of N images for their classes `source`, by `fido` or `bbmp`, in chunks that fit the cache; the keep
    probabilities, whatever the objective."""
    found = []
    masks = settings.masks if search is fido else 1
    for rows in chunks(len(images), masks, images[0, 0].numel()):
        score = class_score(classifier, source[rows])
        streams = rng[range(rows.start, rows.stop)]
        found.append(search(images[rows], score, infill, objective, settings, streams, callback=callback))
    theta, bad = (torch.cat([getattr(mask, name) for mask in found]) for name in ("theta", "bad_fills"))
    return Mask(theta, bad, found[0].fills)


def salient(theta: Tensor, objective: Objective) -> Tensor:
    """The map that is shown: where the class is kept alive (SSR, θ), or where dropping kills it (SDR, 1 − θ)."""
    return theta if objective == "ssr" else 1 - theta


def deletion_path(images: Tensor, saliency_map: Tensor, shares: Sequence[float], fill: Infill, rng: Streams) -> Tensor:
    """N×S×C×H×W images whose most salient `shares` of pixels are in-filled, each share afresh."""
    counts = (torch.tensor(shares) * saliency_map[0].numel()).round().long()
    keep = without_top(ranks(saliency_map, rng), counts)
    parts = chunks(len(images), len(shares), images[0, 0].numel())
    return torch.cat(
        [filled(images[rows], keep[rows], fill, rng[range(rows.start, rows.stop)]) for rows in parts]
    ).clamp(0, 1)


def explain(
    images: Tensor,
    source: Tensor,
    target: Tensor,
    *,
    classifier: nn.Module,
    rng: Streams,
    strengths: Sequence[float] = (0.05, 0.1, 0.2, 0.4),
    callback: Callable[[dict], None] | None = None,
    infill: Infill | None = None,
    objective: Objective = "sdr",
    settings: Settings | None = None,
    search: Callable[..., Mask] = fido,
) -> CounterfactualBatch:
    """FIDO (§2): find the map of class `source`, then in-fill its top shares of pixels, `strengths`.

    `infill` is by default ROAD's linear imputation, which needs no training; `objective` is ssr or sdr; `settings` by
    default the paper's, on a grid of a quarter of the image's side, with a λ that charges as much for the whole image.
    The search knows no target: `target` says whose probability is recorded (status `ok`: that class is reached). A
    sample whose in-fills were never finite diverged. Raises VceError for a share outside (0, 1] or an image smaller
    than the grid.
    """
    for share in strengths:
        if not 0 < share <= 1:
            raise VceError(f"strengths: {share:g} is no share of pixels above 0 and up to 1")
    infill = infill or LinearImputation(torch.full(images.shape[1:2], 0.5))
    settings = settings or scaled(images)
    mask = saliency(
        images, source, classifier=classifier, rng=rng, infill=infill, objective=objective, settings=settings,
        search=search, callback=callback,
    )  # fmt: skip
    shown = salient(mask.theta, objective)
    path = deletion_path(images, shown, strengths, infill, rng)
    broken = ~path.isfinite().flatten(2).all(2) | (mask.bad_fills == mask.fills)[:, None]
    path = torch.where(broken[..., None, None, None], images[:, None], path)
    passes = torch.full(broken.shape, mask.fills)
    batch = finish(
        images, path, target, classifier=classifier, strengths=strengths, diverged=broken, steps=passes,
        passes=(passes, passes),
    )  # fmt: skip
    return CounterfactualBatch(**{**vars(batch), "saliency": shown})


def scaled(images: Tensor) -> Settings:
    """The paper's settings for images of another size: a grid of a quarter of the side, and the same charge for keeping
    everything, λ·U = 50 nats."""
    height, width = images.shape[2:]
    return Settings(grid=max(1, min(height, width) // 4), lam=1e-3 * 224 * 224 / (height * width))
