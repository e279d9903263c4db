"""The candidates of anytime.py: when each says that a share reaches its floor, or does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, log, sqrt
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from rrmsdk.verification import anytime

Array = NDArray[Any]
Evidence = Callable[[int, int, int, int], float]  # (n, hits, of, floor) -> log evidence that K >= floor
CHOSEN = "chosen"


class Rule(Protocol):
    """Follows many random orders at once."""

    def look(self, n: int, hit: Array, hits: Array) -> tuple[Array, Array]:
        """Above, below: what is said after image n; `hit` is its outcome, `hits` the count with it."""
        ...


def bounds(of: int, floor: int, alpha: float) -> dict[str, Bounded]:
    """The candidates that look at n and h alone, for one floor."""
    s = max(0.05, 1.5 / sqrt(of))
    evidences: dict[str, Evidence] = {
        CHOSEN: anytime.evidence,
        "half-normal": _mixture(lambda d: -((d / s) ** 2) / 2),
        "1/d": _mixture(lambda d: -np.log(d)),
        "uniform": _mixture(np.zeros_like),
        "PPR": lambda n, hits, of, floor: _by_interval(n, hits, of, floor, 1 - alpha),
        "point": _mixture(lambda d: np.where(np.abs(d - 0.05) <= 0.5001 / of, 0.0, -1e3)),
    }
    return {name: bounded(one, of, floor, alpha) for name, one in evidences.items()}


def bettors(of: int, floor: int, alpha: float) -> dict[str, Betting]:
    """The candidates that remember, for one set of orders."""
    return {name: Betting(of, floor, alpha, name) for name in ("hedged", "aGRAPA")}


@dataclass(frozen=True)
class Bounded:
    """Above from `hits[n]` hits on, below from `misses[n]` misses on."""

    hits: Array
    misses: Array

    def look(self, n: int, hit: Array, hits: Array) -> tuple[Array, Array]:
        return hits >= self.hits[n], n - hits >= self.misses[n]


def bounded(evidence: Evidence, of: int, floor: int, alpha: float) -> Bounded:
    """The rule that asks `evidence` of both sides, at every n."""
    return Bounded(_boundary(evidence, of, floor, alpha), _boundary(evidence, of, of - floor + 1, alpha))


def _boundary(evidence: Evidence, of: int, floor: int, alpha: float) -> Array:
    """The least hits at each n whose evidence is 1 / alpha. A miss weakens it, so the least hits never fall."""
    found, least = np.empty(of + 1, dtype=np.int64), 0
    for n in range(of + 1):
        while least <= n and evidence(n, least, of, floor) < -log(alpha):
            least += 1
        found[n] = least
    return found


def _mixture(log_bet: Callable[[Array], Array]) -> Evidence:
    """The test of rrmsdk.verification.anytime with other bets on the distance d from the floor."""

    def evidence(n: int, hits: int, of: int, floor: int) -> float:
        most = of - (n - hits)
        if hits >= floor or most < floor:
            return inf if hits >= floor else -inf
        bets = log_bet(np.arange(1, of - floor + 2) / of)
        could = np.arange(floor - 1, most + 1)
        chance = _log_choose(of - n, could - hits) - _log_choose(of, could)
        summed = np.logaddexp.reduce(bets[: most - floor + 1] + chance[1:])
        return float(summed - np.logaddexp.reduce(bets) - chance[0])

    return evidence


def _log_choose(of: int, count: Array) -> Array:
    return gammaln(of + 1) - gammaln(count + 1) - gammaln(of - count + 1)


def _by_interval(n: int, hits: int, of: int, floor: int, confidence: float) -> float:
    """Above once the two-sided interval is. Prior-posterior ratio, uniform prior: arXiv:2006.04347, section 2."""
    low, _ = anytime.interval(n, hits, of, confidence)
    return inf if round(low * of) >= floor else -inf


class Betting:
    """Capital of a bettor against each side of the floor, Waudby-Smith and Ramdas 2024 (arXiv:2010.09686).

    capital = prod 1 + lambda_t (x_t - m_t),  m_t = (K0 - h_{t-1}) / (N - t + 1),  0 <= lambda_t <= 1 / (2 m_t)

    hedged: lambda_t = sqrt(2 log(1 / alpha) / (var_{t-1} t log(1 + t))), the predictable plug-in
    aGRAPA: lambda_t = (mean_t - m_t) / (var_{t-1} + (mean_t - m_t)^2), approximately Kelly's; mean_t of the images left
    """

    def __init__(self, of: int, floor: int, alpha: float, kind: str) -> None:
        self.of, self.alpha, self.kind = of, alpha, kind
        self.nulls = (floor - 1, of - floor)  # the largest counts of hits, of misses, that the two sides bet against
        self.capital: list[Array] = [np.zeros(()), np.zeros(())]
        self.squares: Array = np.array(0.25)

    def look(self, n: int, hit: Array, hits: Array) -> tuple[Array, Array]:
        before = hits - hit
        variance = self.squares / n
        said = []
        for side, (x, seen) in enumerate(((hit, before), (~hit, n - 1 - before))):
            left = self.nulls[side] - seen
            m = np.clip(left / (self.of - n + 1), 1e-9, 1.0)
            bet = np.clip(self._bet(n, seen, m, variance), 0, 0.5 / m)
            self.capital[side] = self.capital[side] + np.log1p(bet * (x - m))
            said.append((self.capital[side] >= -log(self.alpha)) | (seen + x > self.nulls[side]))
        self.squares = self.squares + (hit - (hits + 0.5) / (n + 1)) ** 2
        return said[0], said[1]

    def _bet(self, n: int, seen: Array, m: Array, variance: Array) -> Array:
        if self.kind == "hedged":
            return np.sqrt(-2 * log(self.alpha) / (variance * n * log(1 + n)))
        mean = np.clip((self.of * (seen + 0.5) / n - seen) / (self.of - n + 1), 0, 1)
        return (mean - m) / (variance + (mean - m) ** 2)
