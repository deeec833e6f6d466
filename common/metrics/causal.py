"""Necessity and sufficiency of a binary attribute X for a binary decision O (contrastive spec §2.6, §2.7).

    NEC   = P( o'_{X←x'} | X = x,  O = o  )     of those who have x and got o, how many would lose o without x
    SUF   = P( o_{X←x}   | X = x', O = o' )     of those who lack x and were denied, how many would gain o with x
    NESUF = P( o_{X←x}, o'_{X←x'} )

Units stand in tables of counts. For counterfactuals (E1) that is n[x, o, e], …×2×2×2: attribute, decision, and e, the
decision after X was set to its opposite; by consistency the other arm is the fact itself. Observation (E2) has
n[c, x, o], …×C×2×2, with the stratum c of a back-door set. Leading dimensions are resamples: drawing N units anew from
a table of N is a multinomial draw, so a bootstrap draws whole tables.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FEWEST = 30  # units below which a conditional probability is not estimated
REPLICATES = 2000
Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Score:
    """A score with its 95 % interval and the `n` units that it is conditional on; NaN, with a `reason`, where they are
    too few."""

    value: float
    low: float
    high: float
    n: int
    reason: str = ""


def tabulate(*columns: np.ndarray, where: np.ndarray | None = None, strata: int = 2) -> np.ndarray:
    """Counts of N units by their binary columns, strata×2×…: the first column counts from 0 to strata − 1.

    `where` (N booleans) picks a context, or the units whose edit an annotator confirms: per protocol, not by intention
    to treat.
    """
    values = [np.asarray(column, dtype=np.int64)[slice(None) if where is None else where] for column in columns]
    shape = (strata, *[2] * (len(columns) - 1))
    return np.bincount(np.ravel_multi_index(values, shape), minlength=int(np.prod(shape))).reshape(shape)


def necessity(n: np.ndarray) -> np.ndarray:
    """NEC by counterfactuals (E1), of tables n[x, o, e]."""
    return _ratio(n[..., 1, 1, 0], n[..., 1, 1, :].sum(-1))


def sufficiency(n: np.ndarray) -> np.ndarray:
    """SUF by counterfactuals (E1), of tables n[x, o, e]."""
    return _ratio(n[..., 0, 0, 1], n[..., 0, 0, :].sum(-1))


def necessity_and_sufficiency(n: np.ndarray) -> np.ndarray:
    """NESUF by counterfactuals (E1), of tables n[x, o, e]: the share of units that O follows in both arms."""
    return _ratio(n[..., 1, 1, 0] + n[..., 0, 0, 1], n.sum((-3, -2, -1)))


def association(n: np.ndarray) -> np.ndarray:
    """P(o | x) − P(o | x') (E4), of tables n[x, o, e]: what is seen where nobody intervenes."""
    seen = n.sum(-1)
    return _ratio(seen[..., 1, 1], seen[..., 1, :].sum(-1)) - _ratio(seen[..., 0, 1], seen[..., 0, :].sum(-1))


# by name: the statistic, and how many units of one table it is conditional on, of two groups the smaller
SCORES: dict[str, tuple[Statistic, Callable[[np.ndarray], int]]] = {
    "nec": (necessity, lambda n: n[1, 1].sum()),
    "suf": (sufficiency, lambda n: n[0, 0].sum()),
    "nesuf": (necessity_and_sufficiency, lambda n: n.sum()),
    "association": (association, lambda n: n.sum((1, 2)).min()),
}


def estimate(name: str, n: np.ndarray, *, key: int = 0, replicates: int = REPLICATES) -> Score:
    """A score of `SCORES` on one table n[x, o, e], with a percentile interval over resampled units."""
    statistic, conditional_on = SCORES[name]
    asked = int(conditional_on(n))
    if asked < FEWEST:
        return Score(np.nan, np.nan, np.nan, asked, f"{asked} units, of {FEWEST} that it takes")
    low, high = np.nanquantile(statistic(_resampled(tuple(n.ravel()), key, replicates)), [0.025, 0.975])
    return Score(float(statistic(n)), float(low), float(high), asked)


@functools.lru_cache(maxsize=1)
def _resampled(counts: tuple[int, ...], key: int, replicates: int) -> np.ndarray:
    """replicates×2×2×2 tables of as many units, drawn anew: the same for every score of a table."""
    n = np.array(counts)
    tables = np.random.Generator(np.random.Philox(key=key)).multinomial(n.sum(), n / n.sum(), replicates)
    return tables.reshape(replicates, 2, 2, 2)


def bounds(n: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Tian and Pearl's sharp bounds of NEC, SUF and NESUF (E3), of tables n[x, o, e]: from P(x, o) and the two arms
    alone, whether or not O is monotone in X. NaN where nobody is conditioned on."""
    p = n / n.sum((-3, -2, -1), keepdims=True)
    seen = p.sum(-1)
    with_x = seen[..., 1, 1] + p[..., 0, :, 1].sum(-1)  # P(o_{X←x})
    without = seen[..., 0, 1] + p[..., 1, :, 1].sum(-1)  # P(o_{X←x'})
    o, lacks, has = seen[..., 1].sum(-1), seen[..., 0, 0], seen[..., 1, 1]
    effect = with_x - without
    low = np.max([np.zeros_like(o), effect, o - without, with_x - o], axis=0)
    high = np.min([with_x, 1 - without, has + lacks, effect + seen[..., 1, 0] + seen[..., 0, 1]], axis=0)
    return {
        "nec": (_ratio(o - without, has).clip(0), _ratio(1 - without - lacks, has).clip(None, 1)),
        "suf": (_ratio(with_x - o, lacks).clip(0), _ratio(with_x - has, lacks).clip(None, 1)),
        "nesuf": (low, high),
    }


def observational(n: np.ndarray) -> dict[str, np.ndarray]:
    """LEWIS's point estimates of NEC, SUF and NESUF (E2), of tables n[c, x, o]. They hold where O is monotone in X and
    c blocks every back door; they are not clipped, since a negative one tells that O is not. NaN where a stratum that
    counts has one value of X alone."""
    o = _ratio(n[..., 1], n.sum(-1))  # P(o | c, x), …×C×2
    stratum = _ratio(n.sum(-1), n.sum((-3, -1))[..., None, :])  # P(c | x), …×C×2
    x_o = _ratio(n[..., 1].sum(-2), n.sum((-3, -1)))  # P(o | x), …×2
    share = _ratio(n.sum((-2, -1)), n.sum((-3, -2, -1))[..., None])  # P(c), …×C

    def weighted(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.where(weights > 0, values * weights, 0.0).sum(-1)

    lost = weighted(1 - o[..., 0], stratum[..., 1]) - (1 - x_o[..., 1])
    gained = weighted(o[..., 1], stratum[..., 0]) - x_o[..., 0]
    return {
        "nec": _ratio(lost, x_o[..., 1]),
        "suf": _ratio(gained, 1 - x_o[..., 0]),
        "nesuf": weighted(o[..., 1] - o[..., 0], share),
    }


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a/b, NaN where b is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(b) != 0, np.divide(a, b), np.nan)
