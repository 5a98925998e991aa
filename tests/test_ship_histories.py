"""Random histories of a log that is shipped: appends, rollbacks, truncates, shippers that end at any message, purges, restores."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest

import pmwal
from nats_servers import Client, NatsServer
from pmwal.ship import restore
from pmwal.ship.link import Link
from shipped_streams import uuid_of
from shipping import Delivered, Ended, Mark, both_forms, contents, decoded, folded, run, ship

STEPS = 25


class History:
    """One log, what it has ever contained and not rolled back, and how often a shipper may still publish."""

    def __init__(self, seed: int, directory: Path, server: NatsServer) -> None:
        self.random = random.Random(seed)
        self.path = directory / "a.wal"
        self.server = server
        self.truth: dict[int, Delivered] = {}
        self.left = -1
        pmwal.open(self.path, size="64KiB").close()

    def change(self) -> None:
        """Append, and then perhaps roll back or truncate."""
        with pmwal.open(self.path, commit="manual", on_full="overwrite") as wal:
            for _ in range(self.random.choice([0, 1, 5, 40, 300])):
                length = self.random.choice([0, 7, 100, 1000, 9000])
                wal.append(self.random.randbytes(length), kind=self.random.randrange(100))
            wal.commit()
            self._note()
            what = self.random.random()
            if what < 0.25 and wal.next_seq > wal.first_seq:
                keep = self.random.randint(max(wal.first_seq - 1, wal.next_seq - 60), wal.next_seq - 1)
                wal.rollback(after=keep)
                self.truth = {seq: record for seq, record in self.truth.items() if seq <= keep}
            elif what < 0.4:
                wal.truncate(before=self.random.randint(wal.first_seq, wal.next_seq))

    def _note(self) -> None:
        for record in contents(self.path):
            self.truth[record.seq] = Delivered(record.seq, record.kind, record.time_ns, record.data)

    async def ship(self) -> None:
        """Ship; the shipper may end after any message."""
        self.left = self.random.choice([-1, 1, 2, 3, 7])
        with contextlib.suppress(Ended):
            await ship(self.path, self.server, on_rollback="mark", notify=lambda _: None, hold=0.0)

    def check(self, messages: list[Any]) -> None:
        """The folded stream has what the log has, and nothing that it never had; what is missing was said to be."""
        found = folded(messages)
        assert [record.seq for record in found] == sorted({record.seq for record in found})
        assert {record.seq: record for record in found}.items() <= self.truth.items()
        now = [Delivered(record.seq, record.kind, record.time_ns, record.data) for record in contents(self.path)]
        assert found[len(found) - len(now) :] == now
        gaps = {
            seq
            for each in decoded(messages)
            if isinstance(each, Mark) and each.what == "gap"
            for seq in range(each.first, each.last + 1)
        }
        if found:
            missing = set(range(found[0].seq, found[-1].seq + 1)) - {record.seq for record in found}
            assert missing <= gaps


@both_forms
@pytest.mark.parametrize("seed", [*range(6), *[pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 60)]])
def test_history_is_shipped_as_it_was(seed: int, server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each complete shipment the stream folds to the log, and the log can be restored from it."""
    history = History(seed, tmp_path, server)
    publish = Link.publish

    async def ending(self: Link, subject: str, body: bytes, headers: dict[str, str]) -> int:
        stored = await publish(self, subject, body, headers)
        history.left -= 1
        if history.left == 0:
            raise Ended
        return stored

    monkeypatch.setattr(Link, "publish", ending)

    async def main() -> None:
        async with Client(server) as client:
            await client.create(max_msg_size=6144 if seed % 2 else -1)
            for _ in range(STEPS):
                history.change()
                await history.ship()
            history.left = -1
            await ship(history.path, server, on_rollback="mark", notify=lambda _: None)
            history.check(await client.messages())
            again = tmp_path / "b.wal"
            report = await restore(again, from_=server.url, stream="LOGS", log=uuid_of(history.path))
            now = contents(history.path)
            restored = contents(again)
            assert restored[len(restored) - len(now) :] == now
            assert [Delivered(each.seq, each.kind, each.time_ns, each.data) for each in restored] == [
                history.truth[seq] for seq in range(report.first_seq, report.last_seq + 1)
            ]
            with pmwal.open(history.path, "r") as reader:
                assert report.last_seq == reader.committed_seq

    run(main)
