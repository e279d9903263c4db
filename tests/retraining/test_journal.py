"""What the journal promises to whoever reads it after a crash."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import pytest

from rrmsdk.errors import IntegrityError, MismatchError, SaveError, SuspendedError
from rrmsdk.retraining import journal
from rrmsdk.retraining.journal import Journal, State


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Journal]:
    with journal.opened(tmp_path / "weekly") as found:
        yield found


def test_the_same_cause_never_makes_a_second_run(kept: Journal) -> None:
    first = kept.begin("cron 2026-01-04T02:00Z", by="tick")
    assert kept.begin("cron 2026-01-04T02:00Z") == first
    assert kept.begin("cron 2026-01-11T02:00Z").number == first.number + 1
    assert [run.id for run in kept.runs()] == ["000002", "000001"]


@pytest.mark.parametrize("state", get_args(State))
def test_a_run_that_is_over_stays_so_and_any_other_goes_on(kept: Journal, state: State) -> None:
    run = kept.begin("manual 1")
    kept.end(run.number, state, "because")
    again = kept.begin("manual 1")
    assert again.state == ("running" if state in ("running", "awaiting", "blocked") else state)
    assert [found.number for found in kept.runs(again.state)] == [run.number]


def test_an_unknown_state_is_refused(kept: Journal) -> None:
    kept.begin("manual 1")
    with pytest.raises(sqlite3.IntegrityError, match="CHECK constraint failed"):
        kept.base.execute("UPDATE run SET state = 'done'")


def test_a_run_that_is_not_there_is_said(kept: Journal) -> None:
    with pytest.raises(MismatchError, match=r"weekly has no run 000007: rrmsdk schedule history lists them"):
        kept.run(7)


def test_a_stage_that_is_done_is_known_by_its_inputs_in_every_run(kept: Journal) -> None:
    first, second = kept.begin("manual 1").number, kept.begin("manual 2").number
    assert kept.made("fetch", "k" * 64) is None
    kept.done(kept.attempt(first, "fetch", "k" * 64), "d" * 64, 1.5)
    assert kept.made("fetch", "k" * 64) == "d" * 64
    assert kept.made("fetch", "other") is None
    assert kept.made("transfer", "k" * 64) is None
    kept.reused(second, "fetch", "d" * 64)
    assert kept.outputs(first) == kept.outputs(second) == {"fetch": "d" * 64}


def test_no_stage_can_be_done_twice(kept: Journal) -> None:
    run = kept.begin("manual 1").number
    first, second = kept.attempt(run, "fetch", "k"), kept.attempt(run, "fetch", "k")
    kept.done(first, "d", 1.0)
    with pytest.raises(SaveError, match="UNIQUE constraint failed: stage"):
        kept.done(kept.attempt(run, "fetch", "k"), "e", 1.0)
    assert second > first
    assert kept.made("fetch", "k") == "d"


def test_a_stage_whose_output_is_lost_counts_as_never_finished(kept: Journal) -> None:
    run = kept.begin("manual 1").number
    kept.done(kept.attempt(run, "fetch", "k"), "d", 1.0)
    kept.lost(run, "fetch", "k")
    assert kept.made("fetch", "k") is None
    kept.done(kept.attempt(run, "fetch", "k"), "e", 1.0)
    assert kept.outputs(run) == {"fetch": "e"}


class TestCrashes:
    def crash(self, kept: Journal, *ends: tuple[str, str]) -> None:
        """Attempts with that progress; `died`: nobody says how they ended."""
        for progress, end in ends:
            number = kept.attempt(kept.begin("manual 1").number, "transfer", "k", progress)
            if end != "died":
                kept.crashed(number, end)

    @pytest.mark.parametrize("end", ["died", "ValueError: # is no #"])
    def test_three_alike_suspend(self, kept: Journal, end: str) -> None:
        self.crash(kept, ("", end), ("", end), ("", end))
        says = rf"transfer of run 000001 crashed 3 times in the same way \({end}\)"
        with pytest.raises(SuspendedError, match=says):
            kept.attempt(1, "transfer", "k")
        kept.attempt(1, "verify", "k")

    @pytest.mark.parametrize(
        "ends",
        [
            [("", "died"), ("", "KeyError: x"), ("", "died")],
            [("step 1", "died"), ("step 2", "died"), ("step 3", "died")],
            [("", "stopped"), ("", "stopped"), ("", "stopped")],
            [("", "died"), ("", "died")],
        ],
        ids=["unlike", "further on", "by a person", "twice"],
    )
    def test_others_do_not(self, kept: Journal, ends: list[tuple[str, str]]) -> None:
        self.crash(kept, *ends)
        kept.attempt(1, "transfer", "k", ends[-1][0])

    def test_deaths_that_came_further_since_do_not(self, kept: Journal) -> None:
        self.crash(kept, *[("step 1", "died")] * 3)
        kept.attempt(1, "transfer", "k", "step 2")

    def test_a_person_lets_it_go_on(self, kept: Journal) -> None:
        self.crash(kept, *[("", "died")] * 3)
        kept.end(1, "suspended")
        kept.resume(1)
        assert kept.run(1).state == "running"
        self.crash(kept, ("", "died"), ("", "died"), ("", "died"))
        with pytest.raises(SuspendedError):
            kept.attempt(1, "transfer", "k")

    def test_numbers_and_addresses_do_not_make_two_errors_unlike(self) -> None:
        first, second = ValueError("tensor at 0x7f01 has 12 rows\nmore"), ValueError("tensor at 0x7eff has 9 rows")
        assert journal.signature(first) == journal.signature(second) == "ValueError: tensor at # has # rows"


def test_what_happened_is_told_in_its_order(kept: Journal) -> None:
    run = kept.begin("manual 1", by="hand").number
    kept.done(kept.attempt(run, "fetch", "k"), "d", 1.0)
    kept.note(None, "tick", due=2)
    kept.end(run, "kept", "not better")
    told = kept.events()
    assert [event.kind for event in told] == ["begun", "attempt", "done", "tick", "kept"]
    assert told[0].told == {"cause": "manual 1", "by": "hand"}
    assert [event.kind for event in kept.events(run)] == ["begun", "attempt", "done", "kept"]


def test_it_is_written_through_to_the_disk_before_a_call_returns(kept: Journal) -> None:
    asked = ("journal_mode", "synchronous", "foreign_keys")
    assert [kept.base.execute(f"PRAGMA {name}").fetchone()[0] for name in asked] == ["wal", 2, 1]


def test_a_journal_of_a_newer_version_is_not_touched(tmp_path: Path) -> None:
    with journal.opened(tmp_path) as kept:
        kept.base.execute("PRAGMA user_version = 9")
    with (
        pytest.raises(IntegrityError, match=r"has version 9; this rrmsdk reads 1. Upgrade rrmsdk"),
        journal.opened(tmp_path),
    ):
        pass


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + bytes(4000)])
def test_a_damaged_journal_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal.sqlite").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"is damaged .* Move it away"), journal.opened(tmp_path):
        pass


def test_anybody_may_read_while_it_is_written(kept: Journal) -> None:
    run = kept.begin("manual 1").number
    with ExitStack() as others:
        read = others.enter_context(journal.opened(kept.path.parent))
        kept.base.execute("BEGIN IMMEDIATE")
        assert read.run(run).state == "running"
        kept.base.execute("ROLLBACK")


def test_a_cause_is_unique_for_the_base_itself(kept: Journal) -> None:
    kept.begin("manual 1")
    with pytest.raises(sqlite3.IntegrityError):
        kept.base.execute("INSERT INTO run (cause, state, why, begun) VALUES ('manual 1', 'running', '', 0)")
