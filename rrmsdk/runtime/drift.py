"""Do the images that a version sees, and its answers, look like those it was exported with? Counted in windows.

Population stability index: the sum over bins of (p - q) ln(p / q), p the share of what is seen, q of what is expected.
Where they do not differ, PSI / (1/n + 1/m) is nearly chi-square with bins - 1 degrees (Yurdakul 2018), and the largest
gap of the cumulated shares (Kolmogorov-Smirnov) is above sqrt(-ln(a/2)/2 (1/n + 1/m)) with probability a.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from math import log, sqrt
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from rrmsdk.runtime.statistics import margins, softmax
from rrmsdk.schema.drift import Difference, Drift, Expected, Histogram, Window

PSI, KS = 0.2, 0.1  # effects that matter
ALPHA = 0.001
CUMULATED = ("confidence", "margin")  # compared by KS, the others by PSI
KEPT = 8  # finished windows
TOGETHER = 256  # images that are put into bins at once
TENTHS, FINE = 10, 64  # bins of a channel's means, and of what is compared by its cumulated shares
POOLED = 0.02  # of the expected images: classes are counted together, in their order, until they have as many


class Windows:
    """What one version sees, window by window. Safe to call from several threads.

    Images only wait here, and go into bins many at a time, so that a batch costs next to nothing.

    window: images after which one is finished.
    """

    def __init__(self, expected: Expected, window: int) -> None:
        self.expected, self.window = expected, window
        self._finished: deque[Window] = deque(maxlen=KEPT)
        self._compared = compared(expected)
        self._lock = threading.Lock()
        self._number = 0
        self._next()

    def _next(self) -> None:
        self._number += 1
        self._seen = {name: np.zeros(len(one.counts), np.int64) for name, one in self._compared.items()}
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._counted = self._images = 0
        self._began = self._ended = 0.0

    def add(self, pixels: np.ndarray, logits: np.ndarray) -> None:
        """Count one batch."""
        channels, now = means(pixels), time.time()
        with self._lock:
            self._began, self._ended = self._began or now, now
            self._waiting.append((channels, logits))
            self._images += len(logits)
            if self._images >= min(self.window, self._counted + TOGETHER):
                self._count()
            if self._images >= self.window:
                self._finished.append(self._told())
                self._next()

    @property
    def last(self) -> Window | None:
        """That is finished."""
        with self._lock:
            return self._finished[-1] if self._finished else None

    def told(self, model: str, version: str) -> Drift:
        with self._lock:
            self._count()
            return Drift(
                model_name=model, model_version=version, window=self.window, expected=self.expected.images,
                finished=tuple(self._finished), current=self._told() if self._images else None,
            )  # fmt: skip

    def _count(self) -> None:
        if not self._waiting:
            return
        channels, logits = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting, self._counted = [], self._images
        confidence, margin, classes = answers(logits)
        by_channel = {f"channel_{at}": one for at, one in enumerate(channels.T)}
        for name, values in ({"classes": classes, "confidence": confidence, "margin": margin} | by_channel).items():
            self._seen[name] += _binned(values, self._compared[name].edges)

    def _told(self) -> Window:
        drift = {
            name: (ks if name in CUMULATED else psi)(self._seen[name], np.array(one.counts))
            for name, one in self._compared.items()
        }
        began, ended = (
            datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds") for at in (self._began, self._ended)
        )
        return Window(
            number=self._number, began=began, ended=ended, images=self._images, drift=drift,
            above=any(one.above for one in drift.values()),
        )  # fmt: skip


def compared(expected: Expected) -> dict[str, Histogram]:
    """Everything that is compared, by its name."""
    by_channel = {f"channel_{at}": one for at, one in enumerate(expected.channels)}
    own = {"classes": _pooled(expected), "confidence": expected.confidence, "margin": expected.margin}
    return own | by_channel


def _pooled(expected: Expected) -> Histogram:
    """Images by class; with too few in a bin, PSI would find a difference where there is none."""
    edges, counts = [], [0]
    for label, count in enumerate(expected.classes):
        if counts[-1] >= POOLED * expected.images:
            edges.append(label)
            counts.append(0)
        counts[-1] += count
    if edges and counts[-1] < POOLED * expected.images:
        edges.pop()
        counts[-2:] = [counts[-2] + counts[-1]]
    return Histogram(edges=tuple(edges), counts=tuple(counts))


def means(pixels: np.ndarray) -> np.ndarray:
    """[B, C] in [0, 1], of pixels [B, C, H, W], or of bytes [B, H, W, C]."""
    if pixels.dtype == np.uint8:
        planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        return planes.reshape(*planes.shape[:2], -1).mean(axis=2) / 255
    return pixels.reshape(*pixels.shape[:2], -1).mean(axis=2)


def expecting(channels: np.ndarray, logits: np.ndarray, **about: Any) -> Expected:
    """What the means of channels [N, C] and the logits [N, K] of some images let expect.

    Args:
        about: the fields of `Expected` that say whose and which they are.
    """
    confidence, margin, classes = answers(logits)
    return Expected(
        **about,
        images=len(logits),
        channels=tuple(_histogram(one, TENTHS) for one in channels.T),
        confidence=_histogram(confidence, FINE),
        margin=_histogram(margin, FINE),
        classes=tuple(np.bincount(classes, minlength=logits.shape[1]).tolist()),
    )


def answers(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidence, margin and class of each image."""
    probabilities = softmax(logits.astype(np.float64))
    return probabilities.max(axis=1), margins(probabilities), logits.argmax(axis=1)


def _histogram(values: np.ndarray, bins: int) -> Histogram:
    # Four digits, never 0 or 1: many images lie just there, and rounding must not move them over an edge.
    edges = np.unique(np.quantile(values, np.arange(1, bins) / bins).round(4))
    edges = edges[(edges > 0) & (edges < 1)]
    return Histogram(edges=tuple(edges.tolist()), counts=tuple(_binned(values, edges).tolist()))


def _binned(values: np.ndarray, edges: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)


def psi(seen: np.ndarray, expected: np.ndarray) -> Difference:
    """Of counts in the same bins. Half an image is added to each bin: an empty one has no logarithm."""
    n, m = int(seen.sum()), int(expected.sum())
    p, q = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (seen, expected))
    effect = float(((p - q) * np.log(p / q)).sum())
    return _difference("psi", effect, PSI, effect / (1 / n + 1 / m), _chi_square(len(seen) - 1), n)


def ks(seen: np.ndarray, expected: np.ndarray) -> Difference:
    """Of counts in the same bins; a finer comparison could find a larger gap, by one bin at most."""
    n, m = int(seen.sum()), int(expected.sum())
    effect = float(np.abs(seen.cumsum() / n - expected.cumsum() / m).max())
    return _difference("ks", effect, KS, effect / sqrt(1 / n + 1 / m), sqrt(-log(ALPHA / 2) / 2), n)


def _difference(
    kind: Literal["psi", "ks"], effect: float, least: float, statistic: float, critical: float, n: int
) -> Difference:
    above = effect > least and statistic > critical
    return Difference(kind=kind, effect=effect, least=least, statistic=statistic, critical=critical, n=n, above=above)


def _chi_square(degrees: int) -> float:
    """What a chi-square number exceeds with probability ALPHA, within 3 % (Wilson and Hilferty 1931)."""
    if degrees < 1:
        return float("inf")
    part = 2 / (9 * degrees)
    return degrees * (1 - part + NormalDist().inv_cdf(1 - ALPHA) * sqrt(part)) ** 3
