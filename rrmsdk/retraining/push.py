"""A challenger takes the champion's place, by one commit upon the one that the gate saw; and gives it back."""

from __future__ import annotations

from rrmsdk.hub import promote as hub
from rrmsdk.hub.patient import Patience
from rrmsdk.hub.promote import Champion, promote
from rrmsdk.retraining.gate import Gated
from rrmsdk.retraining.journal import Journal
from rrmsdk.retraining.once import Made
from rrmsdk.retraining.stages import Going
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema.job import Job
from rrmsdk.schema.secret import reveal

PUSHING, CROWNED, UNDONE = "pushing", "champion", "rolled-back"


def push(going: Going, challenger: Made, gated: Gated) -> str:
    """The commit, which is made once, however often this is called.

    Raises:
        MovedError: there is another champion meanwhile.
        HubError: the Hub cannot be reached or refuses.
    """
    going.room.journal.note(going.run.number, PUSHING, digest=challenger.digest, says=gated.decision.says)
    asked = going.job.push
    done = promote(
        bundles.read(challenger.path), asked.repo, challenger.digest, gated.seen, private=asked.private,
        endpoint=going.endpoint, token=going.token, patience=going.patience,
    )  # fmt: skip
    return done.commit


def pushed(journal: Journal, run: int, digest: str) -> str | None:
    """Why the run was about to publish this bundle, where it was."""
    return next(
        (event.told["says"] for event in journal.events(run, kind=PUSHING) if event.told["digest"] == digest), None
    )


def rollback(job: Job, journal: Journal, to: str | None, *, endpoint: str | None, patience: Patience) -> Champion:
    """An earlier champion is the champion again; the one that it replaces is not promoted again by this job.

    Args:
        to: its number, commit or digest; None: the one before the present one.

    Raises:
        MismatchError, RefError: there was none before, or none such.
        HubError: the Hub cannot be reached or refuses.
    """
    asked = {"endpoint": endpoint, "token": reveal(job.push.token) if job.push.token else None, "patience": patience}
    seen = hub.standing(job.push.repo, job.push.tag, **asked)
    now = hub.rollback(job.push.repo, job.push.tag, to, **asked)
    was = seen.champion
    for one in {one.commit: one for one in seen.champions}.values():
        if was is not None and one.commit in (was.commit, was.marks) and one.commit != now.commit:
            journal.note(None, UNDONE, digest=one.digest, commit=one.commit, to=now.commit)
    for event in reversed(journal.events(kind=CROWNED)):
        if event.told.get("commit") == now.commit and event.run is not None:
            journal.crown(event.run, **event.told)
            break
    return now


def undone(journal: Journal, digest: str) -> bool:
    """Whether somebody took this bundle's place away, and nobody gave it back."""
    told = [
        event for kind in (CROWNED, UNDONE) for event in journal.events(kind=kind) if event.told["digest"] == digest
    ]
    return bool(told) and max(told, key=lambda event: event.number).kind == UNDONE
