"""`rrmsdk serve --watch` as a process, with a Hub beside it."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from rrmsdk import files
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema.bundle import ONNX, WEIGHTS, Bundle
from tests.bundles import make_bundle
from tests.hub_server import HubServer
from tests.served import make_served, some_digits, with_parity
from tests.test_serving import Process, ended, started

REPO = "acme/tiny"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


def publish(hub: HubServer, bundle: Bundle) -> str:
    """A commit of `main`; the name of its version."""
    paths = [one for one in bundle.path.rglob("*") if one.is_file()]
    return hub.put(REPO, {one.relative_to(bundle.path).as_posix(): one.read_bytes() for one in paths}).oid[:12]


def settings(hub: HubServer, folder: Path) -> dict[str, str]:
    """Of the Hub's client: this Hub, a home of its own, and the patience of one second."""
    return {
        "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "hf"), "HF_HUB_ETAG_TIMEOUT": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip


def asked(process: Process, pixels: np.ndarray) -> str:
    """The version that answered."""
    data = pixels.astype(np.float64).ravel().tolist()
    body = {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": list(pixels.shape), "data": data}]}
    with closing(http.client.HTTPConnection(process.url.removeprefix("http://"), timeout=30)) as connection:
        connection.request("POST", "/v2/models/tiny/infer", json.dumps(body))
        answer = connection.getresponse()
        told = json.loads(answer.read())
        assert answer.status == 200, told
        return told["model_version"]


def slow(folder: Path, seconds_each: int) -> Bundle:
    """A bundle whose network turns in a circle for so long that it can be stopped while it is tried."""
    made = make_bundle(folder, attacked=False)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["still"]), helper.make_node("MatMul", ["state", "turn"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [None, 64]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [None, 64]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["pixels"], ["flat"]),
            helper.make_node("Loop", ["times", "", "flat"], ["last"], body=body),
            helper.make_node("MatMul", ["last", "weight"], ["logits"]),
        ],
        "main_graph",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [
            numpy_helper.from_array(np.array(seconds_each * 20_000, np.int64), "times"),
            numpy_helper.from_array(np.eye(64, dtype=np.float32), "turn"),
            numpy_helper.from_array(np.ones((64, 10), np.float32), "weight"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model.metadata_props.add(key="rrmsdk.weights_sha256", value=made.card.files[WEIGHTS])
    files.write_bytes(folder / ONNX, model.SerializeToString())
    return with_parity(bundles.seal(folder, made.card))


@pytest.mark.slow
def test_a_branch_is_followed_from_nothing_and_its_last_version_answers_when_the_hub_is_away(
    hub: HubServer, tmp_path: Path
) -> None:
    options = ("--watch", f"hub:{REPO}", "--models", tmp_path / "versions", "--every", 0.1, "--name", "tiny")
    first = publish(hub, make_served(tmp_path / "1", seed=1))
    failed: list[BaseException] = []
    done = threading.Event()
    with started(*options, "--drain", 0, **settings(hub, tmp_path)) as process:
        assert asked(process, some_digits(1)) == first

        def keep_asking() -> None:
            try:
                while not done.is_set():
                    asked(process, some_digits(1))
            except BaseException as exc:
                failed.append(exc)

        thread = threading.Thread(target=keep_asking)
        thread.start()
        second = publish(hub, make_served(tmp_path / "2", seed=2))
        assert process.until("swapped")["version"] == second
        done.set()
        thread.join()
        assert not failed
        assert asked(process, some_digits(1)) == second
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(30) == 0
    hub.trouble = lambda method, path: "stall"
    with started(*options, **settings(hub, tmp_path)) as process:
        assert asked(process, some_digits(1)) == second
        assert "could not be reached" in process.until("watch in trouble")["reason"]
        assert asked(process, some_digits(1)) == second


@pytest.mark.slow
def test_a_hub_that_is_away_at_the_first_start_is_one_line_and_exit_code_two(hub: HubServer, tmp_path: Path) -> None:
    hub.trouble = lambda method, path: 503
    code, told = ended("--watch", f"hub:{REPO}", "--models", tmp_path / "v", **settings(hub, tmp_path))
    assert code == 2
    assert told.endswith("is down or overloaded (503 trouble 503). Try again later.\n")
    assert told.count("\n") == 1


@pytest.mark.slow
def test_sigterm_while_the_hub_stalls_ends_it_at_once(hub: HubServer, tmp_path: Path) -> None:
    publish(hub, make_served(tmp_path / "1", seed=1))
    options = ("--watch", f"hub:{REPO}", "--models", tmp_path / "versions", "--every", 0.1, "--drain", 0)
    patient = settings(hub, tmp_path) | {"HF_HUB_ETAG_TIMEOUT": "100"}
    with started(*options, **patient) as process:
        hub.trouble = lambda method, path: "stall"
        before = hub.asked("resolve", "HEAD")
        while hub.asked("resolve", "HEAD") == before:
            time.sleep(0.01)
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(30) == 0


@pytest.mark.slow
def test_sigterm_while_a_version_is_loaded_ends_well_and_swaps_nothing(tmp_path: Path) -> None:
    make_served(tmp_path / "versions" / "1", seed=1)
    with started("--watch", tmp_path / "versions", "--every", 0.1, "--drain", 0) as process:
        slow(tmp_path / "2", 2).path.rename(tmp_path / "versions" / "2")
        process.until("new version")
        time.sleep(0.3)
        process.process.send_signal(signal.SIGTERM)
        rest = process.process.stderr
        assert rest is not None
        events = [json.loads(line)["event"] for line in rest]
        assert process.process.wait(30) == 0
    assert events == ["stopping", "stopped"]
