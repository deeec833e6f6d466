"""FIDO's contract function: the map of an image, and the images in which its most salient pixels are in-filled anew."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
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


@torch.no_grad()
def runner_up(classifier: nn.Module, images: Tensor, c: Tensor) -> Tensor:
    """The likeliest class of N images but their own N classes c: what an untargeted path is recorded towards."""
    return classifier(images).scatter(1, c[:, None], -torch.inf).argmax(1)


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
    return Mask(theta, bad, found[0].fills, found[0].steps)


def salient(theta: Tensor, objective: Objective) -> Tensor:
    """The map that is shown: where the class is kept alive (SSR, θ), or where dropping kills it (SDR, 1 − θ)."""
    return theta if objective == "ssr" else 1 - theta


def in_filled(
    images: Tensor,
    shown: Tensor,
    source: Tensor,
    target: Tensor,
    *,
    classifier: nn.Module,
    rng: Streams,
    strengths: Sequence[float],
    infill: Infill,
    cost: tuple[int, int, int] = (0, 0, 0),
    lost: Tensor | None = None,
) -> CounterfactualBatch:
    """The images whose top shares of pixels by the maps `shown`, N×H×W, are in-filled, each share afresh.

    The status is `ok` where `source` is no longer predicted, `skipped` where it never was, `diverged` where an in-fill
    is no number or the map's search was `lost` (N): such a sample keeps its original. `target` says whose confidence is
    recorded, `cost` how many steps, forward and backward passes a map took.
    """
    counts = (torch.tensor(strengths) * shown[0].numel()).round().long()
    keep, parts = without_top(ranks(shown, rng), counts), chunks(len(images), len(strengths), shown[0].numel())
    path = torch.cat(
        [filled(images[rows], keep[rows], infill, rng[range(rows.start, rows.stop)]) for rows in parts]
    ).clamp(0, 1)
    broken = ~path.isfinite().flatten(2).all(2)
    if lost is not None:
        broken |= lost[:, None]
    path = torch.where(broken[..., None, None, None], images[:, None], path)
    steps, forward, backward = (torch.full(broken.shape, number) for number in cost)
    batch = finish(
        images, path, target, classifier=classifier, strengths=strengths, diverged=broken, steps=steps,
        passes=(forward, backward),
    )  # fmt: skip
    with torch.no_grad():
        seen = [classifier(x).argmax(1) for x in torch.cat([images[:, None], path], 1).flatten(0, 1).split(BATCH)]
    left = (torch.cat(seen).view(len(images), -1) != source[:, None]).numpy()
    status = np.where(left[:, 1:], "ok", "not_flipped")
    status = np.where(broken.numpy(), "diverged", np.where(left[:, :1], "skipped", status))
    return replace(batch, saliency=shown, status=status)


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
    default those of `short_schedule`. The search knows no target: `target` says whose confidence is recorded, and the
    status is `ok` where `source` is no longer predicted. A sample whose in-fills were never finite diverged. Raises
    VceError for a share that is not in (0, 1] or an image smaller than the grid.
    """
    for share in strengths:
        if not 0 < share <= 1:
            raise VceError(f"strengths: {share:g} is no share of pixels above 0 and up to 1")
    infill = infill or LinearImputation(torch.full(images.shape[1:2], 0.5))
    settings = settings or short_schedule(images)
    mask = saliency(
        images, source, classifier=classifier, rng=rng, infill=infill, objective=objective, settings=settings,
        search=search, callback=callback,
    )  # fmt: skip
    shown = salient(mask.theta, objective)
    return in_filled(
        images, shown, source, target, classifier=classifier, rng=rng, strengths=strengths, infill=infill,
        cost=(mask.steps, mask.fills, mask.fills), lost=mask.bad_fills == mask.fills,
    )  # fmt: skip


def short_schedule(images: Tensor) -> Settings:
    """Settings for images of any size: a grid of a quarter of the side; the paper's λ at 224 px, falling with the side
    (.007 at 32 px, where .005 was tuned); a tenth of its passes, 60 steps of 4 masks, at a rate that takes θ as far."""
    side = min(images.shape[2:])
    return Settings(grid=max(1, side // 4), lam=1e-3 * 224 / side, steps=60, masks=4, learning_rate=0.25, warm_up=6)
