"""A new version that answers a share of the requests, and how it does beside the one that answers the others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rrmsdk.runtime.metrics import Statistics
from rrmsdk.runtime.served import Served


@dataclass(frozen=True)
class Canary:
    """since: when it began, ISO 8601. before: what each version had counted until then."""

    served: Served
    percent: float
    since: str
    before: Mapping[str, Statistics]

    def takes(self, request_id: str) -> bool:
        """Whether it answers the request of that id: the same here, on every other server, and at any larger share."""
        drawn = int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "big") / 2**64
        return 100 * drawn < self.percent

    def compared(self, now: Mapping[str, Statistics], answering: str | None) -> list[dict[str, Any]]:
        """Since it began: the version that answers the others, then the canary's."""
        versions = [version for version in (answering, self.served.version) if version is not None]
        return [
            {"version": version} | _counted(now.get(version, Statistics()), self.before.get(version, Statistics()))
            for version in versions
        ]


def _counted(now: Statistics, before: Statistics) -> dict[str, Any]:
    requests, failed, images = now.requests - before.requests, now.failed - before.failed, now.images - before.images
    classes = now.classes - before.classes
    return {
        "requests": requests,
        "failed": failed,
        "images": images,
        "mean_ms": _share(now.waited + now.took - before.waited - before.took, requests * 1_000_000),
        "failed_rate": _share(failed, requests + failed),
        "low_margin_rate": _share(now.low - before.low, images),
        "class_rates": {label: count / images for label, count in sorted(classes.items())},
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
