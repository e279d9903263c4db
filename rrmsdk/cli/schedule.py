"""`rrmsdk schedule`: many jobs, started when they are due."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from rrmsdk.cli.app import AsJson, app, print_json, print_table
from rrmsdk.cli.retrain import State
from rrmsdk.retraining import board, schedule
from rrmsdk.retraining.schedule import Ticked

schedule_app = typer.Typer(
    no_args_is_help=True,
    help="Jobs in a folder, started when they are due: by `tick`, from cron, a systemd timer or a Kubernetes CronJob, "
    "or by `run`.",
)
app.add_typer(schedule_app, name="schedule")

Jobs = Annotated[Path, typer.Option("--jobs", "-j", help="A folder of job files. Recipes belong elsewhere.")]
JOBS = Path("jobs")
Parallel = Annotated[int, typer.Option(min=1, help="So many runs at a time, of all jobs.")]
Name = Annotated[str, typer.Argument(help="The name of a job.")]


@schedule_app.command()
def tick(jobs: Jobs = JOBS, parallel: Parallel = 1, state: State = None, as_json: AsJson = False) -> None:
    """Start what is due, and what was killed; each run is a process that outlives this one.

    Exit code 1: a job could not be looked at, and the line says why; the others were.
    """
    ticked = schedule.tick(jobs, state=state, parallel=parallel)
    if as_json:
        started = [{"job": one.job, "run": one.run, "why": one.why, "pid": one.process.pid} for one in ticked.started]
        print_json({"started": started, "running": list(ticked.running), "troubles": ticked.troubles})
    else:
        _say(ticked)
    schedule.leave(ticked)
    raise typer.Exit(1 if ticked.troubles else 0)


@schedule_app.command()
def run(
    jobs: Jobs = JOBS,
    every: Annotated[float, typer.Option(min=1.0, help="Seconds between two ticks.")] = 60.0,
    parallel: Parallel = 1,
    state: State = None,
) -> None:
    """Tick until it is stopped. Runs that are going on then go on."""
    for ticked in schedule.run(jobs, state=state, parallel=parallel, every=every):
        _say(ticked)


@schedule_app.command()
def status(jobs: Jobs = JOBS, state: State = None, as_json: AsJson = False) -> None:
    """How each job stands, and when it is next due."""
    found, troubles = schedule.scheduled(jobs, state)
    rows = [board.status(one, datetime.now(UTC)) for one in found]
    if as_json:
        print_json({"jobs": rows, "troubles": troubles})
        return
    lines = []
    for row in rows:
        champion = row["champion"]["commit"][:12] if row["champion"] else ""
        working = f"{row['state']} ({row['pid']})" if row["pid"] else row["state"]
        why = row.get("trouble") or row["held"] or row["why"]
        lines.append((row["job"], row["run"] or "", working, why, champion, "\n".join(row["next"][:1])))
    print_table(("job", "run", "state", "why", "champion", "next"), lines)
    _warn(troubles)


@schedule_app.command()
def history(job: Name, jobs: Jobs = JOBS, state: State = None, as_json: AsJson = False) -> None:
    """The runs of JOB, the newest first: why they began, how they ended, and why."""
    rows = board.history(schedule.named(jobs, state, job).folder)
    if as_json:
        print_json({"job": job, "runs": rows})
        return
    heads = ("run", "begun", "cause", "state", "why")
    print_table(heads, [[row[head] for head in heads] for row in rows])


@schedule_app.command()
def logs(
    job: Name,
    run: Annotated[str | None, typer.Argument(help="As `history` names it. Default: the newest.")] = None,
    jobs: Jobs = JOBS,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """What happened in a run of JOB, and what its process printed last."""
    folder = schedule.named(jobs, state, job).folder
    events, printed = board.logs(folder, None if run is None else schedule.number_of(run))
    if as_json:
        print_json({"events": [{"at": one.at, "kind": one.kind, **one.told} for one in events], "printed": printed})
        return
    for line in board.lines(events):
        print(line)
    print(printed, end="")


@schedule_app.command()
def cancel(job: Name, jobs: Jobs = JOBS, state: State = None, as_json: AsJson = False) -> None:
    """End the unfinished run of JOB for good. The champion stays, and so does what was finished."""
    ended = schedule.cancel(schedule.named(jobs, state, job))
    _done({"job": job, "run": ended.id, "state": ended.state}, f"{job} {ended.id}: {ended.state}", as_json)


@schedule_app.command()
def approve(
    job: Name,
    run: Annotated[str | None, typer.Argument(help="Default: the newest that is awaiting or suspended.")] = None,
    jobs: Jobs = JOBS,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Say yes to what a run of JOB asks, or let a suspended one go on. It does so in a process of its own.

    The champion is looked at again: a yes is to the comparison that was shown.
    """
    started = schedule.approve(schedule.named(jobs, state, job), run)
    about = {"job": job, "run": started.run, "pid": started.process.pid}
    _done(about, f"{job} {started.run}: approved, goes on as process {started.process.pid}", as_json)
    schedule.leave(Ticked((started,), (), {}))


@schedule_app.command()
def rollback(
    job: Name,
    to: Annotated[str | None, typer.Option(help="Its commit or number. Default: the champion before.")] = None,
    jobs: Jobs = JOBS,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Make an earlier champion of JOB the champion again: servers that follow the tag swap back."""
    now = schedule.rollback(schedule.named(jobs, state, job), to)
    about = {"job": job, "commit": now.commit, "number": now.number, "digest": now.digest}
    _done(about, f"{job}: the champion is {now.commit} again", as_json)


def _say(ticked: Ticked) -> None:
    for one in ticked.started:
        print(f"{one.job} {one.run}: started as process {one.process.pid}. {one.why}", flush=True)
    _warn(ticked.troubles)


def _warn(troubles: dict[str, str]) -> None:
    for name, why in troubles.items():
        print(f"rrmsdk: {name}: {why}", file=sys.stderr, flush=True)


def _done(about: dict[str, object], says: str, as_json: bool) -> None:
    if as_json:
        print_json(about)
    else:
        print(says)
