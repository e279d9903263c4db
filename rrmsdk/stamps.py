"""The sha256 of large files, for as long as nothing was written to them: in a process, and from one to the next.

Hashing 50 MB takes longer than everything else that resolving a reference does. As in git's index, a file is the same
while its device, inode, size and times are. Programs can set the time of modification back, but not that of the last
change of any kind (ctime). What is noted lies outside of every cache that may be shared, and counts only in a file
that is the user's own and that nobody else can write to: who can write there could as well change the user's Python.

What a disk gets wrong by itself changes no time and is not seen: `RRMSDK_STAMPS=` (nothing) notes nothing, and then
every process reads every byte.
"""

from __future__ import annotations

import json
import os
import stat as modes
import tempfile
import time
from functools import lru_cache
from pathlib import Path

from rrmsdk.files import sha256

FOLDER = "RRMSDK_STAMPS"
NOTES = "stamps.json"
SETTLED = 2.0  # seconds; the clocks of file systems tick every few milliseconds, those of FAT every two seconds
LARGE = 1_000_000  # bytes; less is hashed in a millisecond
MOST = 1000  # files; those noted first are forgotten first
LARGEST = 10_000_000  # bytes of notes that are read at all


def sha256_while_unchanged(path: Path) -> str:
    """As `files.sha256`, but the bytes are read once for as long as nothing was written to the file.

    What changed in the last `SETTLED` seconds is read each time, because two changes may share one tick of the clock;
    so is everything on Windows.
    """
    path = Path(path)
    stat = path.stat()
    if os.name != "posix" or time.time_ns() - stat.st_ctime_ns < SETTLED * 1e9:
        return sha256(path)
    return _read_once(path.absolute(), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=4096)
def _read_once(path: Path, *stamp: int) -> str:
    notes = _notes() if stamp[2] >= LARGE else None
    if notes is None:
        return sha256(path)
    noted = _noted(notes).get(str(path))
    if noted is not None and noted[:-1] == [*stamp]:
        return str(noted[-1])
    digest = sha256(path)
    _note(notes, str(path), [*stamp, digest])
    return digest


def _notes() -> Path | None:
    """The file of what was noted, in `$RRMSDK_STAMPS` or ~/.local/state/rrmsdk-stamps; None: the user wants none."""
    named = os.environ.get(FOLDER)
    try:
        folder = Path.home() / ".local" / "state" / "rrmsdk-stamps" if named is None else Path(named)
    except RuntimeError:  # the user has no home
        return None
    return None if named == "" else folder / NOTES


def _noted(notes: Path) -> dict[str, list[int | str]]:
    """What earlier processes noted; nothing where it cannot be read, or somebody else may have written it."""
    try:
        with os.fdopen(os.open(notes, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            about = os.fstat(file.fileno())
            ours = about.st_uid == os.geteuid() and about.st_nlink == 1 and not about.st_mode & 0o022
            found = json.loads(file.read(LARGEST)) if ours and modes.S_ISREG(about.st_mode) else None
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and all(isinstance(row, list) and row for row in found.values()) else {}


def _note(notes: Path, path: str, row: list[int | str]) -> None:
    """Of two processes at once one may lose its note, and hash again; so may one whose disk is full or loses power.

    So it is not flushed as `files.write_text` does; nor is it for others to read.
    """
    found = _noted(notes)
    found.pop(path, None)
    found[path] = row
    kept = dict(list(found.items())[-MOST:])
    try:
        notes.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=notes.parent)
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(kept, file)
            os.replace(beside, notes)
        finally:
            Path(beside).unlink(missing_ok=True)
    except OSError:
        return
