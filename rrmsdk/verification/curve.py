"""Robust accuracy at many radii, with shared work: from the largest ball down."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor, nn

from rrmsdk import draws
from rrmsdk.attacks.untouched import device_of
from rrmsdk.data import Split, to_unit
from rrmsdk.schema.curve import Curve, Point
from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.recipe import VerifySpec
from rrmsdk.schema.report import BROKEN_BY, CLEAN_WRONG, ROBUST, UNJUDGED, AttackResult, Check, wilson
from rrmsdk.schema.threat import ThreatModel, spelt
from rrmsdk.verification import checks, provenance
from rrmsdk.verification.adapting import adapted
from rrmsdk.verification.attacking import Standing, Tally, attack_all, found, stand
from rrmsdk.verification.journal import Journal
from rrmsdk.verification.judge import excess, into_ball, judging, misled, right, slack
from rrmsdk.verification.sequences import Chosen, chosen
from rrmsdk.verification.verify import Share, answers, key_of

SPOT = 32  # images that withstood at one radius and are attacked at the next smaller one after all

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Work:
    """What one radius cost; what a run that was interrupted spent on it is counted in."""

    pulled: int
    attacked: int
    broken: int
    seconds: float


@dataclass
class Falling:
    """The images while the ball shrinks; `threats` are numbered from 1, the smallest.

    first: the smallest ball in which an image is known to be broken; 0: it is wrong without an attack; one more than
        there are balls: none.
    pixels: the image inside that ball that shows it; natural where there is none.
    journal: of what the attack finds in this ball.
    """

    start: Standing
    threats: tuple[ThreatModel, ...]
    choose: Callable[[ThreatModel], Chosen]
    journal: Callable[[ThreatModel, Chosen], Journal]
    tell: Tell
    first: Int64[Tensor, " N"]
    pixels: Float32[Tensor, "N C H W"]
    work: dict[int, Work] = field(default_factory=dict)
    results: tuple[AttackResult, ...] = ()  # in the largest ball, where every image is attacked

    def broken(self, positions: Int64[Tensor, " n"], number: int, pixels: Float32[Tensor, "n C H W"]) -> None:
        self.first[positions], self.pixels[positions] = number, pixels


def measure(
    model: nn.Module,
    split: Split,
    radii: Sequence[Fraction],
    norm: str,
    spec: VerifySpec,
    *,
    trained_for: ThreatModel,
    info: DataInfo,
    weights_sha256: str,
    split_name: str = "test",
    journal: Path | None = None,
    share: Share = Share(),  # noqa: B008  (a frozen value)
    tell: Tell = lambda says, done, of: None,
) -> Curve:
    """The curve over ascending `radii`, and its checks. See `fall` for what is attacked where.

    Args:
        split: on the CPU.
        spec: attack, batch and seed; its images and floor are not looked at.
        journal: a folder where what is found is kept as it is found; a curve that was interrupted goes on from it.
        share: each process gives the same curve; several of them need a journal.
        tell: called with (what is done, steps done, steps in all of this radius).

    Raises:
        DataError: images, labels or logits that cannot be used.
        MismatchError: the model does not fit the images.
        FieldError: settings that belong to another attack.
        IntegrityError: the journal is about something else.
        SaveError: it cannot be written.
    """
    started, in_train_mode = time.perf_counter(), sum(module.training for module in model.modules())
    threats = tuple(ThreatModel.model_validate({"norm": norm, "eps": eps}) for eps in radii)
    with judging(model, spec.seed):
        first = checks.first_of(split, model, spec.batch).to(device_of(model))
        classes = checks.classes_of(model, to_unit(first.pixels[:2]), info)
        checks.usable(split.pixels, split.labels, classes)
        looked = checks.before(model, to_unit(first.pixels), first.labels, classes, in_train_mode, trained_for)
        about = {"weights": weights_sha256, "data": info.fingerprint, "split": split_name}
        about |= answers(model, first, spec.batch, looked)
        at_first = partial(begun, model, split, threats, spec, classes, looked, tell, journal, about)
        if share.of > 1:
            _fall_in_part(at_first(), share)
            share.wait()
        falling = at_first()  # what any process has found is in the journals
        fall(falling)
        looked += (_spots(falling, spec.seed), _at_grey(falling), *_checked_again(falling))
    how = falling.choose(threats[-1])
    return Curve(
        norm=norm, attack=how.name, engine=how.engine, points=_points(falling), outcomes=_outcomes(falling),
        settings=tuple({"name": attack.name} | attack.settings for attack in how.attacks), trained_for=trained_for,
        checks=looked, images=len(split), split=split_name, seed=spec.seed, batch=spec.batch, data=info,
        weights_sha256=weights_sha256, versions=provenance.versions(), hardware=provenance.hardware(device_of(model)),
        seconds=time.perf_counter() - started, date=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


def begun(
    model: nn.Module, split: Split, threats: tuple[ThreatModel, ...], spec: VerifySpec, classes: int,
    looked: tuple[Check, ...] = (), tell: Tell = lambda says, done, of: None, folder: Path | None = None,
    about: Mapping[str, str] = MappingProxyType({}),
) -> Falling:  # fmt: skip
    """All images before the first attack. The model is being judged (see `judging`), the split on the CPU.

    Args:
        folder: of the journals, one for each ball; None: nothing is kept.
        about: what the journals are of, beside the attack.
    """
    journals: dict[ThreatModel, Journal] = {}

    def choose(threat: ThreatModel) -> Chosen:
        how = chosen(model, threat, spec, classes, device_of(model))
        return adapted(model, checks.first_of(split, model, spec.batch), threat, spec, how, looked, classes)

    def journal(threat: ThreatModel, how: Chosen) -> Journal:
        if folder is None:
            return Journal.nowhere()
        if threat not in journals:
            ball = re.sub(r"[:/]", "-", str(threat))
            journals[threat] = Journal.opened(folder / ball, {**about, **key_of(threat, spec, how)})
        return journals[threat]

    how = choose(threats[-1])
    start = stand(
        model, split, threats[-1], (), spec.batch, passes=how.passes, judged_by=how.judged_by, search=how.search
    )
    first = torch.where(start.robust, len(threats) + 1, 0)
    return Falling(start, threats, choose, journal, tell, first, start.natural.clone())


def fall(falling: Falling) -> None:
    """Attack in the largest ball, then in each smaller one what the ball before it broke.

    Why this is sound: an adversarial image lies in every larger ball too, so it counts there. On the way down it is
    pulled into the next ball and looked at, one forward pass; only where the model is right again is the image
    attacked. One that withstands is not attacked in smaller balls: whatever lies there, the attack did not find it
    where it could have. Attacks are heuristics, and this one might have found it there; then the point is still an
    upper bound, but less tight than it could be. On digits `fast` found it for none of 4,321 pairs of image and radius
    (benchmarks/curve.py), and `_spots` looks again each time. The dear thing is an attack that finds nothing, and each
    image has at most one: attacking each radius for itself, or upwards from the smallest, has one at every radius that
    the image withstands, and takes 2 to 5 times as long.
    """
    for number in range(len(falling.threats), 0, -1):
        began, threat = time.perf_counter(), falling.threats[number - 1]
        at = (falling.first == number + 1).nonzero().flatten()
        misleads, pulled = _pulled(falling.start, threat, at, falling.pixels[at])
        falling.broken(at[misleads], number, pulled[misleads])
        rest = at[~misleads]
        pulling = time.perf_counter() - began
        fell, seconds = _attacked(falling, threat, rest, number)
        falling.work[number] = Work(int(misleads.sum()), len(rest), int(fell.sum()), pulling + seconds)


def _fall_in_part(falling: Falling, share: Share) -> None:
    """Attack this process's part of the images, for what it writes into the journals."""
    others = torch.ones(len(falling.first), dtype=torch.bool)
    others[share.number :: share.of] = False
    falling.first[others] = 0
    fall(falling)


def _pulled(
    start: Standing, threat: ThreatModel, at: Int64[Tensor, " n"], larger: Float32[Tensor, "n C H W"]
) -> tuple[Bool[Tensor, " n"], Float32[Tensor, "n C H W"]]:
    """Adversarial images of a larger ball moved to the nearest point of this one, and whether they still mislead."""
    nearest, misleads = larger.clone(), torch.zeros(len(at), dtype=torch.bool)
    device = device_of(start.model)
    for part in torch.arange(len(at)).split(start.batch):
        nearest[part] = into_ball(larger[part], start.natural[at[part]], threat)
        labels = start.split.labels[at[part]].to(device)
        misleads[part] = misled(start.model, nearest[part].to(device), labels, start.judged_by).cpu()
    return misleads, nearest


def _attacked(
    falling: Falling, threat: ThreatModel, at: Int64[Tensor, " n"], number: int
) -> tuple[Bool[Tensor, " n"], float]:
    """The whole attack on these images, exactly as `verify` would run it; which of them fell is written down.

    Gives back the seconds too, those of a run that was interrupted included.
    """
    start, how = falling.start, falling.choose(threat)
    standing = replace(
        start, threat=threat, pixels=start.natural.clone(), robust=start.robust.clone(), begun=start.begun.clone(),
        outcomes=[UNJUDGED] * len(start.outcomes), tallies=[Tally() for _ in how.attacks],
        journal=falling.journal(threat, how),
    )  # fmt: skip
    says = f"eps {spelt(threat.eps)}: {len(at)} images"
    attack_all(standing, how.attacks, at, lambda _, done, of: falling.tell(says, done, of))
    falling.results = falling.results or found(standing, how.attacks).results
    fell = ~standing.robust[at]
    falling.broken(at[fell], number, standing.pixels[at[fell]])
    return fell, sum(tally.seconds for tally in standing.tallies)


def _spots(falling: Falling, seed: int) -> Check:
    """Some of the images that withstood are attacked in the next smaller ball too; one that falls counts as broken."""
    order = draws.permutation(seed, 0, len(falling.first), draws.JUDGED)
    skipped = order[falling.first[order] >= 3][:SPOT]
    withstood, fallen = falling.first[skipped] - 1, 0
    for number in withstood.unique().tolist():
        at = skipped[withstood == number]
        fallen += int(_attacked(falling, falling.threats[number - 2], at, number - 1)[0].sum())
    return Check(
        name="withstood a larger radius", ok=fallen == 0, value=fallen,
        says=f"how many of {len(skipped)} such images, attacked at the next smaller radius after all, fell there; if "
        "any do, the attack gets lost in large balls, and points may be less tight than `rrmsdk verify` at that radius",
    )  # fmt: skip


def _at_grey(falling: Falling) -> Check:
    """Carlini et al. 2019 (arXiv:1902.06705): from a radius of 1/2 in linf on, any image can be made the same grey one.

    There no classifier is right more often than the commonest label is met; an attack that leaves more has failed.
    """
    images, labels = len(falling.first), falling.start.split.labels
    largest, grey = falling.threats[-1], _grey(falling.threats[-1].norm, falling.pixels[0].numel())
    left = (falling.first == len(falling.threats) + 1).nonzero().flatten()
    threat = largest.model_copy(update={"eps": max(grey, largest.eps)})
    if threat != largest and len(left):
        kept = falling.first.clone(), falling.pixels.clone()
        left = left[~_attacked(falling, threat, left, len(falling.threats) + 1)[0]]
        falling.first, falling.pixels = kept  # the curve ends before this radius
    most, share = int(labels.bincount().max()) / images, len(left) / images
    return Check(
        name="falls at last", ok=share <= most, value=share,
        says=f"robust accuracy at {threat}, where every image can be turned into the same grey one and no classifier "
        f"keeps more than {most:.3f}, the share of the commonest label; above that the attack fails, as it does where "
        "gradients are masked, and the curve says little",
    )  # fmt: skip


def _grey(norm: str, numbers: int) -> Fraction:
    """The radius that takes every image of [0, 1] to 1/2, rounded up to thousandths."""
    size = {"linf": 0.5, "l2": math.sqrt(numbers) / 2, "l1": numbers / 2}[norm]
    return Fraction(math.ceil(1000 * size), 1000)


def _checked_again(falling: Falling) -> tuple[Check, ...]:
    """Count everything once more, each image in its own ball."""
    start, none = falling.start, len(falling.threats) + 1
    hits = right(start.model, falling.pixels, start.split.labels, start.batch, passes=start.judged_by)
    drift = int(((falling.first == none) != hits).sum())
    farthest = [(0.0, slack(falling.threats[0]))]
    for number, threat in enumerate(falling.threats, 1):
        at = falling.first == number
        if at.any():
            beyond = excess(falling.pixels[at], start.natural[at], threat).max().item()
            farthest.append((beyond, slack(threat)))
    beyond, allowed = max(farthest, key=lambda pair: pair[0] - pair[1])
    return checks.after(falling.results, len(hits), beyond, allowed, drift)


def _points(falling: Falling) -> tuple[Point, ...]:
    of, points = len(falling.first), []
    for number, eps in enumerate((Fraction(0), *(threat.eps for threat in falling.threats))):
        left = int((falling.first > number).sum())
        work = falling.work.get(number, Work(0, 0, 0, 0.0))
        points.append(
            Point(
                eps=eps, robust=left / of, interval=wilson(left, of), pulled=work.pulled, attacked=work.attacked,
                broken=work.broken, seconds=work.seconds,
            )
        )  # fmt: skip
    return tuple(points)


def _outcomes(falling: Falling) -> str:
    letters = CLEAN_WRONG + BROKEN_BY[: len(falling.threats)] + ROBUST
    return "".join(letters[number] for number in falling.first.tolist())
