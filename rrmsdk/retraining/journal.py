"""What happened in a job, in one SQLite file that survives a kill at any moment.

Runs are numbered in the order in which they began; the clock, which may go backwards, is only told.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rrmsdk.errors import DiskFullError, IntegrityError, MismatchError, SaveError, SuspendedError
from rrmsdk.retraining.objects import SPARE, full

State = Literal["running", "promoted", "kept", "awaiting", "blocked", "failed", "suspended", "cancelled"]
# A run in one of these goes on when it is begun again.
UNFINISHED: tuple[State, ...] = ("running", "awaiting", "blocked")

FILE, VERSION = "journal.sqlite", 1
CRASHES = 3  # in the same way at the same place
DIED = "died"  # without a word: killed, out of memory, a power cut
STOPPED = "stopped"  # by a person or for want of a Hub or of space: never counted
WAIT = 10.0  # seconds for another process that writes
_UNWRITTEN = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)

_TABLES = f"""
CREATE TABLE run (
  number INTEGER PRIMARY KEY, cause TEXT NOT NULL UNIQUE, state TEXT NOT NULL CHECK (state IN {get_args(State)}),
  why TEXT NOT NULL, begun REAL NOT NULL, ended REAL, pin TEXT
) STRICT;
CREATE TABLE stage (
  name TEXT, key TEXT, output TEXT NOT NULL, seconds REAL NOT NULL, PRIMARY KEY (name, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE output (
  run INTEGER REFERENCES run, name TEXT, digest TEXT NOT NULL, PRIMARY KEY (run, name)
) STRICT;
CREATE TABLE attempt (
  number INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES run, name TEXT NOT NULL, key TEXT NOT NULL,
  progress TEXT NOT NULL, signature TEXT
) STRICT;
CREATE TABLE event (
  number INTEGER PRIMARY KEY, run INTEGER REFERENCES run, at REAL NOT NULL, kind TEXT NOT NULL, told TEXT NOT NULL
) STRICT;
"""


@dataclass(frozen=True)
class Run:
    """One run of a job. `cause` is its idempotency key: the same cause never makes a second run.

    pin: why it must not be removed; None: it may be.
    begun, ended: seconds since 1970, as the clock said; None: not over.
    """

    number: int
    cause: str
    state: State
    why: str
    begun: float
    ended: float | None
    pin: str | None

    @property
    def id(self) -> str:
        return f"{self.number:06d}"


@dataclass(frozen=True)
class Event:
    """Something that happened; `run` is a number, None: to the job as a whole."""

    number: int
    run: int | None
    at: float
    kind: str
    told: dict[str, Any]


@dataclass(frozen=True)
class Journal:
    """Use `opened`. Whoever writes holds the job's lock; anybody may read meanwhile."""

    path: Path
    base: sqlite3.Connection

    # Runs

    def begin(self, cause: str, **told: Any) -> Run:
        """The run of this cause: a new one, or the one that it already has, which goes on unless it is over."""
        with self._writing() as base:
            fresh = base.execute(
                "INSERT OR IGNORE INTO run (cause, state, why, begun) VALUES (?, 'running', '', ?)",
                (cause, time.time()),
            )
            run = self.of(cause)
            assert run is not None
            if fresh.rowcount:
                self._note(run.number, "begun", {"cause": cause} | told)
            elif run.state in UNFINISHED:
                base.execute("UPDATE run SET state = 'running', why = '', ended = NULL WHERE number = ?", (run.number,))
                self._note(run.number, "continued", {"was": run.state} | told)
        return self.run(run.number)

    def end(self, run: int, state: State, why: str = "", **told: Any) -> None:
        """Where a run stands now, and why; every state but `running` gives it an end."""
        with self._writing() as base:
            ended = None if state == "running" else time.time()
            base.execute("UPDATE run SET state = ?, why = ?, ended = ? WHERE number = ?", (state, why, ended, run))
            self._note(run, state, {"why": why} | told)

    def resume(self, run: int) -> None:
        """A person looked into it: a run that was suspended or failed goes on, and its crashes count from zero."""
        with self._writing() as base:
            base.execute("UPDATE run SET state = 'running', why = '', ended = NULL WHERE number = ?", (run,))
            base.execute("UPDATE attempt SET signature = ? WHERE run = ?", (STOPPED, run))
            self._note(run, "resumed", {})

    def pin(self, run: int, why: str | None) -> None:
        """Keep a run and what it made for ever; None: let it go."""
        self.run(run)
        with self._writing() as base:
            base.execute("UPDATE run SET pin = ? WHERE number = ?", (why, run))
            self._note(run, "unpinned" if why is None else "pinned", {"why": why or ""})

    def crown(self, run: int, **told: Any) -> None:
        """What a run made is what servers follow from now on, by a promotion or a rollback."""
        self.note(run, "champion", **told)

    def champion(self) -> int | None:
        """The run whose model servers follow, as far as is known here."""
        with self._reading() as base:
            row = base.execute("SELECT run FROM event WHERE kind = 'champion' ORDER BY number DESC LIMIT 1").fetchone()
        return row and row[0]

    def run(self, number: int) -> Run:
        """Raises MismatchError: there is none."""
        found = self._runs("WHERE number = ?", number)
        if not found:
            raise MismatchError(f"{self.path.parent.name} has no run {number:06d}: rrmsdk schedule history lists them")
        return found[0]

    def of(self, cause: str) -> Run | None:
        """The run of a cause."""
        return next(iter(self._runs("WHERE cause = ?", cause)), None)

    def runs(self, *states: State) -> tuple[Run, ...]:
        """All runs, or those in such a state; the newest first."""
        marks = ", ".join("?" * len(states))
        return self._runs(f"WHERE state IN ({marks})" if states else "", *states)

    def _runs(self, where: str, *values: Any) -> tuple[Run, ...]:
        order = "number, cause, state, why, begun, ended, pin"
        with self._reading() as base:
            return tuple(Run(*row) for row in base.execute(f"SELECT {order} FROM run {where} ORDER BY 1 DESC", values))

    # Stages

    def made(self, name: str, key: str) -> str | None:
        """The digest of what this stage made of these inputs, in whichever run; None: it was never finished."""
        with self._reading() as base:
            row = base.execute("SELECT output FROM stage WHERE name = ? AND key = ?", (name, key)).fetchone()
        return row and row[0]

    def attempt(self, run: int, name: str, key: str, progress: str = "") -> int:
        """A stage is about to be worked on; gives the number of the attempt.

        Args:
            progress: how far earlier attempts came, such as the step of a checkpoint: a death here and one further on
                are not the same.

        Raises:
            SuspendedError: it crashed CRASHES times in the same way.
        """
        with self._writing() as base:
            # Whoever holds the lock knows that the attempts of before are over.
            base.execute("UPDATE attempt SET signature = ? WHERE signature IS NULL", (DIED,))
            before = base.execute(
                "SELECT progress, signature FROM attempt WHERE run = ? AND name = ? AND key = ? ORDER BY number DESC",
                (run, name, key),
            ).fetchall()
            times, signature = _same(before)
            if times >= CRASHES and before[0][0] == progress:
                raise SuspendedError(
                    f"{name} of run {run:06d} crashed {times} times in the same way ({signature}). Look into it: "
                    "rrmsdk schedule logs"
                )
            row = "INSERT INTO attempt (run, name, key, progress) VALUES (?, ?, ?, ?)"
            number = base.execute(row, (run, name, key, progress)).lastrowid
            self._note(run, "attempt", {"stage": name, "key": key, "progress": progress})
        assert number is not None
        return number

    def done(self, attempt: int, output: str, seconds: float) -> None:
        """The attempt ended well: its stage is never worked on again for the same inputs."""
        with self._writing() as base:
            run, name, key = self._attempted(attempt)
            base.execute("INSERT INTO stage VALUES (?, ?, ?, ?)", (name, key, output, seconds))
            base.execute("DELETE FROM attempt WHERE run = ? AND name = ? AND key = ?", (run, name, key))
            base.execute("INSERT OR REPLACE INTO output VALUES (?, ?, ?)", (run, name, output))
            self._note(run, "done", {"stage": name, "output": output, "seconds": round(seconds, 3)})

    def crashed(self, attempt: int, signature: str, **told: Any) -> None:
        """The attempt ended badly; `signature` says how, in words that are equal when the reason is (or STOPPED)."""
        with self._writing() as base:
            run, name, _ = self._attempted(attempt)
            base.execute("UPDATE attempt SET signature = ? WHERE number = ?", (signature, attempt))
            self._note(run, "crashed", {"stage": name, "signature": signature} | told)

    def reused(self, run: int, name: str, output: str) -> None:
        """A run took what an earlier one had made."""
        with self._writing() as base:
            base.execute("INSERT OR REPLACE INTO output VALUES (?, ?, ?)", (run, name, output))
            self._note(run, "reused", {"stage": name, "output": output})

    def lost(self, run: int, name: str, key: str) -> None:
        """What a stage had made is no longer there as it was: the stage counts as never finished."""
        with self._writing() as base:
            base.execute("DELETE FROM stage WHERE name = ? AND key = ?", (name, key))
            self._note(run, "lost", {"stage": name, "key": key})

    def outputs(self, run: int) -> dict[str, str]:
        """Stage -> digest of what a run made or took."""
        with self._reading() as base:
            return dict(base.execute("SELECT name, digest FROM output WHERE run = ? ORDER BY rowid", (run,)))

    def forget(self, digests: set[str]) -> None:
        """What is about to be removed counts as never made."""
        with self._writing() as base:
            base.executemany("DELETE FROM stage WHERE output = ?", [(digest,) for digest in sorted(digests)])

    def _attempted(self, attempt: int) -> tuple[int, str, str]:
        return self.base.execute("SELECT run, name, key FROM attempt WHERE number = ?", (attempt,)).fetchone()

    # Events

    def note(self, run: int | None, kind: str, **told: Any) -> None:
        """Keep something to be read later: JSON values."""
        with self._writing():
            self._note(run, kind, told)

    def events(self, run: int | None = None, *, kind: str | None = None) -> tuple[Event, ...]:
        """What happened, in a run or in all; the oldest first."""
        asked = [(column, given) for column, given in (("run", run), ("kind", kind)) if given is not None]
        where = " AND ".join(f"{column} = ?" for column, _ in asked) or "TRUE"
        ask = f"SELECT number, run, at, kind, told FROM event WHERE {where} ORDER BY number"
        with self._reading() as base:
            rows = base.execute(ask, [given for _, given in asked]).fetchall()
        return tuple(Event(number, of, at, kind, json.loads(told)) for number, of, at, kind, told in rows)

    def _note(self, run: int | None, kind: str, told: dict[str, Any]) -> None:
        text = json.dumps(told, allow_nan=False)
        self.base.execute("INSERT INTO event (run, at, kind, told) VALUES (?, ?, ?, ?)", (run, time.time(), kind, text))

    # The base

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, which is on the disk when the block has ended."""
        with _in_our_words(self.path):
            self.base.execute("BEGIN IMMEDIATE")
            try:
                yield self.base
                self.base.execute("COMMIT")
            except BaseException:
                if self.base.in_transaction:
                    self.base.execute("ROLLBACK")
                raise

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with _in_our_words(self.path):
            yield self.base


@contextmanager
def opened(folder: Path) -> Iterator[Journal]:
    """The journal in a job's folder, made where there is none.

    Raises:
        IntegrityError: damaged, or of a newer rrmsdk.
        DiskFullError, SaveError: it cannot be written.
    """
    path = folder / FILE
    with _in_our_words(path):
        folder.mkdir(parents=True, exist_ok=True)
        base = sqlite3.connect(path, timeout=WAIT, isolation_level=None)
    with closing(base):
        journal = Journal(path, base)
        with _in_our_words(path):
            _settle(journal)
        yield journal


@contextmanager
def reading(folder: Path) -> Iterator[Journal]:
    """The journal in a job's folder, for whoever only looks: nothing is made, and no writer waits for it.

    Raises:
        MismatchError: there is none yet.
        IntegrityError: damaged, or of a newer rrmsdk.
    """
    path = folder / FILE
    if not path.is_file():
        raise MismatchError(f"{folder.name} has no journal yet: no run of it has begun in {folder.parent}")
    with _in_our_words(path):
        base = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=WAIT, isolation_level=None)
    with closing(base):
        with _in_our_words(path):
            version = base.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and path.stat().st_size == 0:  # its first writer has just begun
            raise MismatchError(f"{folder.name} has no journal yet: it is being made")
        _known(path, version)
        yield Journal(path, base)


def _settle(journal: Journal) -> None:
    base = journal.base
    base.execute("PRAGMA journal_mode = WAL")
    base.execute("PRAGMA synchronous = FULL")
    base.execute("PRAGMA foreign_keys = ON")
    if base.execute("PRAGMA user_version").fetchone()[0] == 0:
        with journal._writing():
            if base.execute("PRAGMA user_version").fetchone()[0] == 0:  # nobody was faster
                for statement in _TABLES.split(";\n"):
                    base.execute(statement)
                base.execute(f"PRAGMA user_version = {VERSION}")
    _known(journal.path, base.execute("PRAGMA user_version").fetchone()[0])


def _known(path: Path, version: int) -> None:
    if version != VERSION:
        raise IntegrityError(f"{path} has version {version}; this rrmsdk reads {VERSION}. Upgrade rrmsdk")


def signature(exc: BaseException) -> str:
    """How an attempt crashed, in words that are equal when the reason is: numbers and addresses are left out."""
    line = next(iter(str(exc).splitlines()), "")
    return f"{type(exc).__name__}: {re.sub(r'0x[0-9a-f]+|[0-9]+', '#', line)[:200]}"


def _same(attempts: list[tuple[str, str]]) -> tuple[int, str]:
    """How many of the last attempts, newest first, ended alike, and how."""
    times = next((n for n, ended in enumerate(attempts) if ended != attempts[0]), len(attempts))
    if not attempts or attempts[0][1] == STOPPED:
        return 0, STOPPED
    return times, attempts[0][1]


@contextmanager
def _in_our_words(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
        # SQLite has no word of its own for an index (-shm) or a journal that does not fit.
        if code == sqlite3.SQLITE_FULL or (code in _UNWRITTEN and shutil.disk_usage(path.parent).free < SPARE):
            raise DiskFullError(f"the disk of {path} is full. Make room; the same command then continues") from exc
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise IntegrityError(f"{path} is damaged ({exc}). Move it away: the job then begins anew") from exc
        raise SaveError(f"could not write {path}: {exc}") from exc
    except OSError as exc:
        if isinstance(exc, SaveError):
            raise
        kind = DiskFullError if full(exc) else SaveError
        raise kind(f"could not write {path}: {exc.strerror or exc}") from exc
