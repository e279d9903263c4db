"""The bundles that ship inside the package."""

from __future__ import annotations

from pathlib import Path

from rrmsdk.schema import value
from rrmsdk.schema.bundle import CARD
from rrmsdk.schema.card import Card

_PACKAGE = Path(__file__).resolve().parent.parent


def folder() -> Path:
    """Where the embedded bundles lie: in the installed package, or in a source checkout."""
    shipped = _PACKAGE / "_zoo"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "zoo" / "embedded"


def names(zoo: Path | None = None) -> tuple[str, ...]:
    """The NAMEs of `hub:NAME` that need no network, sorted."""
    return tuple(sorted(card.parent.name for card in (zoo or folder()).glob(f"*/{CARD}")))


def cards(zoo: Path | None = None) -> tuple[Card, ...]:
    """Their cards, in the order of `names`."""
    return tuple(value.read(Card, (zoo or folder()) / name / CARD) for name in names(zoo))
