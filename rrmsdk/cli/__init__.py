"""The verbs for a shell. Errors of rrmsdk are one line on stderr and exit code 2; `--json` prints for programs."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from typer.models import CommandInfo

from rrmsdk.cli import gc, hub, job, retrain, runs, schedule, serve, signing, study, watching, zoo
from rrmsdk.cli.app import app, overrides
from rrmsdk.errors import BusyError, RrmError

__all__ = [
    "app",
    "gc",
    "hub",
    "job",
    "main",
    "overrides",
    "retrain",
    "runs",
    "schedule",
    "serve",
    "signing",
    "study",
    "watching",
    "zoo",
]

# As the help lists them: in the order in which they are wanted, and the others after them.
FIRST = ("quickstart", "transfer", "verify", "export", "push", "pull", "serve", "retrain", "report", "train", "sweep")


def _place(command: CommandInfo) -> int:
    name = command.name or getattr(command.callback, "__name__", "")
    return FIRST.index(name) if name in FIRST else len(FIRST)


app.registered_commands.sort(key=_place)

STOPPED = 130  # what typer makes of Ctrl-C
BUSY = 75  # EX_TEMPFAIL of sysexits.h: the same command may do later


def main() -> NoReturn:
    """Run the command line; a foreseen error is one line and exit code 2 (75: the job is busy), Ctrl-C is 130."""
    # Before torch is imported: its idle threads spin by default, and take the cores that other processes need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except RrmError as exc:
        print(f"rrmsdk: {exc}", file=sys.stderr)
        sys.exit(BUSY if isinstance(exc, BusyError) else 2)
    except SystemExit as exc:
        if exc.code == STOPPED:
            print("rrmsdk: stopped. What was finished is kept; the same command continues.", file=sys.stderr)
        raise
    sys.exit(0)
