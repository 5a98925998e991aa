"""The seam: the one object through which pmwal changes files, and learns what comes from outside.

Invariants
----------
- No other module stores into a mapping, flushes, syncs, writes to a log's file or gives it a name. So a test that replaces this
  object sees every step of the code that ships, and can delay or refuse it.
- Clock, uuid, process id, boot id and the size of the control region come from here, so a test can fix them.
- The native engine stores on its own if the seam is ``SYSTEM``, and calls the methods of any other seam.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import time
from functools import cache
from pathlib import Path

from pmwal.format.layout import CONTROL_SIZE_DEFAULT
from pmwal.native import native
from pmwal.native.choice import chosen_stores

_RENAME_NOREPLACE = 1  # linux/fs.h
_FALLOC_FL_WRITE_ZEROES = 0x80  # linux/falloc.h, since Linux 6.17
_NO_ZEROS = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM)  # by the device, the kernel, or a filter of system calls
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h


class Seam:
    """The real operating system. Tests derive from it."""

    control_size = CONTROL_SIZE_DEFAULT

    def now_ns(self) -> int:
        """Wall clock, ns since 1970."""
        return time.time_ns()

    def monotonic_ns(self) -> int:
        """A clock that never goes back, in ns; only differences have a meaning."""
        return time.monotonic_ns()

    def new_uuid(self) -> bytes:
        """16 random bytes."""
        import uuid  # noqa: PLC0415 - only a new log needs one

        return uuid.uuid4().bytes

    def pid(self) -> int:
        """The id of this process."""
        return os.getpid()

    def boot_id(self) -> bytes:
        """16 bytes that change with every boot (random(4)); zeros if there is no /proc."""
        return _boot_id()

    def stores(self) -> str:
        """Which way to store to cache lines is demanded: "stream", "write-back", or "" for the better one."""
        return chosen_stores()

    def store(self, mapping: mmap.mmap, offset: int, data: bytes) -> None:
        """Store bytes into the mapping. ``OSError`` if the medium fails; without the C extension that is a SIGBUS."""
        if native is None:
            mapping[offset : offset + len(data)] = data
        else:
            native.store(mapping, offset, data)

    def flush(self, mapping: mmap.mmap, offset: int, length: int) -> None:
        """msync(MS_SYNC) of whole pages; it has returned 0 when this returns.

        Without the C extension other threads do not run meanwhile.
        """
        if native is None:
            mapping.flush(offset, length)
        else:
            native.flush(mapping, offset, length)

    def stream(self, mapping: mmap.mmap, offset: int, data: bytes) -> None:
        """Store whole cache lines with non-temporal stores. Native engine only, like the next two."""
        native.stream(mapping, offset, data)

    def write_back(self, mapping: mmap.mmap, offset: int, length: int) -> None:
        """Start writing back every cache line of these bytes; ``fence`` waits for it."""
        native.write_back(mapping, offset, length)

    def fence(self) -> None:
        """Wait until what was streamed and written back is durable."""
        native.fence()

    def allocate(self, fd: int, size: int) -> None:
        """Give the file its size and blocks, so that a full disk is an error here and not a SIGBUS later.

        What cannot fit is refused first: ext4 keeps what it could allocate before the disk was full.
        """
        disk = os.fstatvfs(fd)
        if disk.f_blocks and size - os.fstat(fd).st_blocks * 512 > disk.f_bfree * disk.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.posix_fallocate(fd, 0, size)

    def zero(self, fd: int, size: int) -> bool:
        """Have the device write zeros over all blocks of a file, which are durable after ``sync_file``; False where it cannot."""
        libc = _libc()
        while libc.fallocate(fd, _FALLOC_FL_WRITE_ZEROES, ctypes.c_longlong(0), ctypes.c_longlong(size)):
            number = ctypes.get_errno()
            if number in _NO_ZEROS:
                return False
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))
        return True

    def begin_writing(self, fd: int, offset: int, length: int) -> None:
        """Start writing these bytes of the page cache to the disk. It promises nothing; ``sync_file`` reports what fails."""
        libc = _libc()
        libc.sync_file_range(fd, ctypes.c_longlong(offset), ctypes.c_longlong(length), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))

    def write(self, fd: int, data: bytes, offset: int) -> None:
        """Write all of these bytes at an offset of the file."""
        while data:
            written = os.pwrite(fd, data, offset)
            if not written:
                raise OSError(errno.EIO, "a write(2) took nothing and reported no error")
            data, offset = data[written:], offset + written

    def sync_file(self, fd: int) -> None:
        """fsync of a file or a directory."""
        os.fsync(fd)

    def sync_data(self, fd: int) -> None:
        """fdatasync of a consumer's position. A separate descriptor may sync what another process wrote."""
        os.fdatasync(fd)

    def touch(self, fd: int) -> None:
        """Set the file's modification time to now."""
        os.utime(fd)

    def link(self, source: str, target: str, directory_fd: int) -> None:
        """Give a file a second name, or an unnamed file its first; fails if the name is taken."""
        os.link(source, target, src_dir_fd=directory_fd, dst_dir_fd=directory_fd, follow_symlinks=True)

    def rename_new(self, source: str, target: str, directory_fd: int) -> None:
        """Rename within a directory, atomically; fails if the name is taken (renameat2(2) with RENAME_NOREPLACE)."""
        libc = _libc()
        if not hasattr(libc, "renameat2"):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), target)
        if libc.renameat2(directory_fd, os.fsencode(source), directory_fd, os.fsencode(target), _RENAME_NOREPLACE):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), target)

    def replace(self, source: str, target: str, directory_fd: int) -> None:
        """Rename within a directory, atomically."""
        os.replace(source, target, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)

    def unlink(self, name: str, directory_fd: int) -> None:
        """Remove a name."""
        os.unlink(name, dir_fd=directory_fd)


@cache
def _libc() -> ctypes.CDLL:  # loaded once: that takes as long as to write a page
    return ctypes.CDLL(None, use_errno=True)


@cache
def _boot_id() -> bytes:  # read once: followers ask often, and no process outlives its boot
    try:
        return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", ""))
    except (OSError, ValueError):
        return bytes(16)


SYSTEM = Seam()
