"""What a paper says of its rows, asked of the rows that were measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

from benchmarks.reproduce.measure import Found
from benchmarks.reproduce.rows import Claim, Table

TIMES = ("minutes", "with_teacher")


@dataclass(frozen=True)
class Figure:
    """A number, and its standard error over the drawn images (0 where it is a time or the paper's)."""

    number: float
    error: float = 0.0


def of_paper(table: Table, name: str) -> Figure | None:
    """ROW.WHAT as the paper has it."""
    row, _, what = name.partition(".")
    given = None if table.find(row).sweep else table.find(row).paper.figure(what)
    return None if given is None else Figure(given)


def of_runs(found: list[Found], name: str) -> Figure | None:
    """ROW.WHAT as it was measured, the mean over seeds; of a sweep, ROW.VALUE is robust accuracy on validation."""
    row, _, what = name.partition(".")
    seen = [figure for one in found if one.row == row and (figure := _one(one, what)) is not None]
    if not seen:
        return None
    # Seeds are judged on the same images, so that more of them do not make the error over images smaller.
    return Figure(statistics.fmean(one.number for one in seen), statistics.fmean(one.error for one in seen))


def _one(found: Found, what: str) -> Figure | None:
    if what in TIMES:
        seconds = found.timed.seconds if what == "minutes" else found.with_teacher
        return Figure(seconds / 60) if seconds else None
    if found.swept is not None:
        points = {f"{given:g}": point.screened for point in found.swept.points for given in point.values.values()}
        measured, share = points.get(what), "robust"
    else:
        measured, share = (next(iter(found.by.values()), None), "clean") if what == "clean" else (
            found.by.get(what), "robust")  # fmt: skip
    if measured is None:
        return None
    p = getattr(measured, share)
    return Figure(100 * p, 100 * sqrt(p * (1 - p) / measured.images))


def verdict(claim: Claim, figure: Callable[[str], Figure | None]) -> str:
    """Whether it holds, with the numbers."""
    more, less = figure(claim.more), figure(claim.less)
    missing = [name for name, given in ((claim.more, more), (claim.less, less)) if given is None]
    if more is None or less is None:
        return f"not at hand: {', '.join(missing)}"
    by = f" {'-' if claim.by < 0 else '+'} {abs(claim.by):g}" if claim.by else ""
    times = f"{claim.times:g} x " if claim.times != 1 else ""
    apart = more.number - (claim.times * less.number + claim.by)
    told = f"{_shown(more)} {'>=' if apart >= 0 else '<'} {times}{_shown(less)}{by}"
    noise = 1.96 * sqrt(more.error**2 + (claim.times * less.error) ** 2)
    within = f"; within the noise of the images, {noise:.1f}" if abs(apart) < noise else ""
    return f"{'holds' if apart >= 0 else 'does not hold'}: {told}{within}"


def _shown(figure: Figure) -> str:
    return f"{figure.number:.1f}" if figure.number >= 1 or figure.number == 0 else f"{figure.number:.2g}"
