"""The index of the zoo: `zoo/*.toml`, and the bundles beside it that ship inside the package."""

from __future__ import annotations

from pathlib import Path

from rrmsdk.schema import entry, value
from rrmsdk.schema.bundle import CARD
from rrmsdk.schema.card import Card
from rrmsdk.schema.entry import Entry

_PACKAGE = Path(__file__).resolve().parent.parent


def root() -> Path:
    """The zoo: in the installed package, or in a source checkout."""
    shipped = _PACKAGE / "_zoo"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "zoo"


def names(zoo: Path | None = None) -> tuple[str, ...]:
    """The NAMEs of `hub:NAME` that the index knows, sorted: its entries, and what is embedded."""
    place = zoo or root()
    return tuple(sorted({path.stem for path in place.glob("*.toml")} | set(embedded(place))))


def find(name: str, zoo: Path | None = None) -> Entry | None:
    """What the index says of `name`; None: nothing. Raises FieldError: its file is no entry."""
    path = (zoo or root()) / f"{name}.toml"
    inside = path.name == f"{name}.toml"  # a name is no way to another folder
    return entry.read(path) if inside and path.is_file() else None


def entries(zoo: Path | None = None) -> tuple[Entry, ...]:
    """All that the index says, in the order of names. Raises FieldError: a file is no entry."""
    return tuple(entry.read(path) for path in sorted((zoo or root()).glob("*.toml")))


def embedded(zoo: Path | None = None) -> tuple[str, ...]:
    """The NAMEs of `hub:NAME` that need no network, sorted."""
    return tuple(sorted(card.parent.name for card in (zoo or root()).glob(f"embedded/*/{CARD}")))


def bundle_of(name: str, zoo: Path | None = None) -> Path:
    """Where the embedded bundle of that name lies."""
    return (zoo or root()) / "embedded" / name


def cards(zoo: Path | None = None) -> tuple[Card, ...]:
    """The cards of the embedded bundles, in their order."""
    return tuple(value.read(Card, bundle_of(name, zoo) / CARD) for name in embedded(zoo))
