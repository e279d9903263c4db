"""Requests that wait for the network, and the one thread that runs it on as many of them as there are."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.statistics import margins, softmax

# Seconds of a batch. Below, what a network gains by taking the next batch at once is less than smaller batches cost.
QUICK = 0.003


@runtime_checkable
class Network(Protocol):
    """What a batch is given to.

    predict: the logits [B, classes], in the batcher's thread.
    seen: what it predicted, in the event loop, while the thread has the next batch already.
    """

    def predict(self, pixels: np.ndarray) -> np.ndarray: ...

    def seen(self, pixels: np.ndarray, logits: np.ndarray) -> None: ...


@dataclass(frozen=True)
class Answer:
    """The logits of one request.

    classes, margins: of each image, the likeliest class, and how far its probability is above the second's.
    batch: images that ran together.
    leads: one answer of each batch that anybody still waits for does, so that batches can be counted.
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

    Nobody waits for a batch to fill: whenever the thread is free it takes what is there. It takes it by itself, so that
    the network does not stand still while the event loop reads and answers. A batch is of one network, so a swap never
    splits one.

    max_batch: images that run together, and the most that one request may have.
    max_queue: images that may wait.
    low: whether its thread gives way to all others, where the system knows priorities of threads (Linux).
    """

    def __init__(self, *, max_batch: int = 64, max_queue: int = 1024, low: bool = False) -> None:
        self.max_batch = max_batch
        self.max_queue = max(max_queue, max_batch)
        self.images = 0  # that wait
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition(threading.Lock())  # holds for the queue, `images` and the two below
        self._turned = False  # the turn of the event loop in which what waits was read has ended
        self._closing = False
        self._turning = False
        self._low = low

    @property
    def running(self) -> bool:
        """It takes requests: it was not left, and its thread has not died."""
        return not self._closing

    async def __aenter__(self) -> Batcher:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        # A daemon: who never leaves the context would otherwise keep Python from ending.
        threading.Thread(target=self._work, name="rrmsdk-network", daemon=True).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        await self._ended.wait()

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
        one = _Waiting(network, pixels, self._loop.create_future(), time.monotonic())
        with self._changed:
            self._queue.append(one)
            self.images += len(pixels)
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)
        timer = self._loop.call_later(timeout, one.too_late, timeout)
        if left is not None:
            left.add_done_callback(one.leave)
        try:
            return await one.answer
        finally:
            timer.cancel()
            with self._changed:
                if one.queued:
                    self._queue.remove(one)
                    self.images -= len(pixels)
                    self._turned = self._turned and bool(self._queue)

    def _turn(self) -> None:
        """In the event loop, behind all requests that could be read in its turn."""
        self._turning = False
        with self._changed:
            self._turned = bool(self._queue)
            self._changed.notify()

    def _work(self) -> None:
        """The thread."""
        try:
            if self._low:
                _give_way()
            took = 0.0
            while batch := self._take(at_once=took > QUICK):
                took = self._ran(batch)
                del batch  # while it waits for the next one nothing of this one is to stay in memory
        finally:  # whatever ended it: nobody is to wait for it
            self._closing = True
            self._loop.call_soon_threadsafe(self._ended.set)

    def _ran(self, batch: Sequence[_Waiting]) -> float:
        """Seconds that it took."""
        began = time.monotonic()
        try:
            pixels = _together([one.pixels for one in batch])
            logits = batch[0].network.predict(pixels)
        except Exception as exc:  # of the network: those who wait for it are told
            self._loop.call_soon_threadsafe(_fail, batch, exc)
            return 0.0
        took = time.monotonic() - began
        self._loop.call_soon_threadsafe(_deliver, batch, pixels, logits, began, took)
        return took

    def _take(self, at_once: bool) -> list[_Waiting]:
        """What runs next, once there is something; nothing: all is done, and no more will come.

        at_once: what is there already; else what is there when the event loop ends its turn.
        """
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._closing or (self._queue and (self._turned or at_once)))
                if not self._queue:
                    return []
                taken = self._first()
                self._turned = bool(self._queue)  # what is left need not wait for another turn
                # Who left in this moment has not taken itself out of the queue yet.
                if batch := [one for one in taken if not one.answer.done()]:
                    return batch

    def _first(self) -> list[_Waiting]:
        """In the order in which it came: of the first one's network, as far as a batch reaches."""
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
        return taken


def _give_way() -> None:
    """Of the thread that calls it; the number that Linux has for a thread stands for one alone."""
    if sys.platform == "linux":
        with suppress(OSError):  # a sandbox may forbid the call
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _together(parts: Sequence[np.ndarray]) -> np.ndarray:
    """As `np.concatenate`, which lets go of Python's lock for each part and may wait for it as often."""
    if len(parts) == 1:
        return parts[0]
    kinds = {(part.dtype, part.shape[1:]) for part in parts}
    if len(kinds) > 1:
        raise ValueError(f"images of more than one kind in a batch: {kinds}")
    joined = b"".join([np.ascontiguousarray(part).data for part in parts])
    return np.frombuffer(joined, parts[0].dtype).reshape(-1, *parts[0].shape[1:])


def _deliver(batch: Sequence[_Waiting], pixels: np.ndarray, logits: np.ndarray, began: float, took: float) -> None:
    """In the event loop."""
    try:
        probabilities = softmax(logits)
        classes, sure = probabilities.argmax(axis=1).tolist(), margins(probabilities).tolist()
    except Exception as exc:  # these are no logits: nobody is to wait for his deadline
        _fail(batch, exc)
        return
    at, leads = 0, True
    for one in batch:
        own, at = slice(at, at + len(one.pixels)), at + len(one.pixels)
        if not one.answer.done():  # its client may have left meanwhile
            waited = began - one.since
            one.answer.set_result(Answer(logits[own], classes[own], sure[own], len(logits), leads, waited, took))
            leads = False
    batch[0].network.seen(pixels, logits)


def _fail(batch: Sequence[_Waiting], exc: Exception) -> None:
    """In the event loop."""
    for one in batch:
        if not one.answer.done():
            one.answer.set_exception(exc)
