"""A small file system in user space that remembers what was synced: one directory of files in memory, over /dev/fuse.

    python tools/filesystems/server.py FD MODE SYNCS STABLE      FD: /dev/fuse, already mounted

Invariants
----------
- Requests are answered one at a time. The count in the file SYNCS is raised before an FSYNC is answered.
- A write becomes stable with the next FSYNC of its file, not before. After the unmount, STABLE has the stable bytes of the file
  "test.wal": what a power cut would have left if the server kept nothing else.

linux/fuse.h describes the kernel's protocol.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import struct
import sys
import time
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

MODES = ("cache", "direct", "writeback", "no-link", "no-rename", "no-mmap")
"""Page cache; direct I/O; write-back cache; neither link(2) nor O_TMPFILE; no RENAME_NOREPLACE either; direct I/O without mmap."""

NAME = "test.wal"

_WRITE_MAX = 1 << 20
_IN, _OUT = struct.Struct("<IIQQ16x"), struct.Struct("<IiQ")  # length, opcode, unique, node; length, error, unique
_READ = _WRITE = struct.Struct("<QQI20x")  # handle, offset, size
_INIT_IN = struct.Struct("<IIII")
_INIT = struct.Struct("<IIIIHHIIHHI28x")  # version, read-ahead, flags, background and congestion, write size, ..., flags2
_ATTRIBUTES = struct.Struct("<6Q 10I")  # inode, size, blocks, times; their ns, mode, links, owner, group, device, block, flags
_ATTR_OUT, _ENTRY = struct.Struct("<QI4x"), struct.Struct("<QQQQII")
_OPEN = struct.Struct("<QII")
_STATFS = struct.Struct("<5Q 4I 24x")
_SETATTR = struct.Struct("<I4xQQ")  # valid, handle, size
_FALLOCATE = struct.Struct("<QQQI4x")  # handle, offset, length, mode
_DIRENT = struct.Struct("<QQII")
_BIG_WRITES, _WRITEBACK, _MAX_PAGES, _INIT_EXT = 1 << 5, 1 << 16, 1 << 22, 1 << 30
_DIRECT_MMAP = 1 << 4  # of flags2: FUSE_DIRECT_IO_ALLOW_MMAP
_DIRECT_IO, _KEEP_CACHE = 1, 2
_SIZE = 1 << 3  # FATTR_SIZE
_NOREPLACE = 1
_FOREVER = 1 << 30
_ROOT = 1


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
    FLUSH = 25
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


@dataclass
class File:
    """A file: its bytes, those that a power cut leaves, and the writes in between."""

    data: bytearray = field(default_factory=bytearray)
    stable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes]] = field(default_factory=list)
    mtime_ns: int = field(default_factory=time.time_ns)
    links: int = 1

    def resize(self, size: int) -> None:
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))

    def write(self, offset: int, data: bytes) -> None:
        if offset + len(data) > len(self.data):
            self.resize(offset + len(data))
        self.data[offset : offset + len(data)] = data
        self.pending.append((offset, data))
        self.mtime_ns = time.time_ns()

    def sync(self) -> None:
        del self.stable[len(self.data) :]
        self.stable.extend(bytes(len(self.data) - len(self.stable)))
        for offset, data in self.pending:
            self.stable[offset : offset + len(data)] = data
        self.pending.clear()


class Server:
    """The file system, and the answers to the kernel."""

    def __init__(self, fuse: int, mode: str, syncs: mmap.mmap) -> None:
        self._fuse, self._mode, self._syncs = fuse, mode, syncs
        self._files: dict[int, File] = {}
        self._names: dict[bytes, int] = {}

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
                answer, failed = self._answer(opcode, node, bytes(buffer[_IN.size : length])), 0
            except OSError as error:
                answer, failed = b"", error.errno or errno.EIO
            with contextlib.suppress(FileNotFoundError):  # unmounted meanwhile
                os.writev(self._fuse, [_OUT.pack(_OUT.size + len(answer), -failed, unique), answer])

    def stable(self, name: str) -> bytes:
        """The stable bytes of a file."""
        return bytes(self._files[self._names[name.encode()]].stable)

    def _answer(self, opcode: int, node: int, body: bytes) -> bytes:
        if opcode in (Op.READ, Op.WRITE, Op.FSYNC, Op.SETATTR, Op.FALLOCATE):
            return self._of_file(opcode, self._files[node], body, node)
        match opcode:
            case Op.LOOKUP:
                return self._entry(self._find(_text(body)))
            case Op.GETATTR:
                return _ATTR_OUT.pack(_FOREVER, 0) + self._attributes(node)
            case Op.CREATE:
                return self._create(_text(body[16:]))
            case Op.UNLINK:
                self._files[self._names.pop(_text(body))].links -= 1
            case Op.LINK if self._mode not in ("no-link", "no-rename"):
                return self._link(int.from_bytes(body[:8], "little"), _text(body[8:]))
            case Op.RENAME:
                self._rename(body[8:], 0)
            case Op.RENAME2 if self._mode != "no-rename":
                self._rename(body[16:], int.from_bytes(body[8:12], "little"))
            case Op.OPEN:
                return self._opened()
            case Op.OPENDIR:
                return _OPEN.pack(0, 0, 0)
            case Op.READDIR:
                return self._list(int.from_bytes(body[8:16], "little"))
            case Op.STATFS:
                return _STATFS.pack(1 << 20, 1 << 20, 1 << 20, 1000, 1000, 4096, 255, 4096, 0)
            case Op.INIT:
                return self._init(body)
            case Op.RELEASE | Op.RELEASEDIR | Op.FSYNCDIR | Op.FLUSH | Op.DESTROY:
                pass
            case _:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return b""

    def _of_file(self, opcode: int, file: File, body: bytes, node: int) -> bytes:
        if opcode == Op.READ:
            _, offset, size = _READ.unpack_from(body)
            return bytes(file.data[offset : offset + size])
        if opcode == Op.WRITE:
            _, offset, size = _WRITE.unpack_from(body)
            file.write(offset, body[_WRITE.size : _WRITE.size + size])
            return struct.pack("<I4x", size)
        if opcode == Op.FSYNC:
            file.sync()
            self._syncs[:8] = (int.from_bytes(self._syncs[:8], "little") + 1).to_bytes(8, "little")
        elif opcode == Op.FALLOCATE:
            _, offset, length, _ = _FALLOCATE.unpack_from(body)
            file.resize(max(len(file.data), offset + length))
        else:
            valid, _, size = _SETATTR.unpack_from(body)
            if valid & _SIZE:
                file.resize(size)
            return _ATTR_OUT.pack(_FOREVER, 0) + self._attributes(node)
        return b""

    def _init(self, body: bytes) -> bytes:
        _, minor, _, _ = _INIT_IN.unpack_from(body)
        flags = _BIG_WRITES | _MAX_PAGES | _INIT_EXT | (_WRITEBACK if self._mode == "writeback" else 0)
        flags2 = _DIRECT_MMAP if self._mode == "direct" else 0
        pages = _WRITE_MAX >> 12
        return _INIT.pack(7, min(minor, 36), 1 << 17, flags, 16, 12, _WRITE_MAX, 1, pages, 0, flags2)

    def _opened(self) -> bytes:
        return _OPEN.pack(0, _DIRECT_IO if self._mode in ("direct", "no-mmap") else _KEEP_CACHE, 0)

    def _find(self, name: bytes) -> int:
        if name not in self._names:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self._names[name]

    def _create(self, name: bytes) -> bytes:
        if name in self._names:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        node = _ROOT + 1 + len(self._files)
        self._files[node] = File()
        self._names[name] = node
        return self._entry(node) + self._opened()

    def _link(self, node: int, name: bytes) -> bytes:
        if name in self._names:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        self._names[name] = node
        self._files[node].links += 1
        return self._entry(node)

    def _rename(self, names: bytes, flags: int) -> None:
        old, new = names.rstrip(b"\0").split(b"\0")
        if flags & _NOREPLACE and new in self._names:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        if new in self._names:
            self._files[self._names[new]].links -= 1
        self._names[new] = self._names.pop(old)

    def _list(self, offset: int) -> bytes:
        answer = b""
        for place, (name, node) in enumerate(self._names.items(), 1):
            if place > offset:
                entry = _DIRENT.pack(node, place, len(name), stat.S_IFREG >> 12) + name
                answer += entry + bytes(-len(entry) % 8)
        return answer

    def _entry(self, node: int) -> bytes:
        return _ENTRY.pack(node, 0, 0, _FOREVER, 0, 0) + self._attributes(node)  # names may change, attributes follow the kernel

    def _attributes(self, node: int) -> bytes:
        owner = (os.getuid(), os.getgid(), 0, 4096, 0)
        if node == _ROOT:
            return _ATTRIBUTES.pack(node, 4096, 8, 0, 0, 0, 0, 0, 0, stat.S_IFDIR | 0o755, 2, *owner)
        file = self._files[node]
        seconds, ns = divmod(file.mtime_ns, 10**9)
        mode, size = stat.S_IFREG | 0o600, len(file.data)
        return _ATTRIBUTES.pack(node, size, -(-size // 512), *[seconds] * 3, *[ns] * 3, mode, file.links, *owner)


def _text(body: bytes) -> bytes:
    return body[: body.index(b"\0")]


def main() -> None:
    """Serve the mounted directory."""
    fuse, mode, syncs, stable = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    with syncs.open("r+b") as file, mmap.mmap(file.fileno(), 8) as count:
        server = Server(fuse, mode, count)
        server.serve()
        with contextlib.suppress(KeyError):
            stable.write_bytes(server.stable(NAME))


if __name__ == "__main__":
    main()
