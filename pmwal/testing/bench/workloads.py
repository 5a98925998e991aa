"""Workloads of pmwal through its public calls: the timed loops, and the logs for them.

Amortised figures are from the time of a whole loop. Percentiles are of single calls, timed with ``time.perf_counter_ns``; both
clock reads are part of the figure, as in the floors. The garbage collector stays on. A ring that runs full is emptied by
``truncate`` between two timed pieces, which is not part of the figure; the floors have no such work.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import pmwal
import pmwal.aio
from pmwal.opening.options import Commit, Ordering
from pmwal.storage.medium import MediumName
from pmwal.testing.bench.floors import RECORD_HEADER, Loop
from pmwal.testing.bench.stats import Times

PAYLOAD = bytes(range(128))
BATCH = 1000
BATCH_OF_PAYLOADS = [PAYLOAD] * BATCH
_WARM_PAYLOAD = 64 * 1024
_CHUNK = 1 << 20
_SLACK = 4  # records, for the gap that a record may leave at the end of the ring


def record_size(length: int, alignment: int) -> int:
    """The size of a record in the ring (docs/format.md)."""
    return -(-(RECORD_HEADER + length) // alignment) * alignment


def room(wal: pmwal.Wal, length: int) -> int:
    """How many more records of this length certainly fit."""
    return max(0, wal.free // record_size(length, wal.stats().alignment) - _SLACK)


def empty(wal: pmwal.Wal) -> None:
    """Truncate everything."""
    wal.truncate(before=wal.next_seq)


def warm(wal: pmwal.Wal) -> None:
    """Fill one lap of the ring, so that every page was touched, and empty it."""
    size = min(_WARM_PAYLOAD, wal.capacity // 8)
    payload, left = bytes(size), wal.capacity
    while left > 0:
        count = max(1, min(16, room(wal, size)))
        wal.extend([payload] * count)
        left -= count * size
        empty(wal)


@contextlib.contextmanager
def new_log(
    directory: Path,
    *,
    size: int,
    medium: MediumName = "auto",
    ordering: Ordering = "auto",
    commit: Commit = "each",
    warmed: bool = True,
) -> Iterator[pmwal.Wal]:
    """A new log that is removed afterwards."""
    path = directory / f"{threading.get_ident()}-{time.monotonic_ns()}.wal"
    try:
        with pmwal.open(path, "x", size=size, medium=medium, ordering=ordering, commit=commit) as wal:
            if warmed:
                warm(wal)
            yield wal
    finally:
        path.unlink(missing_ok=True)


def append_loop(wal: pmwal.Wal, payload: bytes, count: int, *, commit: bool) -> Loop:
    """``append`` in a loop, timed as a whole."""
    append, total, left = wal.append, 0, count
    while left:
        piece = min(left, room(wal, len(payload)))
        if not piece:
            empty(wal)
            continue
        begin = time.perf_counter_ns()
        for data in repeat(payload, piece):
            append(data, commit=commit)
        total += time.perf_counter_ns() - begin
        left -= piece
    return Loop(total, count, np.zeros(0, dtype=np.int64))


def append_each(wal: pmwal.Wal, payload: bytes, count: int, *, commit: bool, whole: bool = False) -> Loop:
    """``append`` in a loop, each call timed; with ``whole`` from the return of the call before.

    A call returns while its last fence completes. No later store passes that fence, but a look at the clock does.
    """
    append, clock, total, left = wal.append, time.perf_counter_ns, 0, count
    each = [0] * count
    while left:
        piece = min(left, room(wal, len(payload)))
        if not piece:
            empty(wal)
            continue
        begin = last = clock()
        for index in range(count - left, count - left + piece):
            start = last if whole else clock()
            append(payload, commit=commit)
            last = clock()
            each[index] = last - start
        total += clock() - begin
        left -= piece
    return Loop(total, count, np.array(each, dtype=np.int64))


def extend_each(wal: pmwal.Wal, payloads: list[bytes], count: int) -> Loop:
    """``extend`` in a loop, each call timed. The total is their sum."""
    extend, clock = wal.extend, time.perf_counter_ns
    each = [0] * count
    for index in range(count):
        if room(wal, len(payloads[0])) < len(payloads):
            empty(wal)
        start = clock()
        extend(payloads)
        each[index] = clock() - start
    return Loop(sum(each), count, np.array(each, dtype=np.int64))


def timed(call: Callable[[], object]) -> int:
    """Nanoseconds of one call."""
    start = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - start


def extend_array(wal: pmwal.Wal, rows: np.ndarray[Any, Any]) -> int:
    """Nanoseconds of one ``extend_array`` into an empty ring."""
    empty(wal)
    start = time.perf_counter_ns()
    wal.extend_array(rows)
    return time.perf_counter_ns() - start


def read_array(wal: pmwal.Wal, rows: np.ndarray[Any, Any], out: np.ndarray[Any, Any] | None = None) -> int:
    """Nanoseconds of one ``read_array`` of the whole log, which must give these rows."""
    dtype = np.dtype((rows.dtype, rows.shape[1:]))
    start = time.perf_counter_ns()
    found = wal.read_array(dtype, out=out)
    took = time.perf_counter_ns() - start
    if not np.array_equal(found, rows):
        raise RuntimeError("read_array returned other rows than extend_array stored")
    return took


def timer(count: int) -> Times:
    """Two reads of Python's clock with nothing between them."""
    clock = time.perf_counter_ns
    each = [0] * count
    for index in range(count):
        start = clock()
        each[index] = clock() - start
    return np.array(each, dtype=np.int64)


class Threads(NamedTuple):
    """The figures of several threads together."""

    seconds: float
    records: int
    barriers: int
    each: Times

    @property
    def rate(self) -> float:
        """Records per second of all threads."""
        return self.records / self.seconds

    @property
    def barriers_per_record(self) -> float:
        """Barriers per record; 1 without sharing."""
        return self.barriers / self.records


def append_threads(
    wal: pmwal.Wal, payload: bytes, threads: int, each_thread: int, *, commit: bool = True, whole: bool = False
) -> Threads:
    """Append in several threads, timed from their common start to the end of the last. ``whole`` is as in ``append_each``."""
    if room(wal, len(payload)) < threads * each_thread:
        empty(wal)
    if room(wal, len(payload)) < threads * each_thread:
        raise ValueError(f"{threads} x {each_thread} records do not fit into this ring")
    ready = threading.Barrier(threads + 1)
    times = [[0] * each_thread for _ in range(threads)]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        append, clock, mine = wal.append, time.perf_counter_ns, times[number]
        ready.wait()
        last = clock()
        try:
            for index in range(each_thread):
                start = last if whole else clock()
                append(payload, commit=commit)
                last = clock()
                mine[index] = last - start
        except BaseException as error:
            failures.append(error)
            raise

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    before = wal.stats().barriers
    ready.wait()
    begin = time.perf_counter_ns()
    for worker in workers:
        worker.join()
    seconds = (time.perf_counter_ns() - begin) / 1e9
    if failures:
        raise failures[0]
    each = np.array([value for mine in times for value in mine], dtype=np.int64)
    return Threads(seconds, threads * each_thread, wal.stats().barriers - before, each)


class Tasks(NamedTuple):
    """Nanoseconds of durable appends in one event loop, and the commits of those that ran together."""

    alone: int
    together: int
    commits: int


def append_tasks(directory: Path, payload: bytes, count: int, *, alone: int) -> Tasks:
    """Append ``alone`` times in sequence, then by ``count`` tasks that exist already; each append is durable."""

    async def one(wal: pmwal.aio.AsyncWal) -> None:
        await wal.append(payload)

    async def measure(path: Path) -> Tasks:
        size = 2 * (count + 2 * alone + _SLACK) * record_size(len(payload), 8)
        async with pmwal.aio.open(path, "x", size=size) as wal:
            for _ in range(alone):  # warm-up: the first ones find the disk idle
                await wal.append(payload)
            begin = time.perf_counter_ns()
            for _ in range(alone):
                await wal.append(payload)
            took, before = time.perf_counter_ns() - begin, wal.stats().commits
            tasks = [asyncio.create_task(one(wal)) for _ in range(count)]  # they start when this one waits
            begin = time.perf_counter_ns()
            for task in tasks:
                await task
            return Tasks(took, time.perf_counter_ns() - begin, wal.stats().commits - before)

    path = directory / "tasks.wal"
    try:
        return asyncio.run(measure(path))
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """Run a thread of pure Python meanwhile, which releases the GIL only when it must."""
    stop = False

    def work() -> None:
        number = 0
        while not stop:
            for value in range(1000):
                number = (number * 31 + value) & 0xFFFF

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop = True
        thread.join()


class Image(NamedTuple):
    """A log as a kill leaves it: a copy of the file made while the writer had it open."""

    path: Path
    records: int
    length: int
    capacity: int

    @property
    def payload_bytes(self) -> int:
        """Payload bytes."""
        return self.records * self.length

    @property
    def stride(self) -> int:
        """Bytes from one record to the next."""
        return record_size(self.length, 8)

    @property
    def ring_offset(self) -> int:
        """The offset of the ring, which ends at the end of the file."""
        return self.path.stat().st_size - self.capacity


def make_image(directory: Path, *, capacity: int, length: int) -> Image:
    """Fill a ring in memory with records of one length, 1 MiB for each commit, and copy the file before the close."""
    path, image = directory / "fill.wal", directory / "image.wal"
    each = max(1, _CHUNK // record_size(length, 8))
    payloads = [bytes([index % 251]) * length for index in range(each)]
    with pmwal.open(path, "x", size=capacity, medium="memory") as wal:
        while count := min(each, room(wal, length)):
            wal.extend(payloads[:count])
        records, stored = len(wal), wal.capacity
        shutil.copyfile(path, image)
    path.unlink()
    return Image(image, records, length, stored)


def recover(image: Image, path: Path, *, medium: MediumName = "auto") -> float:
    """Nanoseconds of ``open`` for writing; ``path`` is a new copy of the image and is removed."""
    begin = time.perf_counter_ns()
    wal = pmwal.open(path, "r+", medium=medium)
    took = time.perf_counter_ns() - begin
    report = wal.recovery
    wal.close()
    path.unlink()
    if report.outcome != "recovered" or report.records != image.records:
        raise RuntimeError(f"the recovery found {report.outcome} with {report.records} of {image.records} records")
    return float(took)
