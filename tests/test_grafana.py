"""The dashboard in serve/grafana asks for nothing that /metrics does not tell."""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.runtime.http_served import ADMIN, BEARER, ask, plain, serving
from tests.served import make_served, some_digits, with_reference

DASHBOARD = json.loads((Path(__file__).parents[1] / "serve" / "grafana" / "rrmsdk.json").read_text())
PANELS = DASHBOARD["panels"]
TARGETS = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]
OF_PROMETHEUS = {"job", "instance"}  # labels that the scrape adds


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Labels by the name of each sample on /metrics of a server that was asked, swapped and misused."""
    root = tmp_path_factory.mktemp("versions")
    for version in "12":
        with_reference(make_served(root / version))
    (root / "admin").write_text(ADMIN)
    with serving(models=root, name="digits", window=8, admin_token_file=root / "admin") as served:
        for pixels in (np.zeros((8, 1, 8, 8)), some_digits(8) + 1):  # black: all classes alike; above 1
            ask(served, "POST", "/v2/models/digits/infer", plain(pixels))
        ask(served, "POST", "/v2/repository/models/digits/load", {"parameters": {"version": "1"}}, BEARER)
        text = ask(served, "GET", "/metrics")[1].decode()
    found: dict[str, set[str]] = defaultdict(set)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] |= sample.labels.keys()
    return found


def used(expression: str) -> dict[str, set[str]]:
    """The labels that an expression selects by, by metric."""
    chosen = re.findall(r"(rrmsdk_\w+)(?:\{([^}]*)\})?", expression)
    return {name: set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels)) for name, labels in chosen}


@pytest.mark.parametrize(("title", "target"), TARGETS, ids=[f"{title} {t['refId']}" for title, t in TARGETS])
def test_each_metric_and_label_is_on_the_metrics_page(told: dict[str, set[str]], title: str, target: Any) -> None:
    expression, metrics = target["expr"], used(target["expr"])
    assert metrics
    grouped = set(re.findall(r"\w+", " ".join(re.findall(r"\b(?:by|ignoring) \(([^)]*)\)", expression))))
    shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
    assert shown <= grouped
    for name, labels in metrics.items():
        assert name in told, f"{title}: /metrics has no {name}"
        unknown = (labels | grouped) - told[name] - OF_PROMETHEUS
        assert not unknown, f"{title}: {name} has no label {unknown}"


def test_values_of_labels_that_it_selects_by_are_routes(told: dict[str, set[str]]) -> None:
    from rrmsdk.runtime import app, protocol

    routes = {name for _, target in TARGETS for found in re.findall(r'route=~"([^"]+)"', target["expr"])
              for name in found.split("|")}  # fmt: skip
    assert routes == {"infer", "predict"}
    assert protocol.infer.__name__ in routes
    assert app.predict.__name__ in routes


def test_it_is_whole() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert DASHBOARD["uid"] == "rrmsdk"
    names = {one["name"] for one in DASHBOARD["templating"]["list"]}
    variables = set(re.findall(r"\$\{?([a-z]+)\}?", json.dumps(DASHBOARD)))
    assert variables == names
    for one, other in itertools.combinations([panel["gridPos"] for panel in PANELS], 2):
        apart = [one[at] + one[size] <= other[at] or other[at] + other[size] <= one[at] for at, size in ("xw", "yh")]
        assert any(apart), (one, other)
