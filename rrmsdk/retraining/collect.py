"""What old runs left is removed; what is pinned, served or still needed stays."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rrmsdk.errors import RefError, SaveError, did_you_mean
from rrmsdk.retraining import journal, objects
from rrmsdk.retraining.journal import UNFINISHED, Journal, Run
from rrmsdk.retraining.room import RUNS, Room, entered, root

KEEP = 5


@dataclass(frozen=True)
class Collected:
    """What was removed of a job, or would be: the folders of runs, objects, and the bytes of both."""

    job: str
    runs: tuple[int, ...]
    objects: tuple[str, ...]
    bytes: int


def jobs(job: str | None = None, state: Path | None = None) -> tuple[Path, ...]:
    """The folders of all jobs, or of that one. Raises RefError: it has none."""
    place = root(state)
    found = {path.parent.name: path.parent for path in sorted(place.glob(f"*/{journal.FILE}"))}
    if job is None:
        return tuple(found.values())
    if job not in found:
        raise RefError(f"no job '{job}' has run here: {place} has no folder of it.{did_you_mean(job, found)}")
    return (found[job],)


def collect(folder: Path, *, keep: int | None = None, dry_run: bool = False) -> Collected:
    """Remove what the runs of a job left, but for those of `kept`. The journal itself stays.

    Args:
        keep: so many of the newest promoted runs stay; None: the champion, and `push.keep` of the job before it.

    Raises:
        BusyError: the job is running.
        SaveError: something cannot be removed.
    """
    with entered(folder) as room:
        stay = kept(room.journal, _promised(room.journal) if keep is None else keep)
        needed = {digest for run in stay for digest in room.journal.outputs(run.number).values()}
        old = tuple(_left(room, {run.number for run in stay}))
        size = sum(objects.size(path) for _, path in old)
        if not dry_run:
            # First forgotten, then removed: after a kill in between, objects lie there that nobody asks for.
            room.journal.forget(set(room.objects.kept()) - needed)
            for _, path in old:
                _remove(path)
        removed = room.objects.gc(needed, dry_run=dry_run)
    numbers = tuple(number for number, _ in old)
    return Collected(folder.name, numbers, removed.digests, removed.bytes + size)


def kept(journal: Journal, keep: int) -> set[Run]:
    """The newest run, the newest `keep` that were promoted, the champion, what is pinned, and what is not over."""
    runs = journal.runs()
    promoted = [run for run in runs if run.state == "promoted"]
    return {
        *runs[:1],
        *promoted[: max(keep, 1)],
        *(run for run in runs if run.pin is not None or run.state in (*UNFINISHED, "suspended")),
        *(run for run in runs if run.number == journal.champion()),
    }


def _promised(journal: Journal) -> int:
    """As the job said when it last promoted: its file may lie elsewhere by now."""
    told = [event.told["keep"] for event in journal.events(kind="champion") if "keep" in event.told]
    return told[-1] + 1 if told else KEEP


def _left(room: Room, stay: set[int]) -> Iterator[tuple[int, Path]]:
    for run in reversed(room.journal.runs()):
        path = room.folder / RUNS / run.id
        if run.number not in stay and path.is_dir():
            yield run.number, path


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as exc:
        raise SaveError(f"could not remove {exc.filename or path}: {exc.strerror or exc}") from exc
