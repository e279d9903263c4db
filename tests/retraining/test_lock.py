"""One process at a time, and the kernel alone decides when it is over."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rrmsdk.errors import BusyError, SaveError
from rrmsdk.retraining import schedule
from rrmsdk.retraining.lock import hold

HOLDS = """
import os, subprocess, sys, time
from pathlib import Path
from rrmsdk.retraining.lock import hold
with hold(Path(sys.argv[1])):
    child = None
    if sys.argv[2] == "exec":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False).pid
    elif sys.argv[2] == "fork":
        child = os.fork()
    if child != 0:
        print(os.getpid(), child, flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(folder: Path, child: str = "") -> Iterator[tuple[subprocess.Popen[str], int | None]]:
    """A process that holds the folder, and the number of its child."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(folder), child], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    _, born = process.stdout.readline().split()
    try:
        yield process, None if born == "None" else int(born)
    finally:
        if born != "None":
            os.kill(int(born), 9)
        process.kill()
        process.communicate()


def test_the_number_of_a_process_elsewhere_is_nobodys_here(tmp_path: Path) -> None:
    folder = tmp_path / "weekly"
    with holder(folder) as (process, _):
        (folder / "lock").write_text(f"{process.pid:<20}another boot pid:[1]")
        with (
            pytest.raises(BusyError, match=rf"process {process.pid} of another machine or container") as told,
            hold(folder),
        ):
            pass
        assert told.value.pid is None
        assert schedule.pid_of(folder) == 0  # so that nobody ends that process


def test_a_second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    with holder(tmp_path / "weekly") as (process, _):
        begun = time.monotonic()
        with (
            pytest.raises(BusyError, match=rf"weekly: process {process.pid} works on this job") as told,
            hold(tmp_path / "weekly"),
        ):
            pass
        assert time.monotonic() - begun < 1
        assert told.value.pid == process.pid


def test_a_process_does_not_hold_it_twice(tmp_path: Path) -> None:
    with hold(tmp_path), pytest.raises(BusyError, match=f"process {os.getpid()} works"), hold(tmp_path):
        pass
    with hold(tmp_path):
        pass


@pytest.mark.parametrize("child", ["", "exec", "fork"])
def test_when_its_holder_is_killed_the_next_takes_over_though_a_child_lives_on(tmp_path: Path, child: str) -> None:
    with holder(tmp_path, child) as (process, born):
        process.kill()
        process.wait()
        with hold(tmp_path):
            if born is not None:
                os.kill(born, 0)
            assert (tmp_path / "lock").read_text().split()[0] == str(os.getpid())


def test_a_holder_that_has_not_told_its_number_yet_is_another_process(tmp_path: Path) -> None:
    with holder(tmp_path):
        (tmp_path / "lock").write_text("")
        with pytest.raises(BusyError, match="another process works on this job") as told, hold(tmp_path):
            pass
        assert told.value.pid is None


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(SaveError, match=r"could not write .*file/weekly/lock: Not a directory"),
        hold(tmp_path / "file" / "weekly"),
    ):
        pass
