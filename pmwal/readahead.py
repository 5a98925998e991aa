"""Reading a large log from a disk in order: the next piece while this one is looked at.

Invariants
----------
- It is used after the file was synced and before anything is stored, and what a recovery keeps past the pointer is stored again
  from these very bytes.
- The mapping is not touched meanwhile, and at the end all that was read leaves the page cache: the kernel's read-ahead puts large
  folios there, and one dirty line in a folio of 1 MiB costs 2048 sectors. A page that the mapping holds would stay, and its folio.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from pmwal.medium import drop_cache
from pmwal.ring import Load

_PIECE = 1024 * 1024
_BUFFERS = 4
_SMALL = 64 * 1024  # what is smaller is not part of a scan, and is read by itself


class _ReadAhead:
    """Buffers in turn: one holds the piece in use, into the others the next ones are read meanwhile."""

    def __init__(self, fd: int, pool: ThreadPoolExecutor, otherwise: Load) -> None:
        self._fd = fd
        self._pool = pool
        self._otherwise = otherwise
        self._buffers = [bytearray(_PIECE) for _ in range(_BUFFERS)]
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
                return os.pread(self._fd, length, offset)
            if number != self._current:
                self._take(number)
        except OSError:
            return b""
        return bytes(memoryview(self._buffers[number % _BUFFERS])[start : min(start + length, self._length)])

    def _take(self, number: int) -> None:
        """Make this piece the current one, and have the next ones read."""
        if next(iter(self._reading), -1) != number:
            for reading in self._reading.values():
                reading.exception()  # they have to end: their buffers are wanted
            self._reading.clear()
        self._current = -1
        for ahead in range(number + len(self._reading), number + _BUFFERS):
            self._reading[ahead] = self._pool.submit(self._read, ahead)
        self._length = self._reading.pop(number).result()
        self._current = number

    def _read(self, number: int) -> int:
        return os.preadv(self._fd, [self._buffers[number % _BUFFERS]], number * _PIECE)


@contextlib.contextmanager
def read_ahead(fd: int, otherwise: Load) -> Iterator[Load]:
    """A load for a scan of the file behind this descriptor; ``otherwise`` is what loads where this way does not work."""
    try:
        own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)  # the kernel reads ahead by descriptor
    except OSError:
        yield otherwise
        return
    try:
        # Only what is asked for: what the kernel still read of its own accord at the end could not be dropped.
        os.posix_fadvise(own, 0, 0, os.POSIX_FADV_RANDOM)
        with ThreadPoolExecutor(_BUFFERS - 1, "pmwal-read-ahead") as pool:
            yield _ReadAhead(own, pool, otherwise).load
    finally:
        drop_cache(own)
        os.close(own)
