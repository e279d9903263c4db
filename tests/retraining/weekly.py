"""A job that has run week after week, in a journal written as runs write it."""

from __future__ import annotations

import random
from pathlib import Path

from rrmsdk.retraining.decide import decide
from rrmsdk.retraining.journal import Run
from rrmsdk.retraining.once import Made, once
from rrmsdk.retraining.room import RUNS, Room
from rrmsdk.schema import value
from rrmsdk.schema.curve import Curve, Point
from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.decision import Decision, Judged
from rrmsdk.schema.job import Gate
from rrmsdk.schema.report import AttackResult, Report, wilson
from rrmsdk.schema.threat import ThreatModel

IMAGES = 400
POLICY = Gate(robust_margin=0.02, clean_margin=0.02)
THREAT = ThreatModel(norm="linf", eps="1/10")  # type: ignore[arg-type]
DIGITS = DataInfo(
    name="digits", fingerprint="0" * 64, labels=("zero",), size=8, channels=1, train=1000, validation=0, test=IMAGES,
    encoding="8x8 gray",
)  # fmt: skip
JOB = """
version = 1
name = "weekly"
[recipe]
teacher = "hub:digits-cnn-linf"
student = { arch = "cnn", width = "teacher" }
data = { name = "digits" }
threat = { norm = "linf", eps = "1/10" }
method = { name = "rrm" }
[gate]
robust_floor = 0.3
[[trigger]]
kind = "cron"
expression = "0 3 * * mon"
[push]
repo = "acme/digits"
"""


def outcomes(seed: int, robust: float) -> str:
    """Images 0, 1, ... of which so many withstand; the same draw for each seed, so that models are alike."""
    draw = random.Random(seed)
    return "".join("." if draw.random() < robust else "a" if draw.random() < 0.8 else "x" for _ in range(IMAGES))


def report(found: str) -> Report:
    right, robust = IMAGES - found.count("x"), found.count(".")
    return Report(
        attack="fast", threat=THREAT, images=IMAGES, split="test", clean=right / IMAGES, robust=robust / IMAGES,
        interval=wilson(robust, IMAGES), outcomes=found, seed=0, batch=64, weights_sha256="0" * 64, engine="native",
        attacks=(AttackResult(name="apgd", attacked=right, broken=right - robust, robust=robust / IMAGES, seconds=1),),
        data=DIGITS, versions={"rrmsdk": "0.1.0"}, hardware="cpu", seconds=1.0,
        date="2026-11-02",
    )  # fmt: skip


def curve(found: str) -> Curve:
    counts = [found.count(one) for one in ("x", "a", "b")]
    left = [IMAGES - sum(counts[: at + 1]) for at in range(3)]
    points = tuple(
        Point(eps=eps, robust=many / IMAGES, interval=wilson(many, IMAGES))  # type: ignore[arg-type]
        for eps, many in zip(("0", "1/20", "1/10"), left, strict=True)
    )
    about = report(found.replace("b", "a"))
    return Curve(
        norm="linf", attack="fast", engine="native", settings=(), points=points, outcomes=found, trained_for=THREAT,
        checks=(), images=IMAGES, split="test", seed=0, batch=64, data=about.data, weights_sha256="0" * 64,
        versions={}, hardware="cpu", seconds=1.0, date="2026-11-02",
    )  # fmt: skip


def judged(made: Made, found: str) -> Judged:
    return Judged(
        digest=made.digest, images="1" * 64, suite="fast", outcomes=found, labels=(0,) * IMAGES, classes=("zero",)
    )


def ran(room: Room, week: int, robust: float, champion: Judged | None, says: str = "") -> tuple[Run, Judged | None]:
    """A run of that week to its end; gives the champion that there is then."""
    run = room.journal.begin(f"cron 2026-W{week:02d}", kind="cron", says=says or f"The slot of week {week}.")
    found = outcomes(week, robust)

    def model(scratch: Path) -> Path:
        (scratch / "bundle").mkdir()
        (scratch / "bundle" / "model.safetensors").write_bytes(bytes([week]) * 2000)
        value.write(curve(found), scratch / "bundle" / "curve.json")
        return scratch / "bundle"

    def judge(scratch: Path) -> Path:
        value.write(report(found), scratch / "report.json")
        return scratch / "report.json"

    once(room, run, "transfer", {"week": week}, model)
    once(room, run, "verify", {"week": week}, judge)
    new = judged(once(room, run, "export", {"week": week}, model), found)
    decision = decide(champion, new, POLICY, len(room.journal.runs("promoted")))
    record(room, run, decision)
    if decision.verdict == "keep":
        room.journal.end(run.number, "kept", decision.says)
        return run, champion
    room.journal.crown(run.number, digest=new.digest, commit=f"{week:040x}")
    room.journal.end(run.number, "promoted", decision.says, commit=f"{week:040x}")
    return run, new


def record(room: Room, run: Run, decision: Decision) -> None:
    path = room.folder / RUNS / run.id / "decision-1.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    value.write(decision, path)
    said = {"verdict": decision.verdict, "says": decision.says, "new": decision.new, "old": decision.old}
    room.journal.note(run.number, "decision", champion=None, record=path.name, **said)
