"""Kept epochs: whole bundles of the student as it was, whatever happens to the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rrmsdk
from rrmsdk import data
from rrmsdk.errors import FieldError, SaveError
from rrmsdk.files import sha256
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.recipe import Recipe, TrainSpec
from rrmsdk.training import epochs, folder
from tests.test_files import full_disk
from tests.training import small

RECIPE = {
    "name": "early", "notes": "A small one.", "student": {"arch": "cnn", "width_mult": 0.25},
    "data": {"name": "digits", "validation": 0.1}, "threat": {"eps": "1/10"}, "method": {"name": "natural"},
    "train": {"epochs": 3, "batch": 64, "augment": "crop", "keep_epochs": [1, 2]},
}  # fmt: skip


def go(folder: Path, **train) -> rrmsdk.Bundle:
    return rrmsdk.train(RECIPE | {"train": RECIPE["train"] | train}, out=folder, attack=False, quiet=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> rrmsdk.Bundle:
    return go(tmp_path_factory.mktemp("runs") / "early")


def test_each_epoch_that_is_asked_for_is_a_whole_bundle_that_says_which(run):
    assert sorted(path.name for path in (run.path / "epochs").iterdir()) == ["1", "2"]
    for epoch in (1, 2):
        card = bundles.read(run.path / "epochs" / str(epoch)).card
        assert (card.name, card.weights) == (f"early-epoch-{epoch}", f"epoch {epoch}")
        assert card.notes == f"A small one. Stopped after epoch {epoch} of 3."
        assert {"config.json", "model.safetensors", "recipe.toml"} == card.files.keys()


def test_the_weights_are_those_of_a_run_that_stops_there(tmp_path):
    stopped = go(tmp_path / "constant", schedule={"kind": "constant"})
    short = go(tmp_path / "short", schedule={"kind": "constant"}, epochs=2, keep_epochs=[])
    assert sha256(stopped.path / "epochs" / "2" / "model.safetensors") == sha256(short.weights)


@pytest.mark.slow
def test_of_a_run_that_averages_the_average_is_kept(tmp_path):
    train = {"schedule": {"kind": "constant"}, "ema": 0.9}
    stopped = go(tmp_path / "long", **train)
    short = go(tmp_path / "short", **train, epochs=2, keep_epochs=[])
    kept, last = load_file(stopped.path / "epochs" / "2" / "model.safetensors"), load_file(short.weights)
    # The statistics are of 100 batches, or as many as a run has.
    assert all(torch.equal(kept[name], last[name]) for name in last if name.endswith(("weight", "bias")))


def test_keeping_epochs_changes_no_bit_of_the_run(run, tmp_path):
    assert sha256(go(tmp_path / "plain", keep_epochs=[]).weights) == sha256(run.weights)


def test_the_runs_own_bundle_knows_nothing_of_its_epochs(run):
    assert not any(name.startswith("epochs") for name in run.card.files)
    assert bundles.read(run.path).card == run.card


def test_the_weights_are_stored_as_the_recipe_says(tmp_path):
    half = rrmsdk.train(RECIPE | {"store": "fp16"}, out=tmp_path / "half", attack=False, quiet=True)
    stored = load_file(bundles.read(half.path / "epochs" / "1").weights)
    assert {stored[name].dtype for name, _ in rrmsdk.load(half).named_parameters()} == {torch.float16}


def _start(folder: Path) -> subprocess.Popen[bytes]:
    code = "import json, sys, rrmsdk; rrmsdk.train(json.loads(sys.argv[1]), out=sys.argv[2], attack=False, quiet=True)"
    command = [sys.executable, "-c", code, json.dumps(RECIPE), str(folder)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], env=os.environ | {"OMP_NUM_THREADS": "1"})


def _killed_while_writing(folder: Path) -> bool:
    """Run until the bundle of epoch 1 is being written, and kill; whether it was in the middle of that."""
    beside = folder / "epochs" / ".1.part"
    going = _start(folder)
    while going.poll() is None and not (beside / "run.toml").exists():
        pass
    going.send_signal(signal.SIGKILL)
    going.wait()
    return beside.exists()


@pytest.mark.slow
def test_a_run_killed_while_it_writes_an_epoch_leaves_no_half_bundle_and_goes_on(run, tmp_path):
    folder = next(tmp_path / str(n) for n in range(5) if _killed_while_writing(tmp_path / str(n)))
    assert not (folder / "epochs" / "1").exists()
    with pytest.raises(rrmsdk.RefError, match="keeps no epochs"):
        rrmsdk.load(f"path:{folder}@epoch=1")
    again = go(folder)
    assert not (folder / "epochs" / ".1.part").exists()
    for name in (".", "epochs/1", "epochs/2"):
        assert sha256(bundles.read(again.path / name).weights) == sha256(run.path / name / "model.safetensors")


@pytest.mark.slow
def test_a_resumed_run_rewrites_no_epoch_that_is_there(tmp_path):
    folder = tmp_path / "run"
    going = _start(folder)
    while going.poll() is None and not (folder / "epochs" / "1").exists():
        pass
    going.send_signal(signal.SIGKILL)
    going.wait()
    before = {path: path.stat().st_mtime_ns for path in (folder / "epochs" / "1").iterdir()}
    go(folder)
    assert {path: path.stat().st_mtime_ns for path in (folder / "epochs" / "1").iterdir()} == before
    assert (folder / "epochs" / "2").is_dir()


def test_a_full_disk_leaves_no_half_epoch(tmp_path):
    training = small.training("natural", epochs=1.0, keep_epochs=(1,))
    training.done = training.per_epoch
    info = data.load(small.DATA).info
    draft = folder.draft(tmp_path, value.parse(Recipe, RECIPE), training.pair.student.config, info, ())
    with full_disk(), pytest.raises(SaveError, match="could not write"):
        epochs.keep(training, training.pair.student, tmp_path, draft)
    assert not (tmp_path / "epochs" / "1").exists()
    epochs.keep(training, training.pair.student, tmp_path, draft)
    assert bundles.read(tmp_path / "epochs" / "1").card.weights == "epoch 1"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"epochs": 20, "keep_epochs": [10, 30, 40]}, r"keep_epochs has \[30, 40\], but the run has 20 epochs"),
        ({"epochs": 2.5, "keep_epochs": [3]}, r"keep_epochs has \[3\], but the run has 2.5 epochs"),
        ({"epochs": 2, "keep_epochs": [0]}, r"'keep_epochs\.0' = 0"),
        ({"epochs": 2, "keep_epochs": [1.5]}, r"'keep_epochs\.0' = 1.5"),
    ],
)
def test_an_epoch_that_the_run_does_not_have_is_refused_at_the_door(fields, says):
    with pytest.raises(FieldError, match=says):
        value.parse(TrainSpec, fields)


def test_an_epoch_teaches_and_is_judged_and_pinned_by_its_name(run, tmp_path):
    early = f"path:{run.path}@epoch=1"
    judged = rrmsdk.verify(early, attack="pgd", steps=1, images=32, quiet=True)
    assert judged.path == run.path / "epochs" / "1"
    student = rrmsdk.transfer(
        early, {"arch": "cnn", "width_mult": 0.25}, {"name": "digits", "validation": 0.1},
        train={"epochs": 1, "batch": 64, "augment": "crop"}, verify=None, out=tmp_path / "student", quiet=True,
    )  # fmt: skip
    (teacher,) = student.card.teachers
    assert (teacher.ref, teacher.weights_sha256) == ("path:early@epoch=1", sha256(judged.weights))
    assert torch.isfinite(rrmsdk.load(student)(torch.rand(2, 1, 8, 8))).all()
