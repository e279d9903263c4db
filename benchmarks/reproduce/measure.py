"""A row trained in its own folder and attacked; what is done already is read, not done again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import rrmsdk
from benchmarks.reproduce import rows
from benchmarks.reproduce.rows import Row, Scale, Table
from rrmsdk.errors import DivergedError
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.report import Report
from rrmsdk.schema.sweep import Measured, Sweep
from rrmsdk.schema.value import Value

TIMED, JUDGED = "timed.json", "judged"


class Timed(Value):
    """Seconds that training took so far, validation included. killed: sessions that ended without saying how long."""

    seconds: float = 0.0
    killed: int = 0
    running: bool = False
    done: bool = False


@dataclass(frozen=True)
class Found:
    """One row, one seed, and what came of it.

    by: the attack's name in the paper, to what was found by the evaluation that stands for it.
    attacks: the same names, to what was run: `autoattack, 200 images`.
    with_teacher: seconds, the teachers' included.
    swept: where the row is a sweep.
    says: why there are no figures.
    """

    row: str
    seed: int
    timed: Timed = field(default_factory=Timed)
    with_teacher: float = 0.0
    by: dict[str, Measured] = field(default_factory=dict)
    attacks: dict[str, str] = field(default_factory=dict)
    encoding: str = ""
    swept: Sweep | None = None
    says: str = ""


def measured(table: Table, row: Row, scale: Scale, seed: int, runs: Path) -> Found:
    """Train and judge; a run that diverges, or whose teacher did, is a result, too."""
    from rrmsdk import data, models, training, verification  # noqa: F401  (seconds that are no run's)

    if row.skip:
        return Found(row.name, seed, says=f"not run: {row.skip}")
    lost = [one for one in row.teachers if not _there(one, table, scale, runs)]
    if lost:
        return Found(row.name, seed, says=f"not run: its teacher {', '.join(lost)} has no weights")
    try:
        return _swept(table, row, scale, seed, runs) if row.sweep else _one(table, row, scale, seed, runs)
    except DivergedError as exc:
        return Found(row.name, seed, says=f"diverged: {str(exc).split('. ')[0]}")


def _there(reference: str, table: Table, scale: Scale, runs: Path) -> bool:
    path = rows.teacher(reference, table, scale, runs).partition("@")[0]
    return not path.startswith("path:") or bundles.is_bundle(Path(path.removeprefix("path:")))


def _one(table: Table, row: Row, scale: Scale, seed: int, runs: Path) -> Found:
    folder = rows.folder(runs, table, row, seed)
    if (pulled := scale.teachers.get(f"{table.name}/{row.name}")) is not None:
        return _judged(table, row, scale, rrmsdk.pull(pulled, folder), Found(row.name, seed, says=f"{pulled}, pulled"))
    recipe = rows.recipe(table, row, scale, seed, runs)
    with timed(folder):
        if row.rdt is not None:
            (reference,) = row.teachers
            rrmsdk.robustify(
                rows.teacher(reference, table, scale, runs), rows.data(table, row, scale)["name"], folder / "rdt",
                seed=seed, quiet=True, **(row.rdt | scale.rdt),
            )  # fmt: skip
        bundle = rrmsdk.train(recipe, out=folder, attack=False)
    spent = value.read(Timed, folder / TIMED)
    whole = spent.seconds + teachers_seconds(table, row, scale, runs)
    return _judged(table, row, scale, bundle, Found(row.name, seed, spent, whole))


def _judged(table: Table, row: Row, scale: Scale, bundle: Bundle, found: Found) -> Found:
    """Attacked as each of the table's evaluations says, on the test split of the table's data."""
    by, attacks = {}, {}
    for asked in table.judged:
        spec = scale.judge(asked)
        kept = bundle.path / JUDGED / f"{spec.attack}-{spec.steps or 0}-{spec.restarts or 0}-{spec.images}.json"
        if not kept.exists():
            report = rrmsdk.verify(bundle, data=rows.data(table, row, scale), **spec.model_dump()).report
            value.write(report, kept)
        report = value.read(Report, kept)
        by[asked.attack], attacks[asked.attack] = Measured.of(report), _told(report)
    return replace(found, by=by, attacks=attacks, encoding=bundle.card.data.encoding)


def _swept(table: Table, row: Row, scale: Scale, seed: int, runs: Path) -> Found:
    assert row.sweep is not None
    folder = rows.folder(runs, table, row, seed)
    recipe = rows.recipe(table, row, scale, seed, runs)
    with timed(folder):
        swept = rrmsdk.sweep(recipe, row.sweep.field, scale.values or row.sweep.values, out=folder, report=1)
    encoding = bundles.read(swept.folder(swept.best)).card.data.encoding
    spec = recipe.verify
    told = f"{spec.attack}, {spec.images or 'all'} images; points by PGD-{swept.screening.steps} on validation"
    best = swept.best.reported
    found = {spec.attack: best} if best is not None else {}
    return Found(
        row.name, seed, value.read(Timed, folder / TIMED), 0.0,
        {asked.attack: one for asked in table.judged for one in found.values()}, {table.judged[0].attack: told},
        encoding, swept,
    )  # fmt: skip


def teachers_seconds(table: Table, row: Row, scale: Scale, runs: Path) -> float:
    """What the row's teachers took, each once; one that was pulled counts nothing."""
    folders = set()
    for reference in row.teachers:
        if rows.is_row(reference):
            of, taught, _ = rows.row_of(reference, table)
            if f"{of.name}/{taught.name}" not in scale.teachers:
                folders.add(rows.folder(runs, of, taught, 0))
    return sum(value.read(Timed, folder / TIMED).seconds for folder in folders)


@contextmanager
def timed(folder: Path) -> Iterator[None]:
    """Add up the seconds of every session of a run in its folder."""
    path = folder / TIMED
    before = value.read(Timed, path) if path.exists() else Timed()
    if before.done:
        yield
        return
    killed = before.killed + before.running
    value.write(before.model_copy(update={"running": True, "killed": killed}), path)
    began, done = time.perf_counter(), False
    try:
        yield
        done = True
    finally:
        spent = before.seconds + time.perf_counter() - began
        value.write(Timed(seconds=spent, killed=killed, done=done), path)


def _told(report: Report) -> str:
    steps = {one.settings.get("steps") for one in report.attacks} - {None}
    name = f"PGD-{steps.pop()}" if report.attack == "pgd" and len(steps) == 1 else report.attack
    return f"{name}, {report.images} images"
