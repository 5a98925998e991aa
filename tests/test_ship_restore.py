"""Restoring a log from a stream: the same numbers, kinds and times, whatever had happened to the log before."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import pmwal
from nats_servers import Client, NatsServer
from pmwal.opening.filling import fill_new
from pmwal.ship import RestoreReport, restore
from pmwal.ship.chain import Entry
from pmwal.ship.plan import Kept, Plan
from shipped_streams import uuid_of
from shipping import both_forms, contents, grow, run, ship, shipped


async def restored(path: Path, server: NatsServer, source: Path, **options: Any) -> RestoreReport:
    """Restore what the stream has of this log, and check that the new one is in order and goes on."""
    report = await restore(path, from_=server.url, stream="LOGS", log=uuid_of(source), **options)
    checked = pmwal.verify(path)
    assert (checked.outcome, checked.first_seq, checked.last_seq) == ("clean", report.first_seq, report.last_seq)
    assert uuid_of(path) != uuid_of(source)
    before = contents(path)
    assert len(before) == report.records
    with pmwal.open(path) as wal:
        assert wal.append(b"next") == report.last_seq + 1
    assert contents(path)[:-1] == before
    return report


@both_forms
def test_restored_log_has_the_same_records(server: NatsServer, tmp_path: Path) -> None:
    """Of a log that was truncated, and had records of all sizes, too large ones among them."""

    async def main() -> None:
        path, again = tmp_path / "a.wal", tmp_path / "b.wal"
        async with Client(server) as client:
            await client.create(max_msg_size=16384)
            grow(path, 100)
            with pmwal.open(path) as wal:
                for length in (0, 1, 5000, 40000, 7, 100000, 3):
                    wal.append(os.urandom(length), kind=length % 999)
                wal.truncate(before=31)
            await ship(path, server)
            expected = contents(path)
            report = await restored(again, server, path)
            assert contents(again)[:-1] == expected
            assert (report.first_seq, report.last_seq, report.left_out) == (31, 107, 0)
            with pytest.raises(FileExistsError):
                await restored(again, server, path)

    run(main)


@both_forms
@pytest.mark.parametrize("engine", ["native", "python"], indirect=True)
def test_restored_log_has_what_the_log_had_after_rollbacks(engine: str, server: NatsServer, tmp_path: Path) -> None:
    """Records that were rolled back do not come again."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with shipped(path, server, 100):
            for keep, tag in ((77, b"new"), (50, b"newer")):
                with pmwal.open(path) as wal:
                    wal.rollback(after=keep)
                grow(path, 40, tag=tag)
                await ship(path, server, on_rollback="mark", notify=lambda _: None)
            await restored(tmp_path / "b.wal", server, path)
            assert contents(tmp_path / "b.wal")[:-1] == contents(path)

    run(main)


def test_restored_log_has_room_for_a_record_of_many_parts(server: NatsServer, tmp_path: Path) -> None:
    """A ring takes records up to half of its size, and this one is larger than all others together."""

    async def main() -> None:
        path, again = tmp_path / "a.wal", tmp_path / "b.wal"
        async with Client(server) as client:
            await client.create(max_msg_size=16384)
            with pmwal.open(path, size="1MiB") as wal:
                wal.extend([b"before", bytes(300_000), b"after"])
            await ship(path, server)
            await restored(again, server, path)
            assert contents(again)[:-1] == contents(path)

    run(main)


@both_forms
def test_restored_log_begins_after_a_gap(server: NatsServer, tmp_path: Path) -> None:
    """A log has consecutive numbers; what is before the gap is left out and counted. It may be empty."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with shipped(path, server, 100, size="64KiB", on_full="overwrite"):
            grow(path, 2000, size="64KiB", on_full="overwrite")
            await ship(path, server, notify=lambda _: None)
            report = await restored(tmp_path / "b.wal", server, path)
            assert contents(tmp_path / "b.wal")[:-1] == contents(path)
            assert report.left_out == 100
            with pmwal.open(path) as wal:
                wal.append(b"not shipped")
                wal.truncate(before=wal.next_seq)
                wal.append(b"nor this")
                wal.truncate(before=wal.next_seq)
            grow(path, 1, size="64KiB", on_full="overwrite")
            await ship(path, server, notify=lambda _: None)
            report = await restored(tmp_path / "c.wal", server, path)
            assert (report.first_seq, report.last_seq) == (2103, 2103)

    run(main)


@both_forms
def test_restored_log_has_the_newest_records_that_fit(server: NatsServer, tmp_path: Path) -> None:
    """With a size of its own, and room to go on."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with shipped(path, server, 3000):
            report = await restored(tmp_path / "b.wal", server, path, size="64KiB")
            assert report.capacity == 65536
            assert 16384 < report.used < 49152
            assert contents(tmp_path / "b.wal")[:-1] == contents(path)[-report.records :]
            assert report.left_out + report.records == 3000
            report = await restored(tmp_path / "c.wal", server, path, size="1MiB")
            assert (report.records, report.left_out) == (3000, 0)

    run(main)


@both_forms
def test_stream_that_was_cut_off_gives_what_it_has(server: NatsServer, tmp_path: Path) -> None:
    """Its oldest messages were removed by age, and one in the middle by hand."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with shipped(path, server, 1000) as client:
            await client.ask("STREAM.PURGE.LOGS", seq=10)
            first = int((await client.messages())[0].headers["Pmwal-First"])
            report = await restored(tmp_path / "b.wal", server, path)
            assert (report.first_seq, report.last_seq) == (first, 1000)
            await client.ask("STREAM.MSG.DELETE.LOGS", seq=20)
            report = await restored(tmp_path / "c.wal", server, path)
            assert report.first_seq == int((await client.messages())[10].headers["Pmwal-First"])
            assert contents(tmp_path / "c.wal")[:-1] == contents(path)[-report.records :]
            assert report.left_out > 0

    run(main)


@both_forms
def test_message_that_was_changed_is_refused(server: NatsServer, tmp_path: Path) -> None:
    """Its checksum says so, and nothing is left at the path."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with shipped(path, server, 100) as client:
            *_, last = await client.messages()
            await client.ask("STREAM.MSG.DELETE.LOGS", seq=last.seq)
            body = bytearray(last.data)
            body[-1] ^= 1
            headers = {name: value for name, value in last.headers.items() if name.startswith("Pmwal-")}
            await client.connection.jetstream().publish(last.subject, bytes(body), headers=headers)
            with pytest.raises(ValueError, match="another checksum"):
                await restored(tmp_path / "b.wal", server, path)
            assert not (tmp_path / "b.wal").exists()

    run(main)


def test_what_is_not_there_cannot_be_restored(server: NatsServer, tmp_path: Path) -> None:
    """A missing stream, a log that was never shipped, a uuid that is none."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with Client(server) as client:
            with pytest.raises(pmwal.ShipError, match="no stream"):
                await restore(path, from_=server.url, stream="LOGS", log="0" * 32)
            await client.create()
            with pytest.raises(pmwal.ShipError, match=r"has nothing on pmwal\.0000"):
                await restore(path, from_=server.url, stream="LOGS", log="0" * 32)
            with pytest.raises(ValueError, match="uuid of a log"):
                await restore(path, from_=server.url, stream="LOGS", log="a.wal")

    run(main)


def test_restored_log_ships_on_as_a_log_of_its_own(server: NatsServer, tmp_path: Path) -> None:
    """The old log stays in the stream as it was."""

    async def main() -> None:
        path, again = tmp_path / "a.wal", tmp_path / "b.wal"
        async with shipped(path, server, 100) as client:
            before = await client.messages()
            await restored(again, server, path)
            await ship(again, server)
            messages = await client.messages()
            assert messages[: len(before)] == before
            assert {message.subject for message in messages[len(before) :]} == {f"pmwal.{uuid_of(again)}"}

    run(main)


# -- the plan, without a server


def plan_of(*entries: tuple[int, Entry, int]) -> Plan:
    """The plan of these messages."""
    plan = Plan()
    for number, entry, size in entries:
        plan.add(number, entry, size)
    plan.finish()
    return plan


def test_plan_cuts_a_message_at_a_rollback() -> None:
    """Only some of its records count."""
    plan = plan_of(
        (4, Entry(1, 10, 0), 240),
        (5, Entry(11, 20, 4), 240),
        (7, Entry(16, 15, 5, rollback=True), 0),
        (8, Entry(16, 18, 7), 72),
    )
    assert plan.kept == [Kept(4, 1, 10, 240), Kept(5, 11, 15, 240), Kept(8, 16, 18, 72)]
    assert (plan.first_seq, plan.next_seq, plan.left_out) == (1, 19, 0)


def test_plan_of_a_log_that_was_rolled_back_to_nothing_is_empty() -> None:
    """The numbers go on from there."""
    plan = plan_of((1, Entry(5, 9, 0), 100), (2, Entry(5, 4, 1, rollback=True), 0))
    assert (plan.kept, plan.first_seq, plan.next_seq) == ([], 5, 5)


@pytest.mark.parametrize("there", [1, 2])
def test_plan_leaves_out_a_record_of_which_parts_are_missing(there: int) -> None:
    """At the end of the stream, and where a marker follows instead of the last part."""
    first = (1, Entry(1, 1, 0), 20)
    parts = [(2, Entry(2, 2, 1, offset=0, size=300), 100), (3, Entry(2, 2, 2, offset=100, size=300), 100)][:there]
    last = parts[-1][0]
    assert plan_of(first, *parts).kept == [Kept(1, 1, 1, 20)]
    marker = (9, Entry(2, 1, last, rollback=True), 0)
    assert plan_of(first, *parts, marker).kept == [Kept(1, 1, 1, 20)]
    gap = (9, Entry(2, 2, last, gap=True), 0)
    plan = plan_of(first, *parts, gap, (10, Entry(3, 3, 9), 20))
    assert (plan.kept, plan.left_out) == ([Kept(10, 3, 3, 20)], 1)


def test_plan_leaves_out_a_record_of_which_the_first_part_was_removed() -> None:
    """The stream begins in the middle of it."""
    plan = plan_of((3, Entry(2, 2, 2, offset=100, size=200), 100), (4, Entry(3, 4, 3), 50))
    assert (plan.kept, plan.first_seq, plan.next_seq) == ([Kept(4, 3, 4, 50)], 3, 5)


def test_plan_that_has_to_fit_keeps_no_part_of_a_record() -> None:
    """The oldest are left out, whole records only."""
    plan = plan_of(
        (1, Entry(1, 1, 0), 114),
        (2, Entry(2, 2, 1, offset=0, size=200), 100),
        (3, Entry(2, 2, 2, offset=100, size=200), 100),
        (4, Entry(3, 3, 3), 114),
    )
    plan.fit(260, 50)
    assert (plan.kept, plan.left_out) == ([Kept(4, 3, 3, 114)], 2)


# -- filling a log


def test_filled_log_refuses_records_that_do_not_follow_or_fit(tmp_path: Path) -> None:
    """Nothing is left at the path."""
    record = pmwal.Record(7, 1, 5, b"x")
    with pytest.raises(ValueError, match="records are missing"):
        fill_new(tmp_path / "a.wal", lambda: [record, pmwal.Record(9, 1, 5, b"y")], 7, size="64KiB")
    with pytest.raises(ValueError, match="does not fit"):
        fill_new(tmp_path / "a.wal", lambda: [pmwal.Record(7, 1, 5, bytes(60000))], 7, size="64KiB")
    assert list(tmp_path.iterdir()) == []
    assert fill_new(tmp_path / "a.wal", lambda: [record], 7, size="64KiB").records == 1
    assert contents(tmp_path / "a.wal") == [record]
