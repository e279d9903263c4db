"""Somebody else's checkpoint: the bytes that the index pins, and where the bundle made of them is kept."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from rrmsdk import files
from rrmsdk.errors import DataError, IntegrityError, RefError
from rrmsdk.hub.client import Hub, download, in_our_words, is_commit, look, within_limit
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.card import Origin
from rrmsdk.schema.entry import External


@dataclass(frozen=True)
class Pulled:
    """A checkpoint on this disk: its file, and where its bytes came from."""

    path: Path
    origin: Origin


def place(hub: Hub, entry: External) -> Path:
    """Where the bundle made of this checkpoint is kept.

    Beside the client's cache, which knows repositories only, where that is the usual HF_HOME/hub; the folder around
    another one (a mounted /cache) may not be ours to write to, so there it is inside.
    """
    home = hub.cache.parent / "rrmsdk" if hub.cache.name == "hub" else hub.cache / ".rrmsdk"
    return home / "external" / entry.name


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """No other process puts a bundle in its place meanwhile."""
    with FileLock(place.parent / ".lock"):
        yield


def kept(hub: Hub, entry: External) -> Bundle | None:
    """The bundle that was made of it earlier, when the index still says the same.

    Raises:
        IntegrityError: a file of it changed.
    """
    folder = place(hub, entry)
    with suppress(IntegrityError, DataError, OSError):
        if found := _kept(folder, entry):
            return found
    # Between an old one and a new one there is a moment without any: look again when nobody is putting one there.
    writable = folder.parent.is_dir() and os.access(folder.parent, os.W_OK)
    with alone(folder) if writable else nullcontext():
        return _kept(folder, entry)


def _kept(folder: Path, entry: External) -> Bundle | None:
    if not bundles.is_bundle(folder):
        return None
    found = bundles.read(folder)
    origin, source = found.card.origin, entry.source
    if origin is None or (origin.repo, origin.file) != (source.repo, source.file) or found.card.model != entry.model:
        return None
    return found if source.sha256 in (None, origin.sha256) else None


def pull(hub: Hub, entry: External, trust: str | None = None) -> Pulled:
    """The bytes of the checkpoint, at the commit and with the hash that the index pins.

    Args:
        trust: the commit that a person vouches for, at least seven digits, where the index knows no hash. From then on
            the bundle made of it is what `hub:NAME` means here.

    Raises:
        RefError: the index knows no hash and nobody vouches for a commit; or no such repository, file or commit.
        IntegrityError: the commit, the size or the hash is another.
        HubError, SaveError
    """
    source, spelt = entry.source, f"hub:{entry.name}"
    if entry.cannot:
        raise RefError(f"{spelt} is listed, but cannot be loaded here: {entry.cannot}")
    if source.sha256 is None and trust is None:
        raise RefError(_nobody_looked(entry))
    if trust is not None and not re.fullmatch("[0-9a-f]{7,40}", trust):
        raise RefError(f"'{trust}' is no commit to vouch for: type 7 to 40 of its digits (0-9, a-f)")
    with in_our_words(hub, f"{spelt} ({source.repo})"):
        wanted = trust or source.commit or ""
        # Where the whole commit is known, as it was then: its owner may have gone on since.
        commit = look(hub, source.repo, wanted if is_commit(wanted) else None)
        if source.sha256 is None and not commit.oid.startswith(wanted):
            raise IntegrityError(
                f"{spelt}: {source.repo} is at commit {commit.oid}, not at {wanted}. Look at what changed, then give "
                "the whole commit: --trust COMMIT"
            )
        if source.file not in commit.files:
            raise RefError(f"{spelt}: {source.repo} at commit {commit.oid} holds no {source.file}")
        size = commit.files[source.file]
        if source.size is not None and size not in (None, source.size):
            raise IntegrityError(f"{spelt}: {source.file} has {size} bytes, the index says {source.size}")
        within_limit(size, f"{spelt}: {source.file}")
        path = download(hub, source.repo, source.file, commit, sha256=source.sha256)
    digest = files.sha256(path)
    if source.sha256 not in (None, digest):
        raise IntegrityError(f"{spelt}: {source.file} has sha256 {digest}, the index says {source.sha256}")
    return Pulled(path, Origin(repo=source.repo, file=source.file, commit=commit.oid, sha256=digest))


def _nobody_looked(entry: External) -> str:
    source = entry.source
    said = f"at commit {source.commit}" if source.commit else "at a commit that you looked at"
    return (
        f"hub:{entry.name} is {source.file} of {source.repo}, and the index knows no sha256 for it: nobody here has "
        f"read those bytes. Look at the repository; to vouch for it {said}, type: "
        f"rrmsdk zoo check {entry.name} --trust {source.commit or 'COMMIT'}"
    )
