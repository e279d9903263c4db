"""Requests that wait for the network, and the one thread that runs it on as many of them as there are."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.statistics import margins, softmax


@runtime_checkable
class Network(Protocol):
    """What a batch is given to."""

    def predict(self, pixels: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Answer:
    """The logits of one request.

    classes, margins: of each image, the likeliest class, and how far its probability is above the second's.
    batch: images that ran together.
    leads: exactly one answer of each batch does, so that batches can be counted.
    waited, took: seconds in the queue, and in the network.
    """

    logits: np.ndarray
    classes: list[int]
    margins: list[float]
    batch: int
    leads: bool
    waited: float
    took: float


@dataclass(eq=False)
class _Waiting:
    """A request in the queue. `network` is the one that was current when it came."""

    network: Network
    pixels: np.ndarray
    answer: asyncio.Future[Answer]
    since: float
    queued: bool = True

    def too_late(self, timeout: float) -> None:
        if not self.answer.done():
            self.answer.set_exception(Refused(504, f"no answer within {timeout:g} s", retry_after=1))

    def leave(self, _: object) -> None:
        self.answer.cancel()


class Batcher:
    """Use as an asynchronous context manager; leaving it answers all that wait, and refuses what still comes.

    Nobody waits for a batch to fill: whenever the thread is free it takes what is there. A batch is of one network, so
    a swap never splits one.

    max_batch: images that run together, and the most that one request may have.
    max_queue: images that may wait.
    low: whether its thread gives way to all others, where the system knows priorities of threads (Linux).
    """

    def __init__(self, *, max_batch: int = 64, max_queue: int = 1024, low: bool = False) -> None:
        self.max_batch = max_batch
        self.max_queue = max(max_queue, max_batch)
        self.images = 0  # that wait
        self._queue: deque[_Waiting] = deque()
        self._some, self._idle = asyncio.Event(), asyncio.Event()
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="rrmsdk-network", initializer=_give_way if low else None
        )
        self._closing = False

    async def __aenter__(self) -> Batcher:
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        await self._idle.wait()
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)
        self._thread.shutdown()

    async def submit(
        self, network: Network, pixels: np.ndarray, timeout: float, left: asyncio.Future[None] | None = None
    ) -> Answer:
        """The logits of `pixels`; who stops waiting (cancels) leaves the queue.

        Args:
            pixels: checked by the caller: what one request gets wrong would fail the others of its batch.
            timeout: seconds from now.
            left: done where nobody wants the answer any more.

        Raises:
            Refused: 400 where no batch can hold it, 503 where too many wait or the server is stopping, 504 after
                `timeout`.
            CancelledError: `left` is done.
            Exception: whatever the network raises, the same for all of the batch.
        """
        if len(pixels) > self.max_batch:
            raise Refused(400, f"{len(pixels)} images in a request; at most {self.max_batch}")
        if self._closing:
            raise Refused(503, "this server is stopping", retry_after=1)
        if self.images + len(pixels) > self.max_queue:
            raise Refused(503, f"{self.images} images wait already; this server is overloaded", retry_after=1)
        loop = asyncio.get_running_loop()
        one = _Waiting(network, pixels, loop.create_future(), time.monotonic())
        self._queue.append(one)
        self.images += len(pixels)
        self._idle.clear()
        self._some.set()
        timer = loop.call_later(timeout, one.too_late, timeout)
        if left is not None:
            left.add_done_callback(one.leave)
        try:
            return await one.answer
        finally:
            timer.cancel()
            if one.queued:
                self._queue.remove(one)
                self.images -= len(pixels)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._queue:
                self._idle.set()
                self._some.clear()
                await self._some.wait()
            batch = self._take()
            if not batch:
                continue
            began = time.monotonic()
            try:
                found = await loop.run_in_executor(self._thread, _run, batch[0].network, [one.pixels for one in batch])
            except Exception as exc:  # of the network: those who wait for it are told
                for one in batch:
                    if not one.answer.done():
                        one.answer.set_exception(exc)
                continue
            _deliver(batch, found, began)

    def _take(self) -> list[_Waiting]:
        """What runs next, in the order in which it came: of the first one's network, as far as a batch reaches."""
        taken: list[_Waiting] = []
        room = self.max_batch
        for one in self._queue:
            if one.network is not self._queue[0].network:
                continue
            if len(one.pixels) > room:
                break
            taken.append(one)
            room -= len(one.pixels)
        for one in taken:
            self._queue.remove(one)
            one.queued = False
            self.images -= len(one.pixels)
        return [one for one in taken if not one.answer.done()]


def _give_way() -> None:
    """Of the thread that calls it; the number that Linux has for a thread stands for one alone."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _run(network: Network, parts: Sequence[np.ndarray]) -> tuple[np.ndarray, list[int], list[float]]:
    """In the thread: logits, classes and margins of all parts."""
    pixels = parts[0] if len(parts) == 1 else np.concatenate(parts)
    logits = network.predict(pixels)
    probabilities = softmax(logits)
    return logits, probabilities.argmax(axis=1).tolist(), margins(probabilities).tolist()


def _deliver(batch: Sequence[_Waiting], found: tuple[np.ndarray, list[int], list[float]], began: float) -> None:
    (logits, classes, sure), took = found, time.monotonic() - began
    at, leads = 0, True
    for one in batch:
        own, at = slice(at, at + len(one.pixels)), at + len(one.pixels)
        if not one.answer.done():  # its client may have left meanwhile
            waited = began - one.since
            one.answer.set_result(Answer(logits[own], classes[own], sure[own], len(logits), leads, waited, took))
            leads = False
