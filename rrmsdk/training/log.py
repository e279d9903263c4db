"""What a run tells while it goes: a CSV, TensorBoard where it is installed, and a progress bar on a terminal."""

from __future__ import annotations

import csv
import importlib.util
import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rrmsdk import files
from rrmsdk.training.loop import Step
from rrmsdk.training.validate import Validation

COLUMNS = ("step", "epoch", "loss", "lr", "images_per_s", "val_clean", "val_robust")
SECONDS_BETWEEN_LINES = 30.0
BOARD = "tensorboard"


class Metrics:
    """Rows of `metrics.csv`, kept in memory and written in one rename; a resumed run continues at its step."""

    def __init__(self, folder: Path, done: int) -> None:
        self.path = folder / "metrics.csv"
        self.rows: list[dict[str, Any]] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= done]
        self.board = _tensorboard(folder / BOARD, done)

    def add(self, step: Step, loss: float, images_per_s: float, validation: Validation | None) -> None:
        """One row; goes to the disk with the next `write`."""
        row = {"step": step.number, "epoch": f"{step.epoch:.3f}", "loss": f"{loss:.6g}", "lr": f"{step.lr:.6g}",
               "images_per_s": f"{images_per_s:.1f}"}  # fmt: skip
        if validation is not None:
            row |= {"val_clean": f"{validation.clean:.4f}", "val_robust": f"{validation.robust:.4f}"}
        self.rows.append(row)
        if self.board is not None:
            for name in COLUMNS[2:]:
                if name in row:
                    self.board.add_scalar(name, float(row[name]), step.number)

    def write(self) -> None:
        """Replace the CSV by what has been added so far."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list[str](COLUMNS))
        writer.writeheader()
        writer.writerows(self.rows)
        files.write_text(self.path, text.getvalue())
        if self.board is not None:
            self.board.flush()


def _tensorboard(folder: Path, done: int) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=done)


Bar = Callable[[int, int, str], None]
"""Shows (done, total, a few words)."""


@contextmanager
def progress(title: str, quiet: bool = False) -> Iterator[Bar]:
    """A bar with time left on a terminal, a line each half minute elsewhere, nothing when quiet. All on stderr."""
    if quiet:
        yield lambda done, total, says: None
    elif sys.stderr.isatty():
        bar, percent = BarColumn(), TextColumn("{task.percentage:>3.0f}%")
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            bar,
            percent,
            TimeElapsedColumn(),
            TextColumn("left"),
        )
        columns += (TimeRemainingColumn(), TextColumn("{task.fields[says]}"))
        with Progress(*columns, console=Console(stderr=True)) as shown:
            task = shown.add_task(title, says="")
            yield lambda done, total, says: shown.update(task, completed=done, total=total, says=says)
    else:
        yield _lines(title)


def _lines(title: str) -> Bar:
    """Time left is reckoned from the first call, which a resumed run makes in its middle; a new attack begins anew."""
    began = told = time.monotonic()
    first = last = 0

    def show(done: int, total: int, says: str) -> None:
        nonlocal began, told, first, last
        now = time.monotonic()
        if done < last or not first:
            began, first = now, done
        last = done
        if now - told >= SECONDS_BETWEEN_LINES and done > first:
            left = (now - began) / (done - first) * (total - done)
            print(f"{title}: {done}/{total}  {says}  {left / 60:.1f} min left", file=sys.stderr, flush=True)
            told = now

    return show
