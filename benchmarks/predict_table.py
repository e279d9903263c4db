"""The tables and the plot of benchmarks/predict.py."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from rrmsdk import predicting
from rrmsdk.schema.prediction import MEANS, Calibration, MeasuredPair, Signals
from rrmsdk.visual.figure import figure

RESAMPLED = 2000
TRIVIAL = {"teacher_robust", "parameters", "clean"}
CHOSEN_WITH = 15  # pairs that had both full runs when the signals were chosen
FIRST = ("robust", "attacked_alignment", "teacher_robust")
CANDIDATES = {
    "first version": FIRST,
    "first version and own head": (*FIRST, "own_clean"),
    "all": tuple(MEANS),
}


@dataclass(frozen=True)
class Outcome:
    """A pair with all that was measured of it; `test` and `clean` are of each seed's full run."""

    teacher: str
    student: str
    signals: Signals
    validation: tuple[float, ...]
    test: tuple[float, ...]
    clean: tuple[float, ...]
    autoattack: float | None
    probe_seconds: float
    run_seconds: float


@dataclass(frozen=True)
class Row:
    """A pair and what was predicted of it without it."""

    outcome: Outcome
    predicted: float
    interval: tuple[float, float]

    @property
    def test(self) -> float:
        return statistics.mean(self.outcome.test)


def predicted(calibration: Calibration, found: list[Outcome], *, new_teacher: bool = False) -> list[Row]:
    """Each pair predicted by a calibration that does not hold it, or none of its teacher."""
    rows = []
    for outcome in found:
        rest = tuple(
            pair for pair in calibration.pairs
            if pair.teacher != outcome.teacher or (not new_teacher and pair.student != outcome.student)
        )  # fmt: skip
        left = calibration.model_copy(update={"pairs": rest})
        centre, interval, _ = predicting.forecast(outcome.signals, left, new_teacher=new_teacher)
        rows.append(Row(outcome, centre, interval))
    return rows


def _rank(guess: Sequence[float], truth: Sequence[float]) -> float:
    """Spearman's rho; 0 where all guesses are equal, which rank nothing."""
    if len(set(guess)) < 2 or len(set(truth)) < 2:
        return 0.0
    rho, _ = spearmanr(guess, truth)
    return float(rho)  # type: ignore[arg-type]  (scipy has no types)


def _interval(guess: Sequence[float], truth: Sequence[float]) -> tuple[float, float]:
    """95 % bootstrap percentiles of `_rank` over pairs."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLED):
        chosen = draw.integers(len(truth), size=len(truth))
        found.append(_rank([guess[i] for i in chosen], [truth[i] for i in chosen]))
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def _within(guess: Sequence[float], rows: list[Row]) -> float:
    """Mean over teachers of the rank correlation among their students: what someone with one teacher chooses by."""
    by_teacher = groupby(zip(guess, rows, strict=True), key=lambda both: both[1].outcome.teacher)
    return statistics.mean(
        _rank([g for g, _ in of], [row.test for _, row in of]) for of in (list(group) for _, group in by_teacher)
    )


def _lost(guess: Sequence[float], rows: list[Row]) -> float:
    """Mean over teachers of how far the student chosen by `guess` stays behind the best, in points."""
    by_teacher = groupby(zip(guess, rows, strict=True), key=lambda both: both[1].outcome.teacher)
    lost = []
    for _, group in by_teacher:
        of = list(group)
        lost.append(max(row.test for _, row in of) - max(of, key=lambda both: both[0])[1].test)
    return 100 * statistics.mean(lost)


def _guesses(rows: list[Row], calibration: Calibration) -> dict[str, list[float]]:
    """The prediction in three ways of leaving out, what was there before it, and each signal as it is."""
    found = {"**prediction, pair left out**": [row.predicted for row in rows]}
    for key in ("student", "teacher"):
        found[f"prediction, {key} left out"] = [guess for guess, _ in predicting.left_out(calibration.pairs, key)]
    first = predicting.left_out(calibration.pairs, used=CANDIDATES["first version"])
    found["first version, pair left out"] = [guess for guess, _ in first]
    return found | _signals(rows)


def _signals(rows: list[Row]) -> dict[str, list[float]]:
    return {
        f"{says}{' (baseline)' if name in TRIVIAL else ''}": [getattr(row.outcome.signals, name) for row in rows]
        for name, says in MEANS.items()
    }


def report(rows: list[Row], unseen: list[Row], calibration: Calibration, attacked: int) -> str:
    outcomes = [row.outcome for row in rows]
    teachers, students = ({getattr(row.outcome, of) for row in rows} for of in ("teacher", "student"))
    lines = [
        f"# Does a probe predict the full run? {len(rows)} pairs on digits, {calibration.date}",
        "",
        f"{len(teachers)} teachers x {len(students)} students at {calibration.threat}, RRM, full runs with "
        f"{len(calibration.seeds)} seeds ({calibration.train.epochs:g} epochs); one probe each, "
        f"{calibration.share:.0%} of the steps, seed {calibration.probe_seed}.",
        "Outcome: robust accuracy of the full run under PGD-20 on all test images, mean over its seeds. "
        "Predictions are fitted on validation outcomes of the other pairs; no test image entered them.",
        "",
        *_chosen(calibration),
        "## Rank correlation with the outcome (Spearman)",
        "",
        "Interval: 95 % bootstrap over pairs, which share teachers and students, so it is somewhat too narrow. "
        "Within a teacher: mean over teachers of the correlation among students. Lost: how far the student chosen "
        "by it is behind the teacher's best one, mean over teachers.",
        "",
        *_ranked(_guesses(rows, calibration), rows),
        *_noise(rows, attacked),
        *_errors(rows),
        "The same for teachers of which no pair is in the fit (what `predict` says for a new teacher): "
        + _errors(predicted(calibration, outcomes, new_teacher=True))[0].partition(" A probe")[0],
        "",
        "## Fresh students: those that neither the fit nor the choice of signals has seen",
        "",
        f"{len(unseen)} pairs, one full run each, trained after the signals were chosen.",
        "",
        *_ranked(_unseen(unseen, calibration), unseen),
        *_errors(unseen),
        "## All pairs",
        "",
        *_pairs([*rows, *unseen]),
        *_birth(calibration),
    ]
    return "\n".join(lines)


def _chosen(calibration: Calibration) -> list[str]:
    """How the signals of the fit were chosen, on the validation split alone."""
    then = tuple(
        pair if number < CHOSEN_WITH else pair.model_copy(update={"robust": pair.robust[:1]})
        for number, pair in enumerate(calibration.pairs)
    )
    lines = [
        "## Choice of signals, on the validation split",
        "",
        "The first version's signals were fixed before the first full run (known were the accuracies of five of these "
        "students of the first teacher, from transfer-digits-choice-apgd). Its predictions were poor; full runs often "
        "ended with a head that had not learned, and the student's own head was added. The first version's test "
        "figures were in sight then, so fresh students were trained afterwards. The set was chosen by the "
        f"leave-one-pair-out error against validation outcomes when there were one full run of each pair and a "
        f"second of {CHOSEN_WITH}: the fewest signals within half a point of the least error. It was not chosen again "
        "with all runs, because the fresh students' test figures were known by then.",
        "",
        "| signals of the fit | mean absolute error, points: when chosen | all runs | rank correlation, all runs |",
        "| --- | --- | --- | --- |",
    ]
    for name, used in CANDIDATES.items():
        first, _ = _left_out_error(then, used)
        off, rank = _left_out_error(calibration.pairs, used)
        shipped = " (shipped)" if used == predicting.USED else ""
        lines.append(f"| {name}{shipped}: {', '.join(used)} | {first:.1f} | {off:.1f} | {rank:+.2f} |")
    plain = [f"{_left_out_error(pairs, ())[0]:.1f}" for pairs in (then, calibration.pairs)]
    return [*lines, f"| none: the mean of the other pairs | {plain[0]} | {plain[1]} | |", ""]


def _left_out_error(pairs: tuple[MeasuredPair, ...], used: tuple[str, ...]) -> tuple[float, float]:
    """Mean absolute error in points and rank correlation, pair left out; without signals, of the others' mean."""
    truth = [statistics.mean(pair.robust) for pair in pairs]
    if used:
        guess = [guess for guess, _ in predicting.left_out(pairs, used=used)]
    else:
        guess = [(sum(truth) - t) / (len(truth) - 1) for t in truth]
    return 100 * statistics.mean(abs(g - t) for g, t in zip(guess, truth, strict=True)), _rank(guess, truth)


def _unseen(rows: list[Row], calibration: Calibration) -> dict[str, list[float]]:
    first = [predicting.fitted(calibration.pairs, row.outcome.signals, CANDIDATES["first version"]) for row in rows]
    found = {"**prediction**": [row.predicted for row in rows], "first version": [guess for guess, _ in first]}
    return found | _signals(rows)


def _ranked(guesses: dict[str, list[float]], rows: list[Row]) -> list[str]:
    test = [row.test for row in rows]
    lines = ["| ranked by | all pairs | within a teacher | lost, points |", "| --- | --- | --- | --- |"]
    for name, guess in guesses.items():
        low, high = _interval(guess, test)
        lines.append(
            f"| {name} | {_rank(guess, test):+.2f} ({low:+.2f} to {high:+.2f}) | {_within(guess, rows):+.2f} "
            f"| {_lost(guess, rows):.1f} |"
        )
    return [*lines, ""]


def _noise(rows: list[Row], attacked: int) -> list[str]:
    """What no predictor can know (the seed), and whether AutoAttack ranks as PGD-20 does."""
    lines, runs = [], list(zip(*(row.outcome.test for row in rows), strict=True))
    if len(runs) > 1:
        gap = statistics.mean(abs(a - b) for a, b in zip(runs[0], runs[1], strict=True))
        lines += [
            f"Two full runs of a pair that differ in the seed alone agree to {_rank(runs[0], runs[1]):+.2f} and are "
            f"{100 * gap:.1f} points apart in the mean: no predictor can do much better than that.",
            "",
        ]
    judged = [(row, row.outcome.autoattack) for row in rows if row.outcome.autoattack is not None]
    if judged:
        strong = [found for _, found in judged]
        lines += [
            f"AutoAttack on the first {attacked} test images, students of {judged[0][0].outcome.teacher}, seed 0: "
            + ", ".join(f"{row.outcome.student} {found:.2f}" for row, found in judged)
            + f". Rank correlation with the prediction {_rank([row.predicted for row, _ in judged], strong):+.2f}, "
            f"with PGD-20 of the same run {_rank([row.outcome.test[0] for row, _ in judged], strong):+.2f}.",
            "",
        ]
    return lines


def _errors(rows: list[Row]) -> list[str]:
    off = statistics.mean(abs(row.predicted - row.test) for row in rows)
    runs = [(row.interval, run) for row in rows for run in row.outcome.test]
    inside = sum(low <= run <= high for (low, high), run in runs)
    width = statistics.mean(high - low for (low, high), _ in runs)
    probes, full = (sum(getattr(row.outcome, name) for row in rows) for name in ("probe_seconds", "run_seconds"))
    return [
        f"Mean absolute error {100 * off:.1f} points. The {predicting.COVERAGE:.0%} intervals, {100 * width:.0f} "
        f"points wide in the mean, hold {inside} of {len(runs)} test outcomes ({inside / len(runs):.0%}). A probe "
        f"costs {probes / full:.0%} of the full run's seconds, measuring included.",
        "",
    ]


def _pairs(rows: list[Row]) -> list[str]:
    lines = [
        "| teacher | student | teacher, PGD-10 | probe, PGD-10 | own head | cosine | cosine, attacked | parameters | "
        "predicted (interval) | measured, each seed | clean |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        o, s = row.outcome, row.outcome.signals
        lines.append(
            f"| {o.teacher} | {o.student} | {s.teacher_robust:.3f} | {s.robust:.3f} | {s.own_clean:.3f} "
            f"| {s.alignment:.3f} | {s.attacked_alignment:.3f} | {s.parameters:.2f} "
            f"| {row.predicted:.2f} ({row.interval[0]:.2f} to {row.interval[1]:.2f}) "
            f"| {', '.join(f'{run:.3f}' for run in o.test)} | {statistics.mean(o.clean):.3f} |"
        )
    return [*lines, ""]


def _birth(calibration: Calibration) -> list[str]:
    return [
        "Robust accuracy is an upper bound found by attacking.",
        "",
        f"Hardware: {calibration.hardware}.",
        f"Versions: {', '.join(f'{name} {number}' for name, number in calibration.versions.items())}.",
        f"Command: `{calibration.command}`.",
        "",
        "",
    ]


def plot(rows: list[Row], unseen: list[Row], path: Path) -> None:
    """Predicted against measured, a colour a teacher; students nobody had seen are hollow."""
    with figure(path, title="Robust accuracy of the full run, PGD-20, test") as (axis,):
        axis.plot([0, 1], [0, 1], color="grey", linewidth=1)
        for number, teacher in enumerate(dict.fromkeys(row.outcome.teacher for row in rows)):
            for found, filled in ((rows, True), (unseen, False)):
                of = [row for row in found if row.outcome.teacher == teacher]
                centres = [row.predicted for row in of]
                spread = [[r.predicted - r.interval[0] for r in of], [r.interval[1] - r.predicted for r in of]]
                axis.errorbar(
                    centres, [row.test for row in of], xerr=spread, fmt="o", markersize=4, linewidth=0.4,
                    color=f"C{number}", fillstyle="full" if filled else "none", label=teacher if filled else None,
                )  # fmt: skip
        axis.set(xlabel="predicted without the pair, with interval", ylabel="measured", xlim=(0, 1), ylim=(0, 1))
        axis.legend(fontsize="small", frameon=False)
