"""Broken writing: steps in the wrong order, changes in one slot or none, marks ahead of barriers.

Patches ``Engine`` (_flush_records, _write_slot, _change, _become, move_tail, start_epoch, _settle, store, _begin, close), ``Wal``
(_commit_through, _fail), ``Space.make`` and ``as_payload`` in ``pmwal.writing.wal``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pmwal.errors import PersistError, WalFull
from pmwal.format.layout import SLOT_CLEAN, Slot, Superblock
from pmwal.format.rows import Rows
from pmwal.records import Bound
from pmwal.testing._mutants.seam import Patch, shipped
from pmwal.writing import wal as wal_module
from pmwal.writing.access import Access
from pmwal.writing.engine import Engine, State
from pmwal.writing.space import Space
from pmwal.writing.write_path import WritePath


def slot_before_data() -> list[Patch]:
    """Store the slot before the barrier over what it names."""
    original = Engine._flush_records

    def slot_first(self: Engine) -> None:
        self._write_slot(self.state._replace(durable=self.state.head))
        original(self)

    return [Patch(Engine, "_flush_records", slot_first)]


def one_slot() -> list[Patch]:
    """Let a change take effect after one slot."""

    def change(self: Engine, state: State) -> None:
        self._write_slot(state)
        self._become(state)

    return [Patch(Engine, "_change", change)]


def same_slot_twice() -> list[Patch]:
    """Store the second slot of a change over the first."""

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
    """Free space first, and write slots with the new tail at the next commit only."""
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
    """Let the slots of a new epoch name records that no barrier has covered."""

    def start_epoch(self: Engine, end: Bound) -> None:
        state = self.state
        self._change(state._replace(head=end, durable=end, epoch=state.epoch + 1, epoch_first_seq=end.next_seq))
        self._stray_records = False

    return [Patch(Engine, "start_epoch", start_epoch)]


def strays_forgotten() -> list[Patch]:
    """Leave whole records of an interrupted call in place, and valid."""

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
    """Mark everything stored before a record as durable."""
    return _store_with(lambda engine: engine.state.head)


def marks_not_set_back() -> list[Patch]:
    """Let marks after a rollback name what was durable before it."""
    highest = Bound(0, 1)

    def mark(engine: Engine) -> Bound:
        nonlocal highest
        highest = max(highest, engine.state.durable)
        return highest

    return _store_with(mark)


def records_not_flushed() -> list[Patch]:
    """Call records durable without a barrier."""
    return [Patch(Engine, "_flush_records", lambda self: None)]


def slots_in_one_place() -> list[Patch]:
    """Store each slot over the one before it."""
    original = Engine._write_slot

    def same_place(self: Engine, state: State, flags: int = 0) -> None:
        self.generation = max(self.generation - 1, 0)
        original(self, state, flags)

    return [Patch(Engine, "_write_slot", same_place)]


def newest_slot_overwritten() -> list[Patch]:
    """At an open, continue from the generation before the newest slot's."""
    original = Engine._begin

    def begin(self: Engine, state: State, slot: Slot) -> None:
        original(self, state, slot)
        self.generation = max(slot.generation - 1, 0)

    return [Patch(Engine, "_begin", begin)]


def close_without_commit() -> list[Patch]:
    """Write the clean flag without committing what is pending."""
    return [Patch(Engine, "close", lambda self: self._write_slot(self.state, SLOT_CLEAN))]


def commit_skipped() -> list[Patch]:
    """Let a call return before what it stored is durable."""
    return [Patch(WritePath, "commit_through", lambda self, seq: None)]


def barriers_overlap() -> list[Patch]:
    """Let another thread store and commit while a barrier is under way."""
    original = Engine._flush_records

    def unguarded(self: Engine) -> None:
        self.guard.release()
        try:
            original(self)
        finally:
            self.guard.acquire()

    return [Patch(Engine, "_flush_records", unguarded)]


def gap_is_full() -> list[Patch]:
    """Refuse a record that would have to wrap."""
    original = Space.make

    def make(self: Space, sizes: Sequence[int] | Rows, *, may_store: bool = True) -> None:
        position, capacity = self._engine.state.head.position, self._engine.block.capacity
        if self._engine.need_of(sizes).end // capacity > position // capacity:
            raise WalFull("no space before the ring's end")
        original(self, sizes, may_store=may_store)

    return [Patch(Space, "make", make)]


def clean_flag_kept() -> list[Patch]:
    """Set the clean flag in the slots with which a writer begins, too."""
    original = Engine._write_slot

    def write_slot(self: Engine, state: State, flags: int = 0) -> None:
        original(self, state, flags if self.appends else SLOT_CLEAN)

    return [Patch(Engine, "_write_slot", write_slot)]


def poison_skipped() -> list[Patch]:
    """Report a failed barrier, and accept records again."""

    def fail(self: Access, error: OSError) -> PersistError:
        return PersistError(error.errno, "not poisoned", committed_seq=self._committed_seq)

    return [Patch(Access, "fail", fail)]


class _Late(bytes):
    """A payload that is read from its source again when it is stored."""

    source: Any

    def __radd__(self, header: bytes) -> bytes:
        return header + bytes(self.source)


def crc_over_source() -> list[Patch]:
    """Compute the checksum over the payload, and store the caller's buffer as it is afterwards."""
    original = shipped(wal_module, "as_payload")

    def as_payload(data: Any, block: Superblock) -> bytes:
        late = _Late(original(data, block))
        late.source = data
        return late

    return [Patch(wal_module, "as_payload", as_payload)]
