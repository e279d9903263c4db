"""How the servers of the tests begin and end: on a thread of their own, until a `with` block is left; and waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any


def begin(server: Any) -> Any:
    """Serve on a thread; the `__enter__` of a server of http.server that has `stopping`, an event."""
    server.thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    server.thread.start()
    return server


def end(server: Any, *_: object) -> None:
    """Let go of what stalls, and stop; its `__exit__`."""
    server.stopping.set()
    server.shutdown()
    server.thread.join()
    server.server_close()


def until(holds: Callable[[], bool]) -> None:
    """What a server does in the background has no end that could be waited for."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)
