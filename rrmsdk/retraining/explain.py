"""What a job would do, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from math import sqrt
from statistics import NormalDist
from urllib.parse import urlsplit

from rrmsdk.retraining import slots
from rrmsdk.schema.job import Cron, Drift, Gate, Job, NewData, NewTeacher, Notify, Regression, Trigger

SLOTS = 5
_DIFFER = 0.1  # of the images: what two trainings of one recipe often differ in; only to give an idea


def explained(job: Job) -> dict[str, tuple[str, ...]]:
    """Sentences about `job`, by what they are about. Raises FieldError, MissingExtraError: cron."""
    return {
        "makes": (_makes(job),),
        "starts": tuple(line for one in job.trigger for line in _starts(one)) or ("Only by hand.",),
        "held back": tuple(_held_back(job)),
        "judges": tuple(_judges(job)),
        "promotes": tuple(_promotes(job.gate)),
        "pushes": tuple(_pushes(job)),
        "tells": tuple(_tells(one) for one in job.notify) or ("Nobody.",),
    }


def next_slots(job: Job, now: datetime, count: int = SLOTS) -> tuple[str, ...]:
    """The next slots of all cron triggers together, each with its zone."""
    crons = [one for one in job.trigger if isinstance(one, Cron)]
    found = [(slot.timestamp(), slot, one) for one in crons for slot in slots.following(one, now, count)]
    first = sorted(found, key=lambda three: three[0])[:count]
    return tuple(f"{slot:%a %Y-%m-%d %H:%M %z} {one.timezone}" for _, slot, one in first)


def _makes(job: Job) -> str:
    recipe = job.recipe
    teachers = f" from {' and '.join(recipe.teachers)}" if recipe.teachers else ""
    return (
        f"A {recipe.student.arch} by {recipe.method['name']}{teachers}, {recipe.train.epochs:g} epochs on "
        f"{recipe.data.name}, to withstand {recipe.threat}."
    )


def _starts(trigger: Trigger) -> Iterator[str]:
    match trigger:
        case Cron():
            missed = "the latest is made up for" if trigger.catch_up == "latest" else "none is made up for"
            yield f"{slots.explained(trigger)} ({trigger.timezone}); of slots that were missed, {missed}."
        case NewData():
            many = f"at least {trigger.min_new_rows} new train images" if trigger.min_new_rows > 1 else "changed"
            still = f" and then not changed for {trigger.quiet:g} s" if trigger.quiet else ""
            yield f"When {trigger.source} has {many}{still}."
        case NewTeacher():
            then = "that is proposed, and waits for approval" if trigger.propose else "it is trained with at once"
            yield f"When a teacher has a new revision: {then}."
        case Drift():
            yield (
                f"When {trigger.statistic} is above {trigger.above:g} in {trigger.windows} windows in a row at "
                f"{_host(trigger.url)}."
            )
        case Regression():
            yield (
                f"When {trigger.suite} has changed since the champion was judged: the champion is attacked again, and "
                f"a challenger is made if it surely lost more than {_points(trigger.above)}."
            )


def _held_back(job: Job) -> Iterator[str]:
    budget = job.budget
    if budget.min_interval:
        yield f"At least {budget.min_interval:g} s lie between the beginnings of two runs."
    if budget.hours_per_week is not None:
        yield f"No run begins once {budget.hours_per_week:g} hours of the last seven days are spent."
    yield f"After {budget.max_failures} failed runs in a row nothing begins until a run by hand ends well."


def _judges(job: Job) -> Iterator[str]:
    judge, gate = job.judge, job.gate
    which = f"the first {judge.images}" if judge.images else "all"
    held = f" but the last {gate.audit_images}" if gate.audit_images else ""
    yield f"Champion and challenger by {judge.attack} on the same images: {which} of the test split{held}."
    if judge.curve is not None:
        yield f"Beside that a curve of each challenger at radii {judge.curve}, by fast. It decides nothing."
    if judge.images:
        passes = _passes(judge.images, gate.robust_margin, gate.confidence)
        yield (
            f"Should {100 * _DIFFER:g} % of so many images differ between the two, a challenger that is exactly as "
            f"robust is within {_points(gate.robust_margin)} surely enough in about {100 * passes:.0f} % of all cases."
        )


def _passes(images: int, margin: float, confidence: float) -> float:
    """How probably an equal challenger keeps a margin, by the normal approximation of the paired difference."""
    normal = NormalDist()
    return normal.cdf((images * margin - 0.5) / sqrt(images * _DIFFER) - normal.inv_cdf(confidence))


def _promotes(gate: Gate) -> Iterator[str]:
    yield f"A challenger for which all of this holds, each with {100 * gate.confidence:g} % confidence:"
    for what, margin in (("robust", gate.robust_margin), ("clean", gate.clean_margin)):
        yield f"- its {what} accuracy is not worse than the champion's by {_points(margin)}, on the same images"
    floors = (("robust accuracy", gate.robust_floor), ("clean accuracy", gate.clean_floor))
    for what, floor in (*floors, ("robust accuracy in each class", gate.class_floor)):
        if floor:
            yield f"- its {what} is at least {floor:g}"
    if gate.patch_margin is not None:
        yield (
            f"Patches are looked for as well: none may turn {_points(gate.patch_margin)} more images into some class "
            "than the champion's does."
        )
    if not gate.robust_floor:
        yield f"Without robust_floor each promotion may lose up to {_points(gate.robust_margin)}, again and again."
    if gate.audit_every:
        yield (
            f"Each promotion number {gate.audit_every}, {2 * gate.audit_every}, ... must also not be surely worse on "
            f"{gate.audit_images} images that no gate saw."
        )
    if gate.early:
        yield "The judging of a challenger ends early once it is surely kept out."
    if gate.approval:
        yield "Then a person has the last word."


def _pushes(job: Job) -> Iterator[str]:
    push, graphs = job.push, " and ".join(job.export.onnx)
    token = f"with the token in {push.token}" if push.token else "with the token that is saved on the machine"
    yield f"One commit to {push.repo} on the Hub for each promotion, {token}; the tag '{push.tag}' moves to it."
    yield f"Weights{f' and ONNX in {graphs}' if graphs else ''}; {push.keep} earlier champions are kept."


def _tells(notify: Notify) -> str:
    if notify.kind == "command":
        where = f"the command {(notify.command or ('',))[0]}"
    else:
        where = f"the webhook at {_host(notify.url) if isinstance(notify.url, str) else f'the address in {notify.url}'}"
    return f"{where[0].upper()}{where[1:]} of: {', '.join(notify.on)}."


def _host(url: str) -> str:
    """What follows the host may be a secret."""
    return urlsplit(url).hostname or "its address"


def _points(part: float) -> str:
    return f"{100 * part:.4g} points"
