"""What triggers look at, on real disks and behind real sockets."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import close_session

from rrmsdk.data import parquet
from rrmsdk.errors import DataError, EndpointError, FieldError, HubError, RefError
from rrmsdk.retraining import observe
from rrmsdk.schema import value
from rrmsdk.schema.job import Drift, Job, Judge, NewData
from rrmsdk.schema.secret import Secret
from rrmsdk.schema.threat import ThreatModel
from tests import loopback
from tests.hub_server import HubServer

PAGE = (
    b"---\ndataset_info:\n  splits:\n  - {name: train, num_examples: %d}\n  - {name: test, num_examples: 9}\n---\nhi\n"
)
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server
        close_session()


class Monitored(ThreadingHTTPServer):
    """A server that tells of its drift. Use as a context manager.

    token: what a client must show.
    """

    daemon_threads = True

    def __init__(self, told: Any, token: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.told, self.token, self.stopping = told, token, threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v2/models/r50/drift"

    __enter__, __exit__ = loopback.begin, loopback.end


class _Handler(BaseHTTPRequestHandler):
    server: Monitored

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        allowed = self.server.token is None or self.headers.get("Authorization") == f"Bearer {self.server.token}"
        body = json.dumps(self.server.told).encode()
        self.send_response(200 if allowed and self.path == "/v2/models/r50/drift" else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _images(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"a picture")
    return folder


def test_a_folder_that_changes_under_the_look_is_a_data_error(tmp_path: Path) -> None:
    """What a look finds and what it measures are two calls: files go in between."""
    ended = threading.Event()

    def come_and_go() -> None:
        while not ended.is_set():
            for number in range(30):
                (tmp_path / f"{number}.png").touch()
            for number in range(30):
                (tmp_path / f"{number}.png").unlink()

    (tmp_path / "stays.png").touch()
    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for _ in range(200):
            with suppress(DataError):
                observe.folder(tmp_path)
    finally:
        ended.set()
        other.join()


def test_a_folder_of_images_is_counted_by_its_train_split(tmp_path):
    folder = _images(tmp_path / "d", ["train/cat/1.png", "train/cat/2.JPG", "train/dog/1.jpeg", "test/cat/1.png"])
    seen = observe.folder(folder)
    assert seen.rows == 3
    newest = max(path.stat().st_mtime for path in folder.rglob("*") if path.is_file())
    assert seen.changed == datetime.fromtimestamp(newest, UTC)


@pytest.mark.parametrize("change", ["more", "fewer", "renamed", "content", "touched"])
def test_any_change_of_a_folder_changes_its_digest(change, tmp_path):
    folder = _images(tmp_path / "d", ["train/cat/1.png", "train/dog/1.png"])
    before, file = observe.folder(folder), folder / "train/cat/1.png"
    assert observe.folder(folder) == before
    match change:
        case "more":
            _images(folder, ["train/cat/2.png"])
        case "fewer":
            file.unlink()
        case "renamed":
            file.rename(folder / "train/dog/2.png")
        case "content":
            file.write_bytes(b"another, longer picture")
        case "touched":
            os.utime(file, (1, 1))
    assert observe.folder(folder).digest != before.digest


def test_what_is_being_written_beside_is_not_seen_yet(tmp_path):
    folder = _images(tmp_path / "d", ["train/cat/1.png"])
    before = observe.folder(folder)
    _images(folder, ["train/cat/.2.png.part"])
    assert observe.folder(folder) == before


def test_where_a_folder_lies_is_not_part_of_it(tmp_path):
    folder = _images(tmp_path / "d", ["train/cat/1.png"])
    before = observe.folder(folder).digest
    folder.rename(tmp_path / "e")
    assert observe.folder(tmp_path / "e").digest == before


def test_the_rows_of_parquet_files_are_counted(tmp_path):
    for name, many in (("train-00000-of-00002", 3), ("train-00001-of-00002", 4), ("test", 2)):
        pixels = np.zeros((many, 1, 8, 8), dtype=np.uint8)
        parquet.write(tmp_path / "plain_text" / f"{name}.parquet", pixels, [0] * many, ["cat"])
    assert observe.folder(tmp_path).rows == 7


def test_rows_are_counted_only_where_they_matter(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 cut off")
    assert observe.data(NewData(source=f"path:{tmp_path}")).rows is None
    with pytest.raises(DataError, match="holds a parquet file that is not whole"):
        observe.data(NewData(source=f"path:{tmp_path}", min_new_rows=2))


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match="gone is no folder"):
        observe.folder(tmp_path / "gone")
    with pytest.raises(DataError, match="holds no files"):
        observe.folder(tmp_path)


def test_a_data_set_on_the_hub_is_its_commit_and_what_its_page_counts(hub):
    first = hub.put("acme/images", {"README.md": PAGE % 100}, kind="datasets")
    seen = observe.data(NewData(source="hub:acme/images", min_new_rows=5), hub.endpoint)
    assert (seen.digest, seen.rows) == (first.oid, 100)
    assert seen.changed is not None
    second = hub.put("acme/images", {"README.md": PAGE % 130}, kind="datasets")
    seen = observe.data(NewData(source="hub:acme/images", min_new_rows=5), hub.endpoint)
    assert (seen.digest, seen.rows) == (second.oid, 130)


@pytest.mark.parametrize("page", [b"no head", b"---\nlicense: mit\n---\n", b"---\ndataset_info: [{}, {}]\n---\n"])
def test_a_data_set_that_does_not_say_its_rows_cannot_be_counted(page, hub):
    hub.put("acme/images", {"README.md": page}, kind="datasets")
    assert observe.data(NewData(source="hub:acme/images"), hub.endpoint).rows is None
    with pytest.raises(DataError, match=r"hub:acme/images does not say on its page .* min_new_rows = 5 cannot be told"):
        observe.data(NewData(source="hub:acme/images", min_new_rows=5), hub.endpoint)


def test_a_data_set_that_is_not_there_is_said(hub):
    with pytest.raises(RefError, match=r"data set acme/none: .* has no such repository"):
        observe.data(NewData(source="hub:acme/none"), hub.endpoint)


def test_a_teacher_is_followed_along_its_branch(hub):
    first = hub.put("acme/r18", {"card.json": b"1"})
    assert observe.teacher("hub:acme/r18", hub.endpoint) == first.oid
    second = hub.put("acme/r18", {"card.json": b"2"})
    assert (
        observe.teacher("hub:acme/r18", hub.endpoint)
        == observe.teacher("hub:acme/r18@main", hub.endpoint)
        == second.oid
    )


@pytest.mark.parametrize(
    "ref", ["hub:digits-cnn-linf", "hub:resnet18-linf", "path:runs/r18", f"hub:acme/r18@{'a' * 40}"]
)
def test_what_can_mean_nothing_else_is_not_asked_for(ref):
    assert observe.teacher(ref, NOWHERE) is None


def _told(**effects: float) -> dict[str, Any]:
    """One finished window, as a server tells it."""
    about = {"kind": "psi", "least": 0.2, "statistic": 1.0, "critical": 2.0, "n": 512, "above": False}
    window = {
        "number": 7, "began": "2026-06-10T11:00:00+00:00", "ended": "2026-06-10T12:00:00+00:00", "images": 512,
        "above": False, "drift": {name: about | {"effect": effect} for name, effect in effects.items()},
    }  # fmt: skip
    windows = [window | {"later": "more"}] if effects else []
    about = {"model_name": "r50", "model_version": "3", "window": 500, "expected": 1000}
    return about | {"finished": windows, "current": None}


def test_the_windows_of_a_server_are_read_with_its_token(monkeypatch):
    monkeypatch.setenv("SERVER_TOKEN", "sesame")
    with Monitored(_told(classes=0.31), token="sesame") as server:
        (seen,) = observe.drift(Drift(url=server.url, above=0.2, token=Secret(env="SERVER_TOKEN")))
        assert (seen.images, seen.values, seen.ended.hour) == (512, {"classes": 0.31}, 12)
        with pytest.raises(EndpointError, match="answers 401: it wants a token"):
            observe.drift(Drift(url=server.url, above=0.2))


def test_a_statistic_that_a_server_does_not_tell_is_said():
    with (
        Monitored(_told(classes=0.31, margin=0.1)) as server,
        pytest.raises(FieldError, match=r"nothing of statistic = 'margn'\. Did you mean 'margin'"),
    ):
        observe.drift(Drift(url=server.url, statistic="margn", above=0.2))


def test_a_server_without_a_window_yet_is_no_trouble():
    with Monitored(_told()) as server:
        assert observe.drift(Drift(url=server.url, above=0.2)) == ()


@pytest.mark.parametrize("told", [{"finished": [{"number": "7"}]}, [], "drift"])
def test_a_server_that_tells_something_else_is_not_believed(told):
    with Monitored(told) as server, pytest.raises(EndpointError, match="does not speak"):
        observe.drift(Drift(url=server.url, above=0.2))


def test_a_server_that_is_not_there_is_given_up_at_once():
    with pytest.raises(EndpointError, match="did not answer in 1 tries"):
        observe.drift(Drift(url=f"{NOWHERE}/v2/models/r50/drift", above=0.2))


def test_equal_suites_are_equal_text():
    threat, judge = ThreatModel(eps="8/255"), Judge()
    assert observe.suite(judge, threat).startswith("autoattack (rrmsdk")
    assert observe.suite(judge, threat).endswith("), linf:8/255, seed 0")
    others = (Judge(version="plus"), Judge(engine="reference"), Judge(attack="fast"), Judge(seed=1))
    assert len({observe.suite(judge, threat) for judge in (Judge(), *others)}) == 5
    assert observe.suite(judge, threat, "fast") == observe.suite(Judge(attack="fast"), threat)
    assert observe.suite(judge, threat) == observe.suite(Judge(images=500), threat)


def test_what_cannot_be_looked_at_does_not_hide_the_rest(hub, tmp_path):
    commit = hub.put("acme/r18", {"card.json": b"1"})
    folder = _images(tmp_path / "d", ["train/cat/1.png"])
    triggers = [
        {"kind": "cron", "expression": "0 3 * * *"}, {"kind": "data", "source": "hub:acme/none"}, {"kind": "teacher"},
        {"kind": "data", "source": f"path:{folder}"}, {"kind": "regression", "suite": "fast"},
        {"kind": "drift", "url": f"{NOWHERE}/v2/models/m/drift", "above": 1},
    ]  # fmt: skip
    recipe = {
        "teacher": "hub:acme/r18", "student": {"arch": "resnet50"}, "data": {"name": "digits"},
        "threat": {"eps": "1/10"}, "method": {"name": "rrm"},
    }  # fmt: skip
    fields = {"version": 1, "name": "r50", "recipe": recipe, "trigger": triggers, "push": {"repo": "acme/r50"}}
    seen, troubles = observe.observe(value.parse(Job, fields), champion="c", champion_suite="s", endpoint=hub.endpoint)
    assert [type(one) for one in troubles] == [RefError, EndpointError]
    assert seen.teachers == {"hub:acme/r18": commit.oid}
    assert set(seen.data) == {f"path:{folder}"}
    assert set(seen.suites) == {"fast"}
    assert (seen.champion, seen.champion_suite) == ("c", "s")


def test_a_hub_that_is_not_there_is_said():
    with pytest.raises(HubError, match=f"teacher hub:acme/r18: {NOWHERE} could not be reached"):
        observe.teacher("hub:acme/r18", NOWHERE)
