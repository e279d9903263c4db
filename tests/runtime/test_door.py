"""Clients that hold connections open, at a real uvicorn."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
import uvicorn

from rrmsdk.runtime import server
from rrmsdk.runtime.door import door

MOST = 4
REQUEST = b"GET /at-once HTTP/1.1\r\nHost: x\r\n\r\n"
Open = Callable[[], socket.socket]


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers at once, or where the path says so once the body is here."""
    while scope["path"] == "/body" and (await receive()).get("more_body", False):
        await asyncio.sleep(0)
    told = (b"." * (32 << 20) if scope["path"] == "/much" else b"") + b"ok"
    about = [(b"content-length", str(len(told)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": about})
    await send({"type": "http.response.body", "body": told})


@pytest.fixture
def seconds() -> float:
    return 30.0


@pytest.fixture
def connected(seconds: float) -> Iterator[Open]:
    config = uvicorn.Config(application, http=door(seconds, MOST), ws="none", lifespan="off", log_config=None)
    with server.answering(config, server.listening("127.0.0.1", 0)) as url, ExitStack() as open_ones:
        port = int(url.rpartition(":")[2])
        yield lambda: open_ones.enter_context(closing(socket.create_connection(("127.0.0.1", port), timeout=30)))


def answered(line: socket.socket, request: bytes = REQUEST) -> bool:
    """Reads all of the answer."""
    line.sendall(request)
    return line.recv(4096).endswith(b"ok")


def is_open(line: socket.socket) -> bool:
    """The server has had the time to close it."""
    line.settimeout(0.2)
    try:
        return line.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionResetError:
        return False
    finally:
        line.settimeout(30)


def test_silent_connections_keep_nobody_out(connected: Open) -> None:
    silent = [connected() for _ in range(3 * MOST)]
    assert answered(connected())
    assert [is_open(line) for line in silent] == [False] * (2 * MOST + 1) + [True] * (MOST - 1)


def test_who_asked_last_stays(connected: Open) -> None:
    first, second = connected(), connected()
    assert answered(second)
    assert answered(first)
    for _ in range(MOST - 1):
        assert answered(connected())
    assert not is_open(second)
    assert answered(first)


def test_who_is_being_answered_stays(connected: Open) -> None:
    """Its body is not here yet; with as many of them as there may be, who comes next is sent away."""
    begun = [connected() for _ in range(MOST)]
    for line in begun:
        line.sendall(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n1")
    time.sleep(0.2)
    assert not is_open(connected())
    assert all(answered(line, b"2") for line in begun)
    assert answered(connected())


def test_what_follows_a_body_in_chunks_may_not_be_endless(connected: Open) -> None:
    line = connected()
    line.sendall(b"POST /at-once HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
    endless = 4096 * (b"a: " + 16384 * b"b" + b"\r\n")
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        line.sendall(endless)


def test_a_body_in_very_small_chunks_is_read(connected: Open) -> None:
    line = connected()
    head = b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert answered(line, head + 60_000 * b"1\r\n1\r\n" + b"0\r\nx: y\r\n\r\n")


def test_many_requests_may_come_in_one_piece(connected: Open) -> None:
    line, many = connected(), 10_000
    line.sendall(many * REQUEST)
    found = 0
    while found < many and (part := line.recv(1 << 16)):
        found += part.count(b"ok")
    assert found == many


@pytest.mark.parametrize("seconds", [0.5])
def test_who_reads_no_answers_keeps_nobody_out(connected: Open) -> None:
    deaf = [connected() for _ in range(MOST)]
    for line in deaf:
        line.sendall(2 * REQUEST.replace(b"/at-once", b"/much"))
    time.sleep(2)
    assert answered(connected())
