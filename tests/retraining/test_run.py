"""A run of a job, from its references to a champion: what is done, what is not done twice, what is kept out and why."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from huggingface_hub import close_session

import rrmsdk
from rrmsdk import files
from rrmsdk.errors import FieldError, MismatchError
from rrmsdk.retraining import journal as journals
from rrmsdk.retraining.approval import approve
from rrmsdk.retraining.due import due
from rrmsdk.retraining.observe import observe
from rrmsdk.retraining.outcome import Outcome
from rrmsdk.retraining.plan import Plan
from rrmsdk.retraining.room import STORE
from rrmsdk.retraining.schedule import past_of
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import CARD, CURVE
from rrmsdk.schema.curve import Curve
from rrmsdk.schema.report import Report
from tests.hub_server import HubServer
from tests.retraining import digits_job
from tests.retraining.digits_job import IMAGES, TEACHER, World

STAGES = ["plan", "fetch", "transfer", "verify", "export"]


def attempts(digits: World) -> list[str]:
    """The stages that were worked on, in their order, in all runs."""
    with journals.opened(digits.folder) as kept:
        return [event.told["stage"] for event in kept.events(kind="attempt")]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Outcome]]:
    """A job that was run once."""
    with HubServer() as server:
        begun = digits_job.world(server, tmp_path_factory.mktemp("first"))
        yield begun, begun.retrain(cause="cron 2026-01-04T02:00Z")
        close_session()


class TestFirst:
    def test_the_first_challenger_becomes_champion_in_one_commit(self, first: tuple[World, Outcome]) -> None:
        digits, outcome = first
        assert (outcome.state, outcome.exit_code) == ("promoted", 0)
        assert digits.published == [digits.champion] == [outcome.commit]
        assert list(outcome.made) == STAGES
        assert attempts(digits) == STAGES

    def test_what_is_published_is_what_was_judged_and_says_who_taught(
        self, first: tuple[World, Outcome], tmp_path: Path
    ) -> None:
        digits, outcome = first
        ref = f"hub:{digits.job.push.repo}@{outcome.commit}"
        pulled = rrmsdk.pull(ref, tmp_path / "pulled", endpoint=digits.hub.endpoint)
        made = bundles.read(digits.folder / STORE / outcome.made["export"])
        assert pulled.card == made.card
        assert pulled.report.images == IMAGES
        (teacher,) = pulled.card.teachers
        assert teacher.ref == "hub:digits-cnn-linf"
        assert teacher.weights_sha256 == files.sha256(TEACHER / "model.safetensors")
        assert pulled.card.name == "tiny"
        assert str(digits.place) not in "".join(
            (made.path / name).read_text() for name in (CARD, bundles.RECIPE, bundles.REPORT)
        )

    def test_the_plan_names_everything_by_hash_and_version(self, first: tuple[World, Outcome]) -> None:
        digits, outcome = first
        plan = value.from_json(Plan, (digits.folder / STORE / outcome.made["plan"]).read_bytes())
        assert plan.job == digits.job.digest
        assert plan.teachers[0].card == files.sha256(TEACHER / CARD)
        assert len(plan.data.fingerprint) == 64
        assert plan.versions["rrmsdk"] == rrmsdk.__version__
        assert "torch" in plan.versions

    def test_the_same_cause_is_never_done_again(self, first: tuple[World, Outcome]) -> None:
        digits, outcome = first
        asked = len(digits.hub.requests)
        assert digits.retrain(cause=outcome.cause) == outcome
        assert len(digits.hub.requests) == asked

    def test_another_run_of_the_same_job_makes_nothing_again_and_keeps_the_champion(self, digits: World) -> None:
        first, second = digits.retrain(), digits.retrain()
        assert (second.run, second.state) == ("000002", "kept")
        assert "the challenger is the champion itself" in second.why
        assert attempts(digits) == [*STAGES, "plan", "champion"]
        assert second.made["export"] == second.made["champion"] == first.made["export"]
        assert len(digits.published) == 1


class TestByHand:
    def test_what_it_learned_from_is_not_called_new_by_the_trigger(self, digits: World, tmp_path: Path) -> None:
        (tmp_path / "rows").mkdir()
        (tmp_path / "rows" / "a.png").write_bytes(b"a")
        digits = digits.but(trigger=[{"kind": "data", "source": f"path:{tmp_path}/rows"}])

        def reasons() -> list[str]:
            with journals.opened(digits.folder) as kept:
                past = past_of(kept)
            return [cause.kind for cause in due(digits.job, past, observe(digits.job).observed, datetime.now(UTC))]

        assert digits.retrain().state == "promoted"
        assert reasons() == []
        (tmp_path / "rows" / "b.png").write_bytes(b"b")
        assert reasons() == ["data"]


class TestGate:
    def test_an_equal_challenger_replaces_the_champion_and_is_compared_on_its_images(self, digits: World) -> None:
        first = digits.retrain()
        second = digits.student("equal-1").retrain()
        assert second.state == "promoted"
        assert digits.published == [first.commit, second.commit]
        assert digits.champion == second.commit
        assert second.decision is not None
        assert (second.decision.old, second.decision.count) == (first.made["export"], IMAGES)
        assert {check.name for check in second.decision.checks} == {"robust_margin", "clean_margin"}
        assert "champion-verify" not in second.made  # its own report is of the same attacks on the same images

    @pytest.mark.slow
    def test_the_champion_is_attacked_again_once_where_its_report_is_of_other_images(self, digits: World) -> None:
        digits.retrain()
        fewer = digits.but(judge={"images": IMAGES - 10}, gate={"robust_floor": 1.0})  # so that it stays
        one, two = fewer.student("equal-1").retrain(), fewer.student("equal-2").retrain()
        assert one.made["champion-verify"] == two.made["champion-verify"]
        assert attempts(digits).count("champion-verify") == 1

    def test_a_worse_challenger_is_kept_out_and_told_why(self, digits: World) -> None:
        first = digits.retrain()
        second = digits.student("shuffled").retrain()
        assert (second.state, second.exit_code) == ("kept", 0)
        assert digits.published == [first.commit]
        assert "FAIL  robust_margin: " in second.summary()
        assert digits.decisions(second) == [second.decision]
        # It was seen before all images were judged, and then nothing more was made of it.
        assert set(second.made) == {"plan", "fetch", "transfer", "champion", "screen"}
        assert second.decision is not None
        assert 0 < second.decision.checks[0].numbers["images"] < IMAGES

    @pytest.mark.slow
    def test_one_that_called_for_adaptive_attacks_is_compared_with_one_that_did_not(self, digits: World) -> None:
        judged = digits.but(judge={"attack": "autoattack", "images": 16})
        first, second = judged.retrain(), judged.student("masked").but(gate={"early": False}).retrain()
        assert second.state in ("kept", "promoted"), second.why
        reports = [value.read(Report, judged.folder / STORE / one.made["verify"]) for one in (first, second)]
        assert [report.attack for report in reports] == ["autoattack", "autoattack + adaptive"]

    @pytest.mark.slow
    def test_it_is_judged_to_the_end_where_that_was_asked_for(self, digits: World) -> None:
        digits.retrain()
        second = digits.student("shuffled").but(gate={"early": False}).retrain()
        assert second.state == "kept"
        assert set(second.made) == {"plan", "fetch", "transfer", "verify", "export", "champion"}

    @pytest.mark.slow
    def test_an_end_beside_a_champion_that_is_none_any_more_decides_nothing(self, digits: World) -> None:
        """Its judging ends early beside a good champion; before the gate somebody goes back to a bad one."""
        bad, good = digits.student("shuffled").retrain(), digits.student("equal").retrain()
        assert digits.published == [bad.commit, good.commit]
        moved = []

        def rolled_back(method: str, path: str) -> None:
            with journals.opened(digits.folder) as kept:
                screened = "screen" in kept.outputs(3)
            if screened and not moved:
                moved.append(digits.rollback)
                digits.rollback()

        digits.hub.trouble = rolled_back
        third = digits.student("shuffled-1").retrain()
        assert moved
        assert (third.state, third.run) == ("promoted", "000003")
        assert {"screen", "verify", "export"} <= set(third.made)
        assert third.decision is not None
        assert third.decision.old == bad.made["export"]

    @pytest.mark.slow
    def test_a_champion_of_another_threat_is_not_compared(self, digits: World) -> None:
        digits.retrain()
        second = digits.but(recipe={"threat": {"norm": "linf", "eps": "1/20"}}).retrain()
        assert (second.state, second.exit_code) == ("failed", 1)
        assert "withstands linf:1/10, the job trains for linf:1/20: they cannot be compared" in second.why

    @pytest.mark.slow
    def test_an_audit_is_of_images_that_no_gate_sees(self, digits: World) -> None:
        audited = digits.but(gate={"audit_every": 2, "audit_images": 40})
        audited.retrain()
        second = audited.student("equal-1").retrain()
        assert second.state == "promoted"
        assert {"audit", "champion-audit"} <= set(second.made)
        assert second.decision is not None
        assert {check.numbers["images"] for check in second.decision.checks if check.name.startswith("audit")} == {40}

    @pytest.mark.slow
    def test_more_images_than_there_are_is_said(self, digits: World) -> None:
        outcome = digits.but(judge={"images": 350}, gate={"audit_every": 1, "audit_images": 10}).retrain()
        assert outcome.state == "failed"
        assert "'digits' has 359 test images; judge.images = 350 and gate.audit_images = 10 need 360" in outcome.why


class TestApproval:
    def test_a_person_has_the_last_word(self, digits: World) -> None:
        asks = digits.but(gate={"approval": True})
        waiting = asks.retrain()
        assert (waiting.state, waiting.exit_code) == ("awaiting", 77)
        assert asks.retrain().state == "awaiting"
        assert "models/" + asks.job.push.repo not in asks.hub.repos
        with journals.opened(asks.folder) as kept:
            approve(kept, kept.run(1))
        assert asks.retrain().state == "promoted"
        assert len(asks.published) == 1
        assert attempts(asks) == STAGES

    @pytest.mark.slow
    def test_a_yes_to_one_comparison_is_none_to_another(self, digits: World) -> None:
        digits.retrain()
        asks = digits.student("equal-1").but(gate={"approval": True})
        asks.retrain()
        with journals.opened(asks.folder) as kept:
            approve(kept, kept.run(2))
        digits.student("equal-2").retrain(cause="somebody else")  # another champion meanwhile
        assert asks.retrain().state == "awaiting"
        assert len(digits.published) == 2

    @pytest.mark.slow
    def test_a_run_that_asks_nothing_cannot_be_approved(self, digits: World) -> None:
        with journals.opened(digits.folder) as kept:
            kept.end(kept.begin("manual").number, "promoted")
        with (
            journals.opened(digits.folder) as kept,
            pytest.raises(MismatchError, match="run 000001 of tiny is promoted and asks nobody"),
        ):
            approve(kept, kept.run(1))


class TestRollback:
    def test_servers_follow_the_champion_before_and_the_one_that_failed_does_not_come_back(self, digits: World) -> None:
        first, second = digits.retrain(), digits.student("equal-1").retrain()
        assert digits.champion == second.commit
        assert digits.rollback().commit == digits.champion == first.commit
        again = digits.student("equal-1").retrain()
        assert (again.state, again.why) == ("kept", "This very model was champion and was rolled back by a person.")
        assert digits.champion == first.commit
        assert digits.rollback(str(second.commit)).commit == digits.champion == second.commit
        with journals.opened(digits.folder) as kept:
            assert kept.champion() == 2


class TestTold:
    @pytest.mark.slow
    def test_a_command_reads_what_happened_as_json(self, digits: World) -> None:
        heard = digits.place / "heard.json"
        command = [sys.executable, "-c", f"import sys; open({str(heard)!r}, 'a').write(sys.stdin.read() + '\\n')"]
        told = digits.but(notify=[{"kind": "command", "command": command, "on": ["promoted"]}])
        outcome = told.retrain(cause="once")
        told.retrain(cause="once")
        (line,) = heard.read_text().splitlines()
        assert json.loads(line)["commit"] == outcome.commit
        assert json.loads(line)["decision"]["verdict"] == "promote"

    @pytest.mark.slow
    def test_what_cannot_be_told_fails_no_run_and_shows_no_secret(self, digits: World, monkeypatch) -> None:
        monkeypatch.setenv("RRMSDK_TEST_HOOK", "http://127.0.0.1:1/T0/hidden")
        notify = [
            {"kind": "webhook", "url": {"env": "RRMSDK_TEST_HOOK"}},
            {"kind": "webhook", "url": "http://127.0.0.1:1/T0/hidden"},
            {"kind": "command", "command": ["/nowhere/at/all"]},
        ]
        assert digits.but(notify=notify).retrain().state == "promoted"
        with journals.opened(digits.folder) as kept:
            events = kept.events()
        (announced,) = [event.told for event in events if event.kind == "announced"]
        assert [line.partition(": ")[0] for line in announced["to"]] == [
            "$RRMSDK_TEST_HOOK", "127.0.0.1:1", "/nowhere/at/all"
        ]  # fmt: skip
        assert "hidden" not in str(events)
        assert digits.hub.token not in str(events)


def test_failures_in_a_row_suspend(digits: World) -> None:
    bad = digits.but(judge={"images": 1000}, budget={"max_failures": 2})
    first, second = bad.retrain(), bad.retrain()
    assert (first.state, second.state, second.exit_code) == ("failed", "suspended", 1)
    assert second.why.startswith("failure 2 in a row: 'digits' has 359 test images")


def test_a_secret_that_is_not_there_is_said(digits: World, monkeypatch) -> None:
    monkeypatch.delenv("RRMSDK_TEST_TOKEN")
    outcome = digits.retrain()
    assert outcome.state == "failed"
    assert "$RRMSDK_TEST_TOKEN holds no secret" in outcome.why


def test_a_file_that_is_no_job_is_said(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text("version = 1\nname = 'x'\nrecipes = 1\n")
    with pytest.raises(FieldError, match=r"unknown field 'recipes'\. Did you mean 'recipe'"):
        rrmsdk.retrain(tmp_path / "job.toml", state=tmp_path)


@pytest.mark.slow
def test_a_curve_that_is_asked_for_goes_into_the_bundle_and_decides_nothing(digits: World) -> None:
    job = digits.but(judge={"curve": "0..1/5:2", "curve_images": 20})
    outcome = job.retrain()
    assert outcome.state == "promoted"
    assert list(outcome.made) == [*STAGES[:4], "curve", "export"]
    found = value.read(Curve, job.folder / STORE / outcome.made["export"] / CURVE)
    assert ([str(one.eps) for one in found.points], found.images) == (["0", "1/10", "1/5"], 20)
    assert CURVE in job.repo.commits[job.champion].files
    assert job.retrain(cause="again").decision is not None
    assert attempts(job).count("curve") == 1  # the same weights on the same images
