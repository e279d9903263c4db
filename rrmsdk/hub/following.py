"""A branch or a tag that moves, and the commits it meant: each a version in a folder, named by its commit."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from filelock import FileLock
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from pydantic import StringConstraints

from rrmsdk.errors import HubError, MismatchError, RefError, RrmError, SaveError
from rrmsdk.hub.client import Hub, door, in_our_words, is_commit, revision_name
from rrmsdk.hub.fetch import fetch
from rrmsdk.runtime.source import Found
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import CARD, README, SIGNATURE, Bundle
from rrmsdk.schema.ref import Ref
from rrmsdk.schema.value import Value

NOTE = "followed.json"  # in the folder of versions
PULLING, LOCK = ".pulling", ".following.lock"
LETTERS = 12  # of a commit, in the name of its version

Version = Annotated[str, StringConstraints(pattern=f"^[0-9a-f]{{{LETTERS}}}$")]  # names a folder that is removed


class _Note(Value):
    """repo: whose commits lie in the folder.

    pulled: versions that came from there, and may be taken away again; the last one answered last.
    """

    repo: str
    pulled: tuple[Version, ...] = ()


@dataclass(frozen=True)
class Following:
    """A source of versions (`rrmsdk.runtime.source`).

    keep: pulled versions that stay on the disk beside those in use.
    """

    hub: Hub
    ref: Ref
    root: Path
    keep: int
    ordered: bool = False

    def __str__(self) -> str:
        return str(self.ref)

    def at_first(self) -> Iterator[str]:
        """What answered last, though the Hub be away; else what the reference means now."""
        for version in reversed(self._note().pulled):
            if bundles.is_bundle(self.root / version):
                yield version
        (found,) = self.look()
        self.bring(found)
        yield found.version

    def look(self) -> Sequence[Found]:
        """The commit that the reference means now: one request without a body, not retried.

        Raises:
            HubError, RefError
        """
        url = hf_hub_url(self._repo, CARD, revision=revision_name(self.ref.revision), endpoint=self.hub.endpoint)
        with in_our_words(self.hub, str(self)):
            about = get_hf_file_metadata(url, token=self.hub.token, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        commit = about.commit_hash
        if commit is None or not is_commit(commit):
            raise HubError(f"{self}: {self.hub} does not answer as a Hub does: it names no commit")
        return (Found(commit[:LETTERS], commit),)

    def bring(self, found: Found) -> None:
        """Pull that commit, verified, beside its place, and rename.

        Raises:
            HubError, SaveError: the Hub or the disk is not as it should be; what was pulled so far is kept.
            RrmError: as `fetch`; that commit is no good bundle.
        """
        place = self.root / found.version
        with self._alone():
            note = self._note()
            if place.exists() and (found.version not in note.pulled or _whole(place)):
                return
            others = tuple(version for version in note.pulled if version != found.version)
            value.write(note.model_copy(update={"pulled": (found.version, *others)}), self.root / NOTE)
            pinned = self.ref.model_copy(update={"revision": found.mark})
            token = self.hub.token if isinstance(self.hub.token, str) else None
            # A cache of its own, so that nothing of a version stays once it was taken away.
            cache = self.root / PULLING / found.version
            for other in {*cache.parent.glob("*")} - {cache}:
                shutil.rmtree(other, ignore_errors=True)
            pulled = fetch(pinned, cache=cache, endpoint=self.hub.endpoint, token=token).bundle
            _copy(pulled, place)
            shutil.rmtree(cache.parent, ignore_errors=True)

    def tidy(self, version: str, in_use: Collection[str]) -> None:
        """Raises SaveError."""
        with self._alone():
            note = self._note()
            pulled = [one for one in note.pulled if one != version]
            spare = [one for one in pulled if one not in in_use]
            gone = spare[: max(0, len(spare) - self.keep)]
            for one in gone:
                shutil.rmtree(self.root / one, ignore_errors=True)
            last = (version,) if version in note.pulled else ()
            left = (*(one for one in pulled if one not in gone), *last)
            value.write(note.model_copy(update={"pulled": left}), self.root / NOTE)

    @property
    def _repo(self) -> str:
        return f"{self.ref.org}/{self.ref.name}"

    def _note(self) -> _Note:
        path = self.root / NOTE
        return value.read(_Note, path) if path.is_file() else _Note(repo=self._repo)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Among the servers that share the folder. Raises SaveError."""
        lock = FileLock(self.root / LOCK)
        try:
            lock.acquire()
        except OSError as exc:
            raise SaveError(f"{self.root} cannot be written: {exc.strerror or exc}") from exc
        try:
            yield
        finally:
            lock.release()


def follow(ref: Ref, root: Path, *, keep: int, endpoint: str | None = None) -> Following:
    """A source of what `ref` means, which is put into `root`.

    Args:
        endpoint: see `rrmsdk.hub.client.door`.

    Raises:
        RefError: what it names cannot move, or is no repository.
        MismatchError: `root` holds versions of another repository.
        SaveError: `root` cannot be made.
    """
    if ref.kind != "hub" or ref.org is None:
        raise RefError(f"'{ref}' is no repository that could be followed. Type hub:ORG/NAME@TAG, or a folder")
    if ref.revision is not None and is_commit(ref.revision):
        raise RefError(f"'{ref}' names one commit for ever. Follow a branch or a tag: hub:{ref.org}/{ref.name}@TAG")
    revision_name(ref.revision)
    made = Following(door(endpoint), ref, root, keep)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise SaveError(f"the folder of versions {root} cannot be made: {exc.strerror or exc}") from exc
    note = made._note()
    if note.repo != made._repo:
        raise MismatchError(f"{root} holds versions of hub:{note.repo}. Give hub:{made._repo} a folder of its own")
    return made


def _whole(place: Path) -> bool:
    try:
        bundles.read(place)
    except RrmError:
        return False
    return True


def _copy(bundle: Bundle, place: Path) -> None:
    """Raises SaveError."""
    beside = place.with_name(f".{place.name}.part")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beyond = [name for name in (README, SIGNATURE) if (bundle.path / name).is_file()]
        for name in (*bundle.card.files, *beyond, CARD):
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / name, beside / name)
        shutil.rmtree(place, ignore_errors=True)
        beside.replace(place)
    except OSError as exc:
        shutil.rmtree(beside, ignore_errors=True)
        raise SaveError(f"{place} cannot be written: {exc.strerror or exc}. Free some space") from exc
