"""Cron on the clock of a zone: gaps, repetitions, the latest slot and the next ones."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrmsdk.errors import FieldError
from rrmsdk.retraining import slots
from rrmsdk.schema.job import Cron

BERLIN = ZoneInfo("Europe/Berlin")
EXPRESSIONS = [
    "30 2 * * *",
    "30 * * * *",
    "*/20 * * * *",
    "15 1,2,3 * * *",
    "0 */2 * * *",
    "0 0 * * *",
    "45 1-3 * * sun",
]
ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC", "Asia/Kolkata"]


def _cron(expression: str, zone: str = "Europe/Berlin") -> Cron:
    return Cron(expression=expression, timezone=zone)


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_a_time_that_spring_skips_comes_at_the_end_of_the_gap():
    found = slots.following(_cron("30 2 * * *"), _utc("2026-03-28 12:00"), 2)
    assert [slot.isoformat() for slot in found] == ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]


def test_a_time_that_autumn_repeats_comes_once():
    found = slots.following(_cron("30 2 * * *"), _utc("2026-10-24 12:00"), 2)
    assert [slot.isoformat() for slot in found] == ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]


@pytest.mark.parametrize(
    "asked", ["2026-10-25 00:30", "2026-10-25 00:59", "2026-10-25 01:10", "2026-10-25 01:30", "2026-10-25 09:00"]
)
def test_in_the_hour_that_is_repeated_the_slot_stays_the_first_one(asked):
    latest = slots.latest(_cron("30 2 * * *"), _utc(asked))
    assert latest.isoformat() == "2026-10-25T02:30:00+02:00"


def test_each_hour_goes_on_through_the_hour_that_is_repeated():
    found = slots.following(_cron("30 * * * *"), _utc("2026-10-24 23:45"), 3)
    assert [slot.astimezone(UTC).hour for slot in found] == [0, 1, 2]
    assert [slot.hour for slot in found] == [2, 2, 3]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(EXPRESSIONS), st.sampled_from(ZONES), st.integers(0, 365 * 24 * 60), st.integers(1, 3000))
def test_the_latest_slot_is_the_last_of_those_that_followed(expression, zone, minute, later):
    """Around the year, daylight saving included: asked from two moments, the slots are the same."""
    cron, start = _cron(expression, zone), _utc("2026-01-01 00:00") + timedelta(minutes=minute)
    now = start + timedelta(minutes=later)
    between = [slot for slot in slots.following(cron, start, 200) if slot <= now]
    latest = slots.latest(cron, now)
    assert latest is not None
    if between:
        assert latest == between[-1] or len(between) == 200
    else:
        assert latest <= start
    assert all(one.astimezone(UTC) < other.astimezone(UTC) for one, other in pairwise(between))


def test_now_may_be_told_in_any_zone():
    now = _utc("2026-10-25 01:10")
    assert slots.latest(_cron("30 2 * * *"), now.astimezone(BERLIN)) == slots.latest(_cron("30 2 * * *"), now)
    assert slots.following(_cron("30 2 * * *"), now.astimezone(BERLIN), 3) == slots.following(
        _cron("30 2 * * *"), now, 3
    )


def test_within_the_hour_that_comes_again_a_fixed_time_is_over():
    (slot,) = slots.following(_cron("30 2 * * *"), _utc("2026-10-25 01:10"), 1)
    assert slot.isoformat() == "2026-10-26T02:30:00+01:00"


@pytest.mark.parametrize("minute", [38, 54, 20])
def test_from_within_half_an_hour_that_comes_again_the_slots_are_those_told_before(minute):
    cron = _cron(f"{minute} * * * *", "Australia/Lord_Howe")  # at 15:00 UTC its clocks go back from 2:00 to 1:30
    before, within = _utc("2026-04-04 14:55"), _utc("2026-04-04 15:01")
    assert slots.following(cron, within, 3) == slots.following(cron, before, 3)


def test_a_slot_that_comes_every_eight_years_is_found():
    assert slots.latest(_cron("0 0 29 2 *"), _utc("2103-06-01 00:00")) == datetime(2096, 2, 29, tzinfo=BERLIN)


@pytest.mark.parametrize(("expression", "says"), [
    ("61 * * * *", "expression = '61 * * * *': bad minute. Five fields: minute hour day month weekday"),
    ("0 0 30 2 *", "bad day-of-month"), ("0 3 * * monday", "bad day-of-week"),
])  # fmt: skip
def test_an_expression_that_is_none_is_said(expression, says):
    with pytest.raises(FieldError, match=says.replace("*", r"\*")):
        slots.following(_cron(expression), _utc("2026-01-01 00:00"), 1)


def test_an_expression_is_told_in_words():
    assert slots.explained(_cron("0 3 * * mon")) == "At 03:00 on Monday"


def test_without_the_extra_the_error_is_what_to_install():
    code = (
        "import sys; sys.modules['cronsim'] = None\n"
        "from rrmsdk.retraining import slots; from rrmsdk.schema.job import Cron\n"
        "slots.explained(Cron(expression='0 3 * * mon'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "a trigger of kind 'cron' needs the extra 'retrain': pip install 'rrmsdk[retrain]'" in done.stderr
