"""Drift as a client, Prometheus and Grafana see it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rrmsdk.schema import value
from rrmsdk.schema.drift import Drift
from tests.runtime.http_served import Served, ask, counted, plain, serving
from tests.served import make_served, some_digits, with_reference

NAMES = {"classes", "confidence", "margin", "channel_0"}
PLACE = "/v2/models/digits"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Version 2, which was exported with what to expect; its windows are of 40 images."""
    root = tmp_path_factory.mktemp("versions")
    with_reference(make_served(root / "2"))
    with serving(models=root, name="digits", window=40) as running:
        yield running


def send(served: Served, pixels: np.ndarray) -> None:
    for at in range(0, len(pixels), 8):
        assert ask(served, "POST", f"{PLACE}/infer", plain(pixels[at : at + 8]))[0] == 200


def drift_of(served: Served) -> dict[str, Any]:
    status, told, _ = ask(served, "GET", f"{PLACE}/drift")
    assert status == 200
    return told


def test_windows_are_told_as_the_schema_says(served: Served) -> None:
    before = drift_of(served)
    send(served, some_digits(48, seed=1))
    told = drift_of(served)
    assert set(told) == {"model_name", "model_version", "window", "expected", "finished", "current"}
    assert (told["model_name"], told["model_version"], told["window"], told["expected"]) == ("digits", "2", 40, 1000)
    assert len(told["finished"]) == len(before["finished"]) + 1
    last = told["finished"][-1]
    assert set(last) == {"number", "began", "ended", "images", "above", "drift"}
    assert (last["images"], last["above"], told["current"]["images"]) == (40, False, 8)
    assert set(last["drift"]) == NAMES
    assert set(last["drift"]["classes"]) == {"kind", "effect", "least", "statistic", "critical", "n", "above"}
    assert value.parse(Drift, told).finished[-1].number == last["number"]
    assert ask(served, "GET", f"{PLACE}/versions/2/drift")[1] == told


def test_dark_images_are_found_and_prometheus_is_told(served: Served) -> None:
    windows = counted(served, "rrmsdk_drift_windows", version="2")
    send(served, some_digits(80, seed=2) / 4)
    last = drift_of(served)["finished"][-1]
    assert last["above"]
    assert last["drift"]["channel_0"]["above"]
    assert counted(served, "rrmsdk_drift_windows", version="2") == windows + 2
    assert counted(served, "rrmsdk_drift_above", version="2", of="channel_0") == 1
    assert counted(served, "rrmsdk_drift_effect", version="2", of="margin") == last["drift"]["margin"]["effect"]


def test_prometheus_is_told_of_the_canary_too(tmp_path: Path) -> None:
    for version in ("1", "2"):
        with_reference(make_served(tmp_path / version))
    (tmp_path / "pinned").write_text("1\n")
    with serving(models=tmp_path, name="digits", window=40, canary="2=100") as running:
        send(running, some_digits(40, seed=2) / 4)
        assert counted(running, "rrmsdk_drift_windows", version="1") == 0
        assert counted(running, "rrmsdk_drift_windows", version="2") == 1
        assert counted(running, "rrmsdk_drift_above", version="2", of="channel_0") == 1


def test_a_version_of_an_older_export_is_told_to_be_exported_again(tmp_path: Path) -> None:
    make_served(tmp_path / "1")
    with serving(models=tmp_path, name="digits") as running:
        send(running, some_digits(8))
        status, told, _ = ask(running, "GET", f"{PLACE}/drift")
        assert (status, counted(running, "rrmsdk_drift_windows")) == (404, 0)
        assert "version 1 has no onnx/golden.safetensors and no onnx/serving.json. Export it again" in told["error"]
        assert ask(running, "GET", "/card")[1]["lacks"] == told["error"]


def test_another_models_drift_is_not_there(served: Served) -> None:
    assert ask(served, "GET", "/v2/models/letters/drift")[0] == 404


def test_a_job_reads_the_windows_of_a_server(served: Served) -> None:
    from rrmsdk.retraining import observe
    from rrmsdk.schema import job

    send(served, some_digits(80, seed=2) / 4)
    seen = observe.drift(job.Drift(url=f"{served.url}{PLACE}/drift", statistic="channel_0", above=0.2))
    told = drift_of(served)["finished"]
    assert [one.values["channel_0"] for one in seen] == [one["drift"]["channel_0"]["effect"] for one in told]
    assert seen[-1].values["channel_0"] > 0.2
