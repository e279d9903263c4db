"""A sweep: which values a field of the recipe may take, and what came of each of them on the validation split."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rrmsdk.errors import FieldError
from rrmsdk.schema.recipe import Recipe, VerifySpec
from rrmsdk.schema.report import CLEAN_WRONG, Report, Share, wilson
from rrmsdk.schema.value import SCHEMA_VERSION, Value, parse, several

By = Literal["mean", "robust", "clean"]
Search = Literal["grid", "optuna"]
NO_COUNT = "in a grid it needs how many values, such as log:5e-5..5e-1:7"


class Span(Value):
    """From `low` to `high`, even on a `log` or `lin` axis.

    count: values of a grid, both ends included; None: a search may take any number in between.
    """

    scale: Literal["log", "lin"]
    low: float
    high: float
    count: Annotated[int, Field(ge=2)] | None = None

    @model_validator(mode="after")
    def _goes_up(self) -> Span:
        if not self.low < self.high:
            raise ValueError(f"{self.low:g}..{self.high:g} does not go up")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"a log axis has no {self.low:g}; start above 0, or use lin:")
        return self

    def values(self) -> tuple[float, ...]:
        """The numbers of a grid, those between the ends to six digits. Raises FieldError: no count."""
        if self.count is None:
            raise FieldError(f"{self.scale}:{self.low:g}..{self.high:g}: {NO_COUNT}")
        shares = [number / (self.count - 1) for number in range(1, self.count - 1)]
        if self.scale == "log":
            between = [self.low * (self.high / self.low) ** share for share in shares]
        else:
            between = [self.low + (self.high - self.low) * share for share in shares]
        return (self.low, *(float(f"{one:.6g}") for one in between), self.high)


class Choices(Value):
    """A list: numbers, words, or whatever the field takes."""

    given: Annotated[tuple[Any, ...], Field(min_length=1)]

    def values(self) -> tuple[Any, ...]:
        return self.given


def read_range(given: str | Sequence[Any], where: str = "values") -> Span | Choices:
    """`log:LO..HI[:N]`, `lin:LO..HI[:N]`, a comma list (read as TOML; words need no quotes), or a sequence.

    Raises:
        FieldError
    """
    if not isinstance(given, str):
        return parse(Choices, {"given": several(where, given, "[5e-5, 5e-3]")}, where)
    scale, _, rest = given.partition(":")
    if scale not in ("log", "lin"):
        return parse(Choices, {"given": _listed(given)}, where)
    ends, _, count = rest.partition(":")
    low, dots, high = ends.partition("..")
    if not dots:
        raise FieldError(f"{where} '{given}': type {scale}:LOW..HIGH:COUNT, such as log:5e-5..5e-1:7")
    return parse(Span, {"scale": scale, "low": low, "high": high, "count": count or None}, where)


def _listed(text: str) -> list[Any]:
    try:
        return tomllib.loads(f"given = [{text}]")["given"]
    except tomllib.TOMLDecodeError:
        return [_word(word.strip()) for word in text.split(",") if word.strip()]


def _word(text: str) -> Any:
    try:
        return tomllib.loads(f"given = {text}")["given"]
    except tomllib.TOMLDecodeError:
        return text


class Measured(Value):
    """The figures of a report that a choice or a plot needs; 95 % Wilson intervals over the drawn images."""

    attack: str
    split: str
    images: int
    clean: Share
    clean_interval: tuple[Share, Share]
    robust: Share
    robust_interval: tuple[Share, Share]

    @classmethod
    def of(cls, report: Report) -> Measured:
        right = report.images - report.outcomes.count(CLEAN_WRONG)
        return cls(
            attack=report.attack, split=report.split, images=report.images, clean=report.clean,
            clean_interval=wilson(right, report.images), robust=report.robust, robust_interval=report.interval,
        )  # fmt: skip

    def score(self, by: By) -> float:
        """`mean` of clean and robust, as in training's `keep = "best"`, or one of them."""
        return {"mean": (self.clean + self.robust) / 2, "robust": self.robust, "clean": self.clean}[by]


class Point(Value):
    """One setting of the swept fields, and what came of it.

    name: its run's folder, under `points/`.
    screened: on the validation split; None: it diverged, and `says` is why.
    reported: on the test split, which had no part in the choice; None: not among the best.
    seconds: of the training and screening that was still to do when it was finished.
    """

    name: str
    values: dict[str, Any]
    screened: Measured | None = None
    reported: Measured | None = None
    weights_sha256: str = ""
    seconds: float = 0.0
    says: str = ""


class Sweep(Value):
    """The points that are done so far.

    recipe: as it was given; each point puts its `values` into it.
    by: what the best point is best in, on the validation split.
    path: the sweep's folder, which is not written into it.
    """

    schema_version: int = SCHEMA_VERSION
    recipe: Recipe
    ranges: dict[str, Span | Choices]
    search: Search = "grid"
    by: By = "mean"
    screening: VerifySpec
    points: tuple[Point, ...] = ()
    path: Path = Field(default=Path(), exclude=True)

    def ranked(self) -> tuple[Point, ...]:
        """The points that did not diverge, best first; of two equal ones the earlier."""
        done = [point for point in self.points if point.screened is not None]
        return tuple(sorted(done, key=lambda point: -point.screened.score(self.by) if point.screened else 0.0))

    @property
    def best(self) -> Point:
        """Raises FieldError: no point is done, or all diverged."""
        if not self.ranked():
            raise FieldError(f"none of the {len(self.points)} points has a result")
        return self.ranked()[0]

    def folder(self, point: Point) -> Path:
        """The bundle of a point."""
        return self.path / "points" / point.name
