"""Kills, rivals, full disks, rot and clocks: nothing finished is lost or repeated, nothing is published twice."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from rrmsdk.errors import DiskFullError, HubError, SuspendedError
from rrmsdk.retraining import objects
from rrmsdk.retraining.journal import Run
from rrmsdk.retraining.once import once
from rrmsdk.retraining.room import Room, entered
from tests.retraining.tiny_job import STAGES, STEPS, job, left


def starting(world: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.retraining.tiny_job", str(world), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def witnessed(world: Path) -> list[list[str]]:
    return [line.split() for line in (world / "witness").read_text().splitlines()]


def worked(world: Path) -> list[str]:
    """The stages that were begun, in their order."""
    return [words[2] for words in witnessed(world) if words[0] == "begin"]


def published(world: Path) -> list[str]:
    """The digests, in their order."""
    return [path.name.partition("-")[2] for path in sorted((world / "hub").glob("*-*"))]


def survives(world: Path, kills: int, seed: int) -> None:
    process = starting(world, "sweep", str(kills), str(seed))
    out, err = process.communicate()
    assert process.returncode == 0, err
    with entered(world / "state") as room:
        runs = room.journal.runs()
        made = [room.journal.outputs(run.number) for run in runs]
        assert left(room) == []
        assert all(room.objects.open(digest) for outputs in made for digest in outputs.values())
    assert [run.number for run in runs] == list(range(int(out), 0, -1))
    assert {run.state for run in runs} == {"promoted"}
    assert sorted(published(world)) == sorted(outputs["transfer"] for outputs in made)
    finished: dict[tuple[str, str], str] = {}
    for kind, *words in witnessed(world):
        if kind == "finished":
            cause, stage, digest = words
            assert finished.setdefault((cause, stage), digest) == digest, "made again, to something else"
        elif kind == "begin":
            assert (words[0], words[1]) not in finished, "worked on though it was finished"
    steps = sum(words[0] == "step" for words in witnessed(world))
    assert STEPS * len(runs) <= steps <= STEPS * len(runs) + kills  # a kill costs what lies behind one checkpoint


def test_100_kills_lose_nothing_and_publish_nothing_twice(world: Path) -> None:
    survives(world, 100, seed=1)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(2, 6))
def test_1000_kills_lose_nothing_and_publish_nothing_twice(world: Path, seed: int) -> None:
    survives(world, 250, seed)


def test_of_three_starters_one_runs_and_the_others_say_who_and_leave(world: Path) -> None:
    (world / "wait").touch()
    three = [starting(world, "slot-0") for _ in "abc"]
    gone: dict[int, str] = {}
    while len(gone) < 2:
        for process in three:
            if process.pid not in gone and process.poll() is not None:
                assert process.stderr is not None
                gone[process.pid] = process.stderr.read()
                assert process.returncode == 75, gone
    (world / "wait").unlink()
    (runs,) = [process for process in three if process.pid not in gone]
    assert runs.wait(60) == 0
    for process in three:
        process.communicate()
    said = [json.loads(err) for err in gone.values()]
    assert [one["pid"] for one in said] == [runs.pid] * 2
    assert max(one["seconds"] for one in said) < 1
    assert worked(world) == list(STAGES)
    assert len(published(world)) == 1


def test_when_the_runner_is_killed_the_next_starter_takes_over_where_it_was(world: Path) -> None:
    (world / "wait").touch()
    first = starting(world, "slot-0")
    while not (world / "witness").exists() or ["step", str(STEPS)] not in witnessed(world):
        assert first.poll() is None
    first.kill()
    first.communicate()
    (world / "wait").unlink()
    second = starting(world, "slot-0")
    assert second.communicate() == ("", "")
    assert second.returncode == 0
    assert worked(world) == ["fetch", "transfer", "transfer", "verify", "export"]
    assert sum(words[0] == "step" for words in witnessed(world)) <= STEPS + 1


def test_a_run_that_is_over_is_not_run_again(world: Path) -> None:
    job(world, "slot-0")
    job(world, "slot-0")
    assert worked(world) == list(STAGES)


@pytest.mark.parametrize(
    ("stage", "again"),
    [("fetch", ["fetch"]), ("transfer", ["transfer", "verify", "export"]), ("verify", ["verify"])],
)
def test_a_bit_that_flips_costs_the_stage_and_what_depends_on_other_bytes(
    world: Path, stage: str, again: list[str]
) -> None:
    job(world, "slot-0")
    with entered(world / "state") as room:
        before = room.journal.outputs(1)
        place = room.objects.folder / before[stage]
    damaged = place / "weights" if place.is_dir() else place
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 4
    damaged.write_bytes(content)
    job(world, "slot-1")
    assert worked(world)[len(STAGES) :] == again
    with entered(world / "state") as room:
        after = room.journal.outputs(2)
        assert [event.kind for event in room.journal.events(2)].count("lost") == 1
    # Training gives other weights, and then they are published; the other stages give the same bytes.
    changed = {name for name in STAGES if before[name] != after[name]}
    assert changed == ({"transfer", "verify", "export"} if stage == "transfer" else set())
    assert published(world) == list(dict.fromkeys([before["transfer"], after["transfer"]]))


def test_a_clock_that_goes_backwards_changes_no_order(world: Path) -> None:
    job(world, "slot-0")
    with entered(world / "state") as room:  # written by a clock that was a year ahead
        room.journal.base.execute("UPDATE run SET begun = begun + 3e7, ended = ended + 3e7")
        room.journal.base.execute("UPDATE event SET at = at + 3e7")
    (world / "data").write_text("0001")
    job(world, "slot-1")
    with entered(world / "state") as room:
        newest, oldest = room.journal.runs()
        kinds = [event.kind for event in room.journal.events()]
    assert (newest.cause, oldest.cause) == ("slot-1", "slot-0")
    assert newest.begun < oldest.begun
    assert [kind for kind in kinds if kind in ("begun", "promoted")] == ["begun", "promoted"] * 2


class TestFullDisk:
    def filled(self, disk: Path, free: int) -> Path:
        """Leave so many bytes."""
        filler = disk / "filler"
        with filler.open("wb") as file:
            file.write(bytes(max(0, os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize - free)))
        return filler

    @pytest.mark.parametrize("free", range(0, 240_000, 48_000))
    def test_it_blocks_leaves_nothing_half_and_goes_on_when_there_is_room(
        self, world: Path, small_disk: Path, free: int
    ) -> None:
        (world / "state").symlink_to(small_disk / "state")
        (small_disk / "state").mkdir()
        job(world, "slot-0")  # the champion
        (world / "data").write_text("0001")
        filler = self.filled(small_disk, free)
        with pytest.raises(DiskFullError, match=r"the disk of .* (is full|has .* left)\. Make room"):
            job(world, "slot-1")
        assert len(published(world)) == 1
        filler.unlink()
        with entered(world / "state") as room:
            assert left(room) == []
            assert all(room.objects.open(digest) for digest in room.objects.kept())
        job(world, "slot-1")
        finished = Counter(words[2] for words in witnessed(world) if words[0] == "finished")
        begun = Counter(worked(world))
        assert len(published(world)) == 2
        assert all(begun[name] - 2 <= 1 for name in STAGES)  # at most the one that the disk was full in
        assert sum(begun.values()) - 2 * len(STAGES) <= 1
        assert all(finished[name] >= 2 for name in STAGES)

    def test_a_folder_that_fills_the_disk_in_the_middle_leaves_nothing(self, small_disk: Path, tmp_path: Path) -> None:
        many = tmp_path / "many"
        many.mkdir()
        for number in range(300):  # the bytes fit, but the disk has room for 200 files
            (many / str(number)).touch()
        store = objects.opened(small_disk / "objects")
        before = os.statvfs(small_disk).f_ffree
        with pytest.raises(DiskFullError, match=r"the disk of .* is full\. Make room \(rrmsdk gc"):
            store.put(many)
        assert os.listdir(store.folder) == []
        assert os.statvfs(small_disk).f_ffree == before


class TestCrashes:
    """What a stage that fails costs: three times alike, and the run waits for a person."""

    def fails(self, room: Room, run: Run, exc: Exception) -> None:
        def work(scratch: Path) -> Path:
            raise exc

        once(room, run, "transfer", {"rows": "d"}, work)

    def test_three_equal_errors_suspend_and_the_fourth_is_not_tried(self, tmp_path: Path) -> None:
        with entered(tmp_path) as room:
            run = room.journal.begin("slot-0")
            for number in range(3):
                with pytest.raises(ValueError, match="is bad"):
                    self.fails(room, run, ValueError(f"row {number} is bad"))
            with pytest.raises(SuspendedError, match=r"3 times in the same way \(ValueError: row # is bad\)"):
                self.fails(room, run, ValueError("never raised"))

    @pytest.mark.parametrize(
        "exc", [DiskFullError("full"), HubError("down"), OSError(errno.ENOSPC, "No space left on device")]
    )
    def test_a_full_disk_and_the_hub_are_none_of_the_stages_crashes(self, tmp_path: Path, exc: Exception) -> None:
        with entered(tmp_path) as room:
            run = room.journal.begin("slot-0")
            for _ in range(5):
                with pytest.raises(type(exc)):
                    self.fails(room, run, exc)

    def test_kills_at_the_same_place_suspend_until_a_person_has_looked(self, world: Path) -> None:
        (world / "die").touch()
        # The first comes to the last checkpoint; three more die there, and the next is not tried.
        out, err = starting(world, "die", "4").communicate()
        assert out.split() == ["9"] * 4, err
        (world / "die").unlink()
        with pytest.raises(SuspendedError, match=r"transfer of run 000001 crashed 3 times in the same way \(died\)"):
            job(world, "slot-0")
        with entered(world / "state") as room:
            room.journal.resume(1)
        job(world, "slot-0")
        assert worked(world).count("transfer") == 5
        assert len(published(world)) == 1
