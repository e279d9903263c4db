"""What waits for the network: in which batches it runs, who leaves, who is refused."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from rrmsdk.errors import DataError
from rrmsdk.runtime.batcher import QUICK, Answer, Batcher
from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.session import Session, open_session
from tests.loopback import until


@pytest.fixture
def session(written: Callable[..., Path]) -> Session:
    return open_session(written(), threads=1)


@dataclass(eq=False)
class Gated:
    """A real session that runs when the test lets it, and tells how many images each batch had.

    counted: pixels and logits of what it predicted.
    """

    session: Session
    started: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)
    batches: list[int] = field(default_factory=list)
    counted: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        self.batches.append(len(pixels))
        self.started.set()
        assert self.go.wait(30)
        return self.session.predict(pixels)

    def seen(self, pixels: np.ndarray, logits: np.ndarray) -> None:
        assert asyncio.get_running_loop()
        self.counted.append((pixels, logits))


def free(session: Session) -> Gated:
    """One that runs at once."""
    network = Gated(session)
    network.go.set()
    return network


def some_pixels(images: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((images, 2, 4, 4), dtype=np.float32)


async def waiting(batcher: Batcher, network, sizes: list[int], timeout: float = 30.0) -> list[asyncio.Task[Answer]]:
    """Requests that are in the queue, in this order."""
    tasks = [
        asyncio.create_task(batcher.submit(network, some_pixels(size, n), timeout)) for n, size in enumerate(sizes)
    ]
    await asyncio.sleep(0)
    return tasks


async def running(batcher: Batcher, network: Gated) -> asyncio.Task[Answer]:
    """One request in the network, which does not end before `go`."""
    (first,) = await waiting(batcher, network, [1])
    await asyncio.to_thread(network.started.wait, 30)
    return first


def test_each_request_gets_the_logits_of_its_own_images(session: Session) -> None:
    async def run() -> list[Answer]:
        async with Batcher() as batcher:
            return await asyncio.gather(*await waiting(batcher, free(session), [1, 3, 2, 5]))

    for seed, (size, answer) in enumerate(zip([1, 3, 2, 5], asyncio.run(run()), strict=True)):
        np.testing.assert_array_equal(answer.logits, session.predict(some_pixels(size, seed)))


def test_what_came_while_the_network_was_busy_runs_together(session: Session) -> None:
    async def run() -> Gated:
        network = Gated(session)
        async with Batcher() as batcher:
            first = await running(batcher, network)
            others = await waiting(batcher, network, [1, 2, 4])
            network.go.set()
            await asyncio.gather(first, *others)
        return network

    assert asyncio.run(run()).batches == [1, 7]


def test_the_network_is_told_what_it_predicted(session: Session) -> None:
    async def run() -> Gated:
        network = Gated(session)
        async with Batcher() as batcher:
            first = await running(batcher, network)
            leaves, stays = await waiting(batcher, network, [2, 3])
            leaves.cancel()
            network.go.set()
            await asyncio.gather(first, stays)
        return network

    counted = asyncio.run(run()).counted
    assert [len(pixels) for pixels, _ in counted] == [1, 3]
    for pixels, logits in counted:
        np.testing.assert_array_equal(logits, session.predict(pixels))


def test_what_is_read_in_one_turn_of_the_loop_runs_together(session: Session) -> None:
    async def run() -> list[Answer]:
        async with Batcher() as batcher:
            return await asyncio.gather(*await waiting(batcher, free(session), [1, 3, 2, 5]))

    assert [answer.batch for answer in asyncio.run(run())] == [11] * 4


def test_a_slow_network_takes_what_waits_though_the_loop_is_busy(session: Session) -> None:
    async def run() -> Gated:
        network = Gated(session)
        async with Batcher() as batcher:
            first = await running(batcher, network)
            others = await waiting(batcher, network, [1, 2])
            time.sleep(2 * QUICK)
            network.go.set()
            until(lambda: len(network.batches) == 2)  # the loop stands still meanwhile
            await asyncio.gather(first, *others)
        return network

    assert asyncio.run(run()).batches == [1, 3]


def test_a_lone_request_does_not_wait_for_others(session: Session) -> None:
    async def run() -> Answer:
        async with Batcher() as batcher:
            return await batcher.submit(free(session), some_pixels(1), 30)

    answer = asyncio.run(run())
    assert (answer.batch, answer.leads) == (1, True)


def test_no_batch_is_larger_than_allowed_and_the_order_is_kept(session: Session) -> None:
    async def run() -> Gated:
        network = Gated(session)
        async with Batcher(max_batch=4) as batcher:
            first = await running(batcher, network)
            others = await waiting(batcher, network, [3, 2, 1, 4, 1])
            network.go.set()
            await asyncio.gather(first, *others)
        return network

    assert asyncio.run(run()).batches == [1, 3, 3, 4, 1]


def test_one_answer_of_each_batch_leads_it(session: Session) -> None:
    async def run() -> list[Answer]:
        network = Gated(session)
        async with Batcher() as batcher:
            first = await running(batcher, network)
            others = await waiting(batcher, network, [1, 1, 1])
            network.go.set()
            return await asyncio.gather(first, *others)

    assert [(answer.batch, answer.leads) for answer in asyncio.run(run())] == [
        (1, True), (3, True), (3, False), (3, False),
    ]  # fmt: skip


def test_a_batch_is_of_one_network_whatever_is_swapped_meanwhile(session: Session) -> None:
    async def run() -> tuple[list[int], list[int]]:
        old, new = Gated(session), Gated(session)
        new.go.set()
        async with Batcher() as batcher:
            first = await running(batcher, old)
            mixed = [task for network in (old, new, old, new, new) for task in await waiting(batcher, network, [1])]
            old.go.set()
            await asyncio.gather(first, *mixed)
        return old.batches, new.batches

    assert asyncio.run(run()) == ([1, 2], [3])


def test_one_whole_batch_may_wait_however_short_the_queue(session: Session) -> None:
    async def run() -> Answer:
        async with Batcher(max_batch=4, max_queue=2) as batcher:
            return await batcher.submit(free(session), some_pixels(4), 30)

    assert asyncio.run(run()).batch == 4


def test_what_no_batch_can_hold_is_refused_and_others_are_answered(session: Session) -> None:
    async def go() -> None:
        async with Batcher(max_batch=4) as batcher:
            with pytest.raises(Refused, match="5 images in a request; at most 4") as caught:
                await batcher.submit(free(session), some_pixels(5), 30.0)
            assert caught.value.status == 400
            assert len((await batcher.submit(free(session), some_pixels(4), 30.0)).logits) == 4

    asyncio.run(go())


def test_a_full_queue_refuses_with_503_and_when_to_come_again(session: Session) -> None:
    async def run() -> Refused:
        network = Gated(session)
        async with Batcher(max_batch=4, max_queue=6) as batcher:
            first = await running(batcher, network)
            others = await waiting(batcher, network, [4, 2])
            with pytest.raises(Refused, match="6 images wait already") as refused:
                await batcher.submit(network, some_pixels(1), 30)
            network.go.set()
            await asyncio.gather(first, *others)
        return refused.value

    refused = asyncio.run(run())
    assert (refused.status, refused.retry_after) == (503, 1)


def test_after_the_deadline_it_is_504_and_the_queue_is_empty_again(session: Session) -> None:
    async def run() -> tuple[int, int, list[int]]:
        network = Gated(session)
        async with Batcher() as batcher:
            first = await running(batcher, network)
            with pytest.raises(Refused, match=r"no answer within 0\.01 s") as refused:
                await batcher.submit(network, some_pixels(3), 0.01)
            waits = batcher.images
            network.go.set()
            await first
        return refused.value.status, waits, network.batches

    assert asyncio.run(run()) == (504, 0, [1])


def test_a_client_that_leaves_also_leaves_the_queue(session: Session) -> None:
    async def run() -> list[int]:
        network = Gated(session)
        async with Batcher() as batcher:
            first = await running(batcher, network)
            leaves, stays = await waiting(batcher, network, [5, 2])
            leaves.cancel()
            await asyncio.gather(leaves, return_exceptions=True)
            network.go.set()
            await asyncio.gather(first, stays)
        return network.batches

    assert asyncio.run(run()) == [1, 2]


def test_a_client_that_leaves_while_its_batch_runs_spoils_nothing(session: Session) -> None:
    async def run() -> Answer:
        network = Gated(session)
        async with Batcher() as batcher:
            first = await running(batcher, network)
            first.cancel()
            (later,) = await waiting(batcher, network, [2])
            network.go.set()
            return await later

    assert asyncio.run(run()).batch == 2


def test_closing_answers_what_waits_and_refuses_what_comes(session: Session) -> None:
    async def run() -> tuple[list[Answer], Refused]:
        network = Gated(session)
        batcher = await Batcher().__aenter__()
        first = await running(batcher, network)
        (second,) = await waiting(batcher, network, [2])
        closing = asyncio.create_task(batcher.__aexit__())
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="stopping") as refused:
            await batcher.submit(network, some_pixels(1), 30)
        network.go.set()
        await closing
        return [first.result(), second.result()], refused.value

    answers, refused = asyncio.run(run())
    assert [len(answer.logits) for answer in answers] == [1, 2]
    assert refused.status == 503


def test_what_the_network_raises_reaches_who_waits_and_the_next_batch_runs(session: Session) -> None:
    async def run() -> Answer:
        async with Batcher() as batcher:
            with pytest.raises(DataError, match="NaN"):
                await batcher.submit(free(session), np.full((1, 2, 4, 4), np.nan, np.float32), 30)
            return await batcher.submit(free(session), some_pixels(1), 30)

    assert asyncio.run(run()).batch == 1


def test_images_of_another_size_fail_their_batch_and_mix_up_nothing(session: Session) -> None:
    async def run() -> tuple[list[BaseException | Answer], list[int]]:
        network = Gated(session)
        async with Batcher() as batcher:
            first = await running(batcher, network)
            stale = np.zeros((1, 2, 2, 8), np.float32)  # of as many bytes
            others = [asyncio.create_task(batcher.submit(network, one, 30)) for one in (some_pixels(1), stale)]
            await asyncio.sleep(0)
            network.go.set()
            await first
            return await asyncio.gather(*others, return_exceptions=True), network.batches

    told, batches = asyncio.run(run())
    assert [str(one).startswith("images of more than one kind in a batch") for one in told] == [True, True]
    assert batches == [1]


class Ends:
    """What ends the thread that runs it."""

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        raise SystemExit

    def seen(self, pixels: np.ndarray, logits: np.ndarray) -> None:
        raise AssertionError("it predicted nothing")


class Flat(Gated):
    """Gives one number an image, which is no row of logits."""

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        return super().predict(pixels)[:, 0]


def test_what_are_no_logits_reaches_who_waits_and_the_next_batch_runs(session: Session) -> None:
    async def run() -> tuple[Flat, Answer]:
        network = Flat(session)
        network.go.set()
        async with Batcher() as batcher:
            with pytest.raises(np.exceptions.AxisError):
                await batcher.submit(network, some_pixels(2), 30)
            return network, await batcher.submit(free(session), some_pixels(1), 30)

    network, answer = asyncio.run(run())
    assert len(answer.logits) == 1
    assert not network.counted


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_keeps_nobody_waiting(session: Session) -> None:
    async def run() -> tuple[Refused, Refused, bool]:
        async with Batcher() as batcher:
            with pytest.raises(Refused) as first:
                await batcher.submit(Ends(), some_pixels(1), 0.2)
            with pytest.raises(Refused) as second:
                await batcher.submit(free(session), some_pixels(1), 30)
            return first.value, second.value, batcher.running

    first, second, running = asyncio.run(run())
    assert (first.status, second.status, running) == (504, 503, False)


def test_a_thread_that_may_not_give_way_works_all_the_same(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: int) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "setpriority", refused)

    async def run() -> Answer:
        async with Batcher(low=True) as batcher:
            return await batcher.submit(free(session), some_pixels(1), 30)

    assert asyncio.run(run()).batch == 1


def test_an_idle_thread_keeps_no_network_in_memory(session: Session) -> None:
    async def run() -> None:
        network = Gated(session)
        network.go.set()
        kept = weakref.ref(network)
        async with Batcher() as batcher:
            await batcher.submit(network, some_pixels(1), 30)
            del network
            until(lambda: kept() is None)

    asyncio.run(run())
