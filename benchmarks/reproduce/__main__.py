"""The tables of the RRM, MixACM and AKD papers, run at a scale and written beside the papers' figures.

The tables are in `benchmarks/reproduce/tables/`, the scales in `scales.toml`. Each row is a recipe, trained in a folder
of its own under --runs; the same command continues where it was stopped, and teachers are trained once.

    python -m benchmarks.reproduce --scale tiny --out benchmarks/results
    python -m benchmarks.reproduce --scale digits --table rrm-1 --rows natural rrm-rn18 --seeds 3
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from benchmarks.reproduce import rows
from benchmarks.reproduce.measure import Found, measured
from benchmarks.reproduce.rows import Row, Scale, Table
from rrmsdk.errors import RrmError


@dataclass(frozen=True)
class Task:
    """A row and a seed. depth: how many teachers stand one behind another."""

    table: Table
    row: Row
    seed: int
    depth: int


def main(words: list[str] | None = None) -> None:
    args = _arguments(words)
    try:
        scale = rows.scale(args.scale)
        tables = [rows.table(name) for name in args.table or rows.table_names()]
        tasks = _tasks(tables, set(args.rows), args.seeds)
    except RrmError as exc:
        sys.exit(f"reproduce: {exc}")
    if args.jobs > 1:
        os.environ["OMP_NUM_THREADS"] = "1"  # of each process; read when it imports torch
    runs, path = args.runs.resolve() / scale.name, _path(args, tables)
    found: dict[str, list[Found]] = {table.name: [] for table in tables}
    try:
        for number, (task, one) in enumerate(_done(tasks, scale, runs, args.jobs), 1):
            found.setdefault(task.table.name, []).append(one)
            print(f"{number}/{len(tasks)} {task.table.name}/{task.row.name} {_said(one)}", file=sys.stderr, flush=True)
            _write(path, tables, found, scale, args)
    except RrmError as exc:
        sys.exit(f"reproduce: {exc}. The same command continues; what was measured so far is in {path}")
    print(f"written to {path}")


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", default="tiny", help="tiny (minutes), digits, small (hours), or paper (one GPU)")
    parser.add_argument("--table", nargs="+", default=[], help=f"of {', '.join(rows.table_names())}; all by default")
    parser.add_argument("--rows", nargs="+", default=[], help="of these tables; their teachers are run besides")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each where there are several")
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"), help="folder of the runs, kept")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the result file")
    parser.add_argument("--note", default="", help="for the result file, such as what else the machine was doing")
    return parser.parse_args(words)


def _tasks(tables: list[Table], chosen: set[str], seeds: int) -> list[Task]:
    """What is to be run, teachers before students.

    Raises:
        FieldError: a row that no table has.
    """
    wanted: dict[tuple[str, str], tuple[Table, Row]] = {}
    if unknown := chosen - {row.name for table in tables for row in table.row}:
        tables[0].find(unknown.pop())
    for table in tables:
        for row in table.row:
            if not chosen or row.name in chosen:
                wanted |= {(of.name, one.name): (of, one) for of, one in [*_behind(table, row), (table, row)]}
    taught = {(of.name, one.name) for table, row in wanted.values() for of, one in _behind(table, row)}
    asked = {(table.name, row.name) for table in tables for row in table.row if not chosen or row.name in chosen}
    tasks = [
        Task(table, row, seed, len(_behind(table, row)))
        for key, (table, row) in wanted.items()
        for seed in range(1 if row.shared or (key in taught and key not in asked) else seeds)
    ]
    return sorted(tasks, key=lambda task: task.depth)


def _behind(table: Table, row: Row) -> list[tuple[Table, Row]]:
    """The rows that teach it, and those that teach them, farthest first."""
    found: list[tuple[Table, Row]] = []
    for reference in row.teachers:
        if rows.is_row(reference):
            of, taught, _ = rows.row_of(reference, table)
            found += [*_behind(of, taught), (of, taught)]
    return found


def _done(tasks: list[Task], scale: Scale, runs: Path, jobs: int) -> Iterator[tuple[Task, Found]]:
    """Each task with what came of it, as they end; no student before its teachers."""
    if jobs == 1:
        for task in tasks:
            yield task, measured(task.table, task.row, scale, task.seed, runs)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for depth in sorted({task.depth for task in tasks}):
            going = {pool.submit(measured, one.table, one.row, scale, one.seed, runs): one
                     for one in tasks if one.depth == depth}  # fmt: skip
            for future in as_completed(going):
                yield going[future], future.result()


def _path(args: argparse.Namespace, tables: list[Table]) -> Path:
    import torch

    from rrmsdk.verification.provenance import result_file

    theme = "-".join(args.table) if args.table else "all"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return result_file(args.out, f"reproduce-{args.scale}-{theme}", device)


def _write(
    path: Path, tables: list[Table], found: dict[str, list[Found]], scale: Scale, args: argparse.Namespace
) -> None:
    from benchmarks.reproduce import report

    report.write(path, tables, found, scale, args)


def _said(one: Found) -> str:
    figures = "  ".join(f"{name} {seen.robust:.3f}" for name, seen in one.by.items())
    clean = next((f"clean {seen.clean:.3f}  " for seen in one.by.values()), "")
    return f"seed {one.seed}: {clean}{figures}  trained {one.timed.seconds:.0f} s {one.says}".rstrip()


if __name__ == "__main__":
    main()
