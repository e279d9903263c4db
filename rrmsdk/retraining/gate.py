"""Champion against challenger: what both did on the same images, and what was decided. Asked anew each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rrmsdk.errors import MismatchError
from rrmsdk.hub.patient import fetched
from rrmsdk.hub.promote import Champion, Standing, standing
from rrmsdk.opening import images_of
from rrmsdk.retraining.decide import audit_due, decide, patches_due, settled
from rrmsdk.retraining.objects import key
from rrmsdk.retraining.once import Made, once
from rrmsdk.retraining.plan import Plan
from rrmsdk.retraining.room import RUNS
from rrmsdk.retraining.stages import Going, audit, copy_of, patches, verify
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import REPORT, WEIGHTS, Bundle
from rrmsdk.schema.decision import Decision, Judged
from rrmsdk.schema.ref import Ref
from rrmsdk.schema.report import ADAPTED, UNJUDGED, Report

RECORD = "decision-{}.json"


@dataclass(frozen=True)
class Gated:
    """What a gate decided, and what it saw on the Hub."""

    decision: Decision
    seen: Standing


def gate(going: Going, plan: Plan, challenger: Made, report: Report) -> Gated | None:
    """Compare a challenger with the champion of this moment; the record is in the run's folder.

    None: its judging ended early beside another champion, and beside this one it has to be judged on all images.

    Raises:
        HubError: the champion cannot be read.
        MismatchError: the two cannot be compared.
    """
    asked, policy = going.job.push, going.job.gate
    seen = standing(
        asked.repo, asked.tag, endpoint=going.endpoint, token=going.token, patience=going.patience
    )  # fmt: skip
    promotions = len(going.room.journal.runs("promoted"))
    labels = tuple(images_of(plan.recipe.data.alone(), None).test.labels.tolist())
    champion = None if seen.champion is None else pulled(going, seen.champion)
    new = _judged(plan, challenger.digest, report, labels)
    old = None if champion is None else _champion(going, plan, champion, report, labels)
    if new.unjudged and not settled(old, new, policy):
        return None
    unaudited = policy.model_copy(update={"audit_every": 0, "audit_images": 0})
    unpatched = unaudited.model_copy(update={"patch_margin": None})
    if champion and old and patches_due(old, new, policy) and _kept(decide(old, new, unpatched, promotions)):
        new = new.model_copy(update={"patched": patches(going, plan, "patches", bundles.read(challenger.path))})
        old = old.model_copy(update={"patched": patches(going, plan, "champion-patches", bundles.read(champion.path))})
    # The audit's images stay unseen where another rule is broken.
    if audit_due(policy, promotions) and _kept(decide(old, new, unaudited, promotions)):
        new = _audited(going, plan, "audit", new, challenger, labels)
        if old is not None and champion is not None:
            old = _audited(going, plan, "champion-audit", old, champion, labels)
    decision = decide(old, new, policy, promotions)
    _record(going, decision, seen.champion)
    return Gated(decision, seen)


def _kept(decision: Decision) -> bool:
    """Whether every rule is."""
    return decision.verdict != "keep"


def _champion(going: Going, plan: Plan, made: Made, like: Report, labels: Sequence[int]) -> Judged:
    """The champion, judged as the challenger was: by its own report where that is of the same attacks and images."""
    bundle = bundles.read(made.path)
    if bundle.card.threat != plan.recipe.threat:
        raise MismatchError(
            f"the champion of {going.job.push.repo} withstands {bundle.card.threat}, the job trains for "
            f"{plan.recipe.threat}: they cannot be compared. Push to another repo or tag"
        )
    report = bundle.report if (bundle.path / REPORT).is_file() else None
    images = like.data.fingerprint, len(like.outcomes)
    if report is None or not is_of(report, bundle, *images) or suite(report) != suite(like):
        report = verify(going, plan, "champion-verify", bundle)
    return _judged(plan, made.digest, report, labels)


def pulled(going: Going, champion: Champion) -> Made:
    """Exactly the files that its card names, so that it has the digest that it was promoted with."""

    def work(scratch: Path) -> Path:
        ref = Ref.parse(f"hub:{going.job.push.repo}@{champion.commit}")
        found = fetched(ref, going.patience, endpoint=going.endpoint, token=going.token)
        return copy_of(found.bundle, scratch / "champion").path

    inputs = {"repo": going.job.push.repo, "commit": champion.commit}
    return once(going.room, going.run, "champion", inputs, work)


def is_of(own: Report, bundle: Bundle, fingerprint: str, images: int) -> bool:
    """Whether a report is of the bundle's weights and all of these images."""
    return (
        own.weights_sha256 == bundle.card.files[WEIGHTS]
        and own.data.fingerprint == fingerprint
        and len(own.outcomes) == images
        and UNJUDGED not in own.outcomes
    )


def suite(report: Report) -> str:
    """Which attacks, in which version, within which ball, drawn by which seed.

    Adaptive ones belong to AutoAttack here: both are met by them where their checks call for it.
    """
    version = report.versions.get("rrmsdk", "")
    attack = report.attack.removesuffix(ADAPTED)
    return f"{attack}, {report.engine}, rrmsdk {version}, {report.threat}, seed {report.seed}"


def _judged(plan: Plan, digest: str, report: Report, labels: Sequence[int], first: int = 0) -> Judged:
    """What a report says of the test images from number `first` on."""
    count = len(report.outcomes)
    return Judged(
        digest=digest, images=key(data=plan.data.fingerprint, split="test", first=first, count=count),
        suite=suite(report), outcomes=report.outcomes, labels=tuple(labels[first : first + count]),
        classes=plan.data.labels, verdict=report.verdict,
    )  # fmt: skip


def _audited(going: Going, plan: Plan, name: str, judged: Judged, made: Made, labels: Sequence[int]) -> Judged:
    report = audit(going, plan, name, bundles.read(made.path))
    more = _judged(plan, made.digest, report, labels, plan.data.test - going.job.gate.audit_images)
    return judged.model_copy(update={"audit": more})


def _record(going: Going, decision: Decision, champion: Champion | None) -> None:
    folder = going.room.folder / RUNS / going.run.id
    number = len(list(folder.glob(RECORD.format("*")))) + 1
    path = folder / RECORD.format(number)
    value.write(decision, path)
    going.room.journal.note(
        going.run.number, "decision", verdict=decision.verdict, says=decision.says, new=decision.new, old=decision.old,
        champion=champion and champion.commit, record=path.name,
    )  # fmt: skip
