"""What a shipper does with records that are gone or too large, with logs that are replaced, and with what the writer may free."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import pmwal
from nats_servers import Client, NatsServer, nats_server
from pmwal.ship import Folding, Gap, Shipper, records
from pmwal.ship.link import Link
from shipped_streams import uuid_of
from shipping import (
    PERFECT,
    PERMISSIONS,
    Ended,
    Mark,
    both_forms,
    contents,
    decoded,
    folded,
    grow,
    judge,
    payload,
    records_in,
    run,
    ship,
    shipped,
    shipper,
    verdict,
)


def end_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let a shipper end right after that many messages were stored."""
    publish, left = Link.publish, [count]

    async def ending(self: Link, subject: str, body: bytes, headers: dict[str, str]) -> int:
        stored = await publish(self, subject, body, headers)
        left[0] -= 1
        if not left[0]:
            raise Ended
        return stored

    monkeypatch.setattr(Link, "publish", ending)


# -- records that are gone


@both_forms
def test_records_that_were_overwritten_are_a_gap(server: NatsServer, tmp_path: Path) -> None:
    """A marker says which, and the rest follows in order."""
    said: list[str] = []

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with shipped(path, server, 100, size="64KiB", on_full="overwrite") as client:
            grow(path, 2000, size="64KiB", on_full="overwrite")
            await ship(path, server, notify=said.append)
            messages = await client.messages()
        first = contents(path)[0].seq
        assert [each for each in decoded(messages) if isinstance(each, Mark)] == [Mark("gap", 101, first - 1)]
        found = records_in(messages)
        assert judge(found[:100], 100) == PERFECT
        assert judge(found[100:], 2100, first) == PERFECT
        assert [each for message in messages for each in Folding().add(message) if isinstance(each, Gap)] == [Gap(101, first - 1)]

    run(main)
    assert len(said) == 1


@both_forms
def test_older_copy_of_the_log_after_a_gap_is_noticed(server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream ends with a gap, which names no record that could be compared; but the log ends before it."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with shipped(path, server, 100, size="64KiB", on_full="overwrite") as client:
            shutil.copy(path, tmp_path / "older")
            grow(path, 2000, size="64KiB", on_full="overwrite")
            end_after(monkeypatch, 1)
            with pytest.raises(Ended):
                await ship(path, server)
            monkeypatch.undo()
            assert isinstance(decoded(await client.messages())[-1], Mark)
            os.replace(tmp_path / "older", path)
            with pytest.raises(pmwal.ShipError, match="an older state"):
                await ship(path, server)

    run(main)


def test_log_that_was_truncated_before_it_was_shipped_first_begins_there(server: NatsServer, tmp_path: Path) -> None:
    """There is no gap: the stream has the log from the first record that it had."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        grow(path, 100)
        with pmwal.open(path) as wal:
            wal.truncate(before=41)
        async with Client(server) as client:
            await client.create()
            await ship(path, server)
            assert judge(records_in(await client.messages()), 100, 41) == PERFECT
            assert all(not isinstance(each, Mark) for each in decoded(await client.messages()))

    run(main)


# -- records that are too large for a message


LARGE = 3_500_000


def with_large(path: Path) -> None:
    """A log with a record that takes four messages."""
    with pmwal.open(path, size="16MiB", commit="manual") as wal:
        wal.append(b"before", kind=1)
        wal.append(random.Random(1).randbytes(LARGE), kind=9)
        wal.append(b"after", kind=3)
        wal.commit()


@both_forms
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_shipper_that_ended_inside_a_record_goes_on_at_the_part(
    count: int, server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record of 3.5 MB goes in parts, each of them once."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        with_large(path)
        async with Client(server) as client:
            await client.create()
            end_after(monkeypatch, count)
            with pytest.raises(Ended):
                await ship(path, server)
            monkeypatch.undo()
            await ship(path, server)
            messages = await client.messages()
        assert len(messages) == 6
        folding = Folding()
        assert [each for message in messages for each in folding.add(message)] == contents(path)
        assert [(each.seq, each.data) for each in records_in(messages)] == [(each.seq, each.data) for each in contents(path)]
        with pytest.raises(ValueError, match="put parts together"):
            records(messages[1])

    run(main)


@both_forms
@pytest.mark.parametrize("how", ["rolled back", "overwritten"])
def test_record_that_is_gone_in_the_middle_is_not_put_together(
    how: str, server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts that are there are void: a marker follows them."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        with_large(path)
        async with Client(server) as client:
            await client.create()
            end_after(monkeypatch, 3)
            with pytest.raises(Ended):
                await ship(path, server)
            monkeypatch.undo()
            with pmwal.open(path) as wal:
                if how == "rolled back":
                    wal.rollback(after=1)
                else:
                    wal.truncate(before=3)
                wal.append(b"other")
            await ship(path, server, on_rollback="mark", notify=lambda _: None)
            messages = await client.messages()
        expected = [(1, b"before"), *[(each.seq, each.data) for each in contents(path) if each.seq > 1]]
        assert [(each.seq, each.data) for each in folded(messages)] == expected
        folding = Folding()
        items = [each for message in messages for each in folding.add(message)]
        assert [(each.seq, each.data) for each in items if isinstance(each, pmwal.Record)] == expected

    run(main)


def test_record_that_is_too_large_stops_where_that_is_asked(server: NatsServer, tmp_path: Path) -> None:
    """What comes before it is shipped."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        with_large(path)
        async with Client(server) as client:
            await client.create()
            with pytest.raises(pmwal.ShipError, match="record 2 has 3500000 bytes"):
                await ship(path, server, too_large="stop")
            assert [each.seq for each in records_in(await client.messages())] == [1]

    run(main)


@both_forms
def test_stream_with_small_messages_gets_small_parts(server: NatsServer, tmp_path: Path) -> None:
    """Frames and parts are as small as max_msg_size of the stream demands."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with Client(server) as client:
            await client.create(max_msg_size=8192)
            grow(path, 300)
            with pmwal.open(path) as wal:
                wal.append(bytes(30000), kind=5)
            await ship(path, server, frame="256KiB")
            messages = await client.messages()
        assert max(len(message.data) for message in messages) <= 8192
        assert [each.data for each in records_in(messages)] == [each.data for each in contents(path)]

    run(main)


# -- logs that are replaced


def test_log_that_is_created_anew_under_its_name_has_a_subject_of_its_own(server: NatsServer, tmp_path: Path) -> None:
    """Also while the shipper runs: it ships the rest of the old one, and then the new one."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with Client(server) as client:
            await client.create()
            grow(path, 100)
            old = uuid_of(path)
            async with shipper(path, server) as shipping:
                await shipping.acked(100)
                os.unlink(path)
                grow(path, 70)
                new = uuid_of(path)
                while (await client.ask("STREAM.INFO.LOGS", subjects_filter=">"))["state"]["num_subjects"] < 2:
                    await asyncio.sleep(0.05)
                await shipping.acked(70)
            by_log: dict[str, list[Any]] = {}
            for message in await client.messages():
                by_log.setdefault(message.subject, []).append(message)
        assert judge(records_in(by_log[f"pmwal.{old}"]), 100) == PERFECT
        assert judge(records_in(by_log[f"pmwal.{new}"]), 70) == PERFECT

    run(main)


@both_forms
@pytest.mark.parametrize("open_one", [False, True])
def test_log_that_is_resized_ships_on(open_one: bool, server: NatsServer, tmp_path: Path) -> None:
    """It is the same log in another file."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with Client(server) as client:
            await client.create()
            grow(path, 100)
            async with shipper(path, server) as shipping:
                await shipping.acked(100)
                if open_one:
                    with pmwal.open(path) as wal:
                        await asyncio.to_thread(wal.resize, "2MiB")
                        wal.append(payload(101), kind=101 % 7)
                        await shipping.acked(101)
                else:
                    await asyncio.to_thread(pmwal.resize, path, "2MiB")
                    grow(path, 1, size="2MiB")
                    await shipping.acked(101)
            assert await verdict(client, 101) == PERFECT

    run(main)


# -- what the writer may free


@both_forms
def test_records_are_released_when_the_stream_has_had_them_for_a_while(server: NatsServer, tmp_path: Path) -> None:
    """``truncate(consumed=True)`` frees nothing before ``hold`` is over, and all after it, without more records."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with Client(server) as client:
            await client.create()
            with pmwal.open(path, size="1MiB", consumers=["nats"]) as wal:
                for seq in range(1, 101):
                    wal.append(payload(seq), kind=seq % 7, commit=False)
                wal.commit()
                await ship(path, server, hold=3600.0)
                assert wal.truncate(consumed=True) == 1
                async with shipper(path, server, hold=0.2):
                    while wal.truncate(consumed=True) < 101:
                        await asyncio.sleep(0.05)
                wal.append(payload(101), kind=101 % 7)
                await ship(path, server, hold=0.0)
                assert wal.truncate(consumed=True) == 102
            assert await verdict(client, 101) == PERFECT

    run(main)


def test_shipper_that_runs_now_and_then_releases_what_an_earlier_one_shipped(server: NatsServer, tmp_path: Path) -> None:
    """The position says since when the stream has them."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with Client(server) as client:
            await client.create()
            with pmwal.open(path, size="1MiB", consumers=["nats"]) as wal:
                for seq in range(1, 101):
                    wal.append(payload(seq), kind=seq % 7, commit=False)
                wal.commit()
                await ship(path, server, hold=3600.0)
                await ship(path, server, hold=3600.0)
                assert wal.truncate(consumed=True) == 1
                await asyncio.sleep(0.02)
                await ship(path, server, hold=0.01)
                assert wal.truncate(consumed=True) == 101

    run(main)


def test_task_that_waits_learns_that_the_shipper_was_closed(server: NatsServer, tmp_path: Path) -> None:
    """It is no cancellation of its own."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        grow(path, 1)
        async with Client(server) as client:
            await client.create()
            async with shipper(path, server) as shipping:
                await shipping.acked(1)
                waiting = asyncio.create_task(shipping.acked(2))
                await asyncio.sleep(0)
            with pytest.raises(pmwal.WalClosed, match="before the stream had this record"):
                await waiting

    run(main)


def test_records_that_the_stream_has_lost_are_not_released(server: NatsServer, tmp_path: Path) -> None:
    """Before something is released, the stream is asked whether it has it still."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with Client(server) as client:
            await client.create()
            with pmwal.open(path, size="1MiB", consumers=["nats"]) as wal:
                for seq in range(1, 101):
                    wal.append(payload(seq), kind=seq % 7, commit=False)
                wal.commit()
                shipping = shipper(path, server, hold=1.0)
                async with shipping:
                    await shipping.acked(100)
                    await client.ask("STREAM.DELETE.LOGS")
                    while "no stream" not in shipping.problem:
                        await asyncio.sleep(0.05)
                    assert wal.truncate(consumed=True) == 1

    run(main)


# -- before anything is shipped


def test_missing_stream_is_named(server: NatsServer, tmp_path: Path) -> None:
    """Nobody but the user creates it."""
    path = tmp_path / "a.wal"
    grow(path, 1)
    with pytest.raises(pmwal.ShipError, match="there is no stream 'LOGS'"):
        run(lambda: ship(path, server))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"max_msgs_per_subject": 5}, "max_msgs_per_subject removes"),
        ({"subjects": ["other.>"]}, r"add the subject pmwal\.\*"),
        ({"no_ack": True}, "acknowledges nothing"),
        ({"max_msg_size": 1024}, "max_msg_size leaves no room"),
        ({"subject_transform": {"src": "pmwal.>", "dest": "else.>"}}, "subject_transform changes"),
    ],
)
def test_stream_that_breaks_the_chain_is_refused(settings: dict[str, Any], text: str, server: NatsServer, tmp_path: Path) -> None:
    """Nothing is stored in it."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        grow(path, 10)
        async with Client(server) as client:
            await client.create(**settings)
            found = await pmwal.ship.check(to=server.url, stream="LOGS")
            assert any(problem.refused for problem in found)
            with pytest.raises(pmwal.ShipError, match=text):
                await ship(path, server)
            assert await client.messages() == []

    run(main)


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"storage": "memory"}, "storage"),
        ({"retention": "interest"}, "retention"),
        ({"persist_mode": "async", "allow_atomic": False}, "persist_mode"),
        ({"discard": "old", "max_msgs": 100}, "max_msgs"),
        ({"discard": "old", "max_bytes": 1 << 20}, "max_bytes"),
    ],
)
def test_settings_that_lose_records_are_named(settings: dict[str, Any], setting: str, server: NatsServer) -> None:
    """They may be meant, so a shipper begins."""

    async def main() -> None:
        async with Client(server) as client:
            await client.create(**settings)
            (problem,) = await pmwal.ship.check(to=server.url, stream="LOGS")
            assert (problem.setting, problem.refused) == (setting, False)

    run(main)


def test_stream_that_suits_has_no_problems(server: NatsServer) -> None:
    """The settings that the guide recommends."""

    async def main() -> None:
        async with Client(server) as client:
            await client.create()
        assert await pmwal.ship.check(to=server.url, stream="LOGS") == []
        (missing,) = await pmwal.ship.check(to=server.url, stream="NONE")
        assert missing.setting == "stream"

    run(main)


@both_forms
def test_shipper_needs_no_more_than_the_documented_permissions(tmp_path: Path) -> None:
    """Publish on the subjects, ask for the stream and for messages; a wrong password is said."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        grow(path, 200)
        with nats_server(tmp_path / "server", more=PERMISSIONS) as server:
            async with Client(server, user="admin", password="secret") as client:
                await client.create()
                await ship(path, server, user="shipper:s:p")
                roll_back(path)
                await ship(path, server, user="shipper:s:p", on_rollback="mark", notify=lambda _: None)
                assert judge(folded(await client.messages()), 150) == PERFECT
                with pytest.raises(pmwal.ShipError, match="check the user"):
                    await ship(path, server, user="shipper:wrong")

    run(main)


def roll_back(path: Path) -> None:
    """Discard the last fifty records."""
    with pmwal.open(path) as wal:
        wal.rollback(after=150)


def test_subject_that_somebody_else_uses_is_refused(server: NatsServer, tmp_path: Path) -> None:
    """The chain would not be one."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        grow(path, 1)
        async with Client(server) as client:
            await client.create()
            await client.connection.jetstream().publish(f"pmwal.{uuid_of(path)}", b"hello")
            with pytest.raises(pmwal.ShipError, match="only the log of this uuid may use"):
                await ship(path, server)

    run(main)


def test_missing_client_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "nats", None)
    with pytest.raises(ImportError, match=r"pip install 'pmwal\[nats\]'"):
        Shipper(tmp_path / "a.wal", to="nats://127.0.0.1:4222", stream="LOGS")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"stream": "A.B"}, "stream must be"),
        ({"prefix": "a.*"}, "prefix must be"),
        ({"frame": 10}, "frame must be"),
        ({"linger": -1}, "linger must be"),
        ({"hold": None}, "numbers of seconds"),
        ({"on_rollback": "ignore"}, "on_rollback must be"),
        ({"too_large": "drop"}, "too_large must be"),
        ({"form": "batch"}, "form must be"),
        ({"consumer": "a/b"}, "consumer"),
    ],
)
def test_wrong_option_is_refused(options: dict[str, Any], text: str, tmp_path: Path) -> None:
    """Before anything is opened."""
    with pytest.raises(ValueError, match=text):
        Shipper(tmp_path / "a.wal", **{"to": "nats://127.0.0.1:4222", "stream": "LOGS"} | options)


def test_log_that_is_missing_is_an_error_at_once(server: NatsServer, tmp_path: Path) -> None:
    """And so is a consumer that another process holds."""
    with pytest.raises(FileNotFoundError):
        run(lambda: ship(tmp_path / "a.wal", server))
    grow(tmp_path / "a.wal", 1)
    with pmwal.open(tmp_path / "a.wal", "r") as reader, reader.consumer("nats"), pytest.raises(pmwal.ConsumerHeld):
        run(lambda: ship(tmp_path / "a.wal", server))


def test_failure_reaches_those_who_wait(server: NatsServer, tmp_path: Path) -> None:
    """A task that waits for a record learns why it will not be shipped, and so does the block."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        grow(path, 1)
        shipping = shipper(path, server)
        with pytest.raises(pmwal.ShipError, match="no stream"):
            async with shipping:
                await shipping.acked(1)
        with pytest.raises(pmwal.ShipError, match="no stream"):
            async with shipper(path, server):
                await asyncio.sleep(0.5)

    run(main)
