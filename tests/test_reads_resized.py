"""Reads that were begun before a log was resized, and are first used, or gone on with, after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

import pmwal
from processes import PATIENCE
from resizing import filled
from support import overwrite

pytestmark = pytest.mark.both_engines

Reading = Callable[[pmwal.Reader], Iterator[pmwal.Record]]


def resize_open(wal: pmwal.Wal, path: Path) -> pmwal.Wal:
    """By its own writer."""
    wal.resize("64KiB")
    return wal


def resize_closed(wal: pmwal.Wal, path: Path) -> pmwal.Wal:
    """By ``pmwal.resize``, and opened again."""
    wal.close()
    pmwal.resize(path, "64KiB")
    return pmwal.open(path, on_full="overwrite")


READS: dict[str, Reading] = {
    "all": lambda reader: reader.read(),
    "from a number": lambda reader: reader.read(reader.first_seq + 20),
    "after a cursor": lambda reader: reader.read(reader[reader.first_seq + 20].cursor),
    "of kinds": lambda reader: reader.read(kind=range(1000)),
    "of kinds from a number": lambda reader: reader.read(reader.first_seq + 20, kind=range(1000)),
    "of a time": lambda reader: reader.read(since=1),
    "of exact times": lambda reader: reader.read(since=1, exact=True),
}


def as_rows(records: Iterator[pmwal.Record]) -> list[tuple[int, int, int, bytes]]:
    return [(record.seq, record.kind, record.time_ns, record.data) for record in records]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("used", [0, 1, 40])
@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("resize", [resize_open, resize_closed])
def test_read_delivers_the_records_as_the_log_was_at_the_call(
    path: Path, resize: Callable[[pmwal.Wal, Path], pmwal.Wal], how: str, used: int, turned: bool
) -> None:
    """All of them and no others, also if a follow of the same reader has turned to the new file meanwhile."""
    wal = filled(path)
    with pmwal.open(path, "r") as reader:
        expected = as_rows(READS[how](reader))
        read = READS[how](reader)
        found = as_rows(islice(read, used))
        wal = resize(wal, path)
        last = wal.next_seq - 1
        wal.extend([b"new"] * 30)
        if turned:
            assert [record.seq for record in islice(reader.follow(last, timeout=PATIENCE), 3)] == [last, last + 1, last + 2]
            assert reader.capacity == wal.capacity
        assert found + as_rows(read) == expected
        for record in islice(reader, 5):  # what is read next is not misled by it
            assert reader[record.seq] == record
    wal.close()


@pytest.mark.parametrize("how", ["all", "of kinds"])
def test_record_that_the_old_file_has_lost_is_a_clear_error(path: Path, how: str) -> None:
    """It was overwritten before the resize; the new file cannot say why, and does not call it damaged or rolled back."""
    with filled(path) as wal, pmwal.open(path, "r") as reader:
        read = READS[how](reader)
        mapping, block = reader._mapping, reader._block
        wal.resize("64KiB")
        wal.append(b"new")
        assert len(list(islice(reader.follow(wal.next_seq - 2, timeout=PATIENCE), 2))) == 2
        overwrite(f"/proc/self/fd/{mapping.fd}", block.ring_offset, bytes(block.capacity))
        with pytest.raises(pmwal.Overrun, match="gone from the file that the log had before it was resized; read again"):
            list(read)
        assert len(list(reader)) == len(reader)
