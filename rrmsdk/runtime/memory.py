"""Memory that is free again, given back to the system."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """What the C library keeps of memory that was freed; where it is not glibc nothing happens.

    It keeps what networks leave that were swapped out, and a server that swaps grows by half in its first ten swaps.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
