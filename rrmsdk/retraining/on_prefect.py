"""A Prefect flow that runs `rrmsdk retrain` as a process of its own, and says in Prefect's states how it ended.

It holds nothing: all that has to last is in the job's journal, so Prefect may go down, and whoever runs the flow again
goes on where the run was. In a file of one's own, say flows.py:

    from rrmsdk.retraining.on_prefect import flow
    retrain = flow()

    prefect deploy flows.py:retrain --name weekly --pool POOL --cron "0 3 * * 1" --concurrency-limit 1 \\
        --params '{"job": "/jobs/weekly.toml"}'

Tried with Prefect 3.9.1, a work pool of processes and its page (tests/retraining/test_prefect.py, nightly).
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from rrmsdk.errors import MissingExtraError

NAME = "rrmsdk-retrain"
# Exit code -> type, name and message of Prefect's state. An automation on the name Blocked may run the flow again; on
# Failed it should not: that would be another run.
STATES = {
    0: ("COMPLETED", "Completed", "promoted, or the champion was kept"),
    75: ("FAILED", "Busy", "another process works on this job"),
    76: ("FAILED", "Blocked", "blocked by the Hub, the disk or a teacher that is gone: the same command goes on"),
    77: ("COMPLETED", "Awaiting", "awaiting approval: rrmsdk schedule approve"),
}


def command(job: str, state: str | None = None) -> tuple[str, ...]:
    """What is run, with this Python."""
    return (sys.executable, "-m", "rrmsdk", "retrain", job, "--quiet", *(("--state", state) if state else ()))


def ended(code: int) -> tuple[str, str, str]:
    """Type, name and message of the state after an exit code; a signal's is negative."""
    return STATES.get(code, ("FAILED", "Failed", f"exit code {code}: rrmsdk schedule logs"))


def flow() -> Any:
    """The flow, of `job` (a file) and `state` (the folder of all jobs' states).

    Raises:
        MissingExtraError: Prefect is not installed.
    """
    try:
        from prefect import flow as decorated  # pyright: ignore[reportMissingImports]
        from prefect.client.schemas.objects import State, StateType  # pyright: ignore[reportMissingImports]
    except ImportError as exc:
        raise MissingExtraError("prefect", "rrmsdk.retraining.on_prefect") from exc

    @decorated(name=NAME)
    def retrain(job: str, state: str | None = None):
        kind, name, message = ended(subprocess.run(command(job, state)).returncode)
        return State(type=StateType[kind], name=name, message=message)

    return retrain
