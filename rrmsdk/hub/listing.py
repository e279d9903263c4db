"""What can be pulled: the embedded zoo, the cache, and an organisation on the Hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from huggingface_hub import constants, is_offline_mode
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from rrmsdk.errors import DataError, FieldError
from rrmsdk.hub import embedded
from rrmsdk.hub.client import MAIN, Hub, door, download, in_our_words, look
from rrmsdk.schema import value
from rrmsdk.schema.bundle import CARD
from rrmsdk.schema.card import Card, Score
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.schema.value import Value


class Listed(Value):
    """One bundle that can be pulled.

    ref: what to type.
    score: the measured figures; None: it was never attacked.
    size: bytes of its files.
    source: where it lies: inside the package, in the local cache, or on the Hub.
    revision: the commit; None for the embedded zoo.
    """

    ref: str
    arch: str
    data: str
    threat: ThreatModel
    score: Score | None
    size: int
    source: Literal["embedded", "cache", "hub"]
    revision: str | None = None


def listing(
    *,
    online: bool = False,
    cache: Path | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    zoo: Path | None = None,
) -> tuple[Listed, ...]:
    """Embedded bundles, then those in the cache, then (`online`) those of `$RRMSDK_HUB_ORG` that the cache lacks.

    Raises:
        HubError: online, and the Hub cannot be reached or refused.
    """
    hub = door(endpoint, token, cache)
    here = (*_embedded(zoo), *_cached(hub))
    if not online or is_offline_mode():
        return here
    known = {listed.revision for listed in here}
    return (*here, *(listed for listed in _on_the_hub(hub) if listed.revision not in known))


def _listed(card: Card, **where: object) -> Listed:
    fields = {"arch": card.model.arch, "data": card.data.name, "threat": card.threat, "score": card.score}
    return value.parse(Listed, {**fields, **where})


def _embedded(zoo: Path | None) -> Iterator[Listed]:
    for name, card in zip(embedded.names(zoo), embedded.cards(zoo), strict=True):
        folder = (zoo or embedded.folder()) / name
        yield _listed(card, ref=f"hub:{name}", size=_size(folder, card), source="embedded")


def _cached(hub: Hub) -> Iterator[Listed]:
    """Snapshots that hold a card; other programs keep their models in the same cache."""
    for path in sorted(hub.cache.glob(f"models--*--*/snapshots/*/{CARD}")):
        snapshot = path.parent
        repo = snapshot.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        note = snapshot.parent.parent / "refs" / MAIN
        newest = note.is_file() and note.read_text().strip() == snapshot.name
        card = _card(path)
        if card is not None and all((snapshot / name).is_file() for name in card.files):
            ref = f"hub:{repo}" if newest else f"hub:{repo}@{snapshot.name}"
            yield _listed(card, ref=ref, size=_size(snapshot, card), source="cache", revision=snapshot.name)


def _card(path: Path) -> Card | None:
    """None: somebody else's card.json, or one of another schema. A listing shows what this rrmsdk can read."""
    try:
        return value.read(Card, path)
    except (DataError, FieldError):
        return None


def _size(folder: Path, card: Card) -> int:
    return sum((folder / name).stat().st_size for name in (CARD, *card.files) if (folder / name).is_file())


def _on_the_hub(hub: Hub) -> Iterator[Listed]:
    org = os.environ.get("RRMSDK_HUB_ORG") or "rrmsdk"
    with in_our_words(hub, f"the models of '{org}'"):
        for repo in _repositories(hub, org):
            commit = look(hub, repo)
            if CARD not in commit.files:
                continue
            card = _card(download(hub, repo, CARD, commit.oid))
            if card is None:
                continue
            size = sum(commit.files.get(name) or 0 for name in (CARD, *card.files))
            yield _listed(card, ref=f"hub:{repo}", size=size, source="hub", revision=commit.oid)


def _repositories(hub: Hub, org: str) -> list[str]:
    """The client's own list_models has no time limit and retries for 23 s; this is the same request, once."""
    answer = get_session().get(
        f"{hub.endpoint}/api/models",
        params={"author": org, "filter": "rrmsdk", "limit": 1000},
        headers=build_hf_headers(token=hub.token),
        timeout=constants.HF_HUB_ETAG_TIMEOUT,
    )
    hf_raise_for_status(answer)
    return sorted(model["id"] for model in answer.json())
