"""From a reference to a bundle on this disk, every file compared with its hash."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import is_offline_mode, try_to_load_from_cache

from rrmsdk.errors import HubError, IntegrityError, RefError, did_you_mean
from rrmsdk.hub import embedded
from rrmsdk.hub.client import (
    Commit,
    Hub,
    door,
    download,
    in_our_words,
    is_commit,
    look,
    remember,
    repository,
    revision_name,
    whole,
)
from rrmsdk.runtime import signature
from rrmsdk.schema import bundle, value
from rrmsdk.schema.bundle import BUNDLE_FILES, CARD, EPOCHS, README, SIGNATURE, Bundle
from rrmsdk.schema.card import Card
from rrmsdk.schema.ref import Ref, split_epoch


@dataclass(frozen=True)
class Fetched:
    """A bundle, and the commit it was pulled at; None: it came from a folder or the embedded zoo."""

    bundle: Bundle
    revision: str | None


@dataclass(frozen=True)
class _Wanted:
    """A model on a Hub, as asked for; `hint` names what may have been meant."""

    repo: str
    revision: str
    spelt: str
    hint: str


def fetch(
    ref: Ref,
    *,
    cache: Path | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    offline: bool = False,
    refresh: bool = False,
    zoo: Path | None = None,
) -> Fetched:
    """The bundle that `ref` names.

    `hub:NAME`: the embedded zoo, else the cache, else `$RRMSDK_HUB_ORG/NAME` (default `rrmsdk`) on the Hub.
    `hub:org/name[@revision]`: that repository as it is now, or the cache where the revision is a commit.
    `path:DIR`: that folder. `path:DIR@epoch=N`: what the run in DIR kept after epoch N, unless a folder has that name.

    Args:
        cache: folder of pulled repositories; None: the client's own (HF_HUB_CACHE).
        endpoint, token: see `rrmsdk.hub.client.door`.
        offline: never touch the network.
        refresh: ask the Hub even where a copy lies here; `offline` wins over it.
        zoo: folder of embedded bundles; None: those that ship with the package.

    Raises:
        RefError: nothing has that name, or what has it is no bundle.
        DataError, FieldError: a folder without a card, or a card that this rrmsdk cannot read.
        HubError: the Hub cannot be reached or refused.
        IntegrityError: a file is not the one the card names; or RRMSDK_TRUST is set, and what came from the Hub or the
            cache is not signed by one of its keys.
        SaveError: the cache cannot be written.
    """
    known = embedded.names(zoo)
    if ref.kind == "path":
        return Fetched(_in_folder(ref), None)
    if ref.kind == "arch":
        raise RefError(
            f"'{ref}' names an architecture, no trained model. Type hub:NAME or path:DIR.{_hint(ref, known)}"
        )
    offline = offline or is_offline_mode()
    bare = ref.org is None and ref.revision is None
    if bare and ref.name in known and (offline or not refresh):
        return Fetched(bundle.read((zoo or embedded.folder()) / ref.name), None)
    hub = door(endpoint, token, cache)
    wanted = _wanted(ref, known)
    if offline:
        return _offline(hub, wanted)
    if (bare or is_commit(wanted.revision)) and not refresh:
        try:
            kept = _kept(hub, wanted)
        except IntegrityError:
            kept = None  # a damaged copy is mended by the pull below
        if kept is not None:
            return kept
    return _pull(hub, wanted)


def _wanted(ref: Ref, known: tuple[str, ...]) -> _Wanted:
    org = ref.org or os.environ.get("RRMSDK_HUB_ORG") or "rrmsdk"
    return _Wanted(repository(f"{org}/{ref.name}"), revision_name(ref.revision), str(ref), _hint(ref, known))


def _hint(ref: Ref, known: tuple[str, ...]) -> str:
    return did_you_mean(f"hub:{ref.name}", [f"hub:{name}" for name in known])


def _in_folder(ref: Ref) -> Bundle:
    path = Path(ref.name).expanduser()
    if not path.is_dir():
        run, epoch = split_epoch(ref.name)
        if epoch and Path(run).expanduser().is_dir():
            return bundle.read(_epoch(ref, run, epoch))
        raise RefError(f"'{ref}': there is no folder {path}")
    return bundle.read(path)


def _epoch(ref: Ref, run: str, epoch: str) -> Path:
    """Where the run keeps its student as it was after the epoch. Raises RefError: it does not."""
    place = Path(run).expanduser() / EPOCHS
    kept = sorted((path.name for path in place.glob("*") if path.name.isdecimal()), key=int)
    if epoch in kept:
        return place / epoch
    if not kept:
        raise RefError(f"'{ref}': {run} keeps no epochs. Train it with train.keep_epochs, such as [10, 20]")
    raise RefError(f"'{ref}': {run} keeps the epochs {', '.join(kept)}. Type path:{run}@epoch={kept[-1]}")


def _offline(hub: Hub, wanted: _Wanted) -> Fetched:
    again = f"pull it online: rrmsdk pull {wanted.spelt} --refresh"
    try:
        kept = _kept(hub, wanted)
    except IntegrityError as exc:
        raise IntegrityError(f"{wanted.spelt}: {exc}. The copy in the cache is damaged; {again}") from exc
    if kept is None:
        raise HubError(f"{wanted.spelt} is not in the cache {hub.cache}, and this is offline; {again}.{wanted.hint}")
    return kept


def _kept(hub: Hub, wanted: _Wanted) -> Fetched | None:
    """What an earlier pull left in the cache, verified. Raises IntegrityError."""
    card = try_to_load_from_cache(wanted.repo, CARD, cache_dir=hub.cache, revision=wanted.revision)
    if not isinstance(card, str):
        return None
    return _verified(Path(card).parent)


def _verified(snapshot: Path) -> Fetched:
    if not whole(snapshot / CARD):
        raise IntegrityError(f"{snapshot / CARD} is not what the Hub sent")
    found = Fetched(bundle.read(snapshot), snapshot.name)
    signature.required(snapshot)
    return found


def _pull(hub: Hub, wanted: _Wanted) -> Fetched:
    """Exactly the files the card names, at one commit."""
    with in_our_words(hub, wanted.spelt, wanted.hint):
        commit = look(hub, wanted.repo, wanted.revision)
        if CARD not in commit.files:
            raise RefError(f"{wanted.spelt} is a repository, but no bundle: it has no {CARD}")
        card = download(hub, wanted.repo, CARD, commit.oid)
        if not whole(card):
            raise IntegrityError(f"{wanted.spelt} at commit {commit.oid}: {card} is not what the Hub says it is")
        for name, sha256 in _promised(value.read(Card, card), wanted, commit).items():
            download(hub, wanted.repo, name, commit.oid, sha256=sha256)
    try:
        found = _verified(card.parent)
    except IntegrityError as exc:
        raise IntegrityError(f"{wanted.spelt} at commit {commit.oid}: {exc}. Do not use it; tell its owner") from exc
    remember(card.parent, wanted.revision)
    return found


def _promised(card: Card, wanted: _Wanted, commit: Commit) -> dict[str, str | None]:
    """The files to pull with their hashes. Whatever else a repository holds (a pickle, say) is never downloaded."""
    if strange := sorted(set(card.files) - set(BUNDLE_FILES)):
        raise IntegrityError(f"{wanted.spelt}: its card names {strange}, which no bundle has. Is this rrmsdk too old?")
    if missing := sorted(set(card.files) - set(commit.files)):
        raise IntegrityError(f"{wanted.spelt}: its card names {missing}, which the repository does not hold")
    return {**card.files, **{name: None for name in (README, SIGNATURE) if name in commit.files}}
