"""Choosing a value: each point is a run, validation chooses, the test split only judges the best."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rrmsdk
from rrmsdk.errors import DataError, DivergedError, FieldError, MismatchError, MissingExtraError, SaveError
from rrmsdk.files import sha256
from rrmsdk.schema import value
from rrmsdk.schema.report import Report, wilson
from rrmsdk.schema.sweep import Sweep, read_range

LAMBDA = "method.ce_weight"
FIELDS = {
    "teacher": "hub:digits-cnn-linf",
    "student": {"arch": "cnn", "width_mult": 0.25, "width": "teacher"},
    "data": {"name": "digits", "validation": 0.1},
    "threat": {"norm": "linf", "eps": "1/10"},
    "method": {"name": "rrm"},
    "train": {"epochs": 0.5, "batch": 64, "lr": 0.05, "augment": "crop", "validate_every": 0},
    "verify": {"attack": "pgd", "steps": 2, "images": 30},
}


def _sweep(out: Path, values="5e-3,0.5", field=LAMBDA, fields=FIELDS, **settings) -> Sweep:
    return rrmsdk.sweep(fields, field, values, out=out, quiet=True, **{"report": 0} | settings)


def _weights(folder: Path) -> dict[str, tuple[int, str]]:
    """Inode and hash of each point's weights: a file written again has another inode."""
    found = folder.glob("points/*/model.safetensors")
    return {path.parent.name: (path.stat().st_ino, sha256(path)) for path in found}


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Sweep:
    return _sweep(tmp_path_factory.mktemp("swept"), "log:5e-5..5e-1:3", report=2)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("log:5e-5..5e-1:5", (5e-5, 5e-4, 5e-3, 5e-2, 5e-1)),
        ("lin:0..1:3", (0.0, 0.5, 1.0)),
        ("lin:0.12345678..0.9999999:2", (0.12345678, 0.9999999)),
        ("5e-5,5e-3", (5e-5, 5e-3)),
        ("cosine,relative_l2", ("cosine", "relative_l2")),
        ("true,false", (True, False)),
        ("[1, 2], [3]", ([1, 2], [3])),
        ("hub:a@1, resnet18", ("hub:a@1", "resnet18")),
        ((1, "a"), (1, "a")),
    ],
)
def test_values_are_read_as_they_are_typed(text, values):
    assert read_range(text).values() == values


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("log:0..1:3", "a log axis has no 0"),
        ("lin:2..1:3", "2..1 does not go up"),
        ("log:1e-3:4", "log:LOW..HIGH:COUNT"),
        ("lin:0..1:1", "greater than or equal to 2"),
        ("log:1e-3..x:4", "'high' = 'x'"),
        ("", "at least 1 item"),
    ],
)
def test_values_that_cannot_be_read_say_what_to_type(text, says):
    with pytest.raises(FieldError, match=says):
        read_range(text)


@pytest.mark.parametrize(
    ("field", "values", "says"),
    [
        ("method.ce_wieght", "1,2", "Did you mean 'ce_weight'"),
        ("train.epoch", "1,2", "Did you mean 'epochs'"),
        ("optimiser", "1,2", "unknown field 'optimiser'"),
        ("seed.first", "1,2", "'seed' is 0, which has no fields"),
        (LAMBDA, "0.1,-1", "greater than or equal to 0"),
        ("train.optimizer", "sgd,adamv", "Did you mean 'adamw'"),
        (LAMBDA, "log:1e-3..1", "needs how many values"),
        ("data.seed", "0,1", "judged on the same images"),
        ("threat.eps", "1/10,1/5", "judged on the same images"),
        ("notes", "a,b", "changes nothing about the student"),
        (["seed", LAMBDA], ["0,1"], "2 fields .* but 1 lists"),
        (["seed", "seed"], ["0", "1"], "given twice"),
        (["seed", LAMBDA, "train.lr"], ["0", "1", "1"], "--search optuna"),
    ],
)
def test_the_door_reads_every_point_before_anything_is_trained(field, values, says, tmp_path):
    with pytest.raises(FieldError, match=says):
        _sweep(tmp_path / "out", values, field)
    assert not (tmp_path / "out").exists()


def test_a_field_of_whole_numbers_takes_the_whole_numbers_of_a_span():
    from rrmsdk.sweeping import points

    asked = Sweep(recipe=FIELDS, ranges={"train.batch": read_range("log:8..64:5")}, screening={"attack": "pgd"})
    assert [task.recipe.train.batch for task in points.grid(asked)] == [8, 13, 23, 38, 64]


def test_without_held_out_images_there_is_nothing_to_choose_on(tmp_path):
    with pytest.raises(DataError, match=r"data.validation = 0 leaves no images to choose on"):
        _sweep(tmp_path, fields=FIELDS | {"data": {"name": "digits", "validation": 0}})


def test_points_are_compared_by_pgd_20_on_the_whole_validation_split(swept):
    for point in swept.points:
        report = value.read(Report, swept.folder(point) / "screening.json")
        assert (report.split, report.attack, report.images) == ("validation", "pgd-20", report.data.validation)
        assert report.weights_sha256 == sha256(swept.folder(point) / "model.safetensors")
        assert (point.screened.clean, point.screened.robust) == (report.clean, report.robust)
        right = round(report.clean * report.images)
        assert point.screened.clean_interval == wilson(right, report.images)


def test_only_the_best_two_are_attacked_on_the_test_split(swept):
    for place, point in enumerate(swept.ranked()):
        report = swept.folder(point) / "report.json"
        assert report.exists() == (place < 2)
        if place < 2:
            assert value.read(Report, report).split == point.reported.split == "test"


@pytest.mark.parametrize("by", ["mean", "robust", "clean"])
def test_best_is_the_highest_score_on_validation(swept, by):
    def score(point):
        clean, robust = point.screened.clean, point.screened.robust
        return {"mean": (clean + robust) / 2, "robust": robust, "clean": clean}[by]

    again = swept.model_copy(update={"by": by})
    assert score(again.best) == max(score(point) for point in swept.points)


def test_the_record_on_the_disk_is_what_came_back(swept):
    assert value.read(Sweep, swept.path / "sweep.json").model_copy(update={"path": swept.path}) == swept


def test_the_table_holds_each_value_with_its_intervals(swept):
    rows = list(csv.DictReader((swept.path / "sweep.csv").read_text().splitlines()))
    assert [float(row[LAMBDA]) for row in rows] == [5e-5, 5e-3, 0.5]
    for row, point in zip(rows, swept.points, strict=True):
        found = float(row["validation_robust_low"]), float(row["validation_robust_high"])
        assert found == point.screened.robust_interval


def test_points_that_come_to_one_recipe_are_one_run(tmp_path):
    assert [point.values for point in _sweep(tmp_path, "5e-3,0.005").points] == [{LAMBDA: 5e-3}]


@pytest.mark.slow
def test_more_values_leave_the_finished_points_as_they_are(tmp_path):
    _sweep(tmp_path, "5e-3")
    before = _weights(tmp_path)
    again = _sweep(tmp_path, "5e-4,5e-3")
    after = _weights(tmp_path)
    assert [point.values[LAMBDA] for point in again.points] == [5e-4, 5e-3]
    assert before.items() < after.items()


def test_other_values_are_added_to_those_that_are_there(tmp_path):
    first = _sweep(tmp_path, "5e-3", report=1)
    both = _sweep(tmp_path, "0.5")
    assert [point.values[LAMBDA] for point in both.points] == [0.5, 5e-3]
    assert both.points[1] == first.points[0]
    assert both.points[1].reported is not None


@pytest.mark.slow
def test_the_best_is_attacked_again_where_the_recipe_asks_for_another_attack(tmp_path):
    def attacked(**verify) -> tuple[Report, int]:
        swept = _sweep(tmp_path, "5e-3", fields=FIELDS | {"verify": FIELDS["verify"] | verify}, report=1)
        path = swept.folder(swept.best) / "report.json"
        return value.read(Report, path), path.stat().st_mtime_ns

    first, written = attacked()
    assert attacked() == (first, written)
    assert attacked(restarts=3)[0].attack == "pgd-2x3"
    assert attacked(attack="apgd", steps=2, restarts=1)[0].attack == "apgd-2x1"
    assert attacked(attack="apgd", steps=4, restarts=1)[0].attack == "apgd-4x1"


@pytest.mark.slow
def test_two_fields_make_a_grid(tmp_path):
    swept = _sweep(tmp_path, ["0,1", "cosine,relative_l2"], ["seed", "method.distance"])
    assert [tuple(point.values.values()) for point in swept.points] == [
        (0, "cosine"), (0, "relative_l2"), (1, "cosine"), (1, "relative_l2"),
    ]  # fmt: skip
    assert len({point.weights_sha256 for point in swept.points}) == 4


@pytest.mark.parametrize(
    ("method", "field", "values"), [("rrm", "train.batch", "32,64"), ("mixacm", "method.mixup", "true,false")]
)
def test_values_that_need_a_feature_bank_each_are_refused_where_one_folder_is_named(method, field, values, tmp_path):
    bank = {"folder": str(tmp_path / "bank")}
    fields = FIELDS | {"method": {"name": method}, "train": FIELDS["train"] | {"bank": bank}}
    with pytest.raises(FieldError, match=f"{field}: each value needs a feature bank of its own.*Leave the folder out"):
        _sweep(tmp_path / "sweep", values, field, fields)
    assert not list(tmp_path.iterdir())


def test_values_that_share_a_feature_bank_fill_one_folder(tmp_path):
    fields = FIELDS | {"train": FIELDS["train"] | {"epochs": 0.2, "bank": {"folder": str(tmp_path / "bank")}}}
    swept = _sweep(tmp_path / "sweep", "5e-3,0.5", fields=fields)
    assert len(swept.points) == 2
    assert (tmp_path / "bank" / "key.json").is_file()


def test_a_folder_of_another_recipe_is_refused(tmp_path):
    _sweep(tmp_path, "5e-3")
    other = FIELDS | {"train": FIELDS["train"] | {"lr": 0.01}}
    with pytest.raises(MismatchError, match=r"train.lr 0.05 there, 0.01 asked"):
        _sweep(tmp_path, "5e-3", fields=other)
    with pytest.raises(MismatchError, match=r"sweep of method.ce_weight by mean, asked is grid of seed"):
        _sweep(tmp_path, "0", "seed")


def test_a_folder_that_another_process_sweeps_in_is_refused(tmp_path):
    from rrmsdk.sweeping import folder

    with folder.held(tmp_path), pytest.raises(SaveError, match="another process is sweeping in"):
        _sweep(tmp_path)


def test_a_point_that_diverges_is_written_down_and_the_sweep_goes_on(tmp_path):
    swept = _sweep(tmp_path, "1e30,0.05", "train.lr")
    lost, kept = swept.points
    assert lost.screened is None
    assert "loss" in lost.says
    assert swept.ranked() == (kept,)
    assert (tmp_path / "tradeoff.svg").exists()


def test_where_every_point_diverges_it_is_an_error(tmp_path):
    with pytest.raises(DivergedError, match=r"all 2 points of .* diverged. lr-1e\+30: "):
        _sweep(tmp_path, "1e30,1e31", "train.lr")
    assert len(value.read(Sweep, tmp_path / "sweep.json").points) == 2


def test_without_matplotlib_it_sweeps_and_says_which_extra_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    rrmsdk.sweep(FIELDS, LAMBDA, "5e-3", report=0, out=tmp_path)
    assert "pip install 'rrmsdk[report]'" in capsys.readouterr().err
    assert (tmp_path / "sweep.csv").exists()
    assert not (tmp_path / "tradeoff.svg").exists()


def _command(recipe: Path, out: Path, *more: str) -> list[str]:
    asked = ["sweep", str(recipe), "-f", LAMBDA, "-v", "log:5e-4..5e-1:4", "--report", "1", "-o", str(out), *more]
    return [sys.executable, "-m", "rrmsdk", *asked]


def _going(out: Path) -> list[int]:
    """Processes that work in the folder: those whose command line names it, and their children."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            found[int(status.parent.name)] = (parent, (status.parent / "cmdline").read_text())
        except OSError:
            continue
    own = {pid for pid, (_, command) in found.items() if str(out) in command}
    return [pid for pid, (parent, _) in found.items() if pid in own or parent in own]


def _alive(pids: list[int]) -> list[int]:
    """Those that still run: a zombie does not."""
    states = {pid: Path(f"/proc/{pid}/stat") for pid in pids}
    return [p for p, stat in states.items() if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes by /proc")
def test_a_sweep_killed_with_sigkill_leaves_no_process_and_the_same_command_ends_with_the_same_bits(tmp_path):
    recipe = tmp_path / "recipe.toml"
    value.write(value.parse(rrmsdk.Recipe, FIELDS), recipe)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = _command(recipe, tmp_path / "killed", "--jobs", "2")
    going = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while going.poll() is None and not _weights(tmp_path / "killed"):
        time.sleep(0.01)  # waits for a file of another process
    workers = _going(tmp_path / "killed")
    going.send_signal(signal.SIGKILL)
    assert going.wait() == -signal.SIGKILL
    assert len(workers) >= 3  # itself and two
    until = time.monotonic() + 20
    while _alive(workers) and time.monotonic() < until:
        time.sleep(0.01)
    assert not _alive(workers)

    kept = _weights(tmp_path / "killed")
    assert 0 < len(kept) < 4
    done = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = _weights(tmp_path / "killed")
    assert kept.items() < after.items()

    straight = subprocess.run(_command(recipe, tmp_path / "straight"), env=environment, capture_output=True, text=True)
    assert straight.returncode == 0, straight.stderr
    assert {name: digest for name, (_, digest) in _weights(tmp_path / "straight").items()} == {
        name: digest for name, (_, digest) in after.items()
    }
    best = json.loads(done.stdout)["best"]
    assert f"{best} is the best" in straight.stdout
    assert "upper bound" in straight.stdout


SEARCHED = [LAMBDA, "train.batch", "method.distance"]
RANGES = ["log:5e-5..5e-1", "lin:32..64", "cosine,relative_l2"]


def _search(out: Path, trials: int) -> Sweep:
    return _sweep(out, RANGES, SEARCHED, search="optuna", trials=trials)


@pytest.mark.slow
def test_a_search_that_continues_proposes_what_it_would_have_proposed_at_once(tmp_path):
    pytest.importorskip("optuna")
    straight = _search(tmp_path / "straight", 3)
    _search(tmp_path / "twice", 2)
    before = _weights(tmp_path / "twice")
    twice = _search(tmp_path / "twice", 3)
    assert [point.values for point in twice.points] == [point.values for point in straight.points]
    assert before.items() < _weights(tmp_path / "twice").items()
    for point in twice.points:
        assert 5e-5 <= point.values[LAMBDA] <= 5e-1
        assert isinstance(point.values["train.batch"], int)


def test_a_trial_that_a_crash_left_running_is_run_under_its_own_number(tmp_path):
    optuna = pytest.importorskip("optuna")
    from rrmsdk.sweeping import search

    asked = Sweep(
        recipe=FIELDS, ranges={name: read_range(text) for name, text in zip(SEARCHED, RANGES, strict=True)},
        search="optuna", screening={"attack": "pgd"},
    )  # fmt: skip
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / search.DATABASE}")
    study = optuna.create_study(storage=storage, study_name=search.STUDY, direction="maximize")
    left = study.ask(fixed_distributions=search.space(asked))
    study.ask()  # killed before it had any value
    (point,) = _search(tmp_path, 1).points
    assert point.values[LAMBDA] == left.params[LAMBDA]
    states = [(trial.state.name, trial.value) for trial in study.trials]
    assert states == [("COMPLETE", point.screened.score("mean")), ("FAIL", None)]
    storage.remove_session()
    storage.engine.dispose()


def test_a_search_over_a_count_or_without_optuna_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(FieldError, match="leave :7 out"):
        _sweep(tmp_path / "out", "log:5e-5..5e-1:7", search="optuna")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rrmsdk\[optuna\]'"):
        _sweep(tmp_path / "out", "log:5e-5..5e-1", search="optuna")
    assert not (tmp_path / "out").exists()
