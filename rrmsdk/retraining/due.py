"""What is due. Pure: from a job, its past runs, what was looked at and the time, to the causes of a run.

Every cause has a key, and a key has one run, whatever came of it. So nothing here depends on how often, how late or by
how many it is asked: a run that began is recorded with its key and what had been looked at, and is not due again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import takewhile

from rrmsdk.retraining import slots
from rrmsdk.schema.cause import Cause, Observed, Past, Window
from rrmsdk.schema.job import Cron, Drift, Job, NewData, NewTeacher, Regression, Trigger

WEEK = timedelta(days=7)
ON_TIME = timedelta(minutes=5)  # so long after it a slot is not missed yet: ticks come each minute, if late
WRONG_CLOCK = timedelta(days=1)  # a slot so far ahead was recorded when the clock was wrong; nearer, it was set back
_UNUSED = ("blocked", "failed", "suspended", "cancelled")  # these did not learn from what they saw


def due(job: Job, past: Sequence[Past], observed: Observed, now: datetime) -> tuple[Cause, ...]:
    """The causes of a run now, in the order of the job's triggers; none while something holds the job back.

    Args:
        past: its runs, the earliest first.
        now: with a time zone.

    Raises:
        FieldError: a cron expression that is none.
        MissingExtraError: cron without the extra `retrain`.
    """
    if held(job, past, now):
        return ()
    now, begun, found = now.astimezone(UTC), {run.key for run in past}, {}
    for trigger in job.trigger:
        for cause in _causes(job, trigger, past, observed, now):
            if cause.key not in begun:
                found.setdefault(cause.key, cause)
    return tuple(found.values())


def held(job: Job, past: Sequence[Past], now: datetime) -> str | None:
    """Why nothing may begin, in one sentence; None: nothing is in the way.

    What a person starts by hand is not asked this; a run by hand that ends well lifts a suspension.
    """
    if not past:
        return None
    if past[-1].state == "running":
        return "A run is unfinished; it goes on before another begins."
    failed = _failed_in_a_row(past)
    if "suspended" in failed or len(failed) >= job.budget.max_failures:
        return f"Suspended after {len(failed)} failed runs in a row; `rrmsdk retrain` by hand that ends well lifts it."
    # A run that began in the future (the clock was set back) does not hold the job until then.
    since, least = now - past[-1].began, timedelta(seconds=job.budget.min_interval)
    if timedelta(0) <= since < least:
        return f"The last run began {_told(since)} ago; min_interval is {_told(least)}."
    spent, most = hours_spent(past, now), job.budget.hours_per_week
    if most is not None and spent >= most:
        return f"{spent:.1f} hours of the last seven days are spent; hours_per_week is {most:g}."
    return None


def hours_spent(past: Sequence[Past], now: datetime) -> float:
    """Of the last seven days, by runs that have ended; not those in which a run only waited."""

    def within(begun: datetime, ended: datetime) -> timedelta:
        return max(timedelta(0), min(ended, now) - max(begun, now - WEEK))

    spent = timedelta(0)
    for run in past:
        if run.ended is not None:
            spent += within(run.began, run.ended) - sum((within(*span) for span in run.waited), timedelta(0))
    return spent / timedelta(hours=1)


def learns(job: Job, past: Sequence[Past], observed: Observed) -> Observed:
    """What a run learns from that no new teacher began: where one is only proposed, from the teachers of before."""
    if not any(isinstance(trigger, NewTeacher) and trigger.propose for trigger in job.trigger):
        return observed
    used = {ref: commit for run in past for ref, commit in run.observed.teachers.items()}
    return observed.model_copy(update={"teachers": observed.teachers | used})


def manual(now: datetime) -> Cause:
    """Somebody's hand: never the same twice, and never held back."""
    return Cause(kind="manual", key=f"manual {now.astimezone(UTC).isoformat()}", says="Started by hand.")


def _causes(job: Job, trigger: Trigger, past: Sequence[Past], observed: Observed, now: datetime) -> Iterator[Cause]:
    match trigger:
        case Cron():
            yield from _cron(trigger, past, observed, now)
        case NewData():
            yield from _data(trigger, past, observed, now)
        case NewTeacher():
            yield from _teacher(trigger, job.recipe.teachers, past, observed)
        case Drift():
            yield from _drift(trigger, past, observed)
        case Regression():
            yield from _regression(trigger, observed)


def _cron(trigger: Cron, past: Sequence[Past], observed: Observed, now: datetime) -> Iterator[Cause]:
    """The latest slot alone: those before it are covered by the run for it."""
    slot = slots.latest(trigger, now)
    since = observed.since
    if slot is None or (since is not None and slot <= since.astimezone(UTC) <= now + WRONG_CLOCK):
        return
    # Compared by their keys, which sort as times do: after a clock was set back, a slot that comes again is not run
    # again, nor is one that a later slot has covered.
    key, no_later = _slot_key(slot), _slot_key(now + WRONG_CLOCK)
    if any(key <= run.key <= no_later for run in past if run.key.startswith("cron ")):
        return
    late = now - slot
    if trigger.catch_up == "none" and late >= ON_TIME:
        return
    says = f"The slot of {slot:%A %Y-%m-%d %H:%M} ({trigger.timezone})"
    missed = f", missed by {_told(late)}" if late >= ON_TIME else ""
    yield Cause(kind="cron", key=key, says=f"{says}{missed}.")


def _slot_key(slot: datetime) -> str:
    return f"cron {slot.astimezone(UTC):%Y-%m-%dT%H:%MZ}"


def _data(trigger: NewData, past: Sequence[Past], observed: Observed, now: datetime) -> Iterator[Cause]:
    seen = observed.data.get(trigger.source)
    if seen is None:
        return
    last = _last(past, lambda run: run.observed.data.get(trigger.source))
    used = last.observed.data[trigger.source] if last else None
    if used is not None and seen.digest == used.digest:
        return
    # A time in the future is that of a wrong clock, not of a change that is under way.
    if seen.changed is not None and timedelta(0) <= now - seen.changed < timedelta(seconds=trigger.quiet):
        return
    before = used.rows if used is not None else 0
    more = None if seen.rows is None or before is None else seen.rows - before
    if trigger.min_new_rows > 1 and (more is None or more < trigger.min_new_rows):
        return
    counted = "" if more is None else f": {seen.rows} train images, {more:+d}"
    says = f"{trigger.source} {'changed since the last run' if used is not None else 'was not used yet'}{counted}."
    yield Cause(kind="data", key=f"data {trigger.source} {seen.digest} {_after(last)}", says=says)


def _teacher(trigger: NewTeacher, teachers: Sequence[str], past: Sequence[Past], observed: Observed) -> Iterator[Cause]:
    for ref in teachers:
        commit = observed.teachers.get(ref)
        last = _last(past, lambda run, ref=ref: run.observed.teachers.get(ref))
        used = last.observed.teachers[ref] if last else commit
        if commit is not None and used is not None and commit != used:
            yield Cause(
                kind="teacher", key=f"teacher {ref} {commit} {_after(last)}", propose=trigger.propose,
                says=f"The teacher {ref} is at {commit[:12]}; the last run had {used[:12]}.",
            )  # fmt: skip


def _drift(trigger: Drift, past: Sequence[Past], observed: Observed) -> Iterator[Cause]:
    """Windows of before the last run tell of a model that is, or might have been, replaced since."""
    began = past[-1].began if past else None
    fresh: dict[str, Window] = {
        window.id: window
        for window in sorted(observed.drift.get(trigger.url, ()), key=lambda window: window.ended)
        if began is None or window.ended > began
    }
    row = list(fresh.values())[-trigger.windows :]
    values = [window.values.get(trigger.statistic, 0.0) for window in row]
    if len(row) == trigger.windows and all(one > trigger.above for one in values):
        shown = ", ".join(f"{one:.3g}" for one in values)
        yield Cause(
            kind="drift", key=f"drift {trigger.url} {trigger.statistic} {row[-1].id}",
            says=f"{trigger.statistic} was {shown} in {len(row)} windows in a row, above {trigger.above:g}.",
        )  # fmt: skip


def _regression(trigger: Regression, observed: Observed) -> Iterator[Cause]:
    suite, judged_by = observed.suites.get(trigger.suite), observed.champion_suite
    if suite is not None and judged_by is not None and suite != judged_by:
        yield Cause(
            kind="regression", key=f"regression {suite} {observed.champion}",
            says=f"The champion was judged by {judged_by}; {trigger.suite} is {suite} now. It is attacked again.",
        )  # fmt: skip


def _last(past: Sequence[Past], saw: Callable[[Past], object]) -> Past | None:
    """The last run that saw it and learned from it, or waits for approval."""
    return next((run for run in reversed(past) if run.state not in _UNUSED and saw(run) is not None), None)


def _after(run: Past | None) -> str:
    """What was there before may come back, and is then another reason: a key says after which run it was seen."""
    return "after " + (hashlib.sha256(run.key.encode()).hexdigest()[:12] if run else "nothing")


def _failed_in_a_row(past: Sequence[Past]) -> list[str]:
    """The states of the last runs that ended badly; those that were blocked or cancelled count neither way."""
    told = [run.state for run in reversed(past) if run.state not in ("blocked", "cancelled", "running")]
    return list(takewhile(lambda state: state in ("failed", "suspended"), told))


def _told(span: timedelta) -> str:
    seconds = span.total_seconds()
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} seconds"
