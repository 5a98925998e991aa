"""Taking over a log for writing: judge it, make durable what is kept, and start a new epoch.

Invariants
----------
- Nothing volatile is trusted. What recovery reads may be in the page cache only (the last writer was killed, or its msync failed).
  So the file is synced once, ignoring an error that the dead writer never saw, and judged. Then the slot that the verdict rests on
  and every record kept past its commit pointer are stored again, from private copies that were validated, and that barrier must
  succeed.
- Two slots of a new epoch are durable before it returns, so nothing that was dropped can validate again.
- It can be killed at any step and repeated: until those slots are durable the log reads as before, afterwards as recovered. A
  corrupt verdict changes nothing.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from pmwal.errors import PersistError
from pmwal.format.control import due_generations
from pmwal.format.layout import LARGE_RING, Slot, Superblock, encode_slot, initial_slot, slot_index, slot_offset
from pmwal.format.ring import RingReader, overlay
from pmwal.format.scan import scan_for
from pmwal.records import Bound, Progress, RecoveryReport
from pmwal.recovery.judge import Judgement, judge
from pmwal.recovery.superblock import Identity
from pmwal.storage.mapping import Mapping
from pmwal.storage.readahead import read_ahead
from pmwal.storage.seam import Seam
from pmwal.writing.engine import Engine, State

_TRIES = 16  # verdicts on a medium that reads differently each time


def take_over(
    mapping: Mapping,
    identity: Identity,
    path: str,
    seam: Seam,
    pipelined: bool,
    progress: Progress | None,
    engine_type: type[Engine],
    announce: Callable[[], bool],
    *,
    created: bool,
    made: Judgement | None = None,
) -> tuple[Engine, RecoveryReport]:
    """Recover: judge, make durable what is kept, start a new epoch. The engine can store when this returns.

    ``announce`` lets readers know that this writer is alive, as soon as the live page no longer names another one. A log that was
    just ``created`` has no record to scan for, and was synced under this lock, by a call that succeeded. ``made``: the verdict on
    it, if it is known.
    """
    for _ in range(_TRIES):
        judgement = _judge(mapping, identity, progress, scans=not created) if made is None else made
        if judgement.row.outcome == "corrupt":
            raise judgement.error(path)
        copies = _copy_kept(mapping, judgement)
        if copies is not None:
            break
    else:
        raise PersistError(errno.EIO, f"{path}: the medium reads differently each time; nothing was changed; check the device")
    slot = judgement.control.newest
    assert slot is not None  # every verdict without one is corrupt
    tail, end = judgement.tail, judgement.end
    state = State(tail, end, end, judgement.epoch_max, slot.epoch_first_seq)
    try:
        if not created:
            _store_again(mapping, judgement, slot, copies)
        engine = engine_type(
            mapping,
            identity.block,
            seam,
            pipelined=pipelined,
            state=state,
            slot=slot,
            index=judgement.index,
            starts=judgement.control.starts,
        )
        with engine.guard:
            engine.start_first_epoch(end, announce)
    except OSError as error:
        raise PersistError(error.errno, f"{path}: recovery could not make the log durable: {error.strerror}") from error
    return engine, judgement.report


def _judge(mapping: Mapping, identity: Identity, progress: Progress | None, *, scans: bool) -> Judgement:
    """The verdict on a log that nobody else writes, so it is safe to judge it in place."""
    if scans and mapping.on_disk and identity.block.capacity >= LARGE_RING:
        with read_ahead(mapping.fd, mapping.load) as load:
            return judge(load, identity, progress, scan_for(identity.block))
    window = mapping.window()
    try:
        return judge(mapping.load, identity, progress, scan_for(identity.block, window))
    finally:
        if window is not None:
            window.release()


def _copy_kept(mapping: Mapping, judgement: Judgement) -> list[tuple[int, bytes]] | None:
    """Private copies of the records past the commit pointer, as (file offset, bytes), validated once more.

    None if they have changed since the verdict: after a failed msync a page counts as clean, so it may have been dropped from the
    cache, and the disk may have older records with the same sequence numbers.
    """
    block, slot = judgement.identity.block, judgement.control.newest
    assert slot is not None
    pieces = _pieces(block, slot.commit_position, judgement.end.position)
    copies = [(offset, mapping.load(offset, length)) for offset, length in pieces]
    reader = RingReader(block, overlay(lambda _, length: bytes(length), copies))
    at = Bound(slot.commit_position, slot.commit_seq + 1)
    while at.next_seq < judgement.end.next_seq:
        found = reader.numbered(*at)
        if found is None or found.header.epoch != slot.epoch:
            return None
        at = Bound(found.end, found.header.seq + 1)
    return copies if at == judgement.end else None


def _store_again(mapping: Mapping, judgement: Judgement, slot: Slot, copies: list[tuple[int, bytes]]) -> None:
    """Make durable what the verdict rests on and may be in the cache only: the slot, and the records past its commit pointer.

    Lost slots are written again, each with the generation due in its place: the next crash may tear another slot.
    """
    block = judgement.identity.block
    stores = []
    indexes = slot_index(slot.generation, block.control_pages), *judgement.control.lost_slots
    for index, generation in zip(indexes, due_generations(indexes, slot.generation, block), strict=True):
        due = slot._replace(generation=generation) if generation else initial_slot()
        stores.append((slot_offset(index), encode_slot(due, block.uuid, index)))
    stores += copies
    for offset, data in stores:
        mapping.store(offset, data)
    mapping.barrier(*((offset, offset + len(data)) for offset, data in stores))


def _pieces(block: Superblock, start: int, end: int) -> list[tuple[int, int]]:
    """The file ranges (offset, length) of the ring from one position to another."""
    offset, length = start % block.capacity, end - start
    first = min(length, block.capacity - offset)
    pieces = [(block.ring_offset + offset, first), (block.ring_offset, length - first)]
    return [piece for piece in pieces if piece[1]]
