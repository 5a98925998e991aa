"""The control region: which slot has the commit pointer, and which are missing. Pure: bytes in, facts out.

Invariants
----------
- Creation writes a valid slot at every slot index, and a slot is overwritten only by the generation one turn later. So for every
  index exactly one generation is right: a lost or torn slot is always noticed.
- One slot is stored at a time and has its own barrier, so a crash tears at most one.
- A new tail or epoch takes effect only when two consecutive slots carry it. So a slot is up to date as long as at most the one
  after it can have been lost.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from operator import itemgetter, ne

from pmwal.format.epochs import pack_starts
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

_Row = tuple[int, ...]  # the fields of a slot as they are stored
_NAMES = [field.name for field in SLOT.fields]
_OF_GENERATION, _TAIL_SEQ, _RESERVED = (_NAMES.index(name) for name in ("generation", "tail_seq", "reserved"))
_GENERATION, _EPOCH = itemgetter(_OF_GENERATION), itemgetter(_NAMES.index("epoch"))

assert Slot._fields == tuple(_NAMES[1:-1])


@dataclass(frozen=True, slots=True)
class Control:
    """What the control region says.

    ``newest`` is the valid slot with the highest generation; it has the commit pointer. ``lost_slots`` are the indexes of slots
    that are not valid, or not of the generation that ``newest`` calls for. ``impossible`` says what is contradictory in a slot
    with a right checksum. ``epoch_max`` is the greatest epoch in a valid slot. ``starts``: the epochs that the slots still
    name, as ``pack_starts`` packs them.
    """

    newest: Slot | None
    lost_slots: tuple[int, ...]
    impossible: str | None
    epoch_max: int
    starts: bytes = b""

    @property
    def lost(self) -> int:
        """Number of lost slots."""
        return len(self.lost_slots)


def _contradictions(rows: Sequence[_Row | None], block: Superblock) -> Iterator[tuple[int, str]]:
    """The index of each slot that no log of this geometry can have written there, and why."""
    capacity, alignment, turn = block.capacity, block.alignment, block.turn
    least = record_size(0, alignment)
    for index, (row, place) in enumerate(zip(rows, _first_generations(block), strict=True)):
        if row is None:
            continue
        _, epoch, generation, first, commit, commit_seq, tail, tail_seq, flags, _ = row
        used, records = commit - tail, commit_seq + 1 - tail_seq
        if generation > GENERATION_MAX or epoch > EPOCH_MAX or commit_seq > SEQ_MAX:
            problem = "a number past the limits of the format"
        elif flags & ~SLOT_FLAGS:
            problem = f"unknown flags {flags:#x}"
        elif (epoch == 0) != (generation == 0):
            problem = "epoch 0 after creation"
        elif commit > POSITION_MAX or commit % alignment:
            problem = f"commit position {commit}"
        elif used < 0 or tail % alignment:
            problem = f"tail {tail} against commit {commit}"
        elif used > capacity:
            problem = f"tail {tail} and commit {commit} in a ring of {capacity}"
        elif tail_seq < 1 or records < 0 or not 1 <= first <= commit_seq + 1:
            problem = f"numbers {tail_seq}, {first} against {commit_seq}"
        elif (records == 0) != (used == 0) or records * least > used:
            problem = f"records {tail_seq} to {commit_seq} from {tail} to {commit}"
        elif generation and generation % turn != place:
            problem = f"generation {generation} at the slot index of another"
        else:
            continue
        page, index_in_page = divmod(index, SLOTS_PER_PAGE)
        yield index, f"slot {index_in_page} of control page {page} (file offset {slot_offset(index)}): {problem}"


def due_generations(newest: int, block: Superblock) -> list[int]:
    """The right generation for each slot index when ``newest`` is the newest one; 0 for an index not used yet."""
    begun = newest - newest % block.turn
    turn = [*range(begun, newest + 1), *range(newest + 1 - block.turn, begun)]  # at the index of the first turn's generation
    if begun == 0:
        turn[newest + 1 :] = [0] * (block.turn - newest - 1)
    return [generation for page in range(block.control_pages) for generation in turn[page :: block.control_pages]]


def _first_generations(block: Superblock) -> list[int]:
    """The generation of the first turn that is stored at each slot index."""
    return [generation for page in range(block.control_pages) for generation in range(page, block.turn, block.control_pages)]


def read_control(raw: bytes, block: Superblock, checks: bytes | None = None) -> Control:
    """Judge all slots of a control region.

    ``checks``, if it is known already, has a byte for each slot, which is not 0 if the checksum is right.
    """
    rows = _decode(raw, block, checks)
    problem = next((text for _, text in _contradictions(rows, block)), None)
    valid = [row for row in rows if row is not None]
    if not valid:
        return Control(None, tuple(range(block.turn)), problem, 0)
    newest = _slot(max(valid, key=_GENERATION))
    lost = tuple(_lost(rows, newest.generation, block))
    return Control(newest, lost, problem, max(map(_EPOCH, valid)), pack_starts(_first_seqs(valid)))


def first_seqs(raw: bytes, block: Superblock, checks: bytes) -> dict[int, int]:
    """The epochs that the slots still name, each with its first sequence number.

    The newest slots decide: a change of epoch that was given up after its first slot is followed by slots of the epoch before.
    """
    return _first_seqs(compress(SLOT.struct.iter_unpack(raw), checks))


def _first_seqs(valid: Iterable[_Row]) -> dict[int, int]:
    newest: dict[int, _Row] = {}  # of each epoch
    for row in valid:
        known = newest.get(_EPOCH(row))
        if known is None or _GENERATION(row) > _GENERATION(known):
            newest[_EPOCH(row)] = row
    found: dict[int, int] = {}
    least = max(newest, default=0)
    for _, epoch, _, first, *_ in sorted(newest.values(), key=_GENERATION, reverse=True):
        if epoch <= least:
            least = epoch
            found[epoch] = first
    return found


def commit_bounds(raw: bytes, block: Superblock, checks: bytes, after: int, seq: int) -> list[Bound]:
    """Where the log continued after commits that the slots name, with numbers past ``after`` and up to ``seq``, newest first.

    None that has been discarded since is among them. Only the newest slots count whose generations follow one another: they name
    every epoch that has begun since the oldest of them, and a commit is part of the log as long as each later epoch began after it.
    """
    bounds: list[Bound] = []
    due = first = epoch = None
    first_discarded = SEQ_MAX + 1
    for row in sorted(compress(SLOT.struct.iter_unpack(raw), checks), key=_GENERATION, reverse=True):
        slot = Slot(*row[1:-1])
        if due is not None and slot.generation != due:
            break
        due = slot.generation - 1
        if epoch is not None and slot.epoch > epoch:
            continue  # its start was given up: see ``first_seqs``
        if first is not None and slot.epoch != epoch:
            first_discarded = min(first_discarded, first)
        first, epoch = slot.epoch_first_seq, slot.epoch
        if after <= slot.commit_seq < min(seq, first_discarded):
            bounds.append(Bound(slot.commit_position, slot.commit_seq + 1))
    return bounds


def _decode(raw: bytes, block: Superblock, checks: bytes | None = None) -> list[_Row | None]:
    """The fields of the slot at each index; None where its checksum is wrong."""
    if checks is None:
        checks = bytes(slot_checks(raw[index * LINE : (index + 1) * LINE], block.uuid, index) for index in range(block.turn))
    rows = zip(SLOT.struct.iter_unpack(raw), checks, strict=True)
    return [row if right and row[_TAIL_SEQ] and not row[_RESERVED] else None for row, right in rows]


def _lost(rows: Sequence[_Row | None], newest: int, block: Superblock) -> Iterator[int]:
    """The indexes whose slot is not valid, or not of the generation that ``newest`` calls for."""
    found = [-1 if row is None else row[_OF_GENERATION] for row in rows]
    yield from compress(range(block.turn), map(ne, found, due_generations(newest, block)))


@dataclass(frozen=True, slots=True)
class Pointer:
    """The newest slot of a control region that may be damaged.

    ``certain``: its tail and epoch are those of the newest slot ever written, even if that one is lost. ``epochs``: each
    (epoch, first sequence number) that the slots which agree with it name.
    """

    slot: Slot
    certain: bool
    epochs: frozenset[tuple[int, int]]


def find_pointer(raw: bytes, block: Superblock) -> Pointer | None:
    """The newest slot that can be believed, around slots that are lost, contradictory, or forged; None if there is none."""
    rows = _decode(raw, block)
    for index, _ in tuple(_contradictions(rows, block)):
        rows[index] = None
    sound = [row for row in rows if row is not None]
    if not sound:
        return None
    newest = _newest_agreed([_GENERATION(row) for row in sound], block)
    pointer = next(row for row in sound if _GENERATION(row) == newest)
    lost = set(_lost(rows, newest, block))
    overtaken = all(slot_index(newest + step, block.control_pages) in lost for step in (1, 2))
    agreed = [_slot(row) for index, row in enumerate(rows) if row is not None and index not in lost]
    return Pointer(_slot(pointer), not overtaken, frozenset((slot.epoch, slot.epoch_first_seq) for slot in agreed))


def _newest_agreed(generations: Sequence[int], block: Superblock) -> int:
    """The newest generation that at least half of these can precede; one slot of another origin is not believed against all others.

    A generation can be preceded by the turn before it, and in the first turn by slots of generation 0.
    """
    ordered = sorted(generations)
    unused = ordered.count(0)
    for newest in sorted(set(ordered), reverse=True):
        agreed = bisect_right(ordered, newest) - bisect_left(ordered, max(newest - block.turn + 1, 1))
        if newest < block.turn:
            agreed += unused
        if 2 * agreed >= len(ordered):
            return newest
    return ordered[-1]


def filled_region(slot: Slot, block: Superblock) -> bytes:
    """A control region in which no slot is lost and ``slot`` is the newest: each slot says the same, but for its generation."""
    region = bytearray(block.control_size)
    for index, generation in enumerate(due_generations(slot.generation, block)):
        due = slot._replace(generation=generation) if generation else initial_slot()
        region[index * LINE : (index + 1) * LINE] = encode_slot(due, block.uuid, index)
    return bytes(region)


def _slot(row: _Row) -> Slot:
    return Slot._make(row[1:-1])
