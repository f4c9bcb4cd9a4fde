"""What the library's async code waits by."""

from __future__ import annotations

import asyncio
import threading

from queue_pg.concurrency import AsyncSignal


async def test_a_signal_that_was_set_before_is_not_missed_and_counts_once() -> None:
    signal = AsyncSignal()
    signal.set()
    signal.set()
    assert await signal.wait(None)
    assert not await signal.wait(0)


async def test_a_wait_ends_with_its_time_and_the_next_one_begins_anew() -> None:
    signal = AsyncSignal()
    assert not await signal.wait(0.001)
    asyncio.get_running_loop().call_soon(signal.set)
    assert await signal.wait(60)
    assert not await signal.wait(0.001)


async def test_any_thread_may_set_it_any_number_of_times() -> None:
    signal = AsyncSignal()
    for _ in range(3):
        threads = [threading.Thread(target=signal.set) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # They have come together, so they are one; and it can be set again afterwards.
        assert await signal.wait(60)
        assert not await signal.wait(0.001)


async def test_what_a_thread_changes_before_it_sets_is_seen_after_the_wait() -> None:
    signal = AsyncSignal()
    count = 0

    def work() -> None:
        nonlocal count
        for _ in range(2_000):
            count += 1
            signal.set()

    worker = threading.Thread(target=work)
    worker.start()
    seen = 0
    while seen < 2_000:
        assert await signal.wait(60), "the last change was never told"
        seen = count
    worker.join()


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    signal = AsyncSignal()
    waiting = asyncio.create_task(signal.wait(None))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    signal.set()
    assert await signal.wait(None)


def test_setting_it_after_its_loop_has_ended_is_no_error() -> None:
    async def make() -> AsyncSignal:
        return AsyncSignal()

    signal = asyncio.run(make())
    signal.set()
    other = threading.Thread(target=signal.set)
    other.start()
    other.join()
