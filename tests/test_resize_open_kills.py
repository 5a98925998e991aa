"""Processes that are killed while they resize the log to which they append leave every record that was acknowledged."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

import pmwal
from callers import Call, until
from pmwal.reading import succession
from processes import PATIENCE, child
from support import superblock

pytestmark = pytest.mark.both_engines

SIZES = (16384, 65536, 12288, 1 << 20)
KEPT = 40  # records that always fit


def payload(seq: int) -> bytes:
    """What the record with this number contains."""
    return b"%d" % seq * (seq % 25)


def append_and_resize(pipe: Connection, path: Path, seed: int) -> None:
    """Append in one thread and resize in another, until the end. A file says what was acknowledged."""
    rng = random.Random(seed)
    acknowledged = os.open(path.with_suffix(".acknowledged"), os.O_RDWR | os.O_CREAT)
    wal = pmwal.open(path, "r+", on_full="overwrite")
    begun = threading.Event()

    def append() -> None:
        while True:
            with wal.batch() as batch:
                for _ in range(rng.randrange(1, 4)):
                    batch.append(payload(batch.last + 1))
            os.pwrite(acknowledged, batch.last.to_bytes(8, "little"), 0)
            begun.set()
            time.sleep(0.0002)

    threading.Thread(target=append, daemon=True).start()
    begun.wait()
    pipe.send("begun")
    while True:
        wal.truncate(before=max(wal.first_seq, wal.next_seq - KEPT))
        wal.resize(rng.choice(SIZES))


def check_kills(path: Path, kills: int, seed: int) -> None:
    """Kill such a process again and again. What was acknowledged is there, whole, in order, and followed."""
    rng = random.Random(seed)
    sizes, last = set[int](), 0
    pmwal.open(path, size="64KiB").close()
    for number in range(kills):
        with pmwal.open(path, "r") as reader, child(append_and_resize, path, rng.randrange(1 << 30)) as process:
            assert process.hear() == "begun"
            followed = Call(partial(next, numbers_of(reader.follow(last + 1, timeout=PATIENCE))))
            time.sleep(rng.expovariate(1) * 0.03)
            process.kill()
            sizes.add(superblock(path).capacity)
            acknowledged = int.from_bytes(path.with_suffix(".acknowledged").read_bytes(), "little")
            assert pmwal.verify(path).outcome in ("clean", "recovered")
            with pmwal.open(path, "r") as again:
                records = list(again)
            assert [record.seq for record in records] == list(range(records[0].seq, records[-1].seq + 1))
            assert all(record.data == payload(record.seq) for record in records)
            assert records[-1].seq >= acknowledged >= last
            with pmwal.open(path, "r") as again, again.consumer("mail", start="newest" if not number else "oldest") as consumer:
                consumer.ack(records[-1].seq, durable=True)
            with pmwal.open(path, "r+") as wal:
                assert wal.truncate(consumed=True) == wal.next_seq
                wal.append(payload(wal.next_seq))
                last = wal.next_seq - 1
                assert followed.result() <= last
    assert os.listdir(path.parent / f"{path.name}.consumers") == ["mail"]
    assert kills < 100 or len(sizes) == len(SIZES)


def numbers_of(records: Iterator[pmwal.Record]) -> Iterator[int]:
    """The numbers of these records; 0 where the reader came too late."""
    try:
        for record in records:
            assert record.data == payload(record.seq)
            yield record.seq
    except pmwal.Overrun:
        yield 0


@pytest.fixture(autouse=True)
def look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follow looks for a new file with each poll that finds no writer, and not once a second."""
    monkeypatch.setattr(succession, "_LOOK_SECONDS", 0.0)


def test_processes_killed_while_they_resize_their_log(path: Path) -> None:
    """Six of them; the nightly runs kill more."""
    check_kills(path, 6, 0)


@pytest.mark.nightly
def test_many_processes_killed_while_they_resize_their_log(path: Path, tmp_path: Path) -> None:
    """Two hundred on tmpfs, and fifty on a disk."""
    check_kills(path, 200, 1)
    check_kills(tmp_path / "test.wal", 50, 2)


def test_readers_follow_through_resizes(path: Path) -> None:
    """Another process gets every record once, in order, while its writer resizes the log many times."""

    def follow(pipe: Connection) -> None:
        succession._LOOK_SECONDS = 0.0
        with pmwal.open(path, "r") as reader:
            pipe.send("begun")
            expected = 1
            for record in reader.follow(1, timeout=PATIENCE):
                assert (record.seq, record.data) == (expected, payload(expected))
                expected += 1
                pipe.send(record.seq)
                if not record.kind:
                    continue
                return

    with pmwal.open(path, size="1MiB") as wal, child(follow) as process:
        assert process.hear() == "begun"
        heard = 0
        for size in ("2MiB", "1MiB", "3MiB", "1MiB", "2MiB", "4MiB"):
            for _ in range(30):
                wal.append(payload(wal.next_seq))
            wal.resize(size)
        last = wal.append(payload(wal.next_seq), kind=1)
        while heard < last:
            assert process.hear() == heard + 1
            heard += 1
        until(lambda: process.wait() == 0)
