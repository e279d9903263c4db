"""What was found by attacking a model: a report says whose weights, on which images, and how."""

from __future__ import annotations

from fractions import Fraction
from math import floor, sqrt
from typing import Annotated, Any

from pydantic import Field, model_validator

from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.schema.value import SCHEMA_VERSION, Value
from rrmsdk.schema.verdict import Verdict

UPPER_BOUND = (
    "Robust accuracy here is an upper bound found by attacking: a stronger attack can only lower it. It is not a proof."
)
CLEAN_WRONG, ROBUST, UNJUDGED = "x", ".", "?"
ADAPTED = " + adaptive"  # ends the name of AutoAttack where attacks that the checks called for came after it
BROKEN_BY = "abcdefghijklmnopqrstuvwyz"  # no x: that is CLEAN_WRONG

Share = Annotated[float, Field(ge=0, le=1)]


def wilson(hits: int, of: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a share, 95 % by default (Wilson 1927)."""
    if of <= 0:
        return 0.0, 1.0
    p, n = hits / of, of
    centre, spread = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)
    return max(0.0, min(low, p)), min(1.0, max(high, p))  # rounding may leave out 0 or 1


def least_within(hits: int, of: int, margin: float) -> float:
    """The least share of `of` images that is within `margin` of `hits` of them: 235 of 1,000 for 255 less 0.02, which
    floating point would put above that."""
    return max(0, hits - floor(Fraction(str(margin)) * of)) / of


class AttackResult(Value):
    """One attack of the sequence. It sees only images that are still robust.

    robust: share of all judged images that are still right after this attack and those before it.
    """

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)
    attacked: int
    broken: int
    robust: Share
    seconds: float


class Check(Value):
    """Something that would make the number mean less, looked at and written down.

    value: what was measured; None where it could not be.
    """

    name: str
    ok: bool
    value: float | None
    says: str


class Report(Value):
    """Accuracy under attack, as data.

    outcomes: one character an image, in the order of the split: `x` wrong without an attack, `.` robust,
        `a`, `b`, ... broken by the first, second, ... attack, `?` not judged: a verdict came before.
    images: that were judged; `clean` and `robust` are shares of them.
    passes: forward passes whose mean logits judged an image; above 1 the model is randomised.
    interval: 95 % Wilson interval of `robust` over the drawn images; where a verdict came before all were judged, its
        own interval, which allows for that (see `interval_is`). It does not cover a stronger attack.
    """

    schema_version: int = SCHEMA_VERSION
    note: str = UPPER_BOUND
    attack: str
    threat: ThreatModel
    images: Annotated[int, Field(ge=1)]
    split: str
    clean: Share
    robust: Share
    interval: tuple[Share, Share]
    attacks: tuple[AttackResult, ...]
    outcomes: str
    verdict: Verdict | None = None
    checks: tuple[Check, ...] = ()
    seed: int
    batch: int
    passes: Annotated[int, Field(ge=1)] = 1
    data: DataInfo
    weights_sha256: str
    engine: str
    versions: dict[str, str]
    hardware: str
    seconds: float
    date: str

    @model_validator(mode="after")
    def _agrees_with_its_outcomes(self) -> Report:
        judged = len(self.outcomes) - self.outcomes.count(UNJUDGED)
        if judged != self.images:
            raise ValueError(f"{judged} outcomes for {self.images} images")
        strange = set(self.outcomes) - set(BROKEN_BY[: len(self.attacks)] + ROBUST + CLEAN_WRONG + UNJUDGED)
        if strange:
            raise ValueError(f"outcomes hold {sorted(strange)}, which no attack of the report explains")
        robust, wrong = self.outcomes.count(ROBUST), self.outcomes.count(CLEAN_WRONG)
        for name, told, seen in (("robust", self.robust, robust), ("clean", self.clean, self.images - wrong)):
            if abs(told - seen / self.images) > 1e-9:
                raise ValueError(f"{name} says {told} but the outcomes say {seen}/{self.images}")
        return self

    @property
    def interval_is(self) -> str:
        """What `interval` says, and how surely."""
        if self.verdict is None or self.verdict.judged == self.verdict.of:
            return "95 % interval over the drawn images"
        return f"{100 * self.verdict.confidence:.10g} % interval of all {self.verdict.of} images"

    def warning(self) -> str:
        """One line that names the checks that are not ok; empty where all are."""
        failed = [check.name for check in self.checks if not check.ok]
        if not failed:
            return ""
        return f"WARNING: this number means less than it seems: {', '.join(failed)}. {self._adapted()}See checks."

    def _adapted(self) -> str:
        more = [at for at, result in enumerate(self.attacks) if "adaptive" in result.settings]
        if not more or not more[0]:
            return ""
        before = self.attacks[more[0] - 1].robust
        return f"Adaptive attacks brought robust accuracy from {before:.4f} to {self.attacks[more[-1]].robust:.4f}. "

    def summary(self) -> str:
        """A few lines for a terminal; the first says what kind of number it is, the last warns where it must."""
        low, high = self.interval
        verdict = f"{self.verdict.says}\n" if self.verdict else ""
        passes = f"  judged by the mean logits of {self.passes} passes" if self.passes > 1 else ""
        warning = self.warning()
        return (
            f"{self.note}\n{verdict}"
            f"clean {self.clean:.4f}  robust {self.robust:.4f} [{low:.4f}, {high:.4f}]  "
            f"{self.attack}  {self.threat}  {self.images} {self.split} images  {self.seconds:.0f} s{passes}"
            + (f"\n{warning}" if warning else "")
        )
