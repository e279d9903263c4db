"""A new version that computes what was asked a second time, in the background, and how often it says something else."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rrmsdk.errors import RrmError
from rrmsdk.runtime.batcher import Batcher
from rrmsdk.runtime.metrics import Metrics
from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.served import Served
from rrmsdk.runtime.statistics import margins, softmax

AHEAD = 4  # batches that may wait; what comes beyond is dropped


@dataclass
class Shadow:
    """batcher: one of low priority, of its own. timeout: seconds after which images in its queue are dropped.

    since: when it began, ISO 8601. change: of the margin, its sum and its sum without signs; `largest` without sign.
    """

    served: Served
    since: str
    batcher: Batcher
    metrics: Metrics
    timeout: float
    images: int = 0
    disagree: int = 0
    dropped: int = 0
    failed: int = 0
    change: float = 0.0
    change_size: float = 0.0
    largest: float = 0.0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def offer(self, pixels: np.ndarray, logits: np.ndarray) -> None:
        """What the version that answers said of `pixels`. Waits for nothing; a full queue drops it."""
        task = asyncio.create_task(self._compare(pixels, logits))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def end(self) -> None:
        """What waits is not computed any more."""
        for task in self._tasks:
            task.cancel()

    def told(self) -> dict[str, Any]:
        compared = self.images or None
        return {
            "version": self.served.version,
            "since": self.since,
            "images": self.images,
            "disagree": self.disagree,
            "disagree_rate": compared and self.disagree / compared,
            "margin_change_mean": compared and self.change / compared,
            "margin_change_mean_size": compared and self.change_size / compared,
            "margin_change_largest": compared and self.largest,
            "dropped": self.dropped,
            "failed": self.failed,
        }

    async def _compare(self, pixels: np.ndarray, logits: np.ndarray) -> None:
        try:
            answer = await self.batcher.submit(self.served, pixels, self.timeout)
        except Refused:
            self.dropped += len(pixels)
            self._count("dropped", len(pixels))
        except RrmError:  # NaN, or the runtime failed
            self.failed += len(pixels)
            self._count("failed", len(pixels))
        else:
            self._compared(softmax(logits), softmax(answer.logits))

    def _compared(self, answered: np.ndarray, shadow: np.ndarray) -> None:
        differ = int((answered.argmax(axis=1) != shadow.argmax(axis=1)).sum())
        changes = margins(shadow) - margins(answered)
        self.images += len(changes)
        self.disagree += differ
        self.change += float(changes.sum())
        self.change_size += float(np.abs(changes).sum())
        self.largest = max(self.largest, float(np.abs(changes).max()))
        self._count("disagree", differ)
        self._count("agree", len(changes) - differ)
        for change in changes:
            self.metrics.shadow_margin.labels(self.served.version).observe(change)

    def _count(self, outcome: str, images: int) -> None:
        self.metrics.shadow.labels(self.served.version, outcome).inc(images)
