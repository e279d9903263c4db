"""uvicorn's protocol, with an end to how long and how large the head of a request may be, and to who stays silent or
reads no answers.

It has no such ends of its own.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LARGEST_HEAD = 1 << 16  # bytes, up to one more read of the socket


def door(seconds: float, most: int) -> Any:
    """For `uvicorn.Config(http=...)`.

    Args:
        seconds: in which a head has to be here, from the connection or the head's first byte on, and in which a client
            has to read what it was answered.
        most: connections at a time. One more sends away the one that asks for nothing and has been silent longest, so
            that clients which only hold connections open keep nobody out.
    """
    return partial(Door, seconds=seconds, most=most, all_of_them=OrderedDict())


class Door(HttpToolsProtocol):
    """all_of_them: the open connections; the longest silent comes first."""

    def __init__(
        self, *given: Any, seconds: float, most: int, all_of_them: OrderedDict[Door, None], **named: Any
    ) -> None:
        super().__init__(*given, **named)
        self._seconds, self._most, self._all = seconds, most, all_of_them
        self._head, self._in_head = 0, False  # bytes of what is neither body nor a head that is whole
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._begin()
        self._all[self] = None
        if len(self._all) > self._most:
            longest = next(one for one in self._all if one.silent)  # at the latest this one
            del self._all[longest]
            longest.transport.abort()

    @property
    def silent(self) -> bool:
        """No request of it is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._in_head:
            self._begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what follows a body in chunks is no part of the head (RFC 9110, 6.5.1)
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._head = 0
        super().on_body(body)

    def on_headers_complete(self) -> None:
        self._end()
        if self in self._all:
            self._all.move_to_end(self)
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        self._head += len(data)
        super().data_received(data)
        if self._head > LARGEST_HEAD:
            self._give_up()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self._seconds, self._give_up)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._read()
        self._all.pop(self, None)
        super().connection_lost(exc)

    def _begin(self) -> None:
        self._head, self._in_head = 0, True
        self._timer = self.loop.call_later(self._seconds, self._give_up)

    def _end(self) -> None:
        self._head, self._in_head = 0, False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _give_up(self) -> None:
        self.transport.abort()
