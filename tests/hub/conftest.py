"""A running Hub and a private cache. The client's settings are read when it is imported, so they come first."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HOME", tempfile.mkdtemp(prefix="rrmsdk-hf-"))

import pytest
from huggingface_hub import close_session

from rrmsdk.schema.bundle import Bundle
from tests.bundles import make_bundle
from tests.hub_server import HubServer

# Servers are not installed where the Hub alone is tested (`make test-hub-1`).
collect_ignore = [] if find_spec("starlette") and find_spec("onnx") else ["test_following_server.py"]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server
        close_session()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def made(tmp_path: Path) -> Bundle:
    """A bundle on this disk."""
    return make_bundle(tmp_path / "made")


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """An index with one embedded bundle: digits-cnn-linf."""
    make_bundle(tmp_path / "zoo" / "embedded" / "digits-cnn-linf", seed=7)
    return tmp_path / "zoo"


@pytest.fixture
def org(monkeypatch: pytest.MonkeyPatch) -> str:
    """The organisation whose names the user trusts."""
    monkeypatch.setenv("RRMSDK_HUB_ORG", "acme")
    return "acme"


@pytest.fixture
def contents(made: Bundle) -> dict[str, bytes]:
    """The files of `made`, as a repository holds them."""
    return {
        path.relative_to(made.path).as_posix(): path.read_bytes() for path in made.path.rglob("*") if path.is_file()
    }
