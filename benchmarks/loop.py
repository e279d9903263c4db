"""The whole loop on digits: a champion is served under load, a better one takes its place, two bad ones do not.

A Hub, the server and every command are processes of their own, and what they do is what `rrmsdk` does for anybody.
It says what happens, with the numbers, and ends with code 1 where anything is not as promised:

    make loop
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import disable_progress_bars
from huggingface_hub.utils.logging import set_verbosity_error

from benchmarks.hub_process import ROOT, TOKEN, hub
from benchmarks.loop_arrivals import arrive, poison, tampered, testing
from benchmarks.loop_client import Asking, asking
from rrmsdk import files
from rrmsdk.schema.bundle import CARD, ONNX, PARITY
from rrmsdk.verification.provenance import command_line, hardware, result_file, versions

TEACHER = ROOT / "zoo" / "embedded" / "digits-cnn-linf"
REPO, TAG, TEACHERS = "acme/digits", "champion", "acme/teacher"
FIRST = 500  # train images that there are at the beginning, of 1,437
WAIT = 900.0  # seconds for what takes a few where nothing else runs

# The margins are ten points, on 200 images. Students of such short runs differ on some forty of them, which alone is
# three points (one standard deviation) one way or the other: at ten, luck does not decide. More data gain more than
# ten, and the poisoned teacher costs more than forty. The floors lie far below any champion; they are there so that the
# first one is judged by something.
JOB = """
version = 1
name = "digits"
[recipe]
teacher = "hub:acme/teacher"
student = { arch = "cnn", width_mult = 0.5 }
data = { name = "path:../data", validation = 0 }
threat = { norm = "linf", eps = "1/10" }
method = { name = "rrm" }
[recipe.train]
epochs = 12
batch = 32
augment = "crop"
weight_decay = 5e-3
schedule = { kind = "onecycle", peak = 0.25 }
head = "teacher"
validate_every = 0
[judge]
attack = "fast"
images = 200
[[trigger]]
kind = "data"
source = "path:../data"
min_new_rows = 600
[[trigger]]
kind = "teacher"
propose = false
[gate]
robust_margin = 0.1
clean_margin = 0.1
robust_floor = 0.05
clean_floor = 0.3
[push]
repo = "acme/digits"
token = { env = "ACME_TOKEN" }
"""

T = TypeVar("T")


class Broken(Exception):
    """Something is not as promised."""


@dataclass(frozen=True)
class Place:
    """A folder for everything, and what its processes are told."""

    folder: Path
    hub: str
    began: float
    said: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "HF_ENDPOINT": self.hub, "HF_HOME": str(self.folder / "hub"), "HF_TOKEN": TOKEN, "ACME_TOKEN": TOKEN,
            "RRMSDK_STATE": str(self.folder / "state"), "RRMSDK_CACHE": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        return os.environ | own

    def rrmsdk(self, *words: str) -> str:
        """What a command prints, once it ended well."""
        command = [sys.executable, "-m", "rrmsdk", *words]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise Broken(f"rrmsdk {' '.join(words)} ended with code {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def schedule(self, what: str, *words: str) -> dict[str, Any]:
        return json.loads(self.rrmsdk("schedule", what, *words, "--jobs", "jobs", "--json"))

    def say(self, text: str) -> None:
        line = f"{time.monotonic() - self.began:6.1f} s  {text}"
        self.said.append(line.replace(str(self.folder), "/loop"))
        print(line, flush=True)

    def champion(self) -> str:
        """The commit that servers follow now."""
        refs = HfApi(self.hub, token=TOKEN).list_repo_refs(REPO)
        return next(tag.target_commit for tag in refs.tags if tag.name == TAG)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Keep everything in this new folder. Default: nothing is kept.")
    parser.add_argument("--result", type=Path, help="Write what it said into a result file in this folder.")
    parser.add_argument("--note", default="", help="What else ran on the machine.")
    args = parser.parse_args()
    began = time.monotonic()
    disable_progress_bars()
    set_verbosity_error()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.out or Path(scratch) / "loop").resolve()
        folder.mkdir(parents=True)
        try:
            with hub(TEACHERS, TEACHER) as (address, _):
                place = Place(folder, address, began)
                loop(place)
        except Broken as exc:
            print(f"NOT AS PROMISED: {exc}", file=sys.stderr)
            return 1
    if args.result:
        write(args.result, place, args.note)
    return 0


def write(folder: Path, place: Place, note: str) -> None:
    """A result file of what was said."""
    cpu = torch.device("cpu")
    known = ", ".join(f"{name} {version}" for name, version in versions().items())
    spent = f"{time.monotonic() - place.began:.0f} s, of five minutes that it may take"
    how = f"{hardware(cpu)}; {known}. {note} {spent}. Command: `{command_line()}`"
    text = "\n".join(["# The whole loop on digits", "", "```", *place.said, "```", "", how, ""])
    files.write_text(result_file(folder, "loop", cpu), text)


def loop(place: Place) -> None:
    (place.folder / "jobs").mkdir()
    (place.folder / "jobs" / "digits.toml").write_text(JOB)
    arrive(place.folder / "data", FIRST)
    first = first_champion(place)
    with serving(place) as (port, log), asking(port, "digits", *testing()) as client:
        wait_for("answers of the first champion", lambda: client.answered.get(first[:12], 0) > 50)
        place.say(f"serve --watch hub:{REPO}@{TAG}: {first[:12]} answers, and is asked from here to the end")
        second = better(place, client, first)
        poisoned(place, client, second)
        broken(place, client, second, log)
        undone(place, client, first)
    counted(place, client, first, second)


def first_champion(place: Place) -> str:
    outcome = json.loads(place.rrmsdk("retrain", "jobs/digits.toml", "--json"))
    promised(outcome["state"] == "promoted", f"the first run ended {outcome['state']}: {outcome['why']}")
    place.say(f"retrain jobs/digits.toml, on {FIRST} images: promoted, as there is no champion yet")
    shown(place, outcome["run"])
    promised(not place.schedule("tick")["started"], "a tick started a run though nothing is new")
    place.say("schedule tick: nothing is due")
    return place.champion()


def better(place: Place, client: Asking, first: str) -> str:
    """New data arrive; the run that they start is promoted, and the server swaps."""
    arrive(place.folder / "data")
    run = ticked(place, "data")
    promised(run["state"] == "promoted", f"the run with more data ended {run['state']}: {run['why']}")
    second = place.champion()
    promised(second != first, "the champion is the old one")
    swapped(place, client, second)
    return second


def poisoned(place: Place, client: Asking, second: str) -> None:
    """The teacher's repository gets one that was trained on shuffled labels; what it teaches is kept out."""
    poison(place.folder)
    place.rrmsdk("train", "poison.toml", "--attack", "none", "--out", "poisoned", "--quiet")
    place.rrmsdk("push", "poisoned", TEACHERS)
    place.say(f"a teacher that was trained on shuffled labels is pushed to {TEACHERS}")
    run = ticked(place, "teacher")
    promised(run["state"] == "kept", f"the run with the poisoned teacher ended {run['state']}: {run['why']}")
    promised(place.champion() == second, "the champion moved")
    still(client, second)
    place.say(f"the champion stays: {second[:12]} answers")


def broken(place: Place, client: Asking, second: str, log: Path) -> None:
    """Somebody swaps the classes in the champion's graph, mends every hash, and moves the tag: the server refuses."""
    bad = tampered(place.folder / "models" / second[:12], place.folder / "tampered")
    api = HfApi(place.hub, token=TOKEN)
    # In open files: paths go by Xet, which the Hub of the tests does not speak.
    changed = [CommitOperationAdd(name, BytesIO((bad / name).read_bytes())) for name in (ONNX, PARITY, CARD)]
    commit = api.create_commit(REPO, changed, commit_message="a broken export").oid
    api.delete_tag(REPO, tag=TAG)
    api.create_tag(REPO, tag=TAG, revision=commit)
    place.say(f"a graph that was tampered with is committed, all hashes right, and {TAG} moved to it: {commit[:12]}")
    refused = wait_for("the server to refuse the broken export", lambda: told(log, "reason", commit[:12]))
    place.say(f"the server refuses it: {refused}")
    still(client, second)
    place.say(f"{second[:12]} answers")


def undone(place: Place, client: Asking, first: str) -> None:
    now = place.schedule("rollback", "digits")
    promised(now["commit"] == first, f"the rollback went to {now['commit']}, not to {first}")
    promised(place.champion() == first, f"{TAG} does not name {first}")
    place.say(f"schedule rollback digits: the champion is {first[:12]} again, as number {now['number']}")
    swapped(place, client, first)


def counted(place: Place, client: Asking, first: str, second: str) -> None:
    promised(not client.failures, f"{len(client.failures)} requests failed, the first with {client.failures[:1]}")
    promised({*client.answered} == {first[:12], second[:12]}, f"versions that answered: {dict(client.answered)}")
    order = [version for version, _ in client.turns]
    promised(order == [first[:12], second[:12], first[:12]], f"versions took turns: {order}")
    place.say(f"{sum(client.answered.values())} requests were answered, none failed")
    for version, many in client.answered.items():
        place.say(f"  {version} gave {many} answers, {client.right[version] / many:.3f} of them right")


def ticked(place: Place, kind: str) -> dict[str, Any]:
    """The run that a tick starts, once it is over."""
    started = wait_for("a tick to start a run", lambda: place.schedule("tick")["started"], every=3.0)
    promised(started[0]["run"] == place.schedule("history", "digits")["runs"][0]["run"], "it is not the newest run")
    place.say(f"schedule tick: {started[0]['why']}")

    def over() -> dict[str, Any] | None:
        run = place.schedule("history", "digits")["runs"][0]
        return run if run["state"] != "running" else None

    run = wait_for("the run to end", over, every=3.0)  # each look is a process
    promised(run["cause"].startswith(kind), f"a run because of {kind} was due, not {run['cause']}")
    place.say(f"run {run['run']} took {run['seconds']:.1f} s of work: {run['state']}")
    if run["decision"]:
        shown(place, run["run"])
    return run


def shown(place: Place, run: str) -> None:
    """What the gate said, rule by rule."""
    for record in sorted((place.folder / "state" / "digits" / "runs" / run).glob("decision-*.json")):
        for check in json.loads(record.read_text())["checks"]:
            place.say(f"  gate, {'kept' if check['passed'] else 'BROKEN'}: {check['says']}")


def swapped(place: Place, client: Asking, commit: str) -> None:
    before = sum(client.answered.values())
    wait_for(f"answers of {commit[:12]}", lambda: client.turns[-1][0] == commit[:12])
    still(client, commit)
    place.say(f"the server swapped to {commit[:12]} after {sum(client.answered.values()) - before} more requests")


def still(client: Asking, commit: str) -> None:
    """The next answers are of this commit, too."""
    so_far = sum(client.answered.values())
    wait_for("more answers", lambda: sum(client.answered.values()) > so_far + 50)
    promised(client.turns[-1][0] == commit[:12], f"{client.turns[-1][0]} answers, not {commit[:12]}")


def promised(kept: bool, otherwise: str) -> None:
    if not kept:
        raise Broken(otherwise)


def wait_for(what: str, look: Callable[[], T | None], every: float = 0.2) -> T:
    """What `look` gives, once it is something."""
    until = time.monotonic() + WAIT
    while time.monotonic() < until:
        if found := look():
            return found
        time.sleep(every)
    raise Broken(f"waited {WAIT:g} s for {what}")


@contextmanager
def serving(place: Place) -> Iterator[tuple[int, Path]]:
    """The port of a server that follows the champion, and its log."""
    log, command = place.folder / "serve.log", [sys.executable, "-m", "rrmsdk", "serve"]
    command += ["--watch", f"hub:{REPO}@{TAG}", "--models", "models", "--every", "1"]
    command += ["--name", "digits", "--port", "0", "--threads", "1"]
    with log.open("w") as written:
        process = subprocess.Popen(command, cwd=place.folder, env=place.environment, stderr=written)
    try:
        wait_for("the server to listen", lambda: told(log, "url") or process.poll() is not None)
        url = told(log, "url")
        if url is None:
            raise Broken(f"the server ended: {log.read_text()[-2000:]}")
        yield int(url.rpartition(":")[2]), log
    finally:
        process.terminate()
        process.wait(60)


def told(log: Path, field: str, version: str = "") -> str | None:
    """What the server has first logged under this name, of a version where one is given."""
    for line in log.read_text().splitlines(keepends=True):
        if f'"{field}"' in line and f'"{version}' in line and line.endswith("\n"):
            return json.loads(line)[field]
    return None


if __name__ == "__main__":
    sys.exit(main())
