"""Checks of recovery, warm and cold, against CRC32C of the same bytes and a sequential read."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmark.context import Context, free_space
from benchmark.gate import BARS, Row, compare, skipped
from pmwal.testing.bench import workloads
from pmwal.testing.bench.stats import median, time_text
from pmwal.testing.bench.workloads import PAYLOAD, Image
from pmwal.testing.machine import available_memory


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[tuple[int, int]]:
    """Address and size of a file, mapped for reading and faulted in, so that no floor includes page faults."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as view:
        array = np.frombuffer(view, dtype=np.uint8)
        array[:: mmap.PAGESIZE].sum()
        yield array.ctypes.data, len(view)
        del array


def recovery_small(context: Context) -> Iterator[Row]:
    """Recovery of a full ring of 128-byte records in memory, against one CRC32C for each payload."""
    image = workloads.make_image(context.memory_dir, capacity=context.scale.small_ring, length=len(PAYLOAD))

    def floor(address: int, size: int) -> float:
        ring = image.records * image.stride
        return float(context.floors.crc_each(address + image.ring_offset, ring, image.stride, image.length))

    what = f"open after a kill, {image.records} records of 128 B, memory, warm; payload bytes"
    yield from _recovery(context, "recovery small", image, what, "CRC32C of each payload", floor, image.payload_bytes)


def recovery_large(context: Context) -> Iterator[Row]:
    """Recovery of a large log of 4 KiB records in memory, against the CRC32C bandwidth of one thread."""
    ring = context.scale.large_ring
    if min(available_memory(), free_space(context.memory_dir)) < 3 * ring:
        yield skipped("recovery large", f"three files of {ring >> 20} MiB do not fit into free memory")
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
    """Measure both in rounds, each recovery on a new copy; the rates of ``size`` bytes are compared."""
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
    """Recovery of a large log that is not in the page cache, against a sequential read of the file."""
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
            if turn:  # the first round fills caches below this system, if any, for all later ones
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
