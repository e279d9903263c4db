"""The tables of the HTML report, as text; the page escapes it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rrmsdk.schema import bundle as bundles
from rrmsdk.schema.card import Card
from rrmsdk.schema.certified import Certified
from rrmsdk.schema.corruption import Corruptions
from rrmsdk.schema.diagnosis import Comparison, Scores
from rrmsdk.schema.parity import ExportParity
from rrmsdk.schema.report import Check, Report

if TYPE_CHECKING:
    from rrmsdk.visual.page_images import Seen

NUMBER, TEXT, MARK = "n", "", "mark"
GOOD, BAD, PLAIN = "good", "bad", ""
MATRIX, PAIRS = 20, 5  # classes up to which confusion is a matrix, with as many pairs below it; beyond, MATRIX pairs
OK, NOT_OK = "✓ ok", "✗ not ok"


@dataclass(frozen=True)
class Row:
    """The first cell names the row. tone: GOOD, BAD or PLAIN."""

    cells: tuple[str, ...]
    tone: str = PLAIN


@dataclass(frozen=True)
class Table:
    """columns: (name, NUMBER, TEXT or MARK). narrow: fits a phone as it is; else its rows become blocks there."""

    label: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    narrow: bool = False


@dataclass(frozen=True)
class Heat:
    """Counts or shares as a coloured table. cells: (text, share of the colour, whether it is on the diagonal)."""

    label: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, float, bool], ...]], ...]


def percent(share: float, digits: int = 2) -> str:
    """`34.60 %`."""
    return f"{100 * share:.{digits}f} %"


def number(given: Any) -> str:
    """Four digits of a float, anything else as it is written in JSON or TOML."""
    if isinstance(given, float):
        return f"{given:.4g}"
    if isinstance(given, dict | list | tuple | bool):
        return json.dumps(given)
    return "none" if given is None else str(given)


def span(interval: tuple[float, float]) -> str:
    """`30.56 to 38.87 %`."""
    return f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f} %"


def settings(given: Mapping[str, Any]) -> str:
    """`steps = 20, start = random`."""
    return ", ".join(f"{name} = {number(one)}" for name, one in given.items())


def attacks(report: Report) -> Table:
    columns = ("attack", TEXT), ("attacked", NUMBER), ("broken", NUMBER), ("robust after it", NUMBER)
    rows = (
        Row((one.name, str(one.attacked), str(one.broken), percent(one.robust), f"{one.seconds:.1f}",
             settings(one.settings) or "none"))
        for one in report.attacks
    )  # fmt: skip
    return Table("attacks", (*columns, ("seconds", NUMBER), ("settings", TEXT)), tuple(rows))


def checks(found: Sequence[Check]) -> Table:
    """What is not ok comes first."""
    rows = (
        Row((one.name, OK if one.ok else NOT_OK, "not measured" if one.value is None else number(one.value), one.says),
            GOOD if one.ok else BAD)
        for one in sorted(found, key=lambda check: check.ok)
    )  # fmt: skip
    return Table(
        "checks", (("check", TEXT), ("mark", MARK), ("value", NUMBER), ("what it measures", TEXT)), tuple(rows)
    )


def certainty(who: Sequence[tuple[str, Scores]]) -> Table:
    """who: (which model on which images, scores)."""
    rows = (
        Row((name, percent(one.accuracy), percent(one.confidence), f"{one.p_correct:.3f}", f"{one.entropy:.3f}",
             percent(one.entropy_share, 1), f"{one.ece:.3f}"))
        for name, one in who
    )  # fmt: skip
    names = "accuracy", "mean confidence", "p(label)", "entropy, nats", "of log C", "ECE"
    return Table("certainty", (("images", TEXT), *((name, NUMBER) for name in names)), tuple(rows))


def comparisons(found: Sequence[Comparison]) -> Table:
    """What is suspicious comes first."""
    rows = (
        Row((f"{one.first}, {one.second}", "✗ suspicious" if one.suspicious else "✓ usual",
             f"{percent(one.first_robust, 1)}, {percent(one.second_robust, 1)}",
             f"{_signed(one.gap)} ({_signed(one.interval[0])}, {_signed(one.interval[1])})", f"{one.margin:.3f}",
             one.says), BAD if one.suspicious else GOOD)
        for one in sorted(found, key=lambda one: not one.suspicious)
    )  # fmt: skip
    columns = (
        ("first, second", TEXT), ("mark", MARK), ("robust under each", NUMBER), ("gap (95 % interval)", NUMBER),
        ("margin", NUMBER), ("a gap would say", TEXT),
    )  # fmt: skip
    return Table("comparisons of attacks", columns, tuple(rows))


def confusion(seen: Seen) -> Heat | None:
    """True class x predicted class; None where there are too many classes to be read."""
    if len(seen.labels) > MATRIX:
        return None
    rows = (
        (seen.labels[true], tuple((str(count), count / max(1, sum(row)), guess == true)
                                  for guess, count in enumerate(row)))
        for true, row in enumerate(seen.confusion)
    )  # fmt: skip
    return Heat("true class by class predicted under attack", seen.labels, tuple(rows))


def mistakes(seen: Seen) -> Table:
    """The pairs of classes that are mixed up most often under attack."""
    found = [(count, true, guess) for true, row in enumerate(seen.confusion) for guess, count in enumerate(row)
             if count and true != guess]  # fmt: skip
    found.sort(key=lambda one: (-one[0], one[1:]))
    rows = (
        Row((seen.labels[true], seen.labels[guess], str(count), percent(count / sum(seen.confusion[true]), 1)))
        for count, true, guess in found[: PAIRS if len(seen.labels) <= MATRIX else MATRIX]
    )
    columns = ("true class", TEXT), ("taken for", TEXT), ("images", NUMBER), ("of that class", NUMBER)
    return Table("most frequent mistakes under attack", columns, tuple(rows), narrow=True)


def corruptions(found: Corruptions) -> Heat:
    """Accuracy in percent by type and severity."""
    rows = (
        (one.name, tuple((f"{100 * share:.0f}", share, False) for share in (*one.accuracy, one.mean)))
        for one in found.types
    )
    return Heat("accuracy in percent by corruption and severity", ("1", "2", "3", "4", "5", "mean"), tuple(rows))


def certified(found: Certified) -> Table:
    rows = (
        Row((f"{one.radius:.3g}", percent(one.accuracy), span(one.interval)))
        for _, one in sorted({one.radius: one for one in (*found.radii, found.at_threat)}.items())
    )
    columns = ("L2 radius", TEXT), ("certified, at least", NUMBER), ("95 % interval", NUMBER)
    return Table("certified accuracy of the smoothed classifier", columns, tuple(rows), narrow=True)


def graphs(found: Mapping[str, ExportParity]) -> Table:
    """A line for each exported graph, beside the network under the same attacks."""
    rows = []
    for name, one in found.items():
        gap = f"{max(one.clean.max_abs, one.attacked.max_abs):.2g}"
        robust = one.robust
        if robust is None:
            rows.append(Row((name, one.precision, gap, "not measured", "", "")))
            continue
        told = (f"{percent(robust.graph.robust)} ({percent(robust.network.robust)})", f"{robust.margin * 100:g}")
        clean = f"{percent(robust.graph.clean)} ({percent(robust.network.clean)})"
        rows.append(Row((name, one.precision, gap, clean, *told)))
    columns = (
        ("graph", TEXT), ("precision", TEXT), ("largest gap of a logit", NUMBER), ("clean (network)", NUMBER),
        ("robust (network)", NUMBER), ("may fall by, points", NUMBER),
    )  # fmt: skip
    return Table("exported graphs", columns, tuple(rows))


def provenance(card: Card, report: Report, written_by: str) -> Table:
    """Where the numbers come from."""
    facts = (*_model(card, report), *_judged(report), *_files(card), ("page written by", written_by))
    return Table("provenance", (("fact", TEXT), ("value", TEXT)), tuple(map(Row, facts)))


def _model(card: Card, report: Report) -> Iterator[tuple[str, str]]:
    model = card.model
    yield "weights sha256", report.weights_sha256
    yield "weights", f"{card.weights}, trained by {card.method.get('name', 'an unknown method')}, {card.date}"
    projected = f", projected to {model.width}" if model.width else ""
    yield (
        "architecture",
        f"{model.arch}, channels ×{model.width_mult:g}{projected}, {model.classes} classes, "
        f"{model.channels} × {model.input_size} × {model.input_size} pixels",
    )
    yield "trained for", str(card.threat)
    for teacher in card.teachers:
        revision = f", revision {teacher.revision}" if teacher.revision else ""
        yield "teacher", f"{teacher.ref}{revision}, weights sha256 {teacher.weights_sha256}"
    if not card.teachers:
        yield "teacher", "none"
    yield "method", settings(card.method)
    yield "licence of the weights", card.licence
    if card.notes:
        yield "notes", card.notes


def _judged(report: Report) -> Iterator[tuple[str, str]]:
    data = report.data
    yield "data", f"{data.name}, {data.encoding}; {data.train} train, {data.validation} validation, {data.test} test"
    yield "data fingerprint", data.fingerprint
    yield "judged on", f"{report.images} images of the {report.split} split"
    yield "seed and batch", f"seed {report.seed}, {report.batch} images a batch"
    yield "engine", report.engine
    yield "versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())
    yield "hardware", report.hardware
    yield "date, time taken", f"{report.date}, {report.seconds:.0f} s"


def _files(card: Card) -> Iterator[tuple[str, str]]:
    for name, digest in card.files.items():
        if name not in (bundles.WEIGHTS, bundles.REPORT):
            yield f"sha256 of {name}", digest


def _signed(value: float) -> str:
    return "0" if abs(value) < 5e-4 else f"{value:+.3f}".replace("-", "−")
