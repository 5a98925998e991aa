"""What to do when the ring is full: raise, wait for a truncate, overwrite the oldest records, or free those that are consumed.

Invariants
----------
Those marked [c] are checked at run time in test builds: see ``pmwal/writing/checks.py``.

- [c] The engine's ``headroom`` stays free: it is for copies of retained records (see ``pmwal/writing/retained.py``).
- Space that was found stays free until ``guard`` is released: nobody else stores, and the tail only moves forwards.
- [c] The space that a call needs is computed again whenever the log has changed: a copy may have been stored at the head. Lengths
  are checked again, too: the caller did so before it had ``guard``, and the log may have moved to a smaller ring since.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pmwal.errors import RecordTooLarge, WalFull
from pmwal.format.payload import check_length
from pmwal.format.rows import Rows
from pmwal.writing.access import Access
from pmwal.writing.consumed import Consumed
from pmwal.writing.engine import Engine, Need
from pmwal.writing.retained import Retained

PAUSE = 0.01
"""Seconds between two looks at the positions of consumers."""


class Space:
    """Makes room as ``on_full`` says, and counts what that took. The caller holds ``writing`` and ``guard``."""

    def __init__(
        self,
        path: str,
        engine: Engine,
        access: Access,
        retained: Retained,
        consumed: Consumed,
        *,
        on_full: str,
        timeout: float | None,
    ) -> None:
        self.overwritten = self.dropped = self.waits = 0  # records overwritten; records refused; calls that waited
        self._path = path
        self._engine = engine
        self._access = access
        self._retained = retained
        self._consumed = consumed
        self._on_full = on_full
        self._timeout = timeout

    @property
    def overwrites(self) -> bool:
        """Whether the oldest records make room."""
        return self._on_full == "overwrite"

    def make(self, sizes: Sequence[int] | Rows, *, may_store: bool = True) -> None:
        """Return when payloads of these sizes fit. ``may_store``: copies of retained records may be stored meanwhile.

        ``RecordTooLarge`` when they never will, ``WalFull`` as the policy says, ``OSError`` from the medium.
        """
        need = self._engine.need_of(sizes)
        try:
            self._check(need, sizes)
            if self._fits(need):
                return
            self.waits += self._on_full == "wait"
            waited = False
            deadline = None if self._timeout is None else time.monotonic() + self._timeout
            while not self._fits(need):
                if self.overwrites:
                    self._overwrite(need, may_store=may_store)
                elif self._on_full == "raise":
                    raise WalFull(self._refusal(need))
                elif self._on_full == "consumed":
                    waits = not self._free_consumed(deadline, may_store=may_store)
                    self.waits += waits and not waited
                    waited |= waits
                elif deadline is not None and time.monotonic() >= deadline:
                    raise WalFull(f"{self._path}: still full after {self._timeout} seconds; truncate faster")
                else:
                    self._access.wait_for_change(deadline)
                need = self._engine.need_of(sizes)
                self._check(need, sizes)
        except WalFull:
            self.dropped += need.records
            raise

    def _check(self, need: Need, sizes: Sequence[int] | Rows) -> None:
        """Raise for records that would not fit into an empty log either."""
        check_length(sizes.length if isinstance(sizes, Rows) else max(sizes), self._engine.block)
        if need.stored_bytes > self._size:
            raise RecordTooLarge(
                f"{need.records} records of {need.payload_bytes} bytes together cannot fit into a ring of "
                f"{self._engine.block.capacity} bytes{self._headroom}"
            )
        if need.end - self._engine.state.head.position > self._size:  # only a batch of large records: see ``payload_max``
            raise WalFull(
                f"{self._path}: {need.records} records of {need.payload_bytes} bytes leave too large a gap at the ring's end "
                f"to fit now, even if the log were empty{self._headroom}; use smaller batches, or a larger ring"
            )
        self._engine.check_limits(need)

    def _fits(self, need: Need) -> bool:
        return need.end - self._engine.state.tail.position <= self._size

    def _overwrite(self, need: Need, *, may_store: bool) -> None:
        engine = self._engine
        tail = engine.free_ahead(need.end + engine.headroom)
        overwritten = tail.next_seq - engine.state.tail.next_seq
        self._retained.move_tail(tail, may_store=may_store)
        self.overwritten += overwritten

    def _free_consumed(self, deadline: float | None, *, may_store: bool) -> bool:
        """Free what all consumers have acknowledged; if that is nothing, wait a little: none tells a writer that it has moved."""
        limit = self._consumed.limit()
        if limit.next_seq > self._engine.state.tail.next_seq:
            self._retained.move_tail(self._engine.bound(limit.next_seq), may_store=may_store)
            return True
        if deadline is not None and time.monotonic() >= deadline:
            raise self._consumed.refusal(limit, self._timeout)
        pause = time.monotonic() + PAUSE
        self._access.wait_for_change(pause if deadline is None else min(pause, deadline))
        return False

    def _refusal(self, need: Need) -> str:
        head, capacity = self._engine.state.head.position, self._engine.block.capacity
        free = capacity - (head - self._engine.state.tail.position)
        what = "the record needs" if need.records == 1 else f"the {need.records} records of this batch need"
        return (
            f"{self._path}: {free} of {capacity} bytes are free{self._headroom}, {what} {need.end - head}; "
            'truncate(before=...) what you have processed, or open with on_full="wait" or "overwrite"'
        )

    @property
    def _size(self) -> int:
        """Bytes of the ring that records may fill."""
        return self._engine.block.capacity - self._engine.headroom

    @property
    def _headroom(self) -> str:
        headroom = self._engine.headroom
        return f", {headroom} of them kept for {self._retained.called}" if headroom else ""
