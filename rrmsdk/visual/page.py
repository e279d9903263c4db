"""The HTML report: one page that needs nothing but itself.

Charts are Plotly's, because a reader can ask each point for its numbers, and the same figure is drawn again for a
phone, a dark screen and paper.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rrmsdk.errors import MissingExtraError
from rrmsdk.schema.card import Card
from rrmsdk.schema.certified import Certified
from rrmsdk.schema.corruption import Corruptions
from rrmsdk.schema.curve import Curve
from rrmsdk.schema.diagnosis import Diagnosis, Scores
from rrmsdk.schema.parity import ExportParity
from rrmsdk.schema.report import UPPER_BOUND, Report, wilson
from rrmsdk.schema.threat import ThreatModel, spelt
from rrmsdk.visual import page_charts as charts
from rrmsdk.visual import page_tables as tables
from rrmsdk.visual.page_charts import MODEL, PALETTES, TEACHER, Chart
from rrmsdk.visual.page_tables import Heat, Table

if TYPE_CHECKING:
    from rrmsdk.visual.page_images import Seen

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Contents:
    """What is on the page; what is None is left out, and the page says how to get it.

    seen: None: no images, and `why_unseen` says why.
    graphs: what is known of each exported one, by its name in the bundle.
    """

    card: Card
    report: Report
    seen: Seen | None
    why_unseen: str
    diagnosis: Diagnosis | None
    curve: Curve | None
    corruptions: Corruptions | None
    certified: Certified | None
    written_by: str
    graphs: Mapping[str, ExportParity] = field(default_factory=dict)


def can_render() -> bool:
    """Whether the extra `report` is installed."""
    return find_spec("plotly") is not None and find_spec("jinja2") is not None


def render(contents: Contents) -> str:
    """The page. Text from cards and reports is escaped wherever it goes.

    Raises:
        MissingExtraError: plotly or jinja2 is not installed.
    """
    if not can_render():
        raise MissingExtraError("report", "rrmsdk.report")
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    rooms = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    rooms.filters |= {"percent": tables.percent, "span": tables.span, "short": charts.short}
    drawn, report = _charts(contents), contents.report
    return rooms.get_template("page.html").render(
        card=contents.card, report=report, seen=contents.seen, why_unseen=contents.why_unseen,
        diagnosis=contents.diagnosis, curve=contents.curve, corruptions=contents.corruptions,
        certified=contents.certified, graphs=contents.graphs, upper_bound=UPPER_BOUND, threat=_in_words(report.threat),
        clean_interval=wilson(round(report.clean * report.images), report.images), tables=_tables(contents),
        heat=_heat(contents), charts=drawn, figures={chart.id: chart.figure for chart in drawn.values()},
        palettes=PALETTES, plotly=_plotly(), style=_text("page.css"), script=_text("page.js"),
    )  # fmt: skip


def _charts(contents: Contents) -> dict[str, Chart]:
    drawn, report, diagnosis = [charts.waterfall(contents.report)], contents.report, contents.diagnosis
    for images, who in _told(contents).items():
        if who:
            drawn.append(charts.reliability(f"reliability-{images}", who))
            drawn.append(charts.entropy(f"entropy-{images}", who, len(report.data.labels)))
    if diagnosis is not None and diagnosis.changes:
        drawn.append(charts.change(diagnosis.changes))
    if contents.curve is not None:
        drawn.append(charts.curve(contents.curve, report.threat))
    if contents.certified is not None:
        drawn.append(charts.certified(contents.certified))
    return {chart.id: chart for chart in drawn}


def _tables(contents: Contents) -> dict[str, Table]:
    report, seen, diagnosis = contents.report, contents.seen, contents.diagnosis
    made = {
        "attacks": tables.attacks(report), "checks": tables.checks(report.checks),
        "provenance": tables.provenance(contents.card, report, contents.written_by),
        "certainty": tables.certainty([(f"{name}, {images}", scores) for images, who in _told(contents).items()
                                       for name, scores, _ in who]),
    }  # fmt: skip
    if seen is not None:
        made["mistakes"] = tables.mistakes(seen)
    if diagnosis is not None:
        made["comparisons"] = tables.comparisons(diagnosis.comparisons)
    if contents.graphs:
        made["graphs"] = tables.graphs(contents.graphs)
    if contents.certified is not None:
        made["certified"] = tables.certified(contents.certified)
    return made


def _heat(contents: Contents) -> dict[str, Heat]:
    made = {} if contents.seen is None else {"confusion": tables.confusion(contents.seen)}
    if contents.corruptions is not None:
        made["corruptions"] = tables.corruptions(contents.corruptions)
    return {name: heat for name, heat in made.items() if heat is not None}


def _told(contents: Contents) -> dict[str, list[tuple[str, Scores, str]]]:
    """Name, scores and colour of each model on clean and attacked images: of the diagnosis, else of our own look."""
    if contents.diagnosis is not None:
        both = ((contents.diagnosis.model, MODEL), (contents.diagnosis.teacher, TEACHER))
        found = [(who.name, who, colour) for who, colour in both if who is not None]
    else:
        found = [] if contents.seen is None else [(contents.card.name, contents.seen, MODEL)]
    return {
        images: [(name, getattr(who, images), colour) for name, who, colour in found]
        for images in ("clean", "attacked")
    }


def _in_words(threat: ThreatModel) -> str:
    """What the attacker may do."""
    eps = f"{spelt(threat.eps)} ({float(threat.eps):.4g})"
    what = {
        "linf": f"every pixel value may change by up to {eps}",
        "l2": f"the perturbation may be up to {eps} long (L2)",
        "l1": f"the changes of all pixel values may add up to {eps} (L1)",
    }[threat.norm]
    return f"{what}, pixel values being in 0 to 1"


@cache
def _plotly() -> str:
    """Plotly's script, packed to 2 of its 4.8 MB; the browser unpacks it."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def _text(name: str) -> str:
    """Our own style and script, which hold nothing of the bundle's."""
    return (HERE / name).read_text(encoding="utf-8")
