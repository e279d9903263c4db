"""A client that asks a server again and again, and counts who answered, how rightly, and what failed."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import numpy as np

PAUSE = 0.02  # seconds between two requests: the other processes need the cores, too
TIMEOUT = 60.0


@dataclass
class Asking:
    """What became of the requests so far, by the version that answered.

    turns: versions in the order in which they began to answer, and the time when.
    """

    answered: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    turns: list[tuple[str, float]] = field(default_factory=list)


@contextmanager
def asking(port: int, model: str, pixels: np.ndarray, labels: np.ndarray) -> Iterator[Asking]:
    """Ask for one image after another on one connection, as long as this lasts."""
    found, stop = Asking(), threading.Event()
    thread = threading.Thread(target=_ask, args=(found, stop, port, f"/v2/models/{model}/infer", pixels, labels))
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def _ask(
    found: Asking, stop: threading.Event, port: int, path: str, pixels: np.ndarray, labels: np.ndarray
) -> None:  # fmt: skip
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)) as line:
        number = 0
        while not stop.wait(PAUSE):
            image, label = pixels[[number % len(pixels)]], labels[number % len(pixels)]
            number += 1
            tensor = {"name": "pixels", "datatype": "FP32", "shape": image.shape, "data": image.ravel().tolist()}
            try:
                line.request("POST", path, json.dumps({"inputs": [tensor]}), {"Content-Type": "application/json"})
                answer = line.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as exc:
                found.failures.append(repr(exc))
                line.close()
                continue
            if answer.status != 200:
                found.failures.append(f"{answer.status} {body[:200].decode(errors='replace')}")
                continue
            told = json.loads(body)
            version = told["model_version"]
            found.answered[version] += 1
            found.right[version] += int(np.argmax(told["outputs"][0]["data"]) == label)
            if not found.turns or found.turns[-1][0] != version:
                found.turns.append((version, time.monotonic()))
