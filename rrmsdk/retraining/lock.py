"""One process at a time in a job's folder. The kernel keeps the lock, so it ends with its holder, however that ends."""

from __future__ import annotations

import errno
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from rrmsdk.errors import BusyError, SaveError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = "lock"
DIGITS = 20  # of its number, at most
LOOKS = 20  # at a holder that has not written its number yet, 1 ms apart

_held: set[int] = set()


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold the folder, which is made where it is missing. Processes that this one starts do not hold it with it.

    Raises:
        BusyError: another process holds it, or this one does already.
        SaveError: the folder cannot be written.
    """
    if fcntl is None:
        raise SaveError("jobs need a system with flock, such as Linux or macOS")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as exc:
        raise SaveError(f"could not write {folder / LOCK}: {exc.strerror or exc}") from exc
    try:
        _take(place, folder)
    except BaseException:
        os.close(place)
        raise
    _not_for_forks()
    _held.add(place)
    try:
        yield
    finally:
        if place in _held:  # not in a forked child
            _held.discard(place)
            os.close(place)


def holder(folder: Path) -> int | None:
    """The process that holds the folder, for whoever only looks: the lock is not touched, so nobody finds it taken.

    None: nobody; or it cannot be seen, since the kernel has no /proc/locks or the process is another container's.
    """
    try:
        file = (folder / LOCK).stat().st_ino
        rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return None
    # 1: FLOCK ADVISORY WRITE 4711 00:2f:123456 0 EOF
    held = [int(row[4]) for row in rows if row[1] == "FLOCK" and row[5].rpartition(":")[2] == str(file)]
    return next((pid for pid in held if pid > 0), None)


def _take(place: int, folder: Path) -> None:
    assert fcntl is not None
    for look in range(LOOKS):
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise SaveError(f"could not lock {folder / LOCK}: {exc.strerror or exc}") from exc
        else:
            with suppress(OSError):  # a disk that is too full for a number keeps nobody from freeing it
                said = f"{os.getpid():<{DIGITS}}{_here()}".encode()
                os.pwrite(place, said, 0)
                os.ftruncate(place, len(said))
            return
        pid, here = _written(place)
        if pid is not None and ((here and _alive(pid)) or look == LOOKS - 1):
            break
        time.sleep(0.001)  # the holder is about to write its number, or has just died
    if pid is not None and not here:  # its number may be that of any other process here: nobody is to end that one
        raise BusyError(
            f"{folder.name}: process {pid} of another machine or container works on this job. Wait, or stop it there"
        )
    who = "another process" if pid is None else f"process {pid}"
    raise BusyError(f"{folder.name}: {who} works on this job. Wait for it, or stop it", pid)


def _written(place: int) -> tuple[int | None, bool]:
    """The holder's number, and whether it is one of this machine and container."""
    said = os.pread(place, 400, 0).decode(errors="replace")
    pid = said[:DIGITS].strip()
    return int(pid) if pid.isdecimal() else None, said[DIGITS:] == _here()


@cache
def _here() -> str:
    """Where a process's number means that process: this machine since it was started, and this container."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return platform.node()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return True


@cache
def _not_for_forks() -> None:
    """A forked child (a loader's worker, say) that outlives us would keep the lock: it closes its copy."""
    os.register_at_fork(after_in_child=_let_go)


def _let_go() -> None:
    for place in _held:
        os.close(place)
    _held.clear()
