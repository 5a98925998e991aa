"""Checks of durable commits on a disk, of one thread, of several and of tasks, against direct writes and group commits in C."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

import pmwal
import sectors
from benchmark.context import Context
from benchmark.gate import BARS, Row, absolute, compare, skipped
from pmwal.testing.bench import workloads
from pmwal.testing.bench.floors import PAGE, Area, PageBuffer
from pmwal.testing.bench.stats import median, percentile, time_text
from pmwal.testing.bench.workloads import BATCH, BATCH_OF_PAYLOADS, PAYLOAD

_WARM_PAIRS = 0.05
_COUNTED = 2000  # appends whose sectors are counted
_STEADY = 5


def take_turns(turn: int, calls: Sequence[Callable[[], int]]) -> list[int]:
    """The time that each call says it took, all of them in a row, and over several turns in every order equally often.

    Nothing may run between them, and none may always follow the same one: a disk that was idle is slow to answer, and how slow
    depends on what it did before.
    """
    orders = list(itertools.permutations(range(len(calls))))
    times = dict.fromkeys(range(len(calls)), 0)
    for index in orders[turn % len(orders)]:
        times[index] = calls[index]()
    return list(times.values())


class Refill:
    """Empties a log between the turns in which it is appended to, without asking in each of them how much room is left."""

    def __init__(self, wal: pmwal.Wal, records: int) -> None:
        self._wal, self._records, self._left = wal, records, 0

    def before_turn(self) -> None:
        """Make room for the records of one turn, if there may be none."""
        if self._left <= 0:
            self._left = self._fits() or self._emptied()
        self._left -= 1

    def _emptied(self) -> int:
        workloads.empty(self._wal)
        return self._fits()

    def _fits(self) -> int:
        return workloads.room(self._wal, len(PAYLOAD)) // self._records


def disk_append(context: Context, *, situation: str) -> Iterator[Row]:
    """A durable append on a disk, in turns with an O_DIRECT|O_DSYNC pwrite of 4 KiB, with a log of tools/sectors.py."""
    name = f"disk append {situation}"
    if context.disk.in_memory:
        yield skipped(name, "the disk directory is in memory")
        return
    counter = sectors.counter_of(context.disk_dir)
    pairs, figures = _disk_pairs(context, situation, counter)
    bare, ours = zip(*pairs, strict=True)
    floor = "O_DIRECT|O_DSYNC pwrite of 4 KiB, "
    for q, label in ((50.0, "p50"), (99.0, "p99"), (99.9, "p99.9")):
        what = f"durable append 128 B, {situation}, {label} of {len(ours)} in turn"
        values = percentile(bare, q), percentile(ours, q)
        yield compare(name, what, floor + label, values, "ns", "at most", BARS[f"disk append {label}"], unsteady(bare))
    if counter is None:
        yield skipped(name, "sectors: no block device to count them on")
        return
    yield from sector_rows(name, situation, figures)


def sector_rows(name: str, situation: str, figures: list[int]) -> Iterator[Row]:
    """Rows of the sectors that commits of 128 bytes wrote."""
    mean = float(np.mean(figures))
    note = f"median {median(figures):g}; includes everything else that wrote to the device meanwhile"
    what = f"sectors of 512 bytes for each commit, mean, {situation}"
    yield absolute(name, what, mean, "sectors", "at least", BARS["disk append sectors least"], note)
    yield absolute(name, what, mean, "sectors", "at most", BARS["disk append sectors most"], note)


def _disk_pairs(context: Context, situation: str, counter: Path | None) -> tuple[list[list[int]], list[int]]:
    """Times of the floor and of an append, in turns; then the sectors of more appends, because reading the counter takes time."""
    prepare, on_full = next((prepare, on_full) for name, prepare, on_full in sectors.CASES if name == situation)
    path = context.disk_dir / f"{situation}.wal"
    prepare(path)
    warm = max(1, int(context.scale.pairs * _WARM_PAIRS))
    with contextlib.ExitStack() as stack:
        stack.callback(path.unlink)
        area = stack.enter_context(Area(context.disk_dir / "direct", context.scale.ring, flags=os.O_DIRECT | os.O_DSYNC))
        wal = stack.enter_context(pmwal.open(path, "r+", ordering="pipelined", on_full=on_full))
        count = stack.enter_context(sector_counter(counter))
        page, refill = PageBuffer(), Refill(wal, 1)
        calls = (
            lambda: int(context.floors.pwrite(area, page.address, PAGE, 1, sync=False).each[0]),
            functools.partial(workloads.timed, functools.partial(wal.append, PAYLOAD)),
        )
        os.sync()
        pairs = []
        for turn in range(context.scale.pairs + warm):
            refill.before_turn()
            pairs.append(take_turns(turn, calls))
        written = []
        for _ in range(min(context.scale.pairs, _COUNTED)):
            refill.before_turn()
            before = count()
            wal.append(PAYLOAD)
            written.append(count() - before)
    return pairs[warm:], written


def unsteady(floor: Sequence[int]) -> str:
    """A warning if the floor itself shows that the disk was busy."""
    middle, high = percentile(floor, 50), percentile(floor, 95)
    if high <= _STEADY * middle:
        return ""
    return f"UNSTEADY: the floor's own p95 is {high / middle:.0f} times its p50; measure again while nothing else uses the disk"


@contextlib.contextmanager
def sector_counter(path: Path | None) -> Iterator[Callable[[], int]]:
    """Field 7 of the device's counters, read without opening the file each time."""
    if path is None:
        yield lambda: 0
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        yield lambda: sectors.sectors_in(os.pread(fd, 4096, 0))
    finally:
        os.close(fd)


def disk_extend(context: Context) -> Iterator[Row]:
    """A durable extend of 1,000 records on a disk, in turns with a pwrite of their payloads in one piece and fdatasync."""
    if context.disk.in_memory:
        yield skipped("disk extend", "the disk directory is in memory")
        return
    scale, payloads = context.scale, BATCH * len(PAYLOAD)
    stored = BATCH * workloads.record_size(len(PAYLOAD), 8)
    data = bytes(stored)
    with (
        Area(context.disk_dir / "payloads", scale.ring, large=True) as area,
        Area(context.disk_dir / "stored", scale.ring, large=True) as same_area,
        workloads.new_log(context.disk_dir, size=scale.ring, ordering="pipelined") as wal,
    ):
        refill = Refill(wal, BATCH)
        calls = (
            lambda: context.floors.pwrite(area, data, payloads, 1, sync=True).total,
            lambda: context.floors.pwrite(same_area, data, stored, 1, sync=True).total,
            functools.partial(workloads.timed, functools.partial(wal.extend, BATCH_OF_PAYLOADS)),
        )
        warm = max(1, scale.disk_extends // 10)
        turns = []
        for turn in range(scale.disk_extends * scale.rounds + warm):
            refill.before_turn()
            turns.append(take_turns(turn, calls))
    times = list(zip(*turns[warm:], strict=True))
    payloads_rate, same_rate, ours = (BATCH * len(each) / sum(each) * 1e9 for each in times)
    what = f"durable extend of 1,000 x {len(PAYLOAD)} B ({stored} bytes stored)"
    against = f"one pwrite of {payloads} bytes + fdatasync"
    p50 = " and ".join(time_text(percentile(each, 50)) for each in (times[0], times[2]))
    note = f"p50 {p50}; against a pwrite of the bytes stored: {ours / same_rate:.3f}"
    yield compare("disk extend", what, against, (payloads_rate, ours), "records/s", "at least", BARS["disk extend"], note)
