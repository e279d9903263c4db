"""The champion attacked again, because attacks have changed: is it still what its card says?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rrmsdk.hub.promote import promote, standing
from rrmsdk.retraining.gate import pulled
from rrmsdk.retraining.intervals import difference
from rrmsdk.retraining.observe import suite
from rrmsdk.retraining.once import once
from rrmsdk.retraining.plan import Plan
from rrmsdk.retraining.stages import Going, copy_of, verify
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema.bundle import REPORT
from rrmsdk.schema.job import Regression
from rrmsdk.schema.report import ROBUST


@dataclass(frozen=True)
class Fallen:
    """Whether a new champion is needed, and what was found, in one sentence."""

    needed: bool
    says: str


def attacked_again(going: Going, plan: Plan, trigger: Regression) -> Fallen:
    """Attack the champion as the trigger says. Where it surely keeps less than its card says, the card says so at once.

    Raises:
        HubError: the champion cannot be read, or its card not be written.
    """
    asked, hub = going.job.push, {"endpoint": going.endpoint, "token": going.token, "patience": going.patience}
    seen = standing(asked.repo, asked.tag, **hub)
    if seen.champion is None:
        return Fallen(True, "There is no champion yet.")
    made = pulled(going, seen.champion)
    bundle = bundles.read(made.path)
    new = verify(going, plan, "champion-again", bundle, trigger.suite)
    now = suite(going.job.judge, plan.recipe.threat, trigger.suite)
    if not (bundle.path / REPORT).is_file() or len(bundle.report.outcomes) != len(new.outcomes):
        return Fallen(True, "The champion has no report on the same images to compare with.")
    pairs = list(zip(bundle.report.outcomes, new.outcomes, strict=True))
    lost = sum(old == ROBUST and found != ROBUST for old, found in pairs)
    gained = sum(old != ROBUST and found == ROBUST for old, found in pairs)
    fell = (lost - gained) / len(pairs)
    _, most = difference(gained, lost, len(pairs), going.job.gate.confidence)
    says = f"The champion keeps {new.robust:.4f}, {fell:.4f} less than its card said, under {now}."
    surely = most < 0
    digest, commit = made.digest, seen.champion.commit
    if surely:

        def work(scratch: Path) -> Path:
            marked = bundles.keep(copy_of(bundle, scratch / "bundle"), REPORT, new)
            (marked.path / bundles.LOCK).unlink(missing_ok=True)
            return marked.path

        marked = once(going.room, going.run, "mark", {"bundle": made.digest, "report": new.model_dump_json()}, work)
        digest = marked.digest
        commit = promote(bundles.read(marked.path), asked.repo, digest, seen, message=says, **hub).commit
    going.room.journal.note(going.run.number, "judged-again", suite=now, digest=digest, commit=commit, says=says)
    return Fallen(surely and fell > trigger.above, says)
