"""The charts of the HTML report, as data for Plotly. A colour is the name of one of PALETTES, filled in by the page."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rrmsdk.schema.certified import Certified
from rrmsdk.schema.curve import Curve
from rrmsdk.schema.diagnosis import Change, Scores
from rrmsdk.schema.report import Report, wilson
from rrmsdk.schema.threat import ThreatModel, spelt
from rrmsdk.visual.page_tables import NUMBER, TEXT, Row, Table, percent

# All text colours reach a contrast of 4.5 on their ground (WCAG 2, AA).
PALETTES = {
    "light": {
        "--ground": "#ffffff", "--panel": "#f5f7f9", "--ink": "#1b1f24", "--muted": "#57606a", "--line": "#d5dbe1",
        "--clean": "#1f66b0", "--broken": "#b8400e", "--robust": "#16754f", "--teacher": "#7a3fc4",
        "--clean-soft": "rgba(31,102,176,0.22)", "--robust-soft": "rgba(22,117,79,0.22)",
        "--teacher-soft": "rgba(122,63,196,0.22)", "--broken-soft": "rgba(184,64,14,0.12)",
    },
    "dark": {
        "--ground": "#14171a", "--panel": "#1d2125", "--ink": "#e8eaed", "--muted": "#a9b1ba", "--line": "#3a4148",
        "--clean": "#6db1f7", "--broken": "#f5925f", "--robust": "#53c796", "--teacher": "#bd9bff",
        "--clean-soft": "rgba(109,177,247,0.28)", "--robust-soft": "rgba(83,199,150,0.28)",
        "--teacher-soft": "rgba(189,155,255,0.28)", "--broken-soft": "rgba(245,146,95,0.16)",
    },
}  # fmt: skip
MODEL, TEACHER = "--clean", "--teacher"
DOT, DOTS = 5.0, 16.0  # of a dot in pixels: the least, and what all images in one bin add
Who = Sequence[tuple[str, Scores, str]]  # name, scores, colour


@dataclass(frozen=True)
class Chart:
    """A figure, what it shows in words, and its numbers for those who do not see it."""

    id: str
    alt: str
    figure: dict[str, Any]
    numbers: Table | None = None


def waterfall(report: Report) -> Chart:
    """From clean accuracy down through each attack to robust accuracy."""
    n, lost = report.images, [one.broken / report.images for one in report.attacks]
    names = ["clean", *(one.name for one in report.attacks), "robust"]
    ends = [report.clean, *(one.robust for one in report.attacks)]
    says = [percent(report.clean), *(f"−{percent(one)}" if one else "0" for one in lost), percent(report.robust)]
    rows = list(range(len(names)))
    bars = {
        "type": "bar", "orientation": "h", "y": rows, "x": [report.clean, *lost, report.robust],
        "base": [0.0, *ends[1:], 0.0], "width": 0.62, "hoverinfo": "text",
        "marker": {"color": ["--clean", *["--broken"] * len(lost), "--robust"]},
        "hovertext": [f"{_safe(name)}: {said}" for name, said in zip(names, says, strict=True)],
    }  # fmt: skip
    spans = (wilson(round(report.clean * n), n), report.clean), (report.interval, report.robust)
    intervals = {
        "x": [middle for _, middle in spans], "y": [0, rows[-1]], "mode": "markers", "hoverinfo": "skip",
        "marker": {"size": 1, "color": "--ink"},
        "error_x": {
            "type": "data", "symmetric": False, "color": "--ink", "thickness": 1.5, "width": 4,
            "array": [max(0.0, high - middle) for (_, high), middle in spans],
            "arrayminus": [max(0.0, middle - low) for (low, _), middle in spans],
        },
    }  # fmt: skip
    layout = _layout(height=70 + 40 * len(rows), showlegend=False)
    layout["shapes"] = [
        {"type": "line", "x0": end, "x1": end, "y0": row - 0.31 + (0.62 if row == 0 else 0), "y1": row + 0.69,
         "layer": "below", "line": {"color": "--muted", "width": 1, "dash": "dot"}}
        for row, end in enumerate(ends)
    ]  # fmt: skip
    layout["annotations"] = [
        {"xref": "paper", "x": 1, "y": row, "xanchor": "left", "xshift": 8, "text": said, "showarrow": False}
        for row, said in zip(rows, says, strict=True)
    ]
    layout["xaxis"] |= {"range": [0, 1], "tickformat": ".0%", "title": {"text": "accuracy", "standoff": 8}}
    layout["yaxis"] |= {
        "range": [len(rows) - 0.4, -0.6], "tickvals": rows, "ticktext": [_safe(short(name, 14)) for name in names],
        "showgrid": False,
    }  # fmt: skip
    layout["margin"] |= {"r": 82}
    alt = f"Accuracy falls from {says[0]} clean to {says[-1]} robust; the table that follows has each attack."
    return Chart("waterfall", alt, {"data": [bars, intervals], "layout": layout})


def curve(found: Curve, judged_at: ThreatModel) -> Chart:
    """Robust accuracy over the radius, with the radius of the report marked where it is of this norm."""
    points = [(spelt(one.eps), float(one.eps), one.robust, one.interval)
              for one in sorted(found.points, key=lambda one: one.eps)]  # fmt: skip
    told = [f"eps {text}: {percent(robust)} ({100 * low:.1f} to {100 * high:.1f} %)"
            for text, _, robust, (low, high) in points]  # fmt: skip
    xs = [eps for _, eps, _, _ in points]
    ticks = _apart([(at, _safe(text)) for text, at, _, _ in points], 0.13 * xs[-1])
    band = {
        "x": [*xs, *reversed(xs)], "fill": "toself", "fillcolor": "--robust-soft", "mode": "none",
        "y": [*(high for *_, (_, high) in points), *(low for *_, (low, _) in reversed(points))], "hoverinfo": "skip",
    }  # fmt: skip
    line = {
        "x": xs, "y": [robust for _, _, robust, _ in points], "mode": "lines+markers", "hoverinfo": "text",
        "hovertext": [_safe(said) for said in told], "line": {"color": "--robust", "width": 2},
        "marker": {"size": 7, "color": "--robust"},
    }  # fmt: skip
    layout = _layout(height=340, showlegend=False)
    layout["margin"] |= {"t": 30}
    own = [float(judged_at.eps)] if judged_at.norm == found.norm else []
    layout["shapes"] = [_mark(at) for at in own]
    layout["annotations"] = [_beside_mark(at, max(xs), "eps of the report") for at in own]
    layout["xaxis"] |= {
        "tickvals": [at for at, _ in ticks], "ticktext": [text for _, text in ticks], "tickangle": 0,
        "rangemode": "tozero", "title": {"text": f"eps, {_safe(found.norm)}", "standoff": 8},
    }  # fmt: skip
    layout["yaxis"] |= {"range": [0, 1.02], "tickformat": ".0%", "title": {"text": "robust accuracy", "standoff": 6}}
    rows = tuple(Row((text, percent(robust), f"{100 * low:.2f} to {100 * high:.2f} %"))
                 for text, _, robust, (low, high) in points)  # fmt: skip
    numbers = Table(
        "robust accuracy over eps", (("eps", TEXT), ("robust", NUMBER), ("95 % interval", NUMBER)), rows, True
    )
    return Chart("curve", f"Robust accuracy over eps: {'; '.join(told)}.", {"data": [band, line], "layout": layout},
                 numbers)  # fmt: skip


def certified(found: Certified) -> Chart:
    """Share of images certified as their label beyond each radius: a step down at each image's own."""
    reach = sorted(one.radius for one in found.certificates if one.certified == one.label and one.radius > 0)
    most = max(found.largest, found.at_threat.radius)
    steps = {
        "x": [0.0, *reach, most], "y": [*((len(reach) - k) / found.images for k in range(len(reach) + 1)), 0],
        "mode": "lines", "line": {"color": "--teacher", "width": 2, "shape": "hv"},
        "fill": "tozeroy", "fillcolor": "--teacher-soft",
        "hovertemplate": "L2 radius %{x:.3f}: %{y:.2%}<extra></extra>",
    }  # fmt: skip
    layout = _layout(height=320, showlegend=False)
    layout["margin"] |= {"t": 30}
    layout["shapes"] = [_mark(found.at_threat.radius)]
    layout["annotations"] = [_beside_mark(found.at_threat.radius, most, f"the threat's ball, {found.threat}")]
    layout["xaxis"] |= {"range": [0, 1.03 * most], "title": {"text": "L2 radius", "standoff": 8}}
    layout["yaxis"] |= {
        "range": [0, 1.02],
        "tickformat": ".0%",
        "title": {"text": "certified, at least", "standoff": 6},
    }
    told = "; ".join(f"{percent(one.accuracy)} beyond {one.radius:.3g}" for one in found.radii)
    alt = f"Certified accuracy of the smoothed classifier over the L2 radius, a lower bound: {told}."
    return Chart("certified", alt, {"data": [steps], "layout": layout})


def reliability(id_: str, who: Who) -> Chart:
    """Accuracy over confidence; the area of a dot grows with the share of images in its bin."""
    traces: list[dict[str, Any]] = [
        {"x": [0, 1], "y": [0, 1], "mode": "lines", "hoverinfo": "skip", "showlegend": False,
         "line": {"color": "--muted", "dash": "dot", "width": 1}}
    ]  # fmt: skip
    rows: list[Row] = []
    for name, scores, colour in who:
        full = [one for one in scores.reliability if one.images]
        n = sum(one.images for one in full)
        told = [(one.confidence or 0.0, one.accuracy or 0.0, one.images) for one in full]
        traces.append({
            "x": [c for c, _, _ in told], "y": [a for _, a, _ in told], "mode": "lines+markers", "name": _safe(name),
            "line": {"color": colour, "width": 1.5}, "hoverinfo": "text",
            "marker": {"color": colour, "size": [DOT + DOTS * math.sqrt(k / n) for _, _, k in told], "opacity": 0.8},
            "hovertext": [f"{_safe(name)}<br>confidence {c:.3f}, accuracy {a:.3f}, {k} images" for c, a, k in told],
        })  # fmt: skip
        rows += [Row((f"{name}, ({one.low:.2f}, {one.high:.2f}]", str(k), f"{c:.3f}", f"{a:.3f}"))
                 for one, (c, a, k) in zip(full, told, strict=True)]  # fmt: skip
    layout = _layout(height=340, showlegend=len(who) > 1)
    layout["xaxis"] |= {"range": [0, 1.03], "title": {"text": "confidence", "standoff": 8}}
    layout["yaxis"] |= {"range": [-0.03, 1.03], "title": {"text": "accuracy", "standoff": 6}}
    eces = "; ".join(f"{name}: ECE {scores.ece:.3f}" for name, scores, _ in who)
    columns = ("model, confidence in", TEXT), ("images", NUMBER), ("mean confidence", NUMBER), ("accuracy", NUMBER)
    numbers = Table("bins of confidence", columns, tuple(rows), narrow=True)
    return Chart(id_, f"Reliability diagram. {eces}.", {"data": traces, "layout": layout}, numbers)


def entropy(id_: str, who: Who, classes: int) -> Chart:
    """How many images are met with which entropy, in equal bins from 0 to log C."""
    most, traces = math.log(classes), []
    rows: list[Row] = []
    for name, scores, colour in who:
        bins = len(scores.entropies)
        edges = [most * number / bins for number in range(bins + 1)]
        said = [f"{low:.2f} to {high:.2f}" for low, high in pairwise(edges)]
        traces.append({
            "type": "bar", "x": [(low + high) / 2 for low, high in pairwise(edges)],
            "y": list(scores.entropies), "width": most / bins, "name": _safe(name), "hoverinfo": "text",
            "marker": {"color": f"{colour}-soft", "line": {"color": colour, "width": 1}},
            "hovertext": [f"{_safe(name)}<br>{span} nats: {k} images"
                          for span, k in zip(said, scores.entropies, strict=True)],
        })  # fmt: skip
        rows += [Row((f"{name}, {span}", str(k))) for span, k in zip(said, scores.entropies, strict=True)]
    layout = _layout(height=300, showlegend=len(who) > 1, barmode="overlay")
    layout["xaxis"] |= {"range": [0, most * 1.01], "title": {"text": f"entropy, nats (log C = {most:.2f})"}}
    layout["yaxis"] |= {"title": {"text": "images", "standoff": 6}, "rangemode": "tozero"}
    means = "; ".join(f"{name}: mean {scores.entropy:.3f} nats" for name, scores, _ in who)
    numbers = Table("bins of entropy", (("model, entropy in nats", TEXT), ("images", NUMBER)), tuple(rows), narrow=True)
    return Chart(id_, f"Histogram of entropy. {means}.", {"data": traces, "layout": layout}, numbers)


def change(changes: Sequence[Change]) -> Chart:
    """p(label) of the student beyond its teacher, in bins of equally many images from easy to hard."""
    at, traces = list(range(len(changes))), []
    for number, (images, colour) in enumerate((("clean", "--clean"), ("attacked", "--broken"))):
        means = [getattr(one, images) for one in changes]
        errors = [getattr(one, f"{images}_error") or 0.0 for one in changes]
        traces.append({
            "x": [place + 0.12 * number - 0.06 for place in at], "y": means, "mode": "lines+markers", "name": images,
            "line": {"color": colour, "width": 1.5}, "marker": {"color": colour, "size": 7}, "hoverinfo": "text",
            "error_y": {"type": "data", "array": errors, "color": colour, "thickness": 1.2, "width": 3},
            "hovertext": [f"{images}, difficulty {one.difficulty:.3f}: {mean:+.3f} ± {error:.3f}"
                          for one, mean, error in zip(changes, means, errors, strict=True)],
        })  # fmt: skip
    layout = _layout(height=320)
    ticks = [f"{one.difficulty:.2g}" for one in changes]
    layout["xaxis"] |= {"tickvals": at, "ticktext": ticks, "tickangle": -45, "zeroline": False,
                        "title": {"text": "difficulty: easy to hard", "standoff": 8}}  # fmt: skip
    layout["yaxis"] |= {"title": {"text": "p(label), student − teacher", "standoff": 6}, "zeroline": True}
    rows = tuple(Row((f"{one.difficulty:.3f}", str(one.images), f"{one.clean:+.3f}", f"{one.attacked:+.3f}"))
                 for one in changes)  # fmt: skip
    columns = ("difficulty", TEXT), ("images", NUMBER), ("clean", NUMBER), ("attacked", NUMBER)
    alt = "What the student gives the label beyond its teacher, over the difficulty of the image."
    return Chart("change", alt, {"data": traces, "layout": layout}, Table("changes", columns, rows, narrow=True))


def short(text: str, most: int) -> str:
    """`text`, cut in the middle where it is longer than `most`."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def _apart(ticks: list[tuple[float, str]], least: float) -> list[tuple[float, str]]:
    """Those that do not stand on each other on a phone, the last one among them."""
    kept: list[tuple[float, str]] = []
    for at, text in reversed(ticks):
        if not kept or kept[-1][0] - at >= least:
            kept.append((at, text))
    return kept[::-1]


def _mark(x: float) -> dict[str, Any]:
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper",
            "line": {"color": "--muted", "width": 1, "dash": "dot"}}  # fmt: skip


def _beside_mark(x: float, most: float, text: str) -> dict[str, Any]:
    """On the side where there is more room."""
    return {"x": x, "y": 1, "yref": "paper", "yanchor": "bottom", "xanchor": "left" if x < most / 2 else "right",
            "text": _safe(text), "showarrow": False, "font": {"color": "--muted"}}  # fmt: skip


def _safe(text: str) -> str:
    """Plotly reads tags in its texts, links among them; a name has none."""
    return html.escape(text, quote=False)


def _layout(**fields: Any) -> dict[str, Any]:
    """What all charts share: the page's font and colours, no dragging, so that a finger scrolls the page."""
    axis = {"gridcolor": "--line", "linecolor": "--line", "zerolinecolor": "--line", "fixedrange": True,
            "automargin": True, "zeroline": False}  # fmt: skip
    return {
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": "--ink"},
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "dragmode": False, "autosize": True,
        "margin": {"l": 12, "r": 12, "t": 12, "b": 12}, "xaxis": dict(axis), "yaxis": dict(axis),
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": {"bgcolor": "--panel", "bordercolor": "--line", "font": {"color": "--ink"}},
        **fields,
    }  # fmt: skip
