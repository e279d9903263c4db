"""Reliability, certainty, and what changed on hard images (Maroto et al. 2022, section 4.2)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from rrmsdk.schema.diagnosis import Diagnosis, Looked, Scores
from rrmsdk.visual.figure import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODEL, TEACHER = "tab:blue", "tab:orange"
CLEAN, ATTACKED = "tab:blue", "tab:red"
SMALLEST, LARGEST = 3.0, 14.0  # of a dot, in points


def reliability(found: Diagnosis, path: Path) -> None:
    """Accuracy over confidence, without and under attack; a dot's area is the share of images in the bin.

    Raises:
        MissingExtraError, SaveError
    """
    with figure(path, 2, title=_title(found)) as axes:
        for axis, images in zip(axes, ("clean", "attacked"), strict=True):
            axis.plot([0, 1], [0, 1], color="gray", linestyle=":", linewidth=1)
            for who, colour in _both(found):
                _diagram(axis, getattr(who, images), who.name, colour)
            axis.set(title=images, xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(-0.02, 1.02))
            axis.legend(frameon=False)


def change(found: Diagnosis, path: Path) -> None:
    """p(label) of the student beyond its teacher, in bins of equally many images from easy to hard; standard errors.

    Raises:
        MissingExtraError, SaveError
    """
    with figure(path, title=_title(found)) as (axis,):
        axis.axhline(0, color="gray", linewidth=1)
        at = range(len(found.changes))
        for name, colour in (("clean", CLEAN), ("attacked", ATTACKED)):
            means = [getattr(one, name) for one in found.changes]
            errors = [getattr(one, f"{name}_error") or 0.0 for one in found.changes]
            axis.errorbar(at, means, yerr=errors, fmt="o-", color=colour, capsize=2, label=name)
        # Side by side, because most images are easy and would lie on top of each other.
        axis.set_xticks(at, [f"{one.difficulty:.2g}" for one in found.changes], rotation=45)
        axis.set(xlabel="difficulty: 1 - p(label) of the teacher, attacked", ylabel="p(label), student - teacher")
        axis.legend(frameon=False)


def entropy(found: Diagnosis, path: Path) -> None:
    """How many images are met with which entropy, without and under attack.

    Raises:
        MissingExtraError, SaveError
    """
    most = math.log(len(found.data.labels))
    with figure(path, 2, title=_title(found)) as axes:
        for axis, images in zip(axes, ("clean", "attacked"), strict=True):
            for who, colour in _both(found):
                scores: Scores = getattr(who, images)
                edges = [most * number / len(scores.entropies) for number in range(len(scores.entropies) + 1)]
                axis.stairs(scores.entropies, edges, color=colour, fill=True, alpha=0.35)
                axis.axvline(scores.entropy, color=colour, label=f"{who.name}, mean {scores.entropy:.2f}")
            axis.set(title=images, xlabel="entropy in nats, up to log C", ylabel="images")
            axis.legend(frameon=False)


def _diagram(axis: Axes, scores: Scores, name: str, colour: str) -> None:
    bins = [one for one in scores.reliability if one.accuracy is not None and one.confidence is not None]
    n = sum(one.images for one in bins)
    xs, ys = [one.confidence or 0.0 for one in bins], [one.accuracy or 0.0 for one in bins]
    axis.plot(xs, ys, color=colour, linewidth=1, label=f"{name}, ECE {scores.ece:.3f}")
    for x, y, one in zip(xs, ys, bins, strict=True):
        size = SMALLEST + (LARGEST - SMALLEST) * math.sqrt(one.images / n)
        axis.plot(x, y, "o", color=colour, markersize=size, alpha=0.7)


def _both(found: Diagnosis) -> list[tuple[Looked, str]]:
    return [(found.model, MODEL)] + ([] if found.teacher is None else [(found.teacher, TEACHER)])


def _title(found: Diagnosis) -> str:
    return f"{found.images} {found.split} images of {found.data.name}, {found.attack}, {found.threat}"
