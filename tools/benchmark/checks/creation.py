"""Check of the creation of a large log on a disk, against dd."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from time import perf_counter_ns

import pmwal
from benchmark.context import MIB, Context, free_space
from benchmark.gate import BARS, Row, compare, skipped
from pmwal.testing.bench.stats import median, time_text


def creation(context: Context) -> Iterator[Row]:
    """``pmwal.open`` of a new log, in turns with ``dd conv=fsync`` of as many zeros."""
    ring, name, dd = context.scale.large_ring, "creation", shutil.which("dd")
    if context.disk.in_memory or dd is None or free_space(context.disk_dir) < 2 * ring:
        yield skipped(name, f"needs dd and {2 * ring >> 20} MiB on a disk")
        return
    path, zeros = context.disk_dir / "new.wal", context.disk_dir / "zeros"
    command = [dd, "if=/dev/zero", f"of={zeros}", "bs=1M", f"count={ring // MIB}", "conv=fsync", "status=none"]
    ours, floor = [], []
    for turn in range(context.scale.rounds + 1):
        begin = perf_counter_ns()
        subprocess.run(command, check=True)
        took = perf_counter_ns() - begin
        zeros.unlink()
        begin = perf_counter_ns()
        wal = pmwal.open(path, "x", size=ring)
        created = perf_counter_ns() - begin
        wal.close()
        path.unlink()
        if turn:  # the first is the warm-up
            floor.append(took)
            ours.append(created)
    rates = [ring / median(times) * 1e9 for times in (floor, ours)]
    what = f"creation of a log of {ring >> 20} MiB, {context.disk.mount.filesystem}"
    note = f"{time_text(median(floor))} and {time_text(median(ours))}"
    yield compare(name, what, "dd bs=1M conv=fsync of zeros", rates, "B/s", "at least", BARS[name], note)
