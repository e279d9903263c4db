"""One figure: made without a display, written beside its name and renamed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rrmsdk import files
from rrmsdk.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def can_plot() -> bool:
    """Whether the extra `report` is installed."""
    return find_spec("matplotlib") is not None


@contextmanager
def figure(path: Path, panels: int = 1, *, title: str = "") -> Iterator[list[Axes]]:
    """Axes side by side; `path` (.svg or .png) is there when the block ends well.

    Raises:
        MissingExtraError: matplotlib is not installed.
        SaveError: the file cannot be written; what was there before is untouched.
    """
    if not can_plot():
        raise MissingExtraError("report", "a plot")
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(5.0 * panels, 4.0), layout="constrained")
    FigureCanvasAgg(made)
    axes: list[Any] = [made.add_subplot(1, panels, number) for number in range(1, panels + 1)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    if title:
        made.suptitle(title)
    yield axes
    # No date and no random names in the file: the same figures give the same bytes.
    with files.replacing(path) as beside, rc_context({"svg.hashsalt": path.name}):
        made.savefig(
            beside, format=path.suffix[1:] or "svg", metadata={"Date": None} if path.suffix != ".png" else None
        )
