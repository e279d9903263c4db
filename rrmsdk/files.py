"""Writing beside and renaming, and hashing: a reader sees the old file or the new one, never half."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from rrmsdk.errors import SaveError

SETTLED = 2.0  # seconds; the clocks of file systems tick every few milliseconds, those of FAT every two seconds


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`; takes its place, flushed to the disk, when the block ends well.

    Raises:
        SaveError: the disk is full or the folder cannot be written; `path` is as it was.
    """
    path = Path(path)
    beside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        beside = Path(name)
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.chmod(0o644)  # mkstemp makes it 0600
        beside.replace(path)
        flush(path.parent)
    except OSError as exc:
        if isinstance(exc, SaveError):
            raise
        raise SaveError(f"could not write {path}: {exc.strerror or exc}. What was there before is untouched.") from exc
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)


def flush(folder: Path) -> None:
    """A rename outlives a power cut once its folder is on the disk; nothing where the system has no such call.

    Some network file systems refuse it, and who may write into a folder may not always read it.
    """
    if os.name != "posix":
        return
    try:
        place = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise


def cache() -> Path:
    """What can be made again lies here: `$RRMSDK_CACHE`, or ~/.cache/rrmsdk."""
    return Path(os.environ.get("RRMSDK_CACHE") or Path.home() / ".cache" / "rrmsdk")


def write_text(path: Path, text: str) -> None:
    """Write `text` beside `path` and rename."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` beside `path` and rename."""
    with replacing(path) as beside:
        beside.write_bytes(content)


def sha256(path: Path) -> str:
    """Hex digest of the bytes of the file at `path`."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_while_unchanged(path: Path) -> str:
    """As `sha256`, but the bytes are read once in a process for as long as nothing was written to the file.

    As in git's index, a file is unchanged while its inode, size and times are the same. Programs can set the time of
    modification back, but not that of the last change of any kind (ctime). What changed in the last `SETTLED` seconds
    is read each time, because two changes may share one tick of the clock; so is everything on Windows.
    """
    path = Path(path)
    stat = path.stat()
    if os.name != "posix" or time.time_ns() - stat.st_ctime_ns < SETTLED * 1e9:
        return sha256(path)
    return _read_once(path.absolute(), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=4096)
def _read_once(path: Path, *stamp: int) -> str:
    return sha256(path)
