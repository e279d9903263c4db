"""Images decoded once: uint8 arrays on disk, memory-mapped, keyed by the sha256 of the files they came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock

from rrmsdk import files
from rrmsdk.data.images import Form, Row, Stored, decode, encoding, form_of, to_array
from rrmsdk.errors import DataError, SaveError

_LAYOUT = "1"  # part of the key: a new layout on disk never reads an old one
_CHUNK = 1024


@dataclass(frozen=True)
class Decoded:
    """The stored splits, decoded: name -> (pixels uint8 [N, C, H, W], labels int64 [N])."""

    splits: dict[str, tuple[np.ndarray, np.ndarray]]
    names: tuple[str, ...]
    encoding: str
    fingerprint: str


def folder(cache: Path | None) -> Path:
    """Where decoded images are kept: `cache`, or $RRMSDK_CACHE, or ~/.cache/rrmsdk; in `data` below it."""
    return (cache or files.cache()) / "data"


def decoded(stored: Stored, cache: Path | None) -> Decoded:
    """The images of a stored data set, from the cache where it is whole.

    One process decodes while others wait; a process killed while decoding leaves nothing that is taken for a cache.

    Raises:
        DataError: an image or label cannot be used.
        SaveError: the cache cannot be written.
    """
    place = folder(cache) / _key(stored)
    found = _read(place, stored)
    if found is None:
        with _locked(place):
            found = _read(place, stored) or _build(stored, place)
    return found


def fingerprint(splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """sha256 over shape, pixels and labels of `train`, then of `test` where there is one."""
    digest = hashlib.sha256()
    for name in (name for name in ("train", "test") if name in splits):
        pixels, labels = splits[name]
        digest.update(f"{name} {pixels.shape}".encode())
        digest.update(np.ascontiguousarray(pixels).data)
        digest.update(np.ascontiguousarray(labels, "<i8").data)
    return digest.hexdigest()


def _key(stored: Stored) -> str:
    digest = hashlib.sha256(_LAYOUT.encode())
    for split, paths in sorted(stored.files.items()):
        for path in paths:
            try:
                digest.update(f"{split} {path.parent.name}/{path.name} {files.sha256(path)}\n".encode())
            except OSError as exc:
                raise DataError(f"cannot read {path}: {exc.strerror or exc}") from exc
    return digest.hexdigest()


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    lock = FileLock(place / "lock")
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as exc:  # the latter from file systems without locks
        raise SaveError(f"cannot lock {place}: {exc}. Set RRMSDK_CACHE to a folder that can be written.") from exc
    try:
        yield
    finally:
        lock.release()


def _read(place: Path, stored: Stored) -> Decoded | None:
    """The cache at `place`, or None where it is absent, truncated or changed: the fingerprint is taken again."""
    try:
        about = json.loads((place / "about.json").read_bytes())
        splits = {name: (_map(place / f"{name}.npy"), np.load(place / f"{name}-labels.npy")) for name in stored.files}
        if fingerprint(splits) != about["fingerprint"]:
            return None
        return Decoded(splits, tuple(about["names"]), about["encoding"], about["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _map(path: Path) -> np.ndarray:
    # Copy-on-write, because torch warns about arrays it could write to and must not; the file is never changed.
    return np.asarray(np.load(path, mmap_mode="c"))


def _build(stored: Stored, place: Path) -> Decoded:
    for left in place.glob(".*.part"):  # of a process that was killed: we hold the lock
        left.unlink(missing_ok=True)
    (place / "about.json").unlink(missing_ok=True)
    form = form_of(_first(stored))
    encodings: set[str] = set()
    splits = {}
    for name in stored.files:
        path = place / f"{name}.npy"
        labels = _write(path, stored, name, form, encodings)
        with files.replacing(place / f"{name}-labels.npy") as beside, beside.open("wb") as file:
            np.save(file, labels)
        splits[name] = (_map(path), labels)
    kind = encodings.pop() if len(encodings) == 1 else "mixed"
    found = Decoded(splits, stored.names(), kind, fingerprint(splits))
    about = {"fingerprint": found.fingerprint, "names": found.names, "encoding": kind, "from": stored.where}
    files.write_text(place / "about.json", json.dumps(about, indent=2) + "\n")
    return found


def _first(stored: Stored) -> Row:
    for row in stored.rows("train"):
        return row
    raise DataError(f"the train split of {stored.where} is empty")


def _write(path: Path, stored: Stored, split: str, form: Form, encodings: set[str]) -> np.ndarray:
    """Decode a split into a .npy file, a chunk at a time, and give the labels."""
    where, rows, count = f"the {split} split of {stored.where}", stored.rows(split), stored.count(split)
    if count == 0:
        raise DataError(f"{where} is empty")
    labels: list[int] = []
    with files.replacing(path) as beside, beside.open("wb") as file:
        shape = (count, form.channels, form.size, form.size)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        while chunk := list(islice(rows, _CHUNK)):
            file.write(to_array([decode(row, form) for row in chunk], form).tobytes())
            labels += [row.label for row in chunk]
            encodings |= {encoding(row.encoded) for row in chunk}
        if len(labels) != count:
            raise DataError(f"{where} promises {count} images and holds {len(labels)}; fetch or write it again")
    return np.array(labels, np.int64)
