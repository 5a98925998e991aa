"""Handing out records: the walk that Wal and Reader share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pmwal.errors import CorruptWal, Overrun, PmwalError
from pmwal.layout import HEADER, Superblock
from pmwal.records import Bound, Record
from pmwal.ring import Found, Load, RingReader, has_due_epoch

POINT_CHUNK = 32 * 1024  # what a look-up of one record loads at a time


class View(NamedTuple):
    """What may be read: the records from ``tail`` to ``end``, those from ``epoch_first_seq`` on stored in ``epoch``."""

    tail: Bound
    end: Bound
    epoch: int
    epoch_first_seq: int

    def holds(self, found: Found) -> bool:
        """Whether a whole record lies within and has an epoch that its number calls for.

        What was rolled back or dropped is whole, too; and what was stored after this view was taken is newer.
        """
        return found.end <= self.end.position and has_due_epoch(found, self.epoch, self.epoch_first_seq)


Explain = Callable[[Bound, View], PmwalError]
"""Makes the error for a record that a walk over a view expected at this bound, and that is not there."""


def walk(
    block: Superblock,
    load: Load,
    view: View,
    start: Bound,
    stop_seq: int,
    explain: Explain,
    handed_out: Callable[[Found], None] | None = None,
) -> Iterator[Record]:
    """The records from ``start`` up to, not including, number ``stop_seq``, each checked in a private copy."""
    ring = RingReader(block, load)
    at = start
    while at.next_seq < stop_seq:
        found = _expect(ring, at, view, explain)
        record = ring.record(found)
        if handed_out is not None:
            handed_out(found)
        yield record
        at = Bound(found.end, found.header.seq + 1)


def locate(block: Superblock, load: Load, view: View, near: Bound, seq: int, explain: Explain) -> Found:
    """The record with this number, walking on from a known start before it."""
    ring = RingReader(block, load, chunk=POINT_CHUNK)
    at = near
    while True:
        found = _expect(ring, at, view, explain)
        if found.header.seq == seq:
            return found
        at = Bound(found.end, found.header.seq + 1)


def ends(block: Superblock, load: Load, view: View, explain: Explain) -> Iterator[Bound]:
    """Where the records of a view end, from the oldest on."""
    ring = RingReader(block, load, chunk=POINT_CHUNK)
    at = view.tail
    while at.next_seq < view.end.next_seq:
        found = _expect(ring, at, view, explain)
        at = Bound(found.end, found.header.seq + 1)
        yield at


def _expect(ring: RingReader, at: Bound, view: View, explain: Explain) -> Found:
    found = ring.numbered(*at)
    if found is None or not view.holds(found):
        raise explain(at, view)
    return found


def gone(seq: int, tail: Bound) -> Overrun:
    """The error for a record before the tail."""
    return Overrun(f"record {seq} is gone: the log now begins at {tail.next_seq}", tail.next_seq - seq)


def missing(block: Superblock, at: Bound, tail: Bound, *, rolled_back: bool) -> PmwalError:
    """Why a record that a walk expected is not there, when the log now begins at ``tail``."""
    if at.next_seq < tail.next_seq:
        return gone(at.next_seq, tail)
    if rolled_back:
        return Overrun(f"record {at.next_seq} is gone: it was rolled back")
    return damaged(block, at)


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
