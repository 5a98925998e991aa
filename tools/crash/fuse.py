"""File systems in user space: the kernel's requests over /dev/fuse, and a server that lives as long as its mount.

A server is a program of its own with the mounted descriptor as its first argument; ``served`` starts it. linux/fuse.h describes the
kernel's protocol.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from enum import IntEnum
from functools import partial
from pathlib import Path

from crash.process import die_with_parent
from crash.storage import PATIENCE, StorageError, mount, own_mounts, unmount

KEEP_CACHE, DIRECT_IO = 2, 1  # of an open file
WRITEBACK = 1 << 16  # FUSE_WRITEBACK_CACHE
DIRECT_MMAP = 1 << 4  # of the second flags: FUSE_DIRECT_IO_ALLOW_MMAP
ROOT = 1
FOREVER = 1 << 30

_WRITE_MAX = 1 << 20
_BIG_WRITES, _MAX_PAGES, _INIT_EXT = 1 << 5, 1 << 22, 1 << 30
_IN, _OUT = struct.Struct("<IIQQ16x"), struct.Struct("<IiQ")  # length, opcode, unique, node; length, error, unique
_TRANSFER = struct.Struct("<QQI20x")  # a read or a write: handle, offset, size
_INIT_IN = struct.Struct("<IIII")
_INIT = struct.Struct("<IIIIHHIIHHI28x")  # version, read-ahead, flags, background and congestion, write size, ..., flags2
_ATTRIBUTES = struct.Struct("<6Q 10I")  # inode, size, blocks, times; their ns, mode, links, owner, group, device, block, flags
_VALID = struct.Struct("<QI4x")
_OPEN = struct.Struct("<QII")
_STATFS = struct.Struct("<5Q 4I 24x")


class Op(IntEnum):
    """Requests of the kernel."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    UNLINK = 10
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25  # a descriptor was closed: no flush of the disk
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    RENAME2 = 45


class Server(ABC):
    """Answers requests one at a time, each before the next is read."""

    def __init__(self, fuse: int) -> None:
        self._fuse = fuse

    @abstractmethod
    def answer(self, opcode: int, node: int, body: bytes) -> bytes:
        """The answer to a request; an ``OSError`` is answered by its errno."""

    def serve(self) -> None:
        """Answer requests until the unmount."""
        buffer = bytearray(_WRITE_MAX + 64 * 1024)
        while True:
            try:
                length = os.readv(self._fuse, [buffer])
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):  # ENOENT: the request was cancelled
                    continue
                raise
            _, opcode, unique, node = _IN.unpack_from(buffer)
            if opcode in (Op.FORGET, Op.INTERRUPT, Op.BATCH_FORGET):
                continue
            try:
                answer, failed = self.answer(opcode, node, bytes(memoryview(buffer)[_IN.size : length])), 0
            except OSError as error:
                answer, failed = b"", error.errno or errno.EIO
            # ENOENT: it was unmounted meanwhile, so nobody waits for the answer or takes the request as done.
            with contextlib.suppress(FileNotFoundError):
                os.writev(self._fuse, [_OUT.pack(_OUT.size + len(answer), -failed, unique), answer])


def failure(number: int) -> OSError:
    """The error with this errno."""
    return OSError(number, os.strerror(number))


def initialized(body: bytes, flags: int = 0, flags2: int = 0) -> bytes:
    """The answer to INIT, with ``flags`` beside those that every server here sets."""
    _, minor, _, _ = _INIT_IN.unpack_from(body)
    flags |= _BIG_WRITES | _MAX_PAGES | _INIT_EXT
    return _INIT.pack(7, min(minor, 36), 1 << 17, flags, 16, 12, _WRITE_MAX, 1, _WRITE_MAX >> 12, 0, flags2)


def opened(flags: int = 0) -> bytes:
    """The answer to OPEN and OPENDIR."""
    return _OPEN.pack(0, flags, 0)


def range_of(body: bytes) -> tuple[int, int]:
    """Offset and size of a READ or a WRITE."""
    _, offset, size = _TRANSFER.unpack_from(body)
    return offset, size


def data_of(body: bytes, size: int) -> memoryview:
    """The bytes of a WRITE."""
    return memoryview(body)[_TRANSFER.size : _TRANSFER.size + size]


def written(size: int) -> bytes:
    """The answer to WRITE."""
    return struct.pack("<I4x", size)


def attributes(node: int, mode: int, size: int, *, links: int = 1, mtime_ns: int = 0) -> bytes:
    """A file's attributes, as they are part of several answers. It belongs to the user of this process."""
    seconds, ns = divmod(mtime_ns, 10**9)
    owner = (os.getuid(), os.getgid(), 0, 4096, 0)
    return _ATTRIBUTES.pack(node, size, -(-size // 512), *[seconds] * 3, *[ns] * 3, mode, links, *owner)


def valid_attributes(told: bytes) -> bytes:
    """The answer to GETATTR and SETATTR: the kernel asks no more."""
    return _VALID.pack(FOREVER, 0) + told


def space(blocks: int, free: int, files: int, free_files: int) -> bytes:
    """The answer to STATFS."""
    return _STATFS.pack(blocks, free, free, files, free_files, 4096, 255, 4096, 0)


def _set_apart(mountpoint: Path) -> None:
    """For ``preexec_fn`` of the server: it sees neither its own file nor what is mounted on that later.

    A file system writes to its disk when it is unmounted. If the exit of the server did that, it would wait for itself forever.
    """
    die_with_parent()
    own_mounts()
    unmount(mountpoint)


@contextlib.contextmanager
def served(program: Path, mountpoint: Path, *arguments: str | Path) -> Iterator[None]:
    """Mount what the program serves over ``mountpoint``, a file or a directory; ``StorageError`` if the server fails."""
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    server: subprocess.Popen[bytes] | None = None
    status = 0
    try:
        kind = stat.S_IFMT(mountpoint.stat().st_mode)
        options = f"fd={fuse},rootmode={kind:o},user_id=0,group_id=0,max_read={_WRITE_MAX}"
        mount(f"pmwal-{program.stem}", mountpoint, "fuse", options)
        server = subprocess.Popen(  # its own session: Ctrl-C must not end it before the unmount
            [sys.executable, str(program), str(fuse), *map(str, arguments)],
            pass_fds=[fuse],
            start_new_session=True,
            preexec_fn=partial(_set_apart, mountpoint),  # noqa: PLW1509 (one thread)
        )
        os.close(fuse)
        fuse = -1
        yield
    finally:
        if fuse >= 0:
            os.close(fuse)
        unmount(mountpoint)
        if server is not None:
            try:
                status = server.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                server.kill()
                status = server.wait()
    if status:
        raise StorageError(f"{program.name} ended with {status}")
