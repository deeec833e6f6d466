"""What a saliency map is worth: the paper's measures M1–M6, and RISE, ROAD and the pointing game (FIDO spec §5).

Every measure takes N images at once; `score` maps N×M×C×H×W images to their N×M log-odds of the explained class.
"""

import math
from collections.abc import Sequence

import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.special import entr

from common.explain import Streams
from common.generators.infill import Infill
from papers.fido.method import Score
from papers.fido.regions import areas, crop_and_upscale, overlap

SMALLEST = 0.05  # share of the image below which the Saliency Metric rewards no further
SPAN = 0.5  # nats between s_0 and s_U below which there is nothing to suppress
QUANTILES = (0.1, 0.2, 0.3, 0.4)


def overflow(mask: Tensor, inside: Tensor) -> Tensor:
    """M1: share of N×H×W masks that lies outside of the N×H×W regions `inside`; NaN for an empty mask."""
    return ((mask * (1 - inside)).flatten(1).sum(1) / mask.flatten(1).sum(1)).float()


def filled(x: Tensor, keep: Tensor, fill: Infill, rng: Streams) -> Tensor:
    """N×M×C×H×W images whose hidden pixels, keep 0 in N×M×H×W, are in-filled; kept ones stay."""
    return torch.where(keep[:, :, None] > 0, x[:, None], fill(x, keep, rng))


def suppression_pixels(s: Tensor, counts: Tensor, quantile: float) -> Tensor:
    """M2: N pixel counts at which the normalised suppression f(k) = (s_0 − s_k)/(s_0 − s_U) first reaches `quantile`,
    by linear interpolation of N×K log-odds at `counts`, from 0 to all pixels. NaN where s_0 is not above s_U by half a
    nat."""
    f = (s[:, :1] - s) / (s[:, :1] - s[:, -1:])
    j = (f >= quantile).int().argmax(1).clamp_min(1)[:, None]
    after, before = f.gather(1, j), f.gather(1, j - 1)
    share = (quantile - before) / (after - before)
    k = counts.expand_as(f)
    found = torch.lerp(k.gather(1, j - 1).float(), k.gather(1, j).float(), share)[:, 0]
    return torch.where((s[:, 0] - s[:, -1]) > SPAN, found, torch.nan)


def localisation_error(boxes: Tensor, objects: Tensor) -> Tensor:
    """M3, weakly supervised localisation: 1 where a box and the object's overlap by half or less, else 0."""
    return (overlap(boxes, objects) <= 0.5).float()


def saliency_metric(x: Tensor, boxes: Tensor, score: Score) -> Tensor:
    """M4: log max(area, .05) − log p(c | the crop of the box, upscaled), area as a share of the image; lower is better.
    The full image gives the classifier's cross-entropy. Dabkowski and Gal (NeurIPS 2017)."""
    share = areas(boxes) / math.prod(x.shape[2:])
    log_p = -torch.nn.functional.softplus(-score(crop_and_upscale(x, boxes)[:, None])[:, 0])
    return share.clamp_min(SMALLEST).log() - log_p


def pointing(rank: Tensor, objects: Tensor) -> Tensor:
    """1 where the most salient pixel of N×H×W `rank` lies on N×H×W `objects`."""
    return objects.flatten(1).gather(1, rank.flatten(1).argmin(1, keepdim=True))[:, 0].gt(0.5).float()


def average_precision(rank: Tensor, objects: Tensor) -> Tensor:
    """G3: mean, over the pixels of N×H×W `objects`, of the share of the object among all pixels that are at least as
    salient; 1 where the object comes first, its area by chance."""
    order = rank.flatten(1).argsort(1)
    hit = (objects.flatten(1).gather(1, order) > 0.5).float()
    precision = hit.cumsum(1) / torch.arange(1, hit.shape[1] + 1)
    return (precision * hit).sum(1) / hit.sum(1)


def entropy(theta: Tensor) -> Tensor:
    """Mean entropy of a pixel's Bernoulli(θ), in bits: N of N×H×W."""
    return ((entr(theta) + entr(1 - theta)) / math.log(2)).flatten(1).mean(1)


def area_under(values: Tensor, counts: Tensor) -> Tensor:
    """Mean height of N curves N×K over the share of pixels, by the trapezoid rule: RISE's deletion and insertion."""
    return torch.trapezoid(values, counts / counts[-1], dim=1)


def spearman_across(maps: Sequence[Tensor]) -> Tensor:
    """Mean rank correlation of every pair of maps of the same N images (N×H×W each): N values, NaN where a map
    is constant."""
    ordered = [torch.from_numpy(rankdata(m.flatten(1).numpy(), axis=1)) for m in maps]
    unit = [(r - r.mean(1, keepdim=True)) / r.std(1, keepdim=True, correction=0) for r in ordered]
    pairs = [(unit[i] * unit[j]).mean(1) for i in range(len(unit)) for j in range(i)]
    return torch.stack(pairs).mean(0).float()
