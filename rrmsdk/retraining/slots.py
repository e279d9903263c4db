"""The times of a cron expression on the clock of a zone, as Debian's cron understands daylight saving.

A fixed time that spring skips comes at the end of the gap, and one that autumn repeats comes once; what comes each hour
or more often goes on by the hour. Only ever asked forwards: cronsim's way back differs where a clock moves by half an
hour.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from zoneinfo import ZoneInfo

from rrmsdk.errors import FieldError, MissingExtraError
from rrmsdk.schema.job import Cron

# How far back the latest slot may lie, tried one after another; 29 February may be eight years away.
_BACK = tuple(timedelta(minutes=minutes) for minutes in (10, 120, 2 * 1440, 40 * 1440, 400 * 1440, 3000 * 1440))


def latest(cron: Cron, now: datetime) -> datetime | None:
    """The last slot that is not after `now`, in the zone; None: there was none in eight years. Raises FieldError."""
    # Slots lie on whole minutes, and many jobs have the same ones.
    return _latest(cron.expression, cron.timezone, now.astimezone(UTC).replace(second=0, microsecond=0))


@lru_cache(maxsize=1024)
def _latest(expression: str, timezone: str, minute: datetime) -> datetime | None:
    cron = Cron(expression=expression, timezone=timezone)
    for back in _BACK:
        last = None
        for slot in _after(cron, minute - back):
            if slot > minute:
                break
            last = slot
        if last is not None:
            return last
    return None


def following(cron: Cron, now: datetime, count: int) -> tuple[datetime, ...]:
    """The next slots after `now`, in the zone. Raises FieldError."""
    return tuple(islice(_after(cron, now), count))


def explained(cron: Cron) -> str:
    """The expression in words, such as "At 03:00 on Monday". Raises FieldError."""
    return _simulated(cron, datetime.now(UTC)).explain()


def _after(cron: Cron, moment: datetime) -> Iterator[datetime]:
    here = moment.astimezone(ZoneInfo(cron.timezone))
    # From within an hour that comes again, cronsim would not know which of the two it is.
    begin = here - timedelta(hours=3) if here.fold else here
    # Two times of one zone are compared by what its clock shows; those of UTC as they are.
    last = moment.astimezone(UTC)
    for slot in _simulated(cron, begin):
        if slot.astimezone(UTC) > last:
            last = slot.astimezone(UTC)
            yield slot


def _simulated(cron: Cron, moment: datetime):
    try:
        from cronsim import CronSim, CronSimError
    except ImportError as exc:
        raise MissingExtraError("retrain", "a trigger of kind 'cron'") from exc
    try:
        return CronSim(cron.expression, moment.astimezone(ZoneInfo(cron.timezone)))
    except CronSimError as exc:
        raise FieldError(
            f"expression = '{cron.expression}': {str(exc).lower()}. Five fields: minute hour day month weekday, "
            "such as '0 3 * * mon'"
        ) from exc
