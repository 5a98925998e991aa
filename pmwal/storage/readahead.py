"""Read-ahead for the scan of a large log on a disk: the next pieces are read while the current one is judged.

Invariants
----------
- It is used after the file was synced and before anything is stored. What recovery keeps past the commit pointer is stored again
  from the very bytes that were read here.
- Nothing of the file stays in the page cache. Reads through it would leave large folios, and one dirty line in a folio of 1 MiB
  costs 2048 sectors. So the pieces are read past the cache (O_DIRECT), small loads without the kernel's read-ahead, and the mapping
  is not touched during the scan. At the end the cache is dropped: a file system may ignore O_DIRECT.
- A piece is read into an area whose last piece is needed no more, and the areas outlive every read into them.
- A log of a few records costs one read and no thread: only a scan that goes on from piece to piece has the next ones read ahead.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pmwal.format.ring import Load, data_ranges
from pmwal.storage.descriptors import open_descriptor
from pmwal.storage.mapping import drop_cache, private_memory

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_PIECE = 1024 * 1024
_AHEAD = 8  # pieces in flight at most, each by a thread of its own
_ALONE = 128 * 1024  # bytes: a load up to this is not part of a scan (that of the slots is as long), and is read on its own
_SMALL = 64 * 1024  # bytes at the end of a piece that are seen with the next one


class _ReadAhead:
    """A ring of areas: the current piece, the one before it (a record may begin there and end in this one), and the next ones."""

    def __init__(
        self, direct: int, single: int, areas: list[memoryview], start: Callable[[], ThreadPoolExecutor], otherwise: Load
    ) -> None:
        """``direct``, ``single``: descriptors for the scan, and for single loads. ``otherwise``: the load to fall back on.

        ``start`` gives the threads, once there is something to read ahead.
        """
        self._direct = direct
        self._single = single
        self._start = start
        self._pool: ThreadPoolExecutor | None = None
        self._ahead = 0  # pieces to read ahead: none after a jump, then more from piece to piece
        self._ahead_max = _AHEAD  # none once no further thread could be started
        self._otherwise = otherwise
        self._areas = areas
        self._loaded: dict[int, int] = {}  # piece number -> bytes in it, in order
        self._reading: dict[int, Future[int]] = {}  # piece number -> the read in flight, in order

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
        """Bytes from this one on, in place until the next load; None if it cannot be read.

        They are the rest of the piece, or if that is small and the next one can be read, both.
        """
        number, start = divmod(offset, _PIECE)
        if not self._take(number) or start >= self._loaded[number]:
            return None
        rest = self._buffer(number)[start : self._loaded[number]]
        if start + len(rest) < _PIECE or len(rest) >= _SMALL or not self._take(number + 1):
            return rest
        area = self._areas[(number + 1) % len(self._areas)]
        area[_SMALL - len(rest) : _SMALL] = rest
        return area[_SMALL - len(rest) : _SMALL + self._loaded[number + 1]]

    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The parts of these bytes of the file that are no holes."""
        return data_ranges(self._otherwise, start, stop)

    def _part(self, offset: int, length: int) -> bytes:
        """Some of these bytes, from the first on; none at the end of the file, or if they cannot be read."""
        number, start = divmod(offset, _PIECE)
        if length <= _ALONE and number not in self._loaded and number not in self._reading:
            with contextlib.suppress(OSError):
                return os.pread(self._single, length, offset)
            return b""
        return bytes(self._buffer(number)[start : min(start + length, self._loaded[number])]) if self._take(number) else b""

    def _take(self, number: int) -> bool:
        """Wait for this piece, and start reading the next ones; false if it cannot be read."""
        if number in self._loaded:
            return True
        if number - 1 in self._loaded:
            self._ahead = min(max(1, 2 * self._ahead), self._ahead_max)
        else:  # a jump: start a new run, of which there may be no second piece
            self._leave()
            self._ahead = 0
        reading = self._reading.pop(number, None)
        try:
            length = self._read(number) if reading is None else reading.result()
        except OSError:
            return False
        self._loaded = {held: size for held, size in self._loaded.items() if held == number - 1} | {number: length}
        for ahead in range(number + 1 + len(self._reading), number + 1 + self._ahead):
            self._begin(ahead)
        return True

    def _begin(self, number: int) -> None:
        """Start reading this piece in a thread. If there is no thread to be had, each further piece is read when it is needed."""
        if not self._ahead_max:
            return
        self._pool = self._pool or self._start()
        try:
            self._reading[number] = self._pool.submit(self._read, number)
        except RuntimeError:  # a limit of threads, or the interpreter is about to end
            self._pool.shutdown()  # the read is queued all the same, and a thread that runs may do it
            self._ahead_max = 0

    def _buffer(self, number: int) -> memoryview:
        """The bytes of this piece; in its area there is room for the end of the one before."""
        return self._areas[number % len(self._areas)][_SMALL:]

    def _read(self, number: int) -> int:
        return os.preadv(self._direct, [self._buffer(number)], number * _PIECE)

    def _leave(self) -> None:
        """End this run of reads: wait for those in flight."""
        for reading in self._reading.values():
            reading.exception()
        self._reading.clear()
        self._loaded.clear()


def _areas(count: int) -> list[memoryview]:
    """Areas of memory for one piece each, and for ``_SMALL`` bytes before it."""
    size = _SMALL + _PIECE
    memory = private_memory(count * size)
    return [memory[at : at + size] for at in range(0, count * size, size)]


@contextlib.contextmanager
def read_ahead(fd: int, otherwise: Load) -> Iterator[Load]:
    """A load for the scan of this file; where it does not work it falls back on ``otherwise``."""
    with contextlib.ExitStack() as stack:
        descriptors = []
        try:
            for flags in (os.O_DIRECT, 0):
                descriptors.append(open_descriptor(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | flags))
                stack.callback(os.close, descriptors[-1])
            areas = _areas(2 + _AHEAD)
        except OSError:  # a file system without O_DIRECT, or no memory
            yield otherwise
            return
        direct, single = descriptors
        os.posix_fadvise(single, 0, 0, os.POSIX_FADV_RANDOM)
        stack.callback(drop_cache, single)

        def start() -> ThreadPoolExecutor:
            from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - loads logging; most logs are read without threads

            return stack.enter_context(ThreadPoolExecutor(_AHEAD, "pmwal-read-ahead"))

        yield _ReadAhead(direct, single, areas, start, otherwise).load
