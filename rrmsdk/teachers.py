"""From the references of a recipe to teachers that stand beside a student, compared with its data and threat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rrmsdk.errors import MismatchError, RefError, did_you_mean
from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.recipe import Recipe
from rrmsdk.schema.ref import Ref

if TYPE_CHECKING:
    from rrmsdk.hub import Fetched
    from rrmsdk.methods import Method
    from rrmsdk.models import Classifier


def named(teacher: str | Sequence[str]) -> tuple[str, ...]:
    """One reference, or several, as several. Raises RefError: there is none."""
    refs = (teacher,) if isinstance(teacher, str) else teacher
    if not isinstance(refs, Sequence) or not refs or not all(isinstance(ref, str) for ref in refs):
        raise RefError(f"teacher = {teacher!r}: type hub:NAME, hub:org/name or path:DIR, or several in a list")
    return tuple(refs)


def fetch(refs: Sequence[str]) -> tuple[Fetched, ...]:
    """The bundles that the references name.

    Raises:
        RefError: an architecture, or a name that nobody knows.
    """
    return tuple(_fetch(ref) for ref in refs)


def _fetch(teacher: str) -> Fetched:
    from rrmsdk import converting, hub  # the Hub's client is slow to import, and `import rrmsdk` comes by here

    ref = Ref.parse(teacher)
    if ref.kind == "arch":
        known = hub.index.names()
        hint = f" Did you mean hub:{teacher}?" if teacher in known else did_you_mean(teacher, known)
        raise RefError(f"a teacher is hub:NAME, hub:org/name or path:DIR, not '{teacher}'.{hint}")
    return converting.fetch(ref)


def networks(taught: Sequence[Fetched], info: DataInfo, method: Method) -> tuple[Classifier, ...]:
    """The teachers for students of this data; one of another input size resizes what it is shown.

    Raises:
        MismatchError: other channels; or other labels, for a method that compares logits.
    """
    from rrmsdk import methods, models

    found = []
    for fetched in taught:
        card = fetched.bundle.card
        if card.model.channels != info.channels:
            raise MismatchError(
                f"channels: data set '{info.name}' has {info.channels}, teacher '{card.name}' has {card.model.channels}"
            )
        if methods.compares_logits(method) and card.data.labels != info.labels:
            raise MismatchError(
                f"labels: data set '{info.name}' has {_shown(info.labels)}, teacher '{card.name}' "
                f"{_shown(card.data.labels)}. Methods that compare logits need one label set; "
                "rrm and mixacm with kd_weight=0 do not"
            )
        network = models.from_bundle(fetched.bundle)
        network.resizes = card.model.input_size != info.size
        found.append(network)
    return tuple(found)


def notes(taught: Sequence[Fetched], recipe: Recipe) -> str:
    """What a reader of the student's card should know of its teachers: another radius.

    Raises:
        MismatchError: another norm.
    """
    other = [fetched.bundle.card for fetched in taught if fetched.bundle.card.threat != recipe.threat]
    for card in other:
        if card.threat.norm != recipe.threat.norm:
            raise MismatchError(f"the threat is {recipe.threat}, teacher {card.name} was trained for {card.threat}")
    return " ".join(f"Teacher {card.name} was trained for {card.threat}." for card in other)


def _shown(labels: tuple[str, ...]) -> str:
    few = ", ".join(labels[:4]) + (", ..." if len(labels) > 4 else "")
    return f"{len(labels)} classes ({few})"
