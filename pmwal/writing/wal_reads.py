"""What a writer's handle reads: its own log, including records that are not durable yet.

Invariants
----------
- The end of a read is fixed at the call. On a poisoned handle it is the end of what is durable.
- Each record is checked in a private copy, and once more for a rollback, before it is handed out.
- An iterator holds the handle, so the log stays open while it is in use. It holds the ring that it reads, too: it reads it to its
  end when the log has moved to another file, and there too each record is checked for a rollback before it is handed out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from pmwal.errors import Overrun
from pmwal.format.control import first_seqs, read_slots
from pmwal.format.layout import Header
from pmwal.format.payload import as_index, as_number, as_seconds
from pmwal.format.ring import Found
from pmwal.format.scan import scan_for
from pmwal.reading.arrays import ArrayReader, Source
from pmwal.reading.follow import follow
from pmwal.reading.place import raise_discarded
from pmwal.reading.selection import TRIES, Kinds, Time, selection
from pmwal.reading.walk import View, Walker, extent, gone, resized, resume
from pmwal.records import Bound, Record
from pmwal.writing.access import Access
from pmwal.writing.engine import Engine, Ring, State


class WalReads(ArrayReader):
    """The reading half of ``Wal``."""

    def __init__(self, engine: Engine, access: Access) -> None:
        self._engine = engine
        self._access = access

    def read(
        self,
        start: int | str | None = None,
        stop: int | None = None,
        *,
        since: Time | None = None,
        until: Time | None = None,
        kind: Kinds | None = None,
        exact: bool = False,
    ) -> Iterator[Record]:
        """The records from number ``start`` up to, not including, ``stop``; the end is fixed at the call.

        It includes records that are not durable yet. A ``start`` that is a ``Record.cursor`` means "after that record". Raises
        ``Overrun`` for a ``start`` before ``first_seq``, for a cursor whose record is no longer in the log (unless the next one is)
        or has been replaced, and for records that are rolled back during the read, or whose space is used again before they are
        loaded; until then a truncated one is still returned. ``CorruptWal`` for damage; ``ValueError`` for text that is no cursor.
        ``since``, ``until``, ``kind`` and ``exact`` select as in ``Reader.read``.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     first, last = wal.extend([b"a", b"b", b"c"])
        ...     [record.data for record in wal.read(start=2)]
        [b'b', b'c']
        """
        chosen = selection(since, until, kind, exact)
        engine = self._access.to_read()
        bounds = self._bounds(engine, start, stop)
        if chosen.everything:
            return self._walk(*bounds)
        for _ in range(TRIES if chosen.searches else 0):
            ring, view, first, end = bounds
            try:
                run = chosen.run(first, end, self._header, partial(self._walk, ring, view), engine.seam.now_ns())
            except Overrun as error:
                if start is not None or not error.missed:
                    raise
                bounds = self._bounds(engine, start, stop)  # the log no longer begins where it did
            else:
                bounds = ring, view, *run
                break
        return chosen.filtered(self._walk(*bounds))

    def follow(self, start: int | str | None = None, timeout: float | None = None) -> Iterator[Record]:
        """The durable records from number ``start`` on (the oldest when None), then each new one as soon as it is durable.

        It sleeps in between, so give it a thread of its own. It ends when the handle is closed, and after ``timeout`` seconds
        without a record. ``start`` may be a cursor. Raises what ``read`` raises, also ``Overrun`` if the last record that it handed
        out was rolled back, and ``PersistError`` when the log has failed.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     first, last = wal.extend([b"a", b"b"])
        ...     [record.data for record in wal.follow(timeout=0)]
        [b'a', b'b']
        """
        engine = self._access.to_store()
        timeout = as_seconds("timeout", timeout)
        return self._follow(engine, self._number(start, engine.view), timeout)

    def _follow(self, engine: Engine, first: int, timeout: float | None) -> Iterator[Record]:
        seen, next_seq, ring = None, first, engine.ring
        left, since = timeout, time.monotonic()

        def look(wanted: int) -> Iterator[Record] | None:
            nonlocal seen
            if not self._may_follow() or engine.ring is not ring:
                return None
            seen, records = self._read_on(wanted, self.committed_seq + 1, None if wanted == first else seen)
            return records

        while True:
            for record in follow(ring.mapping, engine.seam, look, next_seq, left):
                next_seq = record.seq + 1
                yield record
                left, since = timeout, time.monotonic()
            if engine.ring is ring:
                return
            ring = engine.ring  # which another live page belongs to
            left = None if timeout is None else max(0.0, since + timeout - time.monotonic())

    def __iter__(self) -> Iterator[Record]:
        return self.read()

    def __getitem__(self, seq: int) -> Record:
        """The record with this number. ``IndexError`` if the log does not hold it: 0 and negative numbers never exist."""
        seq = as_index(seq)
        if not self.first_seq <= seq < self.next_seq:
            raise IndexError(f"no record {seq}; {extent(self.first_seq, self.next_seq)}")
        record = next(self.read(seq, seq + 1), None)
        if record is None:
            raise IndexError(f"no record {seq}: it was rolled back meanwhile")
        return record

    def __len__(self) -> int:
        state = self._state  # once: between two looks, another thread may store and truncate
        return state.head.next_seq - state.tail.next_seq

    @property
    def first_seq(self) -> int:
        """Number of the oldest record, or of the next one when the log is empty."""
        return self._state.tail.next_seq

    @property
    def next_seq(self) -> int:
        """The number that the next record will have."""
        return self._state.head.next_seq

    @property
    def committed_seq(self) -> int:
        """The last durable number: everything up to it is durable."""
        return self._state.durable.next_seq - 1

    # -- inside

    @property
    def _state(self) -> State:
        self._access.refuse_fork()
        return self._engine.state

    def _bounds(self, engine: Engine, start: int | str | None, stop: int | None) -> tuple[Ring, View, int, int]:
        """The ring and the view to read, the first number to hand out, and the number after the last."""
        ring, view = engine.look()
        if self._access.poisoned:
            view = view._replace(end=engine.state.durable)
        first = self._number(start, view)
        end = view.end.next_seq if stop is None else min(as_number(stop), view.end.next_seq)
        if first < view.tail.next_seq:
            raise gone(first, view.tail)
        return ring, view, first, end

    def _number(self, start: int | str | None, view: View) -> int:
        """The number with which a read or a follow begins."""
        if start is None:
            return view.tail.next_seq
        return resume(start, view, self.read) if isinstance(start, str) else as_number(start)

    def _may_follow(self) -> bool:
        """Whether the handle may have records for ``follow``; it has none once it is closed."""
        self._access.refuse_fork()
        if self._access.closed or self._access.closing:
            return False
        self._access.refuse_poison()
        return True

    def _read_on(self, first: int, stop: int, seen: View | None) -> tuple[View, Iterator[Record]]:
        """The log by now, and its records from ``first`` up to, not including, ``stop``.

        ``seen``: the log as it was when record ``first - 1`` was handed out, None if it was not. ``Overrun`` if it has been rolled
        back since.
        """
        while True:
            before = self._access.to_read().view if seen is None else self._followed(first - 1, seen)
            records = self.read(first, stop)
            now = self._access.to_read().view
            if now.epoch == before.epoch:
                return now, records

    def _followed(self, seq: int, seen: View) -> View:
        """The log by now. ``Overrun`` if this record, handed out when the log was as ``seen``, has been rolled back since."""
        engine = self._access.to_read()
        ring, now = engine.look()
        if now.epoch != seen.epoch:
            if seq >= now.tail.next_seq:
                engine.check_kept(seq, seen)
            else:
                raise_discarded(seq, seen, now, first_seqs(read_slots(ring.mapping.load, ring.block, scan_for(ring.block))))
        return now

    def _locate(self, ring: Ring, view: View, seq: int) -> Bound:
        """Where the record with this number starts in this ring."""
        if seq == view.tail.next_seq:
            return view.tail
        engine = self._access.to_read()
        try:
            found_in, found = engine.locate(seq)
            if found_in is not ring:
                walker = Walker(ring.block, partial(self._load, ring), engine.explain, scan=scan_for(ring.block))
                found = self._found_before(walker, view, seq)
        except OSError as error:
            raise self._access.fail(error) from error
        return Bound(found.position, seq)

    @staticmethod
    def _found_before(walker: Walker, view: View, seq: int) -> Found:
        """The record in the file that the log had before it was resized."""
        try:
            return walker.locate(view, view.tail, seq)
        except Overrun:  # which counts from the tail: the log may have the record, in its file by now
            raise resized(seq) from None

    def _header(self, seq: int) -> Header:
        """The header of the record with this number."""
        return self._find(seq).header

    def _find(self, seq: int) -> Found:
        try:
            return self._access.to_read().find(seq)
        except OSError as error:
            raise self._access.fail(error) from error

    def _walk(self, ring: Ring, view: View, first: int, end: int, start: Bound | None = None) -> Iterator[Record]:
        if first < end:
            at = self._locate(ring, view, first) if start is None else start
            records = Walker(ring.block, partial(self._load, ring), self._engine.explain).walk(view, at, end)
            while (record := self._next(records, view)) is not None:
                yield record  # outside of ``_next``: what the caller throws in here says nothing about the medium

    def _next(self, records: Iterator[Record], view: View) -> Record | None:
        """The next record of a walk over this view; None after the last."""
        try:
            record = next(records, None)
            if record is not None:
                self._access.to_read().check_kept(record.seq, view)
            return record
        except OSError as error:
            raise self._access.fail(error) from error

    def _load(self, ring: Ring, offset: int, length: int) -> bytes:
        self._access.to_read()
        return ring.mapping.load(offset, length)

    def _source(self, start: int | None, stop: int | None) -> Source:
        engine = self._access.to_read()
        ring, view, first, end = self._bounds(engine, start, stop)

        def is_kept(seq: int) -> bool:
            return seq >= self._access.to_read().state.tail.next_seq

        def walk_on(at: Bound, stop: int) -> Iterator[Record]:
            return self._walk(ring, view, at.next_seq, stop, at)

        return Source(ring.block, ring.mapping, view, first, end, partial(self._locate, ring, view), walk_on, is_kept)
