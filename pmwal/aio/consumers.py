"""A named consumer for the tasks of an event loop.

Invariants
----------
- The loop's thread waits neither for records nor for the disk: threads of the consumer do.
- Records that a thread has read in advance are not acknowledged until the program does so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TypeVar

from pmwal.aio.log import TURN
from pmwal.errors import PmwalError
from pmwal.opening import open_with
from pmwal.opening.options import Options
from pmwal.reading.consumer import Consumer
from pmwal.reading.internals import bounds_of
from pmwal.reading.reader import Reader
from pmwal.records import Lag, Record

_THREADS = 4  # one waits for records, one for the disk; a follow that was cancelled may keep one for a while

T = TypeVar("T")


@contextlib.asynccontextmanager
async def consumer(path: str | os.PathLike[str], name: str, start: int | str = "oldest") -> AsyncIterator[AsyncConsumer]:
    """The named consumer of a log, as from ``Reader.consumer``, for the tasks of the running event loop: ``async with`` it.

    >>> import asyncio, pmwal, pmwal.aio
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     first, last = wal.extend([b"a", b"b"])
    >>> async def main():
    ...     async with pmwal.aio.consumer(path, "mail") as consumer:
    ...         async for record in consumer.follow(timeout=0):
    ...             await consumer.ack(record.seq, durable=True)
    ...         return consumer.position
    >>> asyncio.run(main())
    2
    """
    threads = ThreadPoolExecutor(_THREADS, "pmwal-aio-consumer")

    def begin() -> tuple[Reader, Consumer]:
        reader = open_with(path, Options("r"))
        assert isinstance(reader, Reader)
        try:
            return reader, reader.consumer(name, start)
        except BaseException:
            reader.close()
            raise

    def end(opening: Future[tuple[Reader, Consumer]]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            reader, held = opening.result()
            held.close()
            reader.close()  # so that a thread that waits for records ends

    opening = threads.submit(begin)
    try:
        reader, held = await asyncio.wrap_future(opening)
        yield AsyncConsumer(reader, held, threads)
    finally:
        opening.add_done_callback(end)
        threads.shutdown(wait=False)


class AsyncConsumer:
    """A named consumer for the tasks of one event loop; made by ``pmwal.aio.consumer``."""

    def __init__(self, reader: Reader, held: Consumer, threads: ThreadPoolExecutor) -> None:
        self._reader = reader
        self._consumer = held
        self._threads = threads

    async def follow(self, timeout: float | None = None) -> AsyncIterator[Record]:
        """The records after the position, then each new one, as from ``Consumer.follow``. One task at a time may follow.

        They are read in threads, some in advance. Cancelling the task acknowledges nothing.
        """
        records = await self._run(partial(self._consumer.follow, timeout))
        while True:
            piece, error = await self._run(partial(self._pull, records))
            for record in piece:
                yield record
            if error is not None:
                raise error
            if not piece:
                return

    def _pull(self, records: Iterator[Record]) -> tuple[list[Record], PmwalError | None]:
        """In a thread: the next record, once there is one, and those that are there after it; and what ended that."""
        piece: list[Record] = []
        try:
            piece += islice(records, 1)
            if piece:
                piece.extend(islice(records, min(TURN, bounds_of(self._reader)[1] - piece[0].seq) - 1))
        except PmwalError as error:
            return piece, error
        return piece, None

    async def ack(
        self, seq: int | str, *, durable: bool = False, released: int | None = None, application: bytes | None = None
    ) -> None:
        """Acknowledge as ``Consumer.ack`` does; a durable acknowledgement waits for the disk in a thread."""
        action = partial(self._consumer.ack, seq, durable=durable, released=released, application=application)
        if durable:
            await self._run(action)
        else:
            action()

    async def seek(self, start: int | str) -> None:
        """Move the position, as ``Consumer.seek`` does. No task may follow meanwhile."""
        await self._run(partial(self._consumer.seek, start))

    async def _run(self, action: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._threads.submit(action))

    @property
    def name(self) -> str:
        """Its name."""
        return self._consumer.name

    @property
    def position(self) -> int:
        """Number of the last record that was acknowledged."""
        return self._consumer.position

    @property
    def cursor(self) -> str:
        """``Record.cursor`` of that record, as from ``Consumer.cursor``."""
        return self._consumer.cursor

    @property
    def application(self) -> bytes:
        """The bytes stored with the position, as from ``Consumer.application``."""
        return self._consumer.application

    async def lag(self) -> Lag:
        """How far the position lies before the end of the log."""
        return await self._run(lambda: self._consumer.lag)

    def __repr__(self) -> str:
        return f"<pmwal.aio.AsyncConsumer of {self._consumer!r}>"
