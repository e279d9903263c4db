"""Where the engines lie that were built on this machine. They are machine code, so nobody else may write there."""

from __future__ import annotations

import os
from pathlib import Path

from rrmsdk import files
from rrmsdk.errors import IntegrityError, SaveError

PRIVATE = 0o700
_OF_OTHERS = 0o022  # the bits that let group and others write


def folder(*parts: str, cache: Path | None = None) -> Path:
    """`engines/PARTS` in the cache, made where it is missing. Bundles hold no engines, and none is taken from one.

    Args:
        cache: None: `$RRMSDK_CACHE`, or ~/.cache/rrmsdk.

    Raises:
        IntegrityError: it belongs to another user, or others may write to it.
        SaveError: it cannot be made.
    """
    root = (files.cache() if cache is None else cache) / "engines"
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        root.mkdir(mode=PRIVATE, exist_ok=True)
        seen = root.stat()
        if seen.st_uid != os.getuid() or seen.st_mode & _OF_OTHERS:
            raise IntegrityError(
                f"{root} belongs to user {seen.st_uid} with mode {seen.st_mode & 0o777:o}: others could put an engine "
                f"there, which this process ({os.getuid()}) would run. Type chmod 700 {root}, or set RRMSDK_CACHE"
            )
        made = root.joinpath(*parts)
        made.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    except OSError as exc:
        if isinstance(exc, SaveError):
            raise
        raise SaveError(f"could not make {root}: {exc.strerror or exc}. Set RRMSDK_CACHE to another folder") from exc
    return made
