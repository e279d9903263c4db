"""From a reference to a bundle on this disk, every file compared with its hash."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import is_offline_mode, try_to_load_from_cache

from rrmsdk.errors import HubError, IntegrityError, RefError, did_you_mean
from rrmsdk.hub import external, index
from rrmsdk.hub.client import (
    LARGEST_CARD,
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
    within_limit,
)
from rrmsdk.runtime import signature
from rrmsdk.schema import bundle, value
from rrmsdk.schema.bundle import BUNDLE_FILES, CARD, EPOCHS, README, SIGNATURE, WEIGHTS, Bundle
from rrmsdk.schema.card import Card
from rrmsdk.schema.entry import External, Ours
from rrmsdk.schema.ref import Ref, split_epoch


@dataclass(frozen=True)
class Fetched:
    """A bundle, and the commit it was pulled at; None: it came from a folder or the embedded zoo."""

    bundle: Bundle
    revision: str | None


@dataclass(frozen=True)
class _Wanted:
    """A model on a Hub, as asked for.

    hint: what to type where it is not there.
    weights: the sha256 that the index promises; None: it promises none.
    """

    repo: str
    revision: str
    spelt: str
    hint: str
    weights: str | None = None


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

    `hub:NAME`: what the index of the zoo pins: a bundle in the package, one that was published at a commit, or somebody
    else's checkpoint (once `rrmsdk.pull` or `rrmsdk zoo check` made a bundle of it). Nothing is pulled on trust in a
    name: one that the index does not pin is looked for in `$RRMSDK_HUB_ORG`, and nowhere when that is not set.
    `hub:org/name[@revision]`: that repository as it is now, or the cache where the revision is a commit.
    `path:DIR`: that folder. `path:DIR@epoch=N`: what the run in DIR kept after epoch N, unless a folder has that name.

    Args:
        cache: folder of pulled repositories; None: the client's own (HF_HUB_CACHE).
        endpoint, token: see `rrmsdk.hub.client.door`.
        offline: never touch the network.
        refresh: ask the Hub even where a copy lies here; `offline` wins over it.
        zoo: folder of the index, and of the embedded bundles in it; None: the one that ships with the package.

    Raises:
        RefError: nothing has that name, or what has it is no bundle.
        DataError, FieldError: a folder without a card, or a card that this rrmsdk cannot read.
        HubError: the Hub cannot be reached or refused.
        IntegrityError: a file is not the one the card or the index names, or is too large; or RRMSDK_TRUST is set, and
            none of its keys signed what came from the Hub or its cache.
        SaveError: the cache cannot be written.
    """
    if ref.kind == "path":
        return Fetched(_in_folder(ref), None)
    if ref.kind == "arch":
        hint = _hint(ref, zoo)
        raise RefError(f"'{ref}' names an architecture, no trained model. Type hub:NAME or path:DIR.{hint}")
    offline = offline or is_offline_mode()
    bare = ref.org is None and ref.revision is None
    own_org = os.environ.get("RRMSDK_HUB_ORG")
    if bare and ref.name in index.embedded(zoo) and (offline or not refresh or not own_org):
        return Fetched(bundle.read(index.bundle_of(ref.name, zoo)), None)
    hub = door(endpoint, token, cache)
    entry = index.find(ref.name, zoo) if ref.org is None else None
    if isinstance(entry, External):
        return _converted(hub, ref, entry)
    wanted = _wanted(ref, entry, zoo)
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


def _converted(hub: Hub, ref: Ref, entry: External) -> Fetched:
    """The bundle that was made of somebody else's checkpoint. Raises RefError: there is none yet."""
    if ref.revision is not None:
        raise RefError(f"'{ref}': the index pins its commit. Type hub:{ref.name}")
    found = external.kept(hub, entry)
    if found is None:
        raise RefError(
            f"'{ref}' is a checkpoint of {entry.source.repo} that was not made a bundle here yet: "
            f"type rrmsdk zoo check {ref.name}"
        )
    assert found.card.origin is not None
    if entry.source.sha256 is None:  # else the package itself says which bytes it was made of
        signature.required(found.path)
    return Fetched(found, found.card.origin.commit)


def _wanted(ref: Ref, entry: Ours | None, zoo: Path | None) -> _Wanted:
    revision, hint = revision_name(ref.revision), _hint(ref, zoo)
    if ref.org is not None:
        return _Wanted(repository(f"{ref.org}/{ref.name}"), revision, str(ref), hint)
    if entry is not None and entry.release is not None and ref.revision is None:
        release = entry.release
        return _Wanted(release.repo, release.commit, str(ref), hint, release.weights_sha256)
    org = os.environ.get("RRMSDK_HUB_ORG")
    if org:
        build = f" Or make it: rrmsdk zoo build {ref.name}." if entry is not None else hint
        return _Wanted(repository(f"{org}/{ref.name}"), revision, str(ref), build)
    where = "A model of yours is hub:org/name, or hub:NAME with RRMSDK_HUB_ORG=org"
    if entry is not None:
        raise RefError(
            f"'{ref}' has a recipe in the zoo, but nobody has published it yet. "
            f"Make it: rrmsdk zoo build {ref.name}. {where}"
        )
    repository(f"org/{ref.name}")  # a name that nothing can have is told so first
    raise RefError(f"'{ref}' is not in the zoo (rrmsdk zoo lists it). {where}.{hint}")


def _hint(ref: Ref, zoo: Path | None) -> str:
    if ref.org is not None:
        return f" The zoo has hub:{ref.name}." if ref.name in index.names(zoo) else ""
    return did_you_mean(f"hub:{ref.name}", [f"hub:{name}" for name in index.names(zoo)])


def _in_folder(ref: Ref) -> Bundle:
    path = Path(ref.name).expanduser()
    if not path.is_dir():
        run, epoch = split_epoch(ref.name)
        if epoch and Path(run).expanduser().is_dir():
            return bundle.read(_epoch(ref, run, epoch))
        if path.is_file():
            raise RefError(f"'{ref}' is a file, and a bundle is a folder. Name the one that holds its card.json")
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
        raise IntegrityError(f"{wanted.spelt}: {exc}. The copy in the cache cannot be used; {again}") from exc
    if kept is None:
        raise HubError(f"{wanted.spelt} is not in the cache {hub.cache}, and this is offline; {again}.{wanted.hint}")
    return kept


def _kept(hub: Hub, wanted: _Wanted) -> Fetched | None:
    """What an earlier pull left in the cache, verified. Raises IntegrityError."""
    card = try_to_load_from_cache(wanted.repo, CARD, cache_dir=hub.cache, revision=wanted.revision)
    if not isinstance(card, str):
        return None
    return _verified(Path(card).parent, wanted)


def _verified(snapshot: Path, wanted: _Wanted) -> Fetched:
    if not whole(snapshot / CARD):
        raise IntegrityError(f"{snapshot / CARD} is not what the Hub sent")
    found = bundle.read(snapshot)
    if wanted.weights not in (None, found.card.files[WEIGHTS]):
        raise IntegrityError(f"its weights have sha256 {found.card.files[WEIGHTS]}, the index says {wanted.weights}")
    signature.required(snapshot)
    return Fetched(found, snapshot.name)


def _pull(hub: Hub, wanted: _Wanted) -> Fetched:
    """Exactly the files the card names, at one commit."""
    with in_our_words(hub, wanted.spelt, wanted.hint, _while_away(hub, wanted)):
        commit = look(hub, wanted.repo, wanted.revision)
        if CARD not in commit.files:
            raise RefError(f"{wanted.spelt} is a repository, but no bundle: it has no {CARD}")
        within_limit(commit.files[CARD], f"{wanted.spelt}: its {CARD}", most=LARGEST_CARD)
        card = download(hub, wanted.repo, CARD, commit)
        if not whole(card):
            raise IntegrityError(f"{wanted.spelt} at commit {commit.oid}: {card} is not what the Hub says it is")
        for name, sha256 in _promised(value.read(Card, card), wanted, commit).items():
            download(hub, wanted.repo, name, commit, sha256=sha256)
    try:
        found = _verified(card.parent, wanted)
    except IntegrityError as exc:
        raise IntegrityError(f"{wanted.spelt} at commit {commit.oid}: {exc}. Do not use it; tell its owner") from exc
    remember(card.parent, wanted.revision)
    return found


def _while_away(hub: Hub, wanted: _Wanted) -> str:
    """What to type where the Hub does not answer, but did before."""
    card = try_to_load_from_cache(wanted.repo, CARD, cache_dir=hub.cache, revision=wanted.revision)
    return " What it was when it was last pulled is used with HF_HUB_OFFLINE=1." if isinstance(card, str) else ""


def _promised(card: Card, wanted: _Wanted, commit: Commit) -> dict[str, str | None]:
    """The files to pull with their hashes. Whatever else a repository holds (a pickle, say) is never downloaded."""
    if strange := sorted(set(card.files) - set(BUNDLE_FILES)):
        raise IntegrityError(f"{wanted.spelt}: its card names {strange}, which no bundle has. Is this rrmsdk too old?")
    if missing := sorted(set(card.files) - set(commit.files)):
        raise IntegrityError(f"{wanted.spelt}: its card names {missing}, which the repository does not hold")
    promised = {**card.files, **{name: None for name in (README, SIGNATURE) if name in commit.files}}
    within_limit(commit.size(promised), wanted.spelt)
    return promised
