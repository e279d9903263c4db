"""A run that was stopped and continued ends with the bits of the run that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

import rrmsdk
from rrmsdk import data, teachers
from rrmsdk.errors import DivergedError, IntegrityError, MismatchError, SaveError
from rrmsdk.files import sha256
from rrmsdk.methods import KINDS
from rrmsdk.schema import value
from rrmsdk.schema.recipe import Recipe
from rrmsdk.training import checkpoint, folder, run, steps
from rrmsdk.training.epochs import Draft
from rrmsdk.training.run import BEST, CHECKPOINT, LAST
from rrmsdk.training.served import served
from tests.test_files import full_disk
from tests.training import banked, small

SETTINGS = [
    {"optimizer": "sgd"},
    {"optimizer": "adamw", "lr": 1e-3},
    {"ema": 0.9},
    {"swa_from": 0.3},
    {"precision": "bf16"},
    {"clip": 0.5, "nesterov": True, "channels_last": False},
    {"arch": "alexnet"},  # dropout draws from torch's own generator
]


METHODS = [
    *({"name": name} for name in KINDS if name != "iad2"),
    {"name": "free_at", "replays": 3},
    {"name": "free_at", "replays": 3, "reset": True},
    {"name": "igam", "begin": 0.2, "discriminator_every": 2},
    {"name": "mixacm", "unequal": "affine"},
    {"name": "awp", "base": {"name": "igdm", "base": "adaad"}, "warmup": 0.5},
]


def _bits(training: small.Training) -> dict[str, torch.Tensor]:
    """All that a step changes: the student, its average, what the method keeps, the optimiser."""
    moved = {"student": training.pair.student, "average": training.average, "companion": training.companion}
    kept = {f"{what}.{name}": entry for what, module in moved.items() if module is not None
            for name, entry in module.state_dict().items()}  # fmt: skip
    return kept | {
        f"optimizer.{number}.{name}": entry
        for number, state in training.optimizer.state_dict()["state"].items()
        for name, entry in state.items()
        if isinstance(entry, torch.Tensor)
    }


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.slow
def test_a_restored_run_ends_with_the_same_bits(settings, tmp_path):
    straight = small.training(epochs=0.5, **settings)
    for _ in steps(straight):
        pass

    first = small.training(epochs=0.5, **settings)
    for _ in islice(steps(first), 4):
        pass
    checkpoint.save(first, tmp_path / "c")
    second = small.training(epochs=0.5, **settings)
    torch.rand(7)  # whatever else draws from torch's generator does not matter
    checkpoint.restore(second, tmp_path / "c")
    assert second.done == 4
    for _ in steps(second):
        pass

    _same(straight, second)


def _same(one: small.Training, other: small.Training) -> None:
    ours, theirs = _bits(one), _bits(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.slow
def test_a_run_of_any_method_is_restored_to_the_same_bits(method, tmp_path):
    """In the middle of an epoch and of a replay; a look at validation, which gives the average statistics, between."""
    straight, first, second = (banked.training(method, epochs=0.3, lr=0.01, ema=0.9) for _ in range(3))
    losses = [step.loss.item() for step in steps(straight)]
    for _ in islice(steps(first), 4):
        pass
    served(first)
    checkpoint.save(first, tmp_path / "c")
    checkpoint.restore(second, tmp_path / "c")
    assert [step.loss.item() for step in steps(second)] == losses[4:]
    assert len(losses) == 6
    _same(straight, second)


def _go(folder: Path) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "tests.training.small", str(folder)], cwd=root, env=environment)


def test_a_run_killed_with_sigkill_and_started_again_ends_with_the_same_files(tmp_path):
    straight = _go(tmp_path / "straight")
    killed = _go(tmp_path / "killed")
    path, seen = tmp_path / "killed" / CHECKPOINT, set()
    while killed.poll() is None and len(seen) < 4:  # in the middle of the fourth write or the step after it
        if path.exists():
            seen.add(path.stat().st_ino)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / LAST).exists()
    assert _go(tmp_path / "killed").wait() == 0
    assert straight.wait() == 0
    for name in (LAST, BEST):
        assert sha256(tmp_path / "killed" / name) == sha256(tmp_path / "straight" / name)


def test_a_truncated_checkpoint_is_refused_and_says_what_to_do(tmp_path):
    training = small.training()
    checkpoint.save(training, tmp_path / "c")
    whole = (tmp_path / "c").read_bytes()
    (tmp_path / "c").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IntegrityError, match=r"is no checkpoint of this run: .*Delete it to start the run again"):
        checkpoint.restore(training, tmp_path / "c")


def test_a_full_disk_in_mid_save_keeps_the_last_checkpoint(tmp_path):
    training = small.training()
    checkpoint.save(training, tmp_path / "c")
    before = sha256(tmp_path / "c")
    with full_disk(), pytest.raises(SaveError, match="could not write"):
        checkpoint.save(training, tmp_path / "c")
    assert sha256(tmp_path / "c") == before


class Stops:
    """A method that fails at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def loss(self, pair, batch):
        if batch.step == self.step:
            raise ZeroDivisionError
        return pair.student(batch.x).square().mean()


RECIPE = {
    "teacher": "hub:digits-cnn-linf", "student": {"arch": "cnn", "width_mult": 0.25}, "threat": {"eps": "1/10"},
    "data": {"name": "digits", "validation": 0.1}, "method": {"name": "rrm"},
}  # fmt: skip


def _draft(place: Path, **fields) -> Draft:
    recipe, info = value.parse(Recipe, RECIPE), data.load(small.DATA).info
    made = folder.draft(place, recipe, small.training().pair.student.config, info, teachers.fetch(recipe.teachers))
    return Draft(recipe, made.card.model_copy(update=fields))


def test_a_run_does_not_go_on_with_other_images_or_another_teacher(tmp_path):
    """The folder or the name that a recipe gives may stand for something else by then."""
    held_out, kept = data.load(small.DATA).validation, _draft(tmp_path)
    going = small.training("natural", checkpoint_every=1)
    going.method = Stops(2)
    with pytest.raises(ZeroDivisionError):
        run(going, held_out, tmp_path, quiet=True, draft=kept)
    (taught,) = kept.card.teachers
    for field, other, name in (
        ("teachers", (taught.model_copy(update={"weights_sha256": "1" * 64}),), "teacher hub:digits-cnn-linf"),
        ("data", kept.card.data.model_copy(update={"fingerprint": "1" * 64}), "data"),
    ):
        says = rf"run with other images or teachers \({name} .{{12}}\.\.\. there, 1{{12}}\.\.\. asked\)\. Choose"
        with pytest.raises(MismatchError, match=says):
            run(small.training("natural"), held_out, tmp_path, quiet=True, draft=_draft(tmp_path, **{field: other}))
    going = small.training("natural", epochs=1)
    run(going, held_out, tmp_path, quiet=True, draft=kept)
    assert going.done == going.total


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    checkpoint.save(small.training(), tmp_path / "c")
    with pytest.raises(IntegrityError, match="is no checkpoint of this run"):
        checkpoint.restore(small.training(arch="resnet14"), tmp_path / "c")


@pytest.mark.parametrize("saved", [False, True])
def test_a_folder_is_another_recipes_as_long_as_nothing_was_saved_there(saved, tmp_path):
    """What was refused or diverged at its start is typed again with another field."""
    place, fields = tmp_path / "run", {
        "student": {"arch": "cnn", "width_mult": 0.25}, "data": small.DATA, "threat": small.THREAT,
        "method": {"name": "natural"}, "train": {"epochs": 0.1, "lr": 1e6, "validate_every": 0},
    }  # fmt: skip
    with pytest.raises(DivergedError):
        rrmsdk.train(fields | {"train": fields["train"] | {"epochs": 3.0}}, out=place, attack=False, quiet=True)
    assert (place / "run.toml").is_file()
    if saved:
        (place / CHECKPOINT).write_bytes(b"")
        with pytest.raises(MismatchError, match=r"another recipe \(train.epochs 3.0 there, 0.1 asked; train.lr"):
            rrmsdk.train(fields | {"train": fields["train"] | {"lr": 0.1}}, out=place, attack=False, quiet=True)
        return
    done = rrmsdk.train(fields | {"train": fields["train"] | {"lr": 0.1}}, out=place, attack=False, quiet=True)
    assert value.read(Recipe, done.path / "run.toml").train.lr == 0.1
