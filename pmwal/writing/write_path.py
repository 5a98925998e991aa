"""The write path of a handle: make room, store, settle what the log owes, commit.

Invariants
----------
- All of a call's records are in private memory, and there is room for them, before the first one is stored.
- ``guard`` is held from the moment there is room until the records are stored. Where there is room already, and another thread
  holds it for a barrier only, the records are stored without it: see ``_store_beside``.
"""

from __future__ import annotations

from collections.abc import Sequence

from pmwal.format.payload import check_length
from pmwal.format.rows import Rows
from pmwal.writing.access import Access
from pmwal.writing.engine import Engine
from pmwal.writing.retained import Retained, RetainedRecord
from pmwal.writing.space import Space


class WritePath:
    """Stores records for ``Wal``, ``Batch``, ``Reservation`` and events, and commits as the handle was opened to."""

    def __init__(self, engine: Engine, access: Access, space: Space, retained: Retained, *, commits_each: bool) -> None:
        self.engine = engine
        self.access = access
        self.space = space
        self.retained = retained
        self.commits_each = commits_each

    def store(self, payloads: Sequence[bytes], kinds: Sequence[int], *, promised: bool = False) -> tuple[int, int]:
        """Make room for one batch and store it; its first and last number. The caller holds ``writing``.

        ``promised``: the caller has told these numbers already, so no copy of a retained record may take one of them.
        """
        self.access.refuse_fork()
        numbers = self._store_beside(payloads, kinds)
        if numbers is not None:
            self._settle_owed()
            return numbers
        with self.engine.guard, self.access:
            self.space.make([len(payload) for payload in payloads], may_store=not promised)
            numbers = self.engine.store(payloads, kinds)
            self.retained.settle()
            return numbers

    def store_rows(self, rows: Rows, kind: int) -> tuple[int, int]:
        """The same for the rows of an array. The caller holds ``writing``."""
        self.access.refuse_fork()
        numbers = self._store_rows_beside(rows, kind)
        if numbers is not None:
            self._settle_owed()
            return numbers
        with self.engine.guard, self.access:
            self.space.make(rows)
            numbers = self.engine.store_rows(rows, kind)
            self.retained.settle()
            return numbers

    def _store_beside(self, payloads: Sequence[bytes], kinds: Sequence[int]) -> tuple[int, int] | None:
        """Store without ``guard``, where the engine lets others store during a barrier; None if that cannot be done now.

        The caller holds ``writing``, so the others that wait for it would wait for the barrier too, one after another.
        """
        return None

    def _store_rows_beside(self, rows: Rows, kind: int) -> tuple[int, int] | None:
        """The same for the rows of an array."""
        return None

    def _settle_owed(self) -> None:
        """Store the copies that a truncate owes: it left them to the thread that holds ``writing``."""
        if self.retained.owes:
            with self.engine.guard, self.access:
                self.retained.settle()

    def append_needing(self, needed: RetainedRecord, data: bytes, kind: int) -> int:
        """Append a record that needs a copy of a retained one in the log, which is stored with it when there is none."""
        engine = self.access.to_store()
        check_length(len(data), engine.block)
        with engine.writing:
            last = self._store_needing(needed, data, kind)
        self.commit_by_policy(last)
        return last

    def _store_needing(self, needed: RetainedRecord, data: bytes, kind: int) -> int:
        if needed.seq:
            before = needed.last_used
            needed.last_used = self.engine.state.head.next_seq  # before it is stored: a truncate meanwhile then owes the copy
            if self._store_beside([data], [kind]):
                self._settle_owed()
                return needed.last_used
            needed.last_used = before
        with self.engine.guard, self.access:
            payloads: list[bytes] = []
            while len(payloads) != (1 if needed.seq else 2):  # making room may free the copy, or store one
                payloads = [data] if needed.seq else [needed.payload, data]
                self.space.make([len(payload) for payload in payloads])
            next_seq = self.engine.state.head.next_seq
            needed.last_used = next_seq + 1  # not too low, should an interrupt come before the number is known
            needed.first_used = needed.first_used or next_seq
            first, last = self.engine.store(payloads, [needed.kind, kind][-len(payloads) :])
            needed.last_used = last
            if first < last:
                self.retained.stored(needed, first)
            self.retained.settle()
        return last

    def commit_by_policy(self, seq: int) -> None:
        """Make this number durable if every call commits."""
        if self.commits_each:
            self.commit_through(seq)

    def commit_through(self, seq: int) -> None:
        """Make this number durable, unless another thread has done it."""
        with self.engine.guard:
            if self.engine.state.durable.next_seq <= seq:
                with self.access:
                    self.engine.commit()
