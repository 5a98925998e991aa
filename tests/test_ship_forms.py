"""The form "atomic": one record a message, in atomic batches; and logs that change their form."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

import pmwal
from nats_servers import Client, NatsServer, binary
from pmwal.ship import Options, SetShipper, restore
from pmwal.ship.chain import Entry, Stamp
from pmwal.ship.link import Link, Stored
from pmwal.ship.plan import Kept, Plan
from processes import PATIENCE
from shipped_streams import uuid_of
from shipping import (
    FAST,
    PERFECT,
    before,
    contents,
    folded,
    grow,
    judge,
    payload,
    records_in,
    run,
    ship,
    shipper,
    verdict,
)


def batches(messages: list[Stored]) -> list[int]:
    """How many messages each atomic batch has; 1 for a message that is in none."""
    found: dict[str, int] = {}
    for message in messages:
        name = message.headers.get("Nats-Batch-Id", f"{message.seq}")
        found[name] = found.get(name, 0) + 1
    return list(found.values())


def test_message_is_a_record_for_any_client(server: NatsServer, tmp_path: Path) -> None:
    """Its body is the payload, and headers have the rest; as many go in a batch as the server takes."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with Client(server) as client:
            await client.create()
            grow(path, 2345)
            await ship(path, server, form="atomic", frame="1MiB")
            grow(path, 1)
            await ship(path, server, form="atomic")
            messages = await client.messages()
        assert [message.data for message in messages] == [payload(seq) for seq in range(1, 2347)]
        for message, record in zip(messages, contents(path), strict=True):
            found = [message.headers[f"Pmwal-{name}"] for name in ("First", "Last", "Kind", "Time", "Cursor")]
            assert found == [str(record.seq), str(record.seq), str(record.kind), str(record.time_ns), record.cursor]
        assert batches(messages) == [1000, 1000, 345, 1]

    run(main)


def test_batch_has_no_more_bytes_than_a_frame(server: NatsServer, tmp_path: Path) -> None:
    """So the memory that it takes is bounded, of the shipper and of the server."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with Client(server) as client:
            await client.create()
            with pmwal.open(path, size="1MiB", commit="manual") as wal:
                for _ in range(20):
                    wal.append(bytes(3000))
                wal.commit()
            await ship(path, server, form="atomic", frame=10_000)
            assert batches(await client.messages()) == [3] * 6 + [2]

    run(main)


def test_log_that_changes_its_form_is_one_log(server: NatsServer, tmp_path: Path) -> None:
    """Each run continues where the other form has ended, also with a rollback to a record in the middle of a batch."""

    async def main() -> None:
        path, again = tmp_path / "a.wal", tmp_path / "b.wal"
        async with Client(server) as client:
            await client.create()
            for form in ("frame", "atomic", "frame", "atomic"):
                grow(path, 100)
                await ship(path, server, form=form)
            assert await verdict(client, 400) == PERFECT
            for form, keep in (("frame", 390), ("atomic", 255), ("frame", 130)):
                with pmwal.open(path) as wal:
                    wal.rollback(after=keep)
                grow(path, 50, tag=form.encode())
                await ship(path, server, form=form, on_rollback="mark", notify=lambda _: None)
            messages = await client.messages()
            assert [before(message) for message in messages] == [0, *[message.seq for message in messages[:-1]]]
            assert [tuple(each) for each in folded(messages)] == [
                (each.seq, each.kind, each.time_ns, each.data) for each in contents(path)
            ]
            await restore(again, from_=server.url, stream="LOGS", log=uuid_of(path))
            assert contents(again) == contents(path)

    run(main)


def test_stream_that_ends_inside_a_batch_goes_on_there(server: NatsServer, tmp_path: Path) -> None:
    """A server that was killed while it stored a batch may have a part of it."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with Client(server) as client:
            await client.create()
            grow(path, 100)
            await ship(path, server, form="atomic", frame="1MiB")
            for seq in range(100, 41, -1):
                await client.ask("STREAM.MSG.DELETE.LOGS", seq=seq)
            said: list[str] = []
            await ship(path, server, form="atomic", frame="1MiB", notify=said.append)
            assert len(said) == 1
            assert "has lost what it had acknowledged after record 41" in said[0]
            messages = await client.messages()
            assert judge(records_in(messages), 100) == PERFECT
            assert [before(message) for message in messages] == [0, *[message.seq for message in messages[:-1]]]

    run(main)


def test_logs_of_a_set_ship_batches_side_by_side(server: NatsServer, tmp_path: Path) -> None:
    """More of them than the server takes batches of a stream: none is refused."""

    async def main() -> None:
        for at in range(60):
            grow(tmp_path / f"{at:02}.wal", 50, size="64KiB")
        async with Client(server) as client:
            await client.create()
            logs = SetShipper(tmp_path, to=server.url, stream="LOGS", form="atomic", **{**FAST, "frame": 1024})
            await logs.run(once=True)
            assert [each.retries for each in logs.progress.values()] == [0] * 60
            by_log: dict[str, list[Stored]] = {}
            for message in await client.messages():
                by_log.setdefault(message.subject, []).append(message)
        assert [judge(records_in(messages), 50) for messages in by_log.values()] == [PERFECT] * 60

    run(main)


def test_batch_that_the_server_drops_is_shipped_again(server: NatsServer, tmp_path: Path) -> None:
    """Others have as many batches of the stream open as it takes. What is the matter is said, and shipping continues after it."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        grow(path, 100)
        async with Client(server) as client:
            await client.create()
            opened = [{"Nats-Batch-Id": f"other{at}", "Nats-Batch-Sequence": "1"} for at in range(50)]
            async with shipper(path, server, form="atomic") as shipping:
                while "takes 50 of a stream" not in shipping.problem and shipping.progress.acknowledged < 100:
                    for headers in opened:  # again, for the server forgets those that nothing comes for
                        await client.connection.publish("pmwal.other", headers=headers)
                    await client.connection.flush()
                    grow(path, 100)
                    await asyncio.sleep(0.05)
                assert "takes 50 of a stream" in shipping.problem
                for headers in opened:
                    await client.connection.publish("pmwal.other", headers=headers | {"Nats-Batch-Commit": "1"})
                with pmwal.open(path, "r") as reader:
                    await shipping.acked(reader.committed_seq)
                    last = reader.committed_seq
            messages = [message for message in await client.messages() if message.subject != "pmwal.other"]
        assert judge(records_in(messages), last) == PERFECT

    run(main)


def test_batch_that_is_cancelled_ends_where_the_client_swallows_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """So does nats-py while it waits for a server that takes no more: a shipper that is closed would not end."""

    class Stuck:
        """A connection to a server that hangs."""

        async def publish(self, subject: str, body: bytes, headers: dict[str, str]) -> None:
            """Wait, whatever happens."""
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(2 * PATIENCE)

    async def connected(self: Link) -> Stuck:
        return Stuck()

    async def main() -> None:
        link = Link("nats://127.0.0.1:4222", "LOGS", Options())
        task = asyncio.create_task(link.publish_batch("pmwal.a", [(b"", {})] * 3))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    binary()
    monkeypatch.setattr(Link, "_connected", connected)
    run(main)


def test_stream_that_takes_no_batches_is_refused(server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a server that would store their messages one by one. Nothing is stored."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        grow(path, 10)
        async with Client(server) as client:
            await client.create(allow_atomic=False)
            assert await pmwal.ship.check(to=server.url, stream="LOGS") == []
            (problem,) = await pmwal.ship.check(to=server.url, stream="LOGS", form="atomic")
            assert (problem.setting, problem.refused) == ("allow_atomic", True)
            with pytest.raises(pmwal.ShipError, match=r'set it to true .*, or use form="frame"'):
                await ship(path, server, form="atomic")
            monkeypatch.setattr(Link, "version", (2, 11))
            with pytest.raises(pmwal.ShipError, match=r"version 2\.11, and atomic batches need 2\.12"):
                await ship(path, server, form="atomic")
            assert await client.messages() == []
            with pytest.raises(ValueError, match="form must be"):
                await pmwal.ship.check(to=server.url, stream="LOGS", form="batch")  # type: ignore[arg-type]

    run(main)


# -- the plan of a restore


def planned(*entries: tuple[int, Entry]) -> Plan:
    """The plan of messages with ten bytes each."""
    plan = Plan()
    for number, entry in entries:
        plan.add(number, entry, 10)
    plan.finish()
    return plan


def one(seq: int, prev: int | None) -> Entry:
    """A message of one record."""
    return Entry(seq, seq, prev, stamp=Stamp(0, 0))


def test_plan_takes_a_batch_as_one_and_cuts_it_at_a_rollback() -> None:
    """A restore that has a million messages does not remember each of them."""
    batch = [(at + 10, one(at, 4 if at == 1 else None)) for at in range(1, 6)]
    marker = (20, Entry(4, 3, 15, rollback=True))
    assert planned(*batch).kept == [Kept(11, 1, 5, 50, each=True)]
    plan = planned(*batch, marker, (21, one(4, 20)), (22, one(5, None)), (30, one(6, 22)))
    assert plan.kept == [Kept(11, 1, 3, 50, each=True), Kept(21, 4, 5, 20, each=True), Kept(30, 6, 6, 10, each=True)]
    assert [list(each.messages) for each in plan.kept] == [[11, 12, 13], [21, 22], [30]]
    assert plan.kept[0].payload == 50


def test_plan_breaks_where_a_message_of_a_batch_was_removed() -> None:
    """What comes before it is left out."""
    batch = [(at + 10, one(at, 4 if at == 1 else None)) for at in range(1, 6) if at != 3]
    plan = planned(*batch)
    assert (plan.kept, plan.left_out) == ([Kept(14, 4, 5, 20, each=True)], 2)
