"""A job and its runs as one object each: what was made, judged and decided, with every artefact by its digest.

Read from what lies in the jobs' folders, by somebody who only looks: no lock is taken, nothing is written or moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from rrmsdk import files
from rrmsdk.errors import IntegrityError, MismatchError, RrmError, SaveError, did_you_mean
from rrmsdk.retraining import board, objects, schedule
from rrmsdk.retraining import journal as journals
from rrmsdk.retraining.explain import explained
from rrmsdk.retraining.journal import Event, Journal, Run
from rrmsdk.retraining.lock import holder
from rrmsdk.retraining.room import RUNS, STORE, root
from rrmsdk.retraining.schedule import CHAMPION, Scheduled
from rrmsdk.schema import value
from rrmsdk.schema.bundle import CURVE
from rrmsdk.schema.curve import Curve
from rrmsdk.schema.decision import Decision
from rrmsdk.schema.report import Report, wilson
from rrmsdk.schema.threat import spelt

Told = dict[str, Any]
_LEAST = 1  # a share cannot be of fewer images


def overview(jobs: Path, state: Path | None, now: datetime) -> Told:
    """How each job stands: those of the files in `jobs`, and those that have a folder and no file any more."""
    found, troubles = _scheduled(jobs, state)
    rows = [_status(one, now) for one in found.values()]
    rows += [_left(folder) for name, folder in sorted(_folders(state).items()) if name not in found]
    return {"at": now.isoformat(timespec="seconds"), "jobs": rows, "troubles": troubles}


def job(jobs: Path, state: Path | None, name: str, now: datetime) -> Told:
    """A job with all its runs, the newest first, and who was champion from when on.

    Raises:
        MismatchError: there is no such job.
    """
    found, _ = _scheduled(jobs, state)
    folder = _folder(found, state, name)
    one = found.get(name)
    told = (_status(one, now) if one else _left(folder)) | {"about": _about(one), "floors": _floors(one)}
    try:
        with journals.reading(folder) as kept:
            return told | {"runs": [_row(kept, folder, run) for run in kept.runs()], "champions": list(_crowned(kept))}
    except MismatchError:  # nothing has begun yet
        return told | {"runs": [], "champions": []}
    except (IntegrityError, SaveError) as exc:
        return told | {"runs": [], "champions": [], "trouble": str(exc)}


def run(jobs: Path, state: Path | None, name: str, number: int) -> Told:
    """All that is known of a run.

    Raises:
        MismatchError: there is no such job or run.
        IntegrityError: its journal is damaged.
    """
    found, _ = _scheduled(jobs, state)
    folder = _folder(found, state, name)
    with journals.reading(folder) as kept:
        one = kept.run(number)
        row, made, events = _row(kept, folder, one), kept.outputs(number), kept.events(number)
    _, printed = board.logs(folder, number)
    return row | {
        "job": name, "stages": _stages(events),
        "decisions": [_decision(folder, one, event) for event in _decided(events)],
        "artefacts": [{"stage": stage} | artefact(folder, digest) for stage, digest in made.items()],
        "curve": _curve(folder, made, _decided(events)[-1:]),
        "events": [{"at": _time(event.at), "kind": event.kind, "told": event.told} for event in events],
        "printed": printed,
    }  # fmt: skip


def folder_of(jobs: Path, state: Path | None, name: str) -> Path:
    """Where a job has its runs. Raises MismatchError: there is no such job."""
    return _folder(_scheduled(jobs, state)[0], state, name)


def artefact(folder: Path, digest: str) -> Told:
    """What lies under a digest: names and sizes. It was hashed when it was put there, and is before it is used.

    Raises:
        MismatchError: that is no digest.
    """
    if not objects.DIGEST.fullmatch(digest):
        raise MismatchError(f"'{digest}' is no digest: those have 64 hexadecimal digits")
    place = folder / STORE / digest
    inside = place.rglob("*") if place.is_dir() else [place]
    paths = sorted(path for path in inside if path.is_file() and not path.is_symlink())
    listed = [
        {"name": "" if path == place else str(path.relative_to(place)), "bytes": path.stat().st_size} for path in paths
    ]
    return {"digest": digest, "there": place.exists(), "folder": place.is_dir(), "files": listed}


def file_of(folder: Path, digest: str, name: str) -> Path | None:
    """A file of an artefact, by the name that `artefact` gives it; None: there is none."""
    known = {one["name"] for one in artefact(folder, digest)["files"]}
    return folder / STORE / digest / name if name in known else None


def _scheduled(jobs: Path, state: Path | None) -> tuple[dict[str, Scheduled], dict[str, str]]:
    try:
        found, troubles = schedule.scheduled(jobs, state)
    except MismatchError as exc:
        return {}, {str(jobs): str(exc)}
    return {one.job.name: one for one in found}, troubles


def _folders(state: Path | None) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in root(state).glob(f"*/{journals.FILE}")}


def _folder(found: dict[str, Scheduled], state: Path | None, name: str) -> Path:
    known = _folders(state) | {one.job.name: one.folder for one in found.values()}
    if name not in known:
        raise MismatchError(f"there is no job '{name}' here.{did_you_mean(name, sorted(known))}")
    return known[name]


def _status(one: Scheduled, now: datetime) -> Told:
    try:
        return board.seen(one, now) | {"repo": one.job.push.repo}
    except RrmError as exc:
        return _unread(one.job.name, str(one.path), exc)


def _left(folder: Path) -> Told:
    """A job whose file is gone, or cannot be read."""
    try:
        with journals.reading(folder) as kept:
            newest = next(iter(kept.runs()), None)
            crowned = kept.events(kind=CHAMPION)[-1:]
    except RrmError as exc:
        return _unread(folder.name, None, exc)
    about = {"state": newest.state, "why": newest.why, "run": newest.id} if newest else {"state": "new", "run": None}
    held = "No file of this job was read: nothing of it begins."
    return {
        "job": folder.name, "file": None, "pid": holder(folder), "next": [], "held": held, "why": "", "repo": None,
        "champion": crowned[0].told if crowned else None,
    } | about  # fmt: skip


def _unread(name: str, file: str | None, exc: RrmError) -> Told:
    return {
        "job": name, "file": file, "pid": None, "next": [], "held": None, "state": "unread", "why": "", "run": None,
        "champion": None, "repo": None, "trouble": str(exc),
    }  # fmt: skip


def _about(one: Scheduled | None) -> Told:
    """In sentences."""
    if one is None:
        return {}
    try:
        return dict(explained(one.job))
    except RrmError as exc:
        return {"trouble": (str(exc),)}


def _floors(one: Scheduled | None) -> Told:
    return {"clean": one.job.gate.clean_floor, "robust": one.job.gate.robust_floor} if one else {}


def _row(kept: Journal, folder: Path, one: Run) -> Told:
    """A run in a line, with what its challenger and the champion of that day came to."""
    events = kept.events(one.number)
    begun = next((event.told for event in events if event.kind == "begun"), {})
    decided, made = _decided(events)[-1:], kept.outputs(one.number)
    record = _record(folder, one, decided[0]) if decided else None
    commits = [event.told["commit"] for event in events if event.kind == "promoted" and event.told.get("commit")]
    return {
        "run": one.id, "state": one.state, "why": one.why, "cause": one.cause, "kind": begun.get("kind"),
        "says": begun.get("says"), "begun": _time(one.begun), "ended": None if one.ended is None else _time(one.ended),
        "pin": one.pin, "seconds": round(sum(event.told["seconds"] for event in events if event.kind == "done"), 3),
        "verdict": decided[0].told["verdict"] if decided else None, "commit": commits[-1] if commits else None,
        "challenger": _judged(folder, made) or _compared(record, "new"), "champion": _compared(record, "old"),
    }  # fmt: skip


def _judged(folder: Path, made: dict[str, str]) -> Told | None:
    """By its own report, where that still lies there as it was."""
    digest = made.get("verify") or made.get("screen")
    report = _report(folder / STORE / digest) if digest else None
    if report is None:
        return None
    right = report.images - report.outcomes.count("x")
    about = {"images": report.images, "attack": report.attack, "threat": str(report.threat)}
    return about | {
        "clean": _share(report.clean, wilson(right, report.images)), "robust": _share(report.robust, report.interval)
    }  # fmt: skip


def _compared(decision: Decision | None, side: str) -> Told | None:
    """By what the gate wrote down of it; its floors and margins say the same of the challenger."""
    told: Told = {}
    for check in decision.checks if decision else ():
        what, _, rule = check.name.partition("_")
        share, of = check.numbers.get(side), check.numbers.get("images", 0)
        if what in ("clean", "robust") and rule in ("margin", "floor") and share is not None and of >= _LEAST:
            told |= {what: _share(share, wilson(round(share * of), int(of))), "images": int(of)}
    return told or None


def _share(share: float, interval: tuple[float, float]) -> Told:
    return {"share": share, "low": interval[0], "high": interval[1]}


def _crowned(kept: Journal) -> Iterator[Told]:
    for event in kept.events(kind=CHAMPION):
        run = None if event.run is None else f"{event.run:06d}"
        yield {"at": _time(event.at), "run": run} | {name: event.told.get(name) for name in ("commit", "digest")}


def _stages(events: tuple[Event, ...]) -> list[Told]:
    """In the order in which they were first worked on."""
    found: dict[str, Told] = {}
    for event in events:
        if event.kind not in ("attempt", "done", "reused", "crashed", "lost"):
            continue
        told = {"attempts": 0, "seconds": None, "digest": None, "crashes": []}
        one = found.setdefault(event.told["stage"], {"stage": event.told["stage"]} | told)
        one["state"] = "begun" if event.kind == "attempt" else event.kind
        one["attempts"] += event.kind == "attempt"
        one["seconds"] = event.told.get("seconds", one["seconds"])
        one["digest"] = event.told.get("output", one["digest"])
        if event.kind == "crashed":
            one["crashes"].append(event.told["signature"])
    return list(found.values())


def _decided(events: tuple[Event, ...]) -> list[Event]:
    return [event for event in events if event.kind == "decision"]


def _decision(folder: Path, one: Run, event: Event) -> Told:
    """A decision as it was recorded, with the sha256 of the record; without one, what the journal says of it."""
    told = {"at": _time(event.at), "champion": event.told.get("champion"), "file": event.told["record"], "sha256": None}
    record = _record(folder, one, event)
    if record is None:
        brief = {name: event.told.get(name) for name in ("verdict", "says", "new", "old")}
        return told | brief | {"checks": [], "lost": True}
    told["sha256"] = files.sha256(folder / RUNS / one.id / event.told["record"])
    return told | record.model_dump(mode="json") | {"lost": False}


def _record(folder: Path, one: Run, event: Event) -> Decision | None:
    return _read(Decision, folder / RUNS / one.id / Path(event.told["record"]).name)


def _report(path: Path) -> Report | None:
    return _read(Report, path)


def _curve(folder: Path, made: dict[str, str], decided: list[Event]) -> Told | None:
    """Robust accuracy over the radius, where a bundle of the run holds it, and the champion's that it met."""
    for digest in reversed(made.values()):
        curve = _read(Curve, folder / STORE / digest / CURVE)
        if curve is not None:
            trained = float(curve.trained_for.eps) if curve.trained_for.norm == curve.norm else None
            old = next((event.told.get("old") for event in decided), None)
            met = _read(Curve, folder / STORE / old / CURVE) if old and old != digest else None
            return {
                "norm": curve.norm, "attack": curve.attack, "images": curve.images, "note": curve.note,
                "points": _points(curve), "trained": trained,
                "champion": _points(met) if met is not None and met.norm == curve.norm else [],
            }  # fmt: skip
    return None


def _points(curve: Curve) -> list[Told]:
    return [{"eps": spelt(one.eps), "at": float(one.eps)} | _share(one.robust, one.interval) for one in curve.points]


def _read(kind: Any, path: Path) -> Any:
    """None: it is not there, or cannot be read. Nothing that lies here changes under its name."""
    try:
        about = path.stat()
        return _parsed(kind, path, about.st_mtime_ns, about.st_size)
    except OSError:
        return None


@lru_cache(maxsize=2048)
def _parsed(kind: Any, path: Path, changed: int, size: int) -> Any:
    try:
        return value.from_json(kind, path.read_bytes(), str(path))
    except (RrmError, OSError):
        return None


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
