"""The verb that makes a model again: one run of a job, from wherever it is to where nothing is left to do."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rrmsdk.errors import BlockedError, FieldError, MovedError, RrmError
from rrmsdk.retraining.outcome import Outcome, stands, told
from rrmsdk.retraining.room import RUNS, Room, entered, root
from rrmsdk.schema import job as jobs
from rrmsdk.schema import value
from rrmsdk.schema.decision import Decision
from rrmsdk.schema.job import Job

if TYPE_CHECKING:
    from rrmsdk.retraining.journal import Run
    from rrmsdk.retraining.once import Made
    from rrmsdk.retraining.plan import Plan
    from rrmsdk.retraining.stages import Going
    from rrmsdk.schema.report import Report

GATES = 5  # of one run in a row, where the champion moves each time


def retrain(
    job: str | Path | Job, *, state: str | Path | None = None, cause: str | None = None, run: str | None = None,
    endpoint: str | None = None, patience: float = 600.0, quiet: bool = False,
) -> Outcome:  # fmt: skip
    """Make a challenger, judge it beside the champion, and promote it if it is not worse.

    plan -> fetch -> transfer -> verify -> export -> gate -> push -> announce. Killed at any point, the same call goes
    on where it was: finished stages are not repeated, training resumes at its checkpoint, nothing is published twice.

    Args:
        job: a TOML file, or a Job.
        state: folder of all jobs' states; None: $RRMSDK_STATE, or ~/.local/state/rrmsdk.
        cause: why. The same one never makes a second run. None: the newest run that is unfinished goes on; where there
            is none, a run of its own.
        run: which run goes on, by its name in `rrmsdk schedule history`.
        endpoint: address of the Hub; None: the client's own setting.
        patience: seconds for which a Hub that is down or overloaded is asked again, before the run is left blocked.

    Returns:
        How the run stands now. What went wrong in it is told there and not raised.

    Raises:
        DataError, FieldError: no job, or none that can be read.
        BusyError: another process works on this job.
        MismatchError: there is no such run.
        IntegrityError, SaveError: the job's folder cannot be used.
    """
    from rrmsdk.opening import needs_torch
    from rrmsdk.retraining.announce import announce

    needs_torch("retrain")
    if not isinstance(job, str | Path | Job):
        raise FieldError(f"job = {value.short(job)}: give a TOML file, or a Job")
    job = job if isinstance(job, Job) else jobs.read(Path(job))
    with entered(root(Path(state) if state else None) / job.name) as room:
        begun = _begun(room, job, cause, run, endpoint)
        if begun.state == "running":  # else it is over, and stays as it is
            _ended(room, job, begun, endpoint, patience, quiet)
        outcome = of(room, job, begun.number)
        announce(job, room.journal, begun.number, told(outcome))
        return outcome


def of(room: Room, job: Job, number: int) -> Outcome:
    """How a run stands, as its journal says."""
    run, events = room.journal.run(number), room.journal.events(number)
    last = next((event for event in reversed(events) if event.kind == "decision"), None)
    record = room.folder / RUNS / run.id / last.told["record"] if last else None
    ended = next((event.told for event in reversed(events) if event.kind == run.state), {})
    return Outcome(
        job=job.name, run=run.id, cause=run.cause, state=run.state, why=run.why, made=room.journal.outputs(number),
        decision=value.read(Decision, record) if record is not None and record.is_file() else None,
        commit=ended.get("commit"), warnings=tuple(ended.get("warnings", ())),
    )  # fmt: skip


def _begun(room: Room, job: Job, cause: str | None, name: str | None, endpoint: str | None) -> Run:
    """The run to work on. Raises MismatchError."""
    from rrmsdk.retraining.due import manual
    from rrmsdk.retraining.journal import UNFINISHED

    journal = room.journal
    if name is not None:
        cause = journal.run(int(name) if name.isdecimal() else 0).cause
    if cause is None:
        left = journal.runs(*UNFINISHED)
        cause = left[0].cause if left else manual(datetime.now(UTC)).key
    if journal.of(cause) is not None:
        return journal.begin(cause)
    return journal.begin(cause, kind="manual", says="Started by hand.", observed=_seen(room, job, endpoint))


def _seen(room: Room, job: Job, endpoint: str | None) -> dict[str, Any]:
    """Data and teachers as they are, so that their triggers do not call new what this run learns from."""
    from rrmsdk.retraining.due import learns
    from rrmsdk.retraining.observe import observe
    from rrmsdk.retraining.schedule import past_of

    watched = tuple(trigger for trigger in job.trigger if trigger.kind in ("data", "teacher"))
    seen = observe(job.model_copy(update={"trigger": watched}), endpoint=endpoint).observed
    return learns(job, past_of(room.journal), seen).model_dump(mode="json")


def _ended(room: Room, job: Job, run: Run, endpoint: str | None, patience: float, quiet: bool) -> None:
    """Work, and write down how it ended. Only what no `except Exception` sees (a kill, Ctrl-C) leaves it running."""
    from rrmsdk.hub.patient import Patience
    from rrmsdk.retraining.stages import Going
    from rrmsdk.schema.secret import reveal

    try:
        token = reveal(job.push.token) if job.push.token else None
        _stages(Going(room, run, job, endpoint, token, Patience(whole=patience), quiet))
    except Exception as exc:
        if not isinstance(exc, RrmError):
            import traceback

            room.journal.note(run.number, "traceback", says=traceback.format_exc())
        state, why = stands(exc)
        if state == "failed" and (failures := _failures(room) + 1) >= job.budget.max_failures:
            state, why = "suspended", f"failure {failures} in a row: {why}"
        room.journal.end(run.number, state, why)


def _failures(room: Room) -> int:
    """Runs in a row that failed before this one; what was blocked or cancelled counts neither way."""
    count = 0
    for run in room.journal.runs("promoted", "kept", "awaiting", "failed", "suspended"):
        if run.state not in ("failed", "suspended"):
            break
        count += 1
    return count


def _stages(going: Going) -> None:
    from rrmsdk.retraining import stages
    from rrmsdk.retraining.early import early
    from rrmsdk.schema import bundle as bundles

    begun = going.room.journal.events(going.run.number, kind="begun")[0].told
    if begun.get("propose") and _asks(going, begun["says"], {"teachers": begun["teachers"]}):
        return
    plan = stages.plan(going, begun.get("teachers") or _kept_teachers(going))
    if begun.get("kind") == "regression" and _stands(going, plan):
        return
    teachers = tuple(stages.fetch(going, taught, at) for at, taught in enumerate(plan.teachers))
    student = stages.transfer(going, plan, teachers)
    bundle, ends = bundles.read(student.path), early(going, plan)
    screened = stages.screen(going, plan, bundle, ends.at_least, ends.champion)
    if screened is not None and screened.verdict is not None:
        if _kept_out(going, plan, student, screened):
            return
        screened = None
    report = stages.verify(going, plan, "verify", bundle, known=screened)
    challenger = stages.export(going, plan, student, report, stages.curve(going, plan, student))
    _decided(going, plan, challenger, report)


def _kept_out(going: Going, plan: Plan, student: Made, report: Report) -> bool:
    """Whether the verdict that ended the judging still keeps it out; not where another champion is there by now."""
    from rrmsdk.retraining.gate import gate

    gated = gate(going, plan, student, report)
    if gated is not None:
        going.room.journal.end(going.run.number, "kept", gated.decision.says, warnings=plan.warnings)
    return gated is not None


def _stands(going: Going, plan: Plan) -> bool:
    """Whether the champion still withstands what it withstood; then the run is over."""
    from rrmsdk.retraining.regression import attacked_again, fallen

    says = []
    for trigger in going.job.trigger:
        if trigger.kind == "regression":
            found = attacked_again(going, plan, trigger)
            if found is None or (fallen(found, going.job.gate.confidence) and found.fell > trigger.above):
                return False
            says.append(found.says)
    # Only now: a run that is over does not go on after a kill.
    going.room.journal.end(going.run.number, "kept", " ".join(says) or "The job no longer attacks its champion again.")
    return True


def _kept_teachers(going: Going) -> dict[str, str]:
    """Where a new teacher is only proposed: the commits of those that taught last."""
    from rrmsdk.retraining.plan import earlier

    if not any(trigger.kind == "teacher" and trigger.propose for trigger in going.job.trigger):
        return {}
    for plan in earlier(going.room):
        return {taught.ref: taught.revision for taught in plan.teachers if taught.revision}
    return {}


def _decided(going: Going, plan: Plan, challenger: Made, report: Report) -> None:
    """Gate and push, until the champion that was beaten is the one that is replaced."""
    from rrmsdk.retraining.gate import gate
    from rrmsdk.retraining.observe import suite
    from rrmsdk.retraining.push import push, pushed, undone

    journal, number, extra = going.room.journal, going.run.number, {"warnings": plan.warnings}
    if undone(journal, challenger.digest):
        journal.end(number, "kept", "This very model was champion and was rolled back by a person.", **extra)
        return
    for _ in range(GATES):
        gated = gate(going, plan, challenger, report)
        assert gated is not None  # it was judged on all images
        decision = gated.decision
        # It may have been killed between the commit and the last line below.
        mine = pushed(journal, number, decision.new) if decision.new == decision.old else None
        if decision.verdict == "keep" and mine is None:
            journal.end(number, "kept", decision.says, **extra)
            return
        if decision.verdict == "approve" and _asks(going, decision.says, {"new": decision.new, "old": decision.old}):
            return
        try:
            commit = push(going, challenger, gated)
        except MovedError as exc:
            journal.note(number, "moved", says=str(exc))
            continue
        judged_by = suite(going.job.judge, plan.recipe.threat)
        journal.crown(number, digest=challenger.digest, commit=commit, suite=judged_by, keep=going.job.push.keep)
        journal.end(number, "promoted", mine or decision.says, commit=commit, **extra)
        return
    raise BlockedError("hub", f"the champion of {going.job.push.repo} was replaced {GATES} times while it was compared")


def _asks(going: Going, says: str, asked: dict[str, Any]) -> bool:
    """Whether somebody still has to say yes; then the run is left awaiting."""
    from rrmsdk.retraining.approval import approved, wait

    if approved(going.room.journal, going.run.number, asked):
        return False
    wait(going.room.journal, going.run.number, says, asked)
    return True
