"""Reading a large log from a disk in order: the next pieces while this one is looked at.

Invariants
----------
- It is used after the file was synced and before anything is stored, and what a recovery keeps past the pointer is stored again
  from these very bytes.
- Nothing of the file comes into the page cache: the reads go past it, and the mapping is not touched meanwhile. The kernel's
  read-ahead would leave large folios there, and one dirty line in a folio of 1 MiB costs 2048 sectors.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from pmwal.medium import page_buffer
from pmwal.ring import Load

_PIECE = 1024 * 1024
_AHEAD = 4  # pieces that are read at the same time: with fewer the disk waits between two of them
_SMALL = 64 * 1024  # what is smaller is not part of a scan, and is read by itself
_BLOCK = 4096  # direct reads begin and end at multiples of this


class _ReadAhead:
    """Buffers in turn: one holds the piece in use, into the others the next ones are read meanwhile."""

    def __init__(self, fd: int, pool: ThreadPoolExecutor, otherwise: Load) -> None:
        self._fd = fd
        self._pool = pool
        self._otherwise = otherwise
        self._buffers = [page_buffer(_PIECE) for _ in range(1 + _AHEAD)]
        self._small = page_buffer(_SMALL + 2 * _BLOCK)
        self._current = -1  # number of the piece in use
        self._length = 0  # bytes in it
        self._reading: dict[int, Future[int]] = {}  # by number of piece, in order

    def load(self, offset: int, length: int) -> bytes:
        """A private copy of these bytes of the file."""
        parts: list[bytes] = []
        while length:
            part = self._part(offset, length)
            if not part:  # the file ends here, or the disk fails; the usual way says so
                return b"".join(parts) + self._otherwise(offset, length)
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _part(self, offset: int, length: int) -> bytes:
        """The first of these bytes; none when there are none, or they cannot be read."""
        number, start = divmod(offset, _PIECE)
        try:
            if length < _SMALL and number != self._current and number not in self._reading:
                return self._read_small(offset, length)
            if number != self._current:
                self._take(number)
        except OSError:
            return b""
        return self._buffers[number % len(self._buffers)][start : min(start + length, self._length)]

    def _take(self, number: int) -> None:
        """Make this piece the current one, and have the next ones read."""
        if next(iter(self._reading), -1) != number:
            for reading in self._reading.values():
                reading.exception()  # they have to end: their buffers are wanted
            self._reading.clear()
        self._current = -1
        for ahead in range(number + len(self._reading), number + len(self._buffers)):
            self._reading[ahead] = self._pool.submit(self._read, ahead)
        self._length = self._reading.pop(number).result()
        self._current = number

    def _read(self, number: int) -> int:
        return os.preadv(self._fd, [self._buffers[number % len(self._buffers)]], number * _PIECE)

    def _read_small(self, offset: int, length: int) -> bytes:
        start = offset % _BLOCK
        whole = -(-(start + length) // _BLOCK) * _BLOCK
        with memoryview(self._small)[:whole] as view:
            count = os.preadv(self._fd, [view], offset - start)
        return self._small[start : min(start + length, count)]


@contextlib.contextmanager
def read_ahead(fd: int, otherwise: Load) -> Iterator[Load]:
    """A load for a scan of the file behind this descriptor; ``otherwise`` is what loads where this way does not work."""
    try:
        direct = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:  # the file system has no direct reads
        yield otherwise
        return
    try:
        with ThreadPoolExecutor(_AHEAD, "pmwal-read-ahead") as pool:
            yield _ReadAhead(direct, pool, otherwise).load
    finally:
        os.close(direct)
