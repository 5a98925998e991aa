"""The native engine and its handle: the same log, with what touches the medium in C (pmwal/native/*.c).

Invariants
----------
- The rules (epochs, tails, stray records, changes carried by two slots) are inherited from ``Engine``, and so are their checks at
  run time. C stores records, waits for barriers and writes the slots that commits need; given the same calls, both engines
  leave the same bytes.
- C keeps the state. On its own it changes it only in ``append``, ``extend``, calls of events and commits, and only while the
  Python side holds neither lock and no thread waits for a change.
- C releases the address of the mapping before it is closed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from pmwal.format.layout import Slot, uuid_crc
from pmwal.format.rows import Rows
from pmwal.latency import LatencyHistogram
from pmwal.native import _native
from pmwal.native.choice import STREAM
from pmwal.reading.walk import View, Walker
from pmwal.records import Bound, Record
from pmwal.storage.seam import SYSTEM
from pmwal.writing.engine import Engine, Ring, State
from pmwal.writing.wal import Wal
from pmwal.writing.write_path import WritePath

_BARRIERS = {"none": _native.BARRIER_NONE, "msync": _native.BARRIER_MSYNC}
_UNKNOWN = (1 << 64) - 1  # no record's position: look the number up first


class NativeEngine(Engine):
    """``Engine`` with its medium in C."""

    name = "native"
    lock_type = _native.Lock
    index: _native.Index  # type: ignore[assignment]

    def _new_index(self, entries: Sequence[Bound]) -> Any:
        return _native.Index(entries, self.block.capacity, Bound)

    def _begin(self, state: State, slot: Slot) -> None:
        mapping, block = self.mapping, self.block
        self.core = _native.Core(
            mapping=mapping.map,
            fd=mapping.fd,
            capacity=block.capacity,
            alignment=block.alignment,
            payload_max=block.payload_max,
            ring_offset=block.ring_offset,
            control_pages=block.control_pages,
            uuid_crc=uuid_crc(block.uuid),
            barrier=_BARRIERS.get(mapping.medium.flush, _native.BARRIER_LINES),
            streams=mapping.medium.flush == STREAM,
            pipelined=self.pipelined,
            on_disk=mapping.on_disk,
            synced_writes=mapping.medium.synced_writes,
            cached_writes=mapping.medium.cached_writes,
            seam=None if self.seam is SYSTEM else self.seam,
            writing=self.writing,
            guard=self.guard,
            index=self.index,
            writer=self._live.writer_line(state.head),
            state=_flat(state),
            generation=slot.generation,
            pointer=slot.commit_position,
            timing_step=self.timing_step,
        )
        mapping.before_close(self.core.detach)

    def _continue(self, moving: Engine) -> None:
        assert isinstance(moving, NativeEngine)
        self.core.continue_from(moving.core)

    def let_go(self) -> None:
        """As ``Engine`` says. Iterators in C leave each record to Python from now on."""
        self.core.detach()

    @property
    def state(self) -> State:  # type: ignore[override]
        """The bounds of the log and its epoch."""
        return _state(self.core)

    @property
    def failure(self) -> OSError | None:  # type: ignore[override]
        """The failed barrier, or None."""
        failed = self.core.failed
        return OSError(failed, os.strerror(failed)) if failed else None

    @property
    def generation(self) -> int:  # type: ignore[override]
        """Generation of the newest slot."""
        return self.core.generation

    @property
    def pointer(self) -> int:  # type: ignore[override]
        """The position that the newest slot names."""
        return self.core.pointer

    @property
    def appends(self) -> int:  # type: ignore[override]
        """Records stored."""
        return self.core.appends

    @property
    def stored_bytes(self) -> int:  # type: ignore[override]
        """Bytes of payload stored."""
        return self.core.stored_bytes

    @property
    def commits(self) -> int:  # type: ignore[override]
        """Commits that had something to make durable."""
        return self.core.commits

    @property
    def slots_written(self) -> int:  # type: ignore[override]
        """Slots stored and made durable."""
        return self.core.slots_written

    @property
    def headroom(self) -> int:
        """Bytes of the ring that the handle leaves free."""
        return self.core.headroom

    @headroom.setter
    def headroom(self, size: int) -> None:
        self.core.headroom = size

    @property
    def barriers(self) -> int:
        """Barriers since the log was opened."""
        return self.mapping.barriers + self.core.barriers

    @property
    def latency(self) -> LatencyHistogram:
        """How long commits took."""
        return LatencyHistogram(*self.core.latency, self.timing_step)

    @property
    def _stray_records(self) -> bool:
        return self.core.stray_records

    @_stray_records.setter
    def _stray_records(self, stray: bool) -> None:
        self.core.stray_records = stray

    @property
    def _stray_slot(self) -> bool:
        return self.core.stray_slot

    @_stray_slot.setter
    def _stray_slot(self, stray: bool) -> None:
        self.core.stray_slot = stray

    def halt(self) -> None:
        """Close the fast path: the handle in Python refuses every call."""
        self.core.halt()

    @property
    def upkeep_due(self) -> bool:  # type: ignore[override]
        """As ``Engine`` says."""
        return self.core.upkeep_due

    def note_upkeep(self) -> None:
        """As ``Engine`` does. The fast path compares the time stamps of its records, so the wall clock measures."""
        self.core.upkeep_due = False
        self.core.upkept_ns = time.time_ns()

    def yield_at_barriers(self) -> None:
        """As ``Engine`` does."""
        self.core.yields = True

    def wait_for_change(self, timeout: float | None) -> None:
        """Wait as ``Engine`` does; meanwhile calls take the slow path, which alone notifies waiting threads."""
        self.core.watched += 1
        try:
            super().wait_for_change(timeout)
        finally:
            self.core.watched -= 1

    def store(self, payloads: Sequence[bytes], kinds: Sequence[int]) -> tuple[int, int]:
        """Store one batch at the head and publish it; its first and last number."""
        self._settle()
        first = self.state.head.next_seq
        self.core.store(payloads, kinds, False)
        self.changed.notify_all()
        return first, first + len(payloads) - 1

    def store_beside(self, payloads: Sequence[bytes], kinds: Sequence[int]) -> tuple[int, int] | None:
        """Store one batch as the fast path does, for a thread that holds ``writing`` only; None if that cannot be done now."""
        first = self.state.head.next_seq
        return (first, first + len(payloads) - 1) if self.core.store(payloads, kinds, True) else None

    def store_rows_beside(self, rows: Rows, kind: int) -> tuple[int, int] | None:
        """The same for the rows of an array."""
        first = self.state.head.next_seq
        stored = self.core.store_rows(rows.data, rows.records, rows.length, kind, True)
        return (first, first + rows.records - 1) if stored else None

    def store_rows(self, rows: Rows, kind: int) -> tuple[int, int]:
        """Store the rows of an array as one batch, in one call."""
        self._settle()
        first = self.state.head.next_seq
        self.core.store_rows(rows.data, rows.records, rows.length, kind, False)
        self.changed.notify_all()
        return first, first + rows.records - 1

    def commit(self) -> None:
        """Make all that is published durable."""
        self._settle()
        self._check_generations()
        self.core.commit()
        self.changed.notify_all()

    def _flush_records(self) -> None:
        self.core.flush()

    def _write_slot(self, state: State, flags: int = 0) -> None:
        self._check_generations()
        self.core.write_slot(_flat(state), flags)

    def _become(self, state: State) -> None:
        self.core.become(_flat(state))
        self.changed.notify_all()


def _flat(state: State) -> tuple[int, int, int, int, int, int, int, int]:
    return (*state.tail, *state.head, *state.durable, state.epoch, state.epoch_first_seq)


def _state(core: _native.Core) -> State:
    state = core.state
    return State(Bound(*state[0:2]), Bound(*state[2:4]), Bound(*state[4:6]), *state[6:8])


class NativeWritePath(WritePath):
    """``WritePath`` whose commits other threads may share: in C, without ``guard``."""

    engine: NativeEngine

    def _store_beside(self, payloads: Sequence[bytes], kinds: Sequence[int]) -> tuple[int, int] | None:
        try:
            return self.engine.store_beside(payloads, kinds)
        except OSError as error:
            raise self.access.fail(error) from error

    def _store_rows_beside(self, rows: Rows, kind: int) -> tuple[int, int] | None:
        try:
            return self.engine.store_rows_beside(rows, kind)
        except OSError as error:
            raise self.access.fail(error) from error

    def commit_through(self, seq: int) -> None:
        """Make this number durable; C leaves it to Python when the handle must refuse, or a lock is held."""
        try:
            done = self.engine.core.commit_through(max(seq, 0))
        except OSError as error:
            raise self.access.fail(error) from error
        if not done:
            super().commit_through(seq)


class NativeWal(_native.Handle, Wal):
    """``Wal`` with a fast path through ``append``, ``extend``, ``commit`` and ``read``.

    ``Handle`` does the ordinary cases in C and leaves all others to the method of ``Wal``, named with ``_slow`` in front.
    """

    _slow_append = Wal.append
    _slow_extend = Wal.extend
    _slow_commit = Wal.commit
    _write_path_type = NativeWritePath
    _engine: NativeEngine

    def __init__(self, path: str, engine: NativeEngine, *args: Any, **options: Any) -> None:
        super().__init__(path, engine, *args, **options)
        self._set_core(engine.core, self._write_path.commits_each)

    def _slow_commit_through(self, seq: int) -> None:
        WritePath.commit_through(self._write_path, seq)

    def _moved(self) -> None:
        self._set_core(self._engine.core, self._write_path.commits_each)

    def _walk(self, ring: Ring, view: View, first: int, end: int, start: Bound | None = None) -> Iterator[Record]:
        core = self._engine.core
        if ring is not self._engine.ring:  # asked last: then the core is that of the ring
            return super()._walk(ring, view, first, end, start)
        if first >= end:
            return iter(())
        if start is None and first == view.tail.next_seq:
            start = view.tail
        position = _UNKNOWN if start is None else start.position
        step = partial(self._step, ring, view)
        return _native.RecordIterator(core, Record, step, Bound(position, first), view.rules(end), view.end.next_seq)

    def _step(self, ring: Ring, view: View, position: int, seq: int) -> tuple[Record, int]:
        """What C leaves to Python: the record with this number, and where it ends."""
        engine = self._access.to_read()
        try:
            engine.check_kept(min(seq, view.end.next_seq - 1), view)
            walker = Walker(ring.block, partial(self._load, ring), engine.explain)
            if seq == view.end.next_seq:
                raise walker.explain_end(Bound(position, seq), view)
            return walker.read_one(view, self._locate(ring, view, seq) if position == _UNKNOWN else Bound(position, seq))
        except OSError as error:
            raise self._access.fail(error) from error
