"""Will it transfer? A tiny probe on digits, the shipped calibration, and what is said outside of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import rrmsdk
from rrmsdk.predicting import SHIPPED, USED, forecast, left_out
from rrmsdk.schema import value
from rrmsdk.schema.prediction import Calibration, Prediction
from rrmsdk.schema.recipe import BankSpec, TrainSpec

TEACHER = "hub:digits-cnn-linf"
STUDENT = {"arch": "resnet14", "width_mult": 0.25, "width": "teacher"}
DATA = {"name": "digits", "validation": 0.1}
TRAIN = {"epochs": 2, "batch": 64, "augment": "crop"}


def _tiny(seed: int = 0, **settings) -> Prediction:
    return rrmsdk.predict(TEACHER, STUDENT, DATA, train=TRAIN, seed=seed, quiet=True, **{"steps": 6, **settings})


@pytest.fixture(scope="module")
def tiny() -> Prediction:
    return _tiny()


@pytest.fixture(scope="module")
def shipped() -> Calibration:
    return value.read(Calibration, SHIPPED)


def test_the_interval_contains_its_centre(tiny):
    assert tiny.interval[0] <= tiny.robust <= tiny.interval[1]


def test_the_same_seed_gives_the_same_prediction(tiny):
    assert _tiny().model_dump(exclude={"seconds"}) == tiny.model_dump(exclude={"seconds"})


@pytest.mark.slow
def test_another_seed_gives_another_probe(tiny):
    assert _tiny(seed=1).signals != tiny.signals


def test_a_probe_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _tiny(steps=2)
    assert not [*tmp_path.iterdir()]


def test_out_keeps_the_prediction(tmp_path):
    found = _tiny(steps=2, out=tmp_path / "p")
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["prediction.json"]
    assert value.read(Prediction, tmp_path / "p" / "prediction.json") == found


def test_settings_unlike_the_calibration_are_named_and_leave_no_interval(tiny):
    assert not tiny.calibrated
    assert tiny.interval == (0.0, 1.0)
    assert "train.epochs is 2.0 here, 30.0 in the calibration" in tiny.reasons
    assert "not calibrated here" in tiny.summary()


@pytest.mark.parametrize(
    ("data", "train", "says"),
    [
        ({"fraction": 0.15}, {}, "194 images are trained on here, 1294 in the calibration"),
        ({}, {"ema": 0.99}, "train.ema is 0.99 here, None in the calibration"),
        ({}, {"swa_from": 0.5}, "train.swa_from is 0.5 here, None in the calibration"),
        ({}, {"accumulate": 4}, "train.accumulate is 4 here, 1 in the calibration"),
        ({}, {"bank": BankSpec(epochs=1)}, "train.bank.epochs is 1 here, None in the calibration"),
    ],
)
def test_a_part_of_the_data_or_an_average_is_unlike_the_calibration(data, train, says, shipped):
    full = shipped.train.model_copy(update=train)
    found = rrmsdk.predict(TEACHER, STUDENT, DATA | data, train=full, steps=2, quiet=True)
    assert not found.calibrated
    assert says in found.reasons


def test_the_settings_of_the_calibration_give_an_interval(shipped):
    found = rrmsdk.predict(TEACHER, STUDENT, DATA, train=shipped.train, quiet=True)
    assert found.calibrated
    assert found.steps == round(shipped.share * found.total)
    assert 0 < found.interval[1] - found.interval[0] < 1


@pytest.mark.parametrize("name", USED)
def test_a_signal_outside_the_calibration_widens_the_interval_and_is_named(shipped, name):
    # From the middle outwards, so that neither end is cut off at 0 or 1.
    among = sorted(shipped.pairs, key=lambda pair: pair.robust[0])[len(shipped.pairs) // 2].signals
    least, most = (pick(getattr(pair.signals, name) for pair in shipped.pairs) for pick in (min, max))
    outside = min(1.0, most + 0.2) if most < 0.9 else least - 0.2
    _, (low, high), inside_says = forecast(among, shipped)
    centre, (far_low, far_high), says = forecast(among.model_copy(update={name: outside}), shipped)
    assert not inside_says
    assert len(says) == 1
    assert max(far_high - centre, centre - far_low) > (high - low) / 2


def test_a_teacher_the_calibration_does_not_know_has_a_wider_interval(shipped):
    among = sorted(shipped.pairs, key=lambda pair: pair.robust[0])[len(shipped.pairs) // 2].signals
    centre, (low, high), _ = forecast(among, shipped)
    same, (new_low, new_high), says = forecast(among, shipped, new_teacher=True)
    assert same == centre
    assert new_high - new_low > high - low
    assert says[0].startswith("the teacher is not in the calibration")


def test_a_prediction_made_without_a_pair_does_not_depend_on_its_outcome(shipped):
    first, *rest = shipped.pairs
    changed = first.model_copy(update={"robust": (1.0 - first.robust[0],)})
    assert left_out([changed, *rest])[0] == left_out([first, *rest])[0]


def test_without_a_teacher_none_of_its_pairs_counts(shipped):
    first = shipped.pairs[0]
    changed = [
        pair.model_copy(update={"robust": (1.0 - pair.robust[0],)}) if pair.teacher == first.teacher else pair
        for pair in shipped.pairs
    ]
    assert left_out(changed, "teacher")[0] == left_out(shipped.pairs, "teacher")[0]
    assert left_out(changed)[0] != left_out(shipped.pairs)[0]


def test_the_shipped_calibration_says_where_it_comes_from(shipped):
    assert shipped.command.startswith("python benchmarks/predict.py")
    assert shipped.hardware
    assert shipped.versions["torch"]
    assert shipped.probe_seed not in shipped.seeds
    (result,) = Path(__file__).parents[1].glob(f"benchmarks/results/predict-digits-pgd_*_{shipped.date}.md")
    assert f"{len(shipped.pairs)} pairs" in result.read_text()


def test_an_unknown_student_is_told_its_near_matches():
    with pytest.raises(rrmsdk.RefError, match="resnet14"):
        rrmsdk.predict(TEACHER, "resnet41", DATA, train=TRAIN, quiet=True)


def test_a_method_that_does_not_match_embeddings_is_refused():
    with pytest.raises(rrmsdk.MismatchError, match="Use method 'rrm'"):
        rrmsdk.predict(TEACHER, STUDENT, DATA, method="natural", train=TRAIN, quiet=True)


def test_two_budgets_are_one_too_many():
    with pytest.raises(rrmsdk.FieldError, match="give one"):
        _tiny(steps=3, seconds=1.0)


def test_a_probe_longer_than_the_full_run_is_refused():
    with pytest.raises(rrmsdk.FieldError, match="steps = 41: a probe has 2 to 40 steps"):
        _tiny(steps=41)


@pytest.mark.slow
def test_a_budget_in_seconds_buys_at_most_the_full_run():
    assert _tiny(steps=None, seconds=1e6).steps == 40
    assert _tiny(steps=None, seconds=1e-6).steps == 2


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_that_buys_nothing_is_refused(seconds):
    with pytest.raises(rrmsdk.FieldError, match=f"seconds = {seconds:g}: give a number above 0"):
        _tiny(steps=None, seconds=seconds)


@pytest.mark.parametrize("budget", [{}, {"seconds": 1.0}])
def test_a_full_run_of_one_step_has_no_probe(budget):
    with pytest.raises(rrmsdk.FieldError, match="the full run has 1 step, and a probe of it at least 2; raise train"):
        rrmsdk.predict(TEACHER, STUDENT, DATA, train=TRAIN | {"epochs": 0.01}, quiet=True, **budget)


@pytest.mark.slow
def test_the_command_line_prints_the_prediction_as_json():
    asked = f"predict -t {TEACHER} --student resnet14 -d digits --steps 2 -s train.epochs=1 -s student.width_mult=0.25"
    done = subprocess.run([sys.executable, "-m", "rrmsdk", *asked.split(), "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["student"] == "resnet14@0.25"
    assert told["steps"] == 2


@pytest.mark.slow
def test_the_command_line_says_one_sentence_and_the_signals():
    asked = f"predict -t {TEACHER} --student resnet14 -d digits --steps 2 -s train.epochs=1 -s student.width_mult=0.25"
    done = subprocess.run([sys.executable, "-m", "rrmsdk", *asked.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("resnet14@0.25 from hub:digits-cnn-linf on digits: not calibrated here")
    assert "cosine to the teacher, student attacked" in done.stdout


@pytest.mark.parametrize(
    "given", [{"kind": "multistep", "milestones": (24, 40)}, {"kind": "exponential", "gamma": 0.9}]
)
def test_a_probe_ends_where_the_schedule_of_the_full_run_ends(given):
    from rrmsdk.training.probe import shortened
    from rrmsdk.training.schedule import factor

    full = TrainSpec(schedule=given)
    short = shortened(full, 4800, 100, 960)
    assert factor(short.schedule, 959, 960, 100) == pytest.approx(factor(full.schedule, 4799, 4800, 100), rel=0.6)
