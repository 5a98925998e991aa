"""Checks of the copy and the resize of a large log on a disk, against cp."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter_ns

import pmwal
from benchmark.context import Context, free_space
from benchmark.gate import BARS, Row, compare, skipped
from pmwal.testing.bench import workloads
from pmwal.testing.bench.floors import PAGE
from pmwal.testing.bench.stats import median, time_text
from pmwal.testing.bench.workloads import PAYLOAD


def copies(context: Context) -> Iterator[Row]:
    """``pmwal.copy`` and ``pmwal.resize`` of a full ring, in turns with ``cp`` and fsync of the same file."""
    ring, name, cp = context.scale.large_ring, "copy", shutil.which("cp")
    if context.disk.in_memory or cp is None or free_space(context.disk_dir) < 3 * ring:
        yield skipped(name, f"needs cp and {3 * ring >> 20} MiB on a disk")
        return
    for length in (len(PAYLOAD), 4096):
        path, target = context.disk_dir / "source.wal", context.disk_dir / "target"
        _make(path, ring, length)
        times: dict[str, list[int]] = {"cp": [], "copy": [], "resize": []}
        try:
            for turn in range(context.scale.rounds + 1):
                larger = ring + (turn + 1) * PAGE
                took = {"cp": _cp(cp, path, target), "copy": _copy(path, target), "resize": _resize(path, larger)}
                for what, duration in took.items() if turn else ():  # the first is the warm-up
                    times[what].append(duration)
        finally:
            path.unlink()
            target.unlink(missing_ok=True)
        medians = {what: median(each) for what, each in times.items()}
        for ours in ("copy", "resize"):
            rates = [ring / medians[what] * 1e9 for what in ("cp", ours)]
            what = f"{ours} of a log of {ring >> 20} MiB, records of {length} B, {context.disk.mount.filesystem}"
            note = f"{time_text(medians['cp'])} and {time_text(medians[ours])}"
            yield compare(name, what, "cp --reflink=never and fsync", rates, "B/s", "at least", BARS[name], note)


def _copy(path: Path, target: Path) -> int:
    begin = perf_counter_ns()
    pmwal.copy(path, target)
    took = perf_counter_ns() - begin
    target.unlink()
    return took


def _resize(path: Path, size: int) -> int:
    begin = perf_counter_ns()
    pmwal.resize(path, size)
    return perf_counter_ns() - begin


def _make(path: Path, ring: int, length: int) -> None:
    """A closed log whose ring is full."""
    payloads = [bytes([index % 251]) * length for index in range(max(1, (1 << 20) // length))]
    with pmwal.open(path, "x", size=ring, commit="manual") as wal:
        while count := min(len(payloads), workloads.room(wal, length)):
            wal.extend(payloads[:count])


def _cp(cp: str, path: Path, target: Path) -> int:
    begin = perf_counter_ns()
    subprocess.run([cp, "--reflink=never", path, target], check=True)
    fd = os.open(target, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    took = perf_counter_ns() - begin
    target.unlink()
    return took
