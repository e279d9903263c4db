"""What is due: one run for each reason, whatever the clock does, and what holds a job back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrmsdk.retraining.due import due, held, hours_spent, manual
from rrmsdk.schema import value
from rrmsdk.schema.cause import Cause, DataSeen, Observed, Past, Window
from rrmsdk.schema.job import Job

RECIPE = {
    "teacher": "hub:acme/r18", "student": {"arch": "resnet50"}, "data": {"name": "path:/data"},
    "threat": {"eps": "8/255"}, "method": {"name": "rrm"},
}  # fmt: skip
NOW = datetime(2026, 6, 10, 12, 0, tzinfo=UTC)  # a Wednesday
DAILY = {"kind": "cron", "expression": "30 2 * * *", "timezone": "Europe/Berlin"}
DATA = {"kind": "data", "source": "path:/data"}
TEACHER = {"kind": "teacher"}
URL = "http://localhost:8000/v2/models/r50/drift"
DRIFT = {"kind": "drift", "url": URL, "statistic": "psi", "above": 0.2}
REGRESSION = {"kind": "regression", "suite": "autoattack"}
NOTHING = Observed()


def _job(*triggers: dict[str, Any], **budget: Any) -> Job:
    fields = {"version": 1, "name": "r50", "recipe": RECIPE, "push": {"repo": "acme/r50"}}
    return value.parse(Job, fields | {"trigger": triggers, "budget": budget})


def _run(
    key: str = "manual", state: str = "kept", began: datetime = NOW - timedelta(days=30), hours: float = 1, **saw: Any
):
    ended = None if state == "running" else began + timedelta(hours=hours)
    return Past(key=key, state=state, began=began, ended=ended, observed=Observed(**saw))


def _ran(cause: Cause, began: datetime, **saw: Any) -> Past:
    return _run(cause.key, began=began, hours=0, **saw)


def _data(digest: str, rows: int | None = None, changed: datetime | None = None) -> dict[str, Any]:
    return {"data": {"path:/data": DataSeen(digest=digest, rows=rows, changed=changed)}}


def _windows(*values: float, until: datetime = NOW) -> dict[str, Any]:
    return {"drift": {URL: tuple(
        Window(id=f"w{at}", ended=until - timedelta(hours=len(values) - at), values={"psi": one})
        for at, one in enumerate(values)
    )}}  # fmt: skip


def _says(job: Job, past=(), observed: Observed = NOTHING, now: datetime = NOW) -> list[str]:
    return [cause.says for cause in due(job, past, observed, now)]


def test_without_triggers_nothing_is_ever_due():
    assert due(_job(), (), Observed(**_data("a")), NOW) == ()


def test_a_slot_is_due_once():
    job = _job(DAILY)
    (cause,) = due(job, (), NOTHING, NOW)
    assert (cause.kind, cause.key) == ("cron", "cron 2026-06-10T00:30Z")
    assert cause.says == "The slot of Wednesday 2026-06-10 02:30 (Europe/Berlin), missed by 11.5 hours."
    assert due(job, [_ran(cause, NOW)], NOTHING, NOW + timedelta(minutes=1)) == ()


@pytest.mark.parametrize("state", ["promoted", "kept", "awaiting", "blocked", "failed", "cancelled"])
def test_a_slot_has_one_run_whatever_came_of_it(state):
    (cause,) = due(_job(DAILY), (), NOTHING, NOW)
    assert due(_job(DAILY), [_run(cause.key, state)], NOTHING, NOW) == ()


def test_of_missed_slots_the_latest_alone_is_due():
    ten_days = [_run("cron 2026-05-31T00:30Z")]
    assert [cause.key for cause in due(_job(DAILY), ten_days, NOTHING, NOW)] == ["cron 2026-06-10T00:30Z"]


def test_where_catching_up_is_not_wanted_a_missed_slot_is_gone():
    job, slot = _job(DAILY | {"catch_up": "none"}), datetime(2026, 6, 10, 0, 30, tzinfo=UTC)
    assert _says(job, now=slot + timedelta(minutes=2)) == ["The slot of Wednesday 2026-06-10 02:30 (Europe/Berlin)."]
    assert _says(job, now=slot + timedelta(minutes=5)) == []


def test_a_slot_of_before_the_job_was_there_is_not_missed():
    assert _says(_job(DAILY), observed=Observed(since=NOW - timedelta(hours=1))) == []
    assert len(_says(_job(DAILY), observed=Observed(since=NOW - timedelta(hours=1)), now=NOW + timedelta(days=1))) == 1


def test_two_expressions_that_meet_are_one_run():
    hourly = DAILY | {"expression": "30 * * * *"}
    assert len(due(_job(DAILY, hourly), (), NOTHING, datetime(2026, 6, 10, 0, 31, tzinfo=UTC))) == 1


def _ticked(job: Job, moments: list[datetime]) -> list[str]:
    """The keys that began, when it is asked at each of these moments in this order."""
    past: list[Past] = []
    for now in moments:
        past += [_ran(cause, now) for cause in due(job, past, NOTHING, now)]
    return [run.key for run in past]


def test_a_slot_in_the_gap_of_spring_runs_once():
    start = datetime(2026, 3, 28, 12, 0, tzinfo=UTC)
    keys = _ticked(_job(DAILY), [start + timedelta(minutes=10 * ten) for ten in range(6 * 36)])
    assert keys == ["cron 2026-03-28T01:30Z", "cron 2026-03-29T01:00Z"]


def test_a_slot_in_the_hour_that_autumn_repeats_runs_once():
    start = datetime(2026, 10, 24, 12, 0, tzinfo=UTC)
    keys = _ticked(_job(DAILY), [start + timedelta(minutes=10 * ten) for ten in range(6 * 36)])
    assert keys == ["cron 2026-10-24T00:30Z", "cron 2026-10-25T00:30Z"]


def test_a_clock_that_is_set_back_runs_nothing_again():
    hourly = _job(DAILY | {"expression": "0 * * * *"})
    there = [NOW + timedelta(minutes=minute) for minute in (0, 61, 121)]
    assert _ticked(hourly, there) == _ticked(hourly, [*there, *there[:2], NOW - timedelta(hours=5), *there])


def test_a_clock_that_was_years_ahead_holds_up_nothing():
    ahead = [_run("cron 2099-01-01T00:30Z", began=datetime(2099, 1, 1, tzinfo=UTC))]
    assert len(_says(_job(DAILY, min_interval=3600), ahead)) == 1


def test_a_job_that_was_first_seen_by_a_clock_years_ahead_is_due():
    assert len(_says(_job(DAILY), observed=Observed(since=NOW + timedelta(days=3650)))) == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-300, 4000), min_size=1, max_size=12), st.sampled_from(["0 * * * *", "30 2 * * *"]))
def test_however_a_clock_jumps_no_slot_runs_twice_and_none_in_the_future(minutes, expression):
    moments = [datetime(2026, 10, 24, tzinfo=UTC) + timedelta(minutes=minute) for minute in minutes]
    keys = _ticked(_job(DAILY | {"expression": expression}), moments)
    assert len(keys) == len(set(keys))
    assert all(key <= f"cron {max(moments):%Y-%m-%dT%H:%MZ}" for key in keys)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=6))
def test_asking_twice_is_asking_once(minutes):
    moments = [NOW + timedelta(minutes=minute) for minute in sorted(minutes)]
    assert _ticked(_job(DAILY), moments) == _ticked(_job(DAILY), [now for now in moments for _ in range(2)])


def test_data_is_due_when_it_is_new_and_once():
    job, saw = _job(DATA), _data("a", 100)
    (cause,) = due(job, (), Observed(**saw), NOW)
    assert cause.says == "path:/data was not used yet: 100 train images, +100."
    past = [_ran(cause, NOW, **saw)]
    assert due(job, past, Observed(**saw), NOW) == ()
    assert _says(job, past, Observed(**_data("b", 130))) == [
        "path:/data changed since the last run: 130 train images, +30."
    ]


def test_data_that_another_cause_has_brought_into_a_run_is_not_new():
    assert due(_job(DATA), [_run("cron 2026-06-10T00:30Z", **_data("a"))], Observed(**_data("a")), NOW) == ()


def test_data_that_comes_back_is_a_change_again():
    job, past = _job(DATA), []
    for digest in "abab":
        (cause,) = due(job, past, Observed(**_data(digest)), NOW)
        past.append(_ran(cause, NOW, **_data(digest)))
    assert len({run.key for run in past}) == 4


@pytest.mark.parametrize("state", ["failed", "blocked", "cancelled"])
def test_data_of_a_run_that_did_not_end_well_is_not_tried_again_but_still_counts_as_new(state):
    job = _job(DATA | {"min_new_rows": 50})
    used = _run(**_data("a", 100))
    (cause,) = due(job, [used], Observed(**_data("b", 150)), NOW)
    past = [used, _run(cause.key, state, **_data("b", 150))]
    assert due(job, past, Observed(**_data("b", 150)), NOW) == ()
    assert _says(job, past, Observed(**_data("c", 160))) == [
        "path:/data changed since the last run: 160 train images, +60."
    ]


@pytest.mark.parametrize(("rows", "many"), [(149, 0), (150, 1), (40, 0), (None, 0)])
def test_fewer_new_rows_than_were_asked_for_are_not_due(rows, many):
    job = _job(DATA | {"min_new_rows": 50})
    assert len(due(job, [_run(**_data("a", 100))], Observed(**_data("b", rows)), NOW)) == many


@pytest.mark.parametrize(("ago", "many"), [(0, 0), (599, 0), (600, 1), (-86400, 1)])
def test_data_that_still_changes_is_waited_for(ago, many):
    seen = Observed(**_data("b", changed=NOW - timedelta(seconds=ago)))
    assert len(due(_job(DATA | {"quiet": 600}), [_run(**_data("a"))], seen, NOW)) == many


def test_a_source_that_was_not_looked_at_is_not_due():
    assert due(_job(DATA), (), NOTHING, NOW) == ()


def test_a_new_revision_of_the_teacher_is_proposed_once():
    old, new = ({"teachers": {"hub:acme/r18": commit * 40}} for commit in "ab")
    (cause,) = due(_job(TEACHER), [_run(**old)], Observed(**new), NOW)
    assert cause.propose
    assert cause.says == "The teacher hub:acme/r18 is at bbbbbbbbbbbb; the last run had aaaaaaaaaaaa."
    assert due(_job(TEACHER), [_run(**old), _ran(cause, NOW, **new)], Observed(**new), NOW) == ()


def test_a_teacher_that_was_never_used_is_not_a_new_one():
    assert due(_job(TEACHER), (), Observed(teachers={"hub:acme/r18": "a" * 40}), NOW) == ()


def test_a_teacher_is_trained_with_at_once_only_where_that_is_said():
    old, new = ({"teachers": {"hub:acme/r18": commit * 40}} for commit in "ab")
    (cause,) = due(_job(TEACHER | {"propose": False}), [_run(**old)], Observed(**new), NOW)
    assert not cause.propose


@pytest.mark.parametrize(("values", "many"), [
    ((0.3,), 0), ((0.3, 0.3), 1), ((0.3, 0.1), 0), ((0.1, 0.3), 0), ((0.3, 0.1, 0.3), 0), ((0.1, 0.25, 0.9), 1),
    ((0.2, 0.2), 0), ((), 0),
])  # fmt: skip
def test_drift_is_due_after_two_windows_in_a_row(values, many):
    assert len(due(_job(DRIFT), (), Observed(**_windows(*values)), NOW)) == many


def test_drift_says_what_was_seen():
    assert _says(_job(DRIFT), observed=Observed(**_windows(0.31, 0.42))) == [
        "psi was 0.31, 0.42 in 2 windows in a row, above 0.2."
    ]


def test_drift_of_before_the_last_run_is_not_due_again():
    job, seen = _job(DRIFT), Observed(**_windows(0.3, 0.3, 0.3))
    began = NOW - timedelta(hours=1, minutes=30)
    assert due(job, [_run(began=began)], seen, NOW) == ()
    assert (
        len(due(job, [_run(began=began)], Observed(**_windows(0.3, 0.3, 0.3, until=NOW + timedelta(hours=1))), NOW))
        == 1
    )


def test_one_window_that_is_seen_twice_is_one_window():
    one = _windows(0.3)["drift"][URL]
    assert due(_job(DRIFT), (), Observed(drift={URL: one + one}), NOW) == ()


def test_windows_without_the_statistic_are_no_drift():
    assert due(_job(DRIFT | {"statistic": "ks_margin"}), (), Observed(**_windows(0.9, 0.9)), NOW) == ()


def test_a_new_suite_is_due_once_for_each_champion():
    job = _job(REGRESSION)
    saw = {"suites": {"autoattack": "aa 2"}, "champion": "c" * 64, "champion_suite": "aa 1"}
    (cause,) = due(job, (), Observed(**saw), NOW)
    assert cause.says == "The champion was judged by aa 1; autoattack is aa 2 now. It is attacked again."
    assert due(job, [_ran(cause, NOW)], Observed(**saw), NOW) == ()
    assert len(due(job, [_ran(cause, NOW)], Observed(**saw | {"champion": "d" * 64}), NOW)) == 1
    assert due(job, (), Observed(**saw | {"champion_suite": "aa 2"}), NOW) == ()
    assert due(job, (), Observed(suites={"autoattack": "aa 2"}), NOW) == ()


def test_causes_come_in_the_order_of_the_triggers():
    seen = Observed(**_data("a"), **_windows(0.3, 0.3))
    assert [cause.kind for cause in due(_job(DRIFT, DAILY, DATA), (), seen, NOW)] == ["drift", "cron", "data"]


ALWAYS = Observed(**_data("new"))


def _held(past: list[Past], **budget: Any) -> str | None:
    job = _job(DATA, **budget)
    why = held(job, past, NOW)
    assert (due(job, past, ALWAYS, NOW) == ()) == (why is not None)
    return why


def test_an_unfinished_run_goes_on_first():
    assert _held([_run(state="running")]) == "A run is unfinished; it goes on before another begins."


def test_runs_keep_their_distance():
    recent = [_run(began=NOW - timedelta(minutes=50))]
    assert _held(recent, min_interval=3600) == "The last run began 50 minutes ago; min_interval is 60 minutes."
    assert _held(recent, min_interval=3000) is None


def test_a_slot_that_was_held_back_is_due_afterwards():
    job, past = _job(DAILY, min_interval=86400), [_run("data", began=NOW - timedelta(hours=23))]
    assert due(job, past, NOTHING, NOW) == ()
    assert len(due(job, past, NOTHING, NOW + timedelta(hours=1))) == 1


def test_the_hours_of_a_week_are_a_limit():
    past = [_run(began=NOW - timedelta(days=day), hours=3) for day in (6, 3, 1)]
    assert _held(past, hours_per_week=9) == "9.0 hours of the last seven days are spent; hours_per_week is 9."
    assert _held(past, hours_per_week=9.5) is None


def test_only_the_hours_within_the_week_count():
    past = [_run(began=NOW - timedelta(days=7, hours=2), hours=3), _run(began=NOW - timedelta(days=20), hours=9)]
    assert hours_spent(past, NOW) == pytest.approx(1)


@pytest.mark.parametrize(("states", "suspended"), [
    (["failed"] * 3, True), (["failed"] * 2, False), (["failed", "failed", "kept"], False),
    (["failed", "failed", "kept", "failed"], False), (["failed", "cancelled", "failed", "blocked", "failed"], True),
    (["kept", "suspended"], True), (["suspended", "promoted"], False),
    (["failed", "failed", "awaiting", "failed"], False), (["suspended", "failed"], True),
    (["suspended", "blocked"], True), (["suspended", "failed", "kept"], False),
])  # fmt: skip
def test_failures_in_a_row_suspend_a_job(states, suspended):
    why = _held([_run(f"manual {at}", state) for at, state in enumerate(states)])
    assert (why is not None) == suspended
    if why:
        assert why.startswith("Suspended after")


def test_a_hand_is_never_held_back_and_never_the_same():
    assert manual(NOW).key != manual(NOW + timedelta(seconds=1)).key
    assert manual(NOW).kind == "manual"
