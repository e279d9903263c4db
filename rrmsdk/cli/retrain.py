"""`rrmsdk retrain`: one run of a job."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

import rrmsdk
from rrmsdk.cli.app import AsJson, Quiet, app, overrides, print_json
from rrmsdk.cli.job import CONFIG
from rrmsdk.errors import DataError, FieldError
from rrmsdk.opening import merged
from rrmsdk.schema import job as jobs
from rrmsdk.schema import value
from rrmsdk.schema.job import Job

State = Annotated[
    Path | None, typer.Option("--state", help="Where jobs are kept. Default: $RRMSDK_STATE, or ~/.local/state/rrmsdk.")
]


@app.command()
def retrain(
    job: Annotated[Path, typer.Argument(help="A job: TOML, as `rrmsdk job init` writes it.")],
    run: Annotated[str | None, typer.Option(help="Go on with this run of `rrmsdk schedule history`.")] = None,
    cause: Annotated[str | None, typer.Option(help="Why. The same one never makes a second run.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="FIELD=VALUE", help="A field of the job: judge.images=500. Repeatable."),
    ] = None,
    state: State = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make JOB's model again, and promote it if it is not worse than the champion.

    Killed at any point, the same command goes on where it was.

    Exit codes: 0 promoted, or the champion kept; 1 failed or suspended; 2 it could not begin; 64 no job that can be
    read; 75 another process works on it; 76 blocked (by the Hub, the disk, a teacher that is gone): the same command
    goes on; 77 awaiting approval.
    """
    # Told to end (a node is drained, a job is cancelled) it stops as by Ctrl-C: that is no crash of the stage.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        outcome = rrmsdk.retrain(_job(job, set_), state=state, cause=cause, run=run, quiet=quiet or as_json)
    except (FieldError, DataError) as exc:
        print(f"rrmsdk: {exc}", file=sys.stderr)
        raise typer.Exit(CONFIG) from exc
    if as_json:
        print_json(outcome.model_dump(mode="json"))
    else:
        print(outcome.summary())
    raise typer.Exit(outcome.exit_code)


def _job(path: Path, set_: list[str] | None) -> Job:
    job = jobs.read(path)
    if not set_:
        return job
    return value.parse(Job, merged(job.model_dump(mode="json", exclude_none=True), overrides(set_)), str(path))
