"""A challenger takes the champion's place: one commit, upon the one that the gate saw."""

from __future__ import annotations

from rrmsdk.hub.promote import promote
from rrmsdk.retrain.gate import Gated
from rrmsdk.retrain.journal import Journal
from rrmsdk.retrain.once import Made
from rrmsdk.retrain.stages import Going
from rrmsdk.schema import bundle as bundles

PUSHING = "pushing"


def push(going: Going, challenger: Made, gated: Gated) -> str:
    """The commit, which is made once, however often this is called.

    Raises:
        MovedError: there is another champion meanwhile.
        HubError: the Hub cannot be reached or refuses.
    """
    going.room.journal.note(going.run.number, PUSHING, digest=challenger.digest)
    asked = going.job.push
    done = promote(
        bundles.read(challenger.path), asked.repo, digest=challenger.digest, seen=gated.champion, tag=asked.tag,
        private=asked.private, **going.hub,
    )  # fmt: skip
    return done.commit


def pushed(journal: Journal, run: int, digest: str) -> bool:
    """Whether the run was about to publish this bundle before."""
    return any(event.told["digest"] == digest for event in journal.events(run, kind=PUSHING))
