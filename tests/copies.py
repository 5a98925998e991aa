"""Logs to copy, and what a copy must keep."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pmwal
from pmwal.writing.wal import Wal
from support import open_small, whole_records

KEPT = ("seq", "time_ns", "epoch", "kind", "flags", "length", "batch_index", "batch_count")
"""What a record keeps. The others are its checksum and ``durable``, which depend on its position."""


def filled(path: Path) -> Path:
    """The path of a log with every kind of record: of batches, one of them cut at the tail, of two epochs, past a lap's end."""
    with open_small(path, medium="file", on_full="overwrite") as wal:
        fill(wal, random.Random(1))
    return path


def fill(wal: Wal, rng: random.Random, rounds: int = 60) -> None:
    """Append batches of records of all lengths, for several laps; then discard some, and go on."""
    for number in range(rounds):
        wal.extend([rng.randbytes(rng.choice([0, 1, 7, 40, 100, 700, 1500])) for _ in range(rng.randrange(1, 5))], kind=number)
    wal.rollback(after=wal.next_seq - 3)
    for _ in range(5):
        wal.extend([b"batch"] * 3)
    wal.truncate(before=wal.first_seq + 2)


def kept(path: Path) -> list[tuple[int, ...]]:
    """What every record of a log must keep."""
    return [tuple(getattr(found.header, name) for name in KEPT) for found in whole_records(path).values()]


def read(path: Path) -> list[pmwal.Record]:
    """The records that the log shows."""
    with pmwal.open(path, "r") as reader:
        return list(reader)


def names(path: Path) -> list[str]:
    """The names in a directory."""
    return sorted(os.listdir(path))
