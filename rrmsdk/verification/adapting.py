"""From what the checks found to how a masked model is judged, and to the attacks that come after the ordinary ones."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from rrmsdk.attacks.adaptive import BLIND, RANDOMISED, adaptive
from rrmsdk.attacks.autoattack import PASSES
from rrmsdk.attacks.untouched import device_of
from rrmsdk.data import Split, to_unit
from rrmsdk.schema.recipe import VerifySpec
from rrmsdk.schema.report import ADAPTED, Check
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification.blackbox import BlackBox
from rrmsdk.verification.sequences import Chosen


def adapted(
    model: nn.Module, first: Split, threat: ThreatModel, spec: VerifySpec, how: Chosen, checks: Iterable[Check],
    classes: int,
) -> Chosen:  # fmt: skip
    """`how`, as the checks ask for: a randomised model is judged by the mean of passes, a masked one attacked further.

    Args:
        first: a few images, to try the gradients on.
    """
    failed = {check.name for check in checks if not check.ok}
    if RANDOMISED in failed and not isinstance(model, BlackBox):  # each answer of a black box has its price
        how = how._replace(judged_by=PASSES)
    return _further(model, first, threat, spec, how, failed, classes) if _goes_with(spec) else how


def after_square(
    model: nn.Module, first: Split, threat: ThreatModel, spec: VerifySpec, how: Chosen, square: Check | None,
    classes: int,
) -> Chosen:  # fmt: skip
    """`how`, further, where Square found what gradients did not show and nothing before it had complained."""
    if square is None or square.ok or how.name.endswith(ADAPTED) or not _goes_with(spec):
        return how
    failed = {BLIND} | ({RANDOMISED} if how.judged_by > 1 else set())
    return _further(model, first, threat, spec, how, failed, classes)


def _goes_with(spec: VerifySpec) -> bool:
    """Only what is called AutoAttack is worth more than it costs; `rand` is adapted already."""
    return spec.adaptive and spec.attack == "autoattack" and spec.engine == "native" and spec.version != "rand"


def _further(
    model: nn.Module, first: Split, threat: ThreatModel, spec: VerifySpec, how: Chosen, failed: set[str], classes: int
) -> Chosen:
    """`how`, and after it what may break a network that failed these checks."""
    few = first.to(device_of(model))
    x, y = to_unit(few.pixels), few.labels
    more = adaptive(model, x, y, threat, failed, classes=classes, seed=spec.seed)
    return how._replace(name=how.name + ADAPTED, attacks=(*how.attacks, *more)) if more else how
