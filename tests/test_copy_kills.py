"""Processes that are killed while they resize and copy a log leave the old log or the new one."""

from __future__ import annotations

import os
import random
import time
from itertools import cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

import pmwal
from processes import child
from support import open_small, superblock

pytestmark = pytest.mark.both_engines

SIZES = (16384, 65536, 12288, 1 << 20)


def resize_for_ever(pipe: Connection, path: Path, first: int) -> None:
    """Resize a log to one size after another, and copy it each time. Says when the first resize, which loads modules, is done."""
    pmwal.resize(path, SIZES[first - 1])
    pipe.send("begun")
    for number, size in enumerate(islice(cycle(SIZES), first, None)):
        pmwal.resize(path, size, backup=path.with_name(f"{number}.old") if number % 3 == 1 else None)
        pmwal.copy(path, path.with_name(f"{number}.copy"), size=size)


def check_kills(path: Path, kills: int, seed: int) -> None:
    """Kill a process at random that resizes a log, again and again. It leaves logs with all records, and consumers with theirs."""
    rng = random.Random(seed)
    sizes, acknowledged = set[int](), 0
    with open_small(path) as wal:
        wal.extend([rng.randbytes(rng.randrange(300)) for _ in range(20)], kind=7)
        expected = list(wal)
    for _ in range(kills):
        with child(resize_for_ever, path, rng.randrange(len(SIZES))) as process:
            assert process.hear() == "begun"
            time.sleep(rng.expovariate(1) * 0.01)
        for name in path.parent.iterdir():
            if name.suffix in (".copy", ".old", ".wal"):
                assert pmwal.verify(name).outcome in ("clean", "recovered"), name
                with pmwal.open(name, "r") as reader:
                    assert list(reader) == expected, name
            if name.suffix in (".copy", ".old"):
                name.unlink()  # a backup that was linked before the rename would be a second name of the log
        sizes.add(superblock(path).capacity)
        with pmwal.open(path, "r") as reader, reader.consumer("mail") as consumer:
            assert consumer.position == acknowledged
            assert list(consumer.follow(timeout=0)) == [record for record in expected if record.seq > acknowledged]
            acknowledged = max(acknowledged, expected[-1].seq - rng.randrange(20))
            consumer.ack(acknowledged)
        with pmwal.open(path, "r+") as wal:
            assert list(wal) == expected
            first_seq = wal.truncate(consumed=True)
            assert first_seq == acknowledged + 1
            wal.append(b"after a kill")
            expected = list(wal)
    pmwal.resize(path, 8192 if 8192 not in sizes else 32768)
    assert sorted(os.listdir(path.parent)) == [path.name, f"{path.name}.consumers"]
    assert kills < 100 or len(sizes) == len(SIZES)


def test_processes_killed_while_they_resize(path: Path) -> None:
    """Eight of them; the nightly runs kill more."""
    check_kills(path, 8, 0)


@pytest.mark.nightly
def test_many_processes_killed_while_they_resize(path: Path, tmp_path: Path) -> None:
    """Two hundred on tmpfs, and fifty on a disk."""
    check_kills(path, 200, 1)
    check_kills(tmp_path / "test.wal", 50, 2)
