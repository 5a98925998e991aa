"""The writer's handle: the calls that users make. ``wal_reads`` has those that read.

Invariants
----------
- Every call asks ``Access`` for the engine before it waits for a lock, and goes through ``Access`` again, with the lock held,
  before it touches the medium.
- Arguments are checked, and copied into private memory, before any lock is taken.
- Closing or dropping a handle releases the lock on the log last, when nothing can store through this handle any more.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
import warnings
import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from pmwal.errors import PersistError, PmwalError
from pmwal.format.payload import as_capacity, as_integer, as_number, as_payload, as_seconds, check_items, check_kind, check_length
from pmwal.format.rows import as_rows
from pmwal.records import Bound, CopyReport, RecoveryReport, WalStats
from pmwal.storage.lock import WriterLock
from pmwal.storage.mapping import Mapping
from pmwal.writing.access import Access
from pmwal.writing.batch import Batch, Reservation
from pmwal.writing.checks import checked
from pmwal.writing.committer import Committer
from pmwal.writing.consumed import Consumed
from pmwal.writing.engine import Engine, Ring
from pmwal.writing.resizing import Resizing
from pmwal.writing.retained import Retained
from pmwal.writing.space import Space
from pmwal.writing.upkeep import Upkeep
from pmwal.writing.wal_reads import WalReads
from pmwal.writing.write_path import WritePath

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Buffer


class Wal(WalReads):
    """A log opened for writing; made by ``pmwal.open``. Thread-safe. A log has one writer at a time.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     seq = wal.append(b"payload")
    ...     first, last = wal.extend([b"a", b"b"])
    ...     [record.data for record in wal]
    [b'payload', b'a', b'b']
    """

    _write_path_type = WritePath

    def __init__(
        self,
        path: str,
        engine: Engine,
        writer_lock: WriterLock,
        recovery: RecoveryReport,
        *,
        commit: str | float,
        on_full: str,
        timeout: float | None,
        on_unlinked: str,
        consumers: tuple[str, ...] = (),
    ) -> None:
        self._let_go_done = False
        self._committer: Committer | None = None
        self._resizing = threading.RLock()
        self._left: list[weakref.finalize[[Mapping], Ring]] = []  # unmap the files that the log had, each once nothing reads it
        self._path = path
        self._writer_lock = writer_lock
        self._recovery = recovery
        self._upkeep = Upkeep(path, engine, on_unlinked=on_unlinked)
        super().__init__(engine, Access(path, engine, writer_lock, self._upkeep))
        self._batch_type = checked(Batch)
        self._retained = checked(Retained)(engine)
        self._consumed = Consumed(path, engine, consumers)
        self._space = checked(Space)(path, engine, self._access, self._retained, self._consumed, on_full=on_full, timeout=timeout)
        self._write_path = self._write_path_type(engine, self._access, self._space, self._retained, commits_each=commit == "each")
        if not isinstance(commit, str):
            try:
                self._committer = Committer(engine, commit, self, f"pmwal-committer {path}")
            except BaseException:
                self.close()
                raise

    # -- storing

    def append(self, data: Buffer, *, kind: int = 0, commit: bool | None = None) -> int:
        """Append one record and return its sequence number.

        ``data`` is any contiguous buffer, but no text and no Python objects; ``kind`` is a number from 0 to 65535 for the
        application. With ``commit=True`` it returns when the record is durable, with False at once (a later commit makes it
        durable), with None as the log was opened to.
        Raises ``RecordTooLarge``, ``WalFull``, ``PersistError``.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     wal.append(b"first"), wal.append(b"second", kind=2, commit=False), wal.commit()
        (1, 2, 2)
        """
        engine = self._access.to_store()
        payload = as_payload(data, engine.block)
        kind = check_kind(kind)
        with engine.writing:
            _, seq = self._write_path.store((payload,), (kind,))
        if self._write_path.commits_each if commit is None else commit:
            self._write_path.commit_through(seq)
        return seq

    def extend(self, items: Iterable[Buffer], *, kind: int = 0) -> tuple[int, int]:
        """Append all items or none of them, with one commit; return the first and last number.

        For no items it returns ``(next_seq, next_seq - 1)``. All items are taken before anything is stored, so an exception in the
        iterable leaves the log untouched. Raises what ``append`` raises.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     wal.extend([b"a", b"b"]), wal.extend([])
        ((1, 2), (3, 2))
        """
        engine = self._access.to_store()
        check_items(items)
        payloads = [as_payload(item, engine.block) for item in items]
        kind = check_kind(kind)
        if not payloads:
            next_seq = engine.state.head.next_seq
            return next_seq, next_seq - 1
        engine = self._access.to_store()  # the iterable may have run any code
        with engine.writing:
            first, last = self._write_path.store(payloads, (kind,) * len(payloads))
        self._write_path.commit_by_policy(last)
        return first, last

    def extend_array(self, a: np.ndarray[Any, Any], *, kind: int = 0) -> tuple[int, int]:
        """Append each row of a numpy array as one record, all or none, with one commit; return the first and last number.

        ``a`` is 2-D of any dtype, or 1-D of a structured one; its bytes are stored as they are, in their byte order. No thread may
        change them during the call: a record could get old and new bytes. Raises what ``extend`` raises, and ``TypeError`` for a
        dtype of objects.

        >>> import numpy, pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     wal.extend_array(numpy.zeros((3, 8))), wal[3].data == bytes(64)
        ((1, 3), True)
        """
        engine = self._access.to_store()
        rows = as_rows(a, engine.block)
        kind = check_kind(kind)
        if not rows.records:
            return engine.state.head.next_seq, engine.state.head.next_seq - 1
        with engine.writing:
            first, last = self._write_path.store_rows(rows, kind)
        self._write_path.commit_by_policy(last)
        return first, last

    def batch(self) -> Batch:
        """A context in which records are staged; all or none of them are stored when it ends, with one commit.

        An exception in its body discards them. Other threads that append wait until it ends, so the numbers that ``append`` returns
        inside are final.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     with wal.batch() as batch:
        ...         numbers = batch.append(b"x"), batch.append(b"y")
        ...     numbers, batch.first, batch.last
        ((1, 2), 1, 2)
        """
        self._access.to_store()
        return self._batch_type(self, self._write_path)

    def reserve(self, n: int, *, kind: int = 0) -> Reservation:
        """A context that gives you ``n`` zeroed bytes to fill; they become one record when it ends, with the number ``seq``.

        An exception in its body discards them, and so does a slice or array of the view that is still alive at the end
        (``BufferError``). Other threads that append wait until it ends.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     reservation = wal.reserve(8)
        ...     with reservation as view:
        ...         view[:5] = b"hello"
        ...     wal[reservation.seq].data
        b'hello\\x00\\x00\\x00'
        """
        engine = self._access.to_store()
        n = as_integer("n", n)
        if n < 0:
            raise ValueError(f"cannot reserve {n} bytes")
        return Reservation(self, self._write_path, check_length(n, engine.block), check_kind(kind))

    # -- durability

    def commit(self) -> int:
        """Make everything appended so far durable; return the last durable number.

        With nothing pending it lets the commit pointer catch up, so that recovery has nothing to search for.
        Raises ``PersistError``.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB", commit="manual") as wal:
        ...     seq = wal.append(b"fast")
        ...     wal.committed_seq, wal.commit()
        (0, 1)
        """
        engine = self._access.to_commit()
        with engine.guard, self._access:
            if engine.state.head != engine.state.durable:
                engine.commit()
            else:
                engine.catch_up()
            return engine.state.durable.next_seq - 1

    def wait_durable(self, seq: int, timeout: float | None = None) -> bool:
        """Wait until this number is durable, and commit it if no other thread does; False after ``timeout`` seconds.

        It waits for a number that is not appended yet, too. Raises ``PersistError``.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB", commit="manual") as wal:
        ...     seq = wal.append(b"fast")
        ...     wal.wait_durable(seq), wal.wait_durable(seq + 1, timeout=0)
        (True, False)
        """
        engine = self._access.to_commit()
        seq = as_number(seq)
        timeout = as_seconds("timeout", timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        with engine.guard:
            while engine.state.head.next_seq <= seq:
                self._access.wait_for_change(deadline)
                if deadline is not None and time.monotonic() >= deadline and engine.state.head.next_seq <= seq:
                    return False
        self._write_path.commit_through(seq)
        return True

    def truncate(self, before: int | None = None, *, consumed: bool = False) -> int:
        """Free the space of all records before this number, durably; return the new ``first_seq``.

        ``before`` is from ``first_seq`` (nothing changes) to ``next_seq`` (empties the log), else ``ValueError``. With ``consumed``
        only what all named consumers have acknowledged is freed, before this number if one is given: see docs/guide-consumers.md.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     first, last = wal.extend([b"a", b"b", b"c"])
        ...     wal.truncate(before=last), len(wal)
        (3, 1)
        """
        engine = self._access.to_commit()
        if before is None and not consumed:
            raise TypeError("truncate() needs before=NUMBER, consumed=True, or both")
        number = None if before is None else as_number(before)
        while True:
            limit = self._consumed.limit() if consumed else None  # without a lock: it syncs positions
            with self._retained.writer() as may_store, engine.guard:
                state = engine.state
                if number is not None and not state.tail.next_seq <= number <= state.head.next_seq:
                    raise ValueError(f"before={number} is outside {state.tail.next_seq} to {state.head.next_seq}")
                if limit is not None and limit.epoch != state.epoch:  # a rollback came between
                    continue
                to = min(
                    state.head.next_seq if number is None else number, state.head.next_seq if limit is None else limit.next_seq
                )
                if to > state.tail.next_seq:
                    with self._access:
                        self._retained.move_tail(engine.bound(to), may_store=may_store)
                return engine.state.tail.next_seq

    def rollback(self, after: int) -> int:
        """Discard all records after this number, durably and for good; return the new ``next_seq``.

        ``after`` is from ``first_seq - 1`` (empties the log) to ``next_seq - 1`` (nothing changes), else ``ValueError``.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     first, last = wal.extend([b"a", b"b", b"c"])
        ...     wal.rollback(after=first), wal.append(b"B")
        (2, 2)
        """
        engine = self._access.to_store()
        after = as_number(after)
        with engine.writing, engine.guard:
            state = engine.state
            if not state.tail.next_seq - 1 <= after <= state.head.next_seq - 1:
                raise ValueError(f"after={after} is outside {state.tail.next_seq - 1} to {state.head.next_seq - 1}")
            if after < state.head.next_seq - 1:
                with self._access:
                    position = state.tail.position if after < state.tail.next_seq else engine.find(after).end
                    self._retained.roll_back(Bound(position, after + 1))
            return engine.state.head.next_seq

    def resize(self, size: int | str) -> CopyReport:
        """Give the log a ring of another size, larger or smaller, in a new file that takes the place of the old one.

        Records keep their numbers, kinds and times, and batches that have begun theirs. Other threads append and commit meanwhile.
        They wait at the end, while the last records are copied and the new file is synced and gets the name. Iterators continue,
        and so does ``Reader.follow`` in other processes. Until the new file has the name, a crash or an error leaves the old one.

        Raises ``ValueError`` if the records do not fit, with the least size; ``OSError`` if the log has several hard links or no
        name, or there is no room; ``PersistError``. Then the log is as it was, unless the name could not be made durable: that
        ends the handle.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     seq = wal.append(b"payload")
        ...     wal.resize("1MiB").capacity, wal.capacity, wal.append(b"next")
        (1048576, 1048576, 2)
        """
        capacity = as_capacity(size)
        self._access.refuse_reentry(self._resizing)
        engine = self._access.to_commit()
        path = self._upkeep.path
        if path is None:
            raise OSError(
                errno.ENOENT, "the log was opened without a name, which a new file could take; open it by its path", self._path
            )
        with self._resizing:
            return Resizing(path, engine, self._access, capacity).run(self._move)

    def _move(self, engine: Engine, lock: WriterLock) -> None:
        """Continue with the file of this engine, which has the log's name. The caller holds ``guard``."""
        old_lock, mapping = self._writer_lock, self._engine.mapping
        self._left = [left for left in self._left if left.alive]
        self._left.append(weakref.finalize(self._engine.ring, _unmap, mapping))
        before = self._engine.move_to(engine)
        self._moved()
        self._writer_lock = lock
        self._upkeep.moved()
        with contextlib.suppress(OSError, PmwalError):  # the log is in the new file already, whatever becomes of the old one
            before.close()
            before.retire()
        before.let_go()
        old_lock.release()
        self._engine.changed.notify_all()

    def _moved(self) -> None:
        """The engine has another file. A handle with a fast path past the engine continues there."""

    # -- about the handle

    @property
    def recovery(self) -> RecoveryReport:
        """What this open found, kept and dropped."""
        return self._recovery

    @property
    def path(self) -> str:
        """The path that the log was opened with."""
        return self._path

    @property
    def uuid(self) -> str:
        """The log's identity, in hexadecimal. Keep it from those who supply payloads: see docs/durability.md."""
        return self._engine.block.uuid.hex()

    @property
    def label(self) -> str | None:
        """The name that the log was given when it was created; None if it has none."""
        return self._engine.block.label

    @property
    def capacity(self) -> int:
        """Size of the ring in bytes."""
        return self._engine.block.capacity

    @property
    def free(self) -> int:
        """Free bytes of the ring. A record takes its payload, 48 bytes more, and padding."""
        return self._room()[1]

    def _room(self) -> tuple[int, int]:
        """The capacity, and how much of it is free."""
        while True:
            ring, state = self._engine.ring, self._state
            if ring is self._engine.ring:
                return ring.block.capacity, ring.block.capacity - (state.head.position - state.tail.position)

    @property
    def closed(self) -> bool:
        """Whether the handle was closed."""
        return self._access.closed

    def stats(self) -> WalStats:
        """Where the log lies and how it is written, and counters since it was opened.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     seq = wal.append(b"x")
        ...     wal.stats().commits
        1
        """
        engine, medium = self._engine, self._engine.mapping.medium
        capacity, free = self._room()
        return WalStats(
            engine=engine.name,
            medium=medium.kind,
            durability=medium.durability,
            filesystem=medium.filesystem,
            flush=medium.flush,
            ordering="pipelined" if engine.pipelined else "strict",
            capacity=capacity,
            used=capacity - free,
            appends=engine.appends,
            bytes=engine.stored_bytes,
            commits=engine.commits,
            barriers=engine.barriers,
            overwritten=self._space.overwritten,
            waits=self._space.waits,
            errors=self._access.errors,
            slots_written=engine.slots_written,
            epoch=engine.state.epoch,
            generation=engine.generation,
            alignment=engine.block.alignment,
            assumptions=medium.assumptions,
            dropped=self._space.dropped,
            commit_latency=engine.latency,
            recovery=self._recovery,
            unlinked=not self._access.closed and self._upkeep.unlinked,
        )

    def close(self) -> None:
        """Commit what is pending, mark the log as cleanly closed, and release it for the next writer. Idempotent.

        In a forked child it does nothing to the log, and on a poisoned handle it only releases it. A batch or a reservation of this
        thread that is still open is discarded. Raises ``PersistError`` when the last commit fails, and ``WalUnlinked`` if the
        handle was opened to and no call has raised it yet; the log is released in any case. After an interrupt, call it again.
        """
        access = self._access
        if self._let_go_done:
            return
        if access.forked:
            access.closed = self._let_go_done = True
            return
        access.refuse_reentry()
        access.closing = True
        self._engine.halt()
        with self._engine.guard:
            self._engine.changed.notify_all()
        if self._committer is not None:
            self._committer.stop()
        with self._engine.writing, self._engine.guard:
            if self._let_go_done:
                return
            lost = self._upkeep.lost()
            try:
                if not access.poisoned and not access.closed:
                    with access:
                        self._retained.settle()
                        self._engine.close()
            finally:
                access.closed = True  # before the call, at whose entry an interrupt may come
                self._let_go()
        self._upkeep.tell(lost)

    def _let_go(self) -> None:
        """Give up everything. An interrupt may end it at any step, so each step may be repeated; ``_let_go_done`` is set last."""
        self._access.closed = True
        self._engine.halt()
        if self._committer is not None:
            self._committer.release()
        try:
            if not self._engine.mapping.unmapped:
                with contextlib.suppress(OSError):
                    self._engine.retire()
                self._upkeep.touch()
        finally:
            try:
                for left in self._left:
                    left()
                self._engine.mapping.close()
            finally:
                self._writer_lock.release()
        self._let_go_done = True

    def __enter__(self) -> Wal:
        self._access.to_read()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        # A dropped handle is like a process crash: nothing is committed, only the lock is released.
        access = getattr(self, "_access", None)
        if access is None or self._let_go_done or access.forked:
            return
        try:
            if not access.closed:
                warnings.warn(f"{self!r} was dropped without close()", ResourceWarning, source=self, stacklevel=2)
        finally:
            self._let_go()

    def __repr__(self) -> str:
        state = self._engine.state
        status = "closed" if self._access.closed else f"records {state.tail.next_seq} to {state.head.next_seq - 1}"
        return f"<pmwal.Wal {self._path!r} {status}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a pmwal.Wal cannot be sent to another process: its lock belongs to this one. "
            'Send the path and open it there, with mode="r" to read beside this writer.'
        )

    def _fail(self, error: OSError) -> PersistError:
        """``Access.fail``, under the name that the native handle calls it by."""
        return self._access.fail(error)


def _unmap(mapping: Mapping) -> None:
    """Unmap a file that the log had, when the last reader of its ring has gone: a finalizer."""
    while mapping.fd >= 0:
        with contextlib.suppress(KeyboardInterrupt):  # which nobody would get from here
            mapping.close()
