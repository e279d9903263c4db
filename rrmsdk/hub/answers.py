"""What a Hub may answer: names that stay in the cache, no more bytes than it said, and not in its own good time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from huggingface_hub.utils import _http, get_session, httpx

from rrmsdk.errors import IntegrityError

_PLAIN = re.compile(r"[0-9A-Za-z][\w.+=:-]{0,127}")
HARMLESS = 65536.0  # bytes: what is not the file itself (a token for another store, say) is shorter
_JUDGED: ContextVar[bool] = ContextVar("judged", default=False)
_SILENCE: ContextVar[float | None] = ContextVar("silence", default=None)
_MOST: ContextVar[tuple[float, str] | None] = ContextVar("most", default=None)


@contextmanager
def only_plain_names() -> Iterator[None]:
    """Refuse answers whose ETag or commit could not be a file's name, while the block runs.

    The client names files of its cache after them as they come, so `../../x` would be written outside of it.
    """
    _watch()
    before = _JUDGED.set(True)
    try:
        yield
    finally:
        _JUDGED.reset(before)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """No answer is waited for longer, while the block runs; the client would wait for ever."""
    before, token = get_session().timeout, _SILENCE.set(seconds)
    _watch()
    try:
        yield
    finally:
        _SILENCE.reset(token)
        get_session().timeout = before


@contextmanager
def at_most(size: float, name: str) -> Iterator[None]:
    """Break an answer off where more than `size` bytes of file `name` come (or `HARMLESS`), while the block runs."""
    _watch()
    before = _MOST.set((max(size, HARMLESS), name))
    try:
        yield
    finally:
        _MOST.reset(before)


class _Counted(httpx.SyncByteStream):
    """The body of an answer, which ends in an error where it is longer than it may be."""

    def __init__(self, stream: Any, most: float, what: str) -> None:
        self.stream, self.most, self.what = stream, most, what

    def __iter__(self) -> Iterator[bytes]:
        come = 0
        for part in self.stream:
            come += len(part)
            if come > self.most:
                raise IntegrityError(f"{self.what}: more than {self.most:.0f} bytes come, which is not what was said")
            yield part

    def close(self) -> None:
        self.stream.close()


def _watch() -> None:
    """Every session is one of ours, also after a refused connection: then the client goes on with a new one."""
    factory: Any = _http._GLOBAL_CLIENT_FACTORY
    if getattr(factory, "func", None) is not _watched:
        _http._GLOBAL_CLIENT_FACTORY = partial(_watched, factory)
    _watched(get_session)


def _watched(make: Any) -> httpx.Client:
    session: httpx.Client = make()
    if _plain not in session.event_hooks["response"]:
        session.event_hooks["response"] += [_plain, _counted]
    if (seconds := _SILENCE.get()) is not None:
        session.timeout = httpx.Timeout(seconds)
    return session


def _plain(answer: httpx.Response) -> None:
    if not _JUDGED.get():
        return
    for header in ("etag", "x-linked-etag", "x-repo-commit"):
        said = answer.headers.get(header, "").removeprefix("W/").strip('"')
        if said and not _PLAIN.fullmatch(said):
            raise IntegrityError(f"{answer.request.url.host} answered with {header} {said!r}, which names no file")


def _counted(answer: httpx.Response) -> None:
    if (limit := _MOST.get()) and answer.is_success:  # a page that says what went wrong is no file
        answer.stream = _Counted(answer.stream, *limit)
