"""Whether a challenger takes the champion's place: what each of the two did on which images, and why."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rrmsdk.schema.job import Gate
from rrmsdk.schema.patched import Patched
from rrmsdk.schema.report import BROKEN_BY, CLEAN_WRONG, ROBUST, UNJUDGED
from rrmsdk.schema.value import SCHEMA_VERSION, Value
from rrmsdk.schema.verdict import Verdict

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Number = int | float


class Judged(Value):
    """What a bundle did, image by image.

    digest: of the bundle.
    images: sha256 over which images, in order. Two bundles are compared where these agree, and nowhere else.
    suite: which attacks, in which version, within which threat; compared like `images`.
    outcomes: one character an image, as in a report: `x` wrong without an attack, `.` robust, a letter: broken, `?` not
        judged.
    labels: the class of each image.
    classes: the names of all classes.
    verdict: what ended the judging before all images were judged, if something did.
    audit: the same on images that no gate saw; None: not looked at.
    patched: what universal patches do to it; None: not looked for.
    """

    digest: Digest
    images: Digest
    suite: str
    outcomes: Annotated[str, Field(min_length=1)]
    labels: tuple[Annotated[int, Field(ge=0)], ...]
    classes: tuple[str, ...]
    verdict: Verdict | None = None
    audit: Judged | None = None
    patched: Patched | None = None

    @model_validator(mode="after")
    def _says_something_of_each_image(self) -> Judged:
        if len(self.labels) != len(self.outcomes):
            raise ValueError(f"{len(self.labels)} labels for {len(self.outcomes)} outcomes")
        if strange := set(self.outcomes) - set(BROKEN_BY + CLEAN_WRONG + ROBUST + UNJUDGED):
            raise ValueError(f"outcomes hold {sorted(strange)}, which no report holds")
        if max(self.labels) >= len(self.classes):
            raise ValueError(f"an image is of class {max(self.labels)}, and there are {len(self.classes)} classes")
        if self.audit is not None and self.audit.images == self.images:
            raise ValueError("the audit is on the images of the gate itself; hold others out for it")
        if self.patched is not None and len(self.patched.called) != len(self.classes):
            raise ValueError(f"patches for {len(self.patched.called)} classes, and there are {len(self.classes)}")
        return self

    @property
    def clean(self) -> tuple[bool, ...]:
        """Which images are right without an attack."""
        return tuple([outcome not in (CLEAN_WRONG, UNJUDGED) for outcome in self.outcomes])

    @property
    def robust(self) -> tuple[bool, ...]:
        """Which images no attack broke."""
        return tuple([outcome == ROBUST for outcome in self.outcomes])

    @property
    def unjudged(self) -> int:
        return Counter(self.outcomes)[UNJUDGED]


class Check(Value):
    """One rule of a gate, and whether the challenger keeps it.

    name: of the rule, as in the job: `robust_margin`, `clean_floor`, ...; `audit_robust_margin` on the audit's images.
    compared: what with what.
    numbers: what was counted and computed, by name.
    interval: where the compared share or difference lies; each end is sure with the gate's confidence. None: nothing
        was estimated.
    bound: what the interval is held against.
    says: one sentence for a person.
    """

    name: str
    compared: str
    numbers: dict[str, Number] = Field(default_factory=dict)
    interval: tuple[float, float] | None = None
    bound: float | None = None
    passed: bool
    says: str


class Decision(Value):
    """What a gate decided, and everything it decided by but the images.

    verdict: `promote`; `keep` the champion; `approve`: all rules are kept, and a person has the last word.
    old, new: digests of the bundles; old None: there was no champion.
    promotions: how many there had been before.
    """

    schema_version: int = SCHEMA_VERSION
    verdict: Literal["promote", "keep", "approve"]
    old: Digest | None
    new: Digest
    images: Digest
    count: Annotated[int, Field(ge=1)]
    suite: str
    policy: Gate
    promotions: Annotated[int, Field(ge=0)]
    checks: tuple[Check, ...]
    says: str

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    def summary(self) -> str:
        """A line for the verdict and one for each rule."""
        lines = [f"{'ok  ' if check.passed else 'FAIL'}  {check.name}: {check.says}" for check in self.checks]
        return "\n".join([f"{self.verdict}: {self.says}", *lines])
