"""Several processes share a cache, some are killed, and a person watches: pulls by fresh interpreters."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from rrmsdk import files
from rrmsdk.hub import fetch
from rrmsdk.schema.bundle import CARD, WEIGHTS, Bundle
from rrmsdk.schema.ref import Ref
from tests.bundles import make_large
from tests.hub_server import HubServer, Trickle

REPO = "acme/large"
PULL = [sys.executable, "-m", "rrmsdk", "pull", f"hub:{REPO}", "--json"]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_large(tmp_path_factory.mktemp("large"), 3_000_000)


@pytest.fixture
def full(hub: HubServer, large: Bundle) -> HubServer:
    """A Hub that holds `large`."""
    hub.put(REPO, {name: (large.path / name).read_bytes() for name in (CARD, *large.card.files)})
    return hub


def settings(hub: HubServer, cache: Path, **more: str) -> dict[str, str]:
    clean = {name: said for name, said in os.environ.items() if not name.startswith(("HF_", "HUGGING", "TQDM"))}
    mine = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**clean, **mine, "PYTHONPATH": os.getcwd(), **more}


def start(hub: HubServer, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(PULL, env=settings(hub, cache), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kept(hub: HubServer, cache: Path) -> Bundle:
    """What lies in the cache, verified, without a Hub."""
    return fetch(Ref.parse(f"hub:{REPO}"), endpoint=hub.endpoint, cache=cache, offline=True).bundle


def test_two_processes_that_pull_at_once_both_have_the_bundle(full: HubServer, cache: Path, large: Bundle) -> None:
    both = threading.Barrier(2, timeout=60)

    def wait_for_both(method: str, path: str) -> Trickle | None:
        if path.startswith("/api/models/"):
            both.wait()
        return Trickle(20, 0.01) if method == "GET" and path.endswith(WEIGHTS) else None

    full.trouble = wait_for_both
    ends = [(*process.communicate(timeout=120), process.returncode) for process in [start(full, cache) for _ in "ab"]]
    assert [code for _, _, code in ends] == [0, 0], ends
    assert {json.loads(out)["path"] for out, _, _ in ends} == {str(kept(full, cache).path)}
    assert kept(full, cache).card == large.card
    assert full.asked(WEIGHTS, "GET") == 1  # the second waited for the first


def test_a_pull_that_was_killed_leaves_nothing_half_and_can_be_repeated(full: HubServer, cache: Path) -> None:
    sending, trouble = threading.Event(), Trickle(1000, 0.05)

    def note(method: str, path: str) -> Trickle | None:
        if method == "GET" and path.endswith(WEIGHTS):
            sending.set()
            return trouble
        return None

    full.trouble = note
    process = start(full, cache)
    assert sending.wait(60)
    process.kill()
    process.communicate(timeout=60)
    assert not list(cache.rglob(WEIGHTS))
    full.trouble = lambda method, path: None
    out, err = start(full, cache).communicate(timeout=120)
    assert json.loads(out)["path"] == str(kept(full, cache).path), err


@pytest.mark.slow
def test_one_of_two_processes_is_killed_and_the_other_goes_on(full: HubServer, cache: Path) -> None:
    sending = threading.Event()

    def slow_at_first(method: str, path: str) -> Trickle | None:
        if method == "GET" and path.endswith(WEIGHTS) and not sending.is_set():
            sending.set()
            return Trickle(1000, 0.05)
        return None

    full.trouble = slow_at_first
    first = start(full, cache)
    assert sending.wait(60)
    second = start(full, cache)
    while full.asked(WEIGHTS, "HEAD") < 2:  # the second has come as far as the first, whose lock it meets
        assert second.poll() is None
        threading.Event().wait(0.02)
    first.kill()
    first.communicate(timeout=60)
    out, err = second.communicate(timeout=120)
    assert json.loads(out)["path"] == str(kept(full, cache).path), err


def watched(hub: HubServer, cache: Path, *options: str, **more: str) -> tuple[str, str]:
    """What a pull writes to a pipe as stdout, and to a terminal as stderr."""
    terminal, side = pty.openpty()
    termios.tcsetwinsize(side, (24, 100))
    process = subprocess.Popen([*PULL, *options], env=settings(hub, cache, **more), stdout=subprocess.PIPE, stderr=side)
    os.close(side)
    seen = b""
    try:
        while said := os.read(terminal, 1 << 16):
            seen += said
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(terminal)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, seen.decode()
    return out.decode(), seen.decode()


def test_on_a_terminal_a_pull_shows_its_progress(full: HubServer, cache: Path, large: Bundle) -> None:
    out, seen = watched(full, cache)
    assert f"{WEIGHTS}: 100%" in seen
    assert "3.00M/3.00M" in seen
    assert json.loads(out)["path"] == str(kept(full, cache).path)


@pytest.mark.parametrize(("options", "more"), [(["--quiet"], {}), ([], {"HF_HUB_DISABLE_PROGRESS_BARS": "1"})])
def test_a_quiet_pull_shows_nothing(full: HubServer, cache: Path, options: list[str], more: dict[str, str]) -> None:
    out, seen = watched(full, cache, *options, **more)
    assert seen == ""
    assert json.loads(out)["path"] == str(kept(full, cache).path)


def test_without_a_terminal_a_pull_writes_its_result_and_nothing_else(full: HubServer, cache: Path) -> None:
    out, err = start(full, cache).communicate(timeout=120)
    assert err == ""
    assert json.loads(out)["path"] == str(kept(full, cache).path)


def test_the_weights_that_were_pulled_are_those_that_were_sent(full: HubServer, cache: Path, large: Bundle) -> None:
    start(full, cache).communicate(timeout=120)
    assert files.sha256(kept(full, cache).weights) == large.card.files[WEIGHTS]
