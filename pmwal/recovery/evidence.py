"""Looking for whole records where no chain leads: past the end, past damage, or without a pointer.

Invariants
----------
- Nearly all bytes are ruled out by what a header must say of itself; only what is left over costs a checksum, and the bytes
  that those may cost are bounded, so that a hostile file cannot make a search endless.
- What was found is whole, but belongs to the log only with the epoch that its number and place call for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from pmwal.format.layout import HEADER, PAGE, Slot, Superblock
from pmwal.format.ring import Found, Load, RingReader, Scan, has_expected_epoch
from pmwal.records import Bound

_PIECE = 4 * 1024 * 1024


class Budget:
    """Bounds what a hostile file can make a search spend on checksums."""

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
    """Positions in [start, stop), at most a lap apart, that may hold a header within these limits; no checksums.

    The limits: of this ``epoch`` and a number of at least ``seq_min``, or of a greater epoch and ``newer_seq_min``.
    Nearly all bytes are ruled out by ``durable <= position``, eight bytes at a time. ``reached`` is told now and then how far
    the search is.
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
        # The whole piece against its last position first, then the few that are left each against its own.
        likely = np.flatnonzero((numbers >= min(seq_min, newer_seq_min)) & (marks <= position + 8 * count))
        likely = likely[marks[likely] <= np.uint64(position) + likely.astype(np.uint64) * np.uint64(block.alignment)]
        numbers, epochs = numbers[likely], words[4 : 4 + count : step][likely] & np.uint64(0xFFFFFFFF)
        this, newer = (epochs == epoch) & (numbers >= seq_min), (epochs > epoch) & (numbers >= newer_seq_min)
        likely = likely[this | newer]
        for index in likely.tolist():
            yield position + index * block.alignment


def unplaced(block: Superblock, load: Load) -> Iterator[int]:
    """Positions of all possible headers of the whole ring, when no slot tells which lap the ring is in.

    ``durable`` is at most a lap behind its record's own position, so it says the lap.
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

    The bytes go on past the length by less than a header, so that every header stands whole in exactly one piece.
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
    """Whether a whole record has an epoch that its number and its place call for, in a log with this commit pointer.

    What a rollback or an earlier recovery discarded is whole, too, but has an older one.
    """
    if found.position >= slot.commit_position:
        return found.header.epoch >= slot.epoch
    return has_expected_epoch(found, slot.epoch, slot.epoch_first_seq)


def resync(block: Superblock, load: Load, stop: Bound, limit: Bound, slot: Slot) -> Iterator[Found]:
    """Whole records past damage at ``stop`` and before ``limit``, in order, each with a greater number than the last."""
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


def rebuilt(block: Superblock, load: Load) -> list[Found]:
    """Without a pointer: the whole records of the last lap, in order of their numbers, a newer epoch before an older."""
    reader = RingReader(block, load, chunk=PAGE)
    budget = Budget(block.capacity)
    best: dict[int, Found] = {}
    for position in unplaced(block, load):
        header = reader.peek(position)
        if header is None or not budget.spend(header.length):
            continue
        found = reader.whole(position)
        if found is None:
            continue
        rival = best.get(header.seq)
        if rival is None or (rival.header.epoch, rival.position) < (header.epoch, position):
            best[header.seq] = found
    return [best[seq] for seq in sorted(best)]
