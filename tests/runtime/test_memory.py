"""Freed memory goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

_HOLD_AND_FREE = """
from pathlib import Path
from rrmsdk.runtime import memory

def resident():
    return next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("VmRSS"))

held = [bytes(2_000) for _ in range(50_000)]  # 100 MB, in pieces that the C library keeps when they are freed
last = bytes(2_000)  # behind them, so that it cannot shorten its heap
del held
before = resident()
memory.give_back()
print(before - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has malloc_trim")
def test_what_was_freed_is_given_back() -> None:
    said = subprocess.run([sys.executable, "-c", _HOLD_AND_FREE], capture_output=True, text=True, check=True).stdout
    assert float(said) > 50
