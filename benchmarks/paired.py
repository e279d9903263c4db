"""How many images does it take to see that a challenger is worse than the champion? On simulated random orders.

The challenger gains some images and loses others; both are judged in a random order, and asked after every image
whether the challenger surely is below the champion less a margin: by the two image by image (`paired`), and by the
challenger's count alone (`anytime`). No model is attacked here.

    OMP_NUM_THREADS=1 python -m benchmarks.paired --out benchmarks/results
"""

from __future__ import annotations

import argparse
import sys
from math import log, log1p
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import beta

from rrmsdk import files
from rrmsdk.verification import anytime, paired
from rrmsdk.verification.provenance import command_line, hardware, result_file, versions

CONFIDENCE, MARGIN, ROBUST = 0.95, 0.003, 0.5  # the job's defaults; and the champion's robust accuracy
# Share of images on which the two differ, and by how much the challenger is worse.
TRUTHS = ((0.04, 0.02), (0.08, 0.05), (0.16, 0.10), (0.40, 0.30), (0.08, 0.01), (0.08, MARGIN), (0.08, 0.0))
COLUMNS = (
    "| N | differ on | worse by, points | ended early | 95 % interval | wrongly | median judged, paired | mean | "
    "median judged, alone |\n|---|---|---|---|---|---|---|---|---|"
)


class Measured(NamedTuple):
    of: int
    differ: float
    worse: float
    runs: int
    ended: int
    kept: bool
    paired: np.ndarray
    alone: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[360, 1000, 10_000], help="images to judge, N")
    parser.add_argument("--runs", type=int, default=10_000, help="random orders; a fifth of them at 10,000 images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for the result file")
    args = parser.parse_args()
    rng, rows = np.random.default_rng(args.seed), []
    for of in args.images:
        alone = _least_misses(of)
        for differ, worse in TRUTHS:
            rows.append(_measured(of, differ, worse, args.runs if of < 10_000 else args.runs // 5, alone, rng))
            print(_row(rows[-1]), file=sys.stderr, flush=True)
    text = _report(rows, args.seed)
    files.write_text(result_file(args.out, "paired", torch.device("cpu")), text)
    print(text)


def _floor(of: int) -> float:
    return round(ROBUST * of) / of - MARGIN


def _measured(of: int, differ: float, worse: float, runs: int, alone: np.ndarray, rng: np.random.Generator) -> Measured:
    old, lost, gained = round(ROBUST * of), round(of * (differ + worse) / 2), round(of * (differ - worse) / 2)
    least = anytime.least_count(_floor(of), of) - old
    # One character an image: the champion has the first `old`, loses `lost` of those, and gains of the others.
    had = np.arange(of) < old
    x = np.zeros(of, dtype=np.int8)
    x[:lost], x[old : old + gained] = -1, 1
    ended_by_pairs, ended_alone = [], []
    for at in range(0, runs, 500):
        order = np.argsort(rng.random((min(500, runs - at), of)), axis=1)
        differences, hits = x[order], np.cumsum(had[order] + x[order], axis=1, dtype=np.int32)
        capital = _evidence(differences, of, least)
        if at == 0:
            _same_as_ours(capital, differences, of, least)
        ended_by_pairs.append(_first(capital >= -log1p(-CONFIDENCE)))
        ended_alone.append(_first(np.arange(1, of + 1) - hits >= alone[1:]))
    first, second = np.concatenate(ended_by_pairs), np.concatenate(ended_alone)
    return Measured(of, differ, worse, runs, int((first < of).sum()), gained - lost >= least, first / of, second / of)


def _evidence(x: np.ndarray, of: int, least: int) -> np.ndarray:
    """log C_n of `rrmsdk.verification.paired` at every n of many orders at once."""
    need = (least - (np.cumsum(x, axis=1, dtype=np.int32) - x)) / (of - np.arange(x.shape[1]))
    sure, need = need > 1, np.clip(need, -1, 1)
    total = np.full(x.shape, -np.inf)
    for bet in paired.BETS:
        stake = np.minimum(bet, 0.9 / np.maximum(1 - need, 1e-9))
        total = np.logaddexp(total, np.cumsum(np.log1p(stake * (need - x)), axis=1))
    total -= log(len(paired.BETS))
    return np.where(sure, np.inf, total)


def _same_as_ours(capital: np.ndarray, x: np.ndarray, of: int, least: int) -> None:
    for row in range(5):
        for n in (1, of // 7, of // 2):
            ours = paired.evidence(x[row, :n].astype(np.int64), of, least)
            assert np.isinf(ours) or abs(ours - capital[row, n - 1]) < 1e-6


def _first(said: np.ndarray) -> np.ndarray:
    """After how many images of each order it is said; all where it never is."""
    return np.where(said.any(axis=1), said.argmax(axis=1) + 1, said.shape[1])


def _least_misses(of: int) -> np.ndarray:
    """The least misses at each n at which `anytime` says that the floor is missed, by the challenger's count alone."""
    floor, found, least = anytime.least_count(_floor(of), of), np.empty(of + 1, dtype=np.int64), 0
    for n in range(of + 1):
        while least <= n and anytime.evidence(n, least, of, of - floor + 1) < -log1p(-CONFIDENCE):
            least += 1
        found[n] = least
    return found


def _row(one: Measured) -> str:
    low = beta.ppf(0.025, one.ended, one.runs - one.ended + 1) if one.ended else 0.0
    high = beta.ppf(0.975, one.ended + 1, one.runs - one.ended) if one.ended < one.runs else 1.0
    wrongly = f"{one.ended / one.runs:.4f}" if one.kept else ""
    return (
        f"| {one.of} | {100 * one.differ:g} % | {100 * one.worse:g} | {one.ended} of {one.runs} "
        f"| {low:.4f} to {high:.4f} | {wrongly} | {100 * np.median(one.paired):.1f} % "
        f"| {100 * one.paired.mean():.1f} % | {100 * np.median(one.alone):.1f} % |"
    )


def _report(rows: list[Measured], seed: int) -> str:
    known = ", ".join(f"{name} {said}" for name, said in versions().items())
    return f"""# When a challenger is seen to be worse

The champion is robust on {100 * ROBUST:g} % of the images. Judging ends once the challenger is surely
({100 * CONFIDENCE:g} %) below that less {100 * MARGIN:g} points. `wrongly`: it was not below, and was kept out all the
same; at most {1 - CONFIDENCE:.2f} is promised. `alone`: by the challenger's count, without the champion's outcomes.
Shares are of all N images; 100 %: judged to the end.

{COLUMNS}
{chr(10).join(_row(one) for one in rows)}

Hardware: {hardware(torch.device("cpu"))}. Versions: {known}. Seed {seed}.
Command: `{command_line()}`.
"""


if __name__ == "__main__":
    main()
