"""The folder of a job: what a process has in its hands while it works there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rrmsdk.retraining import journal, objects
from rrmsdk.retraining.journal import Journal
from rrmsdk.retraining.lock import hold
from rrmsdk.retraining.objects import Objects

STATE = "RRMSDK_STATE"
STORE, RUNS = "objects/sha256", "runs"


@dataclass(frozen=True)
class Room:
    """A job's folder, held."""

    folder: Path
    journal: Journal
    objects: Objects


def root(state: Path | None = None) -> Path:
    """Where jobs have their folders, each under its name: `state`, or $RRMSDK_STATE, or ~/.local/state/rrmsdk."""
    return (state or Path(os.environ.get(STATE) or "~/.local/state/rrmsdk")).expanduser()


@contextmanager
def entered(folder: Path) -> Iterator[Room]:
    """Hold a job's folder and open what is in it.

    Raises:
        BusyError: another process holds it.
        IntegrityError: its journal is damaged, or of a newer rrmsdk.
        DiskFullError, SaveError: it cannot be written.
    """
    with hold(folder), journal.opened(folder) as opened:
        yield Room(folder, opened, objects.opened(folder / STORE))
