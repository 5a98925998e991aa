"""Assertions at run time: the invariants of this package, checked in the package's own tests and free everywhere else.

They are on when the environment variable ``PMWAL_CHECK`` is 1 at import. ``checked`` then returns, for a class of this package, a
subclass that checks before and after each step; otherwise it returns the class itself, so nothing is looked up while a log is used.
What ``Engine`` shares with ``NativeEngine`` is checked for both; what C does alone is checked in C.

A failed check is a bug in pmwal. tests/test_checks.py has a mutant for each sentence in this module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pmwal.format.layout import (
    HEADER,
    LINE,
    POINTER_LAG_MAX,
    SLOT_CLEAN,
    Header,
    Superblock,
    decode_header,
    decode_slot,
    record_size,
    slot_index,
    slot_offset,
)
from pmwal.format.rows import Rows
from pmwal.records import Bound
from pmwal.storage.checks import CHECKING, check
from pmwal.writing.batch import Batch
from pmwal.writing.engine import Engine, State
from pmwal.writing.retained import Retained
from pmwal.writing.space import Space

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

_on = CHECKING


def checked(plain: type[T]) -> type[T]:
    """This class, with its checks when they are on."""
    return cast(type[T], _with_checks(cast(Any, plain))) if _on else plain


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Logs opened in this block have none of the checks of this module, so that what else notices a bug can show that it does.

    The checks of storage and of the C engine stay.
    """
    global _on  # noqa: PLW0603
    before, _on = _on, False
    try:
        yield
    finally:
        _on = before


def _ordered(*bounds: Bound) -> bool:
    return all(a.position <= b.position and a.next_seq <= b.next_seq for a, b in pairwise(bounds))


def _hold_state(state: State, block: Superblock) -> None:
    check(_ordered(state.tail, state.durable, state.head), "tail <= durable <= head, in position and number", state)
    check(state.head.position - state.tail.position <= block.capacity, "the log is not longer than the ring", state)
    check(all(bound.position % block.alignment == 0 for bound in state[:3]), "bounds are aligned", state)


def _hold_growth(old: State, new: State) -> None:
    check(_ordered(old.tail, new.tail), "the tail only moves forwards", old, new)
    check(new.epoch >= old.epoch, "epochs only grow", old, new)
    if new.epoch == old.epoch:
        check(_ordered(old.head, new.head), "the head only moves back with a new epoch", old, new)
        check(_ordered(old.durable, new.durable), "what is durable stays durable within an epoch", old, new)


class EngineChecks(Engine):
    """Checks of what both engines do in Python: slots, epochs, the tail, rollbacks."""

    def _begin(self, state: State, slot: Any) -> None:
        _hold_state(state, self.block)
        self._barrier_end = state.durable  # the last barrier over records covered what was stored before here
        self._slot_generation = slot.generation  # of the last slot that was seen written
        self._slots: tuple[State | None, State | None] = (None, None)  # what the two newest ones say
        super()._begin(state, slot)
        _hold_index(self.index.entries, state)

    def commit(self) -> None:
        head = self.state.head
        super().commit()
        check(_ordered(head, self.state.durable), "what was stored before a commit is durable after it", head, self.state)
        lag = self.state.durable.position - self.pointer
        check(
            0 <= lag <= (POINTER_LAG_MAX if self.pipelined else 0),
            "the pointer lags by POINTER_LAG_MAX at most",
            lag,
        )

    def start_epoch(self, end: Bound) -> None:
        old = self.state
        check(_ordered(end, old.head), "a new epoch begins at the head or before it", end, old)
        super().start_epoch(end)
        new = self.state
        check(new.epoch > old.epoch, "a new epoch is greater than the last one", old, new)
        check(
            (new.head, new.durable, new.epoch_first_seq) == (end, end, end.next_seq), "a new epoch begins where the log ends", new
        )

    def move_tail(self, tail: Bound) -> None:
        check(
            _ordered(self.state.tail, tail, self.state.head), "a new tail lies between the old one and the head", tail, self.state
        )
        super().move_tail(tail)
        check(self.state.tail == tail, "the tail is where it was moved to", tail, self.state)
        _hold_index(self.index.entries, self.state)

    def roll_back(self, end: Bound) -> None:
        super().roll_back(end)
        check(self.state.head == end, "the log ends where it was rolled back to", end, self.state)
        _hold_index(self.index.entries, self.state)

    def _flush_records(self) -> None:
        head = self.state.head
        super()._flush_records()
        self._barrier_end = head

    def _write_slot(self, state: State, flags: int = 0) -> None:
        generation = self.generation
        check(generation >= self._slot_generation, "generations never go back", generation, self._slot_generation)
        check(_ordered(state.tail, state.durable), "the tail of a slot is not past its commit", state)
        check(self._is_durable(state.durable), "a slot names only what a completed barrier made durable", state, self._barrier_end)
        check(not flags & SLOT_CLEAN or state.durable == state.head, "a clean end names all that is stored", state)
        super()._write_slot(state, flags)
        check(self.generation == generation + 1, "each slot's generation is one more", generation, self.generation)
        index = slot_index(self.generation, self.block.control_pages)
        slot = decode_slot(self.mapping.load(slot_offset(index), LINE), self.block.uuid, index)
        says = None if slot is None else (slot.generation, slot.epoch, slot.epoch_first_seq, *slot[3:7])
        (commit, next_seq), (tail, first_seq) = state.durable, state.tail
        due = (self.generation, state.epoch, state.epoch_first_seq, commit, next_seq - 1, tail, first_seq)
        check(says == due, "the slot on the medium says what the state says", says, due)
        self._slot_generation = self.generation
        self._slots = (self._slots[1], state)

    def _become(self, state: State) -> None:
        old = self.state
        _hold_state(state, self.block)
        _hold_growth(old, state)
        check(self._is_durable(state.durable), "durable is only what a completed barrier covered", state, self._barrier_end)
        if _carried(state) != _carried(old):
            twice = all(slot is not None and _carried(slot) == _carried(state) for slot in self._slots)
            check(twice, "a tail or an epoch takes effect when the two newest slots carry it", state, self._slots)
        if state.epoch != old.epoch:
            self._barrier_end = state.durable
        super()._become(state)

    def _is_durable(self, bound: Bound) -> bool:
        return bound.position <= max(self.state.durable.position, self._barrier_end.position)


def _carried(state: State) -> tuple[Bound, int, int]:
    return state.tail, state.epoch, state.epoch_first_seq


def _hold_index(entries: Sequence[Bound], state: State) -> None:
    check(all(a.position < b.position and a.next_seq < b.next_seq for a, b in pairwise(entries)), "index entries ascend", entries)
    if entries:
        within = entries[0].next_seq >= state.tail.next_seq and entries[-1].next_seq < state.head.next_seq
        check(within, "the index names records of the log only", entries, state)


class PythonEngineChecks(EngineChecks):
    """Checks of what only the engine in Python does in Python: the state itself, and storing records."""

    _becoming = False

    @property
    def state(self) -> State:
        """The bounds of the log and its epoch."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        old = self.__dict__.get("_state")
        if old is not None and not self._becoming:
            check(state._replace(head=old.head) == old, "outside _become only the head changes", old, state)
            _hold_growth(old, state)
        _hold_state(state, self.block)
        self._state = state

    def _become(self, state: State) -> None:
        self._becoming = True
        try:
            super()._become(state)
        finally:
            self._becoming = False

    def store(self, payloads: Sequence[bytes], kinds: Sequence[int]) -> tuple[int, int]:
        first, last = super().store(payloads, kinds)
        check(
            self.state.head.next_seq == last + 1 == first + len(payloads), "the numbers of a batch lead up to the head", first, last
        )
        _hold_index(self.index.entries[-2:], self.state)
        return first, last

    def _store_record(self, position: int, header: Header, payload: bytes) -> None:
        block, state = self.block, self.state
        size = record_size(len(payload), block.alignment)
        check(position % block.alignment == 0, "records are aligned", position)
        check(position % block.capacity + size <= block.capacity, "a record does not run over the ring's end", position, size)
        free = state.head.position <= position and position + size - state.tail.position <= block.capacity
        check(free, "nothing is stored over the records between tail and head", position, size, state)
        super()._store_record(position, header, payload)
        stored = decode_header(self.mapping.load(block.ring_offset + position % block.capacity, HEADER))
        check(
            stored.durable <= state.durable.position, "a record says durable of what was so before its store began", stored, state
        )
        check(stored.batch_index < stored.batch_count, "a place in a batch is below the batch's count", stored)
        check(stored.epoch == state.epoch, "a record has the epoch of the state", stored, state)
        due = state.head.next_seq + stored.batch_index
        check(stored.seq == due, "numbers follow one another", stored, due)


class SpaceChecks(Space):
    """Checks of the space that was found."""

    def make(self, sizes: Sequence[int] | Rows, *, may_store: bool = True) -> None:
        super().make(sizes, may_store=may_store)
        engine = self._engine
        free = engine.block.capacity - engine.headroom - (engine.need_of(sizes).end - engine.state.tail.position)
        check(free >= 0, "what was made room for fits, and the headroom stays free", free)


class RetainedChecks(Retained):
    """Checks of where the copies of retained records are."""

    def move_tail(self, tail: Bound, *, may_store: bool) -> None:
        needed = [record for record in self.records.values() if record.seq and record.last_used >= tail.next_seq]
        super().move_tail(tail, may_store=may_store)
        check(all(record.seq or record.owed for record in needed), "a copy that the tail passes is stored again, or owed", tail)
        self._hold_copies()

    def roll_back(self, end: Bound) -> None:
        needed = [record for record in self.records.values() if record.seq and 0 < record.first_used < end.next_seq]
        super().roll_back(end)
        check(all(record.seq or record.owed for record in needed), "a copy that a rollback discards is stored again, or owed", end)
        self._hold_copies()

    def settle(self) -> None:
        super().settle()
        self._hold_copies()

    def _add(self, record: Any) -> None:
        super()._add(record)
        self._hold_copies()

    def _hold_copies(self) -> None:
        engine, state = self._engine, self._engine.state
        sizes = [record_size(len(payload), engine.block.alignment) for payload in self.records]
        check(engine.headroom >= sum(sizes), "the headroom has space for one copy of each retained record", engine.headroom, sizes)
        for record in self.records.values():
            there = state.tail.next_seq <= record.seq < state.head.next_seq
            check(not record.seq or there, "the copy of a retained record lies between tail and head", record.seq, state)
            check(not (record.seq and record.owed), "a copy is owed only while there is none", record.seq)


class BatchChecks(Batch):
    """Checks of the numbers that a batch tells."""

    def append(self, data: Buffer, *, kind: int = 0) -> int:
        number = super().append(data, kind=kind)
        due = self._write_path.engine.state.head.next_seq + len(self._payloads) - 1
        check(number == due, "a batch tells the numbers that its records will have", number, due)
        check(len(self._kinds) == len(self._payloads), "a staged record has one kind", self._kinds)
        return number


_CHECKS: dict[type, type] = {Engine: EngineChecks, Space: SpaceChecks, Retained: RetainedChecks, Batch: BatchChecks}


@cache
def _with_checks(plain: Any) -> Any:
    checks = PythonEngineChecks if plain is Engine else next(_CHECKS[base] for base in plain.__mro__ if base in _CHECKS)
    named = {"__doc__": plain.__doc__, "__module__": plain.__module__, "__qualname__": plain.__qualname__}
    return type(plain.__name__, (checks, plain), named)
