"""The main job on what ships with the package: nothing is downloaded, and it ends with a table."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import rrmsdk
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.report import CLEAN_WRONG, ROBUST, UPPER_BOUND, wilson

TEACHER, STUDENT = "hub:digits-cnn-linf", "wrn-10-2"
ATTACK = {"attack": "autoattack", "images": 200}
TRAIN = {
    "epochs": 30,
    "batch": 64,
    "augment": "crop",
    "schedule": {"kind": "onecycle", "peak": 0.25},
    "weight_decay": 5e-3,  # ten times the papers': their runs have 30 times these steps to let it work
}


def quickstart(out: Path, *, quiet: bool = False) -> list[dict[str, Any]]:
    """Transfer the embedded digits teacher into another architecture, attack it and its natural twin, export it.

    A second call shows what the first one made.

    Args:
        out: the transferred student's bundle; the natural student lies beside it.

    Returns:
        A row each for teacher, natural student and transferred student.
    """
    console = Console(stderr=quiet)
    beside = out.with_name(f"{out.name}-natural")
    console.print(f"1/3  pull {TEACHER}, hashes checked; it was attacked when it was published")
    teacher = rrmsdk.pull(TEACHER)
    console.print(
        f"2/3  train {STUDENT} twice on natural images, with labels alone and with the teacher's representation"
    )
    console.print("     (RRM), and attack both with AutoAttack; one process each")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        natural, transferred = pool.map(_student, ("natural", "rrm"), (beside, out), (True, quiet))
    console.print("3/3  export it to ONNX, and compare the graph with the network on clean and attacked images")
    transferred = rrmsdk.export(transferred, quiet=quiet)

    named = {"teacher (from its report)": teacher, "natural student": natural, "transferred student": transferred}
    rows = [_row(name, bundle) for name, bundle in named.items()]
    console.print(_table(rows))
    console.print(UPPER_BOUND)
    console.print(f"{out} holds the student: weights, card, report, ONNX graph. Next: rrmsdk verify {out} --images 0")
    return rows


def _student(method: str, out: Path, quiet: bool) -> Bundle:
    return rrmsdk.transfer(
        TEACHER,
        {"arch": STUDENT, "width": "teacher"},
        {"name": "digits", "validation": 0.1},
        method=method,
        train=TRAIN,
        verify=ATTACK,
        out=out,
        quiet=quiet,
    )


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
