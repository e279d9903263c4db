"""A real Prefect: a deployment in a work pool runs the job; its server goes down in the middle of a run."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rrmsdk.retraining import journal as journals
from rrmsdk.retraining.lock import hold
from rrmsdk.schema import value
from tests.retraining.digits_job import World

ROOT = Path(__file__).parents[2]
PREFECT = ROOT / ".peers" / "prefect" / "bin" / "prefect"
TERMINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nightly,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not PREFECT.is_file(), reason=f"Prefect is not at {PREFECT}: make test-nightly"),
]


class Served:
    """A Prefect server, its worker, and the commands of somebody who uses them."""

    def __init__(self, digits: World) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.place = digits.place
        told = {name: said for name, said in os.environ.items() if not name.startswith(("HF_", "COVERAGE", "PYTEST"))}
        self.env = told | {
            "HF_ENDPOINT": digits.hub.endpoint, "HF_HOME": str(digits.place / "hf"), "OMP_NUM_THREADS": "1",
            "PREFECT_HOME": str(digits.place / "prefect"), "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "NO_COLOR": "1", "COLUMNS": "200",
        }  # fmt: skip

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            [PREFECT, "--no-prompt", *words], env=self.env, cwd=self.place, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def started(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        with (self.place / f"{words[0]}.log").open("ab") as log:
            process = subprocess.Popen(
                [PREFECT, *words], env=self.env, cwd=self.place, stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)

    @contextmanager
    def server(self) -> Iterator[subprocess.Popen[bytes]]:
        with self.started("server", "start", "--host", "127.0.0.1", "--port", str(self.port)) as process:
            waited_for(lambda: self.asked("GET", "health"))
            yield process

    def asked(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            f"{self.env['PREFECT_API_URL']}/{path}", json.dumps(body or {}).encode() if method == "POST" else None,
            {"Content-Type": "application/json"}, method=method,
        )  # fmt: skip
        try:
            return json.load(urllib.request.urlopen(request, timeout=10))
        except OSError:
            return None

    def begun(self) -> str:
        """A run of the deployment, its number."""
        (number,) = re.findall("UUID: (\\S+)", self("deployment", "run", "rrmsdk-retrain/weekly"))
        return number

    def ended(self, number: str) -> tuple[str, str]:
        """Type and name of the state in which it ends."""

        def over() -> dict[str, Any] | None:
            state = (self.asked("GET", f"flow_runs/{number}") or {}).get("state") or {}
            return state if state.get("type") in TERMINAL else None

        state = waited_for(over)
        return state["type"], state["name"]


def waited_for(ready: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := ready():
            return found
        time.sleep(0.2)  # for processes that tell nobody
    raise AssertionError(f"not in {seconds} s: {ready}")


def test_a_deployment_runs_the_job_and_a_server_that_goes_down_ends_no_run(digits: World) -> None:
    long = digits.but(recipe={"train": {"epochs": 25.0, "checkpoint_every": 20}}, gate={"approval": True})
    job, state = digits.place / "job.toml", digits.place / "state"
    value.write(long.job, job)
    prefect = Served(digits)

    def runs() -> list[str]:
        with journals.opened(long.folder) as kept:
            return [run.state for run in kept.runs()]

    with prefect.server() as server:
        prefect("work-pool", "create", "machines", "--type", "process")
        params = json.dumps({"job": str(job), "state": str(state)})
        flow = f"{ROOT / 'tests' / 'retraining' / 'prefect_flow.py'}:retrain"
        prefect("deploy", flow, "--name", "weekly", "--pool", "machines", "--cron", "0 3 * * 1", "--params", params)
        with prefect.started("worker", "start", "--pool", "machines"):
            with hold(long.folder):
                assert prefect.ended(prefect.begun()) == ("FAILED", "Busy")
            prefect.begun()
            waited_for(lambda: list(long.folder.glob("runs/*/transfer-*/run/checkpoint.safetensors")))
            server.kill()
            server.wait()
            waited_for(lambda: runs() == ["awaiting"])
    assert f"models/{long.job.push.repo}" not in digits.hub.repos
    with prefect.server(), prefect.started("worker", "start", "--pool", "machines"):
        # What it held is all in the journal: the next one asks the same.
        assert prefect.ended(prefect.begun()) == ("COMPLETED", "Awaiting")
        value.write(long.but(gate={"approval": False}).job, job)
        assert prefect.ended(prefect.begun()) == ("COMPLETED", "Completed")
    assert len(long.published) == 1
    assert runs() == ["promoted"]  # one run, that went on each time
