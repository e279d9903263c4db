"""Clean against robust accuracy over a sweep, and both against the value (RRM, figure 4)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rrmsdk.schema.sweep import Point, Span, Sweep
from rrmsdk.visual.figure import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLEAN, ROBUST = "tab:blue", "tab:red"


def tradeoff(swept: Sweep, path: Path) -> None:
    """Two panels with 95 % Wilson intervals, of the points that did not diverge; the best one is ringed.

    Raises:
        MissingExtraError, SaveError
    """
    done = [point for point in swept.points if point.screened is not None]
    measured = done[0].screened
    title = f"{measured.attack}, {measured.images} {measured.split} images, {swept.recipe.threat}" if measured else ""
    with figure(path, 2, title=title) as (both, against):
        _both(both, swept, done)
        _against(against, swept, done)


def label(point: Point) -> str:
    """Its values, for a plot or a table."""
    return ", ".join(f"{given:.4g}" if isinstance(given, float) else str(given) for given in point.values.values())


def _both(axis: Axes, swept: Sweep, done: list[Point]) -> None:
    for point in done:
        found = point.screened
        assert found is not None
        axis.errorbar(
            found.clean, found.robust, xerr=_reach(found.clean, found.clean_interval),
            yerr=_reach(found.robust, found.robust_interval), fmt="o", color="tab:gray", ecolor="lightgray",
        )  # fmt: skip
        axis.annotate(label(point), (found.clean, found.robust), xytext=(4, 4), textcoords="offset points", fontsize=8)
    best = swept.best.screened
    assert best is not None
    axis.plot(best.clean, best.robust, "o", mfc="none", mec="black", ms=12, label=f"best by {swept.by}")
    axis.legend(frameon=False)
    axis.set(xlabel="clean accuracy", ylabel="robust accuracy")


def _against(axis: Axes, swept: Sweep, done: list[Point]) -> None:
    """Over the first field; a line only where it is the one that varies."""
    field, of = next(iter(swept.ranges.items()))
    given = [point.values[field] for point in done]
    numeric = all(isinstance(one, int | float) and not isinstance(one, bool) for one in given)
    places: list[Any] = given if numeric else [str(one) for one in given]
    order = sorted(range(len(done)), key=lambda at: places[at]) if numeric else range(len(done))
    line = "-" if numeric and len(swept.ranges) == 1 else ""
    for name, colour in (("clean", CLEAN), ("robust", ROBUST)):
        ys = [getattr(done[at].screened, name) for at in order]
        reach = [_reach(y, getattr(done[at].screened, f"{name}_interval")) for y, at in zip(ys, order, strict=True)]
        yerr = [[low[0] for low, _ in reach], [high[0] for _, high in reach]]
        axis.errorbar([places[at] for at in order], ys, yerr=yerr, fmt=f"o{line}", color=colour, capsize=2, label=name)
    if numeric and _log(of, given):
        axis.set_xscale("log")
    axis.set(xlabel=field, ylabel="accuracy", ylim=(0, 1.02))
    axis.legend(frameon=False)


def _log(of: Any, given: list[Any]) -> bool:
    """A log axis where one was asked for, or where a list spans more than two decades."""
    return of.scale == "log" if isinstance(of, Span) else min(given) > 0 and max(given) / min(given) > 100


def _reach(middle: float, interval: tuple[float, float]) -> tuple[list[float], list[float]]:
    """How far the interval goes to each side; rounding may put an end on the wrong one."""
    return [max(0.0, middle - interval[0])], [max(0.0, interval[1] - middle)]
