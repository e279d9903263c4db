"""Making room where jobs ran."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rrmsdk.cli.app import AsJson, app, print_json
from rrmsdk.errors import BusyError, FieldError
from rrmsdk.retraining.collect import Collected, collect, jobs
from rrmsdk.retraining.room import entered


@app.command()
def gc(
    job: Annotated[str | None, typer.Argument(help="The name of a job. Default: all jobs.")] = None,
    keep: Annotated[
        int | None,
        typer.Option(
            min=1, help="So many of a job's newest promoted runs stay. Default: the champion and push.keep before it."
        ),
    ] = None,
    pin: Annotated[int | None, typer.Option(metavar="RUN", help="Keep this run of JOB for ever.")] = None,
    unpin: Annotated[int | None, typer.Option(metavar="RUN", help="Do not keep it for ever.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would go, and remove nothing.")] = False,
    state: Annotated[
        Path | None,
        typer.Option(help="Folder of all jobs. Default: $RRMSDK_STATE or ~/.local/state/rrmsdk."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Remove what old runs of jobs left: not the newest promoted, the champion, what is pinned or not over."""
    folders = jobs(job, state)
    if job is None and (pin, unpin) != (None, None):
        raise FieldError("--pin and --unpin need the job whose run it is: rrmsdk gc JOB --pin RUN")
    for run, why in ((pin, "by hand"), (unpin, None)):
        if run is not None:
            with entered(folders[0]) as room:
                room.journal.pin(run, why)
    found, busy = [], None
    for folder in folders:
        try:
            found.append(collect(folder, keep=keep, dry_run=dry_run))
        except BusyError as exc:  # room is made in the others all the same
            busy = exc
    if as_json:
        print_json({"dry_run": dry_run, "jobs": [asdict(one) for one in found]})
    else:
        for one in found:
            print(_said(one, dry_run))
    if busy is not None:
        raise busy


def _said(one: Collected, dry_run: bool) -> str:
    would = "would be removed" if dry_run else "removed"
    return f"{one.job}: {len(one.objects)} objects and the folders of {len(one.runs)} runs {would}, {one.bytes:,} bytes"
