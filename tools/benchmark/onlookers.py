"""Threads and tasks that only want to run for an instant once a millisecond, and how long something kept them from it.

A pause is the time by which a sleep of 1 ms was too long. It includes what the system needs to wake a thread, so the pauses without
anything beside are shown, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

TICK = 0.001
"""Seconds that an onlooker sleeps."""
_TICK_NS = int(TICK * 1e9)


class Onlooker:
    """What one thread or task saw: a pause for each of its ticks, in nanoseconds."""

    def __init__(self) -> None:
        self.stop = False
        self.pauses: list[int] = []

    def rate(self, call: Callable[[], object]) -> float:
        """Ticks per second during a call."""
        before, begin = len(self.pauses), time.perf_counter_ns()
        call()
        took = time.perf_counter_ns() - begin
        return (len(self.pauses) - before) / took * 1e9

    def longest(self, call: Callable[[], object]) -> int:
        """The longest pause that began or ended during a call."""
        self._await_tick()
        before = len(self.pauses)
        call()
        self._await_tick()
        return max(self.pauses[before:])

    def _await_tick(self) -> None:
        ticks = len(self.pauses)
        while len(self.pauses) == ticks:
            time.sleep(TICK)


@contextlib.contextmanager
def sleeper() -> Iterator[Onlooker]:
    """A thread that sleeps again and again."""
    onlooker = Onlooker()

    def work() -> None:
        clock, sleep, pauses = time.perf_counter_ns, time.sleep, onlooker.pauses
        while not onlooker.stop:
            start = clock()
            sleep(TICK)
            pauses.append(clock() - start - _TICK_NS)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield onlooker
    finally:
        onlooker.stop = True
        thread.join()


class LoopOnlooker(Onlooker):
    """The same for a task of the running event loop."""

    async def longest_of(self, call: Callable[[], Awaitable[object]]) -> int:
        """The longest pause that began or ended while this was awaited."""
        await self._tick()
        before = len(self.pauses)
        await call()
        await self._tick()
        return max(self.pauses[before:])

    async def _tick(self) -> None:
        ticks = len(self.pauses)
        while len(self.pauses) == ticks:
            await asyncio.sleep(TICK)


@contextlib.asynccontextmanager
async def ticking_task() -> AsyncIterator[LoopOnlooker]:
    """A task that sleeps again and again."""
    onlooker = LoopOnlooker()

    async def work() -> None:
        clock, pauses = time.perf_counter_ns, onlooker.pauses
        while not onlooker.stop:
            start = clock()
            await asyncio.sleep(TICK)
            pauses.append(clock() - start - _TICK_NS)

    task = asyncio.create_task(work())
    try:
        yield onlooker
    finally:
        onlooker.stop = True
        await task


def idle(seconds: float) -> None:
    """Do nothing, without the interpreter."""
    time.sleep(seconds)
