"""Many jobs at once: what is due is started, what was killed goes on, each in a process of its own.

Nothing is kept but what the jobs' journals hold, so it does not matter who ticks, or how often: cron, a systemd timer,
a Kubernetes CronJob, or `run` below.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rrmsdk import files
from rrmsdk.errors import BusyError, MismatchError, RrmError, did_you_mean
from rrmsdk.retraining import approval as approvals
from rrmsdk.retraining import journal as journals
from rrmsdk.retraining.announce import announce
from rrmsdk.retraining.due import due, held, learns
from rrmsdk.retraining.journal import Journal, Run
from rrmsdk.retraining.lock import hold
from rrmsdk.retraining.observe import observe
from rrmsdk.retraining.room import RUNS, STATE, root
from rrmsdk.schema import job as jobs
from rrmsdk.schema import value
from rrmsdk.schema.cause import Cause, Observed, Past
from rrmsdk.schema.job import Job

if TYPE_CHECKING:
    from rrmsdk.hub.promote import Champion

STARTED, LOG, STARTING = "started", "log", "starting"
CHAMPION, JUDGED = "champion", "judged-again"
ON_ITS_WAY = 60.0  # seconds that a process may take before it holds its job
STILLBORN = 3  # processes in a row that did nothing
WAIT, LONGEST = 60.0, 3600.0  # seconds before a blocked run is tried again, doubled each time
HURRY = 60.0  # seconds that a rollback asks a Hub that is down
PATIENCE = 30.0  # seconds between asking a process to end and ending it


@dataclass(frozen=True)
class Scheduled:
    """A job's file and its folder."""

    path: Path
    job: Job
    folder: Path


@dataclass(frozen=True)
class Started:
    """A run that has a process now."""

    job: str
    run: str
    why: str
    process: subprocess.Popen[bytes]


class Looked(NamedTuple):
    """What a look at one job came to: a process that was started, and what is not right."""

    started: Started | None
    troubles: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ticked:
    """What a look at all jobs came to. `troubles`: files and jobs that could not be looked at, and why."""

    started: tuple[Started, ...]
    running: tuple[str, ...]
    troubles: dict[str, str]


def scheduled(folder: Path, state: Path | None) -> tuple[tuple[Scheduled, ...], dict[str, str]]:
    """The jobs in a folder's TOML files, and which files hold none, or one of a name that is taken.

    Raises:
        MismatchError: there is no such folder.
    """
    if not folder.is_dir():
        raise MismatchError(f"there is no folder {folder}. Give --jobs, a folder of job files (rrmsdk job init)")
    found: dict[str, Scheduled] = {}
    troubles: dict[str, str] = {}
    for path in sorted(folder.glob("*.toml")):
        try:
            job = jobs.read(path)
        except RrmError as exc:
            troubles[path.name] = str(exc)
            continue
        if job.name in found:
            troubles[path.name] = f"'{job.name}' is the name of {found[job.name].path.name} already"
        else:
            found[job.name] = Scheduled(path, job, root(state) / job.name)
    return tuple(found.values()), troubles


def named(folder: Path, state: Path | None, name: str) -> Scheduled:
    """The job of that name. Raises MismatchError: there is none, or its file cannot be read."""
    found, troubles = scheduled(folder, state)
    job = next((one for one in found if one.job.name == name), None)
    if job is None:
        unread = "".join(f" {file} was not read: {why}." for file, why in troubles.items())
        raise MismatchError(
            f"no job in {folder} is '{name}'.{did_you_mean(name, [one.job.name for one in found])}{unread}"
        )
    return job


def tick(folder: Path, *, state: Path | None = None, parallel: int = 1, now: datetime | None = None) -> Ticked:
    """Start what is due or was killed, where fewer than `parallel` runs are going on.

    Raises:
        MismatchError: there is no such folder.
    """
    found, troubles = scheduled(folder, state)
    found = tuple(sorted(found, key=_last_touched))  # whoever waits longest is first
    running = tuple(one.job.name for one in found if pid_of(one.folder) is not None or _on_its_way(one.folder))
    started: list[Started] = []
    for one in found:
        if len(running) + len(started) >= parallel:
            break
        if one.job.name in running:
            continue
        try:
            looked = _look(one, now or datetime.now(UTC))
        except (RrmError, OSError) as exc:
            troubles[one.job.name] = str(exc)
            continue
        started += [looked.started] if looked.started else []
        if looked.troubles:
            troubles[one.job.name] = "; ".join(looked.troubles)
    return Ticked(tuple(started), running, troubles)


def run(folder: Path, *, state: Path | None = None, parallel: int = 1, every: float = 60.0) -> Iterator[Ticked]:
    """Tick for ever, `every` so many seconds. Runs that it has started go on when it ends."""
    processes: list[subprocess.Popen[bytes]] = []
    while True:
        begun = time.monotonic()
        ticked = tick(folder, state=state, parallel=parallel)
        yield ticked
        processes = [one for one in (*processes, *(s.process for s in ticked.started)) if one.poll() is None]
        time.sleep(max(0.0, every - (time.monotonic() - begun)))


def pid_of(folder: Path) -> int | None:
    """The process that works on a job now; 0: it has not told its number."""
    if not folder.is_dir():
        return None
    try:
        with hold(folder):
            return None
    except BusyError as exc:
        return exc.pid or 0


def _on_its_way(folder: Path) -> bool:
    """Whether a process was started a moment ago that does not hold the job yet."""
    try:
        age = time.time() - (folder / STARTING).stat().st_mtime
        os.kill(int((folder / STARTING).read_text()), 0)
    except (OSError, ValueError):
        return False
    return 0 <= age < ON_ITS_WAY


def start(one: Scheduled, kept: Journal, run: Run, why: str) -> Started:
    """A process for a run, which outlives this one; what it prints is in the run's `log`."""
    place = one.folder / RUNS / run.id
    place.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "rrmsdk", "retrain", str(one.path.resolve()), "--run", run.id, "--quiet"]
    environment = os.environ | {STATE: str(one.folder.parent.resolve())}
    kept.note(run.number, STARTED, why=why)
    with (place / LOG).open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    files.write_text(one.folder / STARTING, str(process.pid))
    return Started(one.job.name, run.id, why, process)


def cancel(one: Scheduled) -> Run:
    """End the process that works on a job, if there is one, and for good its run, or else the newest unfinished one.

    Raises:
        MismatchError: nothing is unfinished.
        BusyError: the process does not end.
    """
    if pid := pid_of(one.folder):
        _end(one.folder, pid)
    with hold(one.folder), journals.opened(one.folder) as kept:
        left = kept.runs("running") or kept.runs(*journals.UNFINISHED)
        if not left:
            raise MismatchError(f"no run of {one.job.name} is unfinished: there is nothing to cancel")
        kept.end(left[0].number, "cancelled", "by a person")
        return kept.run(left[0].number)


def approve(one: Scheduled, run: str | None) -> Started:
    """Say yes to what a run asks, or let one that is suspended go on, in a process of its own.

    Args:
        run: None: the newest that is awaiting or suspended.

    Raises:
        MismatchError: it asks nothing.
        BusyError: another run is going on.
    """
    with hold(one.folder), journals.opened(one.folder) as kept:
        asking = kept.runs("awaiting", "suspended")[:1] if run is None else (kept.run(number_of(run)),)
        if not asking:
            raise MismatchError(f"no run of {one.job.name} is awaiting approval or suspended")
        approvals.approve(kept, asking[0])
        return start(one, kept, kept.begin(asking[0].cause), "approved")


def rollback(one: Scheduled, to: str | None) -> Champion:
    """Raises as `rrmsdk.retraining.push.rollback`. It waits for no run that is going on."""
    from rrmsdk.hub.patient import Patience
    from rrmsdk.retraining import push  # the Hub's client is slow to import, and large

    with journals.opened(one.folder) as kept:
        return push.rollback(one.job, kept, to, endpoint=None, patience=Patience(whole=HURRY))


def leave(ticked: Ticked) -> None:
    """This process ends, those that it started do not: nobody is to be warned of that."""
    for one in ticked.started:
        one.process.returncode = 0


def number_of(run: str) -> int:
    """Raises MismatchError: not the name of a run."""
    if not run.isdecimal():
        raise MismatchError(
            f"'{run}' names no run: those are numbers such as 000012. rrmsdk schedule history lists them"
        )
    return int(run)


def _end(folder: Path, pid: int) -> None:
    """Ask, wait, insist. Nothing is lost by it: a run is made to be killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if pid_of(folder) != pid:
                return
            time.sleep(0.05)


def _look(one: Scheduled, now: datetime) -> Looked:
    """Start what a job has to do."""
    with hold(one.folder), journals.opened(one.folder) as kept:
        if run := next(iter(kept.runs("running")), None):
            return _again(one, kept, run)
        seen, past = _seen(kept), past_of(kept)
        said: tuple[str, ...] = ()
        if held(one.job, past, now) is None:
            digest, suite = _champion(kept)
            found = observe(one.job, since=seen, champion=digest, champion_suite=suite)
            said = tuple(str(trouble) for trouble in found.troubles)
            for cause in due(one.job, past, found.observed, now)[:1]:
                begun = _begun(one.job, kept, cause, past, found.observed)
                return Looked(start(one, kept, begun, cause.says), said)
        for run in kept.runs()[:1]:
            if run.state == "blocked" and _waited(kept, run, now):
                again = start(one, kept, kept.begin(run.cause), f"again: it was blocked by {run.why}")
                return Looked(again, said)
    return Looked(None, said)


def _again(one: Scheduled, kept: Journal, run: Run) -> Looked:
    """A run that nobody works on: its process was killed."""
    last = kept.events(run.number)[-STILLBORN:]
    if len(last) == STILLBORN and all(event.kind == STARTED for event in last):
        why = f"its process ended {STILLBORN} times before it did anything: rrmsdk schedule logs {one.job.name}"
        kept.end(run.number, "suspended", why)
        told = {"job": one.job.name, "run": run.id, "cause": run.cause, "state": "suspended", "why": why}
        announce(one.job, kept, run.number, told)
        return Looked(None, (why,))
    return Looked(start(one, kept, run, "it was not finished"))


def _begun(job: Job, kept: Journal, cause: Cause, past: tuple[Past, ...], observed: Observed) -> Run:
    """The run of a cause, with what was looked at; a proposal names the commits that it is about."""
    teachers = observed.teachers if cause.kind == "teacher" else {}
    if cause.kind != "teacher":
        observed = learns(job, past, observed)
    return kept.begin(
        cause.key, kind=cause.kind, says=cause.says, propose=cause.propose, teachers=teachers,
        observed=observed.model_dump(mode="json"),
    )  # fmt: skip


def _seen(kept: Journal) -> datetime:
    """When the job was first looked at; slots before that were not missed."""
    for event in kept.events(kind="seen"):
        return datetime.fromtimestamp(event.at, UTC)
    kept.note(None, "seen")
    return _seen(kept)


def past_of(kept: Journal) -> tuple[Past, ...]:
    """The runs of a job, the earliest first. Raises FieldError: another rrmsdk has written what they saw."""
    observed = {event.run: event.told.get("observed", {}) for event in kept.events(kind="begun")}
    waited = _waits(kept)
    return tuple(
        Past(
            key=run.cause, state=run.state, began=datetime.fromtimestamp(run.begun, UTC),
            ended=None if run.ended is None else datetime.fromtimestamp(run.ended, UTC),
            waited=tuple(waited.get(run.number, ())),
            observed=value.parse(Observed, observed.get(run.number, {}), f"{kept.path}, run {run.id}"),
        )
        for run in reversed(kept.runs())
    )  # fmt: skip


def _waits(kept: Journal) -> dict[int | None, list[tuple[datetime, datetime]]]:
    """Run -> from when to when it was left blocked, awaiting or suspended before it went on."""
    kinds = ("awaiting", "blocked", "suspended", "continued", "resumed")
    events = sorted((event for kind in kinds for event in kept.events(kind=kind)), key=lambda event: event.number)
    since: dict[int | None, datetime] = {}
    found: dict[int | None, list[tuple[datetime, datetime]]] = {}
    for event in events:
        at = datetime.fromtimestamp(event.at, UTC)
        if event.kind not in ("continued", "resumed"):
            since[event.run] = at
        elif event.run in since:
            found.setdefault(event.run, []).append((since.pop(event.run), at))
    return found


def _champion(kept: Journal) -> tuple[str | None, str | None]:
    """Its digest, and by which attacks it was last judged."""
    crowned = kept.events(kind=CHAMPION)[-1:]
    judged = [event for kind in (CHAMPION, JUDGED) for event in kept.events(kind=kind) if event.told.get("suite")]
    last = max(judged, key=lambda event: event.number, default=None)
    return (crowned[0].told.get("digest") if crowned else None), last and last.told["suite"]


def _waited(kept: Journal, run: Run, now: datetime) -> bool:
    times = sum(event.kind == "blocked" for event in kept.events(run.number))
    doubled = 2 ** min(times - 1, 16)  # no float holds those of a run that has been blocked for six weeks
    return now.timestamp() - (run.ended or 0.0) >= min(LONGEST, WAIT * doubled)


def _last_touched(one: Scheduled) -> float:
    try:
        return (one.folder / journals.FILE).stat().st_mtime
    except OSError:
        return 0.0
