"""A disk that logs what is written to it and when it is flushed: a FUSE server for one file.

    python tools/crash/disk/logdisk.py FD IMAGE LOG      FD: /dev/fuse, already mounted

Invariants
----------
- Requests are answered one at a time, each after its log entry was written. So a request made after an answer is logged after the
  request that was answered.
- A write is logged in whole sectors; bytes that the request does not cover are filled in from the image.
- The log has the format of dm-log-writes (drivers/md/dm-log-writes.c), in sectors of 512 bytes. Its superblock is written last.

The server ends when the file is unmounted.

The FUSE export of qemu-storage-daemon (7.2, Debian 12) will not do: it reads the next request into the buffer of a write that it
has not executed yet, so concurrent writes, which write-back makes, reach image and log with each other's bytes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":  # run as a file: its directory came first, but the imports start at tools/
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from crash import fuse
from crash.fuse import Op

SECTOR = 512
MAGIC, VERSION, FLUSH = 0x6A736677736872, 1, 1
SUPER = struct.Struct("<QQQI")  # magic, version, number of entries, size of a sector
ENTRY = struct.Struct("<QQQQ")  # first sector, number of sectors, flags, length of data


class LogDisk(fuse.Server):
    """The image, its log, and the answers to the kernel."""

    def __init__(self, requests: int, image: int, log: int) -> None:
        super().__init__(requests)
        self._image, self._log = image, log
        self._size = os.fstat(image).st_size
        self._entries = 0
        self._end = SECTOR  # of the log

    def serve(self) -> None:
        """Answer requests until the file is unmounted; then the log is complete."""
        super().serve()
        os.pwrite(self._log, SUPER.pack(MAGIC, VERSION, self._entries, SECTOR), 0)

    def answer(self, opcode: int, node: int, body: bytes) -> bytes:
        """Of the only file."""
        match opcode:
            case Op.WRITE:
                offset, size = fuse.range_of(body)
                self._write(offset, fuse.data_of(body, size))
                return fuse.written(size)
            case Op.READ:
                offset, size = fuse.range_of(body)
                return os.pread(self._image, size, offset)
            case Op.FSYNC:
                self._add(0, b"", FLUSH)
            case Op.GETATTR | Op.SETATTR:
                return fuse.valid_attributes(fuse.attributes(fuse.ROOT, stat.S_IFREG | 0o600, self._size))
            case Op.OPEN:
                return fuse.opened(fuse.KEEP_CACHE)
            case Op.STATFS:
                return fuse.space(self._size >> 12, 0, 1, 0)
            case Op.INIT:
                return fuse.initialized(body)
            case Op.RELEASE | Op.FLUSH | Op.DESTROY:
                pass
            case _:
                raise fuse.failure(errno.ENOSYS)
        return b""

    def _write(self, offset: int, data: memoryview) -> None:
        end = offset + len(data)
        if end > self._size:
            raise fuse.failure(errno.ENOSPC)
        os.pwrite(self._image, data, offset)
        first, last = offset // SECTOR * SECTOR, -(-end // SECTOR) * SECTOR
        if (first, last) == (offset, end):
            self._add(first, data)
        else:
            self._add(first, os.pread(self._image, last - first, first))

    def _add(self, offset: int, data: bytes | memoryview, flags: int = 0) -> None:
        """Log a write of whole sectors, or a flush."""
        head = ENTRY.pack(offset // SECTOR, len(data) // SECTOR, flags, 0).ljust(SECTOR, b"\0")
        self._end += os.pwritev(self._log, [head, data], self._end)
        self._entries += 1


@contextlib.contextmanager
def logged(image: Path, log: Path, mountpoint: Path) -> Iterator[None]:
    """Serve the image as a file at ``mountpoint``, and log every write and flush of it."""
    for path in (log, mountpoint):
        path.touch()
    with fuse.served(Path(__file__), mountpoint, image, log):
        yield


def main() -> None:
    """Serve the mounted file."""
    image, log = os.open(sys.argv[2], os.O_RDWR), os.open(sys.argv[3], os.O_RDWR)
    LogDisk(int(sys.argv[1]), image, log).serve()


if __name__ == "__main__":
    main()
