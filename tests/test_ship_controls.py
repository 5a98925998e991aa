"""Negative controls: mistakes that are easily made in a shipper, planted, and seen to be noticed by the judge."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import pmwal.ship.relay
from nats_servers import Client, NatsServer, nats_server
from pmwal.ship.chain import EXPECTED_SEQUENCE, Entry, Source, headers_for
from pmwal.ship.link import Link, Stored, Unavailable, stored
from pmwal.ship.source import Note, ShippedLog
from shipping import (
    FAST,
    PERFECT,
    PERMISSIONS,
    Delivered,
    Verdict,
    both_forms,
    grow,
    judge,
    payload,
    position_of,
    records_in,
    run,
    ship,
    shipped,
    shipper,
    verdict,
)


def without_the_expected_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every message is stored, whatever is before it."""

    def careless(entry: Entry, source: Source, stream: str) -> dict[str, str]:
        return {name: value for name, value in headers_for(entry, source, stream).items() if name != EXPECTED_SEQUENCE}

    monkeypatch.setattr(pmwal.ship.relay, "headers_for", careless)


def with_message_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server drops a message whose first record it has seen: but a frame that is cut anew has others, too."""

    def careless(entry: Entry, source: Source, stream: str) -> dict[str, str]:
        headers = headers_for(entry, source, stream)
        headers.pop(EXPECTED_SEQUENCE, None)
        return headers | {"Nats-Msg-Id": f"{entry.first}"}

    monkeypatch.setattr(pmwal.ship.relay, "headers_for", careless)


async def with_lost_answers(server: NatsServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> Verdict:
    """Two answers are lost, as when the shipper is killed; the next one goes on at the position of the consumer and cuts anew."""
    publish, take, left, asked = Link.publish, ShippedLog.take, [3, 6], count(1)

    async def lossy(self: Link, subject: str, body: bytes, headers: dict[str, str]) -> int:
        number = await publish(self, subject, body, headers)
        if next(asked) in left:
            del left[0]
            raise Unavailable("the answer was lost")
        return number

    def cut_anew(self: ShippedLog, first: int, size_max: int) -> Any:
        return take(self, first, size_max if len(left) == 2 else 1500)

    async def forgets(self: Link, subject: str) -> Stored | None:
        """The place to go on is not asked of the stream."""
        return None

    monkeypatch.setattr(Link, "publish", lossy)
    monkeypatch.setattr(ShippedLog, "take", cut_anew)
    async with Client(server) as client:
        await client.create()
        grow(path, 100)
        monkeypatch.setattr(Link, "last", forgets)
        await ship(path, server, notify=lambda _: None)
        return await verdict(client, 100)


@pytest.mark.parametrize(
    ("planted", "chosen"),
    [(without_the_expected_sequence, "frame"), (without_the_expected_sequence, "atomic"), (with_message_ids, "frame")],
)
def test_chain_without_its_check_stores_records_twice(
    planted: Any, chosen: str, server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody asks the stream and the server does not check, what was stored is stored again."""
    monkeypatch.setitem(FAST, "form", chosen)
    planted(monkeypatch)
    found = run(lambda: with_lost_answers(server, tmp_path / "a.wal", monkeypatch))
    assert found.duplicate > 0 or found.lost > 0


def without_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The messages of a batch are stored one by one, of which only the first is checked."""

    async def one_by_one(self: Link, subject: str, messages: Sequence[tuple[bytes, dict[str, str]]]) -> int:
        for body, headers in messages[:-1]:
            await (await self._connected()).publish(subject, body, headers=headers)
        return await self.publish(subject, *messages[-1])

    monkeypatch.setattr(Link, "publish_batch", one_by_one)


@pytest.mark.parametrize(
    ("planted", "chosen"),
    [(without_the_expected_sequence, "frame"), (without_the_expected_sequence, "atomic"), (without_batches, "atomic")],
)
def test_two_shippers_without_the_chain_are_noticed(
    planted: Any, chosen: str, server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each ships records that the other one ships, too."""
    monkeypatch.setitem(FAST, "form", chosen)
    planted(monkeypatch)

    async def main() -> None:
        path = tmp_path / "a.wal"
        grow(path, 1000)
        async with Client(server) as client:
            await client.create()
            async with asyncio.TaskGroup() as group:
                for name in ("one", "two"):
                    group.create_task(ship(path, server, consumer=name))
            assert (await verdict(client, 1000)).duplicate > 0

    run(main)


@both_forms
def test_shipper_without_a_position_ships_again_what_was_purged(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream alone does not say that it was there."""
    monkeypatch.setattr(ShippedLog, "note", None)

    async def main() -> None:
        path = tmp_path / "a.wal"
        async with shipped(path, server, 1000) as client:
            consumed = records_in(await client.messages())
            await client.ask("STREAM.PURGE.LOGS")
            await ship(path, server)
            assert judge(consumed + records_in(await client.messages()), 1000).duplicate == 1000

    run(main)


async def into_a_full_stream(server: NatsServer, path: Path, form: str) -> tuple[int, Verdict]:
    """Ship to a stream that becomes full; then it is consumed, and the next shipper goes on. The position, and what came."""
    async with Client(server) as client:
        await client.create(max_msgs=3 if form == "frame" else 60)
        grow(path, 300)
        async with shipper(path, server) as shipping:
            while "maximum messages" not in shipping.problem:
                await asyncio.sleep(0.05)
            last = shipping.progress.acknowledged
        position = position_of(path)
        consumed = records_in(await client.messages())
        await client.ask("STREAM.PURGE.LOGS")
        await client.change(max_msgs=-1)
        await ship(path, server)
        return position - last, judge(consumed + records_in(await client.messages()), 300)


def test_position_is_what_the_stream_has(form: str, server: NatsServer, tmp_path: Path) -> None:
    """Also when it refuses more."""
    assert run(lambda: into_a_full_stream(server, tmp_path / "a.wal", form)) == (0, PERFECT)


def test_position_that_is_saved_before_the_acknowledgement_loses_records(
    form: str, server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was refused is taken for shipped."""
    take, settle = ShippedLog.take, ShippedLog.settle
    last = [0]

    def hasty(self: ShippedLog, first: int, size_max: int) -> Any:
        taken = take(self, first, size_max)
        if taken.frame is not None:
            last[0] = taken.frame.last
            self.acknowledge(taken.frame.last, 0, Note(*self.note) if self.note else Note(0, 0))
        return taken

    def keeps(self: ShippedLog, seq: int, released: int, note: Note) -> None:
        settle(self, max(seq, last[0]), released, note)

    monkeypatch.setattr(ShippedLog, "take", hasty)
    monkeypatch.setattr(ShippedLog, "settle", keeps)
    ahead, found = run(lambda: into_a_full_stream(server, tmp_path / "a.wal", form))
    assert ahead > 0
    assert found.lost > 0


def test_direct_get_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower may answer it, with an older message. A shipper with the documented permissions may not ask for it."""

    async def direct(self: Link, subject: str) -> Stored | None:
        reply = await self._request(f"$JS.API.DIRECT.GET.{self.stream}.{subject}", b"", None)
        return stored(reply["message"])

    async def main() -> None:
        path = tmp_path / "a.wal"
        grow(path, 10)
        with nats_server(tmp_path / "server", more=PERMISSIONS) as server:
            async with Client(server, user="admin", password="secret") as client:
                await client.create(allow_direct=True)
                await ship(path, server, user="shipper:s:p")
                monkeypatch.setattr(Link, "last", direct)
                async with shipper(path, server, user="shipper:s:p") as shipping:
                    while "ermissions" not in shipping.problem:
                        await asyncio.sleep(0.05)

    run(main)


def test_judge_notices_each_kind_of_mistake() -> None:
    """The records of a perfect stream, with one of them missing, repeated, moved or changed."""
    records = [Delivered(seq, seq % 7, 0, payload(seq)) for seq in range(1, 11)]
    assert judge(records, 10) == PERFECT
    assert judge(records[:4] + records[5:], 10) == Verdict(1, 0, 0, 0)
    assert judge([*records, records[-1]], 10) == Verdict(0, 1, 1, 0)
    assert judge([records[1], records[0], *records[2:]], 10) == Verdict(0, 0, 1, 0)
    assert judge([*records[:9], records[9]._replace(data=b"other")], 10) == Verdict(0, 0, 0, 1)
