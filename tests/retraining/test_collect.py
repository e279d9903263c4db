"""What goes when room is made, and what never does."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from rrmsdk.cli import main
from rrmsdk.errors import MismatchError, RefError
from rrmsdk.retraining.collect import collect, jobs
from rrmsdk.retraining.journal import Run, State
from rrmsdk.retraining.lock import hold
from rrmsdk.retraining.objects import key
from rrmsdk.retraining.once import once
from rrmsdk.retraining.room import Room, entered

SIZE = 1000  # bytes of what each run makes


def ran(room: Room, number: int, state: State) -> Run:
    """A run that has made a model of its own, and left something in its folder."""
    run = room.journal.begin(f"slot-{number}")

    def work(scratch: Path) -> Path:
        (scratch / "model").write_bytes(bytes([number]) * SIZE)
        return scratch / "model"

    once(room, run, "transfer", {"slot": number}, work)
    (room.folder / "runs" / run.id / "log").write_bytes(b"1234567890")
    room.journal.end(run.number, state)
    return room.journal.run(run.number)


@pytest.fixture
def weekly(tmp_path: Path) -> Path:
    """Six promoted runs and one that was not."""
    folder = tmp_path / "state" / "weekly"
    with entered(folder) as room:
        for number in range(1, 7):
            ran(room, number, "promoted")
        ran(room, 7, "kept")
    return folder


def models(folder: Path) -> list[int]:
    """The runs whose models lie there."""
    return sorted(path.read_bytes()[0] for path in (folder / "objects" / "sha256").iterdir())


def test_the_newest_promoted_and_the_newest_run_stay(weekly: Path) -> None:
    found = collect(weekly, keep=2)
    assert found.runs == (1, 2, 3, 4)
    assert (len(found.objects), found.bytes) == (4, 4 * SIZE + 4 * 10)
    assert models(weekly) == [5, 6, 7]
    assert sorted(path.name for path in (weekly / "runs").iterdir()) == ["000005", "000006", "000007"]


def test_without_a_number_the_champion_and_as_many_before_it_stay_as_the_job_says(weekly: Path) -> None:
    with entered(weekly) as room:
        room.journal.crown(6, keep=1)
    collect(weekly)
    assert models(weekly) == [5, 6, 7]


def test_a_dry_run_says_the_same_and_removes_nothing(weekly: Path) -> None:
    said = collect(weekly, keep=2, dry_run=True)
    assert models(weekly) == [1, 2, 3, 4, 5, 6, 7]
    assert collect(weekly, keep=2) == said


def test_a_second_time_there_is_nothing_left_to_remove(weekly: Path) -> None:
    collect(weekly, keep=2)
    assert collect(weekly, keep=2).bytes == 0


def test_what_is_pinned_stays_until_it_is_not(weekly: Path) -> None:
    with entered(weekly) as room:
        room.journal.pin(2, "the audit of March")
    collect(weekly, keep=1)
    assert models(weekly) == [2, 6, 7]
    with entered(weekly) as room:
        room.journal.pin(2, None)
    collect(weekly, keep=1)
    assert models(weekly) == [6, 7]


@pytest.mark.parametrize("state", ["running", "awaiting", "blocked", "suspended"])
def test_what_is_not_over_stays(weekly: Path, state: State) -> None:
    with entered(weekly) as room:
        room.journal.end(1, state)
    collect(weekly, keep=1)
    assert models(weekly) == [1, 6, 7]


def test_the_champion_stays_after_a_rollback_to_an_old_one(weekly: Path) -> None:
    with entered(weekly) as room:
        room.journal.crown(6)
        room.journal.crown(3)
        assert room.journal.champion() == 3
    collect(weekly, keep=1)
    assert models(weekly) == [3, 6, 7]


def test_what_a_kept_run_took_from_an_old_one_stays(weekly: Path) -> None:
    with entered(weekly) as room:
        run = room.journal.begin("slot-8")
        once(room, run, "transfer", {"slot": 1}, lambda scratch: scratch)
        room.journal.end(run.number, "promoted")
    collect(weekly, keep=1)
    assert models(weekly) == [1]


def test_a_stage_whose_output_was_removed_counts_as_never_finished(weekly: Path) -> None:
    collect(weekly, keep=1)
    with entered(weekly) as room:
        assert room.journal.made("transfer", key(slot=6)) is not None
        assert room.journal.made("transfer", key(slot=1)) is None


def test_history_stays(weekly: Path) -> None:
    collect(weekly, keep=1)
    with entered(weekly) as room:
        assert [run.number for run in room.journal.runs()] == [7, 6, 5, 4, 3, 2, 1]
        assert [event.kind for event in room.journal.events(1)] == ["begun", "attempt", "done", "promoted"]


def test_a_run_that_is_not_there_cannot_be_pinned(weekly: Path) -> None:
    with entered(weekly) as room, pytest.raises(MismatchError, match="weekly has no run 000012"):
        room.journal.pin(12, "x")


def test_a_job_that_never_ran_is_said_with_near_names(weekly: Path) -> None:
    assert jobs(state=weekly.parent) == (weekly,)
    with pytest.raises(RefError, match=r"no job 'weakly' has run here: .* Did you mean 'weekly'"):
        jobs("weakly", weekly.parent)
    assert not (weekly.parent / "weakly").exists()


@dataclass(frozen=True)
class Shell:
    """`rrmsdk gc` in a process that has imported it already."""

    state: Path
    capture: pytest.CaptureFixture[str]
    patch: pytest.MonkeyPatch

    def gc(self, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        self.patch.setattr(sys, "argv", ["rrmsdk", "gc", *words, "--state", str(self.state)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *self.capture.readouterr()


@pytest.fixture
def shell(weekly: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(weekly.parent, capsys, monkeypatch)


def test_the_shell_tells_what_goes(weekly: Path, shell: Shell) -> None:
    says = "weekly: 3 objects and the folders of 3 runs would be removed, 3,030 bytes\n"
    assert shell.gc("weekly", "--keep", "2", "--pin", "4", "--dry-run") == (0, says, "")
    done = json.loads(shell.gc("--keep", "2", "--json")[1])
    assert (done["dry_run"], done["jobs"][0]["runs"], done["jobs"][0]["bytes"]) == (False, [1, 2, 3], 3030)
    assert models(weekly) == [4, 5, 6, 7]
    shell.gc("weekly", "--keep", "2", "--unpin", "4")
    assert models(weekly) == [5, 6, 7]


def test_a_busy_job_is_left_alone_with_exit_code_75(weekly: Path, shell: Shell) -> None:
    with hold(weekly):
        code, out, err = shell.gc("weekly")
    assert (code, out) == (75, "")
    assert err == f"rrmsdk: weekly: process {os.getpid()} works on this job. Wait for it, or stop it\n"
    assert models(weekly) == [1, 2, 3, 4, 5, 6, 7]


def test_room_is_made_in_the_jobs_that_are_not_busy(weekly: Path, shell: Shell) -> None:
    with entered(weekly.parent / "busy"):
        code, out, _ = shell.gc("--keep", "2")
    assert (code, models(weekly)) == (75, [5, 6, 7])
    assert out.startswith("weekly: 4 objects")


@pytest.mark.parametrize(
    ("words", "says"),
    [(["--pin", "1"], "--pin and --unpin need the job"), (["weakly"], "no job 'weakly' has run here")],
)
def test_what_is_typed_wrong_is_one_line_and_exit_code_2(shell: Shell, words: list[str], says: str) -> None:
    code, _, err = shell.gc(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert says in err
