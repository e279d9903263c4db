"""Verbs about job files: begin one, check it, say what it would do."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from rrmsdk import files
from rrmsdk.cli.app import AsJson, app, print_json
from rrmsdk.errors import FieldError, MissingExtraError, RrmError
from rrmsdk.schema import job as jobs
from rrmsdk.schema.bundle import WEIGHTS
from rrmsdk.schema.job import Job

CONFIG = 64  # EX_USAGE of sysexits.h; what a scheduler need not try again

job_app = typer.Typer(no_args_is_help=True, help="Job files of `rrmsdk retrain`: init, check, explain, schema.")
app.add_typer(job_app, name="job")

File = Annotated[Path, typer.Argument(help="A job: TOML.")]


@job_app.command()
def init(
    file: Annotated[Path, typer.Argument(help="The file to write; must not be there.")] = Path("job.toml"),
    as_json: AsJson = False,
) -> None:
    """Write a job to begin with, every field explained in it."""
    from rrmsdk import retraining

    if file.exists():
        raise FieldError(f"{file} is there already. Name another file, or type rrmsdk job check {file}")
    files.write_text(file, (Path(retraining.__file__).parent / "template.toml").read_text(encoding="utf-8"))
    if as_json:
        print_json({"path": str(file)})
    else:
        print(f"{file}  Edit it, then: rrmsdk job check {file}, rrmsdk job explain {file}")


@job_app.command()
def check(
    file: File,
    online: Annotated[
        bool, typer.Option("--online", help="Also look up what it names: teachers, data, servers, secrets.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Is FILE a job that could run? Exit code 64: no, and the line says why; 2: --online could not reach something."""
    job = valid(file)
    found = _looked_up(job) if online else {}
    if as_json:
        print_json({"path": str(file), "name": job.name, "digest": job.digest, "found": found})
        return
    print(f"{file}  {job.name} is a job. sha256 {job.digest}")
    for name, what in found.items():
        print(f"  {name}: {what}")


@job_app.command()
def explain(file: File, as_json: AsJson = False) -> None:
    """Say what FILE would do: what starts it, when, what it makes, what it promotes, and where that goes.

    Exit code 64: it is no job that could run.
    """
    from rrmsdk.retraining.explain import explained, next_slots

    job, now = valid(file), datetime.now(UTC)
    about, upcoming = explained(job), next_slots(job, now)
    if as_json:
        print_json({"name": job.name, "digest": job.digest, "slots": upcoming} | about)
        return
    print(f"{job.name}  sha256 {job.digest}")
    for heading, lines in about.items():
        for line in lines:
            print(f"{heading:>10}  {line}")
            heading = ""
    if upcoming:
        print("next slots  " + "\n            ".join(upcoming))


@job_app.command()
def schema() -> None:
    """Print the JSON Schema of job files, for editors: rrmsdk job schema > job.schema.json."""
    print_json(jobs.json_schema())


def valid(file: Path) -> Job:
    """The job in `file`, or exit code 64. All that can be known of it here: cron too, and the method where torch is."""
    from rrmsdk.retraining.explain import next_slots

    try:
        job = jobs.read(file)
        next_slots(job, datetime.now(UTC), 1)
        try:
            from rrmsdk import methods
        except ImportError:  # a scheduler needs no torch
            return job
        methods.parse(job.recipe.method)
    except MissingExtraError:
        raise
    except RrmError as exc:
        _refuse(exc)
    return job


def _looked_up(job: Job) -> dict[str, str]:
    """What its references and secrets mean now; the first that means nothing ends the command."""
    from rrmsdk.opening import opened
    from rrmsdk.retraining import observe
    from rrmsdk.schema.secret import reveal

    found: dict[str, str] = {}
    try:
        for secret in job.secrets():
            reveal(secret)
            found[str(secret)] = "is there"
        for ref in job.recipe.teachers:
            commit = observe.teacher(ref)
            found[ref] = f"commit {commit[:12]}" if commit else f"weights {opened(ref).card.files[WEIGHTS][:12]}"
        seen, troubles = observe.observe(job)
        if troubles:
            raise troubles[0]
        for source, data in seen.data.items():
            found[source] = f"{data.digest[:12]}" + (f", {data.rows} train images" if data.rows is not None else "")
        for url, windows in seen.drift.items():
            found[url] = f"{len(windows)} windows"
    except ConnectionError:  # it may be there tomorrow
        raise
    except RrmError as exc:
        _refuse(exc)
    return found


def _refuse(exc: RrmError) -> NoReturn:
    print(f"rrmsdk: {exc}", file=sys.stderr)
    raise typer.Exit(CONFIG) from exc
