"""A tag that moves, followed by a folder of versions and by a server."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from rrmsdk.errors import HubError, IntegrityError, MismatchError, RefError, SaveError
from rrmsdk.hub.following import LOCK, NOTE, PULLING, Following, follow
from rrmsdk.runtime import server
from rrmsdk.runtime.access import Access
from rrmsdk.runtime.served import Opening
from rrmsdk.runtime.service import Limits, Service
from rrmsdk.runtime.store import PIN, Store
from rrmsdk.runtime.watch import Watch
from rrmsdk.schema.bundle import CARD, ONNX, Bundle
from rrmsdk.schema.ref import Ref
from tests.hub_server import HubServer
from tests.served import make_classifier, make_served, pixel_classifier

REPO, TAG = "acme/tiny", "champion"


def publish(hub: HubServer, bundle: Bundle) -> str:
    """A commit of the bundle, which the tag means from now on; the name of its version."""
    paths = [one for one in bundle.path.rglob("*") if one.is_file()]
    oid = hub.put(REPO, {one.relative_to(bundle.path).as_posix(): one.read_bytes() for one in paths}).oid
    move(hub, oid)
    return oid[:12]


def move(hub: HubServer, oid: str) -> None:
    hub.repos[f"models/{REPO}"].tags[TAG] = next(
        one for one in hub.repos[f"models/{REPO}"].commits if one.startswith(oid)
    )


def source(hub: HubServer, root: Path, keep: int = 3, ref: str = f"hub:{REPO}@{TAG}") -> Following:
    return follow(Ref.parse(ref), root, keep=keep, endpoint=hub.endpoint)


def pulled(root: Path) -> list[str]:
    return json.loads((root / NOTE).read_text())["pulled"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "versions"


@pytest.fixture
def good(tmp_path: Path) -> Callable[[int], Bundle]:
    return lambda seed: make_served(tmp_path / f"made-{seed}", seed=seed)


# The source.


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("hub:digits-cnn-linf", "is no repository that could be followed. Type hub:ORG/NAME@TAG, or a folder"),
        ("path:runs/x", "is no repository that could be followed"),
        (f"hub:{REPO}@{'0' * 40}", "names one commit for ever. Follow a branch or a tag: hub:acme/tiny@TAG"),
    ],
)
def test_what_cannot_move_is_not_followed(root: Path, ref: str, says: str) -> None:
    with pytest.raises(RefError, match=says):
        follow(Ref.parse(ref), root, keep=3)


def test_a_look_is_one_request_without_a_body(hub: HubServer, root: Path, good: Callable[[int], Bundle]) -> None:
    version = publish(hub, good(1))
    (found,) = source(hub, root).look()
    assert found.version == version == found.mark[:12]
    assert [method for method, _, _ in hub.requests] == ["HEAD"]


def test_a_version_is_pulled_whole_and_nothing_else_stays(
    hub: HubServer, root: Path, good: Callable[[int], Bundle]
) -> None:
    made = good(1)
    version = publish(hub, made)
    following = source(hub, root)
    following.bring(following.look()[0])
    assert {one.name for one in root.iterdir()} == {version, NOTE, LOCK}
    assert (root / version / ONNX).read_bytes() == made.onnx.read_bytes()
    assert not (root / version / ONNX).is_symlink()
    before = len(hub.requests)
    following.bring(following.look()[0])
    assert len(hub.requests) == before + 1  # the look


def test_a_damaged_version_is_not_put_there(hub: HubServer, root: Path, good: Callable[[int], Bundle]) -> None:
    version = publish(hub, good(1))
    hub.served[ONNX] = b"somebody else's"
    following = source(hub, root)
    with pytest.raises(IntegrityError, match="Do not use it; tell its owner"):
        following.bring(following.look()[0])
    assert not (root / version).exists()


def test_what_was_pulled_in_part_is_gone_on_with_and_not_kept_for_another_commit(
    hub: HubServer, root: Path, good: Callable[[int], Bundle]
) -> None:
    publish(hub, good(1))
    following = source(hub, root)
    hub.trouble = lambda method, path: 403 if ONNX in path else None
    with pytest.raises(HubError):
        following.bring(following.look()[0])
    hub.trouble = lambda method, path: None
    asked = hub.asked("resolve", "GET")
    following.bring(following.look()[0])
    assert hub.asked("card.json", "GET") <= 1  # it lay there already
    assert hub.asked("resolve", "GET") > asked
    publish(hub, good(2))
    hub.trouble = lambda method, path: 403 if ONNX in path else None
    for seed in (3, 4):
        publish(hub, good(seed))
        with pytest.raises(HubError):
            following.bring(following.look()[0])
    assert [one.name for one in (root / PULLING).iterdir()] == [following.look()[0].version]


def test_a_kept_version_that_was_damaged_is_pulled_again(
    hub: HubServer, root: Path, good: Callable[[int], Bundle]
) -> None:
    version = publish(hub, good(1))
    following = source(hub, root)
    following.bring(following.look()[0])
    (root / version / ONNX).write_bytes(b"rotten")
    following.bring(following.look()[0])
    assert (root / version / ONNX).read_bytes() != b"rotten"


def test_a_folder_of_somebody_s_is_neither_replaced_nor_taken_away(
    hub: HubServer, root: Path, good: Callable[[int], Bundle]
) -> None:
    version = publish(hub, good(1))
    following = source(hub, root, keep=0)
    (root / version).mkdir()
    following.bring(following.look()[0])
    following.tidy(version, ())
    following.tidy("other", ())
    assert [*(root / version).iterdir()] == []


def test_the_last_ones_stay_and_those_in_use(hub: HubServer, root: Path, good: Callable[[int], Bundle]) -> None:
    following, versions = source(hub, root, keep=1), []
    for seed in range(5):
        versions.append(publish(hub, good(seed)))
        following.bring(following.look()[0])
        following.tidy(versions[-1], {versions[0], versions[-1]})
    left = {one.name for one in root.iterdir() if len(one.name) == 12}
    assert left == {versions[0], versions[3], versions[4]}
    assert pulled(root) == [versions[0], versions[3], versions[4]]


def test_a_folder_holds_versions_of_one_repository(hub: HubServer, root: Path, good: Callable[[int], Bundle]) -> None:
    publish(hub, good(1))
    following = source(hub, root)
    following.bring(following.look()[0])
    assert source(hub, root, ref=f"hub:{REPO}@main")
    with pytest.raises(MismatchError, match=r"holds versions of hub:acme/tiny\. Give hub:acme/other a folder of its"):
        source(hub, root, ref="hub:acme/other")


def test_a_server_that_shares_the_folder_waits_for_the_other(
    hub: HubServer, root: Path, good: Callable[[int], Bundle]
) -> None:
    version = publish(hub, good(1))
    following = source(hub, root)
    (found,) = following.look()
    with FileLock(root / LOCK):
        shutil.copytree(good(1).path, root / version)  # the other one brings it
        before = len(hub.requests)
    following.bring(found)
    assert len(hub.requests) == before


@pytest.mark.parametrize("what", ["no tag", "no repository", "somebody else's page"])
def test_a_reference_that_means_nothing_is_told(hub: HubServer, root: Path, made: Bundle, what: str) -> None:
    publish(hub, made)
    if what == "no tag":
        del hub.repos[f"models/{REPO}"].tags[TAG]
    elif what == "no repository":
        hub.repos.clear()
    else:
        hub.trouble = lambda method, path: "html"
    says = {"no tag": "not that revision", "no repository": "no such repository"}.get(what, "it names no commit")
    with pytest.raises((RefError, HubError), match=says):
        source(hub, root).look()


def test_a_folder_that_cannot_be_made_is_told(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"the folder of versions .*/file/versions cannot be made: Not a directory"):
        source(hub, tmp_path / "file" / "versions")


# The server that follows.


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


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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
    import rrmsdk
    from tests.signatures import write_key

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
