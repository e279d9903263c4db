"""What changes under a job: a teacher moves, goes or arrives damaged; attacks find more than they did."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from rrmsdk.retraining import journal as journals
from rrmsdk.retraining.approval import approve
from rrmsdk.retraining.due import due
from rrmsdk.retraining.observe import observe
from rrmsdk.retraining.outcome import Outcome
from rrmsdk.retraining.room import STORE
from rrmsdk.retraining.schedule import past_of
from rrmsdk.schema import bundle as bundles
from tests.retraining.digits_job import TEACHER, World


class Damaged(dict[str, bytes]):
    """Weights that arrive damaged for some time."""

    def __init__(self, times: Iterator[bytes], whole: bytes) -> None:
        self.times, self.whole, self.asked = times, whole, 0

    def get(self, name: str, default: object = None):  # type: ignore[override]
        if name != "model.safetensors":
            return default
        self.asked += 1
        return next(self.times, self.whole)


class TestTeacher:
    @pytest.mark.slow
    def test_a_new_one_is_only_proposed_and_a_yes_is_to_that_commit(self, digits: World) -> None:
        job = self.hosted(digits)
        repo, _, old = str(job.job.recipe.teacher).removeprefix("hub:").partition("@")
        moving = job.but(recipe={"teacher": f"hub:{repo}"}, trigger=[{"kind": "teacher"}])
        moving.retrain()
        new = self.moved(moving, repo)
        assert self.taught(moving, moving.student("equal-1").retrain()) == old  # nobody has said yes
        with journals.opened(moving.folder) as kept:
            teachers = {f"hub:{repo}": new}
            kept.begin("teacher", kind="teacher", says="It is at another.", propose=True, teachers=teachers)
        asking = moving.student("equal-2").retrain(cause="teacher")
        assert (asking.state, asking.why) == ("awaiting", "It is at another.")
        assert asking.made == {}
        self.moved(moving, repo)  # yet another
        with journals.opened(moving.folder) as kept:
            approve(kept, kept.of("teacher"))
        assert self.taught(moving, moving.student("equal-2").retrain(cause="teacher")) == new

    def test_after_a_first_run_by_hand_a_new_one_is_due(self, digits: World) -> None:
        job = self.hosted(digits)
        repo = str(job.job.recipe.teacher).removeprefix("hub:").partition("@")[0]
        moving = job.but(recipe={"teacher": f"hub:{repo}"}, trigger=[{"kind": "teacher"}])

        def reasons() -> list[str]:
            seen = observe(moving.job, endpoint=digits.hub.endpoint).observed
            with journals.opened(moving.folder) as kept:
                return [cause.kind for cause in due(moving.job, past_of(kept), seen, datetime.now(UTC))]

        assert moving.retrain().state == "promoted"
        assert reasons() == []
        self.moved(moving, repo)
        assert reasons() == ["teacher"]
        moving.student("equal-1").retrain(cause="with the old one, as nobody has said yes")
        assert reasons() == ["teacher"]

    def moved(self, job: World, repo: str) -> str:
        files = {path.name: path.read_bytes() for path in TEACHER.iterdir()}
        return job.hub.put(repo, files | {"NEW.md": str(len(job.hub.requests)).encode()}).oid

    def taught(self, job: World, outcome: Outcome) -> str | None:
        (teacher,) = bundles.read(job.folder / STORE / outcome.made["export"]).card.teachers
        return teacher.revision

    def hosted(self, digits: World, name: str = "") -> World:
        """The job with its teacher on the Hub."""
        repo = name or f"acme/teacher-{uuid.uuid4().hex[:8]}"
        files = {path.name: path.read_bytes() for path in TEACHER.iterdir()}
        commit = digits.hub.put(repo, files)
        return digits.but(recipe={"teacher": f"hub:{repo}@{commit.oid}"})

    @pytest.mark.slow
    def test_the_card_names_the_commit_that_taught(self, digits: World) -> None:
        job = self.hosted(digits)
        outcome = job.retrain()
        (teacher,) = bundles.read(job.folder / STORE / outcome.made["export"]).card.teachers
        assert f"{teacher.ref}" == job.job.recipe.teacher
        assert teacher.revision == str(job.job.recipe.teacher).partition("@")[2]

    @pytest.mark.slow
    def test_one_that_is_gone_teaches_on_from_the_store_and_the_card_says_so(self, digits: World) -> None:
        job = self.hosted(digits)
        job.retrain()
        self.forget(job)
        outcome = job.student("equal-1").retrain()
        assert outcome.state == "promoted"
        assert "is no longer on its Hub; the copy of an earlier run taught" in outcome.warnings[0]
        assert outcome.warnings[0] in bundles.read(job.folder / STORE / outcome.made["export"]).card.notes

    def test_one_that_is_gone_and_was_never_kept_blocks_though_another_revision_is_there(self, digits: World) -> None:
        job = self.hosted(digits)
        self.forget(job)
        self.hosted(digits, str(job.job.recipe.teacher).removeprefix("hub:").partition("@")[0])  # another commit
        blocked = job.retrain()
        assert (blocked.state, blocked.exit_code) == ("blocked", 76)
        assert blocked.why.startswith("teacher-gone: ")
        assert f"models/{job.job.push.repo}" not in job.hub.repos

    @pytest.mark.slow
    def test_one_that_arrives_damaged_is_asked_for_again(self, digits: World) -> None:
        job = self.hosted(digits)
        whole = (TEACHER / "model.safetensors").read_bytes()
        times = iter([b"x" + whole[1:]] * 2)
        served = Damaged(times, whole)
        job.hub.served = served
        assert job.retrain().state == "promoted"
        assert served.asked > 2

    def test_one_that_always_arrives_damaged_fails(self, digits: World) -> None:
        job = self.hosted(digits)
        job.hub.served = {"model.safetensors": b"x" + (TEACHER / "model.safetensors").read_bytes()[1:]}
        outcome = job.retrain()
        assert outcome.state == "failed"
        assert "sha256" in outcome.why

    def forget(self, job: World) -> None:
        repo = str(job.job.recipe.teacher).removeprefix("hub:").partition("@")[0]
        kept = job.hub.repos[f"models/{repo}"]
        kept.commits.clear()
        kept.branches.clear()
        kept.add("main", "another start", {})


class TestRegression:
    @pytest.mark.slow
    def test_attacks_that_find_more_are_on_the_champions_card_at_once_and_call_for_another(self, digits: World) -> None:
        first = digits.student("masked").retrain()
        trigger = [{"kind": "regression", "suite": "fast", "above": 0.02}]
        stronger = digits.student("equal", trigger=trigger, judge={"attack": "fast"})
        with journals.opened(stronger.folder) as kept:
            kept.begin("regression", kind="regression", says="Attacks have changed.")
        outcome = stronger.retrain()
        assert outcome.state == "promoted"
        one, marked, last = digits.published
        assert (one, last) == (first.commit, outcome.commit)
        said = [json.loads(digits.repo.commits[oid].files["report.json"].content) for oid in (one, marked)]
        assert said[1]["robust"] < said[0]["robust"] - 0.02
        assert said[1]["weights_sha256"] == said[0]["weights_sha256"]

    @pytest.mark.slow
    def test_a_rollback_passes_over_the_mark_to_another_model(self, digits: World) -> None:
        first = digits.student("equal-1").retrain()
        masked = digits.student("masked")
        masked.retrain()
        with journals.opened(masked.folder) as kept:
            kept.begin("regression", kind="regression", says="Attacks have changed.")
        masked.but(trigger=[{"kind": "regression", "suite": "fast", "above": 0.99}]).retrain()
        assert len(digits.published) == 3
        assert digits.rollback().commit == first.commit
        assert "was rolled back by a person" in masked.retrain().why

    @pytest.mark.slow
    def test_one_that_withstands_the_first_attack_and_not_the_second_calls_for_another(self, digits: World) -> None:
        digits.student("masked").retrain()
        trigger = [{"kind": "regression", "suite": suite, "above": 0.02} for suite in ("pgd", "fast")]
        both = digits.student("equal", trigger=trigger)
        with journals.opened(both.folder) as kept:
            kept.begin("regression", kind="regression", says="Attacks have changed.")
        assert both.retrain().state == "promoted"
        assert "kept" not in both.kinds(2)  # it would not have gone on after a kill

    @pytest.mark.slow
    def test_a_run_for_a_trigger_that_was_taken_out_of_the_job_ends(self, digits: World) -> None:
        with journals.opened(digits.folder) as kept:
            kept.begin("regression", kind="regression", says="Attacks have changed.")
        assert digits.retrain().state == "kept"

    @pytest.mark.slow
    def test_a_champion_that_withstands_them_stays_and_nothing_is_trained(self, digits: World) -> None:
        digits.retrain()
        again = digits.but(trigger=[{"kind": "regression", "suite": "pgd"}])
        with journals.opened(again.folder) as kept:
            kept.begin("regression", kind="regression", says="Attacks have changed.")
        outcome = again.retrain()
        assert outcome.state == "kept"
        assert "0 points less than its card said" in outcome.why
        assert "transfer" not in outcome.made
        assert len(digits.published) == 1
