"""From what the checks found to how a masked model is judged, and to the attacks that come after the ordinary ones."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from rrmsdk.attacks.adaptive import BLIND, RANDOMISED, adaptive
from rrmsdk.attacks.autoattack import PASSES
from rrmsdk.attacks.configured import device_of
from rrmsdk.data import Split, to_unit
from rrmsdk.schema.recipe import VerifySpec
from rrmsdk.schema.report import Check
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification.blackbox import BlackBox
from rrmsdk.verification.sequences import Chosen

ADAPTED = " + adaptive"


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
    if not _goes_with(spec):
        return how
    few = first.to(device_of(model))
    return _with(how, adaptive(
        model, to_unit(few.pixels), few.labels, threat, failed, classes=classes, seed=spec.seed
    ))  # fmt: skip


def after_square(
    model: nn.Module, first: Split, threat: ThreatModel, spec: VerifySpec, how: Chosen, checks: Iterable[Check],
    classes: int,
) -> Chosen:  # fmt: skip
    """`how`, further, where Square found what gradients did not show and nothing before it had complained."""
    blind = any(check.name == BLIND and not check.ok for check in checks)
    # With a floor, judging has ended with a verdict on the attacks so far.
    if not blind or how.name.endswith(ADAPTED) or spec.at_least is not None or not _goes_with(spec):
        return how
    few = first.to(device_of(model))
    failed = {BLIND} | ({RANDOMISED} if how.judged_by > 1 else set())
    return _with(how, adaptive(
        model, to_unit(few.pixels), few.labels, threat, failed, classes=classes, seed=spec.seed
    ))  # fmt: skip


def _goes_with(spec: VerifySpec) -> bool:
    """Only what is called AutoAttack is worth more than it costs; `rand` is adapted already."""
    return spec.adaptive and spec.attack == "autoattack" and spec.engine == "native" and spec.version != "rand"


def _with(how: Chosen, more: tuple) -> Chosen:
    if not more:
        return how
    name = how.name if how.name.endswith(ADAPTED) else how.name + ADAPTED
    return how._replace(name=name, attacks=(*how.attacks, *more))
