"""The server while its network is busy, files of images, the page, and what is logged."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

from rrmsdk.errors import RrmError
from rrmsdk.runtime import page, server
from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.service import Service
from rrmsdk.schema.serving import Serving
from rrmsdk.serving import prepared
from tests.served import make_served, some_digits


@dataclass(eq=False)
class GatedEngine:
    """The real runtime, which runs when the test lets it."""

    engine: Any
    started: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    go: threading.Event = field(default_factory=threading.Event)

    def run(self, *asked: Any) -> Any:
        self.started.release()
        assert self.go.wait(30)
        return self.engine.run(*asked)


@dataclass
class Busy:
    service: Service
    gate: GatedEngine
    url: str

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=30)

    def send(self, images: int = 1, timeout: int | None = None) -> http.client.HTTPConnection:
        """A request that is under way. timeout: of the client, in microseconds."""
        data = some_digits(images).astype(np.float64).ravel().tolist()
        asked: dict[str, Any] = {
            "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [images, 1, 8, 8], "data": data}]
        }
        if timeout is not None:
            asked["parameters"] = {"timeout": timeout}
        connection = self.connect()
        connection.request("POST", "/v2/models/digits/infer", json.dumps(asked))
        return connection

    def wait_for(self, images: int) -> None:
        """Until that many wait in the queue."""
        while self.service.batcher.images != images:
            status(self.ask("/v2/health/live"))  # a round through the server's loop

    def ask(self, path: str) -> http.client.HTTPConnection:
        connection = self.connect()
        connection.request("GET", path)
        return connection


def status(connection: http.client.HTTPConnection) -> int:
    return answer(connection)[0]


def answer(connection: http.client.HTTPConnection) -> tuple[int, Any, dict[str, str]]:
    with closing(connection):
        got = connection.getresponse()
        told = json.loads(got.read())
        return got.status, told, {name.lower(): text for name, text in got.getheaders()}


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return prepared(make_served(tmp_path / "b"), Serving(name="digits", threads=1, max_batch=4, max_queue=4))


@pytest.fixture
def busy(service: Service) -> Iterator[Busy]:
    """A server whose network has one request and does not finish it before `gate.go`."""
    served = service.store.find(None)
    gate = GatedEngine(served.session.engine)
    service.store.loaded = (replace(served, session=replace(served.session, engine=gate)),)
    try:
        with server.running(service, server.listening("127.0.0.1", 0)) as url:
            made = Busy(service, gate, url)
            with closing(made.send()):
                assert gate.started.acquire(timeout=30)
                yield made
                gate.go.set()
    finally:
        gate.go.set()


def test_a_full_queue_is_503_and_when_to_come_again(busy: Busy) -> None:
    waits = busy.send(4)
    busy.wait_for(4)
    code, told, headers = answer(busy.send(1))
    assert (code, headers["retry-after"]) == (503, "1")
    assert told == {"error": "4 images wait already; this server is overloaded"}
    busy.gate.go.set()
    assert status(waits) == 200


def test_patience_of_the_client_that_ends_is_504(busy: Busy) -> None:
    code, told, _ = answer(busy.send(timeout=10_000))
    assert (code, told) == (504, {"error": "no answer within 0.01 s"})


def test_a_client_that_closes_its_connection_leaves_the_queue(busy: Busy) -> None:
    leaves = busy.send(3)
    busy.wait_for(3)
    leaves.close()
    busy.wait_for(0)


def test_health_is_told_while_the_network_is_busy(busy: Busy) -> None:
    assert status(busy.ask("/v2/health/ready")) == 200


def test_stopping_says_not_ready_and_answers_on_closing_connections(busy: Busy) -> None:
    busy.service.stopping = True
    assert status(busy.ask("/v2/health/ready")) == 503
    assert status(busy.ask("/v2/health/live")) == 200
    waits = busy.send()
    busy.gate.go.set()
    code, _, headers = answer(waits)
    assert (code, headers["connection"]) == (200, "close")


def test_what_is_under_way_is_answered_when_the_server_ends(service: Service) -> None:
    served = service.store.find(None)
    gate = GatedEngine(served.session.engine)
    service.store.loaded = (replace(served, session=replace(served.session, engine=gate)),)
    with server.running(service, server.listening("127.0.0.1", 0)) as url:
        under_way = Busy(service, gate, url).send()
        assert gate.started.acquire(timeout=30)
        threading.Timer(0.2, gate.go.set).start()  # while the server is ending
    assert status(under_way) == 200


class Failing:
    def run(self, *asked: Any) -> Any:
        raise RuntimeError("secret of /the/inside")


def test_what_fails_inside_is_logged_and_not_told(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    served = service.store.find(None)
    service.store.loaded = (replace(served, session=replace(served.session, engine=Failing())),)
    with server.running(service, server.listening("127.0.0.1", 0)) as url:
        code, told, headers = answer(Busy(service, GatedEngine(None), url).send())
    assert code == 500
    assert told == {"error": f"the server failed; its log says how, under request {headers['x-request-id']}"}
    assert "secret of /the/inside" in caplog.text


# Files of images, and the page.


def predicted(service: Service, file: bytes, kind: str = "image/png") -> tuple[int, Any]:
    with server.running(service, server.listening("127.0.0.1", 0)) as url:
        connection = Busy(service, GatedEngine(None), url).connect()
        connection.request("POST", "/predict", file, {"Content-Type": kind})
        return answer(connection)[:2]


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_an_image_file_is_answered_with_its_class(service: Service) -> None:
    image = np.random.default_rng(3).integers(0, 256, (8, 8), dtype=np.uint8)
    code, told = predicted(service, png(image))
    logits = service.store.find(None).session.predict((image / np.float32(255)).astype(np.float32)[None, None])[0]
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    first, second = sorted(shares)[::-1][:2]
    assert code == 200
    assert told["label"] == str(logits.argmax())
    assert told["confidence"] == pytest.approx(first, rel=1e-5)
    assert told["margin"] == pytest.approx(first - second, rel=1e-5)
    assert told["low_margin"] is (told["margin"] < 0.1)
    assert sum(one["probability"] for one in told["classes"]) == pytest.approx(1)


def test_a_form_is_told_to_be_none(service: Service) -> None:
    code, told = predicted(service, b"--x", "multipart/form-data; boundary=x")
    assert (code, told) == (415, {"error": "send the file itself, not a form: curl --data-binary @image.png"})


def test_what_is_no_image_is_400(service: Service) -> None:
    assert predicted(service, b"hello") == (400, {"error": "that is no PNG and no JPEG image"})


def test_a_file_that_is_too_large_is_413(service: Service) -> None:
    assert predicted(service, b"\0" * (9 << 20))[0] == 413


def test_an_image_whose_turn_to_be_decoded_does_not_come_is_504(service: Service) -> None:
    hasty = replace(service, limits=replace(service.limits, timeout=0.3))
    hasty.decoding = asyncio.Semaphore(0)  # others are being decoded
    code, told = predicted(hasty, png(np.zeros((8, 8), np.uint8)))
    assert (code, told) == (504, {"error": "no turn to decode within 0.3 s"})


def test_images_that_wait_for_their_turn_do_not_fill_the_memory(service: Service) -> None:
    service.bodies.held = service.bodies.most - 10_000
    image = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    assert predicted(service, png(image))[0] == 503


def test_the_page_runs_its_own_script_alone_and_loads_nothing(service: Service) -> None:
    with server.running(service, server.listening("127.0.0.1", 0)) as url:
        connection = Busy(service, GatedEngine(None), url).ask("/")
        with closing(connection):
            got = connection.getresponse()
            text, policy = got.read().decode(), got.getheader("content-security-policy") or ""
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.S)
    import base64

    assert f"'sha256-{base64.b64encode(sha256(script.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy
    assert not re.findall(r"https?://|src=[\"']?(?!data:)\w+:|@import|innerHTML", text)
    assert text == page.HTML


def test_the_card_says_how_robust_the_model_is(service: Service) -> None:
    with server.running(service, server.listening("127.0.0.1", 0)) as url:
        _, told, _ = answer(Busy(service, GatedEngine(None), url).ask("/card"))
    assert told["card"]["threat"] == {"norm": "linf", "eps": "1/10"}
    assert (told["report"]["robust"], told["report"]["clean"]) == (0.7, 0.9)
    assert told["report"]["note"].startswith("Robust accuracy here is an upper bound")


# The end, logs, and the socket.


def test_a_server_that_ends_though_nobody_stopped_it_ends_in_an_error(service: Service) -> None:
    def end_it() -> None:
        """As uvicorn's own limits and faults do."""
        while not (found := [one for one in sys._current_frames().values() if _uvicorn(one)]):
            time.sleep(0.05)
        _uvicorn(found[0]).should_exit = True

    def _uvicorn(frame: FrameType | None) -> Any:
        while frame is not None:
            if isinstance(one := frame.f_locals.get("self"), uvicorn.Server) and one.started:
                return one
            frame = frame.f_back
        return None

    ending = threading.Thread(target=end_it)
    ending.start()
    with pytest.raises(RrmError, match="the server ended though nobody stopped it"):
        server.until_stopped(service, server.listening("127.0.0.1", 0), drain=0.0)
    ending.join()


def test_a_log_is_json_with_the_request_in_it(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    with server.logs(quiet=False), server.running(service, server.listening("127.0.0.1", 0)) as url:
        status(Busy(service, GatedEngine(None), url).ask("/v2"))
        status(Busy(service, GatedEngine(None), url).ask("/v2/health/live"))
    (line,) = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert (told["event"], told["path"], told["status"], told["level"]) == ("request", "/v2", 200, "info")
    assert len(told["request"]) == 32
    assert not logging.getLogger("rrmsdk.serve").handlers


def test_a_quiet_log_holds_no_requests(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    with server.logs(quiet=True), server.running(service, server.listening("127.0.0.1", 0)) as url:
        status(Busy(service, GatedEngine(None), url).ask("/v2"))
    assert capsys.readouterr().err == ""


def test_a_port_that_is_taken_is_told(service: Service) -> None:
    from rrmsdk.errors import FieldError

    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FieldError, match=rf"port {port} on 127.0.0.1 cannot be had: .*in use.*--port 0"):
            server.listening("127.0.0.1", port)


def test_pixels_that_were_checked_for_a_version_of_another_size_are_refused(versions: Path) -> None:
    """All were unloaded, and one of another size loaded, while the body was on its way."""
    service = prepared(None, Serving(models=versions, threads=1))
    served = service.store.find(None)
    with pytest.raises(Refused, match="of another image size: ask again") as refused:
        asyncio.run(service.infer(served, np.zeros((1, 1, 16, 16), np.float32), _nothing, None))
    assert (refused.value.status, refused.value.retry_after) == (503, 1)


async def _nothing() -> dict[str, str]:
    raise AssertionError("nobody asks whether the client is still there")
