"""Robust accuracy over the radius, as data: whose weights, which images, and how each image was broken."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from rrmsdk.errors import FieldError
from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.report import BROKEN_BY, CLEAN_WRONG, ROBUST, Check, Share
from rrmsdk.schema.threat import ThreatModel, fraction, spelt
from rrmsdk.schema.value import SCHEMA_VERSION, Value, several

UPPER_BOUNDS = (
    "Each point is an upper bound on robust accuracy, found by attacking: a stronger attack can only lower it. An "
    "image that withstood at one radius counts as robust at the smaller ones, where it was not attacked."
)
Count = Annotated[int, Field(ge=0)]
LIKE = "type 0..16/255:8 (8 equal steps) or a list such as 2/255,4/255,8/255"


def _not_negative(value: Fraction) -> Fraction:
    if value < 0:
        raise ValueError("a radius is 0 or more")
    return value


Distance = Annotated[
    Fraction,
    BeforeValidator(fraction),
    AfterValidator(_not_negative),
    PlainSerializer(spelt, return_type=str),
    WithJsonSchema({"type": "string"}),
]


class Point(Value):
    """One radius; 0 is no attack.

    interval: 95 % Wilson interval of `robust` over the drawn images; it does not cover a stronger attack.
    pulled: images found at the next larger radius that still mislead when pulled into this ball: no attack was needed.
    attacked: images on which the attack was run here; broken: how many of them fell.
    """

    eps: Distance
    robust: Share
    interval: tuple[Share, Share]
    pulled: Count = 0
    attacked: Count = 0
    broken: Count = 0
    seconds: Annotated[float, Field(ge=0)] = 0.0


class Curve(Value):
    """Robust accuracy against eps.

    points: radius 0 first, then those asked for, ascending; `robust` never rises along them.
    outcomes: one character an image, in the order of the split: `x` wrong without an attack, `a`, `b`, ... broken from
        the first, second, ... radius above 0 on, `.` at none of them.
    settings: of each attack of the sequence, with its name.
    """

    schema_version: int = SCHEMA_VERSION
    note: str = UPPER_BOUNDS
    norm: str
    attack: str
    engine: str
    settings: tuple[dict[str, Any], ...]
    points: Annotated[tuple[Point, ...], Field(min_length=2)]
    outcomes: str
    trained_for: ThreatModel
    checks: tuple[Check, ...]
    images: Annotated[int, Field(ge=1)]
    split: str
    seed: int
    batch: int
    data: DataInfo
    weights_sha256: str
    versions: dict[str, str]
    hardware: str
    seconds: float
    date: str

    @model_validator(mode="after")
    def _agrees_with_its_outcomes(self) -> Curve:
        if len(self.outcomes) != self.images:
            raise ValueError(f"{len(self.outcomes)} outcomes for {self.images} images")
        letters = CLEAN_WRONG + BROKEN_BY[: len(self.points) - 1]
        if strange := set(self.outcomes) - set(letters + ROBUST):
            raise ValueError(f"outcomes hold {sorted(strange)}, for which there is no radius")
        if any(b.eps <= a.eps for a, b in pairwise(self.points)):
            raise ValueError(f"the radii {', '.join(spelt(one.eps) for one in self.points)} do not ascend")
        for number, one in enumerate(self.points):
            left = self.images - sum(self.outcomes.count(letter) for letter in letters[: number + 1])
            if abs(one.robust - left / self.images) > 1e-9:
                raise ValueError(f"at eps {spelt(one.eps)} robust says {one.robust}, the outcomes {left}/{self.images}")
        return self

    def summary(self) -> str:
        """A table for a terminal, under a line that says what kind of number it is; then the checks that failed."""
        lines = [
            self.note,
            f"{self.attack}  {self.norm}  {self.images} {self.split} images of {self.data.name}  {self.seconds:.0f} s",
            f"  {'eps':>10}  robust  95 % interval      attacked  broken  pulled in",
        ]
        for one in self.points:
            low, high = one.interval
            own = one.eps == self.trained_for.eps and self.norm == self.trained_for.norm
            lines.append(
                f"  {spelt(one.eps):>10}  {one.robust:.4f}  [{low:.4f}, {high:.4f}]  {one.attacked:8}  {one.broken:6}  "
                f"{one.pulled:9}{'  the radius of its card' if own else ''}"
            )
        lines += [f"look at {check.name}: {check.value}; {check.says}" for check in self.checks if not check.ok]
        return "\n".join(lines)


def read_radii(given: str | Sequence[Any], where: str = "eps") -> tuple[Fraction, ...]:
    """`LOW..HIGH:STEPS`, a comma list or a sequence as ascending fractions, without 0.

    Raises:
        FieldError: none, too many, not ascending, negative, or no number.
    """
    if isinstance(given, str):
        low, dots, rest = given.partition("..")
        if dots:
            return _steps(low, rest, given, where)
        given = [text for text in given.split(",") if text.strip()]
    radii = [_radius(one, where) for one in several(where, given, "['2/255', '4/255']")]
    for a, b in pairwise(radii):
        if a == b:
            raise FieldError(f"{where} holds {a} twice: type each radius once")
        if a > b:
            raise FieldError(f"{where} does not ascend: {b} comes after {a}. Type the smallest radius first")
    above = tuple(radius for radius in radii if radius > 0)
    if not above:
        raise FieldError(f"{where} holds no radius above 0: {LIKE}")
    if len(above) > len(BROKEN_BY):
        raise FieldError(f"{where} holds {len(above)} radii: {len(BROKEN_BY)} are the most")
    return above


def _steps(low: str, rest: str, given: str, where: str) -> tuple[Fraction, ...]:
    high, colon, count = rest.partition(":")
    if not colon or not count.strip().isdecimal() or int(count) < 1:
        raise FieldError(f"{where} '{given}': type LOW..HIGH:STEPS, such as 0..16/255:8")
    first, last, steps = _radius(low, where), _radius(high, where), int(count)
    if first >= last:
        raise FieldError(f"{where} '{given}' does not go up")
    if steps > len(BROKEN_BY):
        raise FieldError(f"{where} '{given}' asks for {steps} steps: {len(BROKEN_BY)} radii are the most")
    return read_radii([first + (last - first) * number / steps for number in range(steps + 1)], where)


def _radius(given: Any, where: str) -> Fraction:
    try:
        return _not_negative(Fraction(fraction(given.strip() if isinstance(given, str) else given)))  # type: ignore[arg-type]
    except ValueError as exc:
        raise FieldError(f"{where} holds {given}: {exc}. For several, {LIKE}") from exc
