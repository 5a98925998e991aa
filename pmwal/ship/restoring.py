"""``restore``: a new log with the records that a stream has of another one.

Invariants
----------
- The stream is read twice: its headers, which say what the log was last, and then the bodies of what counts. So no more than a few
  messages are in memory.
- The new log appears at its path when all of it is durable, or not at all. It has a uuid of its own: the stream keeps the old log
  as it is, and the new one ships on another subject.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from pmwal.errors import ShipError
from pmwal.format.layout import HEADER
from pmwal.format.payload import as_capacity
from pmwal.opening.filling import capacity_for, fill_new
from pmwal.opening.options import Options as LogOptions
from pmwal.records import Record
from pmwal.ship.chain import HEADERS_MAX, as_uuid, check_prefix, check_stream, entry_of, subject_of
from pmwal.ship.folding import Folding
from pmwal.ship.link import Link, NoStream, Options, Stored, Unavailable
from pmwal.ship.plan import Plan

_OVERHEAD = HEADER + 64 - 1  # bytes of a ring that a record takes beside its payload, at most, with the alignment of any medium
_PATIENCE = 30.0  # seconds without an answer after which it gives up
_PAUSE = 0.2
_READY_SIZE = 1 << 20  # bytes of messages whose records are handed over together


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What ``restore`` wrote: the records ``first_seq`` to ``last_seq`` of the log with the uuid ``log``.

    ``capacity`` and ``used``: bytes of the new ring, and what the records take. ``left_out``: records that the stream has, or had,
    from before a gap or before what fits.
    """

    path: str
    log: str
    first_seq: int
    last_seq: int
    records: int
    capacity: int
    used: int
    left_out: int

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return asdict(self)


async def restore(
    path: str | os.PathLike[str],
    *,
    from_: str | Sequence[str],
    stream: str,
    log: str,
    prefix: str = "pmwal",
    size: int | str | None = None,
    options: Options = Options(),  # noqa: B008 - immutable
    file_mode: int | str = 0o600,
    progress: Callable[[int, int], None] | None = None,
) -> RestoreReport:
    """Create a log at ``path`` from what a stream has of the log with the uuid ``log``: the same numbers, kinds and times.

    It has another uuid, and batches are not kept. Records that were rolled back are not in it, nor those before a gap. ``size``:
    capacity of the ring, for the newest records that fit; None: as large as all need, and a quarter more. ``progress`` is called
    with (messages done, messages in total).

    Raises ``FileExistsError`` if there is something at ``path``, ``ShipError`` if the stream has nothing of the log, is missing or
    does not answer for half a minute, ``ValueError`` for a message that is damaged, ``OSError``. Then nothing is left at ``path``.
    """
    uuid, subject = as_uuid(log), subject_of(check_prefix(prefix), as_uuid(log))
    capacity = None if size is None else as_capacity(size)
    LogOptions("x", size=size, file_mode=file_mode)
    if os.path.lexists(path):
        raise FileExistsError(f"{os.fsdecode(path)}: there is something already; restore to another path")
    link = Link(from_, check_stream(stream), options)
    try:
        plan = await _plan(link, subject)
        if plan.next_seq is None:
            raise ShipError(f"stream {stream!r} has nothing on {subject}: check the uuid and the prefix")
        if capacity is not None and sum(each.payload + _OVERHEAD * (each.last - each.first + 1) for each in plan.kept) > capacity:
            plan.fit(capacity - capacity // 4, _OVERHEAD)
        return await _fill(os.fsdecode(path), uuid, link, subject, plan, capacity, file_mode, progress)
    finally:
        await link.close()


async def _plan(link: Link, subject: str) -> Plan:
    """What of the stream counts."""
    plan = Plan()
    async for message in _messages(link, subject, 1, headers_only=True):
        plan.add(message.seq, entry_of(message.headers), int(message.headers.get("Nats-Msg-Size", "0")))
    plan.finish()
    return plan


async def _messages(link: Link, subject: str, start: int, *, headers_only: bool) -> AsyncIterator[Stored]:
    """The messages from this number on, also over failures of the connection."""
    answered = time.monotonic()
    while True:
        try:
            async for message in link.read(subject, start, headers_only=headers_only):
                start, answered = message.seq + 1, time.monotonic()
                yield message
            return
        except NoStream as error:
            raise ShipError(str(error)) from error
        except Unavailable as error:
            if time.monotonic() - answered > _PATIENCE:
                raise ShipError(f"given up after {_PATIENCE:.0f} seconds: {error}") from error
        await asyncio.sleep(_PAUSE)


async def _fill(
    path: str,
    uuid: str,
    link: Link,
    subject: str,
    plan: Plan,
    capacity: int | None,
    file_mode: int | str,
    progress: Callable[[int, int], None] | None,
) -> RestoreReport:
    """Write the log, in a thread that the loop feeds."""
    count = sum(each.last - each.first + 1 for each in plan.kept)
    needed = capacity_for(count, sum(each.payload for each in plan.kept), plan.longest, 64)
    loop = asyncio.get_running_loop()

    def records() -> Iterator[Record]:
        source = _records(link, subject, plan, progress)
        try:
            while (batch := asyncio.run_coroutine_threadsafe(anext(source, None), loop).result()) is not None:
                yield from batch
        finally:
            asyncio.run_coroutine_threadsafe(source.aclose(), loop).result()

    fill = partial(fill_new, path, records, plan.first_seq, size=capacity or needed, file_mode=file_mode)
    report = await asyncio.to_thread(fill)
    return RestoreReport(path, uuid, report.first_seq, report.last_seq, report.records, report.capacity, report.used, plan.left_out)


async def _records(
    link: Link, subject: str, plan: Plan, progress: Callable[[int, int], None] | None
) -> AsyncGenerator[list[Record], None]:
    """The records of the plan, those of many small messages together."""
    if not plan.kept:
        return
    folding, done, total = Folding(), 0, sum(len(each.messages) for each in plan.kept)
    ready, size = list[Record](), 0
    left = deque(plan.kept)
    async for message in _messages(link, subject, plan.kept[0].number, headers_only=False):
        while message.seq >= left[0].messages.stop and len(left) > 1:
            left.popleft()
        if message.seq not in left[0].messages:
            continue
        done += 1
        ready += [item for item in folding.add(message) if isinstance(item, Record) and item.seq <= left[0].last]
        size += HEADERS_MAX + len(message.data)
        if progress is not None:
            progress(done, total)
        if size >= _READY_SIZE or done == total:
            yield ready
            ready, size = [], 0
        if done == total:
            return
    raise ShipError(f"messages on {subject} were removed from the stream while they were read; restore again")
