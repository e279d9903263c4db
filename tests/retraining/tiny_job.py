"""A job of small real stages: python -m tests.retraining.tiny_job WORLD CAUSE, or WORLD sweep KILLS SEED, or die N.

WORLD/state is the job's folder, WORLD/hub where it publishes, by an atomic rename. Its training gives other weights
each time, as one on a GPU may. WORLD/witness tells what happened without asking the journal; while there is a file
WORLD/wait, training waits; while there is one WORLD/die, it kills its own process when it has come to the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

from rrmsdk import files
from rrmsdk.errors import BusyError, DiskFullError
from rrmsdk.retraining.once import Made, once
from rrmsdk.retraining.room import Room, entered

STEPS = 5
STAGES = ("fetch", "transfer", "verify", "export")
BYTES = 20_000


def told(world: Path, *words: str) -> None:
    """A line that is there whatever happens to this process next."""
    place = os.open(world / "witness", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(place, (" ".join(words) + "\n").encode())
    os.close(place)


def fetch(world: Path, scratch: Path) -> Path:
    (scratch / "rows").write_bytes((world / "data").read_bytes() * BYTES)
    return scratch / "rows"


def transfer(world: Path, scratch: Path) -> Path:
    checkpoint, model = scratch / "checkpoint", scratch / "model"
    done = json.loads(checkpoint.read_text()) if checkpoint.exists() else []
    while len(done) < STEPS:
        done.append(os.urandom(8).hex())
        told(world, "step", str(len(done)))
        files.write_text(checkpoint, json.dumps(done))
    while (world / "wait").exists():
        time.sleep(0.01)
    if (world / "die").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    (model / "onnx").mkdir(parents=True, exist_ok=True)
    (model / "weights").write_bytes("".join(done).encode() * (BYTES // 80))
    (model / "card").write_text(hashlib.sha256("".join(done).encode()).hexdigest())
    return model


def verify(model: Path, scratch: Path) -> Path:
    (scratch / "report").write_text(f"robust: {(model / 'card').read_text()}")
    return scratch / "report"


def export(model: Path, scratch: Path) -> Path:
    (scratch / "graph").write_bytes((model / "weights").read_bytes()[::-1])
    return scratch / "graph"


def publish(world: Path, digest: str) -> None:
    """One more commit, unless the Hub has that digest."""
    hub = world / "hub"
    if not list(hub.glob(f"*-{digest}")):
        number = len(list(hub.glob("[0-9]*")))
        (hub / "beside").write_text(digest)
        (hub / "beside").rename(hub / f"{number:04d}-{digest}")


def job(world: Path, cause: str) -> None:
    with entered(world / "state") as room:
        run = room.journal.begin(cause)
        if run.state != "running":
            return

        def stage(name: str, inputs: Mapping[str, str], work: object) -> Made:
            def witnessed(scratch: Path) -> Path:
                told(world, "begin", cause, name)
                return work(scratch)  # type: ignore[operator]

            checkpoint = "checkpoint" if name == "transfer" else None
            made = once(room, run, name, inputs, witnessed, checkpoint=checkpoint)
            told(world, "finished", cause, name, made.digest)
            return made

        data = hashlib.sha256((world / "data").read_bytes()).hexdigest()
        rows = stage("fetch", {"data": data}, lambda scratch: fetch(world, scratch))
        model = stage("transfer", {"rows": rows.digest}, lambda scratch: transfer(world, scratch))
        stage("verify", {"model": model.digest}, lambda scratch: verify(model.path, scratch))
        stage("export", {"model": model.digest}, lambda scratch: export(model.path, scratch))
        publish(world, model.digest)
        room.journal.end(run.number, "promoted", digest=model.digest)


def forked(world: Path, cause: str) -> int:
    """The job in a process that need not import anything first; gives its number."""
    child = os.fork()
    if child == 0:
        try:
            job(world, cause)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def sweep(world: Path, kills: int, seed: int) -> int:
    """Kill forked processes at random moments, at most two a run; gives the number of runs."""
    rng, killed, number, spent = random.Random(seed), 0, 0, 0
    usual = 0.05  # seconds of a run
    while killed < kills:
        (world / "data").write_text(f"{number:04d}")
        begun = time.monotonic()
        child = forked(world, f"slot-{number}")
        if spent < 2:
            time.sleep(rng.uniform(0, usual))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            killed, spent = killed + 1, spent + 1
            continue
        assert os.waitstatus_to_exitcode(status) == 0
        if spent == 2:
            usual = 0.8 * usual + 0.2 * (time.monotonic() - begun)
        number, spent = number + 1, 0
    job(world, f"slot-{number}")
    return number + 1


def left(room: Room) -> list[str]:
    """What lies among the objects that is none."""
    return sorted({path.name for path in room.objects.folder.iterdir()} - set(room.objects.kept()))


def main() -> int:
    world, begun = Path(sys.argv[1]), time.monotonic()
    if sys.argv[2] == "sweep":
        print(sweep(world, int(sys.argv[3]), int(sys.argv[4])))
        return 0
    if sys.argv[2] == "die":
        print(*[os.WTERMSIG(os.waitpid(forked(world, "slot-0"), 0)[1]) for _ in range(int(sys.argv[3]))])
        return 0
    try:
        job(world, sys.argv[2])
    except BusyError as exc:
        print(json.dumps({"says": str(exc), "pid": exc.pid, "seconds": time.monotonic() - begun}), file=sys.stderr)
        return 75
    except DiskFullError as exc:
        print(f"blocked: disk: {exc}", file=sys.stderr)
        return 76
    return 0


if __name__ == "__main__":
    sys.exit(main())
