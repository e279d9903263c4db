"""What a look at a trained model showed: its certainty, its calibration, and whether its gradients may be masked."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.report import Check, Share
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.schema.value import SCHEMA_VERSION, Value

DIFFICULTY = (
    "1 - p(y | x'), p of the reference and x' what PGD found against it: 0 is easy, 1 is hard. "
    "Our definition, not the paper's"
)
# A look at one batch that says the same as the comparisons, sooner.
MASKING = ("zero gradients", "largest logit", "softmax outputs", "randomised outputs")

Counts = tuple[Annotated[int, Field(ge=0)], ...]


class Confidence(Value):
    """One bin of a reliability diagram: images whose highest probability lies in (low, high].

    accuracy, confidence: means over the bin; None where it is empty.
    """

    low: Share
    high: Share
    images: Annotated[int, Field(ge=0)]
    accuracy: Share | None
    confidence: Share | None


class Scores(Value):
    """One model on one set of images.

    entropy: mean over the images, in nats; entropy_share: of log C, that of a model that knows nothing.
    confidence: mean highest probability.
    p_correct: mean probability of the label.
    ece: expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3).
    entropies: images in equal bins of entropy from 0 to log C.
    """

    accuracy: Share
    entropy: Annotated[float, Field(ge=0)]
    entropy_share: Share
    confidence: Share
    p_correct: Share
    ece: Share
    reliability: tuple[Confidence, ...]
    entropies: Counts


class Looked(Value):
    """A model, on natural images and on those that PGD found against it."""

    name: str
    weights_sha256: str
    trained_for: ThreatModel
    clean: Scores
    attacked: Scores


class Change(Value):
    """Images of like difficulty: what the student gives the label beyond the teacher.

    difficulty: mean over the bin; low, high: its ends.
    clean, attacked: mean of p_student(y) - p_teacher(y), each attacked for itself, with standard errors; None for the
        error of one image.
    """

    low: Share
    high: Share
    images: Annotated[int, Field(ge=1)]
    difficulty: Share
    clean: float
    clean_error: float | None
    attacked: float
    attacked_error: float | None


class Comparison(Value):
    """Two attacks on the same images, of which the `second` should hardly find more than the `first`.

    first_robust, second_robust: accuracy under each.
    only_first, only_second: images that one of them broke and the other did not.
    gap: first_robust - second_robust; interval: its 95 % McNemar interval, from the images on which the two disagree.
    margin: how large a gap is usual for networks whose gradients are sound.
    """

    first: str
    second: str
    images: Annotated[int, Field(ge=1)]
    first_robust: Share
    second_robust: Share
    only_first: Annotated[int, Field(ge=0)]
    only_second: Annotated[int, Field(ge=0)]
    gap: float
    interval: tuple[float, float]
    margin: Share
    says: str

    @property
    def suspicious(self) -> bool:
        """The gap is beyond the margin, and beyond chance."""
        return self.gap > self.margin and self.interval[0] > 0

    def told(self) -> str:
        """One line."""
        return (
            f"accuracy under {self.second} is {self.second_robust:.3f}, under {self.first} {self.first_robust:.3f} "
            f"({self.only_second} images of {self.images} fell to {self.second} alone, {self.only_first} to "
            f"{self.first} alone): {self.says}"
        )


class Diagnosis(Value):
    """AKD's look at a model and its teacher (Maroto et al. 2022, arXiv:2203.07159, section 4.2), and gradient masking.

    changes: empty without a teacher, which is then its own reference.
    compared_from: `attacks` that were run for this, `report` of the bundle, or `nothing`, where none was asked for.
    checks: those of a report, looked at once more.
    """

    schema_version: int = SCHEMA_VERSION
    model: Looked
    teacher: Looked | None
    data: DataInfo
    split: str
    images: Annotated[int, Field(ge=1)]
    threat: ThreatModel
    attack: str
    seed: int
    batch: int
    difficulty: str = DIFFICULTY
    changes: tuple[Change, ...]
    compared_from: str
    comparisons: tuple[Comparison, ...]
    checks: tuple[Check, ...]
    versions: dict[str, str]
    hardware: str

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the gradients may be masked, so that the robust accuracy is not to be believed; empty: no sign of it."""
        flat = [f"{check.name} = {check.value:.4g}: {check.says}" for check in self.checks
                if check.name in MASKING and not check.ok and check.value is not None]  # fmt: skip
        return (*flat, *(comparison.told() for comparison in self.comparisons if comparison.suspicious))

    def summary(self) -> str:
        """A table for a terminal, and the warnings."""
        lines = [f"{self.images} {self.split} images of {self.data.name}, attacked by {self.attack} at {self.threat}"]
        lines += [f"{'':<38}{'accuracy':>9}{'p(label)':>9}{'entropy':>9}{'of log C':>9}{'ECE':>9}"]
        for who in (self.model, self.teacher):
            if who is not None:
                lines += [_row(f"{who.name}, clean", who.clean), _row(f"{who.name}, attacked", who.attacked)]
        if self.changes:
            lines += ["student - teacher in p(label), easy to hard:", *(_change(change) for change in self.changes)]
        lines += [f"! the gradients may be masked: {warning}" for warning in self.warnings]
        if not self.comparisons:
            lines += ["attacks were not compared, so a masked gradient may have gone unseen"]
        elif not self.warnings:
            lines += [f"no sign of masked gradients in {len(self.comparisons)} comparisons of attacks"]
        return "\n".join(lines)


def _row(name: str, found: Scores) -> str:
    numbers = (found.accuracy, found.p_correct, found.entropy, found.entropy_share, found.ece)
    return f"  {name:<36}" + "".join(f"{number:9.3f}" for number in numbers)


def _change(bin_: Change) -> str:
    clean, attacked = (_with_error(*pair) for pair in ((bin_.clean, bin_.clean_error),
                                                       (bin_.attacked, bin_.attacked_error)))  # fmt: skip
    return f"  difficulty {bin_.difficulty:.3f} ({bin_.images} images)  clean {clean}  attacked {attacked}"


def _with_error(mean: float, error: float | None) -> str:
    return f"{mean:+.3f}" if error is None else f"{mean:+.3f} +- {error:.3f}"
