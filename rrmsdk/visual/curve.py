"""Robust accuracy over the radius."""

from __future__ import annotations

from pathlib import Path

from rrmsdk.schema.curve import Curve
from rrmsdk.schema.threat import spelt
from rrmsdk.visual.figure import figure

ROBUST = "tab:red"


def curve(found: Curve, path: Path) -> None:
    """One panel, with the 95 % Wilson interval as a band and the radius of the card marked where it is of this norm.

    Raises:
        MissingExtraError, SaveError
    """
    eps = [float(one.eps) for one in found.points]
    title = f"{found.attack}, {found.images} {found.split} images of {found.data.name}: upper bounds"
    with figure(path, title=title) as (axis,):
        low, high = zip(*(one.interval for one in found.points), strict=True)
        axis.fill_between(eps, low, high, color=ROBUST, alpha=0.2, lw=0)
        axis.plot(eps, [one.robust for one in found.points], "o-", color=ROBUST)
        if found.trained_for.norm == found.norm and found.trained_for.eps <= found.points[-1].eps:
            axis.axvline(float(found.trained_for.eps), color="tab:gray", ls=":", label=f"card: {found.trained_for}")
            axis.legend(frameon=False)
        axis.set_xticks(eps, [spelt(one.eps) for one in found.points], rotation=45)
        axis.set(xlabel=f"eps, {found.norm}", ylabel="robust accuracy", ylim=(0, 1.02))
