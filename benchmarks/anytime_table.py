"""What anytime.py measured, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy
import scipy
import torch
from anytime_rules import CHOSEN

from rrmsdk.verification.provenance import hardware, versions

if TYPE_CHECKING:
    from anytime import Measured

CANDIDATES = """
* **chosen** (`rrmsdk.verification.anytime.verdict`): two one-sided mixtures, w ~ d exp(-(d/s)^2/2),
  s = max(0.05, 1.5/sqrt(N)), d the distance from the floor as a share
* **half-normal**, **1/d**, **uniform**: the same test with w ~ exp(-(d/s)^2/2), 1/d, 1
* **PPR**: once the two-sided interval leaves the floor; prior-posterior ratio, uniform prior (arXiv:2006.04347)
* **hedged**, **aGRAPA**: betting with the predictable plug-in and with the approximate Kelly bet, one-sided, without
  replacement, bets at most 1/(2 m) (arXiv:2010.09686)
* **point**: all on a distance of five points. It knows what the others do not, and shows about the least that five
  points cost
"""


def report(
    rows: list[Measured],
    confidence: float,
    widths: list[tuple[int, int, float, float]],
    seconds: list[tuple[int, float]],
    seed: int,
    command: str,
) -> str:
    """The whole result file."""
    five = [r for r in rows if r.rule == CHOSEN and r.at_least == 0.45 and _points(r) == 5]
    said = "; ".join(f"{r.median:.1%} of {r.of} images at a truth of {r.robust / r.of:.2f}" for r in five)
    known = versions() | {"numpy": numpy.__version__, "scipy": scipy.__version__}
    return "\n".join(
        [
            "# How many images a verdict needs",
            "",
            f"A floor under robust accuracy, {100 * confidence:g} % confidence, asked after every image of a random "
            "order.",
            f"Five points from a floor of 0.45, half of all orders are decided after {said}.",
            "",
            "## The chosen rule",
            "",
            f"Wrong in {rows[0].runs} simulated orders with the 95 % Clopper-Pearson interval of the probability. It "
            "may reach above the promise by the luck of the draw; `exactly` is that probability by recursion over "
            "(n, hits), without luck. Shares judged are of all N. Wald: log(1/alpha)/KL, the least mean with "
            "replacement; plug-in: where the likelihood ratio to the nearest false count reaches 1/alpha without "
            "replacement. Both are for a test that knows the truth; 100 % where all images would not do.",
            "",
            *_table(
                "N | floor | truth | wrong | 95 % interval | exactly | median judged | mean | 9 of 10 | Wald | plug-in",
                (_chosen(r) for r in rows if r.rule == CHOSEN),
            ),
            "",
            "## The candidates",
            CANDIDATES,
            *_compared(rows, "Median share judged:", lambda r: f"{r.median:.1%}"),
            "",
            *_compared(rows, "Mean share judged:", lambda r: f"{r.mean:.1%}"),
            "",
            *_compared(rows, f"Wrong, of {rows[0].runs} orders:", lambda r: str(r.wrong)),
            "",
            "## The interval",
            "",
            "Where half of the judged images are robust (two-sided, so it leaves the floor later than the verdict):",
            "",
            *_table("N | judged | low | high", ((of, n, f"{low:.4f}", f"{high:.4f}") for of, n, low, high in widths)),
            "",
            f"One call of `verdict`: {', '.join(f'{1e6 * s:.0f} us for N = {of}' for of, s in seconds)}.",
            "",
            f"Hardware: {hardware(torch.device('cpu'))}.",
            f"Versions: {', '.join(f'{name} {number}' for name, number in known.items())}.",
            f"Seed {seed}. Command: `{command}`.",
            "",
        ]
    )


def _points(row: Measured) -> int:
    return abs(round(100 * (row.robust / row.of - row.at_least)))


def _chosen(r: Measured) -> tuple[Any, ...]:
    low, high = r.wrong_interval
    return (
        r.of, r.at_least, f"{r.robust / r.of:.4f}", r.wrong, f"{low:.4f} to {high:.4f}", f"{r.exact_wrong:.5f}",
        f"{r.median:.1%}", f"{r.mean:.1%}", f"{r.ninth_decile:.1%}", f"{r.wald:.1%}", f"{r.plug_in:.1%}",
    )  # fmt: skip


def _compared(rows: list[Measured], title: str, cell: Any) -> list[str]:
    names = list(dict.fromkeys(r.rule for r in rows))
    cells = {(r.of, r.at_least, r.robust, r.rule): cell(r) for r in rows}
    truths = list(dict.fromkeys((r.of, r.at_least, r.robust) for r in rows))
    lines = ((of, floor, f"{k / of:.4f}", *(cells[of, floor, k, name] for name in names)) for of, floor, k in truths)
    return [title, "", *_table(" | ".join(("N", "floor", "truth", *names)), lines)]


def _table(head: str, rows: Iterable[tuple[Any, ...]]) -> list[str]:
    return [
        f"| {head} |",
        "|" + "---|" * len(head.split("|")),
        *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows),
    ]
