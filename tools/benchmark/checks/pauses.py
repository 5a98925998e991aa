"""Checks of the longest pause of another thread, and of an event loop, beside any call of a log.

Each call runs beside an onlooker (benchmark.onlookers) in every round, on both media. Of each the median over the rounds of its
longest pause counts, and the slowest call decides. A call that computes in Python may keep its turn for a switch interval, so the
bar is more by that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import pmwal
import pmwal.aio
from benchmark import onlookers
from benchmark.context import MIB, Context
from benchmark.gate import BARS, Row, absolute
from pmwal.testing.bench import workloads
from pmwal.testing.bench.stats import median
from pmwal.testing.bench.workloads import BATCH_OF_PAYLOADS, PAYLOAD
from pmwal.testing.machine import Site


class Pause(NamedTuple):
    """Milliseconds of the longest pause beside one call, and of a thread in C that needs no interpreter, beside the same call."""

    ours: float
    bare: float


Pauses = dict[str, list[Pause]]
"""The longest pause of each round, by call."""

_RING = 64 * MIB
_SHORT = 200  # calls in one round of those that take microseconds


class Parts(NamedTuple):
    """What the calls store: a large record, as bytes and not, records and rows that take as much room, and a record of a part."""

    large: bytes
    buffer: bytearray
    many: list[bytes]
    rows: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
    medium: bytes
    ring: int

    @classmethod
    def of(cls, ring: int) -> Parts:
        """For a ring of this size."""
        large = os.urandom(ring // 4)
        return cls(
            large,
            bytearray(large),
            [PAYLOAD] * (len(large) // 256),
            np.zeros((len(large) // 128, 8), dtype=np.int64),
            large[: len(large) // 16],
            ring,
        )


def pauses(context: Context) -> Iterator[Row]:
    """Every call of a log beside a thread that sleeps 1 ms at a time."""
    for site in (context.disk, context.memory):
        yield _row("pauses", "thread", site, thread_pauses(context, site))


def event_loop(context: Context) -> Iterator[Row]:
    """Every call of ``pmwal.aio`` beside a task that sleeps 1 ms at a time."""
    for site in (context.disk, context.memory):
        yield _row("event loop", "task of the loop", site, asyncio.run(_loop_pauses(context, site)))


def _row(name: str, who: str, site: Site, found: Pauses) -> Row:
    middles = {call: Pause(*(median(column) for column in zip(*each, strict=True))) for call, each in found.items()}
    quiet = middles.pop(_NOTHING)
    slowest = sorted(middles, key=lambda call: -middles[call].ours)
    what = f"longest pause of a {who} beside any call, {site.mount.filesystem}, the slowest of {len(middles)}: {slowest[0]}"
    bar = BARS["pause ms"] + 1e3 * sys.getswitchinterval()
    late = max(pause.bare for pause in middles.values())
    parts = [
        f"beside nothing {quiet.ours:.2f} ms",
        ", ".join(f"{call} {middles[call].ours:.2f}" for call in slowest[1:6]),
        f"a thread in C beside the same call {middles[slowest[0]].bare:.2f}, beside any at most {late:.2f}",
    ]
    if late > BARS["pause ms"]:
        parts.append("UNSTEADY: the system itself was late; measure again while nothing else runs")
    return absolute(name, what, middles[slowest[0]].ours, "ms", "at most", bar, "; ".join(parts))


_NOTHING = "nothing"


def thread_pauses(context: Context, site: Site) -> Pauses:
    """The longest pauses beside each call, of all rounds after the first."""
    parts, found = Parts.of(min(_RING, context.scale.lap_ring)), Pauses()
    path = site.directory / "pauses.wal"
    with onlookers.sleeper() as onlooker, context.floors.ticker(onlookers.TICK) as late:
        for turn in range(context.scale.rounds + 1):
            for name, call in _calls(context, path, parts):
                late()
                pause = Pause(onlooker.longest(call) / 1e6, late() / 1e6)
                if turn:
                    found.setdefault(name, []).append(pause)
            path.unlink()
    return found


def _calls(context: Context, path: Path, parts: Parts) -> Iterator[tuple[str, Callable[[], object]]]:
    """Calls by name. What one needs is prepared before it is handed out."""
    yield _NOTHING, lambda: onlookers.idle(context.scale.watch / 5)
    yield "open, new", lambda: pmwal.open(path, "x", size=parts.ring).close()
    with pmwal.open(path, "r+") as wal:
        yield from _stores(wal, parts)
        yield from _reads(wal, path)
        image = path.with_name("pauses-image.wal")
        image.write_bytes(path.read_bytes())  # as a kill leaves it
        yield "verify beside the writer", lambda: pmwal.verify(path)
        yield "close", wal.close
    _drop(image)
    yield "open, recovery, cold", lambda: pmwal.open(image, "r+").close()
    image.unlink()


def _stores(wal: pmwal.Wal, parts: Parts) -> Iterator[tuple[str, Callable[[], object]]]:
    """Calls that store. Before each there is room."""

    def repeated(call: Callable[[], object]) -> Callable[[], None]:
        def calls() -> None:
            for _ in range(_SHORT):
                call()

        return calls

    def batch() -> None:
        with wal.batch() as staged:
            for payload in BATCH_OF_PAYLOADS:
                staged.append(payload)

    def reserve() -> None:
        reservation = wal.reserve(len(parts.medium))
        with reservation as view:
            view[:5] = b"hello"

    large, megabytes = _size(parts.large), _size(parts.medium)
    yield "append 128 B", repeated(lambda: wal.append(PAYLOAD))
    yield "extend 1,000 x 128 B", repeated(lambda: wal.extend(BATCH_OF_PAYLOADS[: max(1, wal.free // 256 // _SHORT // 2)]))
    workloads.empty(wal)
    yield "batch of 1,000 x 128 B", batch
    yield f"reserve {megabytes}", reserve
    yield f"append {megabytes}", lambda: wal.append(parts.medium)
    workloads.empty(wal)
    yield f"append {large}", lambda: wal.append(parts.large)
    workloads.empty(wal)
    yield f"append {large} of a bytearray", lambda: wal.append(parts.buffer)
    workloads.empty(wal)
    yield f"append {large}, commit=False", lambda: wal.append(parts.large, commit=False)
    yield f"commit of {large}", wal.commit
    workloads.empty(wal)
    yield f"extend {len(parts.many)} x 128 B", lambda: wal.extend(parts.many)
    yield "rollback of these", lambda: wal.rollback(after=wal.first_seq)
    workloads.empty(wal)
    yield f"extend 4 x {megabytes}", lambda: wal.extend([parts.medium] * 4)
    workloads.empty(wal)
    yield f"extend_array of {len(parts.rows)} x 64 B", lambda: wal.extend_array(parts.rows)
    yield "truncate of these", lambda: wal.truncate(before=wal.next_seq)
    wal.append(parts.large)


def _reads(wal: pmwal.Wal, path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Calls that read a large record and many small ones, from the page cache and not."""
    wal.extend(BATCH_OF_PAYLOADS)
    first = wal.first_seq
    _drop(path)
    yield "wal[seq] of the large record, cold", lambda: wal[first]
    yield "wal[seq] of the large record", lambda: wal[first]
    yield "for rec in wal", lambda: [None for _ in wal.read()]
    with pmwal.open(path, "r") as reader:
        _drop(path)
        yield "for rec in reader, cold", lambda: [None for _ in reader.read()]
    with pmwal.open(path, "r") as reader:
        yield "reader[seq] near the end", lambda: reader[reader.committed_seq]


async def _loop_pauses(context: Context, site: Site) -> Pauses:
    parts, found = Parts.of(min(_RING, context.scale.lap_ring)), Pauses()
    path = site.directory / "loop.wal"
    async with contextlib.AsyncExitStack() as stack:
        late = stack.enter_context(context.floors.ticker(onlookers.TICK))
        onlooker = await stack.enter_async_context(onlookers.ticking_task())
        for turn in range(context.scale.rounds + 1):
            async with pmwal.aio.open(path, "x", size=parts.ring) as wal:
                for name, call in _loop_calls(context, wal, parts):
                    late()
                    pause = Pause(await onlooker.longest_of(call) / 1e6, late() / 1e6)
                    if turn:
                        found.setdefault(name, []).append(pause)
                    if name != _NOTHING:
                        await wal.truncate(before=wal.next_seq)
            path.unlink()
    return found


def _loop_calls(context: Context, wal: pmwal.aio.AsyncWal, parts: Parts) -> Iterator[tuple[str, Callable[[], Awaitable[object]]]]:
    """Calls of an asynchronous log by name; the log is emptied after each."""
    large, megabytes = _size(parts.large), _size(parts.medium)

    async def repeated() -> None:
        for _ in range(_SHORT):
            await wal.append(PAYLOAD)

    async def store_and(then: Callable[[], Awaitable[object]]) -> None:
        await wal.append(parts.large)
        await wal.extend(BATCH_OF_PAYLOADS)
        await then()

    async def read() -> None:
        last = wal.next_seq - 1
        async for record in wal.follow():
            if record.seq == last:
                break

    yield _NOTHING, lambda: asyncio.sleep(context.scale.watch / 5)
    yield "append 128 B", repeated
    yield f"append {megabytes}", lambda: wal.append(parts.medium)
    yield f"append {large}", lambda: wal.append(parts.large)
    yield f"append {large} of a bytearray", lambda: wal.append(parts.buffer)
    yield "extend 1,000 x 128 B", lambda: wal.extend(BATCH_OF_PAYLOADS)
    yield f"extend {len(parts.many)} x 128 B", lambda: wal.extend(parts.many)
    yield f"append {large} and follow", lambda: store_and(read)
    yield f"append {large} and roll back", lambda: store_and(lambda: wal.rollback(after=wal.first_seq))


def _size(payload: bytes) -> str:
    return f"{len(payload) // MIB} MiB" if len(payload) >= MIB else f"{len(payload) >> 10} KiB"


def _drop(path: Path) -> None:
    """Write a file back and drop it from the page cache, as far as nobody has it mapped."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
