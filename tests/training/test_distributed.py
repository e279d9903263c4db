"""Several ranks train what one does: the same losses, whatever their number, and after any of them has died."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import rrmsdk
from rrmsdk import launching
from rrmsdk.errors import DivergedError, MismatchError, MissingExtraError, RankError
from rrmsdk.files import sha256
from rrmsdk.schema import value
from rrmsdk.training import distributed
from tests.training import small

ROOT = Path(__file__).parents[2]
ALONE = {name: given for name, given in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
ENVIRONMENT = ALONE | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")

# At top level, and without `if __name__ == "__main__"`.
SCRIPT = """
import sys, rrmsdk
student = {"arch": "cnn", "width_mult": 0.25, "width": "teacher"}
train = {"epochs": int(sys.argv[3]), "batch": 64, "augment": "crop", "lr": 0.05, "ema": 0.9, "checkpoint_every": 2}
train |= {"validate_every": 0.5}
bundle = rrmsdk.transfer("hub:digits-cnn-linf", student, "digits", train=train, verify=None, out=sys.argv[2],
                         devices=int(sys.argv[1]), quiet=True)
print("rank", __import__("os").environ.get("RANK"), bundle.path)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("script") / "transfer.py"
    path.write_text(SCRIPT)
    return path


def _start(*command: str | Path | int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def _done(started: subprocess.Popen[str]) -> str:
    out, err = started.communicate(timeout=240)
    assert started.returncode == 0, err
    return out


def _steps(folder: Path, ranks: int, count: int) -> list[float]:
    """The losses of so many more steps in a folder, on so many ranks."""
    folder.mkdir(exist_ok=True)
    launcher = (*TORCHRUN, "--standalone", "--nproc-per-node", ranks) if ranks > 1 else (sys.executable,)
    _done(_start(*launcher, "-m", "tests.training.ranks", folder, count))
    return json.loads((folder / "losses.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of a hundred steps of one process."""
    folder = tmp_path_factory.mktemp("alone")
    return _steps(folder, 1, 100), torch.load(folder / "rank-0.pt")


def _apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.slow
def test_a_script_without_a_guard_trains_on_two_ranks_and_goes_on_once(script, tmp_path):
    out = _done(_start(sys.executable, script, 2, tmp_path / "run", 1))
    assert out == f"rank None {tmp_path / 'run'}\n"
    assert rrmsdk.load(tmp_path / "run").config.arch == "cnn"


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_several_ranks_have_the_losses_of_one_over_a_hundred_steps(ranks, alone, tmp_path):
    """Of 64 images three ranks take 22, 21 and 21."""
    losses, weights = alone
    assert len(losses) == 100
    assert _steps(tmp_path, ranks, 100) == pytest.approx(losses, rel=0, abs=1e-6)
    found = [torch.load(tmp_path / f"rank-{number}.pt") for number in range(ranks)]
    assert _apart(found[0], weights) < 1e-6
    assert all(_apart(one, other) == 0 for one, other in pairwise(found))


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(alone, tmp_path):
    losses = [loss for ranks, count in ((2, 40), (1, 30), (3, 30)) for loss in _steps(tmp_path, ranks, count)]
    assert losses == pytest.approx(alone[0], rel=0, abs=1e-6)


@pytest.fixture(scope="module")
def straight(script, tmp_path_factory) -> Path:
    """A run on two ranks that nothing happened to."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    _done(_start(sys.executable, script, 2, folder, 4))
    return folder


def _rank(number: int, folder: Path) -> int | None:
    """The process id of a rank that trains in `folder`, as Linux tells."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "environ").read_bytes().split(b"\0"), (process / "cmdline").read_bytes()
        except OSError:
            continue
        job = told[1].rpartition(b"rank('")[2].partition(b"'")[0].decode()
        if f"RANK={number}".encode() in told[0] and job:
            try:
                going = value.read(launching.Job, Path(job) / launching.JOB)
            except rrmsdk.DataError:
                continue
            if going.folder == str(folder):
                return int(process.name)
    return None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the rank to kill as Linux tells it")
@pytest.mark.parametrize("number", [0, 1])
def test_a_rank_killed_with_sigkill_restarts_and_the_weights_end_bitwise_equal(number, script, straight, tmp_path):
    killed, kept, seen = _start(sys.executable, script, 2, tmp_path / "run", 4), tmp_path / "run", set()
    while killed.poll() is None and len(seen) < 4:
        if (path := kept / "checkpoint.safetensors").exists():
            seen.add(path.stat().st_ino)
    process = _rank(number, kept)
    assert process is not None
    os.kill(process, signal.SIGKILL)
    _, err = killed.communicate(timeout=240)
    assert killed.returncode == 0, err
    assert "exitcode: -9" in err
    for name in ("last.safetensors", "best.safetensors", "model.safetensors"):
        assert sha256(kept / name) == sha256(straight / name)


@pytest.mark.slow
def test_two_machines_under_torchrun_end_with_the_weights_of_two_local_ranks(script, straight, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agent = (*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}")
    agents = [_start(*agent, "--local-addr=127.0.0.1", script, 1, tmp_path / "run", 4) for _ in range(2)]
    said = sorted(_done(one) for one in agents)
    assert said == [f"rank {number} {tmp_path / 'run'}\n" for number in (0, 1)]
    assert sha256(tmp_path / "run" / "last.safetensors") == sha256(straight / "last.safetensors")


OWN_GROUP = """
import sys
import torch.distributed as dist
import rrmsdk
dist.init_process_group("gloo")
rrmsdk.transfer(
    "hub:digits-cnn-linf", {"arch": "cnn", "width_mult": 0.25, "width": "teacher"}, "digits", out=sys.argv[1],
    train={"epochs": 0.2, "batch": 64, "validate_every": 0}, verify={"attack": "pgd", "steps": 2, "images": 8},
    quiet=True,
)
print(f"rank {dist.get_rank()}", flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_the_first_rank_judges_alone_also_in_a_group_that_the_caller_has_made(tmp_path):
    (tmp_path / "own.py").write_text(OWN_GROUP)
    done = subprocess.run(
        [*TORCHRUN, "--standalone", "--nproc-per-node=2", tmp_path / "own.py", tmp_path / "run"], capture_output=True,
        text=True, timeout=180, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["rank 0", "rank 1"]
    assert (tmp_path / "run" / "report.json").is_file()


@pytest.mark.slow
def test_an_error_of_a_rank_is_raised_where_the_run_was_started(straight):
    recipe = value.read(rrmsdk.Recipe, straight / "run.toml")
    other = recipe.model_copy(update={"seed": 7})
    with pytest.raises(MismatchError, match=r"holds a run of another recipe \(seed 0 there, 7 asked\)"):
        rrmsdk.train(other, out=straight, attack=False, devices=2, quiet=True)


@pytest.mark.slow
def test_signals_are_handled_as_before_once_the_ranks_have_ended(straight):
    before = signal.getsignal(signal.SIGINT)
    recipe = value.read(rrmsdk.Recipe, straight / "run.toml")
    rrmsdk.train(recipe, out=straight, attack=False, devices=2, quiet=True)
    assert signal.getsignal(signal.SIGINT) is before


CARRYING = [
    MismatchError("a is 1, b is 2"),
    DivergedError("the loss is nan", Path("c")),
    MissingExtraError("timm", "x"),
]


@pytest.mark.parametrize("error", CARRYING, ids=lambda error: type(error).__name__)
def test_an_error_that_a_rank_leaves_is_found_with_what_it_carries(error, tmp_path):
    launching._leave(error, tmp_path / "error-1.json")
    found = launching._left(tmp_path)
    assert type(found) is type(error)
    assert (str(found), vars(found)) == (str(error), vars(error))


def test_an_error_that_is_not_ours_is_told_with_its_kind(tmp_path):
    launching._leave(KeyError("x"), tmp_path / "error-0.json")
    assert isinstance(found := launching._left(tmp_path), RankError)
    assert str(found) == "a rank failed: KeyError: 'x'"


class Own:
    """A method that no recipe describes."""

    def loss(self, pair, batch):
        return pair.student(batch.x).square().mean()


@pytest.mark.slow
def test_a_method_of_ones_own_goes_to_the_ranks(tmp_path):
    train = {"epochs": 0.5, "batch": 64, "augment": "crop"}
    bundle = rrmsdk.transfer(
        "hub:digits-cnn-linf", {"arch": "cnn", "width_mult": 0.25}, "digits", method=Own(), train=train, verify=None,
        out=tmp_path / "run", devices=2, quiet=True,
    )  # fmt: skip
    assert bundle.card.method == {"name": "tests.training.test_distributed.Own"}


class Written:
    """As if in the script that was started."""

    __module__ = "__main__"

    def loss(self, pair, batch):
        return pair.student(batch.x).square().mean()


def test_a_method_of_the_script_itself_is_refused_with_the_remedy(tmp_path):
    student = {"arch": "cnn", "width_mult": 0.25}
    with pytest.raises(MismatchError, match=r"method Written is written in the script itself.*torchrun"):
        rrmsdk.transfer(
            "hub:digits-cnn-linf", student, "digits", method=Written(), verify=None, out=tmp_path, devices=2
        )


def test_no_devices_are_refused(tmp_path):
    with pytest.raises(MismatchError, match="devices is 0; give 1 or more"):
        rrmsdk.transfer("hub:digits-cnn-linf", "cnn", "digits", verify=None, out=tmp_path, devices=0)


def test_an_incomplete_environment_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "1")
    with (
        pytest.raises(MismatchError, match=r"RANK is set, MASTER_ADDR not\. Start with torchrun"),
        distributed.joined(),
    ):
        pass


def test_batch_norm_synchronised_over_one_rank_is_plain_batch_norm():
    student = small.training("natural", sync_batch_norm=True).pair.student
    assert not any(isinstance(layer, torch.nn.SyncBatchNorm) for layer in student.modules())
