"""Records that are prepared before they are stored: batches and reservations.

Invariants
----------
Those marked [c] are checked at run time in test builds: see ``pmwal/writing/checks.py``.

- [c] The thread inside the block holds ``writing``, so the numbers that it was told are final. The lock is released however the
  block ends, unless a signal handler raises on entry to ``__exit__``, which Python code cannot guard: then close the handle.
- Nothing reaches the ring before the block has ended without an exception, so an exception leaves nothing to undo.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from pmwal.format.payload import as_payload, check_kind
from pmwal.writing.access import take
from pmwal.writing.write_path import WritePath

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Batch:
    """Records staged for one commit; made by ``Wal.batch``. ``first`` and ``last`` are their numbers.

    The end of the block raises what ``Wal.append`` raises; then none of them is stored.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     with wal.batch() as batch:
    ...         number = batch.append(b"x")
    ...     batch.first, batch.last, len(batch)
    (1, 1, 1)
    """

    def __init__(self, wal: object, write_path: WritePath) -> None:
        self._wal = wal  # a handle that is dropped releases the log: not while a batch of it may be open
        self._write_path = write_path
        self._payloads: list[bytes] = []
        self._kinds: list[int] = []
        self._open = self._used = False
        self._first: int | None = None

    def __enter__(self) -> Batch:
        engine = self._write_path.access.to_store()
        if self._used:
            raise ValueError("a batch is used once; make another")
        take(engine.writing)
        self._open = self._used = True  # no interrupt can arrive between taking the lock and here
        return self

    def append(self, data: Buffer, *, kind: int = 0) -> int:
        """Stage a record and return the number that it will have. Raises ``RecordTooLarge``.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal, wal.batch() as batch:
        ...     batch.append(b"x"), batch.append(b"y")
        (1, 2)
        """
        if not self._open:
            raise ValueError("the batch is not open; append inside its with block")
        self._write_path.access.refuse_fork()
        payload = as_payload(data, self._write_path.engine.block)
        self._kinds.append(check_kind(kind))
        self._payloads.append(payload)
        return self.last

    @property
    def first(self) -> int:
        """Number of its first record. ``ValueError`` before the block begins."""
        if self._first is None:
            if not self._open:
                raise ValueError("the batch has no numbers before its with block begins")
            self._first = self._write_path.engine.state.head.next_seq
        return self._first

    @property
    def last(self) -> int:
        """Number of its last record so far; ``first - 1`` while it is empty."""
        return self.first + len(self._payloads) - 1

    def __len__(self) -> int:
        return len(self._payloads)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._first = self.first  # while nobody else can store
            self._open = False
            if kind is None and self._payloads:
                self._write_path.store(self._payloads, self._kinds, promised=True)
        finally:
            self._write_path.engine.writing.release()
        if kind is None and self._payloads:
            self._write_path.commit_by_policy(self.last)


class Reservation:
    """Bytes for one record, to be filled in place; made by ``Wal.reserve``. ``seq`` is its number once it is stored.

    The end of the block raises what ``Wal.append`` raises, or ``BufferError`` when a slice of the view is still alive.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     reservation = wal.reserve(2)
    ...     with reservation as view:
    ...         view[:] = b"ok"
    ...     reservation.seq, wal[reservation.seq].data
    (1, b'ok')
    """

    def __init__(self, wal: object, write_path: WritePath, length: int, kind: int) -> None:
        self._wal = wal  # as in ``Batch``
        self._write_path = write_path
        self._kind = kind
        self._buffer = bytearray(length)
        self._view: memoryview | None = None
        self._seq: int | None = None

    @property
    def seq(self) -> int:
        """Number of the record. ``ValueError`` before it is stored."""
        if self._seq is None:
            raise ValueError("the reservation has no number: its with block has not ended, or ended with an exception")
        return self._seq

    def __enter__(self) -> memoryview:
        if self._view is not None:
            raise ValueError("a reservation is used once; make another")
        view = memoryview(self._buffer)
        take(self._write_path.access.to_store().writing)
        self._view = view  # as in ``Batch.__enter__``
        return view

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                _, self._seq = self._write_path.store((self._sealed(),), (self._kind,))
        finally:
            self._write_path.engine.writing.release()
        if kind is None:
            self._write_path.commit_by_policy(self.seq)

    def _sealed(self) -> bytes:
        """The bytes, once nobody can change them."""
        assert self._view is not None
        try:
            self._view.release()
            self._buffer.append(0)  # a bytearray refuses to grow while any slice or array of it is alive
        except BufferError:
            raise BufferError(
                "a slice or array of the reserved view is still alive, so the record was not stored; "
                "delete it before the with block ends"
            ) from None
        self._buffer.pop()
        return bytes(self._buffer)
