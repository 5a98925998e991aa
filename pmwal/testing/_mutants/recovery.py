"""Broken recovery: a trusted cache, missing checks, a gap that is not searched.

Patches ``pmwal.opening.takeover._store_again``, ``_Judge`` (_search, _walk_past_pointer, _torn_end, _whole_batch,
_damaged_before_pointer), ``RingReader`` (_at_next_lap, numbered), ``Engine.start_epoch``, ``slot_checks`` in ``format.control``,
``record_crc`` in ``format.ring``, and ``seed_crc`` and ``_slot_seed`` in ``format.layout``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pmwal.format import control, layout, ring
from pmwal.format.layout import Slot
from pmwal.format.ring import Found, RingReader
from pmwal.native.checksum import crc32c
from pmwal.opening import takeover
from pmwal.records import Bound
from pmwal.recovery.evidence import Evidence
from pmwal.recovery.judge import _Judge
from pmwal.storage.mapping import Mapping
from pmwal.testing._mutants.seam import Patch
from pmwal.writing.engine import Engine


def restore_skipped() -> list[Patch]:
    """Do not store again what only the cache may hold."""
    return [Patch(takeover, "_store_again", lambda mapping, judgement, slot, copies: None)]


def restore_without_barrier() -> list[Patch]:
    """Store it again, without a barrier."""
    original = takeover._store_again

    def store_again(mapping: Any, *args: Any) -> None:
        mapping.barrier = lambda *ranges: None
        try:
            original(mapping, *args)
        finally:
            del mapping.barrier

    return [Patch(takeover, "_store_again", store_again)]


def restore_from_cache() -> list[Patch]:
    """Store again what the cache shows by then, not what was judged."""
    original = takeover._store_again

    def store_again(mapping: Mapping, judgement: Any, slot: Slot, copies: list[tuple[int, bytes]]) -> None:
        original(mapping, judgement, slot, [])
        original(mapping, judgement, slot, [(offset, mapping.load(offset, len(data))) for offset, data in copies])

    return [Patch(takeover, "_store_again", store_again)]


def epoch_reused_after_fallback() -> list[Patch]:
    """Continue in the old epoch where a slot was lost."""
    original, start_epoch = takeover._store_again, Engine.start_epoch
    fell_back = False

    def store_again(mapping: Mapping, judgement: Any, slot: Slot, copies: list[tuple[int, bytes]]) -> None:
        nonlocal fell_back
        original(mapping, judgement, slot, copies)
        fell_back = bool(judgement.control.lost)

    def start(self: Engine, end: Bound) -> None:
        nonlocal fell_back
        if not fell_back:
            start_epoch(self, end)
        else:
            fell_back = False
            self._change(self.state._replace(head=end, durable=end))

    return [Patch(takeover, "_store_again", store_again), Patch(Engine, "start_epoch", start)]


def evidence_ignored() -> list[Patch]:
    """Treat everything past the pointer that is not whole as a torn tail, without a further search."""
    return [Patch(_Judge, "_search", lambda self, stop, tail, slot: Evidence())]


def whole_records_dropped() -> list[Patch]:
    """Keep nothing past the pointer."""
    return [Patch(_Judge, "_walk_past_pointer", lambda self, pointer, slot: pointer)]


def torn_header_unexpected() -> list[Patch]:
    """Raise an undocumented error where no whole record follows a header of this epoch."""
    original = _Judge._torn_end

    def torn_end(self: _Judge, stop: Bound, slot: Slot) -> int:
        end = original(self, stop, slot)
        return end if end == 0 else int([][end])

    return [Patch(_Judge, "_torn_end", torn_end)]


def lost_slot_left() -> list[Patch]:
    """Do not write a lost slot again."""
    original = takeover._store_again

    def store_again(mapping: Mapping, judgement: Any, slot: Slot, copies: list[tuple[int, bytes]]) -> None:
        filled = replace(judgement, control=replace(judgement.control, lost_slots=()))
        original(mapping, filled, slot, copies)

    return [Patch(takeover, "_store_again", store_again)]


def epoch_unchecked() -> list[Patch]:
    """Accept records of any epoch past the pointer."""
    original = _Judge._whole_batch

    def whole_batch(self: _Judge, start: Bound, slot: Slot) -> list[Found]:
        found = self.ring.numbered(*start)
        return original(self, start, slot if found is None else slot._replace(epoch=found.header.epoch))

    return [Patch(_Judge, "_whole_batch", whole_batch)]


def epoch_before_crc() -> list[Patch]:
    """Treat a header with an older epoch as the end of the log, even if its checksum is wrong."""
    original = _Judge._damaged_before_pointer

    def damaged(self: _Judge, slots: Any, slot: Slot, stop: Bound, pointer: Bound) -> Any:
        header = self.ring.peek(stop.position)
        if header is not None and header.seq == stop.next_seq and header.epoch != slot.epoch:
            return self._verdict(slots, slot, Bound(slot.tail_position, slot.tail_seq), stop)
        return original(self, slots, slot, stop, pointer)

    return [Patch(_Judge, "_damaged_before_pointer", damaged)]


def batches_ignored() -> list[Patch]:
    """Accept single records of a batch past the pointer."""

    def whole_batch(self: _Judge, start: Bound, slot: Slot) -> list[Found]:
        found = self.ring.numbered(*start)
        return [found] if found is not None and found.header.epoch == slot.epoch else []

    return [Patch(_Judge, "_whole_batch", whole_batch)]


def gap_not_crossed() -> list[Patch]:
    """Look for the next record only right after the last one."""
    return [Patch(RingReader, "_at_next_lap", lambda self, position, seq: None)]


def gap_not_compared() -> list[Patch]:
    """Accept a record at the ring's end without a look at the next lap's start."""
    original = RingReader.numbered

    def numbered(self: RingReader, position: int, seq: int) -> Found | None:
        here = self.whole(position)
        return here if here is not None and here.header.seq == seq else original(self, position, seq)

    return [Patch(RingReader, "numbered", numbered)]


def slot_crc_unchecked() -> list[Patch]:
    """Accept any bytes in a slot's place."""
    return [Patch(control, "slot_checks", lambda *_: True)]


def record_crc_unchecked() -> list[Patch]:
    """Accept any bytes after a possible header."""
    return [Patch(ring, "record_crc", lambda stored, uuid, position: int.from_bytes(stored[:4], "little"))]


def crc_without_seed() -> list[Patch]:
    """Seed checksums with the place only, without the log's uuid."""

    def seed(uuid: bytes, place: int) -> int:
        crc: int = crc32c(place.to_bytes(8, "little"))
        return crc

    return [Patch(layout, "seed_crc", seed), Patch(layout, "_slot_seed", seed)]
