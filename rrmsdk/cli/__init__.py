"""The verbs for a shell. Errors of rrmsdk are one line on stderr and exit code 2; `--json` prints for programs."""

from __future__ import annotations

import os
import re
import sys
from typing import Any, NoReturn

import typer
from typer.models import CommandInfo

from rrmsdk.cli import gc, hub, job, retrain, runs, schedule, serve, signing, study, watching, zoo
from rrmsdk.cli.app import app, overrides
from rrmsdk.errors import BusyError, RrmError, near

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

USAGE: Any = typer.BadParameter.__base__  # all that is typed wrongly; typer has no public name for it
STOPPED = 130  # what typer makes of Ctrl-C
BUSY = 75  # EX_TEMPFAIL of sysexits.h: the same command may do later


def main() -> NoReturn:
    """Run the command line; a foreseen error is one line and exit code 2 (75: the job is busy), Ctrl-C is 130."""
    # Before torch is imported: its idle threads spin by default, and take the cores that other processes need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = app(standalone_mode=False)
    except RrmError as exc:
        print(f"rrmsdk: {exc}", file=sys.stderr)
        sys.exit(BUSY if isinstance(exc, BusyError) else 2)
    except USAGE as exc:
        if told := _meant(exc):
            print(f"rrmsdk: {told}", file=sys.stderr)
        sys.exit(exc.exit_code)
    if code == STOPPED:
        print("rrmsdk: stopped. What was finished is kept; the same command continues.", file=sys.stderr)
    sys.exit(code)


def _meant(exc: Any) -> str:
    """What typer complains of in one line, as our own errors are told; empty where it has shown the help instead."""
    if type(exc).__name__ == "NoArgsIsHelpError":
        return ""
    says = exc.format_message().replace("Value error, ", "")
    if choice := re.search(r"'([^']*)' is not one of (.+)", says):
        says += near(choice[1], re.findall(r"'([^']+)'", choice[2]))
    elif getattr(exc, "possibilities", None):
        says = f"{exc.message}.{near(exc.option_name, exc.possibilities)}"
    ended = says if says.endswith((".", "?")) else f"{says}."
    return f"{ended} Type {exc.ctx.command_path} -h" if exc.ctx else ended
