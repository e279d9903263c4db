"""Asking a Hub again, for as long as somebody who sleeps would want it, and no more often than it asks for."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from rrmsdk.errors import HubError, IntegrityError, MovedError
from rrmsdk.hub.answers import limited
from rrmsdk.hub.client import chain
from rrmsdk.hub.fetch import Fetched, fetch
from rrmsdk.schema.ref import Ref

T = TypeVar("T")

DOWNLOADS = 3  # of files that are not what was promised


@dataclass(frozen=True)
class Patience:
    """How long to ask again, in seconds.

    whole: from the first question to the last. first, most: the waits between two, which double in between; each is
    drawn from its upper half, so that many who failed together do not come back together. silence: without a byte.
    """

    whole: float = 6 * 3600.0
    first: float = 2.0
    most: float = 600.0
    silence: float = 300.0


DEFAULT = Patience()


def patiently(patience: Patience, ask: Callable[[], T]) -> T:
    """What `ask` gives, which may be asked again: as long as the Hub is down, overloaded or out of reach.

    Raises:
        HubError: still so in the end, or refused for another reason.
    """
    begun, wait, times = time.monotonic(), patience.first, 0
    while True:
        try:
            with limited(patience.silence):
                return ask()
        except HubError as exc:
            times += 1
            if not _passing(exc):
                raise
            pause = max(wait * random.uniform(0.5, 1.0), _asked_for(exc))
            over = time.monotonic() - begun
            if over + pause > patience.whole:
                raise HubError(f"{str(exc).rstrip('.')}. Asked {times} times in {over:.0f} s") from exc
        time.sleep(pause)
        wait = min(2 * wait, patience.most)


def fetched(ref: Ref, patience: Patience = DEFAULT, **settings: object) -> Fetched:
    """`rrmsdk.hub.fetch`, patiently; what arrives damaged is asked for again, `DOWNLOADS` times in all.

    Raises:
        IntegrityError: it is not what was promised, however often it is asked for.
        HubError, RefError, SaveError: as `fetch` does.
    """
    for _ in range(DOWNLOADS - 1):
        try:
            return patiently(patience, partial(fetch, ref, **settings))
        except IntegrityError:
            settings["refresh"] = True
    return patiently(patience, partial(fetch, ref, **settings))


def _passing(exc: HubError) -> bool:
    """Whether the same question may be answered later."""
    if isinstance(exc, MovedError):
        return False
    for cause in chain(exc):
        if isinstance(cause, HfHubHTTPError):
            return cause.response.status_code in (408, 429) or cause.response.status_code >= 500
        if isinstance(cause, httpx.TransportError | TimeoutError):
            return True
    return False


def _asked_for(exc: HubError) -> float:
    """Seconds that the Hub asked to be left alone."""
    answered = next((cause for cause in chain(exc) if isinstance(cause, HfHubHTTPError)), None)
    said = answered.response.headers.get("Retry-After", "") if answered else ""
    if said.isdecimal():
        return float(said)
    try:
        return (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return 0.0
