"""The seam to the outside: everything that changes a log's file, and every fact that comes from around it.

Invariants
----------
- The native engine stores by itself when this very object is the seam, and through the methods of any other.
- No other module stores into a mapping, flushes, syncs, writes to a log's file or gives it a name, so that a test that
  replaces this object sees (and can refuse, delay or record) every step of the code that ships.
- Clock, uuid, process id, boot id and the size of the control region come from here too, so that a test can fix them.
"""

from __future__ import annotations

import mmap
import os
import time
import uuid
from functools import cache
from pathlib import Path

from pmwal.format.layout import CONTROL_SIZE_DEFAULT
from pmwal.native import native


class Seam:
    """The real outside. Tests derive from it."""

    control_size = CONTROL_SIZE_DEFAULT

    def now_ns(self) -> int:
        """Wall clock, ns since 1970."""
        return time.time_ns()

    def monotonic_ns(self) -> int:
        """A clock that only goes forward, in ns; only differences mean something."""
        return time.monotonic_ns()

    def new_uuid(self) -> bytes:
        """16 random bytes."""
        return uuid.uuid4().bytes

    def pid(self) -> int:
        """This process."""
        return os.getpid()

    def boot_id(self) -> bytes:
        """16 bytes that change with every boot (random(4)); zeros where there is no /proc."""
        return _boot_id()

    def store(self, mapping: mmap.mmap, offset: int, data: bytes) -> None:
        """Store bytes into the mapping."""
        mapping[offset : offset + len(data)] = data

    def flush(self, mapping: mmap.mmap, offset: int, length: int) -> None:
        """msync(MS_SYNC) of whole pages; it has returned 0 when this returns."""
        mapping.flush(offset, length)

    def stream(self, mapping: mmap.mmap, offset: int, data: bytes) -> None:
        """Store whole cache lines past the cache. Native engine only, like the next two."""
        native.stream(mapping, offset, data)

    def write_back(self, mapping: mmap.mmap, offset: int, length: int) -> None:
        """Start to write back every cache line of these bytes; ``fence`` waits for it."""
        native.write_back(mapping, offset, length)

    def fence(self) -> None:
        """Wait until what was streamed and written back is durable."""
        native.fence()

    def allocate(self, fd: int, size: int) -> None:
        """Give the file its size and blocks; "no space" is said here and not by a signal later."""
        os.posix_fallocate(fd, 0, size)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        """Write all bytes to the file at the offset."""
        while data:
            written = os.pwrite(fd, data, offset)
            data, offset = data[written:], offset + written

    def sync_file(self, fd: int) -> None:
        """fsync of a file or a directory."""
        os.fsync(fd)

    def link(self, source: str, target: str, directory_fd: int) -> None:
        """Give a file a second name, or an unnamed one its first; fails when the name is taken."""
        os.link(source, target, src_dir_fd=directory_fd, dst_dir_fd=directory_fd, follow_symlinks=True)

    def replace(self, source: str, target: str, directory_fd: int) -> None:
        """Rename within a directory, atomically."""
        os.replace(source, target, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)

    def unlink(self, name: str, directory_fd: int) -> None:
        """Remove a name."""
        os.unlink(name, dir_fd=directory_fd)


@cache
def _boot_id() -> bytes:  # once: followers ask again and again, and a process ends with its boot
    try:
        return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).bytes
    except (OSError, ValueError):
        return bytes(16)


SYSTEM = Seam()
