"""`rrmsdk schedule ui` and `show`: what jobs did, for the eye and for programs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from rrmsdk.cli.app import AsJson, print_json
from rrmsdk.cli.retrain import State
from rrmsdk.cli.schedule import JOBS, Jobs, Name, schedule_app
from rrmsdk.errors import MissingExtraError
from rrmsdk.retraining import record, schedule

_PACKAGES = ("starlette", "uvicorn", "httptools", "orjson")


@schedule_app.command()
def ui(
    jobs: Jobs = JOBS,
    state: State = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 for everybody; then --token-file is wanted.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8081,
    token_file: Annotated[Path | None, typer.Option(help="Tokens of those who may look, one a line.")] = None,
) -> None:
    """A page with all jobs: runs, decisions, champion against challengers over time. It only reads; Ctrl-C ends it."""
    if any(find_spec(package) is None for package in _PACKAGES):
        raise MissingExtraError("serve", "rrmsdk schedule ui")
    from rrmsdk.retraining.watching import watch

    watch(jobs, state=state, host=host, port=port, token_file=token_file)


@schedule_app.command()
def show(
    job: Name,
    run: Annotated[str, typer.Argument(help="As `history` names it.")],
    jobs: Jobs = JOBS,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """The record of one run of JOB: why, what each stage made (by digest), what was decided, and how it ended."""
    told = record.run(jobs, state, job, schedule.number_of(run))
    if as_json:
        print_json(told)
        return
    print(
        f"{job} {told['run']}: {told['state']}. {told['why']}\nbegan {told['begun']}: {told['says'] or told['cause']}"
    )
    for stage in told["stages"]:
        seconds = "" if stage["seconds"] is None else f"{stage['seconds']:.1f} s"
        print(f"{stage['stage']:16} {stage['state']:8} {seconds:>10}  {stage['digest'] or ''}".rstrip())
    for decision in told["decisions"]:
        print(f"{decision['verdict']}: {decision['says']}")
        for check in decision["checks"]:
            print(f"  {'ok  ' if check['passed'] else 'FAIL'}  {check['name']}: {check['says']}")
    if told["commit"]:
        print(f"promoted as {told['commit']}")
