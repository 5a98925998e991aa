"""A log in an event loop: tasks append, and tasks that wait for the disk share its barriers.

Invariants
----------
- The loop's thread waits for no barrier of records. Where a barrier is a system call, one thread of the log runs it, and appends
  continue meanwhile (with the native engine); where it is a fence, or nothing, a commit is part of the append and needs no thread.
- Long records and batches are stored by that thread, too. While it has anything to do that holds the locks of the log, all other
  stores and commits queue up for it, in their order, because the loop would wait for those locks.
- A waiting task learns when its record is durable, or why it is not: from the barrier that begins after its append, from a failure,
  or from ``close``, which commits. A barrier wakes the loop once, for all the tasks that it concerns.
- Cancelling a task undoes nothing: what it appended stays in the log and becomes durable with the next barrier.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from pmwal.errors import WalClosed, WalFull
from pmwal.format.layout import HEADER
from pmwal.format.payload import as_number, as_seconds, check_items
from pmwal.opening import open_with
from pmwal.opening.options import FullPolicy, Mode, Options, Ordering, UnlinkedPolicy
from pmwal.reading.selection import Kinds, Time
from pmwal.records import CopyReport, Record, RecoveryReport, WalStats
from pmwal.storage.medium import MediumName
from pmwal.writing.internals import (
    commit_through,
    first_number,
    not_consumed,
    read_on,
    refuse_failed,
    refuse_links,
    yield_at_barriers,
)
from pmwal.writing.space import PAUSE
from pmwal.writing.wal import Wal

if TYPE_CHECKING:
    from typing_extensions import Buffer

TURN = 256  # records that ``follow`` hands out before other tasks have a turn
_LONG = 64 * 1024  # bytes that the loop's thread copies and sums itself

T = TypeVar("T")


def open(
    path: str | os.PathLike[str],
    mode: Mode = "a",
    *,
    size: int | str | None = None,
    align: int | None = None,
    medium: MediumName = "auto",
    ordering: Ordering = "auto",
    on_full: FullPolicy = "raise",
    timeout: float | None = None,
    on_unlinked: UnlinkedPolicy = "warn",
    file_mode: int | str = 0o600,
    label: str | None = None,
    consumers: Iterable[str] = (),
) -> Opening:
    """Open a log to write to it from the tasks of the running event loop: ``async with`` it, or ``await`` it.

    The options are those of ``pmwal.open``. There is no ``commit``: ``append`` is durable on return, ``append_nowait`` is not.
    Recovery runs in a thread. Raises what ``pmwal.open`` raises.

    >>> import asyncio, pmwal.aio
    >>> async def main():
    ...     async with pmwal.aio.open(path, size="64KiB") as wal:
    ...         return await asyncio.gather(*[wal.append(b"x") for _ in range(3)])
    >>> asyncio.run(main())
    [1, 2, 3]
    """
    if mode == "r":
        raise ValueError('mode "r" makes a Reader, which needs no event loop; use pmwal.open(path, "r")')

    def begin() -> object:
        options = Options(
            mode,
            size=size,
            align=align,
            medium=medium,
            ordering=ordering,
            commit="manual",
            on_full=on_full,
            timeout=timeout,
            on_unlinked=on_unlinked,
            file_mode=file_mode,
            label=label,
            consumers=consumers,
        )
        # The tasks wait for space, the loop's thread must not.
        wal = open_with(path, replace(options, on_full="raise") if options.on_full in ("wait", "consumed") else options)
        assert isinstance(wal, Wal)
        if options.counts_consumers:
            _refuse_links(wal)
        return wal

    return Opening(begin, on_full=on_full, timeout=as_seconds("timeout", timeout))


def _refuse_links(wal: Wal) -> None:
    try:
        refuse_links(wal)
    except ValueError:
        wal.close()
        raise


class Opening:
    """Returned by ``open``: ``async with`` it, which closes the log at the end, or ``await`` it."""

    def __init__(self, begin: Callable[[], Any], *, on_full: str, timeout: float | None) -> None:
        self._begin = begin
        self._on_full = on_full
        self._timeout = timeout
        self._wal: AsyncWal | None = None

    async def _open(self) -> AsyncWal:
        thread = ThreadPoolExecutor(1, "pmwal-aio")
        opening = thread.submit(self._begin)
        try:
            wal = await asyncio.wrap_future(opening)
        except BaseException:
            opening.add_done_callback(_close_unused)  # if the task was cancelled, the thread still finishes the open
            thread.shutdown(wait=False)
            raise
        self._wal = AsyncWal(wal, thread, on_full=self._on_full, timeout=self._timeout)
        return self._wal

    def __await__(self) -> Generator[Any, None, AsyncWal]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncWal:
        return await self._open()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._wal is not None
        await self._wal.close()


def _close_unused(opening: Future[Wal]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


class AsyncWal:
    """A log opened for writing by one event loop; made by ``pmwal.aio.open``.

    Reading (``read``, ``follow``) takes place on the loop's thread, and so do appends of up to 64 KiB. While the file system is
    frozen (fsfreeze, a snapshot), the loop waits with such an append; where that matters, use ``pmwal.open`` and
    ``asyncio.to_thread``.

    >>> import asyncio, pmwal.aio
    >>> async def main():
    ...     async with pmwal.aio.open(path, size="64KiB") as wal:
    ...         first = await wal.append(b"durable")
    ...         last = wal.append_nowait(b"not yet")
    ...         await wal.durable(last)
    ...         return [record.data async for record in wal.follow(first, timeout=0)]
    >>> asyncio.run(main())
    [b'durable', b'not yet']
    """

    def __init__(self, wal: Wal, thread: ThreadPoolExecutor, *, on_full: str, timeout: float | None) -> None:
        self._wal = wal
        self._thread = thread  # one thread, so commits, truncates and the close run one after another
        self._loop = asyncio.get_running_loop()
        self._waits = on_full in ("wait", "consumed")
        self._frees = on_full == "consumed"
        self._timeout = timeout
        self._at_once = wal.stats().flush != "msync"
        self._waiting: list[asyncio.Future[None]] = []  # tasks that wait until a number is durable
        self._awaited: list[int] = []  # and which number each waits for
        self._committing = False  # a barrier is under way, or about to be
        self._locking = 0  # actions on the thread, or waiting for it, that take the locks of the log
        self._followers: list[asyncio.Future[None]] = []
        self._turn = asyncio.Lock()  # tasks wait for room in the order in which they came
        self._freed = asyncio.Event()
        self._closing: asyncio.Future[BaseException | None] | None = None  # its result is what the close raised
        yield_at_barriers(wal)

    # -- storing

    async def append(self, data: Buffer, *, kind: int = 0) -> int:
        """Append one record and return its number once it is durable. Raises what ``Wal.append`` raises.

        With ``on_full="wait"`` only this task waits for a ``truncate``, not the loop, and with "consumed" for the consumers. A task
        that is cancelled while it waits for the barrier leaves its record in the log. More than 64 KiB are stored by the log's
        thread: do not change a buffer before the record is stored.
        """
        self._check()
        if self._waits or self._locking or _length(data) > _LONG:
            seq = await self._store(partial(self._wal.append, data, kind=kind, commit=self._at_once), _length(data))
        else:
            seq = self._wal.append(data, kind=kind, commit=self._at_once)
        if self._at_once:
            self._tell_followers()
        else:
            await self._next_barrier(seq)
        return seq

    def append_nowait(self, data: Buffer, *, kind: int = 0) -> int:
        """Append one record and return its number at once; a later ``append``, ``durable`` or ``commit`` makes it durable.

        Raises what ``Wal.append`` raises; ``WalFull`` also with ``on_full="wait"``. The loop waits for it: while a long record is
        stored, the log is truncated or the disk does not answer, use ``append``.
        """
        return self._wal.append(data, kind=kind, commit=False)

    async def extend(self, items: Iterable[Buffer], *, kind: int = 0) -> tuple[int, int]:
        """Append all items or none of them; return the first and last number once they are durable."""
        self._check()
        check_items(items)
        items = list(items)
        first, last = await self._store(partial(self._wal.extend, items, kind=kind), _length_of_all(items))
        await self._until_durable(last)
        return first, last

    async def _store(self, store: Callable[[], T], length: int) -> T:
        """Store a payload of this length; if the policy is to wait for room, wait after the tasks that wait already."""
        if not self._waits:
            return await self._act(store, length)
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        async with self._turn:
            while True:
                self._check()
                self._freed.clear()
                try:
                    return await self._act(store, length)
                except WalFull:
                    if self._frees and await self._free_consumed():
                        continue
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        if self._frees:
                            raise not_consumed(self._wal, self._timeout) from None
                        raise
                if self._frees:
                    left = PAUSE if left is None else min(left, PAUSE)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._freed.wait()

    async def _free_consumed(self) -> bool:
        """Free what all consumers have acknowledged, on the log's thread; whether that was anything."""
        before = self._wal.first_seq
        return await self._act(partial(self._wal.truncate, consumed=True), _LONG + 1) > before

    # -- durability

    async def durable(self, seq: int) -> None:
        """Return when the record with this number and all before it are durable. Raises ``PersistError``.

        ``ValueError`` for a number that is not appended yet.
        """
        self._check()
        seq = as_number(seq)
        if seq >= self._wal.next_seq:
            raise ValueError(f"record {seq} is not appended yet; the next one is {self._wal.next_seq}")
        if seq > self._wal.committed_seq:
            await self._until_durable(seq)

    async def commit(self) -> int:
        """Make everything appended so far durable; return the last durable number.

        With nothing pending it lets the commit pointer catch up, as ``Wal.commit`` does.
        """
        self._check()
        seq = self._wal.next_seq - 1
        if seq > self._wal.committed_seq:
            await self._until_durable(seq)
            return self._wal.committed_seq
        return await self._run(self._wal.commit)

    async def truncate(self, before: int | None = None, *, consumed: bool = False) -> int:
        """Free the space of all records before this number, durably; return the new ``first_seq``. Waiting tasks resume.

        With ``consumed`` only of what all named consumers have acknowledged, as ``Wal.truncate`` does.
        """
        self._check()
        return await self._run(partial(self._wal.truncate, before, consumed=consumed))

    async def resize(self, size: int | str) -> CopyReport:
        """Give the log a ring of another size, as ``Wal.resize`` does, on the log's thread.

        Tasks that append or commit wait until it has ended; the loop does not. Cancelling the task does not undo it.
        """
        self._check()
        report = await self._act(partial(self._wal.resize, size), _LONG + 1)
        self._freed.set()
        self._tell_followers()
        return report

    async def rollback(self, after: int) -> int:
        """Discard all records after this number, durably and for good; return the new ``next_seq``."""
        self._check()
        return await self._run(partial(self._wal.rollback, after))

    async def _until_durable(self, seq: int) -> None:
        if self._at_once:
            await self._act(partial(commit_through, self._wal, seq), 0)
            self._tell_followers()
        else:
            await self._next_barrier(seq)

    def _next_barrier(self, seq: int) -> asyncio.Future[None]:
        """A future that is done when this number is durable."""
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        self._awaited.append(seq)
        if not self._committing:
            self._begin_commit()
        return waiter

    def _begin_commit(self) -> None:
        self._committing = True
        self._thread.submit(self._commit)

    def _commit(self) -> None:
        """On the log's thread: one barrier for everything appended so far."""
        error: BaseException | None = None
        try:
            commit_through(self._wal, self._wal.next_seq - 1)
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop was closed, so no task waits any more
            self._loop.call_soon_threadsafe(self._committed, error)

    def _committed(self, error: BaseException | None) -> None:
        """On the loop: wake the tasks that it concerns, and begin the next barrier for the others."""
        self._committing = False
        self._tell(error)
        if self._waiting and self._closing is None:  # else close() commits and wakes them
            self._begin_commit()
        self._tell_followers()

    def _tell(self, error: BaseException | None) -> None:
        """End the wait of tasks whose record is durable or was rolled back; after an error, that of all others with it."""
        durable, next_seq = self._wal.committed_seq, self._wal.next_seq
        waiting, awaited = self._waiting, self._awaited
        self._waiting, self._awaited = [], []
        for waiter, seq in zip(waiting, awaited, strict=True):
            if waiter.done():  # cancelled
                continue
            if seq <= durable or seq >= next_seq:
                waiter.set_result(None)
            elif error is not None:
                waiter.set_exception(copy.copy(error))  # a copy for each: raising adds to the traceback
            else:
                self._waiting.append(waiter)
                self._awaited.append(seq)

    async def _run(self, action: Callable[[], T]) -> T:
        """Do something that takes barriers; cancelling the task does not undo it."""
        answer = await self._act(action, 0 if self._at_once else _LONG + 1)
        self._freed.set()
        self._tell_followers()
        return answer

    async def _act(self, action: Callable[[], T], length: int) -> T:
        """Do something that takes the locks: here if it is short and they are free, else on the log's thread."""
        if not self._locking and length <= _LONG:
            return action()
        self._locking += 1
        future = self._thread.submit(action)
        future.add_done_callback(self._acted)
        return await asyncio.wrap_future(future)

    def _acted(self, future: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # as in ``_commit``
            self._loop.call_soon_threadsafe(self._unlocked)

    def _unlocked(self) -> None:
        self._locking -= 1

    # -- reading

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
        """The records from number ``start`` up to, not including, ``stop``, durable or not, as from ``Wal.read``.

        ``start`` may be a cursor. ``since``, ``until``, ``kind`` and ``exact`` select as in ``Reader.read``.
        """
        return self._wal.read(start, stop, since=since, until=until, kind=kind, exact=exact)

    async def follow(self, start: int | str | None = None, timeout: float | None = None) -> AsyncIterator[Record]:
        """The durable records from number ``start`` on (the oldest when None), then each new one as soon as it is durable.

        It ends when the log is closed, and after ``timeout`` seconds without a record. A ``start`` that is a cursor means "after
        that record". Raises what ``Wal.follow`` raises.
        """
        self._check()
        timeout = as_seconds("timeout", timeout)
        first = next_seq = first_number(self._wal, start)
        waiting_since, seen = time.monotonic(), None
        while self._closing is None:
            before = next_seq
            try:
                stop = min(self._wal.committed_seq + 1, next_seq + TURN)
                seen, records = read_on(self._wal, next_seq, stop, None if next_seq == first else seen)
                for record in records:
                    next_seq = record.seq + 1
                    yield record
                refuse_failed(self._wal)
            except WalClosed:
                return
            if next_seq > before:
                waiting_since = time.monotonic()
                await asyncio.sleep(0)
                continue
            left = None if timeout is None else waiting_since + timeout - time.monotonic()
            if left is not None and left <= 0:
                return
            news = self._loop.create_future()
            self._followers.append(news)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await news

    def _tell_followers(self) -> None:
        if self._followers:
            followers, self._followers = self._followers, []
            for news in followers:
                if not news.done():
                    news.set_result(None)

    # -- about the handle

    @property
    def first_seq(self) -> int:
        """Number of the oldest record, or of the next one when the log is empty."""
        return self._wal.first_seq

    @property
    def next_seq(self) -> int:
        """The number that the next record will have."""
        return self._wal.next_seq

    @property
    def committed_seq(self) -> int:
        """The last durable number: everything up to it is durable."""
        return self._wal.committed_seq

    @property
    def path(self) -> str:
        """The path that the log was opened with."""
        return self._wal.path

    @property
    def recovery(self) -> RecoveryReport:
        """What this open found, kept and dropped."""
        return self._wal.recovery

    @property
    def closed(self) -> bool:
        """Whether the log was closed."""
        return self._wal.closed

    def stats(self) -> WalStats:
        """Where the log lies and how it is written, and counters since it was opened, as from ``Wal.stats``."""
        return self._wal.stats()

    async def close(self) -> None:
        """Commit what is pending, and close the log. Idempotent.

        Tasks that wait for a barrier return when it has completed; tasks that wait for room get ``WalClosed``. When the last commit
        fails it raises ``PersistError``, and so do they.
        """
        if self._closing is not None and self._closing.get_loop() is asyncio.get_running_loop():
            await asyncio.shield(self._closing)
            return
        self._check()
        self._closing = self._loop.create_future()
        self._thread.submit(self._close)
        self._thread.shutdown(wait=False)
        self._freed.set()
        error = await asyncio.shield(self._closing)
        if error is not None:
            raise error

    def _close(self) -> None:
        """On the log's thread, after the barrier that may be under way."""
        error: BaseException | None = None
        try:
            self._wal.close()
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # as in ``_commit``
            self._loop.call_soon_threadsafe(self._closed, error)

    def _closed(self, error: BaseException | None) -> None:
        assert self._closing is not None
        self._tell(error)
        self._tell_followers()
        self._closing.set_result(error)

    def _check(self) -> None:
        if self._loop is not asyncio.get_running_loop():
            raise RuntimeError(f"{self.path}: this log was opened in another event loop; open it in the one whose tasks use it")
        if self._closing is not None:
            raise WalClosed("this log is closed; open it again with pmwal.aio.open()")

    def __repr__(self) -> str:
        return f"<pmwal.aio.AsyncWal of {self._wal!r}>"


def _length(data: Any) -> int:
    """Bytes of a payload; 0 for what ``append`` refuses."""
    if type(data) is bytes:
        return len(data)
    try:
        return memoryview(data).nbytes
    except (TypeError, ValueError):
        return 0


def _length_of_all(items: list[Any]) -> int:
    """Bytes of these payloads, or some number above ``_LONG``: there may be very many."""
    total = 0
    for item in items:
        total += _length(item) + HEADER
        if total > _LONG:
            break
    return total
