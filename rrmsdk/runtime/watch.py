"""Following a source of versions: what is newer and passes every check of a load takes the place of what answers."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from rrmsdk.errors import HubError, RrmError, SaveError
from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.source import Found, Source

if TYPE_CHECKING:
    from rrmsdk.runtime.service import Service

LONGEST = 600.0  # seconds between two looks, however often it failed
LOG = logging.getLogger("rrmsdk.serve")

T = TypeVar("T")


@dataclass
class Watch:
    """Looks every `every` seconds, more or less by a fifth, so that many servers do not ask at once.

    It acts when the source changes, so a version that somebody loads or rolls back to stays until then; the one that
    was rolled back from does not come back until its bytes change or somebody names it.
    """

    source: Source
    every: float
    _followed: Found | None = None
    _refused: set[Found] = field(default_factory=set)
    _troubles: int = 0  # one after another
    _said: str = ""  # of the last one

    async def run(self, service: Service) -> None:
        """Until it is cancelled."""
        while True:
            try:
                await self._turn(service)
            except RrmError as exc:
                self._trouble(service, str(exc))
            except Exception as exc:  # of ours: serving goes on, and so does looking
                LOG.exception("watch failed")
                self._trouble(service, repr(exc))
            await asyncio.sleep(_pause(self.every, self._troubles))

    async def _turn(self, service: Service) -> None:
        """Raises RrmError: the source cannot be seen, or what is new cannot be brought now."""
        if service.stopping or service.store.pinned is not None:
            return
        seen = await _aside(self.source.look)
        service.metrics.looked.set_to_current_time()
        if seen and seen[0] == self._followed:
            self._refused.clear()  # what comes after it comes anew
        for found in seen:
            if found == self._followed or service.store.left(found.version) or await self._begins_with(found, service):
                break
            if found not in self._refused and await self._taken(found, service):
                break
            if self._followed is not None and found.version == self._followed.version:  # what is older is no news
                break
        if self._troubles:
            LOG.info("watch is well again", extra={"fields": {"source": str(self.source)}})
        self._troubles, self._said = 0, ""

    async def _begins_with(self, found: Found, service: Service) -> bool:
        """Whether the server was started on it."""
        if self._followed is not None or found.version != service.version:
            return False
        await self._follow(found, service)
        return True

    async def _taken(self, found: Found, service: Service) -> bool:
        """Whether it answers now, or nothing may at present."""
        LOG.info("new version", extra={"fields": {"version": found.version, "source": str(self.source)}})
        try:
            await _aside(partial(self.source.bring, found))
            if service.stopping:
                return True
            served = await service.store.load(found.version, None)
        except (HubError, SaveError):
            raise
        except (RrmError, Refused) as exc:
            if service.store.pinned is not None:
                return True
            self._refused.add(found)
            reason = exc.__cause__ if isinstance(exc, Refused) and exc.__cause__ else exc  # with the places
            LOG.warning("no swap", extra={"fields": {"version": found.version, "reason": str(reason)}})
            service.metrics.swaps.labels("refused").inc()  # who sees the count finds the reason in the log
            return False
        told = {"version": served.version, "sha256": served.sha256, "source": str(self.source)}
        LOG.info("swapped", extra={"fields": told})
        service.metrics.swaps.labels("done").inc()
        await self._follow(found, service)
        return True

    async def _follow(self, found: Found, service: Service) -> None:
        self._followed = found
        service.store.followed = None if self.source.ordered else found.version
        service.changed()
        await _aside(partial(self.source.tidy, found.version, service.store.in_use))

    def _trouble(self, service: Service, reason: str) -> None:
        """Told where it is another one than before; counted each time."""
        self._troubles += 1
        if reason != self._said:
            LOG.warning("watch in trouble", extra={"fields": {"source": str(self.source), "reason": reason}})
        self._said = reason
        service.metrics.troubles.inc()


def _pause(every: float, troubles: int) -> float:
    """Seconds; twice as many after each trouble."""
    longest = max(every, LONGEST)
    return min(every * 2 ** min(troubles, 20), longest) * random.uniform(0.8, 1.2)


async def _aside(work: Callable[[], T]) -> T:
    """What `work` gives, on a thread that nothing waits for when it is to end: a Hub may not answer for long."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(finish: Callable[[Any], None], what: Any) -> None:
        if not done.done():
            finish(what)

    def run() -> None:
        try:
            finish, what = done.set_result, work()
        except BaseException as exc:
            finish, what = done.set_exception, exc
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, finish, what)

    threading.Thread(target=run, name="rrmsdk-watch", daemon=True).start()
    return await done
