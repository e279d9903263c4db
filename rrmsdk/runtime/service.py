"""What one server is made of, and the way of a request through it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rrmsdk.runtime import body
from rrmsdk.runtime.access import Access
from rrmsdk.runtime.batcher import Answer, Batcher
from rrmsdk.runtime.metrics import Metrics
from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.served import Served
from rrmsdk.runtime.store import Store

NUMBER = 24  # bytes that one pixel may take in JSON
LARGEST_FILE = 8 << 20  # bytes of an image file
LARGEST_BODY = 32 << 20
SMALL = 1 << 16  # bytes of a request that holds no image

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
    """A model under a name. release: of rrmsdk. stopping: it tells that it is not ready, and still answers."""

    name: str
    release: str
    store: Store
    access: Access
    limits: Limits
    stopping: bool = False
    batcher: Batcher = field(init=False)
    metrics: Metrics = field(init=False)
    decoding: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.batcher = Batcher(max_batch=self.limits.batch, max_queue=self.limits.queue)
        self.metrics = Metrics(lambda: self.batcher.images)
        self.metrics.now_serving(self.version)
        self.decoding = asyncio.Semaphore(2)  # images at a time: each may take 100 MB

    @property
    def version(self) -> str | None:
        """The one that answers."""
        return self.store.loaded[0].version if self.store.loaded else None

    @property
    def ready(self) -> bool:
        return not self.stopping and bool(self.store.loaded)

    def find(self, name: str, version: str | None) -> Served:
        """Raises Refused (404)."""
        if name != self.name:
            raise Refused(404, f"there is no such model; this server has '{self.name}'")
        return self.store.find(version)

    def most_bytes(self, served: Served) -> int:
        """Of a request."""
        if self.limits.body is not None:
            return self.limits.body
        return min(LARGEST_BODY, SMALL + NUMBER * self.limits.batch * int(np.prod(served.session.input_shape)))

    async def infer(self, served: Served, pixels: np.ndarray, receive: Receive, timeout: float | None) -> Answer:
        """Logits of checked pixels, counted.

        Args:
            receive: of the request, whose body was read.

        Raises:
            Refused: 503, 504.
            body.Left: the client did not wait.
        """
        seconds = min(timeout or self.limits.timeout, self.limits.timeout)
        asked = asyncio.create_task(self.batcher.submit(served, pixels, seconds))
        left = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait((asked, left), return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise body.Left
            answer = asked.result()
        except BaseException:
            self.metrics.failed(served)
            raise
        finally:
            asked.cancel()
            left.cancel()
        self.metrics.answered(served, answer)
        return answer


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
