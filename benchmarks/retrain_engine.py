"""What the machinery of scheduled retraining costs: a run that was killed, ticks, an idle scheduler, the journal.

Every command is a process of its own, on real jobs; its start alone (the same imports, then nothing) is measured
beside it in each round.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

import numpy as np
from hub_process import ROOT, TOKEN, hub

from rrmsdk.retraining.once import once
from rrmsdk.retraining.room import RUNS, Room, entered
from rrmsdk.retraining.schedule import STARTING
from rrmsdk.training.run import CHECKPOINT as NAME

CHECKPOINT = f"*/transfer-*/run/{NAME}"
IMPORTS = "import rrmsdk.cli.retrain, rrmsdk.retraining.stages, rrmsdk.training, rrmsdk.verification"
JOBS, IDLE_JOBS = 500, (10, 500)
STAGES = 6  # fetch, transfer, verify, export, verify of the champion, push: the stages of a run with a champion
MODEL, FIVE_MINUTES = 45_000_000, 300.0  # bytes of a ResNet-18; seconds
WAIT = 300.0
TEACHER = ROOT / "zoo" / "embedded" / "digits-cnn-linf"

JOB = """
version = 1
name = "{name}"
[recipe]
teacher = "hub:digits-cnn-linf"
student = {{ arch = "cnn", width_mult = 0.5 }}
data = {{ name = "digits", validation = 0 }}
threat = {{ norm = "linf", eps = "1/10" }}
method = {{ name = "rrm" }}
[recipe.train]
epochs = 1000
batch = 64
checkpoint_every = 5
validate_every = 0
[[trigger]]
kind = "cron"
expression = "{cron}"
[push]
repo = "acme/{name}"
token = {{ env = "ACME_TOKEN" }}
"""


def takeover(args: Namespace) -> str:
    """Kill a run while it trains, start the same command, and see when it trains on; and who starts a second one."""
    again, second, bare = [], [], []
    with _world() as (folder, environment):
        (folder / "digits.toml").write_text(JOB.format(name="digits", cron="0 3 * * sun"))
        command = [sys.executable, "-m", "rrmsdk", "retrain", "digits.toml", "--quiet"]
        going = subprocess.Popen(command, cwd=folder, env=environment)
        _trains(folder, going, 0)
        for _ in range(args.rounds):
            second.append(_seconds(command, folder, environment, 75))
            going.kill()
            going.wait()
            bare.append(_seconds([sys.executable, "-c", IMPORTS], folder, environment, 0))
            last, began = _checkpoint(folder), time.perf_counter()
            going = subprocess.Popen(command, cwd=folder, env=environment)
            _trains(folder, going, last)
            again.append(time.perf_counter() - began)
        going.kill()
        going.wait()
    beyond = [whole - start for whole, start in zip(again, bare, strict=True)]
    rows = (
        ("a killed run: until it has trained five steps more", again, ""),
        ("a process that only imports the same", bare, ""),
        ("the first beyond the second, round by round", beyond, "< 5 s"),
        ("a second starter, from its start until it is gone (code 75)", second, "< 1 s"),
    )  # fmt: skip
    return f"# A killed run and a second starter\n\n{_table(rows)}\n{args.rounds} rounds.\n"


def ticks(args: Namespace) -> str:
    """500 jobs: seen for the first time, all due at once, and none due; each tick a process of its own."""
    first, due, idle, bare = [], [], [], []
    command = [sys.executable, "-m", "rrmsdk", "schedule", "tick", "--jobs", "jobs", "--json"]
    for _ in range(args.rounds):
        with _world() as (folder, environment):
            _jobs(folder, JOBS, "0 0 1 1 *")
            first.append(_seconds(command, folder, environment, 0))
            idle.append(_seconds(command, folder, environment, 0))
            _jobs(folder, JOBS, "* * * * *")
            time.sleep(61.0)  # every job has missed a slot since it was first seen
            due.append(_seconds(command, folder, environment, 0))
            _stopped(folder)
            bare.append(_seconds([sys.executable, "-c", "import rrmsdk.cli.schedule"], folder, environment, 0))
    beyond = [whole - start for whole, start in zip(due, bare, strict=True)]
    rows = (
        (f"{JOBS} jobs seen for the first time, none due: their journals are made", first, ""),
        (f"{JOBS} jobs, none due", idle, ""), (f"{JOBS} jobs due at once, one is started", due, ""),
        ("a process that only imports", bare, ""),
        ("jobs due at once beyond that process, round by round: a tick of `schedule run`", beyond, "< 1 s"),
    )  # fmt: skip
    return f"# Ticks over {JOBS} jobs\n\n{_table(rows)}\n{args.rounds} rounds, each tick a process from start to end.\n"


def idle(args: Namespace) -> str:
    """The resident memory of `schedule run` after some ticks with nothing to do."""
    rows = []
    for count in IDLE_JOBS:
        with _world() as (folder, environment):
            _jobs(folder, count, "0 0 1 1 *")
            command = [sys.executable, "-m", "rrmsdk", "schedule", "run", "--jobs", "jobs", "--every", "2"]
            with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL) as process:
                time.sleep(10.0 * args.rounds)
                status = Path(f"/proc/{process.pid}/status").read_text()
                process.terminate()
        kib = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.startswith("Vm")}
        rows.append(f"| {count} | {kib['VmRSS'] / 1024:.1f} MiB | {kib['VmHWM'] / 1024:.1f} MiB | < 80 MiB |")
    head = "| jobs | resident | at most | goal |\n|---|---|---|---|\n"
    after = f"`schedule run --every 2`, after {10 * args.rounds} s.\n"
    return f"# An idle scheduler\n\n{head}" + "\n".join(rows) + f"\n\n{after}"


def journal(args: Namespace) -> str:
    """What journal and store add to stages that only write a model, and what share of five minutes that is."""
    kept, plain = [], []
    bytes_ = np.random.default_rng(args.seed).integers(0, 256, MODEL, dtype=np.uint8).tobytes()

    def work(scratch: Path) -> Path:
        (scratch / "model").write_bytes(bytes_)
        return scratch / "model"

    with _world() as (folder, _), entered(folder / "state" / "digits") as room:
        for number in range(args.rounds):
            began = time.perf_counter()
            _run(room, number, work)
            kept.append(time.perf_counter() - began)
            began = time.perf_counter()
            for stage in range(STAGES):
                scratch = folder / f"{number}-{stage}"
                scratch.mkdir()
                work(scratch)
            plain.append(time.perf_counter() - began)
    added = [whole - bare for whole, bare in zip(kept, plain, strict=True)]
    share = [100 * seconds / FIVE_MINUTES for seconds in added]
    rows = (("through the journal and the store", kept, ""), ("the files alone", plain, ""), ("added", added, "< 3 s"))
    return (
        f"# The journal of a run\n\n{_table(rows)}\nSeconds for {STAGES} stages of {MODEL / 1e6:.0f} MB each. "
        f"Added, of a run of five minutes: {median(share):.2f} % (at most {max(share):.2f} %; goal: < 1 %). "
        f"{args.rounds} rounds.\n"
    )


def _run(room: Room, number: int, work: Callable[[Path], Path]) -> None:
    run = room.journal.begin(f"round-{number}")
    for stage in range(STAGES):
        once(room, run, f"stage-{stage}", {"round": number, "stage": stage}, work)
    room.journal.end(run.number, "kept")


@contextmanager
def _world() -> Iterator[tuple[Path, dict[str, str]]]:
    """An empty folder, and the environment of commands that keep everything in it; its Hub is the tests'."""
    with tempfile.TemporaryDirectory(prefix="rrmsdk-") as name, hub("acme/teacher", TEACHER) as (endpoint, _):
        folder = Path(name)
        own = {
            "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hub"), "ACME_TOKEN": TOKEN,
            "RRMSDK_STATE": str(folder / "state"), "RRMSDK_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        yield folder, os.environ | own


def _jobs(folder: Path, count: int, cron: str) -> None:
    (folder / "jobs").mkdir(exist_ok=True)
    for number in range(count):
        (folder / "jobs" / f"j{number:03d}.toml").write_text(JOB.format(name=f"j{number:03d}", cron=cron))


def _checkpoint(folder: Path) -> int:
    """When the training last wrote its checkpoint; 0: never."""
    found = (folder / "state" / "digits" / RUNS).glob(CHECKPOINT)
    return max((path.stat().st_mtime_ns for path in found), default=0)


def _trains(folder: Path, process: subprocess.Popen[bytes], since: int) -> None:
    """Wait until it has written another checkpoint."""
    until = time.monotonic() + WAIT
    while _checkpoint(folder) <= since:
        if process.poll() is not None or time.monotonic() > until:
            raise SystemExit(f"the run ended with code {process.poll()}, or hangs")
        time.sleep(0.005)


def _seconds(command: list[str], folder: Path, environment: dict[str, str], code: int) -> float:
    """How long a command takes that ends with this code."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode != code:
        raise SystemExit(f"{' '.join(command)} ended with code {done.returncode}: {done.stderr[-2000:]}")
    return seconds


def _stopped(folder: Path) -> None:
    """End the run that a tick has started, which is of no interest."""
    for job in (folder / "state").iterdir():
        if (job / STARTING).exists():
            with suppress(ProcessLookupError):
                os.kill(int((job / STARTING).read_text()), signal.SIGKILL)


def _table(rows: tuple[tuple[str, list[float], str], ...]) -> str:
    lines = [
        f"| {name} | {median(found):.2f} | {min(found):.2f} to {max(found):.2f} | {goal} |"
        for name, found, goal in rows
    ]
    return "\n".join(["| | median, s | range, s | goal |", "|---|---|---|---|", *lines]) + "\n"
