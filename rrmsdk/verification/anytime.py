"""Is robust accuracy at least a floor? Asked after every image of a random order, and right however often one asks.

Of N images an unknown number K is robust (a hit). They are judged in a random order, without replacement; n are judged,
h of them are hits. Given K, this very sequence of outcomes has the probability

    L_n(K) = C(N - n, K - h) / C(N, K)

**Only for a completed prefix of the order.** n and h count the first n images of the order, every one of them finished.
A broken image finishes earlier than a robust one, so images counted in the order in which they finish hold too few
hits, and everything below is then wrong. The order is drawn from a seed before the first attack, never from the images.

**The verdict** is two tests, of K < k and of K >= k, where k is the least count that reaches the floor. Against
K < k it bets on every count at or above the floor:

    M_n = sum_{K >= k} w(K) L_n(K) / L_n(k - 1),   w(K) ~ d exp(-(d / s)^2 / 2),   d = (K - k + 1) / N,   sum w = 1

and says `above` once M_n >= 1 / alpha, alpha = 1 - confidence. Against K >= k it does the same with misses for hits.
Each L_n(K) / L_n(k - 1) is a martingale under K = k - 1 (and only falls once all k - 1 hits are drawn), so M_n is one
(the method of mixtures: Robbins 1970, "Statistical methods related to the law of the iterated logarithm"; without
replacement: Waudby-Smith and Ramdas 2020, arXiv:2006.04347, section 2), and Ville's inequality bounds the probability
that it ever reaches 1 / alpha by alpha.
Under a smaller K that is rarer still: L_n(K) / L_n(k - 1) rises with h, hence M_n does, and taking hits from the images
lowers h at every n. Only one of K < k and K >= k is true, so only one of the two tests can be wrong: alpha each makes
the verdict wrong with probability alpha at most. They never speak at once: L_n has one mode, and each asks for it on
its own side.

Differs from the papers in w: theirs spreads over all K (`interval` below), where half of the bet is on the side that
the test is about, and most of the rest is on distances that a handful of images would show. `benchmarks/anytime.py`
compares both, and betting (Waudby-Smith and Ramdas 2024, arXiv:2010.09686); numbers are in benchmarks/results.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, inf, log1p, sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, gammaln

from rrmsdk.errors import FieldError
from rrmsdk.schema.verdict import Verdict

Floats = NDArray[np.float64]


def interval(n: int, hits: int, of: int, confidence: float) -> tuple[float, float]:
    """Where the share of hits among all `of` images lies, at every n at once with probability `confidence`.

    {K : L_n(K) > alpha B(h + 1, n - h + 1)}       Waudby-Smith and Ramdas 2020 (arXiv:2006.04347), section 2

    which is prior / posterior < 1 / alpha with the uniform prior on 0 .. N, a beta-binomial (1, 1). It is for the first
    n images of the random order, all of them finished (see the module), and a point at n = N. It is not intersected
    with those of smaller n: it depends on nothing but its arguments. A caller may intersect, at no cost in confidence.

    Raises:
        FieldError: counts that cannot be, or a confidence outside (0, 1).
    """
    _counts(n, hits, of, confidence)
    could = np.arange(hits, of - (n - hits) + 1)
    least = log1p(-confidence) + betaln(hits + 1, n - hits + 1) - 1e-9  # rounding never leaves out a K on the boundary
    inside = could[_log_chance(could, n, hits, of) > least]
    return int(inside[0]) / of, int(inside[-1]) / of


def verdict(n: int, hits: int, of: int, at_least: float, confidence: float) -> Literal["above", "below"] | None:
    """Whether the share of hits among all `of` images is at least the floor; None while that is open.

    `above` or `below` is wrong with probability at most 1 - confidence, however often this is asked; once it is certain
    (at n = of at the latest) it is right. For the first n images of the random order, all of them finished (see the
    module): stop at the first answer.

    Args:
        at_least: the floor; met where hits / of >= at_least in floating point, as a report would be compared.

    Raises:
        FieldError: counts that cannot be, at_least outside [0, 1] or a confidence outside (0, 1).
    """
    _counts(n, hits, of, confidence)
    floor = least_count(at_least, of)
    enough = -log1p(-confidence)
    if evidence(n, hits, of, floor) >= enough:
        return "above"
    if evidence(n, n - hits, of, of - floor + 1) >= enough:
        return "below"
    return None


def summary(
    n: int, hits: int, of: int, at_least: float, confidence: float, decided: Literal["above", "below"] | None,
    beside: int | None = None,
) -> Verdict:  # fmt: skip
    """What was decided and the interval as a record, with a sentence for a person.

    Args:
        decided: by `verdict`, or by that of `paired`.
        beside: how many of the same n images another model has right, where it was compared with.

    Raises:
        FieldError: counts that cannot be, or a confidence outside (0, 1).
    """
    low, high = interval(n, hits, of, confidence)
    sure = f"{100 * confidence:.10g} % confidence"
    side = {"above": "At least", "below": "Fewer than"}.get(decided or "")
    if n == of:
        words = "at least" if decided == "above" else "fewer than"
        says = f"{hits} of all {of} images withstand the attack ({hits / of:.4f}): {words} {at_least:g}."
    elif side:
        says = (
            f"{side} {at_least:g} of the {of} images withstand the attack ({sure}): "
            f"{hits} of the first {n} in a random order do"
            + (f", of the other model {beside}." if beside is not None else ".")
        )
    else:
        says = (
            f"Not decided whether {at_least:g} of the {of} images withstand the attack: {hits} of the first {n} do, "
            f"{low:.4f} to {high:.4f} of all ({sure})."
        )
    return Verdict(
        at_least=at_least, confidence=confidence, decided=decided or "none", judged=n, hits=hits, of=of,
        interval=(low, high), beside=beside, says=says,
    )  # fmt: skip


def least_count(at_least: float, of: int) -> int:
    """The least K with K / of >= at_least in floating point: 7 for 0.07 of 100, though 0.07 * 100 is more.

    Raises:
        FieldError: at_least outside [0, 1].
    """
    if not 0 <= at_least <= 1:
        raise FieldError(f"at_least = {at_least} is outside [0, 1]: give a share of the images, such as 0.45")
    near = ceil(at_least * of)
    return next(count for count in (near - 1, near, near + 1) if count / of >= at_least)


def evidence(n: int, hits: int, of: int, floor: int) -> float:
    """log M_n of the module: against K < floor, in favour of K >= floor.

    inf where K < floor has become impossible, -inf where K >= floor has.
    """
    if hits >= floor:
        return inf
    most = of - (n - hits)
    if most < floor:
        return -inf
    could = np.arange(floor, most + 1)
    bets = _log_bets(of, floor)[: len(could)] + _log_chance(could, n, hits, of)
    return float(np.logaddexp.reduce(bets) - _log_chance(np.array([floor - 1]), n, hits, of)[0])


def _log_chance(count: NDArray[Any], n: int, hits: int, of: int) -> Floats:
    """log L_n(K) for each K of `count`, where K hits are still possible."""
    return _log_choose(of - n, count - hits) - _log_choose(of, count)


def _log_choose(of: int, count: NDArray[Any]) -> Floats:
    table = _log_factorials(1 << of.bit_length())  # a power of two, so that a few tables serve every n
    return table[of] - table[count] - table[of - count]


@lru_cache(maxsize=8)  # the two sides of a floor or two; 80 KB each for 10,000 images
def _log_bets(of: int, floor: int) -> Floats:
    """log w(K) for K = floor .. of.

    s = 0.05, for a model five points off the floor is the one for which there is most to save; below 1000 images such a
    distance is not seen before the end, and s = 1.5 / sqrt(of) is what is. Measured: benchmarks/results.
    """
    s = max(0.05, 1.5 / sqrt(of))
    d = np.arange(1, of - floor + 2) / of
    bets = np.log(d) - (d / s) ** 2 / 2
    return bets - np.logaddexp.reduce(bets)


@lru_cache(maxsize=32)
def _log_factorials(length: int) -> Floats:
    """log i! for i < length."""
    return gammaln(np.arange(1.0, length + 1.0))


def _counts(n: int, hits: int, of: int, confidence: float) -> None:
    if of < 1:
        raise FieldError(f"of = {of}: there is at least one image to judge")
    if not 0 <= hits <= n <= of:
        raise FieldError(f"hits = {hits}, n = {n}, of = {of}: each is at least 0 and at most the next")
    if not 0 < confidence < 1:
        raise FieldError(f"confidence = {confidence} is outside (0, 1): type 0.99 for 99 %")
