"""How many images does a verdict need? Anytime tests of a floor under robust accuracy, on simulated random orders.

Every candidate sees the same orders and is asked after every image. No model is attacked here.

    OMP_NUM_THREADS=1 python benchmarks/anytime.py --out benchmarks/results
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np
import torch
from anytime_rules import CHOSEN, Bounded, Rule, bettors, bounds
from anytime_table import report
from scipy.special import gammaln, xlogy
from scipy.stats import beta

from rrmsdk import files
from rrmsdk.verification import anytime
from rrmsdk.verification.provenance import command_line, result_file

CONFIDENCE = 0.99
FLOORS = {0.45: (0.25, 0.40, 0.44, "floor - 1/N", 0.45, 0.46, 0.50, 0.65), 0.80: (0.75, "floor - 1/N", 0.80, 0.85)}


@dataclass(frozen=True)
class Measured:
    """One candidate on one truth. Shares are of all N images.

    exact_wrong: by recursion over (n, h), for the chosen rule.
    """

    of: int
    at_least: float
    robust: int
    rule: str
    runs: int
    wrong: int
    wrong_interval: tuple[float, float]
    exact_wrong: float | None
    median: float
    mean: float
    ninth_decile: float
    wald: float
    plug_in: float


def main() -> None:
    args = _arguments()
    rng, began, rows = np.random.default_rng(args.seed), time.perf_counter(), []
    for of in args.images:
        for at_least, truths in FLOORS.items():
            rows += _floor(of, at_least, truths, args.runs, rng)
    path = result_file(args.out, "anytime", torch.device("cpu"))
    text = report(rows, CONFIDENCE, _widths(args.images), _seconds(args.images), args.seed, command_line())
    files.write_text(path, text)
    print(text)
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[360, 1000, 10_000], help="images to judge, N")
    parser.add_argument("--runs", type=int, default=10_000, help="random orders of each truth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for the result file")
    return parser.parse_args()


def _floor(
    of: int, at_least: float, truths: tuple[float | str, ...], runs: int, rng: np.random.Generator
) -> list[Measured]:
    floor, found, alpha = anytime.least_count(at_least, of), [], 1 - CONFIDENCE
    bounded = bounds(of, floor, alpha)
    for robust in dict.fromkeys(floor - 1 if isinstance(truth, str) else round(truth * of) for truth in truths):
        stops = simulate(bounded | bettors(of, floor, alpha), of, robust, runs, rng)
        for name, (judged, above) in stops.items():
            wrong, share = int((above != (robust >= floor)).sum()), judged / of
            exact = exact_wrong(bounded[CHOSEN], of, robust, floor) if name == CHOSEN else None
            found.append(
                Measured(
                    of, at_least, robust, name, runs, wrong, clopper_pearson(wrong, runs), exact,
                    float(np.median(share)), float(share.mean()), float(np.quantile(share, 0.9)),
                    *_least(of, robust, floor, alpha),
                )
            )  # fmt: skip
        print(f"N = {of}, floor {at_least}, truth {robust}/{of}", file=sys.stderr, flush=True)
    return found


def simulate(
    candidates: Mapping[str, Rule], of: int, robust: int, runs: int, rng: np.random.Generator
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each candidate and random order: the images judged at its first answer, and whether that was `above`."""
    hits = np.zeros(runs, dtype=np.int64)
    judged = {name: np.zeros(runs, dtype=np.int64) for name in candidates}
    said = {name: np.zeros(runs, dtype=bool) for name in candidates}
    for n in range(1, of + 1):
        hit = rng.random(runs) * (of - n + 1) < robust - hits
        hits += hit
        still = [name for name in candidates if not judged[name].all()]
        if not still:
            break
        for name in still:
            above, below = candidates[name].look(n, hit, hits)
            now = (above | below) & (judged[name] == 0)
            judged[name][now], said[name][now] = n, above[now]
    return {name: (judged[name], said[name]) for name in candidates}


def exact_wrong(rule: Bounded, of: int, robust: int, floor: int) -> float:
    """The probability that the first answer is wrong: hypergeometric steps over (n, h), stopped at the two bounds."""
    first, chance, wrong = 0, np.ones(1), 0.0
    for n in range(1, of + 1):
        hit = np.clip((robust - np.arange(first, first + len(chance))) / (of - n + 1), 0, 1)
        chance = np.append(chance * (1 - hit), 0.0) + np.append(0.0, chance * hit)
        hits = np.arange(first, first + len(chance))
        above, below = hits >= rule.hits[n], n - hits >= rule.misses[n]
        wrong += float(chance[below if robust >= floor else above].sum())
        open_ = np.nonzero(~(above | below))[0]
        if len(open_) == 0:
            break
        first, chance = first + open_[0], chance[open_[0] : open_[-1] + 1]
    return wrong


def clopper_pearson(hits: int, of: int) -> tuple[float, float]:
    """The exact 95 % interval of a share (Clopper and Pearson 1934)."""
    low = float(beta.ppf(0.025, hits, of - hits + 1)) if hits else 0.0
    return low, float(beta.ppf(0.975, hits + 1, of - hits)) if hits < of else 1.0


def _least(of: int, robust: int, floor: int, alpha: float) -> tuple[float, float]:
    """Two shares of N for orientation, against the nearest false count K0; 1 where all images would not do.

    log(1 / alpha) / KL(truth | K0 / N), which the mean of no such test with replacement is below (Wald 1945), and the
    first n at which the log likelihood ratio of truth and K0, without replacement and at h = n K / N, is
    log(1 / alpha).
    """
    against = floor - 1 if robust >= floor else floor
    p, q = robust / of, against / of
    divergence = xlogy(p, p / q) + xlogy(1 - p, (1 - p) / (1 - q))
    n = np.arange(0, of + 1)
    ratio = _log_likelihood(n, n * p, of, robust) - _log_likelihood(n, n * p, of, against)
    reached = np.nonzero(~(ratio < -log(alpha)))[0]
    return min(1.0, -log(alpha) / divergence / of), float(reached[0] / of if len(reached) else 1.0)


def _log_likelihood(n: np.ndarray, hits: np.ndarray, of: int, count: int) -> np.ndarray:
    """log L_n(K) of rrmsdk.verification.anytime, hits between whole numbers too; -inf where K is impossible."""
    missing, spare = count - hits, of - n - count + hits
    could = (missing >= 0) & (spare >= -1e-9)
    ways = gammaln(of - n + 1) - gammaln(np.maximum(missing, 0) + 1) - gammaln(np.maximum(spare, 0) + 1)
    return np.where(could, ways, -np.inf) - (gammaln(of + 1) - gammaln(count + 1) - gammaln(of - count + 1))


def _widths(sizes: list[int]) -> list[tuple[int, int, float, float]]:
    """(N, n, low, high) of the interval where half of the judged images are robust."""
    return [
        (of, n, *anytime.interval(n, n // 2, of, CONFIDENCE))
        for of in sizes
        for n in sorted({min(of, n) for n in (100, 300, 1000, 3000, 9000)})
    ]


def _seconds(sizes: list[int]) -> list[tuple[int, float]]:
    """(N, seconds of one call of `verdict`), a mean over all n, hits at the floor."""
    found = []
    for of in sizes:
        asked = [(n, n * 9 // 20) for n in range(0, of, max(1, of // 500))]
        anytime.verdict(*asked[-1], of, 0.45, CONFIDENCE)
        began = time.perf_counter()
        for n, hits in asked:
            anytime.verdict(n, hits, of, 0.45, CONFIDENCE)
        found.append((of, (time.perf_counter() - began) / len(asked)))
    return found


if __name__ == "__main__":
    main()
