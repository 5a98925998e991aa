"""The control region: which slot is the commit pointer, and which are missing. Pure: bytes in, facts out.

Invariants
----------
- Creation fills every place with a valid slot, and a place is overwritten only by the generation a whole turn later, so
  every place has exactly one slot that it may hold: a lost or torn one is always visible.
- One store is under way at a time and has its own barrier, so a crash leaves at most one place torn.
"""

from __future__ import annotations

from dataclasses import dataclass

from pmwal.layout import (
    EPOCH_MAX,
    GENERATION_MAX,
    POSITION_MAX,
    SEQ_MAX,
    SLOT,
    SLOT_FLAGS,
    SLOTS_PER_PAGE,
    Slot,
    Superblock,
    decode_slot,
    initial_slot,
    record_size,
    slot_body,
    slot_index,
    slot_offset,
)


@dataclass(frozen=True, slots=True)
class Control:
    """What the control region says.

    ``newest`` is the valid slot with the highest generation, ``lost_places`` are the indexes that hold neither their own
    generation nor the one a turn older, ``impossible`` says what contradicts itself in a slot whose checksum is right.
    """

    newest: Slot | None
    lost_places: tuple[int, ...]
    impossible: str | None
    epoch_max: int

    @property
    def lost(self) -> int:
        """How many slots are lost."""
        return len(self.lost_places)


def slot_problem(slot: Slot, block: Superblock) -> str | None:
    """Why no log of this geometry can have written this slot, or None."""
    if slot.generation > GENERATION_MAX or slot.epoch > EPOCH_MAX or slot.commit_seq > SEQ_MAX:
        return "a number past the limits of the format"
    if slot.flags & ~SLOT_FLAGS:
        return f"unknown flags {slot.flags:#x}"
    if (slot.epoch == 0) != (slot.generation == 0):
        return "epoch 0 after creation"
    if slot.commit_position > POSITION_MAX or slot.commit_position % block.alignment:
        return f"commit position {slot.commit_position}"
    if slot.tail_position > slot.commit_position or slot.tail_position % block.alignment:
        return f"tail {slot.tail_position} against commit {slot.commit_position}"
    used = slot.commit_position - slot.tail_position
    if used > block.capacity:
        return f"{used} bytes in use in a ring of {block.capacity}"
    if not 1 <= slot.tail_seq <= slot.commit_seq + 1 or not 1 <= slot.epoch_first_seq <= slot.commit_seq + 1:
        return f"numbers {slot.tail_seq}, {slot.epoch_first_seq} against {slot.commit_seq}"
    records = slot.commit_seq + 1 - slot.tail_seq
    if (records == 0) != (used == 0) or records * record_size(0, block.alignment) > used:
        return f"{records} records in {used} bytes"
    return None


def due_generations(newest: int, block: Superblock) -> list[int]:
    """The generation that each place holds when ``newest`` is the newest one; 0 for one never used."""
    pages, turn = block.control_pages, block.turn
    firsts = (place * pages + page for page in range(pages) for place in range(SLOTS_PER_PAGE))
    return [max(newest - (newest - first) % turn, 0) for first in firsts]


def read_control(raw: bytes, block: Superblock, checks: bytes | None = None) -> Control:
    """Judge all slots of a control region.

    ``checks``, when it is known already, has a byte for each slot, which is not 0 where the checksum is right.
    """
    slots: list[Slot | None] = []
    problem: str | None = None
    untouched = initial_slot()
    untouched_body = slot_body(untouched)
    known = checks is not None
    for index in range(block.turn):
        slot = None
        if checks is None or checks[index]:
            stored = raw[index * SLOT.size : (index + 1) * SLOT.size]
            is_untouched = known and stored.endswith(untouched_body)  # most are, in a young log
            slot = untouched if is_untouched else decode_slot(stored, block.uuid, index, known=known)
        slots.append(slot)
        if slot is None or slot is untouched or slot == untouched:
            continue
        reason = slot_problem(slot, block)
        if reason is None and slot.generation and slot_index(slot.generation, block.control_pages) != index:
            reason = f"generation {slot.generation} at a place that is not its own"
        if reason is not None and problem is None:
            page, place = divmod(index, SLOTS_PER_PAGE)
            problem = f"slot {place} of control page {page} (file offset {slot_offset(index)}): {reason}"
    valid = [slot for slot in slots if slot is not None]
    if not valid:
        return Control(None, tuple(range(block.turn)), problem, 0)
    newest = max(valid, key=_generation)
    return Control(newest, _find_lost(slots, newest, block), problem, max(slot.epoch for slot in valid))


def _generation(slot: Slot) -> int:
    return slot.generation


def _find_lost(slots: list[Slot | None], newest: Slot, block: Superblock) -> tuple[int, ...]:
    """The places that do not hold the generation they must hold beside the newest one."""
    due = due_generations(newest.generation, block)
    return tuple(
        index for index, slot in enumerate(slots) if slot is None or slot.generation != due[index]
    )
