"""Reading a large log from a disk in order: the next pieces while this one is looked at.

Invariants
----------
- It is used after the file was synced and before anything is stored, and what a recovery keeps past the pointer is stored again
  from these very bytes.
- Nothing of the file stays in the page cache. The kernel's read-ahead puts large folios there, and one dirty line in a folio of
  1 MiB costs 2048 sectors. So the mapping is not touched meanwhile (a mapped page would stay, and its folio), and at the end all is
  dropped, after what the kernel still reads by itself has arrived: it cannot be dropped before.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from pmwal.format.ring import Load
from pmwal.storage.mapping import drop_cache

_PIECE = 2 * 1024 * 1024
_AHEAD = 2  # pieces that are read meanwhile; the kernel reads ahead of that
_SMALL = 64 * 1024  # what is smaller is not part of a scan, and is read by itself
_KERNEL_AHEAD = 8  # pieces: two windows of read-ahead of 8 MiB


class _ReadAhead:
    """Buffers in turn: the piece in use, the one before it, where a record may begin that goes on in this one, and the next one."""

    def __init__(self, in_order: int, single: int, pool: ThreadPoolExecutor, otherwise: Load) -> None:
        """``in_order``, ``single``: descriptors for what is read in order, and for what is not."""
        self._in_order = in_order
        self._single = single
        self._pool = pool
        self._otherwise = otherwise
        self._buffers = [bytearray(_PIECE) for _ in range(2 + _AHEAD)]
        self._at_hand: dict[int, int] = {}  # by number of piece, in order: bytes in it
        self._reading: dict[int, Future[int]] = {}  # likewise
        self._ends: list[int] = []  # pieces behind those that were read in order

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
            if number not in self._at_hand:
                if length < _SMALL and number not in self._reading:
                    return os.pread(self._single, length, offset)
                self._take(number)
        except OSError:
            return b""
        return bytes(memoryview(self._buffers[number % len(self._buffers)])[start : min(start + length, self._at_hand[number])])

    def _take(self, number: int) -> None:
        """Have this piece at hand, and the next one read."""
        if next(iter(self._reading), -1) != number:  # not the next one
            self._leave()
            self._reading[number] = self._pool.submit(self._read, number)
        length = self._reading.pop(number).result()
        self._at_hand = {held: size for held, size in self._at_hand.items() if held == number - 1} | {number: length}
        for ahead in range(number + 1 + len(self._reading), number + 1 + _AHEAD):
            self._reading[ahead] = self._pool.submit(self._read, ahead)

    def _read(self, number: int) -> int:
        return os.preadv(self._in_order, [self._buffers[number % len(self._buffers)]], number * _PIECE)

    def _leave(self) -> None:
        """Wait for what is being read, and remember where that ends."""
        for number, reading in self._reading.items():
            reading.exception()
            self._ends.append(number + 1)
        self._reading.clear()
        self._at_hand.clear()

    def settle(self) -> None:
        """Wait for all that the kernel may still be reading by itself."""
        self._leave()
        os.posix_fadvise(self._in_order, 0, 0, os.POSIX_FADV_RANDOM)  # no more of it
        with contextlib.suppress(OSError):
            for end in self._ends:
                for number in range(end, end + _KERNEL_AHEAD):
                    self._read(number)


@contextlib.contextmanager
def read_ahead(fd: int, otherwise: Load) -> Iterator[Load]:
    """A load for a scan of the file behind this descriptor; ``otherwise`` is what loads where this way does not work."""
    with contextlib.ExitStack() as stack:
        descriptors = []
        try:
            for _ in range(2):  # the kernel reads ahead by descriptor
                descriptors.append(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC))
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
