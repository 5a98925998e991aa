"""Handing out records: the walk that Wal and Reader share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from pmwal.cursor import cursor_of, parse_cursor
from pmwal.errors import CorruptWal, Overrun, PmwalError
from pmwal.format.layout import HEADER, PAGE, Superblock
from pmwal.format.ring import CHUNK, Found, Load, RingReader, Scan, has_due_epoch
from pmwal.records import Bound, Record

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


class Seen(NamedTuple):
    """A record that was handed out: where it starts and ends, its number and its checksum, which tell it from any other."""

    position: int
    end: int
    seq: int
    crc: int


HandedOut = Callable[[Seen], None]
"""Notes a record that is about to be handed out."""


def read_one(block: Superblock, load: Load, view: View, at: Bound, explain: Explain) -> tuple[Record, int]:
    """The record that a walk over this view expects at this bound, and where it ends."""
    ring = RingReader(block, load, chunk=POINT_CHUNK)
    found = _expect(ring, at, view, explain)
    return ring.record(found), found.end


def walk(
    block: Superblock,
    load: Load,
    view: View,
    start: Bound,
    stop_seq: int,
    explain: Explain,
    handed_out: HandedOut | None = None,
    scan: Scan | None = None,
) -> Iterator[Record]:
    """The records from ``start`` up to, not including, number ``stop_seq``, each checked in a private copy."""
    ring = RingReader(block, load, chunk=min(CHUNK, max(PAGE, view.end.position - start.position)), scan=scan)
    at = start
    while at.next_seq < stop_seq:
        many = ring.records(at, stop_seq, view.end.position, view.epoch, view.epoch_first_seq)
        if not many:
            found = _expect(ring, at, view, explain)
            many = [(ring.record(found), found.position, found.end, found.header.crc)]
        yield from hand_out(many, handed_out)
        record, _, end, _ = many[-1]
        at = Bound(end, record.seq + 1)


def hand_out(many: Sequence[tuple[Record, int, int, int]], handed_out: HandedOut | None) -> Iterator[Record]:
    """These records, each noted before it is handed out. They come with their position, end and checksum."""
    for record, position, end, crc in many:
        if handed_out is not None:
            handed_out(Seen(position, end, record.seq, crc))
        yield record


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


def resume(cursor: str, view: View, read: Callable[[int, int], Iterator[Record]]) -> int:
    """The number after the record that a cursor names.

    ``Overrun`` when that record is not the one that was read, or when it is truncated away and the next one, too. A record
    that is truncated away cannot be looked at: that it was the same one is taken for granted.
    """
    named = parse_cursor(cursor)
    first_seq = view.tail.next_seq
    if named.seq >= view.end.next_seq:
        raise Overrun(
            f"there is no record {named.seq}, which the cursor names: it was rolled back, or the log is a new one; "
            f"the log holds {first_seq} to {view.end.next_seq - 1}"
        )
    if named.seq >= first_seq:
        try:
            record = next(read(named.seq, named.seq + 1), None)
        except Overrun as error:
            if not error.missed:
                raise
            first_seq = named.seq + error.missed  # truncated since the view was taken
        else:
            if record is None:
                raise rolled_back(named.seq)
            if cursor_of(record.seq, record.kind, record.time_ns, record.data) != named:
                raise Overrun(
                    f"record {named.seq} is not the one that the cursor names: that was rolled back, or the log is a new one"
                )
    if named.seq + 1 < first_seq:
        raise gone(named.seq + 1, Bound(view.tail.position, first_seq))
    return named.seq + 1


def gone(seq: int, tail: Bound) -> Overrun:
    """The error for a record before the tail."""
    return Overrun(f"record {seq} is gone: the log now begins at {tail.next_seq}", tail.next_seq - seq)


def rolled_back(seq: int) -> Overrun:
    """The error for a record behind the end that was there before."""
    return Overrun(f"record {seq} is gone: it was rolled back")


def missing(block: Superblock, at: Bound, tail: Bound, *, cut: bool) -> PmwalError:
    """Why a record that a walk expected is not there, when the log now begins at ``tail``; ``cut``: there was a rollback."""
    if at.next_seq < tail.next_seq:
        return gone(at.next_seq, tail)
    if cut:
        return rolled_back(at.next_seq)
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
