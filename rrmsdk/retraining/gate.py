"""Champion against challenger: what both did on the same images, and what was decided. Asked anew each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rrmsdk.errors import MismatchError
from rrmsdk.hub.patient import fetched
from rrmsdk.hub.promote import Champion, Standing, standing
from rrmsdk.opening import images_of
from rrmsdk.retraining.decide import audit_due, decide
from rrmsdk.retraining.objects import key
from rrmsdk.retraining.once import Made, once
from rrmsdk.retraining.plan import Plan
from rrmsdk.retraining.room import RUNS
from rrmsdk.retraining.stages import Going, audit, copy_of, judged_images, verify
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import REPORT, WEIGHTS, Bundle
from rrmsdk.schema.decision import Decision, Judged
from rrmsdk.schema.ref import Ref
from rrmsdk.schema.report import UNJUDGED, Report

RECORD = "decision-{}.json"


@dataclass(frozen=True)
class Gated:
    """What a gate decided, and what it saw on the Hub."""

    decision: Decision
    seen: Standing


def gate(going: Going, plan: Plan, challenger: Made, report: Report) -> Gated:
    """Compare a challenger with the champion of this moment; the record is in the run's folder.

    Raises:
        HubError: the champion cannot be read.
        MismatchError: the two cannot be compared.
    """
    asked = going.job.push
    seen = standing(
        asked.repo, asked.tag, endpoint=going.endpoint, token=going.token, patience=going.patience
    )  # fmt: skip
    promotions = len(going.room.journal.runs("promoted"))
    auditing = audit_due(going.job.gate, promotions)
    labels = tuple(images_of(plan.recipe.data.alone(), None).test.labels.tolist())
    audited = audit(going, plan, "audit", bundles.read(challenger.path)) if auditing else None
    new = _judged(going, plan, challenger.digest, report, audited, labels)
    old = None if seen.champion is None else _champion(going, plan, seen.champion, report, auditing, labels)
    decision = decide(old, new, going.job.gate, promotions)
    _record(going, decision, seen.champion)
    return Gated(decision, seen)


def _champion(
    going: Going, plan: Plan, champion: Champion, like: Report, auditing: bool, labels: Sequence[int]
) -> Judged:
    """The champion, judged as the challenger was: by its own report where that is of the same attacks and images."""
    made = pulled(going, champion)
    bundle = bundles.read(made.path)
    if bundle.card.threat != plan.recipe.threat:
        raise MismatchError(
            f"the champion of {going.job.push.repo} withstands {bundle.card.threat}, the job trains for "
            f"{plan.recipe.threat}: they cannot be compared. Push to another repo or tag"
        )
    count = judged_images(going.job, plan).images
    report = bundle.report if (bundle.path / REPORT).is_file() else None
    if report is None or not _fits(report, bundle, like, count):
        report = verify(going, plan, "champion-verify", bundle)
    audited = audit(going, plan, "champion-audit", bundle) if auditing else None
    return _judged(going, plan, made.digest, report, audited, labels)


def pulled(going: Going, champion: Champion) -> Made:
    """Exactly the files that its card names, so that it has the digest that it was promoted with."""

    def work(scratch: Path) -> Path:
        ref = Ref.parse(f"hub:{going.job.push.repo}@{champion.commit}")
        found = fetched(ref, going.patience, endpoint=going.endpoint, token=going.token)
        return copy_of(found.bundle, scratch / "champion").path

    inputs = {"repo": going.job.push.repo, "commit": champion.commit}
    return once(going.room, going.run, "champion", inputs, work)


def _fits(own: Report, bundle: Bundle, like: Report, count: int) -> bool:
    return (
        own.weights_sha256 == bundle.card.files[WEIGHTS]
        and suite(own) == suite(like)
        and own.data.fingerprint == like.data.fingerprint
        and len(own.outcomes) == count
        and UNJUDGED not in own.outcomes
    )


def suite(report: Report) -> str:
    """Which attacks, in which version, within which ball, drawn by which seed."""
    version = report.versions.get("rrmsdk", "")
    return f"{report.attack}, {report.engine}, rrmsdk {version}, {report.threat}, seed {report.seed}"


def _judged(
    going: Going, plan: Plan, digest: str, report: Report, audited: Report | None, labels: Sequence[int]
) -> Judged:
    count, held = len(report.outcomes), going.job.gate.audit_images

    def of(report: Report, first: int, labels: Sequence[int], more: Judged | None) -> Judged:
        images = key(data=plan.data.fingerprint, split="test", first=first, count=len(labels))
        return Judged(
            digest=digest, images=images, suite=suite(report), outcomes=report.outcomes, labels=tuple(labels),
            classes=plan.data.labels, audit=more,
        )  # fmt: skip

    more = None if audited is None else of(audited, plan.data.test - held, labels[-held:], None)
    return of(report, 0, labels[:count], more)


def _record(going: Going, decision: Decision, champion: Champion | None) -> None:
    folder = going.room.folder / RUNS / going.run.id
    number = len(list(folder.glob(RECORD.format("*")))) + 1
    path = folder / RECORD.format(number)
    value.write(decision, path)
    going.room.journal.note(
        going.run.number, "decision", verdict=decision.verdict, says=decision.says, new=decision.new, old=decision.old,
        champion=champion and champion.commit, record=path.name,
    )  # fmt: skip
