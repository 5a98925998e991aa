"""Checks of durable commits on a disk, of one thread, of several and of tasks, against direct writes and group commits in C."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter_ns
from typing import NamedTuple

import numpy as np

import pmwal
import sectors
from benchmark import workloads
from benchmark.context import Context, PageBuffer
from benchmark.floors import PAGE, Area
from benchmark.gate import BARS, Row, absolute, compare, skipped
from benchmark.stats import median, percentile, time_text
from benchmark.workloads import BATCH, BATCH_OF_PAYLOADS, PAYLOAD

_THREADS = 8
_WARM_PAIRS = 0.05
_COUNTED = 2000  # appends whose sectors are counted
_STEADY = 5


class Pairs(NamedTuple):
    """Times of pmwal and of its floor, which took turns."""

    ours: list[int]
    floor: list[int]


def disk_append(context: Context, *, situation: str) -> Iterator[Row]:
    """A durable append on a disk, in turns with an O_DIRECT|O_DSYNC pwrite of 4 KiB, with a log of tools/sectors.py."""
    name = f"disk append {situation}"
    if context.disk.in_memory:
        yield skipped(name, "the disk directory is in memory")
        return
    counter = sectors.counter_of(context.disk_dir)
    pairs, figures = _disk_pairs(context, situation, counter)
    floor = "O_DIRECT|O_DSYNC pwrite of 4 KiB, "
    for q, label, bar in ((50.0, "p50", "p50"), (99.0, "p99", "tail"), (99.9, "p99.9", "tail")):
        what = f"durable append 128 B, {situation}, {label} of {len(pairs.ours)} in turn"
        values = percentile(pairs.floor, q), percentile(pairs.ours, q)
        yield compare(name, what, floor + label, values, "ns", "at most", BARS[f"disk append {bar}"], unsteady(pairs.floor))
    if counter is None:
        yield skipped(name, "sectors: no block device to count them on")
        return
    mean = float(np.mean(figures))
    note = f"median {median(figures):g}; includes everything else that wrote to the device meanwhile"
    what = f"sectors of 512 bytes for each commit, mean, {situation}"
    yield absolute(name, what, mean, "sectors", "at least", BARS["disk append sectors least"], note)
    yield absolute(name, what, mean, "sectors", "at most", BARS["disk append sectors most"], note)


def _disk_pairs(context: Context, situation: str, counter: Path | None) -> tuple[Pairs, list[int]]:
    """Time both in turns; then count the sectors of appends separately, because reading the counter would add to the times."""
    prepare, on_full = next((prepare, on_full) for name, prepare, on_full in sectors.CASES if name == situation)
    path = context.disk_dir / f"{situation}.wal"
    prepare(path)
    pairs, written = Pairs([], []), []
    warm = max(1, int(context.scale.pairs * _WARM_PAIRS))
    with contextlib.ExitStack() as stack:
        stack.callback(path.unlink)
        area = stack.enter_context(Area(context.disk_dir / "direct", context.scale.ring, flags=os.O_DIRECT | os.O_DSYNC))
        wal = stack.enter_context(pmwal.open(path, "r+", ordering="pipelined", on_full=on_full))
        count = stack.enter_context(_sector_counter(counter))
        page = PageBuffer()
        os.sync()
        for turn in range(context.scale.pairs + warm):
            if not workloads.room(wal, len(PAYLOAD)):
                workloads.empty(wal)
            start = perf_counter_ns()
            wal.append(PAYLOAD)
            took = perf_counter_ns() - start
            floor = context.floors.pwrite(area, page.address, PAGE, 1, sync=False)
            if turn >= warm:
                pairs.ours.append(took)
                pairs.floor.append(int(floor.each[0]))
        for _ in range(min(context.scale.pairs, _COUNTED)):
            if not workloads.room(wal, len(PAYLOAD)):
                workloads.empty(wal)
            before = count()
            wal.append(PAYLOAD)
            written.append(count() - before)
    return pairs, written


def unsteady(floor: list[int]) -> str:
    """A warning if the floor itself shows that the disk was busy."""
    middle, high = percentile(floor, 50), percentile(floor, 95)
    if high <= _STEADY * middle:
        return ""
    return f"UNSTEADY: the floor's own p95 is {high / middle:.0f} times its p50; measure again while nothing else uses the disk"


@contextlib.contextmanager
def _sector_counter(path: Path | None) -> Iterator[Callable[[], int]]:
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
    """A durable extend of 1,000 records on a disk, in turns with a pwrite of as many bytes and fdatasync."""
    if context.disk.in_memory:
        yield skipped("disk extend", "the disk directory is in memory")
        return
    scale, ours, floor = context.scale, [], []
    size = BATCH * workloads.record_size(len(PAYLOAD), 8)
    data = bytes(size)
    with (
        Area(context.disk_dir / "floor", scale.ring) as area,
        workloads.new_log(context.disk_dir, size=scale.ring, ordering="pipelined") as wal,
    ):
        warm = max(1, scale.disk_extends // 10)
        for turn in range(scale.disk_extends * scale.rounds + warm):
            pair = (
                context.floors.pwrite(area, data, size, 1, sync=True).total,
                workloads.extend_each(wal, BATCH_OF_PAYLOADS, 1).total,
            )
            if turn >= warm:
                floor.append(pair[0])
                ours.append(pair[1])
    rates = [BATCH * len(times) / sum(times) * 1e9 for times in (floor, ours)]
    what = f"durable extend of 1,000 x 128 B ({size} bytes stored)"
    against = "pwrite of the same bytes + fdatasync"
    note = f"p50 {time_text(percentile(floor, 50))} and {time_text(percentile(ours, 50))}"
    yield compare("disk extend", what, against, rates, "records/s", "at least", BARS["disk extend"], note)


def threads(context: Context) -> Iterator[Row]:
    """Eight threads that append durably, against a group commit in C."""
    if context.disk.in_memory:
        yield skipped("threads", "the disk directory is in memory")
        return
    scale, ours, floor = context.scale, [], []
    with (
        Area(context.disk_dir / "floor", scale.ring) as area,
        workloads.new_log(context.disk_dir, size=scale.ring) as wal,
    ):
        for turn in range(scale.rounds + 1):
            runs = [
                context.floors.group_commit(area, PAYLOAD, _THREADS, scale.each_thread, sync_file=sync_file)
                for sync_file in (False, True)
            ]
            found = workloads.append_threads(wal, PAYLOAD, _THREADS, scale.each_thread)
            if turn:
                floor.append(min(runs))
                ours.append(found)
    records = _THREADS * scale.each_thread
    shared = median([run.barriers_per_record for run in ours])
    note = f"the C group commit: {median([barriers / records for _, barriers in floor]):.3f}"
    what = f"{_THREADS} threads, durable append 128 B: barriers for each record"
    yield absolute("threads", what, shared, "", "at most", BARS["threads barriers"], note)
    rates = median([records / total * 1e9 for total, _ in floor]), median([run.rate for run in ours])
    what, against = f"{_THREADS} threads, durable append 128 B", "C group commit, the better of msync and fdatasync"
    yield compare("threads", what, against, rates, "records/s", "at least", BARS["threads rate"])


def tasks(context: Context) -> Iterator[Row]:
    """Many tasks that append durably at once, against one append after another in the same event loop."""
    if context.disk.in_memory:
        yield skipped("tasks", "the disk directory is in memory")
        return
    scale, alone = context.scale, max(1, context.scale.tasks // 10)
    runs = [workloads.append_tasks(context.disk_dir, PAYLOAD, scale.tasks, alone=alone) for _ in range(scale.rounds + 1)][1:]
    rates = alone / median([run.alone for run in runs]) * 1e9, scale.tasks / median([run.together for run in runs]) * 1e9
    what = f"{scale.tasks} tasks, durable append 128 B each, in one event loop"
    note = f"{median([run.commits for run in runs]):g} commits"
    yield compare("tasks", what, "one task, one after another", rates, "records/s", "at least", BARS["tasks"], note)


def beside_computing(context: Context) -> Iterator[Row]:
    """A durable append while a thread computes in Python, against the same append alone.

    Python switches between the two threads every switch interval, so at best half of the rate is left. The note says what is left
    of the rate of a C loop that computes every other interval, because a disk that was idle is slow to answer.
    """
    count, page = context.scale.beside, PageBuffer()
    alone, beside, turns = [], [], []
    with (
        workloads.new_log(context.disk_dir, size=context.scale.ring) as wal,
        Area(context.disk_dir / "direct", context.scale.ring, flags=os.O_DIRECT | os.O_DSYNC) as area,
    ):
        for turn in range(context.scale.rounds + 1):
            rates = [workloads.append_threads(wal, PAYLOAD, 1, count).rate]
            with workloads.computing():
                rates.append(workloads.append_threads(wal, PAYLOAD, 1, count).rate)
            bare = context.floors.pwrite(area, page.address, PAGE, count, sync=False).total
            interrupted = context.floors.pwrite_turns(area, page.address, sys.getswitchinterval(), count)
            if turn:
                alone.append(rates[0])
                beside.append(rates[1])
                turns.append(bare / interrupted)
    what = f"durable append 128 B beside one computing thread, {context.disk.mount.filesystem}"
    figures = median(alone), median(beside)
    note = f"O_DIRECT|O_DSYNC pwrite in C that computes every other {sys.getswitchinterval() * 1e3:g} ms keeps {median(turns):.2f}"
    yield compare("beside computing", what, "alone", figures, "records/s", "at least", BARS["beside computing"], note)
