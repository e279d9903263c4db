"""The result file: paper and measured side by side, claims asked of both, and where the numbers come from."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.reproduce import claims, rows
from benchmarks.reproduce.measure import Found
from benchmarks.reproduce.rows import Row, Scale, Table
from rrmsdk import files
from rrmsdk.schema.report import UPPER_BOUND, wilson
from rrmsdk.visual.figure import can_plot, figure
from rrmsdk.visual.tradeoff import tradeoff

JPEG = (
    "CIFAR-10 here is JPEG re-encoded, which costs accuracy on natural and on attacked images: figures are not of the "
    "papers' images."
)
SMOKE = "A smoke run: nothing learns in so few steps, and the claims are not expected to hold."


def write(
    path: Path, tables: Sequence[Table], found: dict[str, list[Found]], scale: Scale, args: argparse.Namespace
) -> None:
    """The whole file, beside its name and renamed."""
    lines = [f"# Tables of the papers at scale `{scale.name}`, {datetime.now(UTC).date()}", "", scale.says, ""]
    lines += [
        f"{UPPER_BOUND} Figures are per cent, with 95 % Wilson intervals over the images (one seed), or the mean and "
        f"range over seeds ({args.seeds} here; teachers have one). An empty paper column: not at hand. Minutes are "
        "wall-clock, validation included; whatever else the machine was doing makes them longer.",
        "",
    ]
    if args.note:
        lines += [args.note, ""]
    if any(one.encoding == "jpeg" for of in found.values() for one in of):
        lines += [JPEG, ""]
    for table in tables:
        lines += _table(table, found.get(table.name, []), scale)
    files.write_text(path, "\n".join([*lines, *_origin(args.jobs)]))
    if not scale.smoke and can_plot():
        for table in tables:
            _draw(path.with_name(f"{path.stem}{f'-{table.name}' if len(tables) > 1 else ''}.svg"), table, found)


def _draw(path: Path, table: Table, found: dict[str, list[Found]]) -> None:
    """A sweep's trade-off, or the rows' robust accuracy over their natural one, paper and here."""
    of, attack = found.get(table.name, []), table.judged[0].attack
    for one in of:
        if one.swept is not None:
            tradeoff(one.swept, path)
            return
    names = [row.name for row in table.row if any(one.row == row.name and one.by for one in of)]
    if not names:
        return
    with figure(path, title=table.title) as (axis,):
        for label, figure_of in (
            ("here", lambda name: claims.of_runs(of, name)), ("paper", lambda name: claims.of_paper(table, name)),
        ):  # fmt: skip
            pairs = [(name, figure_of(f"{name}.clean"), figure_of(f"{name}.{attack}")) for name in names]
            seen = [(name, x.number, y.number) for name, x, y in pairs if x and y]
            if seen:
                axis.scatter([x for _, x, _ in seen], [y for _, _, y in seen], label=label)
            for name, x, y in seen:
                axis.annotate(name, (x, y), xytext=(3, 3), textcoords="offset points", fontsize=7)
        axis.set(xlabel="clean, per cent", ylabel=f"{attack}, per cent")
        axis.legend(frameon=False)


def _table(table: Table, found: list[Found], scale: Scale) -> list[str]:
    names = [spec.attack for spec in table.judged]
    columns = ["row", "network", "method", "clean, paper", "here"]
    for name in names:
        columns += [f"{name}, paper", "here"]
    columns += ["minutes, paper", "here", "x natural", "x SAT", "note"]
    lines = [f"## {table.name}: {table.title}", "", f"Paper: {table.source}.{f' {table.notes}' if table.notes else ''}"]
    lines += ["", _evaluation(table, found, scale), "", f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for row in table.row:
        of = [one for one in found if one.row == row.name]
        if of:
            lines.append(f"| {' | '.join(_cells(table, row, of, found, scale))} |")
    for one in found:
        if one.swept is not None:
            lines += ["", *_points(one)]
    return [*lines, "", *_claims(table, found, scale)]


def _evaluation(table: Table, found: list[Found], scale: Scale) -> str:
    ran = {name: told for one in found for name, told in one.attacks.items()}
    of_paper = {spec.attack: " ".join(f"{value} {key}" for key, value in (("steps", spec.steps),
                ("restarts", spec.restarts)) if value) for spec in table.judged}  # fmt: skip
    each = [f"{name}{f' ({how})' if how else ''}: {ran.get(name, 'nothing yet')}" for name, how in of_paper.items()]
    encoding = {one.encoding for one in found if one.encoding}
    stored = f" Images stored as {', '.join(sorted(encoding))}." if encoding else ""
    threat = f"Threat {rows.threat(table, scale)} (paper {table.threat})."
    return f"{threat} What was run for the paper's {'; '.join(each)}.{stored}"


def _cells(table: Table, row: Row, of: list[Found], found: list[Found], scale: Scale) -> list[str]:
    network, here = rows.arch(row), rows.arch_here(row, scale)
    taught = f" from {', '.join(row.teachers)}" if row.teachers else ""
    cells = [row.name, network if here == network else f"{here} for {network}", f"{row.method['name']}{taught}"]
    first = table.judged[0].attack
    cells += [_paper(row.paper.clean), _share(of, first, "clean")]
    for spec in table.judged:
        cells += [_paper(row.paper.figure(spec.attack)), _share(of, spec.attack, "robust")]
    cells += [_minutes_of_paper(row), _minutes(of), *(_ratio(of, found, to) for to in (table.natural, table.sat))]
    notes = [row.note, f"paper's figures: {row.paper.source}" if row.paper.source else "", of[0].says]
    killed = sum(one.timed.killed for one in of)
    notes.append(f"{killed} sessions were killed, so its time is a lower bound" if killed else "")
    return [*cells, "; ".join(note for note in notes if note)]


def _paper(number: float | None) -> str:
    return "" if number is None else f"{number:.2f}"


def _share(of: list[Found], attack: str, what: str) -> str:
    seen = [one.by[attack] for one in of if attack in one.by]
    if not seen:
        return ""
    shares = [100 * getattr(one, what) for one in seen]
    if len(shares) > 1:
        return f"{statistics.fmean(shares):.1f} ({min(shares):.1f} to {max(shares):.1f})"
    low, high = wilson(round(shares[0] / 100 * seen[0].images), seen[0].images)
    return f"{shares[0]:.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def _minutes_of_paper(row: Row) -> str:
    whole = f" ({row.paper.with_teacher:g} with teacher)" if row.paper.with_teacher else ""
    return f"{row.paper.minutes:g}{whole}" if row.paper.minutes else ""


def _minutes(of: list[Found]) -> str:
    own, whole = (claims.of_runs(of, f"{of[0].row}.{what}") for what in claims.TIMES)
    if own is None:
        return ""
    more = whole is not None and whole.number > own.number
    return f"{own.number:.2g}" + (f" ({whole.number:.2g} with teacher)" if more and whole else "")


def _ratio(of: list[Found], found: list[Found], to: str | None) -> str:
    own = claims.of_runs(of, f"{of[0].row}.minutes")
    against = claims.of_runs(found, f"{to}.minutes") if to else None
    return f"{own.number / against.number:.2f}" if own and against else ""


def _points(one: Found) -> list[str]:
    assert one.swept is not None
    (field,) = one.swept.ranges
    lines = [f"| {field} | clean, validation | PGD-{one.swept.screening.steps}, validation |", "| --- | --- | --- |"]
    for point in one.swept.points:
        seen = point.screened
        figures = f"{100 * seen.clean:.1f} | {100 * seen.robust:.1f}" if seen else "diverged |"
        lines.append(f"| {point.values[field]:g} | {figures} |")
    return lines


def _claims(table: Table, found: list[Found], scale: Scale) -> list[str]:
    if not table.claim:
        return []
    lines = [SMOKE, ""] if scale.smoke else []
    lines += ["| claim | in the paper | here |", "| --- | --- | --- |"]
    for claim in table.claim:
        paper = claims.verdict(claim, lambda name: claims.of_paper(table, name))
        here = claims.verdict(claim, lambda name: claims.of_runs(found, name))
        lines.append(f"| {claim.says} | {paper} | {here} |")
    return [*lines, ""]


def _origin(jobs: int) -> list[str]:
    import torch

    from rrmsdk.verification.provenance import command_line, hardware, versions

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return [
        f"Hardware: {hardware(device)}, {jobs} processes at a time.",
        f"Versions: {', '.join(f'{name} {number}' for name, number in versions().items())}.",
        f"Command: `{command_line()}`.",
        "",
    ]
