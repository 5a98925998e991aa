"""Whole records that no chain of records leads to: past the end, past damage, or without a commit pointer.

Invariants
----------
- Every whole record in the part that is searched is found, whatever lies around it: see search.py. So no bytes that somebody stored
  without knowing the log's uuid decide a verdict: they are no whole record anywhere, but for 2^-32 for each look-alike.
- A record that is found is whole, but belongs to the log only with the epoch that its number and position call for.
- A record that a torn tail cannot explain is evidence of damage, because damage must never pass for a torn tail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pmwal.format.layout import HEADER, Header, Slot, Superblock, record_size
from pmwal.format.ring import Found, Load, Scan, belongs
from pmwal.records import Bound
from pmwal.recovery.search import Records, unplaced_records, whole_records


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
    for records in whole_records(
        block,
        load,
        stop.position,
        limit,
        epoch=slot.epoch,
        seq_min=stop.next_seq,
        newer_seq_min=1,
        reached=reached,
        scan=scan,
    ):
        _weigh(evidence, records, stop, slot, block.alignment)
    return evidence


def _weigh(evidence: Evidence, records: Records, stop: Bound, slot: Slot, alignment: int) -> None:
    """Add what whole records past ``stop`` prove."""
    from pmwal.format.numerics import np  # noqa: PLC0415 - loaded by the search when it finds records, which is rare

    positions, headers = records
    newer = headers["epoch"] > slot.epoch
    marked = ~newer & (headers["durable"] > np.uint64(stop.position))
    proofs = np.flatnonzero(newer | marked)
    if len(proofs):
        evidence.position = evidence.position or int(positions[proofs[0]])
    if newer.any():
        first = headers[int(newer.argmax())]
        evidence.epoch_max = max(evidence.epoch_max, int(headers["epoch"].max()))
        evidence.newer = evidence.newer or (
            f"record {first['seq']} of epoch {first['epoch']} lies past the end of a log of epoch {slot.epoch}"
        )
    if marked.any():
        first = headers[int(marked.argmax())]
        evidence.acknowledged = evidence.acknowledged or (
            f"record {first['seq']} says that the log was durable up to position {first['durable']}, but number "
            f"{stop.next_seq} at position {stop.position} is not whole"
        )
        evidence.seq = evidence.seq or int(first["seq"])
    rest = ~(newer | marked)
    if rest.any():
        lengths = headers["length"][rest].astype(np.uint64)
        sizes = (lengths + np.uint64(HEADER + alignment - 1)) // np.uint64(alignment) * np.uint64(alignment)
        evidence.dropped_records += int(rest.sum())
        evidence.dropped_end = max(evidence.dropped_end, int((positions[rest] + sizes).max()))


def _founds(records: Records, alignment: int) -> Iterator[Found]:
    """The same records one by one."""
    for position, fields in zip(records.positions.tolist(), records.headers.tolist(), strict=True):
        header = Header(*fields)
        yield Found(position, position + record_size(header.length, alignment), header)


def resync(
    block: Superblock, load: Load, stop: Bound, limit: Bound, slot: Slot, starts: bytes, scan: Scan | None = None
) -> Iterator[Found]:
    """Whole records after damage at ``stop`` and before ``limit``, in order of their positions and numbers."""
    after, start = Bound(stop.position + block.alignment, stop.next_seq), stop.position + block.alignment

    def is_taken(found: Found) -> bool:
        in_order = found.position >= after.position and after.next_seq <= found.header.seq < limit.next_seq
        return in_order and found.end <= limit.position and belongs(found, slot, starts)

    wrapped = _first_of_lap(block, load, start, limit.position, scan)
    least = max(1, after.next_seq)
    parts = whole_records(block, load, start, limit.position, epoch=0, seq_min=least, newer_seq_min=least, scan=scan)
    for found in (found for records in parts for found in _founds(records, block.alignment)):
        if after.position > start and wrapped is not None and _follows_wrapped(wrapped, found, after) and is_taken(wrapped):
            taken = wrapped
        elif is_taken(found):
            taken = found
        else:
            continue
        yield taken
        after = Bound(taken.end, taken.header.seq + 1)


def _first_of_lap(block: Superblock, load: Load, start: int, limit: int, scan: Scan | None) -> Found | None:
    """The whole record at the ring's start, if that lies between these positions."""
    lap = -(-start // block.capacity) * block.capacity
    if lap >= limit:
        return None
    records = whole_records(block, load, lap, lap + 8, epoch=0, seq_min=1, newer_seq_min=1, scan=scan)
    return next((found for part in records for found in _founds(part, block.alignment)), None)


def _follows_wrapped(wrapped: Found, found: Found, after: Bound) -> bool:
    """Whether the record after ``after`` is the one at the next lap's start, not ``found``, which lies in the gap before it.

    As ``RingReader.numbered`` decides: it would not have fitted into the gap, and is none of an older epoch than one that is there.
    """
    if found.position >= wrapped.position or wrapped.header.seq != after.next_seq:
        return False
    fitted = wrapped.end - wrapped.position <= wrapped.position - after.position
    is_next = found.position == after.position and found.header.seq == after.next_seq
    return not fitted and (not is_next or wrapped.header.epoch > found.header.epoch)


def everything(block: Superblock, load: Load, scan: Scan | None = None) -> Iterator[Found]:
    """Without a commit pointer: the whole records in the ring, in order of their places there.

    Several may have one number: those that a rollback discarded are whole until they are overwritten. None overlaps another: only
    what was forged inside of a payload does, and of two such records the first is the one that contains the other.
    """
    free = 0  # the ring offset where the last record ends
    for records in unplaced_records(block, load, scan):
        for found in _founds(records, block.alignment):
            offset = found.position % block.capacity
            if offset >= free:
                yield found
                free = offset + found.end - found.position
