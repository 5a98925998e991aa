"""The control region: which slot is the commit pointer, and which are missing. Pure: bytes in, facts out.

Invariants
----------
- Creation writes a valid slot at every slot index, and a slot is overwritten only by the generation one turn later. So for every
  index exactly one generation is right: a lost or torn slot is always noticed.
- One slot is stored at a time and has its own barrier, so a crash tears at most one.
- A new tail or epoch takes effect only when two consecutive slots carry it. So a slot is up to date as long as at most the one
  after it can have been lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pmwal.format.layout import (
    EPOCH_MAX,
    GENERATION_MAX,
    LINE,
    POSITION_MAX,
    SEQ_MAX,
    SLOT,
    SLOT_FLAGS,
    SLOTS_PER_PAGE,
    Slot,
    Superblock,
    encode_slot,
    initial_slot,
    record_size,
    slot_checks,
    slot_index,
    slot_offset,
)
from pmwal.records import Bound

_STORED = np.dtype([(field.name, f"<u{SLOT.field_size(field.name)}") for field in SLOT.fields])
_FIELDS = Slot._fields
_Column = npt.NDArray[np.uint64]
_Columns = dict[str, _Column]
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Control:
    """What the control region says.

    ``newest`` is the valid slot with the highest generation, the commit pointer. ``lost_slots`` are the indexes of slots that are
    not valid, or not of the generation that ``newest`` calls for. ``impossible`` says what is contradictory in a slot with a
    right checksum. ``epoch_max`` is the greatest epoch in a valid slot.
    """

    newest: Slot | None
    lost_slots: tuple[int, ...]
    impossible: str | None
    epoch_max: int

    @property
    def lost(self) -> int:
        """Number of lost slots."""
        return len(self.lost_slots)


def _problems(slots: _Columns, block: Superblock) -> Iterator[tuple[_Mask, str]]:
    """What no log of this geometry can have written: for each reason, the slots that it applies to, and its text."""
    epoch, generation, flags = slots["epoch"], slots["generation"], slots["flags"]
    commit, tail = slots["commit_position"], slots["tail_position"]
    commit_seq, tail_seq, first = slots["commit_seq"], slots["tail_seq"], slots["epoch_first_seq"]
    too_great = (generation > GENERATION_MAX) | (epoch > EPOCH_MAX) | (commit_seq > SEQ_MAX)
    yield too_great, "a number past the limits of the format"
    yield (flags & ~np.uint64(SLOT_FLAGS)) != 0, "unknown flags {flags:#x}"
    yield (epoch == 0) != (generation == 0), "epoch 0 after creation"
    yield (commit > POSITION_MAX) | (commit % block.alignment != 0), "commit position {commit_position}"
    yield (tail > commit) | (tail % block.alignment != 0), "tail {tail_position} against commit {commit_position}"
    # From here on a difference may have wrapped around zero, but then one of the reasons above applies, and is reported first.
    used, records = commit - tail, commit_seq + 1 - tail_seq
    yield used > block.capacity, f"tail {{tail_position}} and commit {{commit_position}} in a ring of {block.capacity}"
    numbers = (tail_seq < 1) | (tail_seq > commit_seq + 1) | (first < 1) | (first > commit_seq + 1)
    yield numbers, "numbers {tail_seq}, {epoch_first_seq} against {commit_seq}"
    least = record_size(0, block.alignment)
    crowded = ((records == 0) != (used == 0)) | (records > used // least)
    yield crowded, "records {tail_seq} to {commit_seq} from {tail_position} to {commit_position}"


def due_generations(newest: int, block: Superblock) -> npt.NDArray[np.uint64]:
    """The right generation for each slot index when ``newest`` is the newest one; 0 for an index not used yet."""
    indexes = np.arange(block.turn)
    firsts = indexes % SLOTS_PER_PAGE * block.control_pages + indexes // SLOTS_PER_PAGE
    ago = ((newest % block.turn - firsts) % block.turn).astype(np.uint64)
    due: npt.NDArray[np.uint64] = np.where(ago <= newest, np.uint64(newest) - ago, np.uint64(0))
    return due


def read_control(raw: bytes, block: Superblock, checks: bytes | None = None) -> Control:
    """Judge all slots of a control region.

    ``checks``, if it is known already, has a byte for each slot, which is not 0 if the checksum is right.
    """
    slots, valid = _decode(raw, block, checks)
    _, problem = _contradictions(slots, valid, block)
    if not valid.any():
        return Control(None, tuple(range(block.turn)), problem, 0)
    generations = np.where(valid, slots["generation"], 0)
    at = int(generations.argmax() if generations.any() else valid.argmax())
    newest = _slot(slots, at)
    lost = ~valid | (slots["generation"] != due_generations(newest.generation, block))
    return Control(newest, tuple(np.flatnonzero(lost).tolist()), problem, int(slots["epoch"][valid].max()))


def first_seqs(raw: bytes, block: Superblock, checks: bytes) -> dict[int, int]:
    """The epochs that the slots still name, each with its first sequence number.

    The newest slots decide: a change of epoch that was given up after its first slot is followed by slots of the epoch before.
    """
    stored = np.frombuffer(raw, _STORED, block.turn)
    newest_first = stored[np.frombuffer(checks, np.uint8, block.turn) != 0]
    newest_first = newest_first[np.argsort(newest_first["generation"], kind="stable")[::-1]]
    epochs = newest_first["epoch"]
    kept = newest_first[epochs == np.minimum.accumulate(epochs)]
    return dict(zip(kept["epoch"].tolist(), kept["epoch_first_seq"].tolist(), strict=True))


def commit_bounds(raw: bytes, block: Superblock, checks: bytes, after: int, seq: int) -> list[Bound]:
    """Where the log continued after commits that the slots name, with numbers past ``after`` and up to ``seq``, newest first.

    None that has been discarded since is among them. Only the newest slots count whose generations follow one another: they name
    every epoch that has begun since the oldest of them, and a commit is part of the log as long as each later epoch began after it.
    """
    stored = np.frombuffer(raw, _STORED, block.turn)
    newest_first = stored[np.frombuffer(checks, np.uint8, block.turn) != 0]
    newest_first = newest_first[np.argsort(newest_first["generation"], kind="stable")[::-1]]
    generations = newest_first["generation"]
    gaps = np.flatnonzero(generations[:-1] - generations[1:] != 1)
    unbroken = newest_first[: gaps[0] + 1] if len(gaps) else newest_first
    unbroken = unbroken[unbroken["epoch"] == np.minimum.accumulate(unbroken["epoch"])]  # as in ``first_seqs``
    epochs, at = np.unique(unbroken["epoch"], return_index=True)
    firsts = np.append(unbroken["epoch_first_seq"][at], np.uint64(SEQ_MAX + 1))
    first_discarded = np.minimum.accumulate(firsts[::-1])[::-1][np.searchsorted(epochs, unbroken["epoch"]) + 1]
    last = unbroken["commit_seq"]
    wanted = unbroken[(last < first_discarded) & (last >= np.uint64(after)) & (last < np.uint64(seq))]
    return [Bound(position, last + 1) for position, last in wanted[["commit_position", "commit_seq"]].tolist()]


def _decode(raw: bytes, block: Superblock, checks: bytes | None = None) -> tuple[_Columns, _Mask]:
    """The fields of all slots, and which slots have a right checksum."""
    stored = np.frombuffer(raw, _STORED, block.turn)
    if checks is None:
        checks = bytes(slot_checks(raw[index * LINE : (index + 1) * LINE], block.uuid, index) for index in range(block.turn))
    slots = {name: stored[name].astype(np.uint64) for name in _FIELDS}
    return slots, (np.frombuffer(checks, np.uint8, block.turn) != 0) & (stored["reserved"] == 0) & (slots["tail_seq"] != 0)


def _contradictions(slots: _Columns, valid: _Mask, block: Superblock) -> tuple[_Mask, str | None]:
    """Which of the valid slots contradict themselves or the geometry, and how the first of them does."""
    own = slots["generation"] % block.turn
    indexes = own % block.control_pages * SLOTS_PER_PAGE + own // block.control_pages
    elsewhere = (slots["generation"] != 0) & (indexes != np.arange(block.turn, dtype=np.uint64))
    reasons = [*_problems(slots, block), (elsewhere, "generation {generation} at the slot index of another")]
    wrong: _Mask = valid & np.logical_or.reduce([mask for mask, _ in reasons])
    if not wrong.any():
        return wrong, None
    index = int(wrong.argmax())
    text = next(text for mask, text in reasons if mask[index])
    page, index_in_page = divmod(index, SLOTS_PER_PAGE)
    where = f"slot {index_in_page} of control page {page} (file offset {slot_offset(index)})"
    return wrong, f"{where}: {text.format(**_slot(slots, index)._asdict())}"


@dataclass(frozen=True, slots=True)
class Pointer:
    """The commit pointer of a control region that may be damaged.

    ``certain``: its tail and epoch are those of the newest slot ever written, even if that one is lost. ``epochs``: each
    (epoch, first sequence number) that the slots which agree with it name.
    """

    slot: Slot
    certain: bool
    epochs: frozenset[tuple[int, int]]


def find_pointer(raw: bytes, block: Superblock) -> Pointer | None:
    """The newest slot that can be believed, around slots that are lost, contradictory, or forged; None if there is none."""
    slots, valid = _decode(raw, block)
    wrong, _ = _contradictions(slots, valid, block)
    sound = valid & ~wrong
    if not sound.any():
        return None
    generations = slots["generation"]
    newest = _newest_agreed(generations[sound], block)
    at = int(np.flatnonzero(sound & (generations == newest))[0])
    lost = ~sound | (generations != due_generations(newest, block))
    overtaken = all(lost[slot_index(newest + step, block.control_pages)] for step in (1, 2))
    agreed = zip(slots["epoch"][~lost].tolist(), slots["epoch_first_seq"][~lost].tolist(), strict=True)
    return Pointer(_slot(slots, at), not overtaken, frozenset(agreed))


def _newest_agreed(generations: _Column, block: Superblock) -> int:
    """The newest generation that at least half of these can precede; one slot of another origin is not believed against all others.

    A generation can be preceded by the turn before it, and in the first turn by slots of generation 0.
    """
    ordered = np.sort(generations)
    unused = int((ordered == 0).sum())
    for newest in np.unique(ordered)[::-1].tolist():
        turn = (ordered <= newest) & (ordered >= max(newest - block.turn + 1, 1))
        agreed = int(turn.sum()) + (unused if newest < block.turn else 0)
        if 2 * agreed >= len(ordered):
            return int(newest)
    return int(ordered[-1])


def filled_region(slot: Slot, block: Superblock) -> bytes:
    """A control region in which no slot is lost and ``slot`` is the newest: each slot says the same, but for its generation."""
    region = bytearray(block.control_size)
    for index, generation in enumerate(due_generations(slot.generation, block).tolist()):
        due = slot._replace(generation=generation) if generation else initial_slot()
        region[index * LINE : (index + 1) * LINE] = encode_slot(due, block.uuid, index)
    return bytes(region)


def _slot(slots: _Columns, index: int) -> Slot:
    return Slot(*(int(slots[name][index]) for name in _FIELDS))
