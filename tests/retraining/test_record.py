"""A job and its runs as one object each, read by somebody who takes no lock and writes nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rrmsdk.errors import IntegrityError, MismatchError
from rrmsdk.files import sha256
from rrmsdk.retraining import journal as journals
from rrmsdk.retraining import record
from rrmsdk.retraining.lock import hold, holder
from rrmsdk.retraining.room import entered
from tests.retraining import weekly

NOW = datetime(2026, 11, 4, 12, tzinfo=UTC)
CRASHED = "DivergedError: the loss is nan at step #"

HOLDER = """
import sys
from pathlib import Path
from rrmsdk.retraining.lock import holder
print(holder(Path(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Jobs, and the state of one that was promoted, kept its champion, and failed in 12 weeks."""
    place = tmp_path_factory.mktemp("weekly")
    (place / "jobs").mkdir()
    (place / "jobs" / "weekly.toml").write_text(weekly.JOB)
    with entered(place / "state" / "weekly") as room:
        _, champion = weekly.ran(room, 1, 0.5, None)
        _, champion = weekly.ran(room, 2, 0.7, champion)
        for week in range(3, 12):
            weekly.ran(room, week, 0.4, champion)
        failed = room.journal.begin("cron 2026-W12", kind="cron", says="The slot of week 12.")
        room.journal.crashed(room.journal.attempt(failed.number, "transfer", "key"), CRASHED)
        room.journal.end(failed.number, "failed", "the loss is nan")
    return place


@pytest.fixture
def place(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(written, tmp_path / "it")
    return tmp_path / "it"


def job(place: Path, name: str = "weekly") -> record.Told:
    return record.job(place / "jobs", place / "state", name, NOW)


def run(place: Path, number: int) -> record.Told:
    return record.run(place / "jobs", place / "state", "weekly", number)


class TestAJob:
    def test_has_its_runs_the_newest_first(self, written: Path) -> None:
        told = job(written)
        assert [one["run"] for one in told["runs"]] == [f"{number:06d}" for number in range(12, 0, -1)]
        assert [one["state"] for one in told["runs"]] == ["failed", *["kept"] * 9, "promoted", "promoted"]
        assert told["next"][0] == "Mon 2026-11-09 03:00 +0000 UTC"

    def test_has_its_challengers_by_their_reports_with_intervals(self, written: Path) -> None:
        found, told = weekly.report(weekly.outcomes(5, 0.4)), job(written)["runs"][7]["challenger"]
        assert told["robust"] == {"share": found.robust, "low": found.interval[0], "high": found.interval[1]}
        assert (told["images"], told["attack"], told["threat"]) == (weekly.IMAGES, "fast", "linf:1/10")

    def test_has_them_by_the_decision_where_the_report_was_removed(self, place: Path) -> None:
        before = job(place)["runs"][7]["challenger"]
        shutil.rmtree(place / "state" / "weekly" / "objects" / "sha256")
        after = job(place)["runs"][7]["challenger"]
        assert after == {name: before[name] for name in ("clean", "robust", "images")}

    def test_has_the_champion_that_a_challenger_was_compared_with(self, written: Path) -> None:
        champion = weekly.report(weekly.outcomes(2, 0.7))
        assert job(written)["runs"][3]["champion"]["robust"]["share"] == champion.robust

    def test_says_from_when_on_which_run_was_champion(self, written: Path) -> None:
        crowned = job(written)["champions"]
        assert [(one["run"], one["commit"]) for one in crowned] == [("000001", f"{1:040x}"), ("000002", f"{2:040x}")]

    def test_without_a_file_is_still_shown(self, place: Path) -> None:
        (place / "jobs" / "weekly.toml").unlink()
        told = job(place)
        assert (told["file"], told["held"]) == (None, "No file of this job was read: nothing of it begins.")
        assert len(told["runs"]) == 12

    def test_that_never_ran_has_no_runs(self, written: Path, tmp_path: Path) -> None:
        told = record.job(written / "jobs", tmp_path, "weekly", NOW)
        assert (told["state"], told["runs"]) == ("new", [])
        assert not list(tmp_path.iterdir())

    def test_that_nobody_knows_is_told_its_near_match(self, written: Path) -> None:
        with pytest.raises(MismatchError, match=r"there is no job 'wekly' here\. Did you mean 'weekly'"):
            job(written, "wekly")


class TestARun:
    def test_links_every_artefact_by_digest(self, written: Path) -> None:
        found = {one["stage"]: one for one in run(written, 2)["artefacts"]}
        assert list(found) == ["transfer", "verify", "export"]
        assert [one["name"] for one in found["transfer"]["files"]] == ["curve.json", "model.safetensors"]
        store = written / "state" / "weekly" / "objects" / "sha256"
        assert sha256(store / found["verify"]["digest"]) == found["verify"]["digest"]

    def test_says_what_was_removed(self, place: Path) -> None:
        digest = run(place, 2)["artefacts"][0]["digest"]
        shutil.rmtree(place / "state" / "weekly" / "objects" / "sha256" / digest)
        assert run(place, 2)["artefacts"][0] == {
            "stage": "transfer", "digest": digest, "there": False, "folder": False, "files": []
        }  # fmt: skip

    def test_has_its_decision_with_each_rule_and_the_digest_of_the_record(self, written: Path) -> None:
        (decision,) = run(written, 3)["decisions"]
        assert (decision["verdict"], [check["name"] for check in decision["checks"]]) == (
            "keep", ["robust_margin", "clean_margin"]
        )  # fmt: skip
        file = written / "state" / "weekly" / "runs" / "000003" / "decision-1.json"
        assert decision["sha256"] == sha256(file)

    def test_says_of_a_lost_record_what_the_journal_says(self, place: Path) -> None:
        (place / "state" / "weekly" / "runs" / "000003" / "decision-1.json").write_text("{")
        (decision,) = run(place, 3)["decisions"]
        assert (decision["lost"], decision["verdict"], decision["checks"]) == (True, "keep", [])

    def test_has_its_stages_with_seconds_and_crashes(self, written: Path) -> None:
        assert [(one["stage"], one["state"]) for one in run(written, 2)["stages"]] == [
            ("transfer", "done"), ("verify", "done"), ("export", "done")
        ]  # fmt: skip
        assert all(one["seconds"] >= 0 for one in run(written, 2)["stages"])
        (stage,) = run(written, 12)["stages"]
        assert (stage["state"], stage["attempts"], stage["crashes"]) == ("crashed", 1, [CRASHED])

    def test_has_the_curve_of_its_bundle(self, written: Path) -> None:
        curve = run(written, 2)["curve"]
        assert ([one["eps"] for one in curve["points"]], curve["trained"]) == (["0", "1/20", "1/10"], 0.1)

    def test_has_the_curve_of_the_champion_that_it_met(self, written: Path) -> None:
        first, second = (run(written, number)["curve"] for number in (1, 2))
        assert first["champion"] == []
        assert second["champion"] == first["points"] != second["points"]

    def test_that_is_none_is_told(self, written: Path) -> None:
        with pytest.raises(MismatchError, match="weekly has no run 000099"):
            run(written, 99)


class TestWhoOnlyLooks:
    def test_sees_a_job_while_a_run_writes(self, place: Path) -> None:
        with entered(place / "state" / "weekly") as room:
            begun = room.journal.begin("manual", kind="manual", says="Started by hand.")
            room.journal.attempt(begun.number, "transfer", "key")
            with room.journal._writing():
                told = run(place, 13)
            assert (told["state"], told["stages"][0]["state"]) == ("running", "begun")
            assert job(place)["pid"] == os.getpid()
        assert job(place)["pid"] is None

    def test_leaves_the_lock_to_others(self, tmp_path: Path) -> None:
        assert holder(tmp_path) is None
        with hold(tmp_path):
            seen = subprocess.run([sys.executable, "-c", HOLDER, str(tmp_path)], capture_output=True, text=True)
            assert seen.stdout == f"{os.getpid()}\n"
        assert holder(tmp_path) is None

    def test_cannot_write(self, written: Path) -> None:
        with (
            journals.reading(written / "state" / "weekly") as kept,
            pytest.raises(Exception, match="attempt to write a readonly database"),
        ):
            kept.note(None, "seen")

    def test_is_told_of_a_damaged_journal_and_sees_the_other_jobs(self, place: Path) -> None:
        shutil.copytree(place / "state" / "weekly", place / "state" / "other")
        (place / "state" / "weekly" / "journal.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
        rows = {one["job"]: one for one in record.overview(place / "jobs", place / "state", NOW)["jobs"]}
        assert rows["weekly"]["state"] == "unread"
        assert "weekly/journal.sqlite is damaged (file is not a database)" in rows["weekly"]["trouble"]
        assert rows["other"]["run"] == "000012"
        assert (job(place)["trouble"], job(place)["runs"]) == (rows["weekly"]["trouble"], [])
        with pytest.raises(IntegrityError, match="is damaged"):
            run(place, 2)

    def test_is_told_of_a_journal_of_a_newer_version(self, place: Path) -> None:
        with journals.opened(place / "state" / "weekly") as kept:
            kept.base.execute("PRAGMA user_version = 9")
        with pytest.raises(IntegrityError, match=r"has version 9; this rrmsdk reads 1\. Upgrade rrmsdk"):
            run(place, 2)

    def test_is_told_of_files_that_hold_no_job(self, written: Path, tmp_path: Path) -> None:
        shutil.copytree(written / "jobs", tmp_path / "jobs")
        (tmp_path / "jobs" / "bad.toml").write_text("version = 1")
        told = record.overview(tmp_path / "jobs", tmp_path, NOW)
        assert list(told["troubles"]) == ["bad.toml"]
        assert record.overview(tmp_path / "no", tmp_path, NOW)["troubles"] == {
            str(tmp_path / "no"): f"there is no folder {tmp_path / 'no'}. Give --jobs, a folder of job files "
            "(rrmsdk job init)"
        }
