"""A real browser that is told what to do: Chromium's DevTools protocol over two pipes, so that no package is needed."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run --hide-scrollbars --remote-debugging-pipe"
)


@dataclass
class Tab:
    """complaints: what the page wrote to its console, or threw."""

    write: BinaryIO
    read: BinaryIO
    session: str | None = None
    complaints: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _unread: bytearray = field(default_factory=bytearray)

    def tell(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        about = {"sessionId": self.session} if self.session else {}
        self.write.write(json.dumps({"id": number, "method": method, "params": params} | about).encode() + b"\0")
        self.write.flush()
        while True:
            told = self._heard()
            if told.get("id") == number:
                assert "error" not in told, told
                return told["result"]

    def _heard(self) -> dict[str, Any]:
        while (end := self._unread.find(b"\0")) < 0:
            more = os.read(self.read.fileno(), 1 << 20)
            assert more, "the browser has ended"
            self._unread += more
        told = json.loads(self._unread[:end])
        del self._unread[: end + 1]
        if told.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(json.dumps(told["params"]))
        return told

    def value(self, script: str) -> Any:
        """Of an expression in the page."""
        told = self.tell("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, script: str) -> None:
        deadline = time.monotonic() + 60
        while not self.value(f"!!({script})"):
            assert time.monotonic() < deadline, script
            time.sleep(0.05)

    def drop(self, file: Path, onto: str) -> None:
        """Drag a file from outside and let it go in the middle of an element."""
        box = self.value(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({onto}.getBoundingClientRect())")
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.tell("Input.dispatchDragEvent", type=kind, x=box[0], y=box[1], data=data)

    def like(self, dark: bool) -> None:
        """As somebody sees it who has the system in these colours."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.tell("Emulation.setEmulatedMedia", features=[scheme])


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """An empty tab. Skips where there is no Chromium."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no chromium to open the page with")
    (theirs, ours), (mine, their_answers) = os.pipe(), os.pipe()

    def three_and_four() -> None:
        first, second = os.dup(theirs), os.dup(their_answers)
        os.dup2(first, 3)
        os.dup2(second, 4)

    process = subprocess.Popen(
        [found, *OPTIONS.split(), f"--user-data-dir={profile}"], stderr=subprocess.DEVNULL, close_fds=False,
        preexec_fn=three_and_four,
    )  # fmt: skip
    os.close(theirs)
    os.close(their_answers)
    try:
        with os.fdopen(ours, "wb") as write, os.fdopen(mine, "rb") as read:
            tab = Tab(write, read)
            target = tab.tell("Target.createTarget", url="about:blank")["targetId"]
            tab.session = tab.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                tab.tell(f"{domain}.enable")
            yield tab
    finally:
        process.kill()
        process.wait()
