"""When a shipper stores its position, and whom it tells first: what is read together, and what a failure in between costs."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

import pmwal
import pmwal.ship.relay
from nats_servers import Client, NatsServer
from pmwal.reading.internals import consumers_of
from pmwal.ship.link import Link, Options
from pmwal.ship.source import Note, ShippedLog
from pmwal.storage.mapping import Mapping
from processes import PATIENCE
from shipping import PERFECT, grow, judge, payload, position_of, records_in, run, ship, shipper, verdict


def stored_position(path: Path) -> int:
    """The position as it is beside the log, whoever holds it."""
    with pmwal.open(path, "r") as reader:
        (found,) = consumers_of(reader)
    assert found.position is not None
    return found.position.seq


@pytest.mark.parametrize(("store", "rises"), [(0.0, True), (PATIENCE, False)])
def test_position_is_stored_while_frames_that_were_read_together_are_shipped(
    store: float, rises: bool, server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It follows by ``_STORE`` seconds at most, and is there when the shipper ends."""
    publish, path, seen = Link.publish, tmp_path / "a.wal", list[int]()

    async def watched(self: Link, subject: str, body: bytes, headers: dict[str, str]) -> int:
        seen.append(stored_position(path))
        return await publish(self, subject, body, headers)

    monkeypatch.setattr(Link, "publish", watched)
    monkeypatch.setattr(pmwal.ship.relay, "_STORE", store)
    grow(path, 200)

    async def main() -> None:
        async with Client(server) as client:
            await client.create()
            await ship(path, server)
            assert await verdict(client, 200) == PERFECT

    run(main)
    assert len(seen) > 4
    if rises:
        assert seen[0] == 0 < seen[2] < seen[3] < seen[4]
    else:
        assert set(seen) == {0}
    assert position_of(path) == 200


def test_what_was_acknowledged_just_before_a_reconnection_is_known(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the messages were consumed, so that only the position says that they were shipped."""
    publish, path, left = Link.publish, tmp_path / "a.wal", [3, 5]

    async def main() -> None:
        async with Client(server) as client:
            await client.create()
            consumed = []

            async def interrupted(self: Link, subject: str, body: bytes, headers: dict[str, str]) -> int:
                number = await publish(self, subject, body, headers)
                if number in left:
                    left.remove(number)
                    consumed.extend(records_in(await client.messages()))
                    await client.ask("STREAM.PURGE.LOGS")
                    self.turns += 1  # as after a reconnection
                return number

            monkeypatch.setattr(Link, "publish", interrupted)
            grow(path, 200)
            await ship(path, server)
            assert judge(consumed + records_in(await client.messages()), 200) == PERFECT

    run(main)
    assert left == []


def test_who_waits_for_a_record_does_not_wait_for_the_position(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream has it, and the store takes its time. It is there once the shipper was left."""
    store, held, path = ShippedLog.store, threading.Event(), tmp_path / "a.wal"

    def slow(self: ShippedLog) -> None:
        if self._acknowledged is not None and threading.current_thread() is not threading.main_thread():
            assert held.wait(PATIENCE)
        store(self)

    async def main() -> None:
        async with Client(server) as client:
            await client.create()
            grow(path, 3)
            async with shipper(path, server) as shipping:
                await shipping.acked(3)
                while stored_position(path) < 3:
                    await asyncio.sleep(0.01)
                monkeypatch.setattr(ShippedLog, "store", slow)
                try:
                    with pmwal.open(path) as wal:
                        await shipping.acked(wal.append(payload(4), kind=4))
                        assert stored_position(path) == 3
                finally:
                    held.set()

    run(main)
    assert position_of(path) == 4


def test_record_that_was_waited_for_is_the_frame_that_it_would_be_read_as(tmp_path: Path) -> None:
    """Also where more have come meanwhile."""
    path = tmp_path / "a.wal"
    with pmwal.open(path, size="1MiB") as wal, pmwal.open(path, "r") as reader, pmwal.open(path, "r") as other:
        log = ShippedLog(reader, "nats")
        for count in (1, 1, 3, 1):
            first, last = wal.extend([b"x" * 100] * count, kind=count)
            taken = log.wait(first, 1 << 20, PATIENCE)
            assert taken == (other.frame(first, size_max=1 << 20), 0, last + 1)
            log.acknowledge(last, 0, Note(1, last))
        log.close()
    assert position_of(path) == last


def test_position_of_a_frame_is_stored_without_a_look_at_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the last record is was noted when the frame was read. Another number is looked for."""
    path, load, count = tmp_path / "a.wal", Mapping.load, 0
    grow(path, 100)

    def counting(self: Mapping, offset: int, length: int) -> bytes:
        nonlocal count
        count += 1
        return load(self, offset, length)

    with pmwal.open(path, "r") as reader:
        log = ShippedLog(reader, "nats")
        taken = log.take(1, 1000)
        assert taken.frame is not None
        monkeypatch.setattr(Mapping, "load", counting)
        for seq, looked in ((taken.frame.last - 1, True), (taken.frame.last, False)):
            count = 0
            log.acknowledge(seq, 0, Note(1, 1))
            log.store()
            assert (log.position, count > 0) == (seq, looked)
        assert log.problem is None
        log.close()


class _Client:
    """A client whose answer comes in the very moment in which the one who waits is cancelled, or the connection is lost."""

    is_closed = False

    def __init__(self, meanwhile: object) -> None:
        self._meanwhile = meanwhile

    async def request(self, *_args: object, **_keywords: object) -> object:
        """As ``asyncio.wait_for`` of Python 3.11 does it: the cancellation is dropped, and the answer returned."""
        try:
            assert callable(self._meanwhile)
            await self._meanwhile()
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            pass
        return type("Answer", (), {"data": b'{"seq": 7}'})


def test_cancellation_is_not_lost_with_an_answer() -> None:
    """A shipper that is left ends, whatever comes at the same time; and a loss of the connection leaves no trace in the task."""

    async def main() -> None:
        link = Link("nats://127.0.0.1:1", "LOGS", Options())
        task = asyncio.current_task()
        assert task is not None
        link._client = _Client(link._note_loss)
        assert await link.publish("a.b", b"", {}) == 7
        assert task.cancelling() == 0

        async def cancelled() -> None:
            found = asyncio.current_task()
            assert found is not None
            found.cancel()

        link._client = _Client(cancelled)
        publishing = asyncio.create_task(link.publish("a.b", b"", {}))
        with pytest.raises(asyncio.CancelledError):
            await publishing

    run(main)
