"""Checks of large durable appends on a disk, on the first lap of a ring and on later ones, and of small commits after them.

The floor is what is faster in the same run: pwrite of the payload and fdatasync, into a file whose page cache consists of large
folios, or an O_DIRECT|O_DSYNC pwrite of the pages that the payload fills. Its file was written all around before either lap.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pmwal
import sectors
from benchmark.checks.disk import sector_counter, sector_rows, take_turns, unsteady
from benchmark.context import MIB, Context
from benchmark.gate import BARS, Row, beside, compare, skipped
from pmwal.testing.bench import workloads
from pmwal.testing.bench.floors import PAGE, Area, Floors
from pmwal.testing.bench.stats import percentile, time_text
from pmwal.testing.bench.workloads import BATCH_OF_PAYLOADS, PAYLOAD

LAPS = ("first lap", "later lap")
PLAIN, DIRECT = "pwrite + fdatasync, large folios", "O_DIRECT|O_DSYNC pwrite"
_LARGE = 32  # a record of this part of the ring is large
_SMALL_COMMITS = 16  # after each large batch


class Lap(NamedTuple):
    """Times of appends and of both floors, which took turns."""

    ours: list[int]
    plain: list[int]
    direct: list[int]

    @property
    def floor(self) -> tuple[str, list[int]]:
        """The floor with the smaller median, and its times."""
        if percentile(self.plain, 50) <= percentile(self.direct, 50):
            return PLAIN, self.plain
        return DIRECT, self.direct


class DiskFloors:
    """Both floors of one payload size, each in a file of its own."""

    def __init__(self, floors: Floors, directory: Path, region: int, length: int) -> None:
        self._floors, self._length = floors, length
        self._pages = -(-length // PAGE) * PAGE
        self._stack = contextlib.ExitStack()
        self._plain = self._stack.enter_context(Area(directory / "plain", region, large=True))
        self._direct = self._stack.enter_context(Area(directory / "direct", region, flags=os.O_DIRECT | os.O_DSYNC))
        self._buffer = mmap.mmap(-1, self._pages)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        ctypes.memset(self._address, 1, self._pages)

    def plain(self) -> int:
        """Nanoseconds of one pwrite of the payload and fdatasync."""
        return self._floors.pwrite(self._plain, self._address, self._length, 1, sync=True).total

    def direct(self) -> int:
        """Nanoseconds of one O_DIRECT|O_DSYNC pwrite of its pages."""
        return self._floors.pwrite(self._direct, self._address, self._pages, 1, sync=False).total

    def __enter__(self) -> DiskFloors:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def measure_laps(context: Context, length: int, ring: int, rounds: int, calls: int) -> list[Lap]:
    """Appends of one length in new logs, and the floors in turns: at most ``calls`` calls of each lap are timed."""
    laps = [Lap([], [], []) for _ in LAPS]
    payload = os.urandom(length)
    with DiskFloors(context.floors, context.disk_dir, ring, length) as floors:
        for _ in range(3):
            floors.plain(), floors.direct()
        for _ in range(rounds):
            with workloads.new_log(context.disk_dir, size=ring, ordering="pipelined", warmed=False) as wal:
                for lap in laps:
                    _one_lap(wal, payload, floors, lap, calls)
    return laps


def _one_lap(wal: pmwal.Wal, payload: bytes, floors: DiskFloors, lap: Lap, calls: int) -> None:
    """Fill the ring with durable appends and empty it; the first of them are timed."""
    append = functools.partial(workloads.timed, functools.partial(wal.append, payload))
    for turn in range(workloads.room(wal, len(payload)) or 1):
        if turn >= calls:
            append()
            continue
        for times, took in zip(lap, take_turns(turn, (append, floors.plain, floors.direct)), strict=True):
            times.append(took)
    workloads.empty(wal)


def large_appends(context: Context, *, size: str, length: int, ring: int) -> Iterator[Row]:
    """Durable appends of one size, against the faster floor."""
    for label, lap in _laps(context, length, ring):
        if lap is None:
            yield skipped(f"large {size}", label)
            continue
        against, floor = lap.floor
        yield _row(size, label, lap, against, floor)


def large_record(context: Context, *, size: str, length: int, ring: int) -> Iterator[Row]:
    """Durable appends of records so large that copying counts, against plain writes. O_DIRECT, which copies nothing, is shown."""
    for label, lap in _laps(context, length, ring):
        if lap is None:
            yield skipped(f"large {size}", label)
            continue
        yield _row(size, label, lap, PLAIN, lap.plain)
        yield beside(_row(size, label, lap, DIRECT, lap.direct))


def _laps(context: Context, length: int, ring: int) -> Iterator[tuple[str, Lap | None]]:
    """The laps by name, or why there are none."""
    if context.disk.in_memory:
        yield "the disk directory is in memory", None
        return
    scale = context.scale
    laps = measure_laps(context, min(length, scale.large_append), min(ring, scale.lap_ring), scale.rounds, scale.lap_calls)
    yield from zip(LAPS, laps, strict=True)


def _row(size: str, label: str, lap: Lap, against: str, floor: list[int]) -> Row:
    name, other = (DIRECT, lap.direct) if against == PLAIN else (PLAIN, lap.plain)
    what = f"durable append {size}, {label}, median of {len(lap.ours)}"
    figures = percentile(floor, 50), percentile(lap.ours, 50)
    tails = " and ".join(time_text(percentile(times, 99)) for times in (floor, lap.ours))
    parts = (f"p99 {tails}", f"{name} {time_text(percentile(other, 50))}", unsteady(floor))
    check = f"large {size}"
    return compare(check, what, against, figures, "ns", "at most", BARS[check], "; ".join(filter(None, parts)))


def small_after_large(context: Context) -> Iterator[Row]:
    """Sectors of durable appends of 128 bytes where large batches or records were stored before, and between them."""
    name = "small after large"
    counter = None if context.disk.in_memory else sectors.counter_of(context.disk_dir)
    if counter is None:
        yield skipped(name, "no block device to count sectors on")
        return
    record = os.urandom(min(MIB, context.scale.lap_ring // _LARGE))
    kinds: tuple[tuple[str, Callable[[pmwal.Wal], object]], ...] = (
        ("batches of 1,000 x 128 B", lambda wal: wal.extend(BATCH_OF_PAYLOADS)),
        (f"records of {len(record) >> 10} KiB", lambda wal: wal.append(record)),
    )
    for kind, store in kinds:
        written: list[int] = []
        with (
            workloads.new_log(context.disk_dir, size=context.scale.lap_ring, ordering="pipelined", warmed=False) as wal,
            sector_counter(counter) as count,
        ):
            needed = len(BATCH_OF_PAYLOADS) * workloads.record_size(len(PAYLOAD), 8) + 2 * len(record)
            while wal.free > needed:  # one lap
                store(wal)
            for _ in range(max(1, context.scale.lap_calls // _SMALL_COMMITS)):
                if wal.free < 2 * needed:
                    workloads.empty(wal)
                store(wal)
                for _ in range(_SMALL_COMMITS):
                    before = count()
                    wal.append(PAYLOAD)
                    written.append(count() - before)
        yield from sector_rows(name, f"among {kind}", written)
