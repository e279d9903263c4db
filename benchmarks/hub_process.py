"""The Hub of the tests in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "hf_writer"  # what it lets write


@contextmanager
def hub(repo: str, bundle: Path) -> Iterator[tuple[str, str]]:
    """A Hub that holds the bundle; gives its address and the commit."""
    command = [sys.executable, "-m", "tests.hub_server", repo, str(bundle)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            address, commit = process.stdout.readline().split()
            yield address, commit
        finally:
            process.stdin.close()
