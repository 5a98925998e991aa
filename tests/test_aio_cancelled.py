"""Tasks that are cancelled at the moment at which what they wait for comes: wait_for of Python 3.11 would drop the cancellation."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pmwal.aio
from pmwal.aio.log import AsyncWal
from test_aio import PATIENCE, run


async def ends(task: asyncio.Task[Any]) -> bool:
    """Whether a task that was cancelled ends at once."""
    for _ in range(10):
        await asyncio.sleep(0)
    return task.cancelled()


def test_append_that_waits_for_room_is_cancelled_as_there_is_room(path: Path) -> None:
    """It does not wait again."""

    async def fill(wal: AsyncWal) -> None:
        for _ in range(100):
            await wal.append(bytes(1000))

    async def main() -> None:
        async with pmwal.aio.open(path, size="16KiB", on_full="wait", timeout=PATIENCE) as wal:
            filling = asyncio.create_task(fill(wal))
            while not wal._freed._waiters:
                await asyncio.sleep(0.001)
            wal._freed.set()
            filling.cancel()
            assert await ends(filling)

    run(main)


def test_follower_is_cancelled_as_it_is_told_of_news(path: Path) -> None:
    """It does not look again."""

    async def main() -> None:
        async with pmwal.aio.open(path, size="16KiB") as wal:
            following = asyncio.create_task(anext(wal.follow(timeout=PATIENCE)))
            while not wal._followers:
                await asyncio.sleep(0.001)
            wal._tell_followers()
            following.cancel()
            assert await ends(following)

    run(main)
