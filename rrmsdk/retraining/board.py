"""What jobs have done and will do, for a person or a program: read from their journals, written by nobody."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rrmsdk.errors import RrmError
from rrmsdk.retraining import journal as journals
from rrmsdk.retraining.due import held
from rrmsdk.retraining.explain import next_slots
from rrmsdk.retraining.journal import Event, Journal, Run
from rrmsdk.retraining.lock import holder
from rrmsdk.retraining.room import RUNS
from rrmsdk.retraining.schedule import CHAMPION, LOG, Scheduled, past_of, pid_of

TAIL = 20_000  # bytes of what a run printed


def status(one: Scheduled, now: datetime) -> dict[str, Any]:
    """A job at this moment: its newest run, its champion, why nothing begins, what comes next."""
    return seen(one, now) | {"pid": pid_of(one.folder)}


def seen(one: Scheduled, now: datetime) -> dict[str, Any]:
    """The same for whoever takes no lock; the process may then be unknown."""
    about: dict[str, Any] = {"job": one.job.name, "file": str(one.path), "pid": holder(one.folder)}
    try:
        about["next"] = list(next_slots(one.job, now, 3))
    except RrmError as exc:
        about["next"] = []
        about["trouble"] = str(exc)
    if not (one.folder / journals.FILE).is_file():
        return about | {"state": "new", "why": "", "run": None, "champion": None, "held": None}
    with journals.reading(one.folder) as kept:
        newest = next(iter(kept.runs()), None)
        crowned = kept.events(kind=CHAMPION)[-1:]
        about["held"] = held(one.job, past_of(kept), now)
    about["champion"] = crowned[0].told if crowned else None
    if newest is None:
        return about | {"state": "new", "why": "", "run": None}
    return about | {"state": newest.state, "why": newest.why, "run": newest.id}


def history(folder: Path) -> list[dict[str, Any]]:
    """The runs of a job, the newest first, with what the gate counted."""
    if not (folder / journals.FILE).is_file():
        return []
    with journals.reading(folder) as kept:
        return [_told(kept, run) for run in kept.runs()]


def logs(folder: Path, run: int | None) -> tuple[tuple[Event, ...], str]:
    """What happened in a run (None: the newest), and the end of what its process printed."""
    if not (folder / journals.FILE).is_file():
        return (), ""
    with journals.reading(folder) as kept:
        found = kept.run(run) if run is not None else next(iter(kept.runs()), None)
        if found is None:
            return (), ""
        events = kept.events(found.number)
    return events, _printed(folder / RUNS / found.id / LOG)


def lines(events: tuple[Event, ...]) -> Iterator[str]:
    """A line an event."""
    for event in events:
        told = "  ".join(f"{name}={said}" for name, said in event.told.items() if said not in ("", None, [], {}))
        yield f"{_time(event.at)}  {event.kind}  {told}".rstrip()


def _printed(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))  # the page asks again and again, and a log may be large
        return file.read(TAIL).decode(errors="replace")


def _told(kept: Journal, run: Run) -> dict[str, Any]:
    decisions = kept.events(run.number, kind="decision")
    return {
        "run": run.id, "state": run.state, "why": run.why, "cause": run.cause, "begun": _time(run.begun),
        "ended": None if run.ended is None else _time(run.ended), "pin": run.pin,
        "seconds": round(sum(event.told["seconds"] for event in kept.events(run.number, kind="done")), 1),
        "decision": decisions[-1].told if decisions else None, "made": kept.outputs(run.number),
    }  # fmt: skip


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
