"""The main job on what ships with the package: nothing is downloaded, and it ends with a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import rrmsdk
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.report import CLEAN_WRONG, ROBUST, UPPER_BOUND, wilson

TEACHER, STUDENT = "hub:digits-cnn-linf", "wrn-10-2"
ATTACK = {"attack": "autoattack", "images": 200}
TRAIN = {"epochs": 30, "batch": 64, "augment": "crop", "schedule": {"kind": "onecycle", "peak": 0.25}}


def quickstart(out: Path, *, quiet: bool = False) -> list[dict[str, Any]]:
    """Transfer the embedded digits teacher into another architecture, attack it and its natural twin, export it.

    A second call shows what the first one made.

    Args:
        out: the transferred student's bundle; the natural student and the teacher's copy lie beside it.

    Returns:
        A row each for teacher, natural student and transferred student.
    """
    console = Console(stderr=quiet)
    beside = out.with_name(f"{out.name}-natural")
    student = {"arch": STUDENT, "width": "teacher"}
    same = {"data": {"name": "digits", "validation": 0.1}, "train": TRAIN, "verify": ATTACK, "quiet": quiet}

    console.print(f"1/4  pull {TEACHER}, hashes checked; it was attacked when it was published")
    teacher = rrmsdk.pull(TEACHER)
    console.print(f"2/4  train {STUDENT} on natural images with labels alone, and attack it with AutoAttack")
    natural = rrmsdk.transfer(TEACHER, student, method="natural", out=beside, **same)
    console.print(f"3/4  train {STUDENT} on natural images with the teacher's representation (RRM), and attack it")
    transferred = rrmsdk.transfer(TEACHER, student, method="rrm", out=out, **same)
    console.print("4/4  export it to ONNX, and compare the graph with the network on clean and attacked images")
    transferred = rrmsdk.export(transferred)

    named = {"teacher (from its report)": teacher, "natural student": natural, "transferred student": transferred}
    rows = [_row(name, bundle) for name, bundle in named.items()]
    console.print(_table(rows))
    console.print(UPPER_BOUND)
    console.print(f"{out} holds the student: weights, card, report, ONNX graph. Next: rrmsdk verify {out} --images 0")
    return rows


def _row(name: str, bundle: Bundle) -> dict[str, Any]:
    """Clean and robust accuracy on the first images, counted from the report's outcomes."""
    report = bundle.report
    outcomes = report.outcomes[: ATTACK["images"]]
    robust, of = outcomes.count(ROBUST), len(outcomes)
    return {
        "model": name, "arch": bundle.card.model.arch, "clean": 1 - outcomes.count(CLEAN_WRONG) / of,
        "robust": robust / of, "interval": wilson(robust, of), "threat": str(report.threat), "images": of,
    }  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "model",
        "architecture",
        "clean",
        "AutoAttack",
        "95 % interval",
        title=f"digits, {rows[0]['threat']}, {rows[0]['images']} test images",
    )
    for row in rows:
        low, high = row["interval"]
        table.add_row(
            row["model"], row["arch"], f"{row['clean']:.3f}", f"{row['robust']:.3f}", f"{low:.3f} to {high:.3f}"
        )
    return table
