"""What the server refuses, over real sockets, and how soon."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.loopback import until
from tests.runtime.http_served import Served, ask, connected, counted, plain, serving
from tests.served import some_digits


def test_a_huge_shape_with_ten_numbers_is_400_at_once(served: Served) -> None:
    asked = plain(some_digits(1))
    asked["inputs"][0] |= {"shape": [1_000_000, 1, 8, 8], "data": [0.5] * 10}
    status, told, _ = ask(served, "POST", "/v2/models/digits/infer", asked)
    assert (status, told["error"].partition(";")[0]) == (400, "1000000 images in one request")


def test_a_body_that_is_announced_too_large_is_413_before_it_is_sent(served: Served) -> None:
    with connected(served) as line:
        line.sendall(b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\n\r\n")
        answer = line.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()


def test_a_body_that_is_not_announced_is_413_as_soon_as_it_is_too_large(served: Served) -> None:
    """Chunks without an end: only a limit that counts what came can answer."""
    with connected(served) as line:
        line.sendall(b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent = 0
        try:
            for _ in range(10_000):
                line.sendall(b"8000\r\n" + b" " * 0x8000 + b"\r\n")
                sent += 0x8000
        except OSError:
            pass
        assert sent < 10_000 * 0x8000
    assert counted(served, "rrmsdk_requests_total", route="infer", status="413") >= 1


def test_a_head_without_an_end_is_cut_off(served: Served) -> None:
    with connected(served) as line:
        line.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-Long: ")
        with pytest.raises(OSError, match=r"Connection reset|Broken pipe"):
            line.sendall(b"x" * 50_000_000)


def test_a_connection_that_says_nothing_is_cut_off(versions: Path) -> None:
    with serving(models=versions, name="digits", timeout=0.05) as served, connected(served) as line:
        assert line.recv(1) == b""


def test_a_second_head_on_a_connection_has_no_more_time_than_the_first(versions: Path) -> None:
    with serving(models=versions, name="digits", timeout=0.3) as served, connected(served) as line:
        line.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert line.recv(4096).startswith(b"HTTP/1.1 200 ")
        line.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: ")
        assert line.recv(1) == b""


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_a_small_body_that_inflates_to_a_large_one_is_413(served: Served, pack: Callable[[bytes], bytes]) -> None:
    bomb = pack(b" " * 50_000_000)
    assert len(bomb) < 60_000
    status, told, _ = ask(served, "POST", "/v2/models/digits/infer", bomb, {"Content-Encoding": "gzip"})
    assert (status, "is larger than 77824 bytes" in told["error"]) == (413, True)


@pytest.mark.parametrize(
    ("body", "encoding", "status", "says"),
    [
        (b"no gzip at all", "gzip", 400, "not compressed as its Content-Encoding says"),
        (gzip.compress(b"{}" * 50, mtime=0)[:-4], "gzip", 400, "the compressed body is cut off"),
        (gzip.compress(b"{}", mtime=0) + b"more", "gzip", 400, "something follows the compressed body"),
        (b"{}", "br", 415, "Content-Encoding may be gzip or deflate"),
        (b"{}", "gzip, gzip", 415, "Content-Encoding may be gzip or deflate"),
    ],
)
def test_a_body_that_is_compressed_wrongly_is_refused(
    served: Served, body: bytes, encoding: str, status: int, says: str
) -> None:
    found, told, _ = ask(served, "POST", "/v2/models/digits/infer", body, {"Content-Encoding": encoding})
    assert (found, says in told["error"]) == (status, True), told


def test_a_body_that_does_not_come_is_408(versions: Path) -> None:
    with serving(models=versions, name="digits", timeout=0.3) as served, connected(served) as line:
        line.sendall(b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        assert line.recv(4096).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/nowhere", 404, "there is nothing at this address"),
        ("GET", "/v2/models/digits/infer", 405, "this address takes another method"),
        ("GET", "/v2/models/letters", 404, "there is no such model; this server has 'digits'"),
        ("POST", "/v2/models/digits/infer", 400, "the request is no JSON (RFC 8259: NaN and Infinity are none)"),
    ],
)
def test_every_error_is_json_with_a_reason(served: Served, method: str, path: str, status: int, says: str) -> None:
    assert ask(served, method, path)[:2] == (status, {"error": says})


def test_bodies_that_come_slowly_do_not_fill_the_memory(versions: Path) -> None:
    """One is refused where all together hold too much, and others are taken again once they are gone."""
    begun = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + b" " * 900
    with serving(models=versions, name="digits") as served:
        served.service.bodies.most = 1500
        with connected(served) as first, connected(served) as second:
            first.sendall(begun)
            until(lambda: served.service.bodies.held == 900)
            second.sendall(begun)
            answer = second.recv(4096)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"connection: close" in answer.lower()
            assert b"retry-after: 1" in answer.lower()
            first.sendall(b" " * 100)
            assert first.recv(4096).startswith(b"HTTP/1.1 400 ")  # it was all blanks, but it was read
        until(lambda: served.service.bodies.held == 0)
        assert ask(served, "POST", "/v2/models/digits/infer", b"{}")[0] == 400
