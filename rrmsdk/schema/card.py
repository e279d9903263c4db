"""What a bundle is: `card.json`, the root of everything in the folder."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.model import ModelConfig
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.schema.value import SCHEMA_VERSION, Value


class Pinned(Value):
    """A teacher as it was when it taught: the reference, the commit it resolved to, and its weights' hash."""

    ref: str
    revision: str | None = None
    weights_sha256: str


class Origin(Value):
    """The file of somebody else's that the weights were read from, by the hash of its bytes."""

    repo: str
    file: str
    commit: str
    sha256: str


class Score(Value):
    """The figures of a report that a listing shows."""

    clean: float
    robust: float
    attack: str
    images: int


class Card(Value):
    """The facts about a model.

    weights: which weights `model.safetensors` holds: `last`, `best` on the validation split, or those after `epoch N`.
    origin: where the weights come from, when somebody else trained them.
    files: sha256 of every file of the bundle but the card itself, README.md and model.sig.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    model: ModelConfig
    data: DataInfo
    threat: ThreatModel
    method: dict[str, Any]
    teachers: tuple[Pinned, ...] = ()
    origin: Origin | None = None
    weights: str = "last"
    score: Score | None = None
    licence: str = "apache-2.0"
    notes: str = ""
    rrmsdk_version: str
    date: str
    files: dict[str, str] = Field(default_factory=dict)
