"""The writer's handle: policy, waiting, poison, and the calls that users make.

Invariants
----------
- Every call checks first that this process may use the handle at all (open, not forked, not poisoned) and that its
  thread is not already inside a call; only then does it wait for a lock.
- All of a call's records are in private memory, and there is room for them, before the first one is stored.
- An ``OSError`` from the medium is final: the handle is poisoned and every later call says so with the same errno.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, ParamSpec, TypeVar

import numpy as np

from pmwal.errors import ForkedWal, PersistError, ReentrantCall, WalClosed
from pmwal.format.payload import as_number, as_payload, check_kind, check_length
from pmwal.format.rows import as_rows
from pmwal.reading.arrays import ArrayReader, Source
from pmwal.reading.follow import follow
from pmwal.reading.walk import View, Walker, gone, resume
from pmwal.records import Bound, Record, RecoveryReport, WalStats
from pmwal.storage.lock import Ownership
from pmwal.writing.batch import Batch, Reservation, owned
from pmwal.writing.committer import Committer, commit_unless_gone
from pmwal.writing.engine import Engine, Need, State
from pmwal.writing.retained import Retained, RetainedRecord
from pmwal.writing.space import Space

P = ParamSpec("P")
R = TypeVar("R")


class Wal(ArrayReader):
    """A log opened for writing; ``pmwal.open`` makes one. Safe for threads; one writer per log.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     seq = wal.append(b"payload")
    ...     first, last = wal.extend([b"a", b"b"])
    ...     [record.data for record in wal]
    [b'payload', b'a', b'b']
    """

    def __init__(
        self,
        path: str,
        engine: Engine,
        ownership: Ownership,
        recovery: RecoveryReport,
        *,
        commit: str | float,
        on_full: str,
        timeout: float | None,
    ) -> None:
        self._path = path
        self._engine = engine
        self._retained = Retained(engine)
        self._space = Space(path, engine, self._retained, on_full=on_full, timeout=timeout)
        self._ownership = ownership
        self._recovery = recovery
        self._commits_each = commit == "each"
        self._poison: tuple[int | None, str] | None = None  # errno and message of the failure that ended it
        self._closed = False
        self._closing = False
        self._errors = 0
        self._committer: Committer | None = None
        if not isinstance(commit, str):
            commit_in_background = partial(commit_unless_gone, weakref.ref(self))
            self._committer = Committer(engine, commit, commit_in_background, f"pmwal-committer {path}")

    # -- storing

    def append(self, data: Any, *, kind: int = 0, commit: bool | None = None) -> int:
        """Append one record and return its sequence number.

        ``data``: any contiguous buffer. ``kind``: 0 to 65535, the application's. ``commit``: True returns when the record
        is durable, False at once (a later commit makes it so), None does what the handle was opened with.
        Raises ``RecordTooLarge``, ``WalFull``, ``PersistError``.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     wal.append(b"first"), wal.append(b"second", kind=2, commit=False), wal.commit()
        (1, 2, 2)
        """
        engine = self._usable()
        payloads = (as_payload(data, engine.block),)
        check_kind(kind)
        with engine.writing:
            _, last = self._store(payloads, (kind,))
        if self._commits_each if commit is None else commit:
            self._commit_through(engine, last)
        return last

    def extend(self, items: Iterable[Any], *, kind: int = 0) -> tuple[int, int]:
        """Append all items or none of them, with one commit; return the first and last number.

        For nothing it returns ``(next_seq, next_seq - 1)``. The items are taken before anything is stored, so an
        exception in the iterable leaves the log untouched. Raises as ``append`` does.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     wal.extend([b"a", b"b"]), wal.extend([])
        ((1, 2), (3, 2))
        """
        engine = self._usable()
        payloads = [as_payload(item, engine.block) for item in items]
        check_kind(kind)
        if not payloads:
            next_seq = engine.state.head.next_seq
            return next_seq, next_seq - 1
        engine = self._usable()
        with engine.writing:
            first, last = self._store(payloads, (kind,) * len(payloads))
        self._commit_by_policy(last)
        return first, last

    def extend_array(self, a: np.ndarray[Any, Any], *, kind: int = 0) -> tuple[int, int]:
        """Append each row of a numpy array as one record, all or none, with one commit; return the first and last number.

        ``a``: 2-D of any dtype, or 1-D of a structured one; the bytes are stored as they are, whatever their order. Nobody may
        change them meanwhile: a record could hold some of both. Raises as ``extend`` does, ``TypeError`` for a dtype of objects.

        >>> import numpy, pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     wal.extend_array(numpy.zeros((3, 8))), wal[3].data == bytes(64)
        ((1, 3), True)
        """
        engine = self._usable()
        rows = as_rows(a, engine.block)
        check_kind(kind)
        if not rows.records:
            return engine.state.head.next_seq, engine.state.head.next_seq - 1
        with engine.writing:
            self._refuse_fork()
            with engine.guard:
                self._make_room(partial(engine.need_of_rows, rows))
                first, last = self._persist(engine.store_rows, rows, kind)
                self._persist(self._retained.settle)
        self._commit_by_policy(last)
        return first, last

    def batch(self) -> Batch:
        """A context in which records are staged; all or none of them are stored when it ends, with one commit.

        An exception in its body discards them. It holds the writer: other threads wait, and so the numbers that
        ``append`` returns inside are final.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     with wal.batch() as batch:
        ...         numbers = batch.append(b"x"), batch.append(b"y")
        ...     numbers, batch.first, batch.last
        ((1, 2), 1, 2)
        """
        return Batch(self._usable(), self._usable, partial(self._store, promised=True), self._commit_by_policy)

    def reserve(self, n: int, *, kind: int = 0) -> Reservation:
        """A context that hands out ``n`` zeroed bytes to fill; they become one record when it ends, ``seq`` its number.

        An exception in its body discards them, and so does a slice or array of the view that is still alive at the
        end (``BufferError``). It holds the writer: other threads wait.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     reservation = wal.reserve(8)
        ...     with reservation as view:
        ...         view[:5] = b"hello"
        ...     wal[reservation.seq].data
        b'hello\\x00\\x00\\x00'
        """
        engine = self._usable()
        if n < 0:
            raise ValueError(f"cannot reserve {n} bytes")
        length = check_length(n, engine.block)
        return Reservation(engine, self._usable, self._store, self._commit_by_policy, length, check_kind(kind))

    # -- durability

    def commit(self) -> int:
        """Make everything appended so far durable; return the number through which it is.

        With nothing pending it lets the commit pointer catch up, so that recovery has nothing to search for.
        Raises ``PersistError``.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB", commit="manual") as wal:
        ...     seq = wal.append(b"fast")
        ...     wal.committed_seq, wal.commit()
        (0, 1)
        """
        engine = self._usable(storing=False)
        with engine.guard:
            pending = engine.state.head != engine.state.durable
            self._persist(engine.commit if pending else engine.catch_up)
            return engine.state.durable.next_seq - 1

    def wait_durable(self, seq: int, timeout: float | None = None) -> bool:
        """Wait until this number is durable, committing it if nobody else does; False after ``timeout`` seconds.

        A number that is not appended yet is waited for. Raises ``PersistError``.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB", commit="manual") as wal:
        ...     seq = wal.append(b"fast")
        ...     wal.wait_durable(seq), wal.wait_durable(seq + 1, timeout=0)
        (True, False)
        """
        engine = self._usable(storing=False)
        seq = as_number(seq)
        deadline = None if timeout is None else time.monotonic() + timeout
        with engine.guard:
            while engine.state.head.next_seq <= seq:
                self._wait_for_change(deadline)
                if deadline is not None and time.monotonic() >= deadline and engine.state.head.next_seq <= seq:
                    return False
        self._commit_through(engine, seq)
        return True

    def truncate(self, before: int) -> int:
        """Free the space of all records before this number, durably; return the new ``first_seq``.

        ``before`` is from ``first_seq`` (nothing happens) to ``next_seq`` (the log is empty then), else ``ValueError``.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     first, last = wal.extend([b"a", b"b", b"c"])
        ...     wal.truncate(before=last), len(wal)
        (3, 1)
        """
        engine = self._usable(storing=False)
        before = as_number(before)
        with self._retained.writer() as may_store, engine.guard:
            state = engine.state
            if not state.tail.next_seq <= before <= state.head.next_seq:
                raise ValueError(f"before={before} is outside {state.tail.next_seq} to {state.head.next_seq}")
            if before > state.tail.next_seq:
                at_end = before == state.head.next_seq
                position = state.head.position if at_end else self._persist(engine.find, before).position
                self._persist(self._retained.move_tail, Bound(position, before), may_store=may_store)
            return engine.state.tail.next_seq

    def rollback(self, after: int) -> int:
        """Discard all records after this number, durably and for good; return the new ``next_seq``.

        ``after`` is from ``first_seq - 1`` (the log is empty then) to ``next_seq - 1`` (nothing happens), else ``ValueError``.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     first, last = wal.extend([b"a", b"b", b"c"])
        ...     wal.rollback(after=first), wal.append(b"B")
        (2, 2)
        """
        engine = self._usable()
        after = as_number(after)
        with engine.writing, engine.guard:
            state = engine.state
            if not state.tail.next_seq - 1 <= after <= state.head.next_seq - 1:
                raise ValueError(f"after={after} is outside {state.tail.next_seq - 1} to {state.head.next_seq - 1}")
            if after < state.head.next_seq - 1:
                position = state.tail.position if after < state.tail.next_seq else self._persist(engine.find, after).end
                self._persist(self._retained.roll_back, Bound(position, after + 1))
            return engine.state.head.next_seq

    # -- reading

    def read(self, start: int | str | None = None, stop: int | None = None) -> Iterator[Record]:
        """The records from number ``start`` up to, not including, ``stop``; the end is fixed now.

        It shows what this handle has appended, durable or not. A ``start`` that is a ``Record.cursor`` means "after that
        record". Raises ``Overrun`` for a ``start`` before ``first_seq``, for a cursor whose record is not in the log any more
        (unless the next one is) or is another one now, and for records that are truncated, overwritten or rolled back under
        it; ``CorruptWal`` for damage; ``ValueError`` for text that is no cursor.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     first, last = wal.extend([b"a", b"b", b"c"])
        ...     [record.data for record in wal.read(start=2)]
        [b'b', b'c']
        """
        engine = self._usable(reading=True)
        return self._walk(engine, *self._bounds(engine, start, stop))

    def _bounds(self, engine: Engine, start: int | str | None, stop: int | None) -> tuple[View, int, int]:
        """What may be read now, the first number of it, and the one after the last."""
        view = engine.view if self._poison is None else engine.view._replace(end=engine.state.durable)
        first = self._number(start, view)
        end = view.end.next_seq if stop is None else min(as_number(stop), view.end.next_seq)
        if first < view.tail.next_seq:
            raise gone(first, view.tail)
        return view, first, end

    def _source(self, start: int | None, stop: int | None) -> Source:
        engine = self._usable(reading=True)
        view, first, end = self._bounds(engine, start, stop)

        def is_kept(seq: int) -> bool:
            return seq >= self._usable(reading=True).state.tail.next_seq

        def walk_on(at: Bound, stop: int) -> Iterator[Record]:
            return self._walk(engine, view, at.next_seq, stop, at)

        return Source(engine.block, engine.mapping, view, first, end, partial(self._locate, view), walk_on, is_kept)

    def _number(self, start: int | str | None, view: View) -> int:
        """With which record a read or a follow begins."""
        if start is None:
            return view.tail.next_seq
        return resume(start, view, self.read) if isinstance(start, str) else as_number(start)

    def follow(self, start: int | str | None = None, timeout: float | None = None) -> Iterator[Record]:
        """The durable records from number ``start`` on (the oldest when None), then each new one as soon as it is durable.

        It sleeps meanwhile, so it is for a thread of its own. It ends when the handle is closed, and after ``timeout`` seconds
        without a record. ``start`` may be a cursor. Raises as ``read`` does, and ``PersistError`` when the log has failed.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     first, last = wal.extend([b"a", b"b"])
        ...     [record.data for record in wal.follow(timeout=0)]
        [b'a', b'b']
        """
        engine = self._usable()
        return follow(engine.mapping, engine.seam, self._look, self._number(start, engine.view), timeout)

    def _look(self, first: int) -> Iterator[Record] | None:
        """What ``follow`` has to hand out now; None when the handle is closed."""
        self._refuse_fork()
        if self._closed or self._closing:
            return None
        self._refuse_poison()
        return self.read(first, self.committed_seq + 1)

    def _locate(self, view: View, seq: int) -> Bound:
        """Where the record with this number starts."""
        if seq == view.tail.next_seq:
            return view.tail
        try:
            return Bound(self._usable(reading=True).find(seq).position, seq)
        except OSError as error:
            raise self._fail(error) from error

    def _walk(self, engine: Engine, view: View, first: int, end: int, start: Bound | None = None) -> Iterator[Record]:
        if first < end:
            at = self._locate(view, first) if start is None else start
            try:
                for record in Walker(engine.block, self._load, engine.explain).walk(view, at, end):
                    self._usable(reading=True).check_kept(record.seq, view)
                    yield record
            except OSError as error:
                raise self._fail(error) from error

    def _load(self, offset: int, length: int) -> bytes:
        return self._usable(reading=True).mapping.load(offset, length)

    def __iter__(self) -> Iterator[Record]:
        return self.read()

    def __getitem__(self, seq: int) -> Record:
        if not isinstance(seq, int):
            raise TypeError(f"a log is indexed by sequence number, not {type(seq).__name__}; use read(start, stop)")
        if not self.first_seq <= seq < self.next_seq:
            raise IndexError(f"no record {seq}; the log holds {self.first_seq} to {self.next_seq - 1}")
        record = next(self.read(seq, seq + 1), None)
        if record is None:
            raise IndexError(f"no record {seq}: it was rolled back meanwhile")
        return record

    def __len__(self) -> int:
        return self.next_seq - self.first_seq

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
        """Everything up to this number is durable."""
        return self._state.durable.next_seq - 1

    # -- about the handle

    @property
    def recovery(self) -> RecoveryReport:
        """What this open found, kept and dropped."""
        return self._recovery

    @property
    def path(self) -> str:
        """The path it was opened with."""
        return self._path

    @property
    def capacity(self) -> int:
        """Size of the ring in bytes."""
        return self._engine.block.capacity

    @property
    def free(self) -> int:
        """Bytes of the ring that are free; a record takes 48 more than its payload, and padding."""
        state = self._state
        return self.capacity - (state.head.position - state.tail.position)

    @property
    def closed(self) -> bool:
        """Whether the handle was closed."""
        return self._closed

    def stats(self) -> WalStats:
        """Where the handle writes, and counters since it was opened.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     seq = wal.append(b"x")
        ...     wal.stats().commits
        1
        """
        engine, medium = self._engine, self._engine.mapping.medium
        return WalStats(
            engine=engine.name,
            medium=medium.kind,
            durability=medium.durability,
            filesystem=medium.filesystem,
            flush=medium.flush,
            ordering="pipelined" if engine.pipelined else "strict",
            capacity=self.capacity,
            used=self.capacity - self.free,
            appends=engine.appends,
            bytes=engine.stored_bytes,
            commits=engine.commits,
            barriers=engine.barriers,
            overwritten=self._space.overwritten,
            waits=self._space.waits,
            errors=self._errors,
            slots_written=engine.slots_written,
            epoch=engine.state.epoch,
            generation=engine.generation,
            alignment=engine.block.alignment,
            assumptions=medium.assumptions,
            dropped=self._space.dropped,
            commit_latency=engine.latency,
            recovery=self._recovery,
        )

    def close(self) -> None:
        """Commit what is pending, mark the log as cleanly closed, and give it to the next writer. Idempotent.

        In a forked child, and on a poisoned handle, it only lets go. A batch or a reservation of this thread that is still
        open is discarded. Raises ``PersistError`` when the last commit fails.
        """
        if self._closed:
            return
        if os.getpid() != self._ownership.pid:
            self._closed = True
            return
        self._refuse_reentry(storing=False)
        self._closing = True
        self._engine.halt()
        with self._engine.guard:
            self._engine.changed.notify_all()
        if self._committer is not None:
            self._committer.stop()
        with self._engine.writing, self._engine.guard:
            if self._closed:
                return
            try:
                if self._poison is None:
                    self._persist(self._retained.settle)
                    self._persist(self._engine.close)
            finally:
                self._let_go()

    def _let_go(self) -> None:
        self._closed = True
        self._engine.halt()
        if self._committer is not None:
            self._committer.release()
        try:
            with contextlib.suppress(OSError):
                self._engine.retire()
        finally:
            try:
                self._engine.mapping.close()
            finally:
                self._ownership.release()

    def __enter__(self) -> Wal:
        self._usable(reading=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        # A dropped handle is a process crash: nothing is committed, only the lock goes.
        if getattr(self, "_closed", True) or os.getpid() != self._ownership.pid:
            return
        try:
            warnings.warn(f"{self!r} was dropped without close()", ResourceWarning, source=self, stacklevel=2)
        finally:
            self._let_go()

    def __repr__(self) -> str:
        state = self._engine.state
        status = "closed" if self._closed else f"records {state.tail.next_seq} to {state.head.next_seq - 1}"
        return f"<pmwal.Wal {self._path!r} {status}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a pmwal.Wal cannot be sent to another process: its lock belongs to this one. "
            'Send the path and open it there, with mode="r" to read beside this writer.'
        )

    # -- inside

    @property
    def _state(self) -> State:
        self._refuse_fork()
        return self._engine.state

    def _refuse_fork(self) -> None:
        if os.getpid() != self._ownership.pid:
            raise ForkedWal(
                f"{self._path}: this handle belongs to the parent process; open a log of your own, "
                'or read this one with pmwal.open(path, "r")'
            )

    def _usable(self, *, storing: bool = True, reading: bool = False) -> Engine:
        """The engine, when this process and thread may use it now."""
        self._refuse_fork()
        if self._closed or (self._closing and not reading):
            raise WalClosed("this handle is closed; open the log again with pmwal.open()")
        if not reading:
            self._refuse_poison()
            self._refuse_reentry(storing)
        return self._engine

    def _refuse_poison(self) -> None:
        if self._poison is not None:
            number, message = self._poison
            raise PersistError(number, message, committed_seq=self.committed_seq)

    def _refuse_reentry(self, storing: bool) -> None:
        if owned(self._engine.guard) or (storing and owned(self._engine.writing)):
            raise ReentrantCall("this thread is already inside a call on this log; finish that one first")

    def _persist(self, action: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run what touches the medium; its ``OSError`` poisons the handle."""
        self._refuse_poison()  # another thread may have met it while this one waited
        if self._closed:
            raise WalClosed("this handle is closed; open the log again with pmwal.open()")
        try:
            return action(*args, **kwargs)
        except OSError as error:
            raise self._fail(error) from error

    def _fail(self, error: OSError) -> PersistError:
        """Poison the handle, once, and make the error that says so."""
        if self._poison is not None:
            return PersistError(*self._poison, committed_seq=self.committed_seq)
        self._engine.halt()
        self._errors += 1
        message = (
            f"{self._path}: {error.strerror}; records after {self.committed_seq} are not known to be durable. "
            "This handle is finished: open the log again to find what the medium holds"
        )
        self._poison = error.errno, message
        with self._engine.guard:
            self._engine.changed.notify_all()
        return PersistError(error.errno, message, committed_seq=self.committed_seq)

    def _commit_through(self, engine: Engine, seq: int) -> None:
        with engine.guard:
            if engine.state.durable.next_seq <= seq:
                self._persist(engine.commit)

    def _commit_by_policy(self, seq: int) -> None:
        if self._commits_each:
            self._commit_through(self._engine, seq)

    def _store(self, payloads: Sequence[bytes], kinds: Sequence[int], *, promised: bool = False) -> tuple[int, int]:
        """Make room and store. The caller holds ``writing``. ``promised``: what numbers they get was said before."""
        self._refuse_fork()
        engine = self._engine
        sizes = [len(payload) for payload in payloads]
        with engine.guard:
            self._make_room(partial(engine.need_of, sizes), may_store=not promised)
            numbers = self._persist(engine.store, payloads, kinds)
            self._persist(self._retained.settle)
            return numbers

    def _append_needing(self, needed: RetainedRecord, data: bytes, kind: int) -> int:
        """Append a record that needs a copy of another one in the log, which is stored with it when there is none."""
        engine = self._usable()
        check_length(len(data), engine.block)
        with engine.writing, engine.guard:
            payloads: list[bytes] = []
            while len(payloads) != (1 if needed.seq else 2):  # making room may free the copy, or store one
                payloads = [data] if needed.seq else [needed.payload, data]
                self._make_room(partial(engine.need_of, [len(payload) for payload in payloads]))
            next_seq = engine.state.head.next_seq
            needed.last_used = next_seq + 1  # not below what follows, if an interrupt comes between
            needed.first_used = needed.first_used or next_seq
            first, last = self._persist(engine.store, payloads, [needed.kind, kind][-len(payloads) :])
            needed.last_used = last
            if first < last:
                self._retained.stored(needed, first)
            self._persist(self._retained.settle)
        self._commit_by_policy(last)
        return last

    def _make_room(self, needed: Callable[[], Need], *, may_store: bool = True) -> None:
        self._persist(self._space.make, needed, self._wait_for_change, may_store=may_store)

    def _wait_for_change(self, deadline: float | None) -> None:
        """Wait for another thread to change the log. The caller holds ``guard`` once."""
        self._engine.wait_for_change(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if self._closing:
            raise WalClosed("this handle was closed while a call waited on it")
        self._refuse_poison()
