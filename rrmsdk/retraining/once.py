"""A stage is worked on once for the same inputs: what it made then is what it gives from then on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rrmsdk.errors import HubError, SaveError
from rrmsdk.retraining.journal import STOPPED, Run, signature
from rrmsdk.retraining.objects import full, key, size
from rrmsdk.retraining.room import RUNS, Room


@dataclass(frozen=True)
class Made:
    """What a stage made: its digest, and where it lies, not to be written to."""

    digest: str
    path: Path


def once(
    room: Room,
    run: Run,
    name: str,
    inputs: Mapping[str, Any],
    work: Callable[[Path], Path],
    *,
    checkpoint: str | None = None,
) -> Made:
    """What `work` made of these inputs, earlier or now.

    Args:
        inputs: all that the result depends on, as JSON: digests of what earlier stages made, settings, versions.
        work: is given a folder that lasts until the stage is finished, over kills; gives the file or folder to keep.
        checkpoint: a file there that is replaced while the work goes on, or a folder that grows: dying at another state
            of it is not dying at the same place again.

    Raises:
        SuspendedError: it crashed again and again in the same way.
        DiskFullError, SaveError: what it made cannot be kept.
        Exception: whatever `work` raises. An error of the Hub or the disk is none of the stage's crashes.
    """
    of = key(**inputs)
    known = room.journal.made(name, of)
    if known is not None:
        path = room.objects.open(known)
        if path is not None:
            room.journal.reused(run.number, name, known)
            return Made(known, path)
        room.journal.lost(run.number, name, of)
    scratch = room.folder / RUNS / run.id / f"{name}-{of[:12]}"
    attempt = room.journal.attempt(run.number, name, of, _state(scratch, checkpoint))
    begun = time.monotonic()
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        digest = room.objects.put(work(scratch))
    except BaseException as exc:
        room.journal.crashed(attempt, signature(exc) if _own(exc) else STOPPED, said=str(exc))
        raise
    room.journal.done(attempt, digest, time.monotonic() - begun)
    shutil.rmtree(scratch, ignore_errors=True)
    return Made(digest, room.objects.folder / digest)


def _own(exc: BaseException) -> bool:
    """Whether it is the stage that fails; not Ctrl-C, the Hub or a full disk."""
    return isinstance(exc, Exception) and not isinstance(exc, HubError | SaveError) and not full(exc)


def _state(scratch: Path, checkpoint: str | None) -> str:
    """Changes when the checkpoint is replaced, or something is added to it where it is a folder."""
    place = scratch / (checkpoint or "")
    if checkpoint is None or not place.exists():
        return ""
    if place.is_dir():
        return str(size(place))
    found = place.stat()
    return f"{found.st_size}-{found.st_mtime_ns}"
