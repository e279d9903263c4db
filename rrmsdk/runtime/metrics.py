"""What the server counts, for Prometheus and for the protocol's statistics."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rrmsdk.runtime.batcher import Answer
from rrmsdk.runtime.served import Served

LOW_MARGIN = 0.1  # between the two largest probabilities
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_MARGINS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_CHANGES = (-0.5, -0.2, -0.1, -0.05, -0.02, -0.01, 0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


@dataclass
class Statistics:
    """Of one version, since the server started; times in nanoseconds."""

    images: int = 0
    requests: int = 0
    failed: int = 0
    waited: int = 0
    took: int = 0
    last: int = 0  # milliseconds since 1970
    low: int = 0  # images of a low margin
    classes: Tally[str] = field(default_factory=Tally)
    batches: Tally[int] = field(default_factory=Tally)
    batches_took: Tally[int] = field(default_factory=Tally)

    def told(self, name: str, version: str) -> dict[str, Any]:
        """As Triton's statistics extension has it; what is not measured apart is 0."""

        def spent(count: int, nanoseconds: int) -> dict[str, int]:
            return {"count": count, "ns": nanoseconds}

        done, nothing = self.requests, spent(0, 0)
        sizes = sorted(self.batches)
        return {
            "name": name,
            "version": version,
            "last_inference": self.last,
            "inference_count": self.images,
            "execution_count": sum(self.batches.values()),
            "inference_stats": {
                "success": spent(done, self.waited + self.took), "fail": spent(self.failed, 0),
                "queue": spent(done, self.waited), "compute_input": nothing, "compute_infer": spent(done, self.took),
                "compute_output": nothing, "cache_hit": nothing, "cache_miss": nothing,
            },
            "batch_stats": [
                {
                    "batch_size": size, "compute_input": nothing, "compute_output": nothing,
                    "compute_infer": spent(self.batches[size], self.batches_took[size]),
                }
                for size in sizes
            ],
        }  # fmt: skip


@dataclass(frozen=True)
class _Counters:
    """A version's own of what every answer counts: to look them up by their labels takes longer than to count.

    classes: of those that were predicted so far.
    """

    answers: Histogram
    margin: Histogram
    low: Counter
    classes: dict[int, Counter]


class Metrics:
    """One server's; nothing is kept in the process' own registry."""

    def __init__(self, waiting: Callable[[], float]) -> None:
        self.registry = registry = CollectorRegistry()
        self.versions: dict[str, Statistics] = {}
        self._counters: WeakKeyDictionary[Served, _Counters] = WeakKeyDictionary()
        self.requests = Counter("rrmsdk_requests", "Answered requests", ("route", "status"), registry=registry)
        self.seconds = Histogram(
            "rrmsdk_request_seconds", "From the head of a request to its answer", ("route",), buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        Gauge("rrmsdk_queue_images", "Images that wait for the network", registry=registry).set_function(waiting)
        self.queue = Histogram("rrmsdk_queue_seconds", "Time in the queue", buckets=_SECONDS, registry=registry)
        self.network = Histogram("rrmsdk_batch_seconds", "Time of a batch", buckets=_SECONDS, registry=registry)
        self.batch = Histogram("rrmsdk_batch_images", "Images of a batch", buckets=_SIZES, registry=registry)
        labels = ("version", "label")
        self.classes = Counter("rrmsdk_predictions", "Images by predicted class", labels, registry=registry)
        self.margin = Histogram(
            "rrmsdk_margin", "Difference of the two largest probabilities", ("version",), buckets=_MARGINS,
            registry=registry,
        )  # fmt: skip
        self.low = Counter(
            "rrmsdk_low_margin", f"Images of a margin below {LOW_MARGIN}", ("version",), registry=registry
        )
        self.bad = Counter(
            "rrmsdk_bad_pixels", "Requests with pixels that are NaN or outside [0, 1]", registry=registry
        )
        self.swaps = Counter("rrmsdk_swaps", "Loads and rollbacks of a version", ("outcome",), registry=registry)
        self.serving = Gauge("rrmsdk_serving", "1 for the version that answers", ("version",), registry=registry)
        self.answers = Histogram(
            "rrmsdk_answer_seconds",
            "In queue and network",
            ("version",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.failures = Counter("rrmsdk_failures", "Requests that no answer followed", ("version",), registry=registry)
        self.looked = Gauge("rrmsdk_watch_looked_timestamp_seconds", "When the source was seen last", registry=registry)
        self.troubles = Counter("rrmsdk_watch_troubles", "Looks at the source that failed", registry=registry)
        self.canary = Gauge("rrmsdk_canary_percent", "Of the requests, by version", ("version",), registry=registry)
        self.shadow = Counter(
            "rrmsdk_shadow_images", "Images of the shadow: agree, disagree, dropped, failed", ("version", "outcome"),
            registry=registry,
        )  # fmt: skip
        self.shadow_margin = Histogram(
            "rrmsdk_shadow_margin_change", "Margin of the shadow less that of the version that answers", ("version",),
            buckets=_CHANGES, registry=registry,
        )  # fmt: skip

        labels = ("version", "of")
        self.effect = Gauge("rrmsdk_drift_effect", "PSI or KS of the last full window", labels, registry=registry)
        self.above = Gauge("rrmsdk_drift_above", "1 where that matters and is no chance", labels, registry=registry)
        self.windows = Gauge("rrmsdk_drift_windows", "Windows that are full", ("version",), registry=registry)

    def of(self, version: str) -> Statistics:
        if version not in self.versions:
            self.versions[version] = Statistics()
        return self.versions[version]

    def _of(self, served: Served) -> _Counters:
        if served not in self._counters:
            version = served.version
            self._counters[served] = _Counters(
                self.answers.labels(version), self.margin.labels(version), self.low.labels(version), {}
            )
        return self._counters[served]

    def failed(self, served: Served) -> None:
        self.of(served.version).failed += 1
        self.failures.labels(served.version).inc()

    def answered(self, served: Served, answer: Answer) -> None:
        about, counters, images = self.of(served.version), self._of(served), len(answer.logits)
        about.images += images
        about.requests += 1
        about.waited += int(answer.waited * 1e9)
        about.took += int(answer.took * 1e9)
        about.last = time.time_ns() // 1_000_000
        self.queue.observe(answer.waited)
        counters.answers.observe(answer.waited + answer.took)
        if answer.leads:
            about.batches[answer.batch] += 1
            about.batches_took[answer.batch] += int(answer.took * 1e9)
            self.batch.observe(answer.batch)
            self.network.observe(answer.took)
        for label in answer.classes:
            about.classes[served.labels[label]] += 1
            if label not in counters.classes:
                counters.classes[label] = self.classes.labels(served.version, served.labels[label])
            counters.classes[label].inc()
        for margin in answer.margins:
            counters.margin.observe(margin)
            if margin < LOW_MARGIN:
                about.low += 1
                counters.low.inc()

    def now_serving(self, version: str | None) -> None:
        self.serving.clear()
        if version is not None:
            self.serving.labels(version).set(1)

    def drifted(self, named: Sequence[Served]) -> None:
        """What the last windows of these versions, and of no other, have found."""
        for gauge in (self.effect, self.above, self.windows):
            gauge.clear()
        for served in named:
            if served.windows is None:
                continue
            last = served.windows.last
            self.windows.labels(served.version).set(last.number if last else 0)
            for name, found in (last.drift if last else {}).items():
                self.effect.labels(served.version, name).set(found.effect)
                self.above.labels(served.version, name).set(found.above)

    def text(self) -> bytes:
        return generate_latest(self.registry)
