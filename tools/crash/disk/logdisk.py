"""A disk that logs what is written to it and when it is flushed: a FUSE server for one file.

    python tools/crash/disk/logdisk.py FD IMAGE LOG      FD: /dev/fuse, already mounted

Invariants
----------
- Requests are answered one at a time, each after its log entry was written. So a request made after an answer is logged after the
  request that was answered.
- A write is logged in whole sectors; bytes that the request does not cover are filled in from the image.
- The log has the format of dm-log-writes (drivers/md/dm-log-writes.c), in sectors of 512 bytes. Its superblock is written last.

The server ends when the file is unmounted. linux/fuse.h describes the kernel's protocol.

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
from enum import IntEnum

SECTOR = 512
MAGIC, VERSION, FLUSH = 0x6A736677736872, 1, 1
SUPER = struct.Struct("<QQQI")  # magic, version, number of entries, size of a sector
ENTRY = struct.Struct("<QQQQ")  # first sector, number of sectors, flags, length of data

_WRITE_MAX = 1 << 20
_IN, _OUT = struct.Struct("<IIQQ16x"), struct.Struct("<IiQ")  # length, opcode, unique, node; length, error, unique
_READ = struct.Struct("<QQI20x")  # handle, offset, size
_WRITE = struct.Struct("<QQI20x")
_INIT = struct.Struct("<IIIIHHIIH34x")  # version, read-ahead, flags, background and congestion, write size, time unit, pages
_ATTRIBUTES = struct.Struct("<QI4x 6Q 10I")  # how long valid; inode, size, blocks, times; their ns, mode, links, owner, ...
_OPEN = struct.Struct("<QII")
_STATFS = struct.Struct("<5Q 4I 24x")
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22
_KEEP_CACHE = 2
_FOREVER = 1 << 30


class Op(IntEnum):
    """Requests of the kernel."""

    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25  # a descriptor was closed: no flush of the disk
    INIT = 26
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42


class LogDisk:
    """The image, its log, and the answers to the kernel."""

    def __init__(self, fuse: int, image: int, log: int) -> None:
        self._fuse, self._image, self._log = fuse, image, log
        self._size = os.fstat(image).st_size
        self._entries = 0
        self._end = SECTOR  # of the log

    def serve(self) -> None:
        """Answer requests until the file is unmounted."""
        buffer = bytearray(_WRITE_MAX + 64 * 1024)
        while True:
            try:
                length = os.readv(self._fuse, [buffer])
            except OSError as error:
                if error.errno == errno.ENODEV:
                    break
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):  # ENOENT: the request was cancelled
                    continue
                raise
            _, opcode, unique, _ = _IN.unpack_from(buffer)
            if opcode in (Op.FORGET, Op.INTERRUPT, Op.BATCH_FORGET):
                continue
            try:
                answer, failed = self._answer(opcode, memoryview(buffer)[_IN.size : length]), 0
            except OSError as error:
                answer, failed = b"", error.errno or errno.EIO
            # ENOENT: the file was unmounted meanwhile, so nobody waits for the answer or takes the request as done.
            with contextlib.suppress(FileNotFoundError):
                os.writev(self._fuse, [_OUT.pack(_OUT.size + len(answer), -failed, unique), answer])
        os.pwrite(self._log, SUPER.pack(MAGIC, VERSION, self._entries, SECTOR), 0)

    def _answer(self, opcode: int, body: memoryview) -> bytes:
        match opcode:
            case Op.WRITE:
                _, offset, size = _WRITE.unpack_from(body)
                self._write(offset, body[_WRITE.size : _WRITE.size + size])
                return struct.pack("<I4x", size)
            case Op.READ:
                _, offset, size = _READ.unpack_from(body)
                return os.pread(self._image, size, offset)
            case Op.FSYNC:
                self._add(0, b"", FLUSH)
            case Op.GETATTR | Op.SETATTR:
                return self._attributes()
            case Op.OPEN:
                return _OPEN.pack(0, _KEEP_CACHE, 0)
            case Op.STATFS:
                return _STATFS.pack(self._size >> 12, 0, 0, 1, 0, 4096, 255, 4096, 0)
            case Op.INIT:
                flags = _BIG_WRITES | _MAX_PAGES
                return _INIT.pack(7, 31, 1 << 17, flags, 16, 12, _WRITE_MAX, 1, _WRITE_MAX >> 12)
            case Op.RELEASE | Op.FLUSH | Op.DESTROY:
                pass
            case _:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return b""

    def _attributes(self) -> bytes:
        times = (0, 0, 0)
        mode = stat.S_IFREG | 0o600
        blocks = self._size // 512
        return _ATTRIBUTES.pack(_FOREVER, 0, 1, self._size, blocks, *times, *times, mode, 1, os.getuid(), os.getgid(), 0, 4096, 0)

    def _write(self, offset: int, data: memoryview) -> None:
        end = offset + len(data)
        if end > self._size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
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


def main() -> None:
    """Serve the mounted file."""
    image, log = os.open(sys.argv[2], os.O_RDWR), os.open(sys.argv[3], os.O_RDWR)
    LogDisk(int(sys.argv[1]), image, log).serve()


if __name__ == "__main__":
    main()
