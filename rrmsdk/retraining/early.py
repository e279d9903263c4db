"""When a challenger is out before all of it was judged: once it is surely below what no promoted model can be below."""

from __future__ import annotations

from rrmsdk.errors import HubError
from rrmsdk.hub.promote import standing
from rrmsdk.retraining.decide import least_robust
from rrmsdk.retraining.gate import is_of, pulled
from rrmsdk.retraining.plan import Plan
from rrmsdk.retraining.room import RUNS
from rrmsdk.retraining.stages import Going, judged_images
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import REPORT
from rrmsdk.schema.report import ROBUST, Report
from rrmsdk.schema.value import Value
from rrmsdk.verification.sequences import name_of

RECORD = "early.json"


class Early(Value):
    """What ends the judging of a run's challenger.

    job: digest of the job that said so.
    at_least: robust accuracy that it has to reach; 0: nothing ends it.
    champion: the champion's report, to compare image by image; None: it has none of these images.
    """

    job: str
    at_least: float
    champion: Report | None


def early(going: Going, plan: Plan) -> Early:
    """The same all through a run, though the champion may move: the gate asks again whether it still holds."""
    record = going.room.folder / RUNS / going.run.id / RECORD
    if record.is_file():
        known = value.read(Early, record)
        if known.job == going.job.digest:
            return known
    policy = going.job.gate
    champion = _champion(going, plan) if policy.early else None
    counted = champion and (champion.outcomes.count(ROBUST), champion.images)
    least = least_robust(counted, policy) if policy.early else 0.0
    value.write(Early(job=going.job.digest, at_least=least, champion=champion), record)
    return value.read(Early, record)


def _champion(going: Going, plan: Plan) -> Report | None:
    """What the champion's own bundle says of the images that challengers are judged on."""
    asked, hub = going.job.push, {"endpoint": going.endpoint, "token": going.token, "patience": going.patience}
    try:
        seen = standing(asked.repo, asked.tag, **hub).champion
        bundle = None if seen is None else bundles.read(pulled(going, seen).path)
    except HubError:  # the gate asks again, and does not do without
        return None
    if bundle is None or bundle.card.threat != plan.recipe.threat or not (bundle.path / REPORT).is_file():
        return None
    report, spec = bundle.report, judged_images(going.job, plan)
    same = is_of(report, bundle, plan.data.fingerprint, spec.images) and report.attack.split(" ")[0] == name_of(spec)
    return report if same else None
