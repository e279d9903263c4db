"""What a run asks of a person, and whether it was said yes to. A yes is to exactly what was asked."""

from __future__ import annotations

from typing import Any

from rrmsdk.errors import MismatchError
from rrmsdk.retraining.journal import Journal, Run

ASKED, APPROVED = "asked", "approved"


def wait(journal: Journal, run: int, says: str, asked: dict[str, Any]) -> None:
    """Leave the run until somebody approves of what is `asked`: JSON values."""
    journal.end(run, "awaiting", says, **{ASKED: asked})


def approved(journal: Journal, run: int, asked: dict[str, Any]) -> bool:
    """Whether somebody approved of exactly this."""
    return any(event.kind == APPROVED and event.told[ASKED] == asked for event in journal.events(run))


def approve(journal: Journal, run: Run) -> None:
    """Say yes to what a run asks; one that was suspended goes on, and its crashes count from zero.

    Raises:
        MismatchError: it asks nothing.
    """
    if run.state == "suspended":
        journal.resume(run.number)
        return
    asked = [event.told[ASKED] for event in journal.events(run.number) if event.kind == "awaiting"]
    if run.state != "awaiting" or not asked:
        raise MismatchError(
            f"run {run.id} of {journal.path.parent.name} is {run.state} and asks nobody. rrmsdk schedule history shows "
            "which runs are awaiting or suspended"
        )
    journal.note(run.number, APPROVED, **{ASKED: asked[-1]})
