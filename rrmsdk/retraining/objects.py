"""Files and folders kept under the hash of their content: whole or not at all, and compared with it before each use."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rrmsdk import files
from rrmsdk.errors import DiskFullError, IntegrityError, SaveError

PART, QUARANTINE = ".part-", "quarantine"
SPARE = 1 << 16  # bytes left for folders and the journal
_FULL = {errno.ENOSPC, errno.EDQUOT}
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Removed:
    """What `gc` removed, or would: objects and their bytes."""

    digests: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class Objects:
    """Use `opened`. What lies in it is not to be written to: whoever changes an object works on a copy."""

    folder: Path

    def put(self, source: Path) -> str:
        """Keep a copy of a file, or of all files under a folder; gives its digest.

        Raises:
            DiskFullError: no space; nothing half is left.
            SaveError: it cannot be read or written.
        """
        source = Path(source)
        room(self.folder, size(source), f"keeping {source}")
        with _saving(self.folder):
            beside = Path(tempfile.mkdtemp(prefix=PART, dir=self.folder))
            try:
                digest = _copied(source, beside / "it")
                if self.open(digest) is None:
                    (beside / "it").rename(self._place(digest))
                    files.flush(self.folder)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
        return digest

    def open(self, digest: str) -> Path | None:
        """Where the object lies; None: it does not, or no longer as it was put, and then it is moved aside."""
        place = self._place(digest)
        try:
            if digest_of(place) == digest:
                return place
        except FileNotFoundError:
            if not place.exists():
                return None
        except OSError:  # what the disk cannot read is not what was put
            pass
        aside = self.folder / QUARANTINE
        with _saving(aside):
            aside.mkdir(exist_ok=True)
            place.rename(Path(tempfile.mkdtemp(prefix=f"{digest[:12]}-", dir=aside)) / "it")
            files.flush(self.folder)
        return None

    def kept(self) -> dict[str, int]:
        """The digests of all objects with their bytes."""
        found = (path for path in self.folder.iterdir() if DIGEST.fullmatch(path.name))
        return {path.name: size(path) for path in found}

    def gc(self, keep: Iterable[str], *, dry_run: bool = False) -> Removed:
        """Remove all objects but these, and what was moved aside. Raises SaveError."""
        kept, aside = set(keep), self.folder / QUARANTINE
        old = {digest: held for digest, held in self.kept().items() if digest not in kept}
        freed = sum(old.values()) + (size(aside) if aside.exists() else 0)
        if not dry_run:
            with _saving(self.folder):
                for digest in old:
                    # Aside first: a kill in the middle leaves no half object under its name.
                    self._place(digest).rename(Path(tempfile.mkdtemp(prefix=PART, dir=self.folder)) / "it")
                files.flush(self.folder)
                _sweep(self.folder)
                shutil.rmtree(aside, ignore_errors=True)
        return Removed(tuple(sorted(old)), freed)

    def _place(self, digest: str) -> Path:
        if not DIGEST.fullmatch(digest):
            raise IntegrityError(f"'{digest}' is no digest: those have 64 hexadecimal digits")
        return self.folder / digest


def opened(folder: Path) -> Objects:
    """The store in `folder`; for whoever holds the lock, since what a killed writer left half is removed."""
    with _saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
    return Objects(folder)


def key(**inputs: Any) -> str:
    """The digest of what a stage is about to read: JSON values, among them digests of what earlier stages made."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, allow_nan=False).encode()).hexdigest()


def digest_of(path: Path) -> str:
    """The sha256 of a file; of a folder, that of its listing as `sha256sum` writes it, sorted by name."""
    if not path.is_dir():
        return files.sha256(path)
    return _listed({name: files.sha256(path / name) for name in _names(path)})


def size(path: Path) -> int:
    """Bytes of a file, or of all files under a folder. Raises SaveError: it is not there."""
    try:
        if not path.is_dir():
            return path.stat().st_size
        return sum((path / name).stat().st_size for name in _names(path))
    except OSError as exc:
        raise SaveError(f"cannot read {path}: {exc.strerror or exc}") from exc


def room(folder: Path, needed: int, what: str) -> None:
    """Look before hours of work whether the disk has so many bytes. Raises DiskFullError."""
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        raise DiskFullError(
            f"{what} needs {needed + SPARE:,} bytes, the disk of {folder} has {free:,} left. Make room "
            "(rrmsdk gc removes what old runs left); the same command then continues"
        )


def full(exc: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that a disk or quota is full."""
    while exc is not None:
        if isinstance(exc, DiskFullError) or (isinstance(exc, OSError) and exc.errno in _FULL):
            return True
        exc = exc.__cause__ or exc.__context__
    return False


@contextmanager
def _saving(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if isinstance(exc, SaveError):
            raise
        if full(exc):
            raise DiskFullError(
                f"the disk of {folder} is full. Make room (rrmsdk gc removes what old runs left); the same command "
                "then continues"
            ) from exc
        raise SaveError(f"could not write {exc.filename or folder}: {exc.strerror or exc}") from exc


def _copied(source: Path, target: Path) -> str:
    """Copy through to the disk; the digest is of the bytes that were written."""
    if not source.is_dir():
        return _copied_file(source, target)
    target.mkdir()
    hashes = {}
    for name in _names(source):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        hashes[name] = _copied_file(source / name, target / name)
    for folder in (path for path in target.rglob("*") if path.is_dir()):
        files.flush(folder)
    files.flush(target)
    return _listed(hashes)


def _copied_file(source: Path, target: Path) -> str:
    hashed = hashlib.sha256()
    with source.open("rb") as read, target.open("xb") as written:
        while piece := read.read(1 << 20):
            hashed.update(piece)
            written.write(piece)
        written.flush()
        os.fsync(written.fileno())
    return hashed.hexdigest()


def _names(folder: Path) -> list[str]:
    """Files under a folder; a link (in the Hub's cache all are) counts as what it leads to."""
    found = (Path(base, name) for base, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _listed(hashes: Mapping[str, str]) -> str:
    listing = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return hashlib.sha256(listing.encode()).hexdigest()


def _sweep(folder: Path) -> None:
    for left in folder.glob(f"{PART}*"):
        shutil.rmtree(left)
