"""What a repository's page tells people to type gives the student's own answers, typed as it stands there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rrmsdk
from rrmsdk.schema.bundle import README, Bundle
from tests.hub_server import HubServer
from tests.peers.test_js import MODULES, NODE

REPO = "acme/digits"
TRANSFORMERS = MODULES / "@huggingface" / "transformers"
pytestmark = [pytest.mark.slow, pytest.mark.peers]


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def pushed(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A student with its graph, of which `hub` holds a copy."""
    folder = tmp_path_factory.mktemp("page") / "digits"
    shutil.copytree(rrmsdk.pull("hub:digits-cnn-linf").path, folder)
    student = rrmsdk.export(f"path:{folder}", images=20, queries=20)
    rrmsdk.push(student, REPO, endpoint=hub.endpoint, token=hub.token)
    return student


@pytest.fixture(scope="module")
def black(pushed: Bundle) -> list[float]:
    """The student's logits for the image that the page shows: all black."""
    import torch

    with torch.inference_mode():
        return rrmsdk.load(pushed)(torch.zeros(1, 1, 8, 8))[0].tolist()


def typed(hub: HubServer, language: str, holds: str) -> str:
    """The code block of the page that has `holds` in it."""
    page = next(reversed(hub.repos[f"models/{REPO}"].commits.values())).files[README].content.decode()
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    (block,) = [block for block in blocks if holds in block]
    return block


def run(command: list[str], hub: HubServer, home: Path) -> list[float]:
    env = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_with_onnxruntime_alone(hub: HubServer, pushed: Bundle, black: list[float], tmp_path: Path) -> None:
    code = typed(hub, "python", "onnxruntime") + "\nprint(logits[0].tolist())"
    assert run([sys.executable, "-c", code], hub, tmp_path) == pytest.approx(black, abs=1e-4)


def test_with_rrmsdk(hub: HubServer, pushed: Bundle, black: list[float], tmp_path: Path) -> None:
    loaded = typed(hub, "python", "rrmsdk.load").partition("student =")[0]
    code = f"import torch\n{loaded}\nprint(network(torch.zeros(1, 1, 8, 8))[0].tolist())"
    assert run([sys.executable, "-c", code], hub, tmp_path) == pytest.approx(black, abs=1e-5)


@pytest.mark.skipif(NODE is None or not TRANSFORMERS.is_dir(), reason=f"no node, or no {TRANSFORMERS}: make test-peers")
def test_with_transformers_js(hub: HubServer, pushed: Bundle, black: list[float], tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(MODULES)
    elsewhere = (
        'import { env } from "@huggingface/transformers";\n'
        f'env.remoteHost = "{hub.endpoint}/";\nenv.cacheDir = "{tmp_path}/cache";\n'
    )
    script = tmp_path / "page.mjs"
    script.write_text(
        f"{elsewhere}{typed(hub, 'js', 'AutoModel')}\nconsole.log(JSON.stringify(Array.from(logits.data)));"
    )
    assert run([str(NODE), str(script)], hub, tmp_path) == pytest.approx(black, abs=1e-4)
