"""A judgement is shared by processes, killed, and continued: the report is the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rrmsdk
from rrmsdk.errors import MismatchError, SaveError
from rrmsdk.schema import bundle, value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.report import Report
from tests.test_files import full_disk

TEACHER = "hub:digits-cnn-linf"
SPEC = {"attack": "apgd", "steps": 20, "restarts": 3, "images": 40}


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> str:
    """The outcomes of one process that nobody disturbs."""
    return rrmsdk.verify(TEACHER, **SPEC, out=tmp_path_factory.mktemp("alone") / "b", quiet=True).report.outcomes


def command(folder: Path, **spec) -> list[str]:
    words = [f"--{name.replace('_', '-')}={given}" for name, given in ({"batch": 16} | spec).items()]
    return [sys.executable, "-m", "rrmsdk", "verify", str(folder), "--quiet", *words]


def started(folder: Path, **spec) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(folder, **spec), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip


def lines(folder: Path) -> list[bytes]:
    return [line for path in folder.glob(".verify-*/*.jsonl") for line in path.read_bytes().splitlines()[1:]]


def copied(folder: Path) -> Bundle:
    return rrmsdk.pull(TEACHER, out=folder)


def killed_after(folder: Path, count: int, **spec) -> int:
    """Start a judgement, kill all of it once the journal has so many lines more; gives the number that it has."""
    had, process = len(lines(folder)), started(folder, **spec)
    try:
        while process.poll() is None and len(lines(folder)) < had + count:
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return len(lines(folder))


@pytest.mark.slow
def test_a_judgement_that_was_killed_goes_on_and_gives_the_report_of_one_that_was_not(tmp_path, expected):
    bundle = copied(tmp_path / "b")
    kept = killed_after(bundle.path, 1, **SPEC)
    assert kept >= 1
    assert not (bundle.path / "report.json").exists() or bundle.report.attack != "apgd-20x3"
    told = rrmsdk.verify(bundle, **SPEC, quiet=True)
    assert told.report.outcomes == expected
    assert not list(bundle.path.glob(".verify-*"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_that_was_written_is_lost_in_ten_kills(tmp_path):
    spec = {"attack": "autoattack", "images": 40}
    expected = rrmsdk.verify(TEACHER, **spec, out=tmp_path / "alone", quiet=True).report.outcomes
    bundle, kept = copied(tmp_path / "b"), 0
    for number in range(10):
        now = killed_after(bundle.path, 1 + number % 3, **spec)
        if not list(bundle.path.glob(".verify-*")):  # it came to its end before it was killed
            break
        assert now >= kept
        kept = now
    assert rrmsdk.verify(bundle, **spec, quiet=True).report.outcomes == expected


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 3])
def test_so_many_processes_give_the_report_of_one(tmp_path, expected, devices):
    told = rrmsdk.verify(TEACHER, **SPEC, devices=devices, out=tmp_path / "b", quiet=True).report
    assert told.outcomes == expected
    (result,) = told.attacks
    assert result.attacked == expected.count(".") + expected.count("a")
    assert result.broken == expected.count("a")


@pytest.mark.slow
def test_a_verdict_of_two_processes_is_that_of_one(tmp_path):
    spec = {"attack": "pgd", "steps": 5, "images": 0, "at_least": 0.5}
    one, two = (
        rrmsdk.verify(TEACHER, **spec, devices=devices, out=tmp_path / str(devices), quiet=True).report
        for devices in (1, 2)
    )
    assert one.verdict is not None
    assert one.verdict == two.verdict
    assert one.outcomes == two.outcomes
    assert one.images < 359


@pytest.mark.slow
def test_a_rank_that_is_killed_is_started_again_and_the_report_is_the_same(tmp_path, expected):
    bundle = copied(tmp_path / "b")
    process = started(bundle.path, devices=2, **SPEC)
    ranks: list[int] = []
    while process.poll() is None and not (len(ranks) == 2 and lines(bundle.path)):
        time.sleep(0.05)
        ranks = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(ranks[1], signal.SIGKILL)
    assert process.wait(timeout=240) == 0
    assert json.loads((bundle.path / "report.json").read_text())["outcomes"] == expected


@pytest.mark.slow
def test_ranks_of_torchrun_share_a_judgement(tmp_path, expected):
    bundle = copied(tmp_path / "b")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m"]
    done = subprocess.run(
        [*torchrun, *command(bundle.path, **SPEC)[2:]], env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=240,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((bundle.path / "report.json").read_text())["outcomes"] == expected


def test_a_full_disk_is_one_clear_error_and_what_was_found_is_used_once_there_is_room(tmp_path, expected):
    bundle, journal = copied(tmp_path / "b"), tmp_path / "journal"
    spec = SPEC | {"journal": journal, "quiet": True}
    with full_disk(), pytest.raises(SaveError, match=r"journal: .*What was found before is kept there, and the same"):
        rrmsdk.verify(bundle, **spec)
    assert rrmsdk.verify(bundle, **spec).report.outcomes == expected


def test_a_report_that_found_more_is_kept_beside_the_one_that_takes_its_place(tmp_path, capsys):
    one = copied(tmp_path / "b")
    strong, beside = one.report, one.path / "report.earlier.json"
    weak = rrmsdk.verify(one, attack="pgd", steps=1, restarts=1, images=0)
    assert f"found more (robust {strong.robust:.4f}, autoattack" in capsys.readouterr().err
    assert weak.report.robust > strong.robust
    weaker = rrmsdk.verify(one, attack="pgd", steps=1, restarts=1, images=10, quiet=True)
    assert weaker.report.images == 10
    assert value.read(Report, beside) == strong
    assert bundle.read(one.path).card.files.keys() == one.card.files.keys()
    rrmsdk.verify(one, attack="pgd", steps=5, restarts=1, images=0)
    assert "WARNING" not in capsys.readouterr().err


def test_a_report_that_cannot_be_read_holds_no_finished_judgement_up(tmp_path):
    one = copied(tmp_path / "b")
    (one.path / "report.earlier.json").write_text("{}")
    rrmsdk.verify(one, attack="pgd", steps=1, restarts=1, images=0, quiet=True)
    assert value.read(Report, one.path / "report.earlier.json").attack.startswith("autoattack")


def test_fewer_than_one_device_is_refused(tmp_path):
    with pytest.raises(MismatchError, match="devices is 0; give 1 or more"):
        rrmsdk.verify(copied(tmp_path / "b"), **SPEC, devices=0, quiet=True)
