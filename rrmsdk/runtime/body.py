"""The body of a request, of which never more is kept than allowed, however it comes."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rrmsdk.runtime.refused import Refused

Receive = Callable[[], Awaitable[Any]]


class Left(Exception):
    """The client closed the connection: nobody reads an answer."""


@dataclass
class Bodies:
    """Bytes of all bodies that are here in part, or wait: many clients that send slowly are not to fill the memory."""

    most: int
    held: int = 0

    @contextmanager
    def keeping(self, size: int) -> Iterator[None]:
        """One that is whole and has to wait. Raises Refused (503)."""
        self.held += size
        try:
            if self.held > self.most:
                raise Refused(503, "this server is overloaded with bodies", retry_after=1)
            yield
        finally:
            self.held -= size


async def read(receive: Receive, headers: Mapping[str, str], bodies: Bodies, most: int, seconds: float) -> bytes:
    """All of it, inflated where it is gzip or deflate.

    Args:
        most: bytes, before and after inflating.
        seconds: in which it has to be here.

    Raises:
        Refused: 400, 408, 413, 415, 503.
        Left
    """
    promised = headers.get("content-length", "")
    if promised.isascii() and promised.isdecimal() and (len(promised) > 18 or int(promised) > most):
        raise _too_large(most)
    inflate = _inflater(headers.get("content-encoding", "identity").strip().lower(), most)
    try:
        async with asyncio.timeout(seconds):
            return await _whole(receive, inflate, bodies, most)
    except TimeoutError:
        raise Refused(408, f"the request was not here within {seconds:g} s", unread=True) from None


async def discard(receive: Receive, most: int, seconds: float) -> None:
    """Take the rest from a client that is still sending: a connection closed at once would lose it the answer."""
    taken, more = 0, True
    try:
        async with asyncio.timeout(seconds):
            while more and taken < most:
                message = await receive()
                more = message["type"] == "http.request" and message.get("more_body", False)
                taken += len(message.get("body", b""))
    except TimeoutError:
        return


async def _whole(receive: Receive, inflate: _Inflate | None, bodies: Bodies, most: int) -> bytes:
    parts, size, held, more = [], 0, 0, True
    try:
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Left
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size > most:
                raise _too_large(most)
            parts.append(inflate(part) if inflate else part)
            held, bodies.held = held + len(parts[-1]), bodies.held + len(parts[-1])
            if bodies.held > bodies.most:
                raise Refused(503, "this server is overloaded with bodies", retry_after=1, unread=more)
    finally:
        bodies.held -= held
    if inflate:
        inflate.finish()
    return parts[0] if len(parts) == 1 else b"".join(parts)


class _Inflate:
    """gzip or zlib, part by part; a bomb is noticed at `most` bytes."""

    def __init__(self, most: int) -> None:
        self._stream = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # 32: either header
        self._most = self._room = most

    def __call__(self, part: bytes) -> bytes:
        try:
            made = self._stream.decompress(part, self._room + 1)
        except zlib.error:
            raise Refused(400, "the body is not compressed as its Content-Encoding says") from None
        self._room -= len(made)
        if self._room < 0 or self._stream.unconsumed_tail:
            raise _too_large(self._most)
        if self._stream.unused_data:
            raise Refused(400, "something follows the compressed body")
        return made

    def finish(self) -> None:
        if not self._stream.eof:
            raise Refused(400, "the compressed body is cut off. Send all of it")


def _inflater(encoding: str, most: int) -> _Inflate | None:
    if encoding in ("", "identity"):
        return None
    if encoding in ("gzip", "x-gzip", "deflate"):
        return _Inflate(most)
    raise Refused(415, "Content-Encoding may be gzip or deflate", unread=True)


def _too_large(most: int) -> Refused:
    return Refused(413, f"the body is larger than {most} bytes, the most that is taken", unread=True)
