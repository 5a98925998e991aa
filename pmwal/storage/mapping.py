"""A log's file in memory: the mapping and its barrier, and the pages that readers wait on.

Invariants
----------
- A barrier has returned without an error for all its ranges before anyone is told that they are durable. One that failed is never
  repeated: the kernel reports a write-back error once and then calls the pages clean.
- The size of the file is checked before the mapping is touched: in a file that was shortened, the access would raise SIGBUS. What
  still faults (the file is shortened at this moment, the medium fails, a copy-on-write file system is full) is an error where the C
  extension is installed: every load and store is a guarded copy of its own. Only scans in C read the mapping in place, guarded too.
  Readers map nothing but the live page, because in a sparse copy on a full tmpfs even a load from a hole raises SIGBUS.
- Nothing is stored outside the file or through a read-only mapping, and no barrier includes the live page.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import resource
from collections.abc import Callable, Iterator

from pmwal.errors import PersistError, WalClosed
from pmwal.format.layout import LIVE_OFFSET, PAGE
from pmwal.native import native
from pmwal.storage.checks import CHECKING, check
from pmwal.storage.descriptors import map_file, open_descriptor
from pmwal.storage.medium import Medium
from pmwal.storage.seam import Seam

_MADV_WIPEONFORK = 18  # the kernel's number, which mmap does not have
_READ_AHEAD = 64 * 1024  # bytes: a load of this size or more prefetches its own pages and as many after them


class Mapping:
    """A log's file, mapped if ``writable``. It owns the mapping and the descriptor.

    ``fd`` is an open file description of its own: the kernel keeps the cursor of write-back errors there, and a forked child that
    keeps it keeps no lock.
    """

    def __init__(self, fd: int, size: int, medium: Medium, seam: Seam, *, writable: bool) -> None:
        self.fd = fd
        self.size = size
        self.missing = 0  # bytes at the end that were cut off
        self.medium = medium
        self.inode = os.fstat(fd).st_ino
        self.barriers = 0
        self._seam = seam
        self.on_disk = medium.on_disk
        self._map: mmap.mmap | None = None
        self._before_close: Callable[[], None] | None = None
        if writable:
            if native is not None:
                native.catch_faults()
            self._map = map_file(fd, size, medium.map_flags, mmap.PROT_READ | mmap.PROT_WRITE)
        if self.on_disk:  # no read-ahead, by call or by fault: it would fill the cache with large folios (see drop_cache)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            if self._map is not None:
                self._map.madvise(mmap.MADV_RANDOM)

    @property
    def unreadable(self) -> tuple[tuple[int, int], ...]:
        """What could not be read so far and was read as zeros, as (start, end) offsets: nothing, because ``load`` raises."""
        return ()

    @property
    def map(self) -> mmap.mmap:
        """The raw mapping, for the native engine."""
        assert self._map is not None
        return self._map

    def before_close(self, action: Callable[[], None]) -> None:
        """Call this before unmapping: a mapping cannot be closed while something holds its address."""
        self._before_close = action

    def window(self) -> memoryview | None:
        """A view of the whole file in place; None if it is not mapped, or better read in large pieces.

        Release it before the mapping is closed.
        """
        return None if self._map is None or self.on_disk else memoryview(self._map)

    def check_size(self) -> None:
        """``PersistError`` if the file no longer covers the mapping.

        It uses lseek(2), because after a stat(2) the next store gives the inode a fresh time stamp (multigrain timestamps, Linux
        6.13), which the next msync writes too: 8 more sectors for each commit on an ext4 without a journal.
        """
        size = os.lseek(self.fd, 0, os.SEEK_END)
        if size < self.size - self.missing:
            raise PersistError(errno.EIO, f"the file was shortened to {size} bytes while it was mapped")

    def load(self, offset: int, length: int) -> bytes:
        """A private copy of these bytes of the file."""
        if CHECKING:
            check(0 <= offset <= offset + length <= self.size, f"load of {length} bytes at {offset} of {self.size}")
        try:
            return self._load(offset, length)
        except (OSError, ValueError) as error:
            if self.closed:  # by another thread, meanwhile: it says nothing about the medium
                raise WalClosed("the log was closed while a call read from it; open it again") from error
            raise

    def _load(self, offset: int, length: int) -> bytes:
        self.check_size()
        if self.on_disk and length >= _READ_AHEAD:
            self.prefetch(offset, 2 * length)
        if self._map is not None:
            return self._load_mapped(self._map, offset, length)
        data = os.pread(self.fd, length, offset)
        while len(data) < length:
            more = os.pread(self.fd, length - len(data), offset + len(data))
            if not more:
                raise PersistError(errno.EIO, f"the file was shortened to {offset + len(data)} bytes while it was read")
            data += more
        return data

    @staticmethod
    def _load_mapped(mapped: mmap.mmap, offset: int, length: int) -> bytes:
        if native is None:
            return mapped[offset : offset + length]
        try:
            return native.load(mapped, offset, length)
        except OSError as error:
            raise PersistError(error.errno, error.strerror or "") from error

    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The parts of these bytes of the file that are no holes; all of them where the file system cannot tell."""
        self.check_size()
        while start < stop:
            try:
                data = os.lseek(self.fd, start, os.SEEK_DATA)
                hole = os.lseek(self.fd, data, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errno.ENXIO:  # which says that no data follows
                    yield start, stop
                return
            if data < stop:
                yield data, min(hole, stop)
            start = hole

    def store(self, offset: int, data: bytes) -> None:
        """Store bytes; they are durable after a ``barrier`` over them."""
        if CHECKING:
            check(self._map is not None, "store through a read-only mapping")
            check(0 <= offset < offset + len(data) <= self.size, f"store of {len(data)} bytes at {offset} of {self.size}")
        self.check_size()
        assert self._map is not None
        self._seam.store(self._map, offset, data)

    def barrier(self, *ranges: tuple[int, int]) -> None:
        """Make these (start, end) ranges of the file durable; an ``OSError`` is final.

        On memory there is nothing to do: the kernel keeps the pages when the process dies, and another process validates what it
        reads by checksum, sequence number and epoch, so a reordered store could only make it read again.
        """
        if CHECKING:
            self._check_ranges(ranges)
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

    def _check_ranges(self, ranges: tuple[tuple[int, int], ...]) -> None:
        for start, end in ranges:
            check(0 <= start < end <= self.size, f"barrier over bytes {start} to {end} of {self.size}")
            check(end <= LIVE_OFFSET or start >= LIVE_OFFSET + PAGE, f"barrier over the live page: bytes {start} to {end}")

    def _flush(self, offset: int, length: int) -> None:
        assert self._map is not None
        while True:
            try:
                self._seam.flush(self._map, offset, length)
                return
            except InterruptedError:
                continue

    def prefetch(self, offset: int, length: int) -> None:
        """Start reading these pages into the cache, as single pages: POSIX_FADV_WILLNEED ignores read-ahead's folio sizes."""
        if self.on_disk:
            start = offset // PAGE * PAGE
            end = min(offset + length, self.size)
            if end > start:
                os.posix_fadvise(self.fd, start, end - start, os.POSIX_FADV_WILLNEED)

    @property
    def closed(self) -> bool:
        """Whether ``close`` has begun to close it."""
        return self.fd < 0 or (self._map is not None and self._map.closed)

    @property
    def unmapped(self) -> bool:
        """Whether ``close`` has come so far that nothing can be stored any more."""
        return self._map is None or self._map.closed

    def close(self) -> None:
        """Unmap and close; stored bytes stay in the page cache. Idempotent, and may be repeated after an interrupt."""
        if self.fd >= 0:
            if self._before_close is not None:
                self._before_close()
            if self._map is not None:
                with contextlib.suppress(
                    BufferError
                ):  # an open was interrupted: what it had made of an engine unmaps it when it goes
                    self._map.close()
            fd, self.fd = self.fd, -1
            os.close(fd)


class SharedPage:
    """The first ``size`` bytes of a file, for a reader to wait on and leave hints in; its descriptor may outlive the log's handle.

    ``map`` is read-only, and None on a file system without shared mappings. What faults in it is an error in the C extension, which
    alone reads it. A read stores no time of access: with relatime that would follow each append, as a change of the inode that the
    writer's next barrier includes.
    """

    def __init__(self, fd: int, size: int, seam: Seam) -> None:
        path = f"/proc/self/fd/{fd}"
        self._seam = seam
        try:
            self.fd = open_descriptor(path, os.O_RDWR | os.O_CLOEXEC)
            self.writable = True
        except OSError:
            self.fd = open_descriptor(path, os.O_RDONLY | os.O_CLOEXEC)
            self.writable = False
        try:
            with contextlib.suppress(PermissionError):  # of another user
                fcntl.fcntl(self.fd, fcntl.F_SETFL, os.O_NOATIME)
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_RANDOM)
            if native is not None:
                native.catch_faults()
            self.map = self._mapped(size)
        except BaseException:
            os.close(self.fd)
            raise

    def _mapped(self, size: int) -> mmap.mmap | None:
        try:
            return map_file(self.fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        except PersistError:  # the file was shortened
            raise
        except OSError:
            return None

    def load(self, offset: int, length: int) -> bytes:
        """These bytes; fewer if the file was shortened."""
        return os.pread(self.fd, length, offset)

    def write(self, offset: int, data: bytes) -> None:
        """Write a hint, if this process may and if that works.

        By write(2): in a file that was shortened, a store into the mapping would raise SIGBUS.

        Past RLIMIT_FSIZE it is not tried, because SIGXFSZ would end a program that does not ignore it.
        """
        if not self.writable:
            return
        limit, end = resource.getrlimit(resource.RLIMIT_FSIZE)[0], offset + len(data)
        if os.lseek(self.fd, 0, os.SEEK_END) >= end and (limit == resource.RLIM_INFINITY or end <= limit):
            with contextlib.suppress(OSError):  # a full or sealed file
                self._seam.write(self.fd, data, offset)

    def close(self) -> None:
        """Unmap and close. If C still watches the page, because the collector ended the generator first, it unmaps it."""
        try:
            if self.map is not None:
                self.map.close()
        except BufferError:
            pass
        finally:
            os.close(self.fd)


def drop_cache(fd: int) -> None:
    """Drop the cached pages of a file whose data is on disk, so that single pages take the place of large folios.

    Write-back works by folio: one dirty line in a 1 MiB folio costs 2048 sectors, in a 4 KiB one 8.
    """
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def private_memory(size: int) -> memoryview:
    """Memory of this process to read a file into past the page cache: from the start of a page on, in huge ones if there are any.

    A disk fills a huge page by one long transfer. A child that is forked has none of it: it would share pages into which the disk
    writes, and a store into a shared page makes a copy of it, which the disk knows nothing of.
    """
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for advice in (mmap.MADV_HUGEPAGE, _MADV_WIPEONFORK):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(advice)
    return memoryview(memory)
