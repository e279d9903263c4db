"""Where a share, and the difference of two shares of the same images, surely lie. One-sided bounds, without scipy.

Each bound is wrong with a probability of at most 1 - confidence. For a share that is so by construction. For a paired
difference it was computed for 100 to 10,000 images, by summing over all outcomes (the gate's side of it in
benchmarks/retrain.py): without the two corrections below, the score test is too sure of itself where few images differ,
and most of them one way (0.034 for 0.025). For few images, nearly all of which differ, it still is a little.
"""

from __future__ import annotations

from functools import lru_cache
from math import log, log1p, sqrt
from statistics import NormalDist

import numpy as np

HALF = 0.5  # image; the continuity correction
_HALVINGS = 40  # of an interval of length 1: to 1e-12


def difference(gained: int, lost: int, of: int, confidence: float) -> tuple[float, float]:
    """Bounds of p(new right) - p(old right), by inverting the score test for paired shares, corrected twice.

    z(d) = (gained - lost - of d - 1/2 - k) / sqrt(of v),   v = 2 q + d (1 - d)
                                                            Tango 1998, Statistics in Medicine 17, eq. 6

    where q is the most likely p(new wrong, old right) among those with the difference d, the larger root of
    2 of q^2 + ((2 of - gained + lost) d - gained - lost) q - lost d (1 - d) = 0. At d = 0 it is McNemar's test.
    Differs from the paper: 1/2 is for whole images, and k = (z^2 - 1) mu / (6 v), with mu = d ((1 - d) (1 - 2 d) - 6 q)
    the third moment of an image, is for the skewness where d > 0 (Cornish and Fisher 1938, Revue de l'Institut
    International de Statistique 5, first term), only if it makes the bound wider.

    Args:
        gained: images that only the new one gets right.
        lost: images that only the old one gets right.
    """
    return _least_difference(gained, lost, of, confidence), -_least_difference(lost, gained, of, confidence)


def _least_difference(gained: int, lost: int, of: int, confidence: float) -> float:
    """The largest d that is rejected as an upper limit of the difference."""
    low, high, enough = -1.0, (gained - lost) / of, NormalDist().inv_cdf(confidence)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(middle, gained, lost, of, enough) >= enough else (low, middle)
    return low


def _score(d: float, gained: int, lost: int, of: int, z: float) -> float:
    b, c = (2 * of - gained + lost) * d - gained - lost, -lost * d * (1 - d)
    q = (sqrt(max(0.0, b * b - 8 * of * c)) - b) / (4 * of)
    v, mu = 2 * q + d * (1 - d), max(0.0, d) * max(0.0, (1 - d) * (1 - 2 * d) - 6 * q)
    missing = gained - lost - of * d - HALF
    if of * v <= 1e-12:
        return missing * 1e12
    return (missing - max(0.0, z * z - 1) * mu / (6 * v)) / sqrt(of * v)


def share(hits: int, of: int, confidence: float) -> tuple[float, float]:
    """Bounds of a share, exact for independent images (Clopper and Pearson 1934)."""
    return least_share(hits, of, confidence), 1 - least_share(of - hits, of, confidence)


def least_share(hits: int, of: int, confidence: float) -> float:
    """The lower bound alone: the share at which so many hits or more have the probability 1 - confidence."""
    if hits == 0:
        return 0.0
    low, high = 0.0, hits / of
    # The share that is looked for lies below hits / of: what is a dozen standard deviations above has no weight.
    count = np.arange(hits, min(of, hits + 50 + int(6 * sqrt(of))) + 1)
    ways = _log_factorials(of)[of] - _log_factorials(of)[count] - _log_factorials(of)[of - count]
    for _ in range(_HALVINGS):
        p = (low + high) / 2
        rest = (of - count) * log1p(-p) if p < 1 else np.where(count < of, -np.inf, 0.0)
        tail = float(np.exp(ways + count * log(p) + rest).sum())
        low, high = (p, high) if tail <= 1 - confidence else (low, p)
    return low


@lru_cache(maxsize=8)
def _log_factorials(most: int) -> np.ndarray:
    """log i! for i <= most."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1.0, most + 1)))])
