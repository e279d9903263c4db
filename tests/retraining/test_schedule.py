"""Many jobs: what is due is started once, what was killed goes on, and what a person asks for is done."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rrmsdk.errors import MismatchError
from rrmsdk.retraining import board, schedule
from rrmsdk.retraining import journal as journals
from rrmsdk.retraining.due import hours_spent
from rrmsdk.retraining.lock import hold
from rrmsdk.retraining.schedule import Scheduled, Ticked
from tests.runtime.http_served import ask, plain, serving
from tests.served import make_served, some_digits, with_reference

JOB = """
version = 1
name = "{name}"
[recipe]
teacher = "hub:digits-cnn-linf"
student = {{ arch = "cnn", width = "teacher" }}
data = {{ name = "digits" }}
threat = {{ norm = "linf", eps = "1/10" }}
method = {{ name = "rrm" }}
[[trigger]]
kind = "cron"
expression = "0 3 * * *"
[push]
repo = "acme/{name}"
"""
HOLDS = """
import sys, time
from pathlib import Path
from rrmsdk.retraining.lock import hold
with hold(Path(sys.argv[1])):
    print("holds", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    """A folder with one job, `nightly`, that was first looked at now."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "nightly.toml").write_text(JOB.format(name="nightly"))
    return tmp_path / "jobs"


@pytest.fixture
def nightly(jobs: Path, tmp_path: Path) -> Scheduled:
    return schedule.named(jobs, tmp_path / "state", "nightly")


@pytest.fixture
def tick(jobs: Path, tmp_path: Path) -> Iterator[object]:
    """Tick so many days from now; what it starts is killed at the end."""
    started = []

    def ticks(days: float = 0.0, **settings: int) -> Ticked:
        now = datetime.now(UTC) + timedelta(days=days)
        ticked = schedule.tick(jobs, state=tmp_path / "state", now=now, **settings)
        started.extend(ticked.started)
        return ticked

    yield ticks
    for one in started:
        one.process.kill()
        one.process.wait()


def end(ticked: Ticked) -> None:
    """Kill what was started, as a power cut would."""
    for one in ticked.started:
        one.process.kill()
        one.process.wait()


class TestTick:
    def test_a_slot_that_was_before_the_job_is_not_due_and_one_after_is_started_once(self, tick) -> None:
        assert tick().started == ()
        (started,) = tick(1).started
        assert (started.job, started.run) == ("nightly", "000001")
        assert started.why.startswith("The slot of ")
        assert os.getsid(started.process.pid) == started.process.pid  # Ctrl-C in the scheduler's terminal is not for it
        again = tick(1)
        assert again.started == ()
        assert again.running == ("nightly",)

    def test_a_run_whose_process_was_killed_goes_on(self, tick) -> None:
        tick()
        end(tick(1))
        (again,) = tick(1.1).started
        assert (again.run, again.why) == ("000001", "it was not finished")

    def test_of_slots_that_were_missed_only_the_latest_runs(self, tick, nightly: Scheduled) -> None:
        tick()
        end(tick(30))
        with journals.opened(nightly.folder) as kept:
            (run,) = kept.runs()
            kept.end(run.number, "kept")
        slot = (datetime.now(UTC) + timedelta(days=30)).strftime("cron %Y-%m-%dT03:00Z")
        before = (datetime.now(UTC) + timedelta(days=29)).strftime("cron %Y-%m-%dT03:00Z")
        assert run.cause in (slot, before)
        assert tick(30).started == ()

    def test_no_more_run_at_a_time_than_told(self, jobs: Path, tick) -> None:
        for name in ("second", "third"):
            (jobs / f"{name}.toml").write_text(JOB.format(name=name))
        tick(parallel=3)
        assert len(tick(1, parallel=2).started) == 2
        assert tick(1, parallel=2).started == ()

    def test_a_process_that_ends_before_it_does_anything_is_not_started_for_ever(self, tick, nightly) -> None:
        tick()
        for days in (1, 1.1, 1.2):
            end(tick(days))
        last = tick(1.3)
        assert last.started == ()
        assert "its process ended 3 times before it did anything" in last.troubles["nightly"]
        with journals.opened(nightly.folder) as kept:
            assert kept.run(1).state == "suspended"
            assert kept.events(1)[-1].kind == "announced"
        assert tick(2).started == ()

    def test_a_blocked_run_is_tried_again_after_a_while(self, tick, nightly: Scheduled) -> None:
        tick()
        end(tick(1))
        with journals.opened(nightly.folder) as kept:
            kept.end(1, "blocked", "hub: down")
        assert tick(0).started == ()
        (again,) = tick(0.01).started
        assert again.why == "again: it was blocked by hub: down"

    def test_a_run_that_has_been_blocked_for_months_is_tried_again_too(self, tick, nightly: Scheduled) -> None:
        tick()
        end(tick(1))
        with journals.opened(nightly.folder) as kept:
            kept.end(1, "blocked", "teacher-gone: no such repository")
            row = "INSERT INTO event (run, at, kind, told) VALUES (1, 0, 'blocked', '{}')"
            kept.base.executemany(row, [()] * 1100)  # each hour, since the first day
        assert tick(0.04).started == ()
        (again,) = tick(0.05).started
        assert again.why.startswith("again: it was blocked by teacher-gone")

    def test_a_journal_of_another_rrmsdk_keeps_no_other_job_from_running(self, jobs: Path, tick, nightly) -> None:
        (jobs / "second.toml").write_text(JOB.format(name="second"))
        tick(parallel=2)
        with journals.opened(nightly.folder) as kept:
            kept.end(kept.begin("manual 1", observed={"weather": "rain"}).number, "kept")
        ticked = tick(1, parallel=2)
        assert [one.job for one in ticked.started] == ["second"]
        assert "run 000001: unknown field 'weather'" in ticked.troubles["nightly"]

    def test_a_job_that_cannot_be_read_keeps_no_other_from_running(self, jobs: Path, tick) -> None:
        (jobs / "bad.toml").write_text("version = 2")
        (jobs / "zz.toml").write_text(JOB.format(name="nightly"))
        tick()
        ticked = tick(1)
        assert [one.job for one in ticked.started] == ["nightly"]
        assert ticked.troubles["zz.toml"] == "'nightly' is the name of nightly.toml already"
        assert "bad.toml" in ticked.troubles["bad.toml"]


class TestDrift:
    def test_two_windows_of_dark_images_at_a_server_start_a_run_and_the_same_two_no_second(
        self, jobs: Path, nightly: Scheduled, tick, tmp_path: Path
    ) -> None:
        with_reference(make_served(tmp_path / "models" / "1"))
        with serving(models=tmp_path / "models", name="digits", window=40) as served:
            watched = f"url = '{served.url}/v2/models/digits/drift'\nstatistic = 'channel_0'\nabove = 0.2\n"
            with (jobs / "nightly.toml").open("a") as file:
                file.write(f"[[trigger]]\nkind = 'drift'\n{watched}")
            dark = some_digits(80, seed=2) / 4
            for at in range(0, 80, 8):
                assert tick().started == ()
                assert ask(served, "POST", "/v2/models/digits/infer", plain(dark[at : at + 8]))[0] == 200
            ticked = tick()
            (started,) = ticked.started
            assert re.match(r"channel_0 was [0-9.]+, [0-9.]+ in 2 windows in a row, above 0\.2\.", started.why)
            end(ticked)
            with journals.opened(nightly.folder) as kept:
                kept.end(1, "kept")
            assert tick().started == ()


class TestPerson:
    def test_a_run_that_is_cancelled_is_ended_and_never_goes_on(self, nightly: Scheduled, tick) -> None:
        tick()
        with journals.opened(nightly.folder) as kept:
            kept.begin("manual 1")
        holder = subprocess.Popen([sys.executable, "-c", HOLDS, str(nightly.folder)], stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None
        holder.stdout.readline()
        assert schedule.pid_of(nightly.folder) == holder.pid
        assert schedule.cancel(nightly).state == "cancelled"
        holder.communicate()
        assert holder.returncode == -signal.SIGTERM
        with pytest.raises(MismatchError, match="no run of nightly is unfinished"):
            schedule.cancel(nightly)

    def test_of_two_unfinished_runs_the_one_that_is_worked_on_is_cancelled(self, nightly: Scheduled, tick) -> None:
        tick()
        with journals.opened(nightly.folder) as kept:
            kept.end(kept.begin("one").number, "awaiting", "asks")
            kept.end(kept.begin("two").number, "blocked", "hub: down")
            kept.begin("one")  # approved
        assert schedule.cancel(nightly).cause == "one"
        with journals.opened(nightly.folder) as kept:
            assert [run.state for run in kept.runs()] == ["blocked", "cancelled"]

    def test_days_of_waiting_for_a_person_are_no_hours_of_the_machine(self, nightly: Scheduled, tick) -> None:
        tick()
        now = datetime.now(UTC)
        with journals.opened(nightly.folder) as kept:
            kept.end(kept.begin("one").number, "awaiting", "asks")
            kept.begin("one")  # approved
            kept.end(1, "promoted")
            for kind, hours in (("begun", 100), ("awaiting", 98), ("continued", 3), ("promoted", 2)):
                at = now.timestamp() - 3600 * hours
                kept.base.execute("UPDATE event SET at = ? WHERE kind = ?", (at, kind))
                kept.base.execute("UPDATE run SET begun = min(begun, ?), ended = ?", (at, at))
            assert hours_spent(schedule.past_of(kept), now) == pytest.approx(3)

    def test_what_is_suspended_goes_on_when_somebody_says_so(self, nightly: Scheduled, tick) -> None:
        tick()
        with pytest.raises(MismatchError, match="no run of nightly is awaiting approval or suspended"):
            schedule.approve(nightly, None)
        with journals.opened(nightly.folder) as kept:
            kept.end(kept.begin("manual 1").number, "suspended", "crashed")
        started = schedule.approve(nightly, "000001")
        end(Ticked((started,), (), {}))
        with journals.opened(nightly.folder) as kept:
            assert [event.kind for event in kept.events(1)][-3:] == ["resumed", "continued", "started"]

    def test_status_and_history_say_how_jobs_stand(self, nightly: Scheduled, tick) -> None:
        assert board.status(nightly, datetime.now(UTC))["state"] == "new"
        tick()
        end(tick(1))
        with journals.opened(nightly.folder) as kept:
            kept.crown(1, commit="c" * 40, digest="d" * 64)
            kept.end(1, "promoted", "every rule is kept.")
        status = board.status(nightly, datetime.now(UTC))
        assert (status["run"], status["state"], status["pid"]) == ("000001", "promoted", None)
        assert status["champion"]["commit"] == "c" * 40
        assert len(status["next"]) == 3
        (row,) = board.history(nightly.folder)
        assert (row["state"], row["why"]) == ("promoted", "every rule is kept.")
        events, _ = board.logs(nightly.folder, None)
        assert any("begun" in line for line in board.lines(events))
        (nightly.folder / "runs" / "000001" / "log").write_bytes(b"early " + b"late " * board.TAIL)
        assert board.logs(nightly.folder, None)[1] == "late " * (board.TAIL // 5)

    def test_an_unknown_job_is_told_its_near_match(self, jobs: Path, tmp_path: Path) -> None:
        with pytest.raises(MismatchError, match=r"no job in .*jobs is 'nihgtly'\. Did you mean 'nightly'"):
            schedule.named(jobs, tmp_path, "nihgtly")
        with pytest.raises(MismatchError, match="there is no folder nowhere"):
            schedule.tick(Path("nowhere"))


class TestShell:
    def rrmsdk(self, *words: str, state: Path) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"RRMSDK_STATE": str(state)}
        command = [sys.executable, "-m", "rrmsdk", *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    def test_of_two_starters_the_second_says_who_and_leaves(self, nightly: Scheduled) -> None:
        with hold(nightly.folder):
            done = self.rrmsdk("retrain", str(nightly.path), state=nightly.folder.parent)
        assert done.returncode == 75
        assert done.stderr == f"rrmsdk: nightly: process {os.getpid()} works on this job. Wait for it, or stop it\n"

    def test_what_is_no_job_is_exit_code_64(self, tmp_path: Path) -> None:
        (tmp_path / "job.toml").write_text("version = 1")
        done = self.rrmsdk("retrain", str(tmp_path / "job.toml"), state=tmp_path)
        assert done.returncode == 64
        assert "field 'name' is missing" in done.stderr

    def test_status_is_one_object(self, jobs: Path, tmp_path: Path) -> None:
        done = self.rrmsdk("schedule", "status", "--jobs", str(jobs), "--json", state=tmp_path)
        assert [row["job"] for row in json.loads(done.stdout)["jobs"]] == ["nightly"]
