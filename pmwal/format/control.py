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
from operator import attrgetter, itemgetter, ne
from typing import NamedTuple

from pmwal.errors import FormatError
from pmwal.format.epochs import pack_starts
from pmwal.format.layout import (
    EPOCH_MAX,
    GENERATION_MAX,
    LINE,
    LIVE_OFFSET,
    PAGE,
    POSITION_MAX,
    SEQ_MAX,
    SLOT,
    SLOT_CLEAN,
    SLOT_FLAGS,
    SLOTS_PER_PAGE,
    SUPERBLOCK_OFFSET,
    Slot,
    Superblock,
    encode_slot,
    encode_superblock,
    initial_slot,
    record_size,
    slot_checks,
    slot_index,
    slot_offset,
)
from pmwal.format.ring import Load, Scan
from pmwal.records import Bound

_Row = tuple[int, ...]  # the fields of a slot as they are stored
_NAMES = [field.name for field in SLOT.fields]
_OF_GENERATION, _COMMIT_SEQ, _TAIL_SEQ, _RESERVED = (
    _NAMES.index(name) for name in ("generation", "commit_seq", "tail_seq", "reserved")
)
_GENERATION, _EPOCH = itemgetter(_OF_GENERATION), itemgetter(_NAMES.index("epoch"))

_UNUSED = (*initial_slot(), 0)  # fields after the checksum

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


def _contradictions(indexes: Iterable[int], rows: Iterable[_Row | None], block: Superblock) -> Iterator[tuple[int, str]]:
    """The index of each slot that no log of this geometry can have written there, and why."""
    capacity, alignment, pages, turn = block.capacity, block.alignment, block.control_pages, block.turn
    least = record_size(0, alignment)
    for index, row in zip(indexes, rows, strict=True):
        if row is None or (not _GENERATION(row) and row[1:] == _UNUSED):
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
        elif generation and generation % turn != index % SLOTS_PER_PAGE * pages + index // SLOTS_PER_PAGE:
            problem = f"generation {generation} at the slot index of another"
        else:
            continue
        page, index_in_page = divmod(index, SLOTS_PER_PAGE)
        yield index, f"slot {index_in_page} of control page {page} (file offset {slot_offset(index)}): {problem}"


def due_generations(indexes: Iterable[int], newest: int, block: Superblock) -> list[int]:
    """The right generation for each of these slot indexes when ``newest`` is the newest one; 0 for an index not used yet."""
    pages, turn = block.control_pages, block.turn
    return [max(0, newest - (newest - index % SLOTS_PER_PAGE * pages - index // SLOTS_PER_PAGE) % turn) for index in indexes]


class Slots(NamedTuple):
    """The slots of a control region: its bytes, whose they are, and for each slot a byte that is not 0 if its checksum is right.

    ``telling``: the indexes, in order, of the slots to look at; None for all. The native engine tells them: each other one is whole
    and possible, has the generation due at its index, and names the same epoch as the slot of the next generation, which is so,
    too; or it is not used yet, and one that is says the same.
    """

    raw: bytes
    block: Superblock
    checks: bytes
    telling: tuple[int, ...] | None = None

    def row(self, index: int) -> _Row | None:
        """The fields of the slot at this index; None where its checksum is wrong."""
        row = SLOT.struct.unpack_from(self.raw, index * LINE)
        return row if self.checks[index] and row[_TAIL_SEQ] and not row[_RESERVED] else None

    def rows(self) -> tuple[Sequence[int], list[_Row | None]]:
        """The indexes of the slots to look at, and the fields of each."""
        if self.telling is not None:
            return self.telling, [self.row(index) for index in self.telling]
        rows = zip(SLOT.struct.iter_unpack(self.raw), self.checks, strict=True)
        decoded = [row if right and row[_TAIL_SEQ] and not row[_RESERVED] else None for row, right in rows]
        return range(self.block.turn), decoded


def read_slots(load: Load, block: Superblock, scan: Scan | None) -> Slots:
    """The slots as they are now."""
    raw = load(block.control_offset, block.control_size)
    return Slots(raw, block, _checks(raw, block)) if scan is None else Slots(raw, block, *scan.scanner.slots(raw))


def _checks(raw: bytes, block: Superblock) -> bytes:
    return bytes(slot_checks(raw[index * LINE : (index + 1) * LINE], block.uuid, index) for index in range(block.turn))


def read_control(raw: bytes, block: Superblock, checks: bytes | None = None, telling: tuple[int, ...] | None = None) -> Control:
    """Judge all slots of a control region. ``checks``, if they are known already, and ``telling``: see ``Slots``."""
    indexes, rows = Slots(raw, block, _checks(raw, block) if checks is None else checks, telling).rows()
    problem = next((text for _, text in _contradictions(indexes, rows, block)), None)
    valid = [row for row in rows if row is not None]
    if not valid:
        return Control(None, tuple(indexes), problem, 0)
    newest = _slot(max(valid, key=_GENERATION))
    lost = tuple(_lost(indexes, rows, newest.generation, block))
    return Control(newest, lost, problem, max(map(_EPOCH, valid)), pack_starts(_first_seqs(valid)))


def first_seqs(slots: Slots) -> dict[int, int]:
    """The epochs that the slots still name, each with its first sequence number."""
    return _first_seqs(row for row in slots.rows()[1] if row is not None)


class Begun(NamedTuple):
    """An epoch that the slots still name, its first sequence number, and the newest generation that names it."""

    epoch: int
    first_seq: int
    generation: int


def read_history(slots: Slots) -> tuple[Begun, ...]:
    """The epochs that the slots still name, newest first."""
    return _history(row for row in slots.rows()[1] if row is not None)


def _first_seqs(valid: Iterable[_Row]) -> dict[int, int]:
    return {epoch: first for epoch, first, _ in _history(valid)}


def _history(valid: Iterable[_Row]) -> tuple[Begun, ...]:
    """The newest slots decide: a change of epoch that was given up after one slot is followed by slots of the epoch before."""
    newest: dict[int, Begun] = {}  # of each epoch
    for _, epoch, generation, first, *_ in valid:
        known = newest.get(epoch)
        if known is None or generation > known.generation:
            newest[epoch] = Begun(epoch, first, generation)
    found: list[Begun] = []
    for begun in sorted(newest.values(), key=attrgetter("generation"), reverse=True):
        if begun.epoch <= (found[-1].epoch if found else max(newest)):
            found.append(begun)
    return tuple(found)


def commit_bounds(slots: Slots, after: int, seq: int) -> Iterator[Bound]:
    """Where the log continued after commits that the slots name, with numbers past ``after`` and up to ``seq``, newest first.

    None that has been discarded since is among them. Only the newest slots count whose generations follow one another: they name
    every epoch that has begun since the oldest of them, and a commit is part of the log as long as each later epoch began after it.
    """
    block = slots.block
    generation = max((_GENERATION(row) for row in slots.rows()[1] if row is not None), default=0)
    runs = _Runs(slots, generation)
    first = epoch = None
    limit = seq  # numbers from this one on are not wanted, or were discarded
    while generation > 0:
        row = slots.row(slot_index(generation, block.control_pages))
        if row is None or _GENERATION(row) != generation:
            return
        slot = _slot(row)
        if epoch is not None and slot.epoch > epoch:
            generation -= 1  # its start was given up: see ``first_seqs``
            continue
        if first is not None and slot.epoch != epoch:
            limit = min(limit, first)
        first, epoch = slot.epoch_first_seq, slot.epoch
        if slot.commit_seq >= limit:
            generation = runs.last_below(limit, generation)
            continue
        if slot.commit_seq < after:
            return  # the older ones end even earlier, or were discarded
        yield Bound(slot.commit_position, slot.commit_seq + 1)
        generation -= 1


class _Runs:
    """Runs of generations whose slots name one epoch, in which numbers only grow: those between two slots to look at."""

    def __init__(self, slots: Slots, newest: int) -> None:
        self._slots = slots
        self._ends: list[int] | None = None
        if slots.telling is not None:
            overwritten = max(0, newest - slots.block.turn)
            self._ends = [overwritten, *sorted(due_generations(slots.telling, newest, slots.block))]

    def last_below(self, limit: int, generation: int) -> int:
        """The next older generation than this one to look at for a commit number below ``limit``."""
        if self._ends is None:
            return generation - 1
        before = self._ends[bisect_left(self._ends, generation) - 1]  # the end of the run before this generation's
        return before + bisect_left(range(before + 1, generation), limit, key=self._commit_seq)

    def _commit_seq(self, generation: int) -> int:
        row = self._slots.row(slot_index(generation, self._slots.block.control_pages))
        return 0 if row is None else row[_COMMIT_SEQ]


def _lost(indexes: Sequence[int], rows: Sequence[_Row | None], newest: int, block: Superblock) -> Iterator[int]:
    """The indexes whose slot is not valid, or not of the generation that ``newest`` calls for."""
    found = [-1 if row is None else row[_OF_GENERATION] for row in rows]
    yield from compress(indexes, map(ne, found, due_generations(indexes, newest, block)))


@dataclass(frozen=True, slots=True)
class Pointer:
    """The newest slot of a control region that may be damaged.

    ``certain``: its tail and epoch are those of the newest slot ever written, even if that one is lost. ``epochs``: each
    (epoch, first sequence number) that the slots which agree with it name. ``history``: those of them that began, newest first.
    """

    slot: Slot
    certain: bool
    epochs: frozenset[tuple[int, int]]
    history: tuple[Begun, ...]


def find_pointer(raw: bytes, block: Superblock) -> Pointer | None:
    """The newest slot that can be believed, around slots that are lost, contradictory, or forged; None if there is none."""
    indexes, rows = Slots(raw, block, _checks(raw, block)).rows()
    for index, _ in tuple(_contradictions(indexes, rows, block)):
        rows[index] = None
    sound = [row for row in rows if row is not None]
    if not sound:
        return None
    newest = _newest_agreed([_GENERATION(row) for row in sound], block)
    pointer = next(row for row in sound if _GENERATION(row) == newest)
    lost = set(_lost(indexes, rows, newest, block))
    overtaken = all(slot_index(newest + step, block.control_pages) in lost for step in (1, 2))
    agreed = [row for index, row in enumerate(rows) if row is not None and index not in lost]
    epochs = frozenset((slot.epoch, slot.epoch_first_seq) for slot in map(_slot, agreed))
    return Pointer(_slot(pointer), not overtaken, epochs, _history(agreed))


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


def filled_region(slot: Slot, block: Superblock, history: Sequence[Begun] = ()) -> bytes:
    """A control region in which no slot is lost and ``slot`` is the newest: each slot says the same, but for its generation.

    ``history``: what the slots of the log named before, as ``read_history`` gives it. Each older generation names the epoch that it
    named there, so all epochs are known, and forgotten after as many commits, as if those slots had stayed. The two newest name
    that of ``slot``, as after any change.
    """
    earlier = [(begun.generation, older) for begun in reversed(history) if (older := _earlier(slot, begun, block)) is not None]
    generations = [generation for generation, _ in earlier]
    region = bytearray(block.control_size)
    for index, generation in enumerate(due_generations(range(block.turn), slot.generation, block)):
        after = bisect_left(generations, generation)
        named = earlier[after][1] if after < len(earlier) else slot
        due = named._replace(generation=generation) if generation else initial_slot()
        region[index * LINE : (index + 1) * LINE] = encode_slot(due, block.uuid, index)
    return bytes(region)


def _earlier(slot: Slot, begun: Begun, block: Superblock) -> Slot | None:
    """A slot of an earlier epoch than that of ``slot``; None if no slot of this log can name it.

    A slot names no later number than the one after its commit. So one of an epoch that began with a number which was discarded
    names a commit that was discarded as well, and never counts as a commit: see ``commit_bounds``.
    """
    epoch, first, generation = begun
    if not 0 < epoch < slot.epoch or generation > slot.generation - 2:
        return None
    named = slot._replace(epoch=epoch, epoch_first_seq=first)
    if first <= slot.commit_seq + 1:
        return named
    if (first - slot.tail_seq) * record_size(0, block.alignment) > block.capacity:
        return None  # the later epoch that discarded all of it says more
    return named._replace(commit_position=slot.tail_position + block.capacity, commit_seq=first - 1)


def whole_structures(slot: Slot, block: Superblock, history: Sequence[Begun] = ()) -> list[tuple[int, bytes]]:
    """All of a file but its ring, for a log that is written whole and has no writer, as (file offset, bytes).

    A control region in which ``slot`` is the newest, an empty live page, and both superblocks. ``history``: as for
    ``filled_region``.
    """
    return [
        (block.control_offset, filled_region(slot, block, history)),
        (LIVE_OFFSET, bytes(PAGE)),
        (SUPERBLOCK_OFFSET, encode_superblock(block, 0)),
        (block.copy_offset, encode_superblock(block, 1)),
    ]


def closing_slot(tail: Bound, end: Bound, epoch: int, block: Superblock, history: Sequence[Begun] = ()) -> Slot:
    """The slot of a log that is written whole: it was closed cleanly, in a new epoch, in which nothing that was left out validates.

    ``epoch`` is the greatest that the log had. ``history``: as for ``filled_region``; without one no slot names another epoch.
    ``FormatError`` if there is no later epoch.
    """
    if epoch >= EPOCH_MAX:
        raise FormatError("the log has used up its epochs; start a new one and copy the records into it")
    generation = history[0].generation + 2 if history else 2 * block.turn
    if generation > GENERATION_MAX // 2:
        generation = 2 * block.turn  # no log gets there; all slots are written again, so the numbers may start again
    return Slot(
        epoch=epoch + 1,
        generation=generation,
        epoch_first_seq=end.next_seq,
        commit_position=end.position,
        commit_seq=end.next_seq - 1,
        tail_position=tail.position,
        tail_seq=tail.next_seq,
        flags=SLOT_CLEAN,
    )


def _slot(row: _Row) -> Slot:
    return Slot._make(row[1:-1])
