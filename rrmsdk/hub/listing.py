"""What can be pulled: the embedded zoo, the cache, and an organisation on the Hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from huggingface_hub import constants, is_offline_mode
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from rrmsdk.errors import DataError, FieldError
from rrmsdk.hub import external, index
from rrmsdk.hub.client import LARGEST_CARD, MAIN, Hub, door, download, in_our_words, look
from rrmsdk.schema import value
from rrmsdk.schema.bundle import CARD
from rrmsdk.schema.card import Card, Score
from rrmsdk.schema.entry import External, Ours, Published
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.schema.value import Value


class Listed(Value):
    """One model of the zoo.

    ref: what to type.
    score: what this library measured; None: it was not attacked.
    published: figures of others, never ours.
    size: bytes of its files; None: not known.
    source: where it lies: inside the package, in the local cache, or on the Hub; `external`: somebody else's
        checkpoint, made a bundle when it is first asked for; `buildable`: a recipe that nobody has published.
    revision: the commit; None for what lies in no repository.
    """

    ref: str
    arch: str
    data: str
    threat: ThreatModel
    score: Score | None
    licence: str
    published: Published | None = None
    size: int | None
    source: Literal["embedded", "cache", "hub", "external", "buildable"]
    revision: str | None = None

    @property
    def robust(self) -> float | None:
        """Robust accuracy, as measured here or else as published."""
        if self.score is not None:
            return self.score.robust
        return self.published.robust if self.published else None


def listing(
    *,
    online: bool = False,
    cache: Path | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    zoo: Path | None = None,
) -> tuple[Listed, ...]:
    """Embedded bundles, the index, those in the cache, and (`online`) those of `$RRMSDK_HUB_ORG` that the cache lacks.

    Raises:
        HubError: online, and the Hub cannot be reached or refused.
    """
    hub = door(endpoint, token, cache)
    here = (*_embedded(zoo), *_indexed(hub, zoo), *_cached(hub))
    if not online or is_offline_mode() or not os.environ.get("RRMSDK_HUB_ORG"):
        return here
    known = {listed.revision for listed in here}
    return (*here, *(listed for listed in _on_the_hub(hub) if listed.revision not in known))


def _listed(card: Card, **where: object) -> Listed:
    fields = {"arch": card.model.arch, "data": card.data.name, "threat": card.threat, "score": card.score}
    fields |= {"licence": card.licence}
    return value.parse(Listed, {**fields, **where})


def _embedded(zoo: Path | None) -> Iterator[Listed]:
    for name, card in zip(index.embedded(zoo), index.cards(zoo), strict=True):
        yield _listed(card, ref=f"hub:{name}", size=_size(index.bundle_of(name, zoo), card), source="embedded")


def _indexed(hub: Hub, zoo: Path | None) -> Iterator[Listed]:
    """What the index says of models that do not ship inside the package."""
    shipped = index.embedded(zoo)
    for entry in index.entries(zoo):
        if isinstance(entry, External):
            yield _of_others(hub, entry)
        elif entry.name not in shipped:
            yield _of_ours(entry)


def _of_others(hub: Hub, entry: External) -> Listed:
    folder = external.place(hub, entry)
    card = _card(folder / CARD) if (folder / CARD).is_file() else None
    return Listed(
        ref=f"hub:{entry.name}", arch=entry.model.arch, data=entry.data, threat=entry.threat, licence=entry.licence,
        score=card.score if card else None, published=entry.published, size=entry.source.size, source="external",
        revision=card.origin.commit if card and card.origin else entry.source.commit,
    )  # fmt: skip


def _of_ours(entry: Ours) -> Listed:
    recipe, release = entry.recipe, entry.release
    return Listed(
        ref=f"hub:{entry.name}", arch=recipe.student.arch, data=recipe.data.name, threat=recipe.threat, score=None,
        licence=recipe.licence, size=None, source="hub" if release else "buildable",
        revision=release.commit if release else None,
    )  # fmt: skip


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
    org = os.environ["RRMSDK_HUB_ORG"]
    with in_our_words(hub, f"the models of '{org}'"):
        for repo in _repositories(hub, org):
            commit = look(hub, repo)
            if CARD not in commit.files or commit.size([CARD]) > LARGEST_CARD:
                continue
            card = _card(download(hub, repo, CARD, commit))
            if card is None:
                continue
            size = commit.size((CARD, *card.files))
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
