"""A reader sees the old file or the new one, never half."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rrmsdk import files
from rrmsdk.errors import SaveError

WRITES = """
import sys
from pathlib import Path
from rrmsdk import files
print("going", flush=True)
number = 0
while True:
    number += 1
    files.write_bytes(Path(sys.argv[1]), bytes([number % 256]) * 3_000_000)
"""


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may grow past 1000 bytes: the system refuses to write, as a full disk does."""
    kept, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, kept[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    path = tmp_path / "f"
    for milliseconds in (3, 11, 29, 47):
        writer = subprocess.Popen([sys.executable, "-c", WRITES, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout.readline() == "going\n"
        time.sleep(milliseconds / 1000)  # the moment of the kill is what is tested
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        if path.exists():
            content = path.read_bytes()
            assert len(content) == 3_000_000
            assert len(set(content)) == 1


def test_a_full_disk_is_one_clear_error_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "f"
    files.write_text(path, "old")
    with full_disk(), pytest.raises(SaveError, match=r"could not write .*/f: File too large\. What was there before"):
        files.write_bytes(path, b"x" * 5000)
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["f"]


@pytest.mark.skipif(os.name != "posix", reason="folders have no fsync there")
def test_the_folder_is_flushed_once_the_file_has_its_name(tmp_path, monkeypatch):
    """A power cut is what it is for; what can be seen without one is that the system is asked, and when."""
    path, flushed, fsync = tmp_path / "f", [], os.fsync

    def seen(handle: int) -> None:
        flushed.append((stat.S_ISDIR(os.fstat(handle).st_mode), path.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", seen)
    files.write_text(path, "new")
    assert flushed == [(False, False), (True, True)]


def test_a_folder_that_may_be_written_and_not_read_keeps_the_file(tmp_path):
    folder = tmp_path / "drop"
    folder.mkdir(mode=0o300)
    files.write_text(folder / "f", "new")
    folder.chmod(0o700)
    assert (folder / "f").read_text() == "new"


def test_a_block_that_fails_leaves_nothing_beside(tmp_path):
    with pytest.raises(ZeroDivisionError), files.replacing(tmp_path / "f"):
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


def test_the_hash_is_that_of_the_bytes(tmp_path):
    files.write_bytes(tmp_path / "f", b"abc")
    assert files.sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
