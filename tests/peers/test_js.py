"""The JavaScript client, written by others than the Python one, and rrmsdk read what the other wrote."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rrmsdk import files
from rrmsdk.hub import fetch, push
from rrmsdk.schema.bundle import CARD, README, WEIGHTS, Bundle
from rrmsdk.schema.ref import Ref
from tests.bundles import make_large
from tests.hub_server import HubServer

MODULES = Path(__file__).parents[2] / ".peers" / "js" / "node_modules"
NODE = shutil.which("node")
MISSING = "there is no node" if NODE is None else f"@huggingface/hub is not in {MODULES}: make test-peers"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.peers,
    pytest.mark.skipif(NODE is None or not (MODULES / "@huggingface" / "hub").is_dir(), reason=MISSING),
]

REPO = "acme/large"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def large(tmp_path: Path) -> Bundle:
    return make_large(tmp_path / "large", 12_000_000)


def javascript(verb: str, hub: HubServer, folder: Path, *more: str) -> Any:
    command = [str(NODE), str(Path(__file__).with_name("client.cjs")), verb, hub.endpoint, hub.token, REPO, str(folder)]
    done = subprocess.run(
        [*command, *more], env={**os.environ, "NODE_PATH": str(MODULES)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("part", "store"), [(None, "endpoint"), (5_000_000, "elsewhere")])
def test_rrmsdk_pulls_what_javascript_pushed(
    hub: HubServer, large: Bundle, tmp_path: Path, part: int | None, store: str
) -> None:
    hub.part, hub.store = part, getattr(hub, store)
    said = javascript("push", hub, large.path)
    assert set(said["files"]) == {CARD, *large.card.files}
    found = fetch(Ref.parse(f"hub:{REPO}"), endpoint=hub.endpoint, cache=tmp_path / "cache")
    assert found.revision == said["commit"]
    assert found.bundle.card == large.card
    assert files.sha256(found.bundle.weights) == large.card.files[WEIGHTS]
    assert hub.asked("/parts/", "PUT") == (3 if part else 0)


@pytest.mark.parametrize("store", [None, "endpoint", "elsewhere"])
@pytest.mark.parametrize("revision", ["main", "v1", "COMMIT"])
def test_javascript_pulls_what_rrmsdk_pushed(
    hub: HubServer, large: Bundle, tmp_path: Path, revision: str, store: str | None
) -> None:
    commit = push(large, REPO, endpoint=hub.endpoint, token=hub.token, tag="v1").rpartition("/")[2]
    hub.store = store and getattr(hub, store)
    said = javascript("pull", hub, tmp_path / "pulled", commit if revision == "COMMIT" else revision)
    there = hub.repos[f"models/{REPO}"].commits[commit].files
    assert said["sha"] == commit
    assert {file["path"]: file["size"] for file in said["files"]} == {
        name: len(blob.content) for name, blob in there.items()
    }
    for name, promised in large.card.files.items():
        assert files.sha256(tmp_path / "pulled" / name) == promised
    for name in (CARD, README):
        assert hashlib.sha256((tmp_path / "pulled" / name).read_bytes()).hexdigest() == there[name].sha256
    assert {head["Authorization"] for head in hub.heads if head["Host"].startswith("localhost")} <= {None}
