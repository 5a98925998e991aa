"""Searching for whole records that no chain of records leads to: past the end, past damage, or without a commit pointer.

Invariants
----------
- Nearly all bytes are ruled out by the fields of a header alone. Only the rest cost a checksum, and the bytes to be checksummed are
  bounded, so that a hostile file cannot make a search endless.
- A record that is found is whole, but belongs to the log only with the epoch that its number and position call for.
- The search past the end never gives up silently: if its budget is used up before a record that matters, that is evidence of
  damage, because damage must never pass for a torn tail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from pmwal.format.layout import HEADER, PAGE, Slot, Superblock
from pmwal.format.ring import Found, Load, RingReader, Scan, has_expected_epoch
from pmwal.records import Bound

_PIECE = 4 * 1024 * 1024


class Budget:
    """Limits the bytes that a hostile file can make a search checksum."""

    def __init__(self, capacity: int) -> None:
        self._left = 4 * capacity + (1 << 20)

    def spend(self, length: int) -> bool:
        self._left -= HEADER + length
        return self._left >= 0


def candidates(
    block: Superblock,
    load: Load,
    start: int,
    stop: int,
    *,
    epoch: int,
    seq_min: int,
    newer_seq_min: int,
    reached: Callable[[int], None] | None = None,
    scan: Scan | None = None,
) -> Iterator[int]:
    """Positions in [start, stop), at most a lap apart, where a header within these limits may start. No checksum is verified.

    The limits: of this ``epoch`` and a number of at least ``seq_min``, or of a greater epoch and at least ``newer_seq_min``.
    ``durable <= position`` rules out nearly all bytes, eight at a time. ``reached`` is called now and then with the position that
    the search has reached.
    """
    for position, raw, length in _pieces(block, load, start, stop):
        if reached is not None:
            reached(position)
        if scan is not None:
            yield from scan.scanner.candidates(raw, position, length, epoch, seq_min, newer_seq_min)
            continue
        words = np.frombuffer(raw, dtype="<u8")
        step = block.alignment // 8
        count = len(words) - HEADER // 8 + 1
        if count <= 0:
            continue
        numbers, marks = words[1 : 1 + count : step], words[2 : 2 + count : step]
        # First all headers of the piece against its last position, then the few that remain each against its own.
        likely = np.flatnonzero((numbers >= min(seq_min, newer_seq_min)) & (marks <= position + 8 * count))
        likely = likely[marks[likely] <= np.uint64(position) + likely.astype(np.uint64) * np.uint64(block.alignment)]
        numbers, epochs = numbers[likely], words[4 : 4 + count : step][likely] & np.uint64(0xFFFFFFFF)
        this, newer = (epochs == epoch) & (numbers >= seq_min), (epochs > epoch) & (numbers >= newer_seq_min)
        likely = likely[this | newer]
        for index in likely.tolist():
            yield position + index * block.alignment


def unplaced(block: Superblock, load: Load) -> Iterator[int]:
    """Positions of all possible headers in the whole ring, when no slot tells which lap the ring is in.

    ``durable`` is at most one lap before its record's own position, so it determines the lap.
    """
    for offset, raw, _ in _pieces(block, load, 0, block.capacity):
        words = np.frombuffer(raw, dtype="<u8")
        step = block.alignment // 8
        count = len(words) - HEADER // 8 + 1
        if count <= 0:
            continue
        durable = words[2 : 2 + count : step]
        likely = np.flatnonzero((durable <= np.uint64(1 << 62)) & (words[1 : 1 + count : step] >= 1))
        for index in likely.tolist():
            mark = int(durable[index])
            yield mark + (offset + index * block.alignment - mark) % block.capacity


def _pieces(block: Superblock, load: Load, start: int, stop: int) -> Iterator[tuple[int, bytes, int]]:
    """The ring from ``start`` to ``stop`` as (position, bytes, length), in pieces that never cross the ring's end.

    The bytes extend past the length by less than a header, so that every header is wholly in exactly one piece.
    """
    position = start
    while position < stop:
        offset = position % block.capacity
        length = min(_PIECE, stop - position)
        length = min(length, block.capacity - offset)
        extra = min(HEADER - block.alignment if block.alignment < HEADER else 0, block.capacity - offset - length)
        yield position, load(block.ring_offset + offset, (length + extra) // 8 * 8), length
        position += length


def belongs(found: Found, slot: Slot) -> bool:
    """Whether a whole record has an epoch that its number and position call for, in a log with this commit pointer.

    A record that a rollback or an earlier recovery discarded is whole, too, but has an older one.
    """
    if found.position >= slot.commit_position:
        return found.header.epoch >= slot.epoch
    return has_expected_epoch(found, slot.epoch, slot.epoch_first_seq)


@dataclass(slots=True)
class Evidence:
    """What the search past the end found."""

    acknowledged: str | None = None  # why records that were durable must be missing
    newer: str | None = None  # why a newer epoch must have begun
    position: int = 0  # of the first record that says one of the two
    seq: int = 0  # and its number, if it is of the first kind
    epoch_max: int = 0  # the greatest epoch of a whole record newer than the log's
    dropped_records: int = 0  # whole records that a torn tail explains
    dropped_end: int = 0


def search_past(
    block: Superblock, load: Load, stop: Bound, limit: int, slot: Slot, reached: Callable[[int], None], scan: Scan | None
) -> Evidence:
    """Examine every position from ``stop`` to ``limit`` for whole records that a torn tail cannot explain."""
    evidence = Evidence()
    reader, budget = RingReader(block, load, chunk=PAGE), Budget(block.capacity)
    search = candidates(
        block,
        load,
        stop.position,
        limit,
        epoch=slot.epoch,
        seq_min=stop.next_seq,
        newer_seq_min=1,
        reached=reached,
        scan=scan,
    )
    for position in search:
        header = reader.peek(position)
        if header is None:
            continue
        if not budget.spend(header.length):
            if header.epoch > slot.epoch or header.durable > stop.position:
                evidence.acknowledged = evidence.acknowledged or (
                    f"too much past position {stop.position} looks like records; damage cannot be ruled out"
                )
                break
            continue
        found = reader.whole(position)
        if found is not None:
            _weigh(evidence, found, stop, slot)
    return evidence


def _weigh(evidence: Evidence, found: Found, stop: Bound, slot: Slot) -> None:
    """Add what a whole record past ``stop`` proves."""
    header = found.header
    if header.epoch > slot.epoch:
        evidence.epoch_max = max(evidence.epoch_max, header.epoch)
        evidence.newer = evidence.newer or (
            f"record {header.seq} of epoch {header.epoch} lies past the end of a log of epoch {slot.epoch}"
        )
        evidence.position = evidence.position or found.position
    elif header.durable > stop.position:
        evidence.acknowledged = evidence.acknowledged or (
            f"record {header.seq} says that the log was durable up to position {header.durable}, but number "
            f"{stop.next_seq} at position {stop.position} is not whole"
        )
        evidence.position = evidence.position or found.position
        evidence.seq = evidence.seq or header.seq
    else:
        evidence.dropped_records += 1
        evidence.dropped_end = max(evidence.dropped_end, found.end)


def resync(block: Superblock, load: Load, stop: Bound, limit: Bound, slot: Slot) -> Iterator[Found]:
    """Whole records after damage at ``stop`` and before ``limit``, in order of their positions and numbers."""
    reader = RingReader(block, load, chunk=PAGE)
    budget = Budget(block.capacity)
    seq, position = stop.next_seq, stop.position + block.alignment
    found_one = True
    while found_one:
        found_one = False
        for candidate in candidates(block, load, position, limit.position, epoch=0, seq_min=seq, newer_seq_min=seq):
            header = reader.peek(candidate)
            if header is None or header.seq >= limit.next_seq:
                continue
            if not budget.spend(header.length):
                return
            found = reader.whole(candidate)
            if found is None or found.end > limit.position or not belongs(found, slot):
                continue
            yield found
            seq, position = found.header.seq + 1, found.end
            run = RingReader(block, load)
            while seq < limit.next_seq:
                nearby = run.numbered(position, seq)
                if nearby is None or nearby.end > limit.position or not belongs(nearby, slot):
                    break
                yield nearby
                seq, position = seq + 1, nearby.end
            found_one = position < limit.position
            break


def everything(block: Superblock, load: Load, scan: Scan | None = None) -> Iterator[Found]:
    """All whole records of the ring."""
    reader = RingReader(block, load, chunk=PAGE)
    budget = Budget(block.capacity)
    for position in unplaced(block, load):
        header = reader.peek(position)
        if header is None or not budget.spend(header.length):
            continue
        found = reader.whole(position)
        if found is not None:
            yield found
