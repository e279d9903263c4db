"""Writing beside and renaming, and hashing: a reader sees the old file or the new one, never half."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rrmsdk.errors import SaveError


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
