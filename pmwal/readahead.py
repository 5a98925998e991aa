"""Reading a large log from a disk in order: past the page cache, and the next piece while this one is looked at.

Invariants
----------
- It is used after the file was synced and before anything is stored, so that what it reads is what the disk holds, and what a
  recovery keeps past the pointer is stored again from these very bytes.
- It leaves nothing in the page cache. Read-ahead of the kernel would leave large folios there, and one dirty line in a folio of
  1 MiB costs 2048 sectors.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from pmwal.ring import Load

_PIECE = 1024 * 1024
_BUFFERS = 4  # one holds the piece in use; into the others the next ones are read
_SMALL = 64 * 1024  # what is smaller is not part of a scan, and goes the usual way


class _ReadAhead:
    """Buffers in turn: one holds the piece in use, into the others the next ones are read meanwhile."""

    def __init__(self, fd: int, pool: ThreadPoolExecutor, otherwise: Load) -> None:
        self._fd = fd
        self._pool = pool
        self._otherwise = otherwise
        self._buffers = [mmap.mmap(-1, _PIECE) for _ in range(_BUFFERS)]  # aligned as O_DIRECT wants it
        self._current = -1  # number of the piece in use
        self._length = 0  # bytes in it
        self._reading: dict[int, Future[int]] = {}  # by number of piece, in order

    def load(self, offset: int, length: int) -> bytes:
        """A private copy of these bytes of the file."""
        if length < _SMALL:
            return self._otherwise(offset, length)
        parts: list[bytes] = []
        while length:
            number, start = divmod(offset, _PIECE)
            if number != self._current and not self._take(number):
                return b"".join(parts) + self._otherwise(offset, length)
            part = self._buffers[number % _BUFFERS][start : min(start + length, self._length)]
            if not part:  # the file ends here; the usual way says so
                return b"".join(parts) + self._otherwise(offset, length)
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _take(self, number: int) -> bool:
        """Make this piece the current one, and have the next ones read; False when it cannot be read past the cache."""
        if number not in self._reading:
            self._wait()
        for skipped in [earlier for earlier in self._reading if earlier < number]:
            self._reading.pop(skipped).exception()  # its buffer is wanted
        self._current = -1
        for ahead in range(number, number + _BUFFERS):
            if ahead not in self._reading:
                self._reading[ahead] = self._pool.submit(self._read, ahead)
        try:
            self._length = self._reading.pop(number).result()
        except OSError:
            self._wait()
            return False
        self._current = number
        return True

    def _read(self, number: int) -> int:
        return os.preadv(self._fd, [self._buffers[number % _BUFFERS]], number * _PIECE)

    def _wait(self) -> None:
        """Let all reads end: no two of them may go into one buffer."""
        for reading in self._reading.values():
            reading.exception()
        self._reading.clear()


@contextlib.contextmanager
def read_ahead(fd: int, otherwise: Load) -> Iterator[Load]:
    """A load for a scan of the file behind this descriptor; ``otherwise`` is what loads where O_DIRECT does not work."""
    try:
        direct = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        yield otherwise
        return
    try:
        with ThreadPoolExecutor(_BUFFERS - 1, "pmwal-read-ahead") as pool:
            yield _ReadAhead(direct, pool, otherwise).load
    finally:
        os.close(direct)
