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

from rrmsdk.errors import IntegrityError, SaveError
from rrmsdk.files import sha256
from rrmsdk.methods import KINDS
from rrmsdk.training import checkpoint, steps
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
    spec = {"epochs": 0.3, "lr": 0.01, "ema": 0.9}
    straight, first, second = (banked.training(method, **spec) for _ in range(3))
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


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    checkpoint.save(small.training(), tmp_path / "c")
    with pytest.raises(IntegrityError, match="is no checkpoint of this run"):
        checkpoint.restore(small.training(arch="resnet14"), tmp_path / "c")
