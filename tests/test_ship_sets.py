"""Shipping the logs of many processes: each on a subject of its own, none held up by another."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

import pmwal
from nats_servers import Client, NatsServer
from pmwal.ship import SetShipper
from pmwal.ship.sets import pause_of
from shipped_streams import uuid_of
from shipping import FAST, PERFECT, grow, judge, records_in, run


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A directory for slots."""
    directory = tmp_path / "logs"
    directory.mkdir()
    return directory


def set_shipper(logs: Path, server: NatsServer, **options: Any) -> SetShipper:
    """A shipper of this directory."""
    return SetShipper(logs, to=server.url, stream="LOGS", **FAST | options)


async def by_log(client: Client) -> dict[str, list[Any]]:
    """The records in the stream, by the uuid of their log."""
    found: dict[str, list[Any]] = {}
    for message in await client.messages():
        found.setdefault(message.subject.removeprefix("pmwal."), []).append(message)
    return {uuid: records_in(messages) for uuid, messages in found.items()}


def test_each_log_of_a_set_is_shipped_on_its_own_subject(server: NatsServer, logs: Path) -> None:
    """Once, each record of each of them."""

    async def main() -> None:
        async with Client(server) as client:
            await client.create()
            for at in range(5):
                grow(logs / f"0{at}.wal", 100 + at)
            await set_shipper(logs, server).run(once=True)
            found = await by_log(client)
            assert {uuid_of(logs / f"0{at}.wal"): PERFECT for at in range(5)} == {
                uuid: judge(records, 100 + at)
                for at in range(5)
                for uuid, records in found.items()
                if uuid == uuid_of(logs / f"0{at}.wal")
            }

    run(main)


def test_logs_that_join_and_go_are_shipped(server: NatsServer, logs: Path) -> None:
    """A new slot follows, records of an idle slot follow, and a log that is pruned is shipped to its end."""

    async def main() -> None:
        async with Client(server) as client:
            await client.create()
            one, two = logs / "00.wal", logs / "01.wal"
            grow(one, 50)
            async with set_shipper(logs, server) as shipping:
                grow(two, 70)
                while set(shipping.progress) != {str(one), str(two)}:
                    await asyncio.sleep(0.05)
                await shipping.acked(one, 50)
                await shipping.acked(uuid_of(two), 70)
                grow(one, 5)
                await shipping.acked(one, 55)
                grow(two, 5)
                uuid = uuid_of(two)
                os.unlink(two)
                while judge((await by_log(client)).get(uuid, []), 75) != PERFECT:
                    await asyncio.sleep(0.05)
                with pytest.raises(KeyError):
                    await shipping.acked("nothing.wal", 1)
                assert dict(shipping.problems) == {}
            found = await by_log(client)
            assert judge(found[uuid_of(one)], 55) == PERFECT
            assert judge(found[uuid], 75) == PERFECT

    run(main)


def test_log_that_fails_holds_none_of_the_others_up(server: NatsServer, logs: Path) -> None:
    """It is a problem of its own, which is said once."""
    said: list[str] = []

    async def main() -> None:
        async with Client(server) as client:
            await client.create()
            bad, good = logs / "00.wal", logs / "01.wal"
            grow(bad, 50)
            grow(good, 50)
            await set_shipper(logs, server).run(once=True)
            with pmwal.open(bad) as wal:
                wal.rollback(after=20)
            async with set_shipper(logs, server, notify=said.append) as shipping:
                while str(bad) not in shipping.problems:
                    await asyncio.sleep(0.05)
                grow(good, 50)
                while str(good) not in shipping.progress:
                    await asyncio.sleep(0.05)
                await shipping.acked(good, 100)
            with pytest.raises(pmwal.ShipError, match="record 50 as it was shipped"):
                await set_shipper(logs, server, notify=said.append).run(once=True)

    run(main)
    assert {text.partition(": ")[0] for text in said} == {str(logs / "00.wal")}


def test_slot_that_another_log_takes_over_by_name_is_shipped(server: NatsServer, logs: Path) -> None:
    """The position beside it is of the log before: the new one begins with its oldest record."""

    async def main() -> None:
        async with Client(server) as client:
            await client.create()
            path = logs / "00.wal"
            grow(path, 50)
            await set_shipper(logs, server).run(once=True)
            os.unlink(path)
            grow(path, 30)
            await set_shipper(logs, server).run(once=True)
            assert judge((await by_log(client))[uuid_of(path)], 30) == PERFECT

    run(main)


def test_wait_for_an_idle_log_is_cancelled_though_it_gets_a_record_at_that_moment(logs: Path) -> None:
    """A shipper that is told to end, ends."""
    pytest.importorskip("nats")

    async def main() -> None:
        shipping = SetShipper(logs, to="nats://127.0.0.1:1", stream="LOGS")
        waiting = asyncio.create_task(shipping._wait("uuid", Any, 1, 1))
        await asyncio.sleep(0)
        shipping._idle["uuid"].news.set()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    run(main)


def test_idle_logs_are_looked_at_rarely() -> None:
    """One that has been idle for an hour is looked at once in a second, and 64 of them take no more than 64 looks."""
    looks, now = 0, 0.0
    while now < 3600:
        now += pause_of(now)
        looks += 1
    assert looks < 3700


def test_set_with_one_log_that_is_always_busy_ships_the_idle_ones(server: NatsServer, logs: Path) -> None:
    """The first record of a slot that was idle for a while follows beside a busy one."""

    async def main() -> None:
        async with Client(server) as client:
            await client.create()
            busy, idle = logs / "00.wal", logs / "01.wal"
            grow(busy, 10)
            grow(idle, 10)
            async with set_shipper(logs, server) as shipping:
                while set(shipping.progress) != {str(busy), str(idle)}:
                    await asyncio.sleep(0.05)
                await shipping.acked(idle, 10)
                grow(idle, 1)
                following = asyncio.create_task(shipping.acked(idle, 11))
                count = 10
                while not following.done():
                    grow(busy, 50)
                    count += 50
                    await shipping.acked(busy, count)
                await following
            found = await by_log(client)
            assert judge(found[uuid_of(busy)], count) == PERFECT
            assert judge(found[uuid_of(idle)], 11) == PERFECT

    run(main)
