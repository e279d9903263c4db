"""What the page of a pushed model tells a reader to type works, word for word."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rrmsdk
from tests.hub_server import HubServer

REPO = "acme/digits"


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubServer, str]]:
    """A Hub that holds the embedded teacher with its ONNX file, and the page that was written for it."""
    folder = tmp_path_factory.mktemp("pages") / "digits"
    bundle = rrmsdk.export("hub:digits-cnn-linf", out=folder)
    with HubServer() as server:
        rrmsdk.push(bundle, REPO, endpoint=server.endpoint, token=server.token)
        commit = server.repos[f"models/{REPO}"].at("main")
        assert commit is not None
        yield server, commit.files["README.md"].content.decode()


def run(code: str, server: HubServer, home: Path) -> str:
    settings = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    clean = {name: said for name, said in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run([sys.executable, "-c", code], env=clean | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def block(page: str, holds: str) -> str:
    """The one Python block of the page that holds this text."""
    (found,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.S) if holds in code]
    return found


@pytest.mark.slow
def test_it_loads_with_rrmsdk(pushed: tuple[HubServer, str], tmp_path: Path) -> None:
    server, page = pushed
    lines = [line for line in block(page, "rrmsdk.load").splitlines() if "transfer(" not in line]
    said = run("\n".join([*lines, "print(type(network).__name__, network.training)"]), server, tmp_path)
    assert said == "Classifier False"


@pytest.mark.slow
def test_it_answers_with_onnxruntime_alone(pushed: tuple[HubServer, str], tmp_path: Path) -> None:
    server, page = pushed
    code = block(page, "InferenceSession") + "\nimport sys\nprint(logits.shape, 'torch' in sys.modules)"
    assert run(code, server, tmp_path) == "(1, 10) False"


@pytest.mark.slow
def test_the_call_in_javascript_names_the_graphs_own_ends(pushed: tuple[HubServer, str]) -> None:
    _, page = pushed
    (code,) = re.findall(r"```js\n(.*?)```", page, re.S)
    assert "const { logits } = await model({ pixels });" in code
    assert "new Float32Array(1 * 8 * 8), [1, 1, 8, 8]" in code
