"""A folder of versions that is watched: what is newer and good takes the place of what answers."""

from __future__ import annotations

import logging
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tritonclient.http import InferenceServerClient

from rrmsdk.errors import DataError, FieldError, RefError
from rrmsdk.runtime import server, watch
from rrmsdk.runtime.served import Opening
from rrmsdk.runtime.service import Service
from rrmsdk.runtime.source import SETTLED, Folder
from rrmsdk.runtime.store import Store
from rrmsdk.schema.serving import Serving
from rrmsdk.serving import prepared
from tests.loopback import until
from tests.runtime.http_served import ADMIN, BEARER, given
from tests.served import make_served, some_digits


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_served(tmp_path / "versions" / "1", seed=1)
    return tmp_path / "versions"


@contextmanager
def watching(root: Path, **more: Path) -> Iterator[tuple[Service, str]]:
    service = prepared(None, Serving(watch=root, every=0.05, threads=1, max_batch=4, name="digits", **more))
    with server.running(service, server.listening("127.0.0.1", 0)) as url:
        yield service, url


def put(root: Path, version: str, seed: int) -> None:
    """As a careful person does: beside, and renamed."""
    make_served(root.parent / f"made-{version}", seed=seed).path.rename(root / version)


def refusals(service: Service) -> float:
    return service.metrics.registry.get_sample_value("rrmsdk_swaps_total", {"outcome": "refused"}) or 0


def test_newer_versions_are_swapped_in_under_load_without_a_failed_request(root: Path) -> None:
    failed: list[Exception] = []
    told: list[str] = []
    done = threading.Event()

    def keep_asking(url: str) -> None:
        with closing(InferenceServerClient(url.removeprefix("http://"))) as client:
            while not done.is_set():
                try:
                    answer = client.infer("digits", given(some_digits(2), True)).get_response()
                except Exception as exc:
                    failed.append(exc)
                    return
                told.append(answer["model_version"])

    with watching(root) as (service, url):
        threads = [threading.Thread(target=keep_asking, args=(url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for version in ("2", "3", "10"):
                put(root, version, int(version))
                until(lambda: service.version == version)  # noqa: B023
                until(lambda: told[-1:] == [version])  # noqa: B023
        finally:
            done.set()
            for thread in threads:
                thread.join()
    assert not failed
    assert [one for one, before in zip(told, ["", *told], strict=False) if one != before][-1] == "10"
    assert set(told) == {"1", "2", "3", "10"}


def test_a_version_is_left_alone_while_somebody_writes_to_it(root: Path) -> None:
    """The card is there first, as in any copy in the order of names."""
    made = make_served(root.parent / "made", seed=2)
    with watching(root) as (service, _):
        (root / "2" / "onnx").mkdir(parents=True)
        for name in ("card.json", "config.json", "report.json", "onnx/parity.json"):
            shutil.copy2(made.path / name, root / "2" / name)
            time.sleep(SETTLED / 4)
        for name in ("model.safetensors", "onnx/model.onnx"):
            shutil.copy2(made.path / name, root / "2" / name)
        until(lambda: service.version == "2")
        assert refusals(service) == 0


def test_a_version_that_is_written_to_does_not_bring_an_older_one_back(root: Path) -> None:
    put(root, "2", 2)
    with watching(root) as (service, _):
        until(lambda: service.watch is not None and service.watch._followed is not None)
        (root / "2" / "note").write_text("looked at")
        until(lambda: not Folder(service.store, root).look())
        time.sleep(0.2)
        assert [one.version for one in service.store.loaded] == ["2"]


def test_a_bad_version_stays_out_until_it_is_mended(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with watching(root) as (service, _):
        made = make_served(root.parent / "made", seed=2)
        whole = made.onnx.read_bytes()
        made.onnx.write_bytes(whole[:-5])
        made.path.rename(root / "2")
        until(lambda: refusals(service) == 1)
        time.sleep(0.3)
        assert (service.version, refusals(service)) == ("1", 1)
        assert len([record for record in caplog.records if record.message == "no swap"]) == 1
        (root / "2" / "onnx" / "model.onnx").write_bytes(whole)
        until(lambda: service.version == "2")


def test_of_several_new_versions_the_newest_good_one_answers(root: Path) -> None:
    with watching(root) as (service, _):
        put(root, "2", 2)
        bad = make_served(root.parent / "made-3", seed=3)
        bad.onnx.unlink()
        bad.path.rename(root / "3")
        until(lambda: service.version == "2")
        assert [one.version for one in service.store.loaded] == ["2", "1"]


def test_a_version_that_is_taken_away_gives_way_to_the_one_before(root: Path) -> None:
    put(root, "2", 2)
    with watching(root) as (service, _):
        until(lambda: service.watch is not None and service.watch._followed is not None)
        shutil.rmtree(root / "2")
        until(lambda: service.version == "1")


def test_a_folder_that_goes_away_is_told_and_comes_back(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rrmsdk.serve")
    with watching(root) as (service, _):
        root.rename(root.with_name("elsewhere"))
        until(lambda: "watch in trouble" in caplog.text)
        root.with_name("elsewhere").rename(root)
        until(lambda: "watch is well again" in caplog.text)
        assert service.version == "1"


def test_at_the_start_the_newest_good_version_answers(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_served(root / "2", seed=2).onnx.unlink()
    assert prepared(None, Serving(watch=root, threads=1)).version == "1"
    (told,) = [record.__dict__["fields"] for record in caplog.records if record.message == "not served"]
    assert told["version"] == "2"


def test_a_start_with_nothing_but_bad_versions_is_told(root: Path) -> None:
    (root / "1" / "onnx" / "model.onnx").unlink()
    with pytest.raises(Exception, match=r"onnx/model.onnx is missing, but the card names it"):
        prepared(None, Serving(watch=root, threads=1))
    shutil.rmtree(root / "1")
    with pytest.raises(DataError, match="holds no version: each is a bundle in a folder of its own"):
        prepared(None, Serving(watch=root, threads=1))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"watch": "hub:acme/tiny"}, FieldError, "give a folder for the versions that come from hub:acme/tiny: --mod"),
        ({"watch": "hub:digits"}, FieldError, "give a folder for the versions"),
        ({"watch": "a", "models": Path("b")}, FieldError, "the folder of versions is b or a, not both. Leave --models"),
        ({"watch": "nowhere"}, DataError, "nowhere, the folder of versions, is not there"),
    ],
)
def test_what_cannot_be_watched_is_told(options: dict[str, object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        prepared(None, Serving(**options))  # type: ignore[arg-type]


def test_a_commit_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(RefError, match="names one commit for ever"):
        prepared(None, Serving(watch=f"hub:acme/tiny@{'0' * 40}", models=tmp_path))


def test_pauses_double_with_every_trouble_up_to_ten_minutes_and_differ() -> None:
    def pauses(every: float, troubles: int) -> list[float]:
        return [watch._pause(every, troubles) for _ in range(200)]

    for every, troubles, middle in ((60, 0, 60), (60, 1, 120), (60, 3, 480), (60, 99, 600), (3600, 9, 3600)):
        found = pauses(float(every), troubles)
        assert 0.8 * middle <= min(found) < 0.9 * middle
        assert 1.1 * middle < max(found) <= 1.2 * middle


def test_a_folder_tells_of_what_changed_whatever_times_it_carries(root: Path) -> None:
    folder = Folder(Store(None, root, Opening()), root)
    until(lambda: len(folder.look()) == 1)
    (before,) = folder.look()
    config = root / "1" / "config.json"
    shutil.copy2(config, root.parent / "config.json")
    shutil.copy2(root.parent / "config.json", config)  # the same bytes, and the same modification time
    assert folder.look() == []
    until(lambda: len(folder.look()) == 1)
    assert folder.look()[0].mark != before.mark


def test_what_was_rolled_back_from_does_not_come_back_when_it_is_touched(root: Path, tmp_path: Path) -> None:
    (tmp_path / "admin").write_text(ADMIN)
    with watching(root, admin_token_file=tmp_path / "admin") as (service, url):
        put(root, "2", 2)
        until(lambda: service.version == "2")
        request = urllib.request.Request(f"{url}/v2/repository/models/digits/rollback", b"{}", BEARER)
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 200
        assert service.version == "1"
        for file in (root / "2").rglob("*"):
            file.touch()
        time.sleep(SETTLED + 1.0)
        assert service.version == "1"
        put(root, "3", 3)
        until(lambda: service.version == "3")
