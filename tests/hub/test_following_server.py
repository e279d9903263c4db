"""A server that follows a tag: what takes the place of what answers, what never does, and when."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import rrmsdk
from rrmsdk.runtime import server
from rrmsdk.runtime.access import Access
from rrmsdk.runtime.served import Opening
from rrmsdk.runtime.service import Limits, Service
from rrmsdk.runtime.store import PIN, Store
from rrmsdk.runtime.watch import Watch
from rrmsdk.schema.bundle import CARD, Bundle
from tests.hub.test_following import TAG, move, publish, pulled, source
from tests.hub_server import HubServer
from tests.loopback import until
from tests.served import make_classifier, make_served, pixel_classifier
from tests.signatures import write_key


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "versions"


@pytest.fixture
def good(tmp_path: Path) -> Callable[[int], Bundle]:
    return lambda seed: make_served(tmp_path / f"made-{seed}", seed=seed)


@contextmanager
def served(hub: HubServer, root: Path, keep: int = 3) -> Iterator[Service]:
    """It looks twenty times a second."""
    following = source(hub, root, keep)
    (found,) = following.look()
    following.bring(found)
    store = Store(None, root, Opening(threads=1, most=4))
    store.begin(found.version)
    service = Service("digits", "0", store, Access(), Limits(batch=4), watch=Watch(following, 0.05))
    with server.running(service, server.listening("127.0.0.1", 0)):
        yield service


def swaps(service: Service, outcome: str) -> float:
    return service.metrics.registry.get_sample_value("rrmsdk_swaps_total", {"outcome": outcome}) or 0


def troubles(service: Service) -> float:
    return service.metrics.registry.get_sample_value("rrmsdk_watch_troubles_total") or 0


def looks(hub: HubServer) -> int:
    return hub.asked(f"/resolve/{TAG}/", "HEAD")


def looked(hub: HubServer, times: int = 3) -> None:
    """Until it has looked so many times more."""
    before = looks(hub)
    until(lambda: looks(hub) >= before + times)


def messages(caplog: pytest.LogCaptureFixture, message: str) -> list[dict[str, object]]:
    return [record.__dict__["fields"] for record in caplog.records if record.message == message]


def test_a_tag_is_followed_forth_and_back(hub: HubServer, root: Path, good: Callable[[int], Bundle]) -> None:
    first = publish(hub, good(1))
    with served(hub, root) as service:
        second = publish(hub, good(2))
        until(lambda: service.version == second)
        move(hub, first)
        until(lambda: service.version == first)
        until(lambda: pulled(root) == [second, first])
        assert [one.version for one in service.store.loaded] == [first, second]


def test_what_nobody_needs_is_taken_away(hub: HubServer, root: Path, good: Callable[[int], Bundle]) -> None:
    versions = [publish(hub, good(0))]
    with served(hub, root, keep=0) as service:
        for seed in (1, 2, 3):
            versions.append(publish(hub, good(seed)))
            until(lambda: service.version == versions[-1])
        until(lambda: {one.name for one in root.iterdir() if len(one.name) == 12} == set(versions[-2:]))


def damaged(folder: Path) -> Bundle:
    made = make_served(folder, seed=8)
    made.onnx.write_bytes(made.onnx.read_bytes()[:-3])
    return made


def not_finite(folder: Path) -> Bundle:
    rows = pixel_classifier()
    rows[63, 9] = np.nan
    return make_classifier(folder, rows)


def not_a_bundle(folder: Path) -> Bundle:
    made = make_served(folder, seed=8)
    (folder / CARD).write_text("{}")
    return made


@pytest.mark.parametrize(
    ("make", "says"),
    [(damaged, "has sha256"), (not_finite, "differ by nan"), (not_a_bundle, "card.json")],
)
def test_a_bad_version_stays_out_and_is_told_once(
    hub: HubServer, root: Path, tmp_path: Path, good: Callable[[int], Bundle], caplog: pytest.LogCaptureFixture,
    make: Callable[[Path], Bundle], says: str,
) -> None:  # fmt: skip
    first = publish(hub, good(1))
    with served(hub, root) as service:
        publish(hub, make(tmp_path / "bad"))
        until(lambda: swaps(service, "refused") == 1)
        looked(hub)
        (told,) = messages(caplog, "no swap")
        assert says in str(told["reason"])
        assert (service.version, swaps(service, "refused"), troubles(service)) == (first, 1, 0)
        better = publish(hub, good(2))
        until(lambda: service.version == better)


def test_where_keys_are_trusted_a_version_that_nobody_signed_stays_out(
    hub: HubServer, root: Path, tmp_path: Path, good: Callable[[int], Bundle], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    key = write_key(tmp_path / "release.pem")
    first = publish(hub, rrmsdk.sign(good(1), key=key))
    monkeypatch.setenv("RRMSDK_TRUST", f"{key}.pub")
    with served(hub, root) as service:
        assert (root / first / "model.sig").is_file()
        publish(hub, good(2))
        until(lambda: swaps(service, "refused") == 1)
        assert "is not signed: it has no model.sig" in str(messages(caplog, "no swap")[0]["reason"])
        assert service.version == first


def test_a_pinned_version_stays_until_it_is_unpinned(hub: HubServer, root: Path, good: Callable[[int], Bundle]) -> None:
    first = publish(hub, good(1))
    with served(hub, root) as service:
        looked(hub)
        (root / PIN).write_text(f"{first}\n")
        time.sleep(0.2)  # a look that was under way
        second = publish(hub, good(2))
        before = looks(hub)
        time.sleep(0.3)
        assert (service.version, looks(hub)) == (first, before)
        (root / PIN).unlink()
        until(lambda: service.version == second)


def test_a_version_that_was_rolled_back_by_hand_stays_until_the_tag_moves(
    hub: HubServer, root: Path, good: Callable[[int], Bundle]
) -> None:
    first = publish(hub, good(1))
    with served(hub, root) as service:
        second = publish(hub, good(2))
        until(lambda: service.version == second)
        asyncio.run(service.store.roll_back(None))
        looked(hub)
        assert service.version == first
        third = publish(hub, good(3))
        until(lambda: service.version == third)


def test_trouble_is_told_once_and_the_old_one_serves_on(
    hub: HubServer, root: Path, good: Callable[[int], Bundle], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rrmsdk.serve")
    first = publish(hub, good(1))
    with served(hub, root) as service:
        looked(hub)
        hub.trouble = lambda method, path: 503
        until(lambda: troubles(service) >= 3)
        assert service.version == first
        (told,) = messages(caplog, "watch in trouble")
        assert "is down or overloaded" in str(told["reason"])
        second = publish(hub, good(2))
        hub.trouble = lambda method, path: None
        until(lambda: service.version == second)
        until(lambda: len(messages(caplog, "watch is well again")) == 1)


def test_a_hub_that_stalls_holds_nothing_up(hub: HubServer, root: Path, good: Callable[[int], Bundle]) -> None:
    publish(hub, good(1))
    with served(hub, root):
        looked(hub)
        hub.trouble = lambda method, path: "stall"
        looked(hub, 1)
        began = time.monotonic()
    assert time.monotonic() - began < 8  # the client itself would wait for 10 seconds
