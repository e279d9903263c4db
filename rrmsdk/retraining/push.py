"""A challenger takes the champion's place: one commit, upon the one that the gate saw."""

from __future__ import annotations

from rrmsdk.hub.promote import promote
from rrmsdk.retraining.gate import Gated
from rrmsdk.retraining.journal import Journal
from rrmsdk.retraining.once import Made
from rrmsdk.retraining.stages import Going
from rrmsdk.schema import bundle as bundles

PUSHING = "pushing"


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
