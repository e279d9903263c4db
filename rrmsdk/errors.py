"""Everything rrmsdk raises on purpose.

RrmError
├── RefError(ValueError)             a teacher, student or architecture that nobody knows
├── FieldError(ValueError)           a recipe, card or option with an unknown or ill-typed field
├── MismatchError(ValueError)        two values that must agree do not: classes, size, stages, threat
├── DataError(ValueError)            images or labels that cannot be used
├── HubError(ConnectionError)        the Hub could not be reached, or refused
│   └── MovedError                   what a commit was to be made upon is no longer the newest
├── EndpointError(ConnectionError)   a model server could not be reached, refused, or does not speak the protocol
├── IntegrityError(ValueError)       hash, signature, revision or schema is not what was promised
├── DivergedError(ArithmeticError)   the loss stopped being finite; `.checkpoint` is the last good one
├── OutOfMemory(MemoryError)         a training step does not fit; the message says what does
├── RankError(RuntimeError)          ranks of a run failed again and again
├── ExportError(RuntimeError)
│   └── ParityError                  the exported graph does not compute what the network computes
├── SaveError(OSError)               a file could not be written; what was there before is untouched
│   └── DiskFullError                for want of space
├── BusyError(RuntimeError)          another process works on the same job; `.pid` is its number
├── BlockedError(RuntimeError)       a run waits for something that is not there; `.on` says for what
├── SuspendedError(RuntimeError)     a job that failed in the same way again and again waits for a person
└── MissingExtraError(ImportError)   the message is the pip command
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class RrmError(Exception):
    """Base of every error rrmsdk raises on purpose."""


class RefError(RrmError, ValueError):
    """A teacher, student or architecture name could not be resolved."""


class FieldError(RrmError, ValueError):
    """A recipe, card or option has an unknown field or a value of the wrong kind."""


class MismatchError(RrmError, ValueError):
    """Two values that must agree do not; the message shows both."""


class DataError(RrmError, ValueError):
    """Images or labels are missing, truncated, not finite or out of range."""


class HubError(RrmError, ConnectionError):
    """The Hub could not be reached, or refused what was asked."""


class MovedError(HubError):
    """Somebody else pushed meanwhile; nothing was overwritten, and what was decided has to be decided again."""


class EndpointError(RrmError, ConnectionError):
    """A model server could not be reached, refused what was asked, or answered something else."""


class IntegrityError(RrmError, ValueError):
    """A file is not the one that was promised: hash, signature, revision or schema."""


class DivergedError(RrmError, ArithmeticError):
    """The loss stopped being finite. `checkpoint` is the last good one, if there was one."""

    def __init__(self, message: str, checkpoint: Path | None = None) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


class OutOfMemory(RrmError, MemoryError):
    """A training step does not fit into memory; the message says which batch does."""


class RankError(RrmError, RuntimeError):
    """Ranks of a run on several devices failed again and again; the last checkpoint is kept."""


class ExportError(RrmError, RuntimeError):
    """The network could not be exported."""


class ParityError(ExportError):
    """The exported graph and the network disagree on the same pixels."""


class SaveError(RrmError, OSError):
    """A file could not be written; what was there before is untouched."""


class DiskFullError(SaveError):
    """There is no space for a file; what was there before is untouched, and nothing half was left."""


class BusyError(RrmError, RuntimeError):
    """Another process works on the same job. `pid` is its number; None: it has not told."""

    def __init__(self, message: str, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


class BlockedError(RrmError, RuntimeError):
    """A run cannot go on for want of something, named by `on`; the same command continues once it is there."""

    def __init__(self, on: str, message: str) -> None:
        super().__init__(message)
        self.on = on


class SuspendedError(RrmError, RuntimeError):
    """A job that failed in the same way again and again; it waits for a person."""


class MissingExtraError(RrmError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, why: str) -> None:
        super().__init__(f"{why} needs the extra '{extra}': pip install 'rrmsdk[{extra}]'")
        self.extra = extra


def did_you_mean(word: object, known: Iterable[str], most: int = 4) -> str:
    """ " Did you mean 'x' or 'y'?", or all known words when none is near and they are few."""
    names = sorted(set(known))
    if close := near(word, names, most):
        return close
    if 0 < len(names) <= 12:
        return f" Known: {', '.join(names)}."
    return ""


def near(word: object, known: Iterable[str], most: int = 4) -> str:
    """ " Did you mean 'x' or 'y'?", for a message that lists all known words itself; empty when none is near."""
    close = difflib.get_close_matches(str(word), sorted(set(known)), n=most, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
