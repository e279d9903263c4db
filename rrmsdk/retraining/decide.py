"""The gate: whether a challenger takes the champion's place. Pure: the same judgements give the same decision.

Both were judged on the same images, so what counts is on how many images they differ, and which way. Every rule of the
policy has to be kept *surely*: the burden lies with the challenger, and where too few images were judged the champion
stays. As all rules have to be kept, a challenger that breaks one of them is promoted with a probability of at most
1 - confidence, however many rules and classes there are (the intersection-union principle, Berger 1982, Technometrics
24): there is nothing to correct for. What grows with their number is the chance that a good challenger is kept out.

The audit is the other way round. It is there to find a champion that has become good at the gate's images alone, and
its images are few: it speaks only where the challenger is *surely* worse. Its confidence is divided among its rules
(Bonferroni), so that it stops a good challenger with a probability of at most 1 - confidence.

Patches are compared by what was counted: how far a search comes is no random number that an interval could be about.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from rrmsdk.errors import FieldError, MismatchError
from rrmsdk.retraining.intervals import difference, least_share, share
from rrmsdk.schema.decision import Check, Decision, Judged
from rrmsdk.schema.job import Gate
from rrmsdk.schema.report import least_within

What = Literal["robust", "clean"]
_SHOWN = 3  # classes that are named, of those below their floor


def decide(old: Judged | None, new: Judged, policy: Gate, promotions: int) -> Decision:
    """Whether `new` replaces `old`.

    Args:
        old: the champion; None: there is none yet, and only the floors count.
        new: the challenger. One whose judging was stopped by a verdict is kept out by it.
        promotions: how many there have been.

    Raises:
        MismatchError: the two were judged on other images, by other attacks, or not on all images.
        FieldError: the audit is due and was not made, or patches were to be looked for and were not.
    """
    if old is not None:
        _comparable(old, new)
    if old is not None and old.digest == new.digest:
        return _decision(old, new, policy, promotions, (), "the challenger is the champion itself.", "keep")
    checks = (_stopped(old, new, policy),) if new.unjudged else tuple(_rules(old, new, policy))
    if all(check.passed for check in checks):  # else nobody has looked for patches
        checks += tuple(_patches(old, new, policy))
    if all(check.passed for check in checks):  # else the audit's images stay unseen
        checks += tuple(_audit(old, new, policy, promotions))
    says = " ".join(check.says for check in checks if not check.passed)
    if says:
        return _decision(old, new, policy, promotions, checks, says, "keep")
    says = "every rule is kept" if checks else "there is no champion yet, and no floor to keep"
    if policy.approval:
        return _decision(old, new, policy, promotions, checks, f"{says}; a person has the last word.", "approve")
    return _decision(old, new, policy, promotions, checks, f"{says}.", "promote")


def audit_due(policy: Gate, promotions: int) -> bool:
    """Whether the next promotion needs both to be judged on the audit's images."""
    return policy.audit_every > 0 and (promotions + 1) % policy.audit_every == 0


def _rules(old: Judged | None, new: Judged, policy: Gate) -> Iterator[Check]:
    """What has to be surely so."""
    if old is not None:
        for what, margin in _margins(policy):
            yield _margin(old, new, what, margin, policy.confidence)
    for what, floor in _floors(policy):
        yield _floor(new, what, floor, policy.confidence)
    if policy.class_floor > 0:
        yield _class_floor(new, policy)


def _audit(old: Judged | None, new: Judged, policy: Gate, promotions: int) -> Iterator[Check]:
    """What must not surely be otherwise, on images that no gate saw."""
    if not audit_due(policy, promotions):
        return
    if new.audit is None or (old is not None and old.audit is None):
        who = "challenger" if new.audit is None else "champion"
        raise FieldError(f"promotion {promotions + 1} needs the audit, and the {who} was not judged on its images")
    before = old.audit if old else None
    if before is not None:
        _comparable(before, new.audit)
    if new.audit.unjudged:
        raise MismatchError(f"{new.audit.unjudged} images of the audit were not judged: judge all of them")
    margins, floors = _margins(policy), _floors(policy)
    confidence = 1 - (1 - policy.confidence) / (len(margins) + len(floors))
    if before is not None:
        for what, margin in margins:
            yield _margin(before, new.audit, what, margin, confidence, audit=True)
    for what, floor in floors:
        yield _floor(new.audit, what, floor, confidence, audit=True)


def _margin(old: Judged, new: Judged, what: What, margin: float, confidence: float, audit: bool = False) -> Check:
    pairs = list(zip(_bits(old, what), _bits(new, what), strict=True))
    of, gained, lost = len(pairs), pairs.count((False, True)), pairs.count((True, False))
    low, high = difference(gained, lost, of, confidence)
    both = pairs.count((True, True))
    before, after = (both + lost) / of, (both + gained) / of
    passed = high >= -margin if audit else low > -margin
    found = f"{what} {before:.4f} -> {after:.4f} ({gained} images gained, {lost} lost)"
    if audit:
        says = f"Audit: {found} is {'not ' if passed else ''}surely worse by more than {_points(margin)}"
        says += f" (at best {_points(high, '+')})."
    else:
        says = f"{found} is {'' if passed else 'not '}surely no worse than by {_points(margin)}"
        says = f"{says[0].upper()}{says[1:]} (at worst {_points(low, '+')})."
    return Check(
        name=f"{'audit_' if audit else ''}{what}_margin",
        compared=f"challenger with champion, {what} accuracy on the same {of} images{' of the audit' if audit else ''}",
        numbers={"old": before, "new": after, "gained": gained, "lost": lost, "images": of, "confidence": confidence},
        interval=(low, high), bound=-margin, passed=passed, says=says,
    )  # fmt: skip


def _floor(new: Judged, what: What, floor: float, confidence: float, audit: bool = False) -> Check:
    hits, of = sum(_bits(new, what)), len(new.outcomes)
    low, high = share(hits, of, confidence)
    passed = high >= floor if audit else low >= floor
    if audit:
        says = (
            f"Audit: {what} {hits / of:.4f} is {'not ' if passed else ''}surely below {floor:g} (at best {high:.4f})."
        )
    else:
        says = f"{what.capitalize()} {hits / of:.4f} is {'' if passed else 'not '}surely at least {floor:g}"
        says += f" (at worst {low:.4f})."
    return Check(
        name=f"{'audit_' if audit else ''}{what}_floor",
        compared=f"challenger with a floor, {what} accuracy on {of} images{' of the audit' if audit else ''}",
        numbers={"new": hits / of, "hits": hits, "images": of, "confidence": confidence},
        interval=(low, high), bound=floor, passed=passed, says=says,
    )  # fmt: skip


def _class_floor(new: Judged, policy: Gate) -> Check:
    """One rule for all classes: one class is enough to break it."""
    hits, of = [0] * len(new.classes), [0] * len(new.classes)
    for label, robust in zip(new.labels, new.robust, strict=True):
        of[label] += 1
        hits[label] += robust
    least = [least_share(some, many, policy.confidence) if many else 0.0 for some, many in zip(hits, of, strict=True)]
    order = sorted(range(len(of)), key=lambda label: least[label])
    below, worst = [label for label in order if least[label] < policy.class_floor], order[0]
    named = [f"'{new.classes[label]}' ({hits[label]} of {of[label]})" for label in (below or order)[:_SHOWN]]
    if below:
        more = f" and {len(below) - _SHOWN} more classes" if len(below) > _SHOWN else ""
        says = f"Robust in {', '.join(named)}{more} is not surely at least {policy.class_floor:g}"
    else:
        says = f"Robust in every class is surely at least {policy.class_floor:g}, least in {named[0]}"
    return Check(
        name="class_floor", compared=f"challenger with a floor, robust accuracy in each of {len(of)} classes",
        numbers={"classes": len(of), "below": len(below), "hits": hits[worst], "images": of[worst],
                 "confidence": policy.confidence},
        interval=share(hits[worst], of[worst], policy.confidence) if of[worst] else (0.0, 1.0),
        bound=policy.class_floor, passed=not below,
        says=f"{says} (at worst {least[worst]:.4f}).",
    )  # fmt: skip


def patches_due(old: Judged | None, new: Judged, policy: Gate) -> bool:
    """Whether a patch of the challenger's would be held against one of the champion's."""
    return policy.patch_margin is not None and old is not None and old.digest != new.digest


def _patches(old: Judged | None, new: Judged, policy: Gate) -> Iterator[Check]:
    """One rule for all classes, held against the class in which the challenger's patch gains most."""
    if old is None or policy.patch_margin is None:
        return
    before, after = old.patched, new.patched
    if before is None or after is None:
        raise FieldError(f"patches of the {'challenger' if after is None else 'champion'} were not looked for")
    if before.side != after.side:
        raise MismatchError(
            f"patches of {before.side} pixels a side for the champion, of {after.side} for the challenger: set "
            "gate.patch_side"
        )
    gains = [now.share - was.share for was, now in zip(before.called, after.called, strict=True)]
    worst = max(range(len(gains)), key=gains.__getitem__)
    was, now, passed = before.called[worst], after.called[worst], max(gains) <= policy.patch_margin
    yield Check(
        name="patch_margin",
        compared=f"challenger with champion, the best patch of {after.side}x{after.side} pixels found for each of "
        f"{len(gains)} classes",
        numbers={"old": was.share, "new": now.share, "hits": now.hits, "images": now.images, "top": now.top,
                 "left": now.left, "side": after.side},
        bound=policy.patch_margin, passed=passed,
        says=f"A patch of {after.side}x{after.side} pixels has {now.hits} of {now.images} other images called "
        f"'{new.classes[worst]}' ({now.share:.4f}; {was.share:.4f} for the champion's own patch), "
        f"{'not ' if passed else ''}more than {_points(policy.patch_margin)} more."
        + ("" if passed else " The teacher or the images may hold a backdoor."),
    )  # fmt: skip


def least_robust(champion: tuple[int, int] | None, policy: Gate) -> float:
    """The robust accuracy below which a challenger breaks a rule, whatever else it does: nothing is surely above it.

    Args:
        champion: how many of how many images it withstood, the same ones; None: there is no champion.
    """
    return max(policy.robust_floor, 0.0 if champion is None else least_within(*champion, policy.robust_margin))


def settled(old: Judged | None, new: Judged, policy: Gate) -> bool:
    """Whether the judging of the challenger ended early by a verdict that keeps it out beside this champion."""
    verdict, champion = new.verdict, old and (sum(old.robust), len(old.outcomes))
    return verdict is not None and verdict.decided == "below" and verdict.at_least <= least_robust(champion, policy)


def _stopped(old: Judged | None, new: Judged, policy: Gate) -> Check:
    """The judging ended early, by an anytime-valid test."""
    if not settled(old, new, policy):
        raise MismatchError(
            f"{new.unjudged} of {len(new.outcomes)} images of the challenger were not judged, and no verdict says that "
            "it is below what it has to reach: judge all of them"
        )
    assert new.verdict is not None
    verdict, floor = new.verdict, new.verdict.at_least <= policy.robust_floor
    seen = {} if verdict.beside is None else {"beside": verdict.beside}
    return Check(
        name="robust_floor" if floor else "robust_margin",
        compared=f"challenger with {'a floor' if floor else 'the champion less the margin'}, robust accuracy on the "
        f"first {verdict.judged} images of a random order",
        numbers={"hits": verdict.hits, "images": verdict.judged, "of": verdict.of, "confidence": verdict.confidence,
                 **seen},
        interval=verdict.interval, bound=verdict.at_least, passed=False, says=verdict.says,
    )  # fmt: skip


def _comparable(old: Judged, new: Judged) -> None:
    for what, was, now in (
        ("on the images", old.images, new.images), ("with the labels", old.labels, new.labels),
        ("for the classes", old.classes, new.classes), ("by", old.suite, new.suite),
    ):  # fmt: skip
        if was != now:
            raise MismatchError(
                f"the champion was judged {what} {_short(was)}, the challenger {what} {_short(now)}: judge both alike"
            )
    if old.unjudged:
        raise MismatchError(f"{old.unjudged} images of the champion were not judged: judge all of them")


def _decision(
    old: Judged | None, new: Judged, policy: Gate, promotions: int, checks: tuple[Check, ...], says: str,
    verdict: Literal["promote", "keep", "approve"],
) -> Decision:  # fmt: skip
    return Decision(
        verdict=verdict, old=old.digest if old else None, new=new.digest, images=new.images, count=len(new.outcomes),
        suite=new.suite, policy=policy, promotions=promotions, checks=checks, says=says,
    )  # fmt: skip


def _margins(policy: Gate) -> tuple[tuple[What, float], ...]:
    return ("robust", policy.robust_margin), ("clean", policy.clean_margin)


def _floors(policy: Gate) -> tuple[tuple[What, float], ...]:
    both: tuple[tuple[What, float], ...] = (("robust", policy.robust_floor), ("clean", policy.clean_floor))
    return tuple((what, floor) for what, floor in both if floor > 0)


def _bits(judged: Judged, what: What) -> tuple[bool, ...]:
    return judged.robust if what == "robust" else judged.clean


def _points(part: float, sign: str = "") -> str:
    return f"{100 * part:{sign}.4g} points"


def _short(told: object) -> str:
    text = str(told)
    return text if len(text) <= 60 else f"{text[:12]}..."
