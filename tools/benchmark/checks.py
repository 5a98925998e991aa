"""The checks of the gate: each measures pmwal beside its floor in turns, and gives rows.

A check is given a ``Context`` and yields rows. What it cannot measure here it yields as a skipped row with the reason.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter_ns
from typing import NamedTuple

import numpy as np

import pmwal
import sectors
from benchmark import followers, loggers, workloads
from benchmark.context import MIB, Context, PageBuffer, available_memory, free_space
from benchmark.floors import PAGE, Area, FloorsUnavailable, Loop
from benchmark.gate import BARS, Row, absolute, broken, compare, skipped
from benchmark.media import Place
from benchmark.peers import PEERS
from benchmark.peers.base import DURABLE_APPEND, DURABLE_EXTEND, PROCESS_APPEND, READ
from benchmark.stats import Times, median, merge, percentile, rate_text, time_text
from benchmark.workloads import BATCH, PAYLOAD, Image

BATCH_OF_PAYLOADS = [PAYLOAD] * BATCH
CONTROL_SIZE = 128 * 1024
_THREADS = 8
_WARM_PAIRS = 0.05
_COUNTED = 2000  # appends whose sectors are counted
_STEADY = 5


class Pairs(NamedTuple):
    """Calls of pmwal and of its floor, one of each in turn."""

    ours: list[int]
    floor: list[int]


def append_memory(context: Context) -> Iterator[Row]:
    """append(128 B, commit=False) on memory, against the C loop."""
    scale, floors = context.scale, context.floors
    whole: list[tuple[Loop, Loop]] = []
    each: list[tuple[Loop, Loop]] = []
    with (
        Area(context.memory_dir / "floor", scale.ring) as area,
        workloads.new_log(context.memory_dir, size=scale.ring, medium="memory") as wal,
    ):
        floors.append(area, PAYLOAD, scale.memory_calls)
        workloads.append_loop(wal, PAYLOAD, scale.memory_calls, commit=False)
        for _ in context.rounds:
            floor = floors.append(area, PAYLOAD, scale.memory_calls)
            whole.append((floor, workloads.append_loop(wal, PAYLOAD, scale.memory_calls, commit=False)))
            floor = floors.append(area, PAYLOAD, scale.memory_timed, each=True)
            each.append((floor, workloads.append_each(wal, PAYLOAD, scale.memory_timed, commit=False)))
        clocks = (
            percentile(floors.timer(scale.memory_timed).each, 50),
            percentile(workloads.timer(scale.memory_timed), 50),
        )
    name = "append memory"
    figures = [median([run[place].mean for run in whole]) for place in (0, 1)]
    what = "append(128 B, commit=False), memory, time of the loop by calls"
    yield compare(name, what, "C loop", figures, "ns", "at most", BARS["append memory"])
    tails = [median([percentile(run[place].each, 99.9) for run in each]) for place in (0, 1)]
    dearer = max(0.0, clocks[1] - clocks[0])
    note = (
        f"two clock reads take {time_text(clocks[0])} in C and {time_text(clocks[1])} in Python; the floor is given the "
        f"{time_text(dearer)} between them; as measured it has {time_text(tails[0])}, ratio {tails[1] / tails[0]:.3f}"
    )
    what = "the same, p99.9 of single calls, each with two clock reads"
    yield compare(name, what, "C loop p99.9", (tails[0] + dearer, tails[1]), "ns", "at most", BARS["append memory p99.9"], note)


def dax(context: Context, *, ordering: str) -> Iterator[Row]:
    """A durable append on emulated persistent memory, against the raw stores and fences."""
    scale, strict = context.scale, ordering == "strict"
    ours, floor, names = [], [], []
    with (
        Area(context.memory_dir / "floor", scale.ring) as area,
        Area(context.memory_dir / "control", CONTROL_SIZE) as control,
        workloads.new_log(context.memory_dir, size=scale.ring, medium="emulated-dax", ordering=ordering) as wal,
    ):
        for turn in range(scale.rounds + 1):
            name, best = context.floors.best_dax(area, control, PAYLOAD, scale.memory_calls, strict=strict)
            loop = workloads.append_loop(wal, PAYLOAD, scale.memory_calls, commit=True)
            if turn:  # the first is the warm-up
                names.append(name)
                floor.append(best.mean)
                ours.append(loop.mean)
        flush = wal.stats().flush
    best_name = max(set(names), key=names.count)
    what = f"durable append 128 B, emulated-dax, {ordering}, pmwal flushes by {flush}"
    against = f"raw store ({best_name}) + " + ("two fences" if strict else "CRC + one fence")
    name = f"dax {ordering}"
    yield compare(name, what, against, (median(floor), median(ours)), "ns", "at most", BARS[name])


def extend_memory(context: Context) -> Iterator[Row]:
    """extend of 1,000 records of 128 B, against the C loop."""
    scale, ours, floor = context.scale, [], []
    with (
        Area(context.memory_dir / "floor", scale.ring) as area,
        workloads.new_log(context.memory_dir, size=scale.ring, medium="memory", commit="manual") as wal,
    ):
        for turn in range(scale.rounds + 1):
            loops = (
                context.floors.extend(area, BATCH_OF_PAYLOADS, scale.extends),
                workloads.extend_each(wal, BATCH_OF_PAYLOADS, scale.extends),
            )
            if turn:
                floor.append(loops[0].mean)
                ours.append(loops[1].mean)
    what = 'extend of 1,000 x 128 B, memory, commit="manual"'
    yield compare("extend memory", what, "C loop", (median(floor), median(ours)), "ns", "at most", BARS["extend memory"])


def arrays(context: Context) -> Iterator[Row]:
    """extend_array and read_array of many rows of 64 bytes, against their bar and against memcpy of the payloads."""
    scale = context.scale
    rows = np.arange(scale.rows * 8, dtype=np.int64).reshape(scale.rows, 8)
    again, copy = np.zeros_like(rows), np.zeros_like(rows)

    def memcpy() -> None:
        ctypes.memmove(copy.ctypes.data, rows.ctypes.data, rows.nbytes)

    size = 2 * scale.rows * workloads.record_size(rows.itemsize * 8, 8)
    rounds: list[tuple[int, ...]] = []
    with workloads.new_log(context.memory_dir, size=size, medium="memory") as wal:
        for _ in range(scale.rounds + 1):
            stored = workloads.extend_array(wal, rows)
            new = workloads.timed(rows.copy), workloads.read_array(wal, rows)
            rounds.append((stored, *new, workloads.timed(memcpy), workloads.read_array(wal, rows, again)))
    times = [median(column) for column in zip(*rounds[1:], strict=True)]  # the first is the warm-up
    what = f"extend_array of {scale.rows} x 64 B, memory, durable"
    yield absolute("arrays", what, scale.rows / times[0] * 1e9, "records/s", "at least", BARS["extend array"])
    copied, read, memory_copied, read_again = (rows.nbytes / took * 1e9 for took in times[1:])
    note = f"with out= {rate_text(read_again, 'B/s')}; memcpy into the same memory again {rate_text(memory_copied, 'B/s')}"
    what = f"read_array of {scale.rows} x 64 B, memory; payload bytes"
    yield compare("arrays", what, "memcpy into a new array", (copied, read), "B/s", "at least", BARS["read array"], note)


def disk_append(context: Context, *, situation: str) -> Iterator[Row]:
    """A durable append on a disk, in turn with O_DIRECT|O_DSYNC pwrite of 4 KiB, in one of the situations of tools/sectors.py."""
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
    note = f"median {median(figures):g}; everything else that wrote to the device meanwhile is in it"
    what = f"sectors of 512 bytes for each commit, mean, {situation}"
    yield absolute(name, what, mean, "sectors", "at least", BARS["disk append sectors least"], note)
    yield absolute(name, what, mean, "sectors", "at most", BARS["disk append sectors most"], note)


def _disk_pairs(context: Context, situation: str, counter: Path | None) -> tuple[Pairs, list[int]]:
    """One of each in turn; and then the sectors that an append writes: reading the counter would be in the times of both."""
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
    """A warning when the floor itself says that the disk had something else to do."""
    middle, high = percentile(floor, 50), percentile(floor, 95)
    if high <= _STEADY * middle:
        return ""
    return f"UNSTEADY: the floor's own p95 is {high / middle:.0f} times its p50; measure again when nothing else uses the disk"


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
    """A durable extend of 1,000 records on a disk, in turn with pwrite of as many bytes and fdatasync."""
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
    """Many tasks that append durably at once, against one append after the other in the same event loop."""
    if context.disk.in_memory:
        yield skipped("tasks", "the disk directory is in memory")
        return
    scale, alone = context.scale, max(1, context.scale.tasks // 10)
    runs = [workloads.append_tasks(context.disk_dir, PAYLOAD, scale.tasks, alone=alone) for _ in range(scale.rounds + 1)][1:]
    rates = alone / median([run.alone for run in runs]) * 1e9, scale.tasks / median([run.together for run in runs]) * 1e9
    what = f"{scale.tasks} tasks, durable append 128 B each, in one event loop"
    note = f"{median([run.commits for run in runs]):g} commits"
    yield compare("tasks", what, "one task, one after the other", rates, "records/s", "at least", BARS["tasks"], note)


def beside_computing(context: Context) -> Iterator[Row]:
    """A durable append beside a thread of pure Python, against the same alone.

    Python gives each of the two threads the interpreter for a switch interval at a time, so half of the rate is the most. The note
    says how much of the rate alone a loop in C keeps that computes every other interval: a disk that was idle is slow to answer.
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


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[tuple[int, int]]:
    """Address and size of a file, mapped for reading with all pages present: no floor pays for page faults."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as view:
        array = np.frombuffer(view, dtype=np.uint8)
        array[:: mmap.PAGESIZE].sum()
        yield array.ctypes.data, len(view)
        del array


def recovery_small(context: Context) -> Iterator[Row]:
    """Recovery of a full ring of 128-byte records on memory, against one CRC32C for each payload."""
    image = workloads.make_image(context.memory_dir, capacity=context.scale.small_ring, length=len(PAYLOAD))

    def floor(address: int, size: int) -> float:
        ring = image.records * image.stride
        return float(context.floors.crc_each(address + image.ring_offset, ring, image.stride, image.length))

    what = f"open after a kill, {image.records} records of 128 B, memory, warm; payload bytes"
    yield from _recovery(context, "recovery small", image, what, "CRC32C of each payload", floor, image.payload_bytes)


def recovery_large(context: Context) -> Iterator[Row]:
    """Recovery of a large log of 4 KiB records on memory, against one thread's CRC32C bandwidth."""
    ring = context.scale.large_ring
    if min(available_memory(), free_space(context.memory_dir)) < 3 * ring:
        yield skipped("recovery large", f"three files of {ring >> 20} MiB do not fit into the memory that is free")
        return
    image = workloads.make_image(context.memory_dir, capacity=ring, length=4096)

    def floor(address: int, size: int) -> float:
        return context.floors.crc(address, size) * image.payload_bytes / size

    what = f"open after a kill, {ring >> 20} MiB in records of 4 KiB, memory, warm; payload bytes"
    against = "CRC32C of the file, three chains"
    yield from _recovery(context, "recovery large", image, what, against, floor, image.payload_bytes)


def _recovery(
    context: Context, name: str, image: Image, what: str, against: str, floor: Callable[[int, int], float], size: int
) -> Iterator[Row]:
    """Rounds of both, each recovery from a fresh copy; the rates of ``size`` bytes are compared."""
    ours, bare = [], []
    copy = context.memory_dir / "recover.wal"
    try:
        with mapped(image.path) as (address, length):
            for turn in range(context.scale.rounds + 1):
                took = floor(address, length)
                shutil.copyfile(image.path, copy)
                recovered = workloads.recover(image, copy, medium="memory")
                if turn:
                    bare.append(took)
                    ours.append(recovered)
    finally:
        image.path.unlink()
    rates = [size / median(times) * 1e9 for times in (bare, ours)]
    note = f"open took {time_text(median(ours))}"
    yield compare(name, what, against, rates, "B/s", "at least", BARS[name], note)


def recovery_cold(context: Context) -> Iterator[Row]:
    """Recovery of a large log that is not in the page cache, against reading the file from its beginning."""
    ring, name = context.scale.large_ring, "recovery cold"
    if context.disk.in_memory:
        yield skipped(name, "the disk directory is in memory")
        return
    if min(free_space(context.disk_dir), available_memory()) < 3 * ring:
        yield skipped(name, f"three files of {ring >> 20} MiB do not fit")
        return
    image = workloads.make_image(context.memory_dir, capacity=ring, length=4096)
    path, ours, floor = context.disk_dir / "cold.wal", [], []
    try:
        size = image.path.stat().st_size
        for turn in range(context.scale.rounds + 1):
            shutil.copyfile(image.path, path)
            reads = [_cold_read(context, path, flags) for flags in (0, os.O_DIRECT)]
            _drop(path)
            recovered = workloads.recover(image, path, medium="file")
            if turn:  # the first also fills caches below this system, if there are any: all later ones find them filled
                floor.append(float(min(reads)))
                ours.append(recovered)
    finally:
        image.path.unlink()
        path.unlink(missing_ok=True)
    rates = [size / median(times) * 1e9 for times in (floor, ours)]
    what = f"open after a kill, {ring >> 20} MiB in records of 4 KiB, cold; bytes of the file"
    against = "sequential read, the better of buffered and O_DIRECT"
    yield compare(name, what, against, rates, "B/s", "at least", BARS[name], f"open took {time_text(median(ours))}")


def _drop(path: Path) -> None:
    """Write back a file and drop it from the page cache."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _cold_read(context: Context, path: Path, flags: int) -> int:
    _drop(path)
    size = path.stat().st_size
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return context.floors.read(fd, size)
    finally:
        os.close(fd)


def read(context: Context) -> Iterator[Row]:
    """Reading all records, against a cursor of lmdb."""
    found = context.peers(READ, ("pmwal", "lmdb"))
    if "pmwal" not in found:
        yield broken("read", context.unavailable.get(f"pmwal, {READ}", "pmwal was not measured"))
        return
    if "lmdb" not in found:
        yield skipped("read", context.unavailable.get("lmdb", "lmdb could not be measured"))
        return
    what = "for rec in wal.read(), 128 B, tmpfs"
    figures = found["lmdb"].rate, found["pmwal"].rate
    yield compare("read", what, "for k, v in cursor (lmdb)", figures, "records/s", "at least", BARS["read"])


def peers(context: Context) -> Iterator[Row]:
    """Every peer, every workload that stores."""
    for workload in (DURABLE_APPEND, PROCESS_APPEND, DURABLE_EXTEND):
        if context.place_for(workload) is context.disk and context.disk.in_memory:
            yield skipped("peers", f"{workload}: the disk directory is in memory")
            continue
        found = context.peers(workload)
        if "pmwal" not in found:
            yield broken("peers", context.unavailable.get(f"pmwal, {workload}", f"{workload}: pmwal was not measured"))
            continue
        ours = found["pmwal"]
        for name, figures in found.items():
            if PEERS[name].ours:
                continue
            note = (
                f"p50 {time_text(figures.latency.p50)} and {time_text(ours.latency.p50)}, "
                f"p99 {time_text(figures.latency.p99)} and {time_text(ours.latency.p99)}; {PEERS[name].settings[workload]}"
            )
            what = f"{workload}, 128 B: pmwal {'ahead' if ours.rate >= figures.rate else 'behind'}"
            rates = figures.rate, ours.rate
            yield compare("peers", what, name, rates, "records/s", "at least", BARS["peers"], note)
    for key, message in context.unavailable.items():
        if not key.startswith("pmwal"):
            yield skipped("peers", message)


def flat_append(context: Context) -> Iterator[Row]:
    """The same append in a small, a middling and a very large ring."""
    scale = context.scale
    usable = [size for size in scale.flat if min(available_memory(), free_space(context.memory_dir)) > 2 * size]
    note = ""
    if len(usable) < len(scale.flat):
        usable.append(min(scale.flat[-1], 1 << 30))
        note = f"{scale.flat[-1] >> 20} MiB do not fit into the memory that is free, so {usable[-1] >> 20} MiB; "
    ours: dict[int, list[float]] = {size: [] for size in usable}
    floor: dict[int, list[float]] = {size: [] for size in usable}
    for size in usable:
        with Area(context.memory_dir / "floor", size) as area:
            for _ in context.rounds:
                floor[size].append(context.floors.append(area, PAYLOAD, scale.memory_calls).mean)
    with contextlib.ExitStack() as stack:
        wals = {size: stack.enter_context(workloads.new_log(context.memory_dir, size=size, medium="memory")) for size in usable}
        for turn in range(scale.rounds + 1):
            for size, wal in wals.items():
                loop = workloads.append_loop(wal, PAYLOAD, scale.memory_calls, commit=False)
                if turn:
                    ours[size].append(loop.mean)
    figures = {size: median(values) for size, values in ours.items()}
    bare = {size: median(values) for size, values in floor.items()}
    low, high = min(figures.values()), max(figures.values())
    names = ", ".join(f"{size / MIB:g} MiB {time_text(figures[size])} (C loop {time_text(bare[size])})" for size in usable)
    what = "append(128 B, commit=False), memory: slowest ring against fastest"
    yield compare("flat append", what, "fastest ring", (low, high), "ns", "at most", BARS["flat append"], note + names)


def log_calls(context: Context) -> Iterator[Row]:
    """One call of ``pmwal.events`` and of ``LogHandler``, against logging to a file, formatting for nothing, and enqueueing."""
    name, found = "log calls", loggers.measure(context, list(loggers.LOGGERS))
    times = {logger: 1e9 / latency.rate for logger, latency in found.items()}
    allowed = BARS["log handler ns"]
    floor, more = loggers.paired(context, loggers.DROP, loggers.HANDLER)
    what = f"logger.info to a LogHandler takes at most {time_text(allowed)} more than formatting takes"
    note = f"{time_text(abs(more))} {'more' if more >= 0 else 'less'}"
    figures = floor + allowed, floor + more
    yield compare(name, what, f"formats and drops, and {time_text(allowed)}", figures, "ns", "at most", 1.0, note)
    if loggers.EVENT not in times:
        yield skipped(name, context.unavailable[loggers.EVENT])
    else:
        event = times[loggers.EVENT]
        what = "fill(id, qty, px) against logger.info"
        yield compare(name, what, loggers.FILE, (times[loggers.FILE], event), "ns", "at most", BARS["log event"])
        for other, took in times.items():
            if loggers.LOGGERS[other].enqueues:
                what = "fill(id, qty, px) against a logger that only enqueues"
                yield compare(name, what, other, (took, event), "ns", "at most", BARS["log event enqueued"])
    for logger, message in context.unavailable.items():
        if logger in loggers.LOGGERS and logger != loggers.EVENT:
            yield skipped(name, message)


def follow(context: Context) -> Iterator[Row]:
    """How soon a follower in another process has a record, beside a bare wake-up, and what it takes while there is none."""
    scale = context.scale
    for place in (context.disk, context.memory):
        found, wakes = _deliveries(context, place)
        warm = scale.follows  # the first round
        from_return, from_call, bare = found.from_return[warm:], found.from_call[warm:], wakes[warm:]
        middle, high = ([percentile(times, q) / 1e3 for times in (from_return, from_call, bare)] for q in (50.0, 99.0))
        where = place.mount.filesystem
        what = f"from the return of append to the record in another process that slept, {where}, median of {len(from_return)}"
        note = (
            f"p99 {high[0]:.0f} µs; from the call of append {middle[1]:.0f} and {high[1]:.0f} µs; "
            f"a futex wake-up between two processes in C, in turns: {middle[2]:.0f} and {high[2]:.0f} µs"
        )
        yield absolute("follow", what, middle[0], "µs", "at most", BARS["follow µs"], note)
        what = f"processor time of that follower while nothing is appended, {where}, {scale.idle:g} s"
        yield absolute("follow", what, 100 * found.idle_share, "%", "at most", BARS["follow idle %"])


def _deliveries(context: Context, place: Place) -> tuple[followers.Deliveries, Times]:
    """What a follower of a log here was handed, and the wake-ups of the floor: all rounds, in turns."""
    scale, wakes = context.scale, []

    def wake() -> None:
        wakes.append(context.floors.wake(followers.PAUSE, scale.follows).each)

    with workloads.new_log(place.directory, size=scale.ring) as wal:
        found = followers.measure(
            wal, PAYLOAD, rounds=scale.rounds + 1, each_round=scale.follows, idle=scale.idle, before_round=wake
        )
    return found, merge(wakes)


Check = Callable[[Context], Iterator[Row]]

CHECKS: dict[str, Check] = {
    "append memory": append_memory,
    "dax strict": functools.partial(dax, ordering="strict"),
    "dax pipelined": functools.partial(dax, ordering="pipelined"),
    "extend memory": extend_memory,
    "arrays": arrays,
    "disk append fresh": functools.partial(disk_append, situation="fresh"),
    "disk append reopened": functools.partial(disk_append, situation="reopened"),
    "disk append wrapped": functools.partial(disk_append, situation="wrapped"),
    "disk extend": disk_extend,
    "threads": threads,
    "tasks": tasks,
    "beside computing": beside_computing,
    "recovery small": recovery_small,
    "recovery large": recovery_large,
    "recovery cold": recovery_cold,
    "read": read,
    "peers": peers,
    "flat append": flat_append,
    "follow": follow,
    "log calls": log_calls,
}
"""Name -> check, in the order in which they run."""


def run_check(name: str, context: Context) -> list[Row]:
    """One check; without floors a skipped row that says why. An exception is a row that failed, not the end of a run."""
    rows: list[Row] = []
    try:
        rows.extend(CHECKS[name](context))
    except FloorsUnavailable as error:
        rows.append(skipped(name, str(error)))
    except Exception as error:
        rows.append(broken(name, f"{type(error).__name__}: {error}"))
    return rows
