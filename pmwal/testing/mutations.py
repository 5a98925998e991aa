"""Mutations: what each deliberate bug of ``mutants`` changes, as patches of the seam's recorder, of the engine in Python, or of recovery."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from crc32c import crc32c

from pmwal import control, layout, opening, ring
from pmwal import wal as wal_module
from pmwal.engine import Engine, State
from pmwal.errors import PersistError
from pmwal.judge import _Judge
from pmwal.layout import CONTROL_OFFSET, CONTROL_SIZE_MIN, PAGE, SLOT_CLEAN, Slot, Superblock
from pmwal.medium import Mapping
from pmwal.records import Bound
from pmwal.ring import Found, RingReader
from pmwal.testing.recorder import Recorder
from pmwal.wal import Wal

RING_OFFSET = CONTROL_OFFSET + CONTROL_SIZE_MIN + PAGE


class Patch(NamedTuple):
    """One attribute of the code that ships, and what stands in for it."""

    target: Any
    name: str
    value: Any


def of_records(offset: int) -> bool:
    """Whether a step concerns the ring."""
    return offset >= RING_OFFSET


def of_slots(offset: int) -> bool:
    """Whether a step concerns the control region."""
    return CONTROL_OFFSET <= offset < CONTROL_OFFSET + CONTROL_SIZE_MIN


# -- steps that are left out, or taken in another order


def drop(step: str, where: Callable[[int], bool]) -> list[Patch]:
    """Leave out this step where it concerns these bytes."""
    original = getattr(Recorder, step)

    def dropped(self: Recorder, mapping: Any, offset: int, length: int) -> None:
        if not where(offset):
            original(self, mapping, offset, length)

    return [Patch(Recorder, step, dropped)]


def drop_fences(*, second: bool = False) -> list[Patch]:
    """Leave out every fence, or every second one."""
    original, count = Recorder.fence, 0

    def fence(self: Recorder) -> None:
        nonlocal count
        count += 1
        if second and count % 2 == 0:
            original(self)

    return [Patch(Recorder, "fence", fence)]


def write_back_after_fence() -> list[Patch]:
    """Start to write lines back when the fence is over."""
    late: list[tuple[Any, int, int]] = []
    fence, write_back = Recorder.fence, Recorder.write_back

    def fence_first(self: Recorder) -> None:
        fence(self)
        for mapping, offset, length in late:
            write_back(self, mapping, offset, length)
        late.clear()

    return [
        Patch(Recorder, "fence", fence_first),
        Patch(Recorder, "write_back", lambda self, mapping, offset, length: late.append((mapping, offset, length))),
    ]


def round_down(step: str, unit: int) -> list[Patch]:
    """Leave out the last unit of a range, or the part of a line behind the last whole one."""
    original = getattr(Recorder, step)

    def rounded(self: Recorder, mapping: Any, offset: int, length: int) -> None:
        end = (offset + length - 1) // unit * unit
        if end > offset:
            original(self, mapping, offset, end - offset)

    return [Patch(Recorder, step, rounded)]


def drop_sync(which: int) -> list[Patch]:
    """Leave out one sync of a creation: 0 of the file, 1 of the directory."""
    original, count = Recorder.sync_file, -1

    def sync_file(self: Recorder, fd: int) -> None:
        nonlocal count
        count += 1
        if count != which and count < 2:
            original(self, fd)

    return [Patch(Recorder, "sync_file", sync_file)]


def ignore_failed_flush() -> list[Patch]:
    """Take a failed msync for a good one."""
    original = Mapping._flush

    def swallow(self: Mapping, offset: int, length: int) -> None:
        try:
            original(self, offset, length)
        except OSError:
            return

    return [Patch(Mapping, "_flush", swallow)]


# -- the engine


def slot_before_data() -> list[Patch]:
    """Store the slot before the barrier over what it names."""
    original = Engine._flush_records

    def slot_first(self: Engine) -> None:
        self._write_slot(self.state._replace(durable=self.state.head))
        original(self)

    return [Patch(Engine, "_flush_records", slot_first)]


def one_slot() -> list[Patch]:
    """Let a change take effect behind one slot."""

    def change(self: Engine, state: State) -> None:
        self._write_slot(state)
        self._become(state)

    return [Patch(Engine, "_change", change)]


def same_slot_twice() -> list[Patch]:
    """Store the second slot of a change where the first one is."""

    def change(self: Engine, state: State) -> None:
        self._write_slot(state)
        self.generation -= 1
        self._write_slot(state)
        self._become(state)

    return [Patch(Engine, "_change", change)]


def tail_in_memory() -> list[Patch]:
    """Free space without a slot."""

    def move_tail(self: Engine, tail: Bound) -> None:
        self.commit()
        self._become(self.state._replace(tail=tail))

    return [Patch(Engine, "move_tail", move_tail)]


def tail_late() -> list[Patch]:
    """Free space first, and let slots carry the tail with the next commit."""
    late: list[bool] = []
    flush = Engine._flush_records

    def move_tail(self: Engine, tail: Bound) -> None:
        self.commit()
        self._become(self.state._replace(tail=tail))
        late.append(True)

    def flush_and_carry(self: Engine) -> None:
        flush(self)
        if late:
            late.clear()
            self._change(self.state)

    return [Patch(Engine, "move_tail", move_tail), Patch(Engine, "_flush_records", flush_and_carry)]


def tail_past_commit() -> list[Patch]:
    """Truncate without committing what is pending."""

    def move_tail(self: Engine, tail: Bound) -> None:
        self._change(self.state._replace(tail=tail))

    return [Patch(Engine, "move_tail", move_tail)]


def epoch_kept() -> list[Patch]:
    """Begin no new epoch."""

    def start_epoch(self: Engine, end: Bound) -> None:
        self._flush_records()
        state = self.state
        first = min(state.epoch_first_seq, end.next_seq) if state.epoch else end.next_seq
        self._change(state._replace(head=end, durable=end, epoch=max(state.epoch, 1), epoch_first_seq=first))
        self._stray_records = False

    return [Patch(Engine, "start_epoch", start_epoch)]


def epoch_in_memory() -> list[Patch]:
    """Begin a new epoch without a slot."""

    def start_epoch(self: Engine, end: Bound) -> None:
        self._flush_records()
        state = self.state
        self._become(state._replace(head=end, durable=end, epoch=state.epoch + 1, epoch_first_seq=end.next_seq))
        self._stray_records = False

    return [Patch(Engine, "start_epoch", start_epoch)]


def epoch_without_flush() -> list[Patch]:
    """Let the slots of a new epoch name records that no barrier covered."""

    def start_epoch(self: Engine, end: Bound) -> None:
        state = self.state
        self._change(state._replace(head=end, durable=end, epoch=state.epoch + 1, epoch_first_seq=end.next_seq))
        self._stray_records = False

    return [Patch(Engine, "start_epoch", start_epoch)]


def strays_forgotten() -> list[Patch]:
    """Leave whole records of an interrupted call where they are, and valid."""

    def settle(self: Engine) -> None:
        self._stray_records = False

    return [Patch(Engine, "_settle", settle)]


def _store_with(mark: Callable[[Engine], Bound]) -> list[Patch]:
    original = Engine.store

    def marked(self: Engine, payloads: Sequence[bytes], kinds: Sequence[int]) -> tuple[int, int]:
        self._settle()
        state = self.state
        self.state = state._replace(durable=mark(self))
        try:
            return original(self, payloads, kinds)
        finally:
            self.state = self.state._replace(durable=state.durable)

    return [Patch(Engine, "store", marked)]


def marks_of_published() -> list[Patch]:
    """Say in a record that everything stored before it is durable."""
    return _store_with(lambda engine: engine.state.head)


def marks_not_set_back() -> list[Patch]:
    """Say in a record after a rollback what was durable before it."""
    highest = Bound(0, 1)

    def mark(engine: Engine) -> Bound:
        nonlocal highest
        highest = max(highest, engine.state.durable)
        return highest

    return _store_with(mark)


def newest_slot_overwritten() -> list[Patch]:
    """Count generations on from the one before the newest slot's at an open."""
    original = Engine._begin

    def begin(self: Engine, state: State, slot: Slot) -> None:
        original(self, state, slot)
        self.generation = max(slot.generation - 1, 0)

    return [Patch(Engine, "_begin", begin)]


def close_without_commit() -> list[Patch]:
    """Say "closed cleanly" without making durable what is pending."""
    return [Patch(Engine, "close", lambda self: self._write_slot(self.state, SLOT_CLEAN))]


def poison_skipped() -> list[Patch]:
    """Report a failed barrier, and take records again."""

    def fail(self: Wal, error: OSError) -> PersistError:
        return PersistError(error.errno, "not poisoned", committed_seq=self.committed_seq)

    return [Patch(Wal, "_fail", fail)]


class _Late(bytes):
    """A payload that is read from its source again when it is stored."""

    source: Any

    def __radd__(self, header: bytes) -> bytes:
        return header + bytes(self.source)


def crc_over_source() -> list[Patch]:
    """Take the checksum over the payload, and store what the caller's buffer holds afterwards."""
    original = wal_module.as_payload

    def as_payload(data: Any, block: Superblock) -> bytes:
        late = _Late(original(data, block))
        late.source = data
        return late

    return [Patch(wal_module, "as_payload", as_payload)]


# -- recovery


def restore_skipped() -> list[Patch]:
    """Do not store again what may be in the cache only."""
    return [Patch(opening, "_store_again", lambda mapping, judgement, slot, copies: None)]


def restore_without_barrier() -> list[Patch]:
    """Store it again, and wait for nothing."""
    original = opening._store_again

    def store_again(mapping: Any, *args: Any) -> None:
        mapping.barrier = lambda *ranges: None
        try:
            original(mapping, *args)
        finally:
            del mapping.barrier

    return [Patch(opening, "_store_again", store_again)]


def restore_from_cache() -> list[Patch]:
    """Store again what the cache shows by then, and not what was judged."""
    original = opening._store_again

    def store_again(mapping: Mapping, judgement: Any, slot: Slot, copies: list[tuple[int, bytes]]) -> None:
        original(mapping, judgement, slot, [])
        original(mapping, judgement, slot, [(offset, mapping.load(offset, len(data))) for offset, data in copies])

    return [Patch(opening, "_store_again", store_again)]


def lost_slot_left() -> list[Patch]:
    """Do not fill up a lost slot."""
    original = opening._store_again

    def store_again(mapping: Mapping, judgement: Any, slot: Slot, copies: list[tuple[int, bytes]]) -> None:
        filled = replace(judgement, control=replace(judgement.control, lost_places=()))
        original(mapping, filled, slot, copies)

    return [Patch(opening, "_store_again", store_again)]


def epoch_unchecked() -> list[Patch]:
    """Take past the pointer records of any epoch."""
    original = _Judge._whole_batch

    def whole_batch(self: _Judge, start: Bound, slot: Slot) -> list[Found]:
        found = self.ring.numbered(*start)
        return original(self, start, slot if found is None else slot._replace(epoch=found.header.epoch))

    return [Patch(_Judge, "_whole_batch", whole_batch)]


def epoch_before_crc() -> list[Patch]:
    """Take a header with an older epoch for the end of the log, whatever its checksum says."""
    original = _Judge._damaged_before_pointer

    def damaged(self: _Judge, slots: Any, slot: Slot, stop: Bound, pointer: Bound) -> Any:
        header = self.ring.peek(stop.position)
        if header is not None and header.seq == stop.next_seq and header.epoch != slot.epoch:
            return self._verdict(slots, slot, Bound(slot.tail_position, slot.tail_seq), stop)
        return original(self, slots, slot, stop, pointer)

    return [Patch(_Judge, "_damaged_before_pointer", damaged)]


def batches_ignored() -> list[Patch]:
    """Take past the pointer each record for itself."""

    def whole_batch(self: _Judge, start: Bound, slot: Slot) -> list[Found]:
        found = self.ring.numbered(*start)
        return [found] if found is not None and found.header.epoch == slot.epoch else []

    return [Patch(_Judge, "_whole_batch", whole_batch)]


def gap_not_crossed() -> list[Patch]:
    """Look for a record behind the one before only."""
    return [Patch(RingReader, "_at_next_lap", lambda self, position, seq: None)]


def gap_not_compared() -> list[Patch]:
    """Take a record at the ring's end for the next one without a look at the next lap's start."""
    original = RingReader.numbered

    def numbered(self: RingReader, position: int, seq: int) -> Found | None:
        here = self.whole(position)
        return here if here is not None and here.header.seq == seq else original(self, position, seq)

    return [Patch(RingReader, "numbered", numbered)]


def slot_crc_unchecked() -> list[Patch]:
    """Take any bytes in a slot's place for a slot."""
    original = control.decode_slot

    def decode(raw: bytes, uuid: bytes, index: int, *, known: bool = False) -> Slot | None:
        return original(raw, uuid, index, known=True)

    return [Patch(control, "decode_slot", decode)]


def record_crc_unchecked() -> list[Patch]:
    """Take any bytes behind a possible header for a record."""
    return [Patch(ring, "record_crc", lambda stored, uuid, position: int.from_bytes(stored[:4], "little"))]


def crc_without_seed() -> list[Patch]:
    """Start checksums from the place, and leave out which log it is."""

    def seed(uuid: bytes, place: int) -> int:
        crc: int = crc32c(place.to_bytes(8, "little"))
        return crc

    return [Patch(layout, "seed_crc", seed), Patch(layout, "_slot_seed", seed)]

