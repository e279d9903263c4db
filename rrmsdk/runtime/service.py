"""What one server is made of, and the way of a request through it."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import prod
from typing import Any

import numpy as np

from rrmsdk.runtime import body
from rrmsdk.runtime.access import Access
from rrmsdk.runtime.batcher import Answer, Batcher
from rrmsdk.runtime.canary import Canary
from rrmsdk.runtime.metrics import Metrics
from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.served import Served
from rrmsdk.runtime.shadow import AHEAD, Shadow
from rrmsdk.runtime.store import Store
from rrmsdk.runtime.tracing import Spans
from rrmsdk.runtime.watch import Watch

NUMBER = 24  # bytes that one pixel may take in JSON
LARGEST_FILE = 8 << 20  # bytes of an image file
LARGEST_BODY = 32 << 20
SMALL = 1 << 16  # bytes of a request that holds no image
ALL_BODIES = 256 << 20  # bytes of the requests that are still being sent

Receive = Callable[[], Any]


@dataclass(frozen=True)
class Limits:
    """batch, queue: images. timeout: seconds for a request. body: bytes; None: what a full batch takes as JSON."""

    batch: int = 64
    queue: int = 1024
    timeout: float = 10.0
    body: int | None = None


@dataclass
class Service:
    """A model under a name. release: of rrmsdk. stopping: it tells that it is not ready, and still answers.

    watch: brings newer versions while it runs; None: nobody does.
    spans: where requests are told; None: nobody collects them.
    """

    name: str
    release: str
    store: Store
    access: Access
    limits: Limits
    stopping: bool = False
    watch: Watch | None = None
    spans: Spans | None = field(default=None, init=False)
    batcher: Batcher = field(init=False)
    background: Batcher = field(init=False)  # of the shadow
    metrics: Metrics = field(init=False)
    bodies: body.Bodies = field(default_factory=lambda: body.Bodies(ALL_BODIES), init=False)
    decoding: asyncio.Semaphore = field(init=False)
    _canary: Canary | None = field(default=None, init=False)
    _shadow: Shadow | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.batcher = Batcher(max_batch=self.limits.batch, max_queue=self.limits.queue)
        self.background = Batcher(max_batch=self.limits.batch, max_queue=AHEAD * self.limits.batch, low=True)
        self.metrics = Metrics(lambda: self.batcher.images)
        self.changed()
        self.decoding = asyncio.Semaphore(2)  # images at a time: each may take 100 MB

    @property
    def version(self) -> str | None:
        """The one that answers."""
        return self.store.loaded[0].version if self.store.loaded else None

    @property
    def ready(self) -> bool:
        return not self.stopping and bool(self.store.loaded) and self.batcher.running

    @property
    def canary(self) -> Canary | None:
        """None too where its version answers by now, or was unloaded."""
        made = self._canary
        return made if made and self.store.beside.get("canary") is made.served else None

    @property
    def shadow(self) -> Shadow | None:
        """As `canary`."""
        made = self._shadow
        return made if made and self.store.beside.get("shadow") is made.served else None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """What is queued is answered before it ends; a load that is under way is finished, and changes nothing."""
        async with self.background:
            async with self.batcher:
                looking = asyncio.create_task(self.watch.run(self)) if self.watch else None
                try:
                    yield
                finally:
                    if looking is not None:
                        looking.cancel()
                        await asyncio.gather(looking, return_exceptions=True)
            self._end_shadow()

    def changed(self) -> None:
        """Another version answers, or another one is on trial."""
        self.metrics.now_serving(self.version)
        self.metrics.canary.clear()
        if self.canary is not None:
            self.metrics.canary.labels(self.canary.served.version).set(self.canary.percent)
        else:
            self._canary = None  # with the version that it kept in memory
        if self.shadow is None:
            self._end_shadow()

    def try_canary(self, served: Served, percent: float) -> None:
        """Let a version that was brought beside answer that share; one that is on trial goes on with another share."""
        before = self.canary
        if before is not None and before.served is served:
            self._canary = Canary(served, percent, before.since, before.before)
        else:
            self._canary = Canary(served, percent, _now(), copy.deepcopy(self.metrics.versions))
        self.changed()

    def try_shadow(self, served: Served) -> None:
        """Let a version that was brought beside compute all again."""
        self._end_shadow()
        self._shadow = Shadow(served, _now(), self.background, self.metrics, self.limits.timeout)

    def _end_shadow(self) -> None:
        if self._shadow is not None:
            self._shadow.end()
            self._shadow = None

    def choose(self, name: str, version: str | None, request_id: str) -> Served:
        """The version that answers a request: the one that it names, else the canary's in its share of all ids.

        Raises:
            Refused: 404.
        """
        served, canary = self.find(name, version), self.canary
        return canary.served if version is None and canary is not None and canary.takes(request_id) else served

    def find(self, name: str, version: str | None) -> Served:
        """Raises Refused (404)."""
        if name != self.name:
            raise Refused(404, f"there is no such model; this server has '{self.name}'")
        return self.store.find(version)

    def most_bytes(self, served: Served) -> int:
        """Of a request."""
        if self.limits.body is not None:
            return self.limits.body
        return min(LARGEST_BODY, SMALL + NUMBER * self.limits.batch * prod(served.session.input_shape))

    async def turn(self) -> None:
        """Until an image may be decoded; then `decoding` is to be released. Raises Refused (504)."""
        try:
            async with asyncio.timeout(self.limits.timeout):
                await self.decoding.acquire()
        except TimeoutError:
            raise Refused(504, f"no turn to decode within {self.limits.timeout:g} s", retry_after=1) from None

    async def infer(self, served: Served, pixels: np.ndarray, receive: Receive, timeout: float | None) -> Answer:
        """Logits of checked pixels, counted.

        Args:
            receive: of the request, whose body was read.

        Raises:
            Refused: 503, 504.
            body.Left: the client did not wait.
        """
        if pixels.shape[1:] != served.session.sizes:  # checked for a version that was unloaded meanwhile
            raise Refused(503, "another version answers by now, of another image size: ask again", retry_after=1)
        seconds = min(timeout or self.limits.timeout, self.limits.timeout)
        left = asyncio.create_task(_left(receive))
        try:
            answer = await self.batcher.submit(served, pixels, seconds, left)
        except BaseException as exc:
            self.metrics.failed(served)
            if isinstance(exc, asyncio.CancelledError) and left.done():
                raise body.Left from None
            raise
        finally:
            left.cancel()
        self.metrics.answered(served, answer)
        if self.shadow is not None and self.store.loaded[:1] == (served,):
            self.shadow.offer(pixels, answer.logits)
        return answer


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
