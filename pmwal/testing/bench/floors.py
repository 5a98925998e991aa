"""The floors: the loops of floors.c as methods, and the files that they store to.

floors.c is built with the package, as a library that ctypes loads (``load``): it shares no code with pmwal. ctypes releases the GIL
during a call, so floors with threads of their own run as in a C program.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from pmwal.testing.bench.stats import Times

FLUSHES = ("clwb", "clflushopt", "clflush")
PAGE, LARGE = 4096, 1 << 20
RECORD_HEADER = 48


class FloorsUnavailable(Exception):
    """There are no floors here: no C compiler was there when pmwal was installed, or the processor is another one."""


class Loop(NamedTuple):
    """Nanoseconds of one run of a loop: in total, and of each call (empty if only the total was measured)."""

    total: int
    calls: int
    each: Times

    @property
    def mean(self) -> float:
        """Nanoseconds for one call, from the total."""
        return self.total / self.calls


class Area:
    """A file that a floor stores to: every byte was written in pieces of 4 KiB and synced, then the file was mapped and touched.

    ``at`` is the offset of the next store. ``flags`` apply to the descriptor for writes (O_DIRECT | O_DSYNC). With ``large`` the
    pieces were of 1 MiB and the file is left in the page cache, which then consists of large folios.
    """

    def __init__(self, path: Path, size: int, *, flags: int = 0, large: bool = False) -> None:
        self.path = path
        self.size = size
        self.at = ctypes.c_uint64(0)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
            piece = bytes(LARGE if large else PAGE)
            for offset in range(0, size, len(piece)):
                os.pwrite(fd, piece[: size - offset], offset)
            os.fsync(fd)
            if not large:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # otherwise each O_DIRECT write has to drop cached pages
        finally:
            os.close(fd)
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags)
        self.map = mmap.mmap(self.fd, size, flags=mmap.MAP_SHARED)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        if not flags and not large:
            self.map.madvise(mmap.MADV_RANDOM)  # keeps single pages in the cache: write-back of a large folio writes all of it
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_WILLNEED)
            ctypes.memset(self.address, 0, size)  # so that no loop includes first touches
            os.fsync(self.fd)

    def close(self) -> None:
        """Unmap, close, and remove the file."""
        self.map.close()
        os.close(self.fd)
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Area:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class PageBuffer:
    """A page-aligned page, for O_DIRECT. The address is valid while the object lives."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, PAGE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))


class Floors:
    """The loops of floors.c. ``each=True`` times every call, otherwise only the whole loop is timed."""

    def __init__(self, library: Path) -> None:
        self._lib = ctypes.CDLL(str(library))
        kind = self._lib.fl_init()
        if kind < 0:
            raise FloorsUnavailable("this processor has no instruction for CRC32C (SSE 4.2), which the floors use")
        self.flush = FLUSHES[kind]

    def _run(self, name: str, count: int, *arguments: object, each: bool = True) -> Loop:
        """Call one loop; its last argument is the array for the times of its calls."""
        times = np.zeros(count if each else 0, dtype=np.int64)
        pointer = ctypes.c_void_p(times.ctypes.data) if each else None
        return Loop(self._call(name, *arguments, ctypes.c_uint64(count), pointer), count, times)

    def _call(self, name: str, *arguments: object) -> int:
        function = getattr(self._lib, name)
        function.restype = ctypes.c_int64
        total = int(function(*arguments))
        if total < 0:
            raise OSError(-total, os.strerror(-total), name)
        return total

    def crc32c(self, data: bytes) -> int:
        """CRC32C of some bytes, for tests."""
        self._lib.fl_crc32c.restype = ctypes.c_uint32
        return int(self._lib.fl_crc32c(data, ctypes.c_uint64(len(data))))

    def timer(self, count: int) -> Loop:
        """Two reads of the clock with nothing between them."""
        return self._run("fl_timer", count)

    def wake(self, pause: float, count: int) -> Loop:
        """From a futex wake-up, after a pause in seconds, to the next instruction of the process that slept on it."""
        return self._run("fl_wake", count, ctypes.c_int64(int(pause * 1e9)))

    def append(self, area: Area, payload: bytes, count: int, *, each: bool = False) -> Loop:
        """The work of ``append(commit=False)``: clock, 48-byte header, copy, CRC32C, store."""
        where = ctypes.c_void_p(area.address), ctypes.c_uint64(area.size), ctypes.byref(area.at)
        return self._run("fl_append", count, *where, payload, ctypes.c_uint32(len(payload)), each=each)

    def extend(self, area: Area, payloads: Sequence[bytes], count: int, *, each: bool = False) -> Loop:
        """The same for all ``payloads``, which have equal lengths, at a time, ``count`` times."""
        where = ctypes.c_void_p(area.address), ctypes.c_uint64(area.size), ctypes.byref(area.at)
        pointers = (ctypes.c_char_p * len(payloads))(*payloads)
        shape = ctypes.c_uint32(len(payloads[0])), ctypes.c_uint32(len(payloads))
        return self._run("fl_extend", count, *where, pointers, *shape, each=each)

    def dax(
        self, area: Area, control: Area, payload: bytes, count: int, *, strict: bool, non_temporal: bool, each: bool = False
    ) -> Loop:
        """A raw store to emulated persistent memory; strict: then a fence, a slot and a fence; else with a CRC, then one fence."""
        arguments = (
            ctypes.c_void_p(area.address),
            ctypes.c_uint64(area.size),
            ctypes.c_void_p(control.address),
            ctypes.c_uint64(control.size),
            ctypes.byref(area.at),
            payload,
            ctypes.c_uint32(len(payload)),
            ctypes.c_int(strict),
            ctypes.c_int(non_temporal),
        )
        return self._run("fl_dax", count, *arguments, each=each)

    def best_dax(
        self, area: Area, control: Area, payload: bytes, count: int, *, strict: bool, each: bool = False
    ) -> tuple[str, Loop]:
        """The faster of cache line flushes and non-temporal stores, and its name."""
        runs = {
            name: self.dax(area, control, payload, count, strict=strict, non_temporal=non_temporal, each=each)
            for name, non_temporal in ((self.flush, False), ("non-temporal", True))
        }
        name = min(runs, key=lambda name: runs[name].total)
        return name, runs[name]

    def msync(self, area: Area, payload: bytes, count: int) -> Loop:
        """Store into a mapping, then msync the page."""
        where = ctypes.c_void_p(area.address), ctypes.c_uint64(area.size), ctypes.byref(area.at)
        return self._run("fl_msync", count, *where, payload, ctypes.c_uint32(len(payload)))

    def pwrite(self, area: Area, data: bytes | int, length: int, count: int, *, sync: bool) -> Loop:
        """Write ``length`` bytes (``data``, or those at this address), then fdatasync if ``sync`` is set."""
        where = ctypes.c_int(area.fd), ctypes.c_uint64(area.size), ctypes.byref(area.at)
        source = ctypes.c_void_p(data) if isinstance(data, int) else data
        return self._run("fl_pwrite", count, *where, source, ctypes.c_uint64(length), ctypes.c_int(sync))

    def pwrite_turns(self, area: Area, page: int, turn: float, count: int) -> int:
        """Nanoseconds to write the page at this address ``count`` times, while computing every other ``turn`` seconds."""
        where = ctypes.c_int(area.fd), ctypes.c_uint64(area.size), ctypes.byref(area.at)
        return self._call("fl_pwrite_turns", *where, ctypes.c_void_p(page), ctypes.c_int64(int(turn * 1e9)), ctypes.c_uint64(count))

    def read(self, fd: int, size: int, piece: int = 1 << 20) -> int:
        """Nanoseconds to read a file sequentially."""
        return self._call("fl_read", ctypes.c_int(fd), ctypes.c_uint64(size), ctypes.c_uint64(piece))

    def memcpy(self, address: int, size: int) -> int:
        """Nanoseconds to copy these bytes into a buffer that stays in the cache."""
        return self._call("fl_memcpy", ctypes.c_void_p(address), ctypes.c_uint64(size))

    def crc(self, address: int, size: int) -> int:
        """Nanoseconds for one CRC32C over all of these bytes, in three interleaved chains."""
        return self._call("fl_crc", ctypes.c_void_p(address), ctypes.c_uint64(size))

    def crc_each(self, address: int, size: int, stride: int, length: int) -> int:
        """Nanoseconds for one CRC32C for each payload of a ring of equal records."""
        shape = ctypes.c_uint64(stride), ctypes.c_uint64(RECORD_HEADER), ctypes.c_uint32(length)
        return self._call("fl_crc_each", ctypes.c_void_p(address), ctypes.c_uint64(size), *shape)

    def group_commit(self, area: Area, payload: bytes, threads: int, each_thread: int, *, sync_file: bool) -> tuple[int, int]:
        """Nanoseconds and barriers of a group commit by C threads over a mapped ring, by msync or by fdatasync."""
        barriers = ctypes.c_uint64(0)
        total = self._call(
            "fl_group",
            ctypes.c_void_p(area.address),
            ctypes.c_int(area.fd),
            ctypes.c_uint64(area.size),
            ctypes.byref(area.at),
            payload,
            ctypes.c_uint32(len(payload)),
            ctypes.c_int(threads),
            ctypes.c_uint64(each_thread),
            ctypes.c_int(sync_file),
            ctypes.byref(barriers),
        )
        return total, barriers.value

    @contextlib.contextmanager
    def ticker(self, sleep: float) -> Iterator[Callable[[], int]]:
        """A thread in C that sleeps ``sleep`` seconds at a time; what it gives returns its longest delay since the last call."""
        self._call("fl_ticker_start", ctypes.c_int64(int(sleep * 1e9)))
        try:
            yield lambda: self._call("fl_ticker_take")
        finally:
            self._call("fl_ticker_stop")


@functools.cache
def load() -> Floors:
    """The floors that were built with the package; ``FloorsUnavailable`` if they were not, or do not run on this processor."""
    found = importlib.util.find_spec("pmwal.testing.bench._floors")
    if found is None or found.origin is None:
        raise FloorsUnavailable("the floors in C were not built with pmwal: they need an x86-64 processor and, with no wheel, gcc")
    return Floors(Path(found.origin))
