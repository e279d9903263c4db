"""The champion attacked again, because attacks have changed: is it still what its card says?"""

from __future__ import annotations

from pathlib import Path

from rrmsdk.hub.promote import promote, standing
from rrmsdk.retraining.gate import is_of, pulled
from rrmsdk.retraining.intervals import difference
from rrmsdk.retraining.observe import suite
from rrmsdk.retraining.once import Made, once
from rrmsdk.retraining.plan import Plan
from rrmsdk.retraining.room import RUNS
from rrmsdk.retraining.stages import Going, bare, copy_of, verify
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import REPORT, Bundle
from rrmsdk.schema.job import Regression
from rrmsdk.schema.report import ROBUST, Report
from rrmsdk.schema.value import Value

RECORD = "regression-{}.json"


class Again(Value):
    """What was found about a champion.

    old, new: outcomes of the same images, as its card has them and as they are now; old "": nothing to compare with.
    """

    commit: str
    digest: str
    suite: str
    old: str
    new: str

    @property
    def changed(self) -> tuple[int, int]:
        """Images gained and lost."""
        pairs = list(zip(self.old, self.new, strict=True)) if self.old else []
        lost = sum(old == ROBUST and new != ROBUST for old, new in pairs)
        return sum(old != ROBUST and new == ROBUST for old, new in pairs), lost

    @property
    def fell(self) -> float:
        gained, lost = self.changed
        return (lost - gained) / len(self.new)

    @property
    def says(self) -> str:
        kept = f"The champion keeps {self.new.count(ROBUST)} of {len(self.new)} images under {self.suite}"
        return f"{kept}, {100 * self.fell:.4g} points less than its card said." if self.old else f"{kept}."


def attacked_again(going: Going, plan: Plan, trigger: Regression) -> Again | None:
    """Attack the champion as the trigger says; where it surely fell, its card says so at once. None: there is none.

    Raises:
        HubError: the champion cannot be read, or its card not be written.
    """
    asked, hub = going.job.push, {"endpoint": going.endpoint, "token": going.token, "patience": going.patience}
    seen, record = standing(asked.repo, asked.tag, **hub), going.room.folder / RUNS / going.run.id
    record = record / RECORD.format(trigger.suite)
    if seen.champion is None:
        return None
    made = pulled(going, seen.champion)
    bundle = bundles.read(made.path)
    report = verify(going, plan, "champion-again", bundle, trigger.suite)
    if not record.is_file():  # else it was killed since, and the champion may be the marked one
        own = bundle.report if (bundle.path / REPORT).is_file() else None
        same = own is not None and is_of(own, bundle, report.data.fingerprint, len(report.outcomes))
        old = own.outcomes if own is not None and same else ""
        now = suite(going.job.judge, plan.recipe.threat, trigger.suite)
        value.write(
            Again(commit=seen.champion.commit, digest=made.digest, suite=now, old=old, new=report.outcomes), record
        )
    found = value.read(Again, record)
    digest = made.digest
    if fallen(found, going.job.gate.confidence):
        marked = _marked(going, bundle, report)
        promote(
            bundles.read(marked.path), asked.repo, marked.digest, seen, message=found.says, marks=found.commit, **hub
        )  # fmt: skip
        digest = marked.digest
    going.room.journal.note(going.run.number, "judged-again", suite=found.suite, digest=digest, says=found.says)
    return found


def fallen(found: Again, confidence: float) -> bool:
    """Whether it surely keeps less than it did."""
    gained, lost = found.changed
    return bool(found.old) and difference(gained, lost, len(found.new), confidence)[1] < 0


def _marked(going: Going, bundle: Bundle, report: Report) -> Made:
    """The same model with what is known of it now."""

    def work(scratch: Path) -> Path:
        marked = bundles.keep(copy_of(bundle, scratch / "bundle"), REPORT, report)
        return bare(marked).path

    inputs = {"weights": bundle.card.files[bundles.WEIGHTS], "report": report.model_dump_json()}
    return once(going.room, going.run, "mark", inputs, work)
