"""Shipping to a real server: every record once and in order, whatever fails on either side."""

from __future__ import annotations

import asyncio
import os
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import pmwal
from nats_servers import Client, NatsServer
from pmwal.ship import Folding, Rollback, records
from pmwal.ship.link import Link, Unavailable
from shipped_streams import uuid_of
from shipping import (
    PERFECT,
    Ended,
    Mark,
    before,
    both_forms,
    contents,
    decoded,
    folded,
    grow,
    judge,
    payload,
    position_of,
    records_in,
    run,
    ship,
    ship_over_kills,
    shipped,
    shipper,
    verdict,
)


def plain(path: Path) -> list[tuple[int, int, int, bytes]]:
    """The records of a log, as the judge has them."""
    return [(record.seq, record.kind, record.time_ns, record.data) for record in contents(path)]


# -- the usual case


@both_forms
def test_stream_has_what_the_log_has(server: NatsServer, tmp_path: Path) -> None:
    """Numbers, kinds, times and payloads arrive, in messages that name the one before them."""

    async def main() -> None:
        async with Client(server) as client:
            await client.create()
            path = tmp_path / "a.wal"
            grow(path, 200)
            await ship(path, server)
            messages = await client.messages()
        assert [tuple(each) for each in records_in(messages)] == plain(path)
        assert {message.subject for message in messages} == {f"pmwal.{uuid_of(path)}"}
        assert len(messages) > 5
        assert [before(message) for message in messages] == [0, *[message.seq for message in messages[:-1]]]
        assert messages[0].headers["Pmwal-Name"] == str(path)
        folding = Folding()
        assert [record for message in messages for record in folding.add(message)] == contents(path)
        assert [record for message in messages for record in records(message)] == contents(path)
        assert position_of(path) == 200

    run(main)


@both_forms
def test_records_follow_as_they_are_appended(server: NatsServer, tmp_path: Path) -> None:
    """``acked`` returns when the stream has a record, also one that was not appended yet when it was called."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with Client(server) as client:
            await client.create()
            with pmwal.open(path, size="1MiB") as wal:
                async with shipper(path, server) as shipping:
                    for seq in range(1, 6):
                        waiting = asyncio.create_task(shipping.acked(seq))
                        await asyncio.sleep(0)
                        wal.append(payload(seq), kind=seq % 7)
                        await waiting
                        assert shipping.progress.acknowledged >= seq
                        assert await verdict(client, seq) == PERFECT
                    assert shipping.progress.lag_records == 0
                    assert shipping.progress.next_seq == 6

    run(main)


def test_one_record_at_a_time_is_shipped_together(server: NatsServer, tmp_path: Path) -> None:
    """While the last message is not long ago, records are gathered: there are fewer messages than records."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with Client(server) as client:
            await client.create()
            with pmwal.open(path, size="1MiB") as wal:
                async with shipper(path, server, frame="256KiB", linger=600.0) as shipping:
                    wal.append(payload(1), kind=1)
                    await shipping.acked(1)
                    for seq in range(2, 50):
                        wal.append(payload(seq), kind=seq % 7)
            await ship(path, server, frame="256KiB")
            assert len(await client.messages()) == 2
            assert await verdict(client, 49) == PERFECT

    run(main)


def test_log_that_is_empty_at_first_ships(server: NatsServer, tmp_path: Path) -> None:
    """A shipper may be there before the first record; nothing is sent until then."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        pmwal.open(path, size="1MiB").close()
        async with Client(server) as client:
            await client.create()
            async with shipper(path, server) as shipping:
                grow(path, 3)
                await shipping.acked(3)
            assert await verdict(client, 3) == PERFECT

    run(main)


# -- failures


@both_forms
def test_acknowledgement_that_is_lost_ships_nothing_twice(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message was stored and nobody knows: the stream is asked, and the next frame, cut elsewhere, follows it."""
    publish, lost, asked = Link.publish, [2, 4, 5], count(1)

    async def lossy(self: Link, subject: str, body: bytes, headers: dict[str, str]) -> int:
        stored = await publish(self, subject, body, headers)
        if next(asked) in lost:
            del lost[0]
            grow(path, 7)
            raise Unavailable("the answer was lost")
        return stored

    path = tmp_path / "a.wal"
    grow(path, 100)
    monkeypatch.setattr(Link, "publish", lossy)

    async def main() -> None:
        async with Client(server) as client:
            await client.create()
            shipping = shipper(path, server)
            await shipping.run(once=True)
            assert shipping.progress.retries == 3
            await ship(path, server)
            assert await verdict(client, 121) == PERFECT

    run(main)
    assert lost == []


@both_forms
def test_server_that_is_killed_gets_each_record_once(server: NatsServer, tmp_path: Path) -> None:
    """It comes back, and the shipper goes on where the stream ends."""

    run(lambda: ship_over_kills(tmp_path / "a.wal", server))


@both_forms
def test_two_shippers_of_one_log_ship_each_record_once(server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a machine was moved and still runs: both send the same records at once, and one of them has to ask the stream."""
    publish, meeting, begun = Link.publish, asyncio.Barrier(2), set[Link]()

    async def together(self: Link, subject: str, body: bytes, headers: dict[str, str]) -> int:
        if self not in begun:
            begun.add(self)
            await meeting.wait()
        return await publish(self, subject, body, headers)

    monkeypatch.setattr(Link, "publish", together)

    async def main() -> None:
        path = tmp_path / "a.wal"
        grow(path, 2000)
        async with Client(server) as client:
            await client.create()
            one, two = shipper(path, server, consumer="one"), shipper(path, server, consumer="two")
            await asyncio.gather(one.run(once=True), two.run(once=True))
            assert await verdict(client, 2000) == PERFECT
        assert one.progress.records + two.progress.records <= 2000  # less, if an answer was late
        assert max(one.progress.retries, two.progress.retries) > 0

    run(main)


@both_forms
@pytest.mark.parametrize("before", [0, 300])
def test_server_with_an_older_state_gets_what_it_lacks(before: int, server: NatsServer, tmp_path: Path) -> None:
    """It was restored from a backup, or lost power before it synced: the records that it lost are shipped again.

    Also where it has lost all of them, so that only the number of its last message tells that from a purge.
    """

    said: list[str] = []

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with shipped(path, server, before) as client:
            server.stop()
            server.keep(tmp_path / "backup")
            server.start()
            grow(path, 1000 - before)
            await ship(path, server)
            assert position_of(path) == 1000
            server.stop()
            server.bring_back(tmp_path / "backup")
            server.start()
            async with shipper(path, server, notify=said.append) as shipping:
                await shipping.acked(1000)
                assert shipping.progress.records == 1000 - before
            assert len(said) == 1
            assert "lost what it had acknowledged" in said[0]
            assert await verdict(client, 1000) == PERFECT

    run(main)


def test_older_state_that_gave_the_numbers_to_another_log_gets_all_again(server: NatsServer, tmp_path: Path) -> None:
    """It has no message of this log, and enough of the other one that the log's own could have been purged."""
    said: list[str] = []

    async def main() -> None:
        path, other = tmp_path / "a.wal", tmp_path / "b.wal"
        async with Client(server) as client:
            await client.create()
            server.stop()
            server.keep(tmp_path / "backup")
            server.start()
            grow(path, 200)
            await ship(path, server)
            server.stop()
            server.bring_back(tmp_path / "backup")
            server.start()
            grow(other, 1000)
            await ship(other, server)
            grow(path, 10)
            await ship(path, server, notify=said.append)
            assert len(said) == 1
            assert "lost what it had acknowledged" in said[0]
            own = [each for each in await client.messages() if each.subject.endswith(uuid_of(path))]
            assert judge(records_in(own), 210) == PERFECT

    run(main)


def test_purged_subject_stays_so_while_others_ship(server: NatsServer, tmp_path: Path) -> None:
    """A shipper that finds nothing new notes no number of another log's message, which it would take for one of its own."""
    said: list[str] = []

    async def main() -> None:
        path, other = tmp_path / "a.wal", tmp_path / "b.wal"
        async with Client(server) as client:
            await client.create()
            grow(path, 200)
            await ship(path, server)
            await client.ask("STREAM.PURGE.LOGS")
            grow(other, 100)
            for _ in range(3):
                await ship(other, server)
                await ship(path, server, notify=said.append)
            assert said == []
            assert all(each.subject.endswith(uuid_of(other)) for each in await client.messages())

    run(main)


def test_state_that_is_lost_behind_a_running_shipper_is_shipped_again(server: NatsServer, tmp_path: Path) -> None:
    """A shipper that has nothing to do sees that the server came back without what it had acknowledged."""
    said: list[str] = []

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with Client(server) as client:
            await client.create()
            grow(path, 100)
            async with shipper(path, server, notify=said.append) as shipping:
                await shipping.acked(100)
                server.stop()
                server.keep(tmp_path / "backup")
                server.start()
                grow(path, 100)
                await shipping.acked(200)
                server.stop()
                server.bring_back(tmp_path / "backup")
                server.start()
                while await verdict(client, 200) != PERFECT:
                    await asyncio.sleep(0.1)
                assert shipping.progress.acknowledged == 200
            assert position_of(path) == 200
            assert ["after record 100" in each for each in said] == [True]

    run(main)


@both_forms
@pytest.mark.parametrize("how", ["purge", "work queue"])
def test_what_was_consumed_is_not_shipped_again(how: str, server: NatsServer, tmp_path: Path) -> None:
    """The subject is empty, and the position of the consumer says where to go on."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with Client(server) as client:
            await client.create(retention="limits" if how == "purge" else "workqueue")
            grow(path, 200)
            await ship(path, server)
            consumed = records_in(await client.messages())
            if how == "purge":
                await client.ask("STREAM.PURGE.LOGS")
            else:
                await consume_all(client)
            assert await client.messages() == []
            grow(path, 100)
            await ship(path, server)
            await ship(path, server)
            assert judge(consumed + records_in(await client.messages()), 300) == PERFECT

    run(main)


def test_work_queue_that_was_taken_out_of_order_repeats_nothing(server: NatsServer, tmp_path: Path) -> None:
    """Its last message on the subject is not the last one that it has had."""
    said: list[str] = []

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with Client(server) as client:
            await client.create(retention="workqueue")
            grow(path, 200)
            await ship(path, server)
            shipped = await client.messages()
            subscription = await client.connection.jetstream().pull_subscribe("pmwal.>", "work", stream="LOGS")
            for message in (await subscription.fetch(len(shipped)))[1:]:
                await message.ack_sync()
            assert len(await client.messages()) == 1
            grow(path, 100)
            for _ in range(2):
                await ship(path, server, notify=said.append)
            assert said == []
            assert judge(records_in(shipped + (await client.messages())[1:]), 300) == PERFECT

    run(main)


async def consume_all(client: Client) -> None:
    """Acknowledge all messages of a work queue."""
    subscription = await client.connection.jetstream().pull_subscribe("pmwal.>", "work", stream="LOGS")
    while (await subscription.consumer_info()).num_pending:
        for message in await subscription.fetch(10):
            await message.ack_sync()


@both_forms
def test_purge_behind_a_running_shipper_loses_and_repeats_nothing(server: NatsServer, tmp_path: Path) -> None:
    """The server refuses the next message, and the position says where to go on."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with Client(server) as client:
            await client.create()
            grow(path, 200)
            async with shipper(path, server) as shipping:
                await shipping.acked(200)
                consumed = records_in(await client.messages())
                await client.ask("STREAM.PURGE.LOGS")
                grow(path, 100)
                await shipping.acked(300)
            assert judge(consumed + records_in(await client.messages()), 300) == PERFECT

    run(main)


def test_stream_that_is_created_anew_gets_all_again(server: NatsServer, tmp_path: Path) -> None:
    """It is not the stream that had acknowledged; this is said."""
    said: list[str] = []

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with shipped(path, server, 200) as client:
            await client.ask("STREAM.DELETE.LOGS")
            await client.create()
            grow(path, 10)
            await ship(path, server, notify=said.append)
            assert await verdict(client, 210) == PERFECT

    run(main)
    assert len(said) == 1
    assert "created anew" in said[0]


@pytest.mark.parametrize(("chosen", "max_msgs", "there"), [("frame", 3, 3), ("atomic", 60, 46)])
def test_stream_that_is_full_gets_all_once_there_is_room(
    chosen: str, max_msgs: int, there: int, server: NatsServer, tmp_path: Path
) -> None:
    """With discard=new the server refuses; the shipper says why, tries again, and the log waits. A batch is refused as a whole."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with Client(server) as client:
            await client.create(max_msgs=max_msgs)
            grow(path, 300)
            async with shipper(path, server, form=chosen) as shipping:
                while "maximum messages" not in shipping.problem:
                    await asyncio.sleep(0.05)
                assert len(await client.messages()) == there
                assert shipping.progress.lag_records > 0
                await client.change(max_msgs=-1)
                await shipping.acked(300)
                assert shipping.problem == ""
            assert await verdict(client, 300) == PERFECT

    run(main)


# -- rollbacks


def roll_back(path: Path, keep: int, more: int, tag: bytes = b"new") -> None:
    """Roll back, and append other records."""
    with pmwal.open(path, commit="manual") as wal:
        wal.rollback(after=keep)
        for _ in range(more):
            wal.append(payload(wal.next_seq, tag), kind=wal.next_seq % 7)
        wal.commit()


@both_forms
def test_rollback_of_what_was_shipped_stops(server: NatsServer, tmp_path: Path) -> None:
    """A copy of a log under the same uuid looks the same, so somebody has to decide. Nothing is shipped."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with shipped(path, server, 200) as client:
            before = await client.messages()
            roll_back(path, 133, 100)
            with pytest.raises(pmwal.ShipError, match="record 200 as it was shipped"):
                await ship(path, server)
            assert await client.messages() == before

    run(main)


@both_forms
@pytest.mark.parametrize("running", [False, True])
def test_rollback_is_told_to_the_stream(running: bool, server: NatsServer, tmp_path: Path) -> None:
    """With "mark" the folded stream equals the log, also after a second rollback to before the first one."""
    said: list[str] = []

    async def main() -> None:
        path = tmp_path / "a.wal"
        options: dict[str, Any] = {"on_rollback": "mark", "notify": said.append}
        async with Client(server) as client:
            await client.create()
            grow(path, 200)
            if running:
                async with shipper(path, server, **options) as shipping:
                    await shipping.acked(200)
                    roll_back(path, 133, 100)
                    while shipping.progress.rollbacks < 1:
                        await asyncio.sleep(0.05)
                    await shipping.acked(233)
                    roll_back(path, 111, 150, b"newer")
                    await shipping.acked(261)
            else:
                await ship(path, server, **options)
                roll_back(path, 133, 100)
                await ship(path, server, **options)
                roll_back(path, 111, 150, b"newer")
                await ship(path, server, **options)
            messages = await client.messages()
        assert [tuple(each) for each in folded(messages)] == plain(path)
        marks = [each for each in decoded(messages) if isinstance(each, Mark)]
        assert marks == [Mark("rollback", 0, 133), Mark("rollback", 0, 111)]
        assert position_of(path) == 261
        folding, kept = Folding(), list[Any]()
        for message in messages:
            for each in folding.add(message):
                kept = [one for one in kept if one.seq <= each.keep] if isinstance(each, Rollback) else [*kept, each]
        assert kept == contents(path)

    run(main)
    assert len(said) == 2


@both_forms
def test_log_that_has_again_what_was_void_ships_it_again(server: NatsServer, tmp_path: Path) -> None:
    """An older copy of the file takes the log's place: it has records that the stream was told are void."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with shipped(path, server, 200) as client:
            shutil.copy(path, tmp_path / "older")
            roll_back(path, 133, 100)
            await ship(path, server, on_rollback="mark", notify=lambda _: None)
            os.replace(tmp_path / "older", path)
            await ship(path, server, on_rollback="mark", notify=lambda _: None)
            messages = await client.messages()
        assert [tuple(each) for each in folded(messages)] == plain(path)
        assert Mark("rollback", 0, 133) == [each for each in decoded(messages) if isinstance(each, Mark)][-1]

    run(main)


@both_forms
def test_rollback_right_after_a_marker_is_told_as_well(server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipper ended between a marker and the next record, and then the log was rolled back further."""
    path = tmp_path / "a.wal"
    publish = Link.publish

    async def ending(self: Link, subject: str, body: bytes, headers: dict[str, str]) -> int:
        stored = await publish(self, subject, body, headers)
        if "Pmwal-Rollback" in headers:
            raise Ended
        return stored

    async def main() -> None:
        async with shipped(path, server, 200) as client:
            roll_back(path, 133, 100)
            with monkeypatch.context() as patch:
                patch.setattr(Link, "publish", ending)
                with pytest.raises(Ended):
                    await ship(path, server, on_rollback="mark", notify=lambda _: None)
            roll_back(path, 100, 100, b"newer")
            await ship(path, server, on_rollback="mark", notify=lambda _: None)
            assert [tuple(each) for each in folded(await client.messages())] == plain(path)

    run(main)
