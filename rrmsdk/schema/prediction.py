"""What a short probe says of a long run: the signals it gave, what they were calibrated on, and the prediction."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.recipe import Share, TrainSpec
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.schema.value import SCHEMA_VERSION, Value

Cosine = Annotated[float, Field(ge=-1.0001, le=1.0001)]
MEANS = {
    "teacher_robust": "teacher's accuracy under PGD-10",
    "robust": "probe's accuracy under PGD-10, teacher's head",
    "clean": "probe's accuracy without an attack",
    "own_clean": "the same by its own head",
    "attacked_alignment": "cosine to the teacher, student attacked",
    "alignment": "cosine to the teacher",
    "slope": "gain of that cosine in the probe's second half",
    "parameters": "student's parameters / teacher's",
}


class Signals(Value):
    """What is cheap to know of a pair once the probe is trained; all on the validation split.

    robust, clean: of the probe's embedding read by the teacher's head; a short run leaves the student's own behind.
    own_clean: accuracy by that own head: how far behind.
    alignment: mean cosine of g_S(x) and g_T(x), the loss of RRM on images it did not train on.
    attacked_alignment: mean cosine of g_S(x') and g_T(x), where PGD-10 made x' against the probe.
    slope: alignment at the probe's end minus that at its half.
    parameters: the student's count as a multiple of the teacher's.
    """

    teacher_robust: Share
    robust: Share
    clean: Share
    own_clean: Share
    attacked_alignment: Cosine
    alignment: Cosine
    slope: float
    parameters: Annotated[float, Field(gt=0)]


class MeasuredPair(Value):
    """One pair of the calibration: its probe, and robust accuracies of full runs (PGD-20, validation split)."""

    teacher: str
    student: str
    signals: Signals
    robust: Annotated[tuple[Share, ...], Field(min_length=1)]


class Calibration(Value):
    """Pairs that were probed and trained in full, with the settings of both and where the numbers come from.

    share: steps of the probe as a share of the full run's.
    """

    schema_version: int = SCHEMA_VERSION
    data: DataInfo
    threat: ThreatModel
    method: dict[str, Any]
    train: TrainSpec
    share: Annotated[float, Field(gt=0, le=1)]
    pairs: Annotated[tuple[MeasuredPair, ...], Field(min_length=8)]
    hardware: str
    versions: dict[str, str]
    seeds: tuple[int, ...]
    probe_seed: int
    command: str
    date: str


class Prediction(Value):
    """The robust accuracy that a full run is expected to reach under PGD-20.

    interval: where the calibrated share `coverage` of full runs of other pairs ended, seen from predictions made
        without them; 0 to 1 where nothing was measured (`calibrated` is false).
    reasons: why the interval is as wide as it is, where the pair or the settings are not like the calibration's.
    steps, total: of the probe, and of the full run that is predicted.
    """

    schema_version: int = SCHEMA_VERSION
    teacher: str
    student: str
    data: str
    threat: ThreatModel
    method: dict[str, Any]
    robust: Share
    interval: tuple[Share, Share]
    coverage: Share
    calibrated: bool
    reasons: tuple[str, ...] = ()
    signals: Signals
    steps: int
    total: int
    seconds: float
    calibration: str
    seed: int

    def summary(self) -> str:
        """One sentence for a terminal."""
        low, high = self.interval
        named = f"{self.student} from {self.teacher} on {self.data}"
        if not self.calibrated:
            return (
                f"{named}: not calibrated here, so no interval; extrapolated from {self.calibration}, the full run "
                f"would reach about {self.robust:.2f} under PGD-20 at {self.threat}. Use it to rank students, if at all"
            )
        return (
            f"{named}: the full run is expected at {self.robust:.2f} robust accuracy under PGD-20 at {self.threat}, "
            f"{100 * self.coverage:.0f} % interval {low:.2f} to {high:.2f}"
        )

    def table(self) -> str:
        """The signals, one a line, and what is unlike the calibration."""
        lines = [f"  {MEANS[name]:<46} {number:.3f}" for name, number in self.signals.model_dump().items()]
        lines += [f"  {'steps of the probe / of the full run':<46} {self.steps} / {self.total}"]
        return "\n".join([*lines, *(f"  ! {reason}" for reason in self.reasons)])
