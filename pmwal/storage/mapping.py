"""A log's file in memory: the mapping, its barrier, and a page of it to wait on.

Invariants
----------
- A barrier covers every page that was touched, and has returned without an error before anyone is told that data is
  durable. One that failed is never repeated: the kernel reports a write-back error once and calls the pages clean.
- MAP_SHARED_VALIDATE is what makes the kernel refuse MAP_SYNC where DAX is not real; MAP_SHARED would ignore it.
- The size of the file is looked at before the mapping is touched: a file that was shortened under a mapping would
  answer with SIGBUS. Readers map nothing at all: a hole in a copied file on a full tmpfs would, too.
- On a disk the page cache is kept in single pages. Write-back works by folio, so one dirty line in a 1 MiB folio costs
  2048 sectors where a 4 KiB one costs 8.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Callable

from pmwal.errors import PersistError
from pmwal.format.layout import PAGE
from pmwal.storage.medium import Medium
from pmwal.storage.seam import Seam

_READ_AHEAD = 64 * 1024  # from this size on a load asks for its pages, and as many again, at once


class Mapping:
    """A log's file, mapped when it is ``writable``: the one owner of the mapping and of the descriptor behind it.

    ``fd`` is an open file description of its own: the kernel's cursor of write-back errors hangs on it, and a forked
    child that keeps it keeps no lock.
    """

    def __init__(self, fd: int, size: int, medium: Medium, seam: Seam, *, writable: bool) -> None:
        self.fd = fd
        self.size = size
        self.medium = medium
        self.inode = os.fstat(fd).st_ino
        self.barriers = 0
        self._seam = seam
        self.on_disk = medium.kind == "file" and medium.durability == "power"
        self._map: mmap.mmap | None = None
        self._before_close: Callable[[], None] | None = None
        if writable:
            self._map = mmap.mmap(fd, size, flags=medium.map_flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        if self.on_disk:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            if self._map is not None:
                self._map.madvise(mmap.MADV_RANDOM)

    @property
    def map(self) -> mmap.mmap:
        """What is mapped, for the native engine."""
        assert self._map is not None
        return self._map

    def before_close(self, action: Callable[[], None]) -> None:
        """Have this called before the mapping goes: a mapping cannot be closed while somebody holds its address."""
        self._before_close = action

    def window(self) -> memoryview | None:
        """The whole file, to be looked at in place; None where it is better read in large pieces, or not mapped.

        It must be released before the mapping is closed.
        """
        return None if self._map is None or self.on_disk else memoryview(self._map)

    def check_size(self) -> None:
        """``PersistError`` when the file no longer covers the mapping.

        By lseek(2), because a stat(2) makes the next store give the inode a fresh time stamp (multigrain time stamps,
        Linux 6.13), and the next msync write that, too: 8 sectors more for each commit on an ext4 without a journal.
        """
        size = os.lseek(self.fd, 0, os.SEEK_END)
        if size < self.size:
            raise PersistError(errno.EIO, f"the file was shortened to {size} bytes while it was mapped")

    def load(self, offset: int, length: int) -> bytes:
        """A private copy of these bytes of the file."""
        self.check_size()
        if self.on_disk and length >= _READ_AHEAD:
            self.prefetch(offset, 2 * length)
        if self._map is not None:
            return self._map[offset : offset + length]
        data = os.pread(self.fd, length, offset)
        while len(data) < length:
            more = os.pread(self.fd, length - len(data), offset + len(data))
            if not more:
                raise PersistError(errno.EIO, f"the file was shortened to {offset + len(data)} bytes while it was read")
            data += more
        return data

    def store(self, offset: int, data: bytes) -> None:
        """Store bytes; they are durable after a ``barrier`` over them."""
        self.check_size()
        assert self._map is not None
        self._seam.store(self._map, offset, data)

    def barrier(self, *ranges: tuple[int, int]) -> None:
        """Make the bytes of these (start, end) ranges of the file durable; ``OSError`` is final.

        On memory nothing is to be done: the kernel keeps the pages when the process dies, and what another process reads
        it validates by checksum, number and epoch, so a store that overtook another could only make it look again.
        """
        self.barriers += 1
        if self.medium.kind == "memory":
            return
        if self.medium.flush == self.medium.lines:
            for start, end in ranges:
                self._seam.write_back(self.map, start, end - start)
            self._seam.fence()
            return
        for start, end in ranges:
            first = start // PAGE * PAGE
            self._flush(first, -(-end // PAGE) * PAGE - first)

    def _flush(self, offset: int, length: int) -> None:
        assert self._map is not None
        while True:
            try:
                self._seam.flush(self._map, offset, length)
                return
            except InterruptedError:
                continue

    def prefetch(self, offset: int, length: int) -> None:
        """Ask for these pages in the background, in single pages (POSIX_FADV_WILLNEED ignores read-ahead's folio sizes)."""
        if self.on_disk:
            start = offset // PAGE * PAGE
            end = min(offset + length, self.size)
            if end > start:
                os.posix_fadvise(self.fd, start, end - start, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Unmap and close; what was stored stays in the page cache. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            if self._before_close is not None:
                self._before_close()
            if self._map is not None:
                self._map.close()
            os.close(fd)


class SharedPage:
    """The beginning of a file, by a descriptor of its own that outlives the log's handle: to wait on, and for hints.

    ``map`` is None where this process may not write to the file.
    """

    def __init__(self, fd: int, size: int, seam: Seam) -> None:
        path = f"/proc/self/fd/{fd}"
        self._seam = seam
        self.map: mmap.mmap | None = None
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return
        try:
            self.map = mmap.mmap(self._fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        except BaseException:
            os.close(self._fd)
            raise

    def load(self, offset: int, length: int) -> bytes:
        """These bytes; fewer when the file was cut off."""
        return os.pread(self._fd, length, offset)

    def write(self, offset: int, data: bytes) -> None:
        """Through the descriptor: a store into a mapping of a file that was cut off is a SIGBUS."""
        if os.lseek(self._fd, 0, os.SEEK_END) >= offset + len(data):
            self._seam.write(self._fd, data, offset)

    def close(self) -> None:
        """Unmap and close."""
        if self.map is not None:
            self.map.close()
        os.close(self._fd)


def drop_cache(fd: int) -> None:
    """Let go of the cached pages of a file whose data is on its disk, and with them of large folios."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
