"""Read-ahead for the scan of a large log on a disk: the next pieces are read while the current one is judged.

Invariants
----------
- It is used after the file was synced and before anything is stored. What recovery keeps past the commit pointer is stored again
  from the very bytes that were read here.
- Nothing of the file stays in the page cache. The kernel's read-ahead fills it with large folios, and one dirty line in a folio of
  1 MiB costs 2048 sectors. So the mapping is not touched during the scan (a mapped page, and its folio, would stay), and at the end
  the cache is dropped, but only once the kernel's own read-ahead has arrived: what is still being read cannot be dropped.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pmwal.format.ring import Load, data_ranges
from pmwal.storage.descriptors import open_descriptor
from pmwal.storage.mapping import drop_cache

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_PIECE = 2 * 1024 * 1024
_AHEAD = 2  # pieces in flight; the kernel reads ahead of those
_SMALL = 64 * 1024  # bytes: a smaller load is not part of the scan, and is read on its own
_KERNEL_AHEAD = 8  # pieces: two read-ahead windows of 8 MiB


class _ReadAhead:
    """A ring of buffers: the current piece, the one before it (a record may begin there and end in this one), and the next ones."""

    def __init__(self, in_order: int, single: int, pool: ThreadPoolExecutor, otherwise: Load) -> None:
        """``in_order``, ``single``: descriptors for the scan, and for single loads. ``otherwise``: the load to fall back on."""
        self._in_order = in_order
        self._single = single
        self._pool = pool
        self._otherwise = otherwise
        self._buffers = [bytearray(_PIECE) for _ in range(2 + _AHEAD)]
        self._loaded: dict[int, int] = {}  # piece number -> bytes in it, in order
        self._reading: dict[int, Future[int]] = {}  # piece number -> the read in flight, in order
        self._ends: list[int] = []  # the piece after the last one of each run of reads

    def load(self, offset: int, length: int) -> bytes:
        """A private copy of these bytes of the file."""
        parts: list[bytes] = []
        while length:
            part = self._part(offset, length)
            if not part:  # the file ends here, or the disk fails; the fallback reports it
                return b"".join(parts) + self._otherwise(offset, length)
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def view_at(self, offset: int) -> memoryview | None:
        """The rest of the piece from this byte on, in place until the next load; None if it cannot be read."""
        number, start = divmod(offset, _PIECE)
        if number not in self._loaded:
            try:
                self._take(number)
            except OSError:
                return None
        length = self._loaded[number]
        return memoryview(self._buffers[number % len(self._buffers)])[start:length] if start < length else None

    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The parts of these bytes of the file that are no holes."""
        return data_ranges(self._otherwise, start, stop)

    def _part(self, offset: int, length: int) -> bytes:
        """Some of these bytes, from the first on; none at the end of the file, or if they cannot be read."""
        number, start = divmod(offset, _PIECE)
        try:
            if number not in self._loaded:
                if length < _SMALL and number not in self._reading:
                    return os.pread(self._single, length, offset)
                self._take(number)
        except OSError:
            return b""
        return bytes(memoryview(self._buffers[number % len(self._buffers)])[start : min(start + length, self._loaded[number])])

    def _take(self, number: int) -> None:
        """Wait for this piece, and start reading the next ones."""
        if next(iter(self._reading), -1) != number:  # a jump: start a new run
            self._leave()
            self._reading[number] = self._pool.submit(self._read, number)
        length = self._reading.pop(number).result()
        self._loaded = {held: size for held, size in self._loaded.items() if held == number - 1} | {number: length}
        for ahead in range(number + 1 + len(self._reading), number + 1 + _AHEAD):
            self._reading[ahead] = self._pool.submit(self._read, ahead)

    def _read(self, number: int) -> int:
        return os.preadv(self._in_order, [self._buffers[number % len(self._buffers)]], number * _PIECE)

    def _leave(self) -> None:
        """End this run of reads: wait for those in flight, and note where they end."""
        for number, reading in self._reading.items():
            reading.exception()
            self._ends.append(number + 1)
        self._reading.clear()
        self._loaded.clear()

    def settle(self) -> None:
        """Wait for everything that the kernel's read-ahead may still be reading."""
        self._leave()
        os.posix_fadvise(self._in_order, 0, 0, os.POSIX_FADV_RANDOM)  # no further read-ahead
        with contextlib.suppress(OSError):
            for end in self._ends:
                for number in range(end, end + _KERNEL_AHEAD):
                    self._read(number)


@contextlib.contextmanager
def read_ahead(fd: int, otherwise: Load) -> Iterator[Load]:
    """A load for the scan of this file; where it does not work it falls back on ``otherwise``."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - loads logging; most logs are read without a scan

    with contextlib.ExitStack() as stack:
        descriptors = []
        try:
            for _ in range(2):  # the kernel keeps read-ahead state per descriptor
                descriptors.append(open_descriptor(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC))
                stack.callback(os.close, descriptors[-1])
        except OSError:
            yield otherwise
            return
        in_order, single = descriptors
        os.posix_fadvise(single, 0, 0, os.POSIX_FADV_RANDOM)
        stack.callback(drop_cache, in_order)
        pool = stack.enter_context(ThreadPoolExecutor(1, "pmwal-read-ahead"))
        reader = _ReadAhead(in_order, single, pool, otherwise)
        stack.callback(reader.settle)
        yield reader.load
