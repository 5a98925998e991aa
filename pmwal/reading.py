"""Handing out records: the walk that Wal and Reader share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pmwal.errors import CorruptWal, PmwalError
from pmwal.layout import HEADER, Superblock
from pmwal.records import Bound, Record
from pmwal.ring import Found, Load, RingReader

POINT_CHUNK = 32 * 1024  # what a look-up of one record loads at a time


def walk(
    block: Superblock,
    load: Load,
    start: Bound,
    stop_seq: int,
    epoch_max: int,
    explain: Callable[[Bound], PmwalError],
    handed_out: Callable[[Found], None] | None = None,
) -> Iterator[Record]:
    """The records from ``start`` up to, not including, number ``stop_seq``, each checked in a private copy.

    A record of an epoch past ``epoch_max`` was stored after the walk began, so it replaced one that was rolled back.
    ``explain`` makes the error for a record that is not there.
    """
    ring = RingReader(block, load)
    at = start
    while at.next_seq < stop_seq:
        found = ring.numbered(*at)
        if found is None or found.header.epoch > epoch_max:
            raise explain(at)
        record = ring.record(found)
        if handed_out is not None:
            handed_out(found)
        yield record
        at = Bound(found.end, found.header.seq + 1)


def locate(block: Superblock, load: Load, near: Bound, seq: int, explain: Callable[[Bound], PmwalError]) -> Found:
    """The record with this number, walking on from a known start before it."""
    ring = RingReader(block, load, chunk=POINT_CHUNK)
    at = near
    while True:
        found = ring.numbered(*at)
        if found is None:
            raise explain(at)
        if found.header.seq == seq:
            return found
        at = Bound(found.end, found.header.seq + 1)


def damaged(block: Superblock, at: Bound) -> CorruptWal:
    """The error for a record that is not whole although the log says that it is there."""
    start = block.ring_offset + at.position % block.capacity
    return CorruptWal(
        f"record {at.next_seq} at file offset {start} is damaged: it was whole when it was stored or recovered",
        first_seq=at.next_seq,
        last_seq=at.next_seq,
        start=start,
        end=start + HEADER,
        reason="checksum, number or epoch is wrong",
    )
