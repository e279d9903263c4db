"""Will it transfer? A short probe of teacher and student, and what pairs that were trained in full say of it.

Vaishnavi et al. 2022, section 7.2, leave open how to predict which architectures take on a teacher's robustness.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rrmsdk import teachers
from rrmsdk.errors import FieldError, MismatchError
from rrmsdk.opening import at_least, device_here, fields_of, needs_torch, typed
from rrmsdk.schema import value
from rrmsdk.schema.data import DataInfo, DataSpec
from rrmsdk.schema.prediction import MEANS, Calibration, MeasuredPair, Prediction, Signals
from rrmsdk.schema.recipe import Recipe, StudentSpec, TrainSpec

if TYPE_CHECKING:
    import numpy as np

    from rrmsdk.data import Dataset
    from rrmsdk.methods import Method
    from rrmsdk.models.pair import Pair
    from rrmsdk.training import Training

SHIPPED = Path(__file__).with_suffix(".json")  # written by benchmarks/predict.py, never by hand
# Chosen on the validation split by benchmarks/predict.py; few, because the pairs are few.
USED = ("robust", "attacked_alignment", "teacher_robust", "own_clean")
RIDGE = 1.0  # of standardised signals: as much as one pair's worth of doubt in each direction
COVERAGE = 0.8  # some thirty pairs leave too few beyond 0.9 to tell where that lies
UNLIKE = (
    "batch", "optimizer", "lr", "momentum", "nesterov", "weight_decay", "epochs", "schedule", "augment", "head", "ema",
    "swa_from", "clip", "accumulate",
)  # fmt: skip

Fields = Mapping[str, Any]


@typed
def predict(
    teacher: str,
    student: str | StudentSpec | Fields,
    data: str | DataSpec | Fields = "cifar10",
    *,
    method: str | Fields = "rrm",
    train: TrainSpec | Fields | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    calibration: str | Path | Calibration | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Prediction:
    """The robust accuracy that `transfer` with these arguments would reach, from a short run and the validation split.

    Args:
        train: of the full run that is predicted, as for `transfer`.
        steps: of the probe; None: the calibration's share of the full run's.
        seconds: as many steps as fit in, timed on this machine and at most the full run's; then two calls differ.
        calibration: a Calibration or its .json file, as benchmarks/predict.py writes it; None: the shipped one.
        out: a folder for `prediction.json`; None: nothing is written.

    Raises:
        As `transfer`; FieldError: both `steps` and `seconds`, or a probe longer than the full run.
    """
    began, found = time.perf_counter(), _calibration(calibration)
    probe = probed(
        teacher, student, data, method=method, train=train, steps=steps, seconds=seconds, share=found.share, seed=seed,
        quiet=quiet,
    )  # fmt: skip
    strange = unlike(found, probe)
    new_teacher = not strange and teacher not in {pair.teacher for pair in found.pairs}
    robust, interval, reasons = forecast(probe.signals, found, new_teacher=new_teacher)
    prediction = Prediction(
        teacher=teacher, student=_named(probe.recipe.student), data=probe.info.name, threat=probe.recipe.threat,
        method=probe.recipe.method, robust=robust, interval=(0.0, 1.0) if strange else interval, coverage=COVERAGE,
        calibrated=not strange, reasons=(*strange, *reasons), signals=probe.signals, steps=probe.steps,
        total=probe.total, seconds=time.perf_counter() - began, calibration=_told(found), seed=seed,
    )  # fmt: skip
    if out is not None:
        value.write(prediction, Path(out) / "prediction.json")
    return prediction


@dataclass(frozen=True)
class Probed:
    """A probe that was run: what it showed, and of which full run it is the beginning."""

    signals: Signals
    recipe: Recipe
    info: DataInfo
    steps: int
    total: int


def probed(
    teacher: str,
    student: str | StudentSpec | Fields,
    data: str | DataSpec | Fields,
    *,
    method: str | Fields = "rrm",
    train: TrainSpec | Fields | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    share: float,
    seed: int = 0,
    quiet: bool = False,
) -> Probed:
    """The probe alone, without a calibration. Arguments and errors are those of `predict`."""
    needs_torch("predict")
    from rrmsdk import data as rooms
    from rrmsdk import methods
    from rrmsdk.models.pair import Pair
    from rrmsdk.training import folder
    from rrmsdk.training.log import progress
    from rrmsdk.training.probe import probe

    if steps is not None:
        at_least(steps=(steps, 2))
    if steps is not None and seconds is not None:
        raise FieldError(f"steps = {steps} and seconds = {seconds} are two budgets of one probe; give one")
    if seconds is not None and not 0 < seconds < inf:
        raise FieldError(f"seconds = {seconds:g}: give a number above 0")
    taught = teachers.fetch((teacher,))
    card = taught[0].bundle.card
    how = methods.parse(dict(fields_of(method, "name", "method")))
    recipe = _recipe(teacher, student, data, how, train, card.threat, seed)
    images = rooms.load(recipe.data)
    networks = teachers.networks(taught, images.info, how)
    _fits(card.data, images, recipe)

    def pair() -> Pair:
        return Pair(folder.student(recipe, images.info, networks), networks)

    total = max(1, round(recipe.train.epochs * rooms.steps_per_epoch(images.train, recipe.train.batch)))
    if total < 2:
        raise FieldError(f"the full run has {total} step, and a probe of it at least 2; raise train.epochs")
    # The pair that is timed is not the one that is kept.
    bought = None if seconds is None else _affordable(seconds, pair(), how, images, recipe, total)
    count = _count(steps, share, total) if bought is None else bought
    training = _short(pair(), how, images, recipe, total, count)
    with progress(f"probe {_named(recipe.student)}", quiet) as bar:
        signals = probe(training, images.validation.to(training.device), bar)
    return Probed(signals, recipe, images.info, count, total)


def forecast(
    signals: Signals, calibration: Calibration, *, new_teacher: bool = False
) -> tuple[float, tuple[float, float], tuple[str, ...]]:
    """Robust accuracy, its interval, and which signals lie outside those of the calibration.

    Ridge regression on standardised signals. Interval: jackknife, scaled by the leverage h of the pair,

        q sqrt(1 + h),  q = the ceil((n + 1) coverage)-th smallest of |r_i| / sqrt(1 + h_i)

    with r_i what a full run of pair i is off the prediction made without pair i (jackknife: Barber et al. 2021,
    arXiv:1905.02928; differs: scaled, and the runs of all seeds count). It is about one run, seed noise included, and
    holds as far as the pair is like those of the calibration.

    Args:
        new_teacher: none of the calibration's pairs has this teacher, so r_i is of predictions made without any pair of
            the teacher of i. Those are much further off, and are not divided by their leverage: it is large with the
            few teachers that are left, and would excuse them.
    """
    pairs = calibration.pairs
    centre, leverage = fitted(pairs, signals)
    scaled = sorted(
        abs(run - guess) / (1.0 if new_teacher else sqrt(1 + h))
        for pair, (guess, h) in zip(pairs, left_out(pairs, "teacher" if new_teacher else ""), strict=True)
        for run in pair.robust
    )
    n = len(pairs)
    q = scaled[min(len(scaled), ceil((n + 1) / n * COVERAGE * len(scaled))) - 1]
    half = q * sqrt(1 + leverage)
    centre = min(1.0, max(0.0, centre))
    says = _outside(signals, pairs)
    if new_teacher:
        says.insert(
            0, "the teacher is not in the calibration: the interval is that of predictions for teachers left out"
        )
    return centre, (max(0.0, centre - half), min(1.0, centre + half)), tuple(says)


def left_out(pairs: Sequence[MeasuredPair], key: str = "", used: Sequence[str] = USED) -> list[tuple[float, float]]:
    """For each pair, prediction and leverage from the pairs without it; or without all of its `teacher` or `student`.

    Args:
        key: `teacher` or `student`; empty: only the pair itself is left out.
    """
    found = []
    for pair in pairs:
        rest = [other for other in pairs if (getattr(other, key) != getattr(pair, key) if key else other is not pair)]
        found.append(fitted(rest, pair.signals, used))
    return found


def fitted(pairs: Sequence[MeasuredPair], signals: Signals, used: Sequence[str] = USED) -> tuple[float, float]:
    """The ridge fit of `pairs` at `signals`, unclipped, and the leverage there."""
    import numpy as np

    X = np.array([_row(pair.signals, used) for pair in pairs])
    y = np.array([np.mean(pair.robust) for pair in pairs])
    mean, std = X.mean(0), X.std(0)
    std = np.where(std > 1e-9, std, 1.0)
    Z, z = (X - mean) / std, (_row(signals, used) - mean) / std
    inverse = np.linalg.inv(Z.T @ Z + RIDGE * np.eye(Z.shape[1]))
    slope = inverse @ Z.T @ (y - y.mean())
    return float(y.mean() + z @ slope), float(1 / len(pairs) + z @ inverse @ z)


def _row(signals: Signals, used: Sequence[str]) -> np.ndarray:
    import numpy as np

    return np.array([getattr(signals, name) for name in used])


def _outside(signals: Signals, pairs: Sequence[MeasuredPair]) -> list[str]:
    """Signals that no pair of the calibration comes near: the fit is an extrapolation there."""
    found = []
    for name in USED:
        seen = [getattr(pair.signals, name) for pair in pairs]
        if not min(seen) <= getattr(signals, name) <= max(seen):
            found.append(
                f"{MEANS[name]}: {getattr(signals, name):.3f}, the calibration has {min(seen):.3f} to {max(seen):.3f}"
            )
    return found


def unlike(calibration: Calibration, probe: Probed) -> tuple[str, ...]:
    """In which settings the calibration says nothing of this run; empty where it does."""
    info, recipe, share = probe.info, probe.recipe, probe.steps / probe.total
    told: list[tuple[str, Any, Any]] = [
        ("data", info.name, calibration.data.name),
        ("data.fingerprint", info.fingerprint[:8], calibration.data.fingerprint[:8]),
        ("threat", str(recipe.threat), str(calibration.threat)),
        ("method", recipe.method, calibration.method),
        ("data.extra", info.extra and info.extra.name, calibration.data.extra and calibration.data.extra.name),
        ("train.bank.epochs", _seen_again(recipe.train), _seen_again(calibration.train)),
        ("student.start", recipe.student.start and recipe.student.start.file, None),
        *((f"train.{name}", getattr(recipe.train, name), getattr(calibration.train, name)) for name in UNLIKE),
    ]
    strange = [f"{name} is {_brief(here)} here, {_brief(there)} in the calibration" for name, here, there in told
               if here != there]  # fmt: skip
    if not 0.8 <= info.train / calibration.data.train <= 1.25:
        strange.append(f"{info.train} images are trained on here, {calibration.data.train} in the calibration")
    if info.validation < 0.8 * calibration.data.validation:
        strange.append(
            f"the validation split has {info.validation} images here, {calibration.data.validation} in the calibration"
        )
    if not 0.8 <= share / calibration.share <= 1.25:
        strange.append(f"the probe is {share:.2g} of the full run, {calibration.share:.2g} in the calibration")
    return tuple(strange)


def _seen_again(train: TrainSpec) -> int | None:
    """After how many epochs a bank's images begin again, where that is before the end of the run."""
    epochs = train.bank and train.bank.epochs
    return epochs if epochs and epochs < train.epochs else None


def _brief(given: Any) -> str:
    return str(given.model_dump(exclude_defaults=True) if isinstance(given, value.Value) else given)


def _recipe(teacher: str, student: Any, data: Any, how: Method, train: Any, threat: Any, seed: int) -> Recipe:
    """The full run, as `transfer` would write it."""
    fields = {
        "teacher": teacher,
        "student": {"arch": student, "width": "teacher"} if isinstance(student, str) else student,
        "data": fields_of(data, "name", "data"),
        "threat": threat, "train": train or {}, "seed": seed,
        "method": how.model_dump(mode="json", exclude_none=True),  # type: ignore[attr-defined]
    }  # fmt: skip
    return value.parse(Recipe, fields, "recipe")


def _short(pair: Pair, how: Method, images: Dataset, recipe: Recipe, total: int, count: int) -> Training:
    """The probe at its first step, on the device that is there."""
    from rrmsdk.data import steps_per_epoch
    from rrmsdk.training import prepare
    from rrmsdk.training.probe import shortened

    per_epoch = steps_per_epoch(images.train, recipe.train.batch)
    spec = shortened(recipe.train, total, per_epoch, count)
    return prepare(pair, how, images.train.to(device_here()), recipe.threat, spec, seed=recipe.seed)


def _count(steps: int | None, share: float, total: int) -> int:
    """How many steps the probe takes.

    Raises:
        FieldError: fewer than 2, or more than the full run has.
    """
    count = max(2, round(share * total)) if steps is None else steps
    if not 2 <= count <= total:
        raise FieldError(f"steps = {count}: a probe has 2 to {total} steps, those of the full run")
    return count


def _affordable(seconds: float, pair: Pair, how: Method, images: Dataset, recipe: Recipe, total: int) -> int:
    """The steps that fit into `seconds`, from the time of a few."""
    from rrmsdk.training.probe import TIMED, seconds_a_step

    each = seconds_a_step(_short(pair, how, images, recipe, total, TIMED + 1))
    return max(2, min(total, int(seconds / each)))


def _fits(taught: DataInfo, images: Dataset, recipe: Recipe) -> None:
    if recipe.method["name"] != "rrm":
        raise MismatchError(
            f"a prediction reads the student's embedding by the teacher's head, and method '{recipe.method['name']}' "
            "does not match embeddings. Use method 'rrm'"
        )
    if not len(images.validation):
        raise MismatchError(f"data.validation = {recipe.data.validation} leaves nothing to measure on; give 0.04 or so")
    if taught.labels != images.info.labels:
        raise MismatchError(
            f"labels: data set '{images.info.name}' has {len(images.info.labels)} classes, the teacher's "
            f"'{taught.name}' has {len(taught.labels)}, or others. A prediction needs the teacher's robust accuracy "
            "on the same labels"
        )


def _calibration(given: str | Path | Calibration | None) -> Calibration:
    return given if isinstance(given, Calibration) else value.read(Calibration, Path(given or SHIPPED))


def _told(calibration: Calibration) -> str:
    return f"{len(calibration.pairs)} pairs on {calibration.data.name} at {calibration.threat}, {calibration.date}"


def _named(student: StudentSpec) -> str:
    return student.arch if student.width_mult == 1 else f"{student.arch}@{student.width_mult:g}"
