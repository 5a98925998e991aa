"""Retained records: appended again before the tail passes their last copy, while other records depend on them.

Invariants
----------
Those marked [c] are checked at run time in test builds: see ``pmwal/writing/checks.py``.

- [c] ``seq`` of a retained record is the number of its newest copy between tail and head, or 0. It changes under ``guard`` only,
  and is reset before the copy goes, so a thread that finds it set and stores before it releases ``guard`` stores after a copy.
- ``last_used`` is never below the number of the newest record that depends on it, so a record is dropped only when none does.
- [c] The engine reserves ``headroom`` bytes of the ring: there is always room for one copy of each, even in a full log.
- [c] Copies are stored and durable before the tail moves, unless a batch has been told the numbers after the head. Then they are
  ``owed``: the thread that holds ``writing`` stores them right after its batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pmwal.errors import WalFull
from pmwal.format.layout import record_size
from pmwal.native import native
from pmwal.records import Bound
from pmwal.writing.access import owned, take
from pmwal.writing.engine import Engine


class _PlainRetained:
    __slots__ = ("last_used", "seq")

    def __init__(self) -> None:
        self.seq = self.last_used = 0


if TYPE_CHECKING or native is None:  # noqa: SIM108  (a type checker takes no conditional expression for a base)
    _RetainedBase = _PlainRetained
else:
    _RetainedBase = native.Retained  # the same, readable from C


class RetainedRecord(_RetainedBase):
    """One retained record, and which records depend on it."""

    __slots__ = ("first_used", "kind", "owed", "payload")

    def __init__(self, kind: int, payload: bytes) -> None:
        super().__init__()
        self.kind = kind
        self.payload = payload
        self.first_used = 0  # no record before this number depends on it; 0 when none does
        self.owed = False  # its copy is gone, or about to go, and records still depend on it


class Retained:
    """The retained records of a log, by payload."""

    def __init__(self, engine: Engine) -> None:
        self.records: dict[bytes, RetainedRecord] = {}
        self.adopted = False  # whether the log was searched for what it retained before it was opened
        self.called = "retained records"  # in messages
        self._engine = engine

    def adopt(self, records: Iterable[RetainedRecord], called: str) -> None:
        """Retain what the log contained when it was opened, as far as there is room. The caller holds both locks."""
        self.called = called
        for record in records:
            with contextlib.suppress(WalFull):
                self._add(record)
        self.adopted = True

    def get(self, kind: int, payload: bytes) -> RetainedRecord:
        """The record with this payload, retained from now on. The caller holds ``guard``."""
        record = self.records.get(payload)
        if record is None:
            record = RetainedRecord(kind, payload)
            self._add(record)
        return record

    def _add(self, record: RetainedRecord) -> None:
        """Retain one more, and reserve space for a copy of each."""
        block = self._engine.block
        sizes = [record_size(len(payload), block.alignment) for payload in (*self.records, record.payload)]
        headroom = sum(sizes) + max(sizes)  # and a gap at the ring's end, which is smaller than the copy that leaves it
        if headroom > block.capacity // 4:
            raise WalFull(
                f"{len(sizes)} {self.called} with {sum(map(len, self.records)) + len(record.payload)} bytes are too many "
                f"for a ring of {block.capacity} bytes; use fewer, or create a larger log"
            )
        self.records[record.payload] = record
        self._engine.headroom = headroom

    @contextlib.contextmanager
    def writer(self) -> Iterator[bool]:
        """Hold ``writing`` if copies may be needed and no thread holds it; whether copies may be stored now.

        It never waits: the thread that holds ``writing`` may itself be waiting for this truncate.
        """
        writing = self._engine.writing
        free = bool(self.records) and not owned(writing) and take(writing, blocking=False)
        try:
            yield free
        finally:
            if free:
                writing.release()

    def move_tail(self, tail: Bound, *, may_store: bool) -> None:
        """``Engine.move_tail``, with copies of what it would pass. The caller holds ``guard``, and ``writing`` if ``may_store``."""
        for record in self.records.values():
            if 0 < record.seq < tail.next_seq:
                self._lose(record, needed=record.last_used >= tail.next_seq)
        if may_store:
            self.settle()
        self._engine.move_tail(tail)
        if may_store:
            self.settle()

    def roll_back(self, end: Bound) -> None:
        """``Engine.roll_back``, with copies of what it discards and older records depend on. The caller holds both locks."""
        for record in self.records.values():
            record.last_used = min(record.last_used, end.next_seq - 1)
            if record.seq >= end.next_seq:
                self._lose(record, needed=0 < record.first_used < end.next_seq)
        self._engine.roll_back(end)
        self.settle()

    @property
    def owes(self) -> bool:
        """Whether copies are to be stored."""
        return any(record.owed for record in self.records.values())

    def settle(self) -> None:
        """Store the copies that are owed, durably, if there is room. The caller holds ``writing`` and ``guard``."""
        engine = self._engine
        owed = [record for record in self.records.values() if record.owed]
        if not owed:
            return
        need = engine.need_of([len(record.payload) for record in owed])
        if need.end - engine.state.tail.position > engine.block.capacity:
            return
        engine.check_limits(need)
        first, _ = engine.store([record.payload for record in owed], [record.kind for record in owed])
        for seq, record in enumerate(owed, first):
            self.stored(record, seq)
        engine.commit()

    def stored(self, record: RetainedRecord, seq: int) -> None:
        """Note a copy with this number."""
        record.seq, record.owed = seq, False
        record.first_used = record.first_used or seq

    def _lose(self, record: RetainedRecord, *, needed: bool) -> None:
        record.seq, record.owed = 0, needed
        if not needed:
            record.first_used = 0
