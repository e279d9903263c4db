"""What a run is about to do, every reference in it resolved to a commit or a hash before anything begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated

from pydantic import Field

import rrmsdk
from rrmsdk import files
from rrmsdk.errors import BlockedError, HubError, RefError
from rrmsdk.retraining.room import Room
from rrmsdk.schema import value
from rrmsdk.schema.bundle import CARD
from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.job import Job
from rrmsdk.schema.recipe import Recipe
from rrmsdk.schema.ref import Ref
from rrmsdk.schema.value import Value

PLAN = "plan"
PACKAGES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "numpy")
_CLOSED = (401, 403)


class Taught(Value):
    """A teacher as it is now.

    ref: as the recipe spells it.
    pinned: what names this very one: on a Hub by its commit.
    card: sha256 of its card, which hashes all else.
    """

    ref: str
    pinned: str
    revision: str | None
    card: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Plan(Value):
    """All that decides what a run makes.

    job: digest of the job.
    recipe: with pinned teachers.
    data: what the images turned out to be.
    versions: of the packages that compute.
    warnings: for the card of what is made.
    """

    job: str
    recipe: Recipe
    teachers: tuple[Taught, ...]
    data: DataInfo
    versions: dict[str, str]
    warnings: tuple[str, ...] = ()


def resolve(room: Room, job: Job, endpoint: str | None, commits: Mapping[str, str]) -> Plan:
    """The plan of a run that begins now.

    Args:
        commits: of teachers, by their references, where they are not to be what a reference means now.

    Raises:
        BlockedError: a teacher is no longer where it was, and no earlier run has kept it.
        HubError: the Hub does not answer.
        RefError, DataError: what the job names is not there.
    """
    from rrmsdk.opening import images_of

    name = job.recipe.name or job.name
    found = [_taught(room, ref, commits.get(ref), endpoint) for ref in job.recipe.teachers]
    pinned = tuple(taught.pinned for taught, _ in found)
    teacher = {"teacher": pinned[0] if len(pinned) == 1 else pinned or None}
    return Plan(
        job=job.digest, recipe=job.recipe.model_copy(update=teacher | {"name": name}),
        teachers=tuple(taught for taught, _ in found), data=images_of(job.recipe.data, None).info, versions=versions(),
        warnings=tuple(warning for _, warning in found if warning),
    )  # fmt: skip


def versions() -> dict[str, str]:
    """This rrmsdk, and the packages that it computes with."""
    return {"rrmsdk": rrmsdk.__version__} | {name: metadata.version(name) for name in PACKAGES if _installed(name)}


def earlier(room: Room) -> Iterator[Plan]:
    """The plans of runs that are still kept, the newest first."""
    for run in room.journal.runs():
        digest = room.journal.outputs(run.number).get(PLAN)
        path = room.objects.open(digest) if digest else None
        if path is not None:
            yield read(path)


def read(path: Path) -> Plan:
    """The plan in a file."""
    return value.from_json(Plan, path.read_bytes(), str(path))


def gone(exc: BaseException) -> bool:
    """Whether the Hub says that something is not there, or no longer to be seen."""
    answer = getattr(exc.__cause__, "response", None)
    return isinstance(exc, RefError) or getattr(answer, "status_code", None) in _CLOSED


def _taught(room: Room, text: str, commit: str | None, endpoint: str | None) -> tuple[Taught, str]:
    """A teacher, and a warning where only an earlier run knows what its reference meant."""
    try:
        return _pinned(text, commit, endpoint), ""
    except (RefError, HubError) as exc:
        if not text.startswith("hub:") or not gone(exc):
            raise
        kept = (taught for plan in earlier(room) for taught in plan.teachers if taught.ref == text)
        taught = next((taught for taught in kept if commit in (None, taught.revision)), None)
        if taught is None:
            raise BlockedError("teacher-gone", str(exc)) from exc
        return taught, f"Teacher {taught.pinned} is no longer on its Hub; the copy of an earlier run taught."


def _pinned(text: str, at: str | None, endpoint: str | None) -> Taught:
    from rrmsdk import converting, hub
    from rrmsdk.hub.client import LARGEST_CARD, download, in_our_words, look, repository, within_limit

    ref = Ref.parse(text)
    if ref.kind != "hub" or ref.org is None:
        found = converting.fetch(ref, endpoint=endpoint)
        return Taught(ref=text, pinned=text, revision=found.revision, card=files.sha256(found.bundle.path / CARD))
    door, repo = hub.door(endpoint), repository(f"{ref.org}/{ref.name}")
    with in_our_words(door, text):
        commit = look(door, repo, at or ref.revision)
        if CARD not in commit.files:
            raise RefError(f"{text} is a repository, but no bundle: it has no {CARD}")
        within_limit(commit.files[CARD], f"{text}: its {CARD}", most=LARGEST_CARD)
        card = download(door, repo, CARD, commit)
    return Taught(ref=text, pinned=f"hub:{repo}@{commit.oid}", revision=commit.oid, card=files.sha256(card))


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
