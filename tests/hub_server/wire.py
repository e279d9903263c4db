"""One request, its answer, and what may go wrong between the two."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tests.hub_server.server import HubServer


@dataclass(frozen=True)
class Refuse:
    """A status with headers of its own, such as Retry-After."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cut:
    """The connection ends politely after so many bytes of the body."""

    after: int


@dataclass(frozen=True)
class Trickle:
    """The body comes in so many pieces, `pause` seconds apart."""

    pieces: int
    pause: float


# A status; or a connection that is cut in the middle of the body (politely or with a reset), before the request was
# acted on ("unheard"), or after it was acted on and before the answer ("lost"); or no answer at all; or somebody
# else's page, or somebody else's JSON.
Trouble = int | Literal["cut", "reset", "stall", "html", "list", "unheard", "lost"] | Refuse | Cut | Trickle


@dataclass(frozen=True)
class Ask:
    """A request. `who`: the token it shows, empty: none."""

    server: HubServer
    method: str
    path: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    who: str

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def said(self, name: str, default: str = "") -> str:
        return self.query.get(name, [default])[0]


@dataclass(frozen=True)
class Answer:
    """`body`: bytes as they are, None: empty, anything else as JSON."""

    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200


class Refused(Exception):
    """No, and why. `code` is one that clients know: RepoNotFound, RevisionNotFound, EntryNotFound, GatedRepo."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        named = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer = Answer({"error": message}, named | headers, status)
