"""Checks of logs in memory against C loops."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import numpy as np

from benchmark.context import MIB, Context, free_space
from benchmark.gate import BARS, Row, absolute, compare
from pmwal.testing.bench import workloads
from pmwal.testing.bench.floors import Area, Loop
from pmwal.testing.bench.stats import median, percentile, rate_text, time_text
from pmwal.testing.bench.workloads import BATCH_OF_PAYLOADS, PAYLOAD
from pmwal.testing.machine import available_memory

_TOUCHED = 16  # arrays whose memory is touched first


def append_memory(context: Context) -> Iterator[Row]:
    """append(128 B, commit=False) in memory, against the C loop."""
    scale, floors = context.scale, context.floors
    whole: list[tuple[Loop, Loop]] = []
    each: list[tuple[Loop, Loop]] = []
    with (
        Area(context.memory_dir / "floor", scale.ring) as area,
        workloads.new_log(context.memory_dir, size=scale.ring, medium="memory") as wal,
    ):
        floors.append(area, PAYLOAD, scale.memory_calls)
        workloads.append_loop(wal, PAYLOAD, scale.memory_calls, commit=False)
        turns, calls = context.short_turns
        for _ in turns:
            floor = floors.append(area, PAYLOAD, calls)
            whole.append((floor, workloads.append_loop(wal, PAYLOAD, calls, commit=False)))
        for _ in context.rounds:
            floor = floors.append(area, PAYLOAD, scale.memory_timed, each=True)
            each.append((floor, workloads.append_each(wal, PAYLOAD, scale.memory_timed, commit=False)))
        clocks = (
            percentile(floors.timer(scale.memory_timed).each, 50),
            percentile(workloads.timer(scale.memory_timed), 50),
        )
    name = "append memory"
    figures = [median([run[side].mean for run in whole]) for side in (0, 1)]
    what = "append(128 B, commit=False), memory, time of the loop by calls"
    yield compare(name, what, "C loop", figures, "ns", "at most", BARS["append memory"])
    tails = [median([percentile(run[side].each, 99.9) for run in each]) for side in (0, 1)]
    dearer = max(0.0, clocks[1] - clocks[0])
    note = (
        f"two clock reads take {time_text(clocks[0])} in C and {time_text(clocks[1])} in Python; the floor is given the "
        f"{time_text(dearer)} between them; as measured it has {time_text(tails[0])}, ratio {tails[1] / tails[0]:.3f}"
    )
    what = "the same, p99.9 of single calls, each with two clock reads"
    yield compare(name, what, "C loop p99.9", (tails[0] + dearer, tails[1]), "ns", "at most", BARS["append memory p99.9"], note)


def extend_memory(context: Context) -> Iterator[Row]:
    """extend of 1,000 records of 128 B, against the C loop."""
    scale, ours, floor = context.scale, [], []
    with (
        Area(context.memory_dir / "floor", scale.ring) as area,
        workloads.new_log(context.memory_dir, size=scale.ring, medium="memory", commit="manual") as wal,
    ):
        turns, _ = context.short_turns
        calls = max(1, scale.extends * scale.rounds // (len(turns) - 1))
        for turn in turns:
            loops = (
                context.floors.extend(area, BATCH_OF_PAYLOADS, calls),
                workloads.extend_each(wal, BATCH_OF_PAYLOADS, calls),
            )
            if turn:
                floor.append(loops[0].mean)
                ours.append(loops[1].mean)
    what = 'extend of 1,000 x 128 B, memory, commit="manual"'
    yield compare("extend memory", what, "C loop", (median(floor), median(ours)), "ns", "at most", BARS["extend memory"])


def touch_memory(size: int) -> None:
    """Touch this much memory and free it, so that new arrays are made of it, whichever thread touches them first.

    A virtual machine may have given free memory back to its host, which then finds each page anew: 140 ms for 64 MB instead of 6.
    """
    np.ones(size, dtype=np.uint8)


def arrays(context: Context) -> Iterator[Row]:
    """extend_array and read_array of rows of 64 bytes, against a fixed bar and against memcpy of the payloads."""
    scale = context.scale
    rows = np.arange(scale.rows * 8, dtype=np.int64).reshape(scale.rows, 8)
    again, copy = np.zeros_like(rows), np.zeros_like(rows)

    def memcpy() -> None:
        ctypes.memmove(copy.ctypes.data, rows.ctypes.data, rows.nbytes)

    size = 2 * scale.rows * workloads.record_size(rows.itemsize * 8, 8)
    rounds: list[tuple[int, ...]] = []
    with workloads.new_log(context.memory_dir, size=size, medium="memory") as wal:
        touch_memory(min(_TOUCHED * rows.nbytes, available_memory() // 2))
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


def flat_append(context: Context) -> Iterator[Row]:
    """The same append in a small, a medium and a very large ring."""
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
