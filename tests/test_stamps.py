"""The bytes of a large file are read once, until something is written to it; and nobody else says what they were."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rrmsdk import files, stamps
from rrmsdk.stamps import sha256_while_unchanged

ANEW = """
import sys
from pathlib import Path
from rrmsdk.stamps import sha256_while_unchanged
def read():
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])
before = read()
print(sha256_while_unchanged(Path(sys.argv[1])), read() - before)
"""
FORGED = "f" * 64
counted = pytest.mark.skipif(
    not Path("/proc/self/io").is_file(), reason="the system does not count what a process reads"
)


def in_a_new_process(path: Path, folder: Path | str) -> tuple[str, bool]:
    """The hash, and whether the bytes were read for it."""
    told = subprocess.run(
        [sys.executable, "-c", ANEW, str(path)],
        env=os.environ | {"RRMSDK_STAMPS": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    digest, read = told.stdout.split()
    return digest, int(read) > path.stat().st_size


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 MB that nobody has written to of late, for all tests that leave them as they are."""
    path = tmp_path_factory.mktemp("settled") / "f"
    path.write_bytes(b"x" * 2_000_000)
    time.sleep(stamps.SETTLED + 0.1)
    return path


@counted
def test_the_next_process_does_not_read_it_again(settled, tmp_path):
    digest = files.sha256(settled)
    assert in_a_new_process(settled, tmp_path / "s") == (digest, True)
    assert in_a_new_process(settled, tmp_path / "s") == (digest, False)
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "s" / stamps.NOTES).stat().st_mode & 0o777 == 0o600


@counted
def test_the_next_process_sees_what_was_changed_or_put_in_its_place_though_size_and_time_are_as_before(tmp_path):
    changed, replaced = tmp_path / "f", tmp_path / "g"
    for path in (changed, replaced):
        path.write_bytes(b"x" * 2_000_000)
    time.sleep(stamps.SETTLED + 0.1)
    for path in (changed, replaced):
        in_a_new_process(path, tmp_path / "s")
    about = changed.stat(), replaced.stat()
    with changed.open("rb+") as file:
        file.write(b"y")
    (tmp_path / "new").write_bytes(b"z" * 2_000_000)
    (tmp_path / "new").replace(replaced)
    for path, was in zip((changed, replaced), about, strict=True):
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    time.sleep(stamps.SETTLED + 0.1)
    for path in (changed, replaced):
        assert in_a_new_process(path, tmp_path / "s") == (files.sha256(path), True)


@counted
def test_it_can_be_turned_off(settled, tmp_path):
    digest = files.sha256(settled)
    for _ in range(2):
        assert in_a_new_process(settled, "") == (digest, True)
    assert [path.name for path in settled.parent.iterdir()] == ["f"]


def forged(settled: Path, folder: Path) -> Path:
    """What somebody noted who wants `settled` to be taken for another file."""
    about, notes = settled.stat(), folder / stamps.NOTES
    row = [about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns, FORGED]
    folder.mkdir()
    notes.write_text(json.dumps({str(settled): row}))
    notes.chmod(0o600)
    return notes


@counted
def test_what_somebody_else_may_have_noted_does_not_count(settled, tmp_path):
    notes, truth = forged(settled, tmp_path / "s"), files.sha256(settled)
    kept = notes.read_bytes()
    assert in_a_new_process(settled, notes.parent) == (FORGED, False)  # the user's own word is taken

    def told(prepare) -> tuple[str, bool]:
        for path in notes.parent.iterdir():
            path.unlink()
        notes.write_bytes(kept)
        notes.chmod(0o600)
        prepare()
        return in_a_new_process(settled, notes.parent)

    def a_link():
        notes.rename(tmp_path / "elsewhere")
        notes.symlink_to(tmp_path / "elsewhere")

    assert told(lambda: notes.chmod(0o620)) == (truth, True)
    assert told(lambda: notes.chmod(0o602)) == (truth, True)
    assert told(a_link) == (truth, True)
    assert told(lambda: (notes.parent / "twin").hardlink_to(notes)) == (truth, True)
    if os.geteuid() == 0:
        assert told(lambda: os.chown(notes, 12345, -1)) == (truth, True)


@counted
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"a": 3}', b'{"a": []}', b"\xff\xfe", b"[" * 100_000, b'{"f": [1, 2]}']
)
def test_what_cannot_be_read_is_written_anew(settled, tmp_path, content):
    notes, digest = tmp_path / "s" / stamps.NOTES, files.sha256(settled)
    notes.parent.mkdir()
    notes.write_bytes(content.replace(b'"f"', json.dumps(str(settled)).encode()))
    notes.chmod(0o600)
    assert in_a_new_process(settled, notes.parent) == (digest, True)
    assert in_a_new_process(settled, notes.parent) == (digest, False)


@counted
def test_a_place_that_cannot_be_written_costs_nothing_but_time(settled, tmp_path):
    (tmp_path / "s").write_text("a file")
    assert in_a_new_process(settled, tmp_path / "s") == (files.sha256(settled), True)
    pipe = tmp_path / "p" / stamps.NOTES
    pipe.parent.mkdir()
    os.mkfifo(pipe)  # nobody ever writes into it
    assert in_a_new_process(settled, pipe.parent) == (files.sha256(settled), True)


def test_the_oldest_notes_are_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(stamps, "MOST", 3)
    monkeypatch.setenv("RRMSDK_STAMPS", str(tmp_path / "s"))
    for number in range(5):
        (tmp_path / f"f{number}").write_bytes(bytes(stamps.LARGE))
    time.sleep(stamps.SETTLED + 0.1)
    for number in (0, 1, 2, 3, 4):
        sha256_while_unchanged(tmp_path / f"f{number}")
    names = [Path(path).name for path in json.loads((tmp_path / "s" / stamps.NOTES).read_text())]
    assert names == ["f2", "f3", "f4"]


def bytes_read() -> int:
    """By this process so far, from whatever file."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


@counted
def test_what_nobody_writes_to_is_read_once(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"x" * 2_000_000)
    time.sleep(stamps.SETTLED + 0.1)
    first, before = sha256_while_unchanged(path), bytes_read()
    assert sha256_while_unchanged(path) == first == files.sha256(path)
    assert 2_000_000 <= bytes_read() - before < 2_100_000  # by the plain one


def test_a_change_is_seen_though_size_and_time_are_put_back(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"one")
    time.sleep(stamps.SETTLED + 0.1)
    before, stat = sha256_while_unchanged(path), path.stat()
    with path.open("rb+") as file:
        file.write(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert sha256_while_unchanged(path) == files.sha256(path) != before


def test_two_changes_in_one_tick_of_the_clock_are_both_seen(tmp_path):
    path = tmp_path / "f"
    for number in range(200):
        path.write_bytes(number.to_bytes(2))
        assert sha256_while_unchanged(path) == files.sha256(path)
