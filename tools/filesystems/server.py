"""A small file system in user space that remembers what was synced: one directory of files in memory, over /dev/fuse.

    python tools/filesystems/server.py FD MODE SYNCS STABLE      FD: /dev/fuse, already mounted

Invariants
----------
- Requests are answered one at a time. The count in the file SYNCS is raised before an FSYNC is answered.
- A write becomes stable with the next FSYNC of its file, not before. After the unmount, STABLE has the stable bytes of the file
  "test.wal": what a power cut would have left if the server kept nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import stat
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":  # run as a file: its directory came first, but the imports start at tools/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from crash import fuse
from crash.fuse import Op

MODES = ("cache", "direct", "writeback", "no-link", "no-rename", "no-mmap")
"""Page cache; direct I/O; write-back cache; neither link(2) nor O_TMPFILE; no RENAME_NOREPLACE either; direct I/O without mmap."""

NAME = "test.wal"

_ENTRY = struct.Struct("<QQQQII")
_SETATTR = struct.Struct("<I4xQQ")  # valid, handle, size
_FALLOCATE = struct.Struct("<QQQI4x")  # handle, offset, length, mode
_DIRENT = struct.Struct("<QQII")
_SIZE = 1 << 3  # FATTR_SIZE
_NOREPLACE = 1


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


class Server(fuse.Server):
    """The file system, and the answers to the kernel."""

    def __init__(self, requests: int, mode: str, syncs: mmap.mmap) -> None:
        super().__init__(requests)
        self._mode, self._syncs = mode, syncs
        self._files: dict[int, File] = {}
        self._names: dict[bytes, int] = {}

    def stable(self, name: str) -> bytes:
        """The stable bytes of a file."""
        return bytes(self._files[self._names[name.encode()]].stable)

    def answer(self, opcode: int, node: int, body: bytes) -> bytes:
        """Of the directory and its files."""
        if opcode in (Op.READ, Op.WRITE, Op.FSYNC, Op.SETATTR, Op.FALLOCATE):
            return self._of_file(opcode, self._files[node], body, node)
        match opcode:
            case Op.LOOKUP:
                return self._entry(self._find(_text(body)))
            case Op.GETATTR:
                return fuse.valid_attributes(self._attributes(node))
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
                return fuse.opened()
            case Op.READDIR:
                return self._list(int.from_bytes(body[8:16], "little"))
            case Op.STATFS:
                return fuse.space(1 << 20, 1 << 20, 1000, 1000)
            case Op.INIT:
                return self._init(body)
            case Op.RELEASE | Op.RELEASEDIR | Op.FSYNCDIR | Op.FLUSH | Op.DESTROY:
                pass
            case _:
                raise fuse.failure(errno.ENOSYS)
        return b""

    def _of_file(self, opcode: int, file: File, body: bytes, node: int) -> bytes:
        if opcode == Op.READ:
            offset, size = fuse.range_of(body)
            return bytes(file.data[offset : offset + size])
        if opcode == Op.WRITE:
            offset, size = fuse.range_of(body)
            file.write(offset, bytes(fuse.data_of(body, size)))
            return fuse.written(size)
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
            return fuse.valid_attributes(self._attributes(node))
        return b""

    def _init(self, body: bytes) -> bytes:
        flags2 = fuse.DIRECT_MMAP if self._mode == "direct" else 0
        return fuse.initialized(body, fuse.WRITEBACK if self._mode == "writeback" else 0, flags2)

    def _opened(self) -> bytes:
        return fuse.opened(fuse.DIRECT_IO if self._mode in ("direct", "no-mmap") else fuse.KEEP_CACHE)

    def _find(self, name: bytes) -> int:
        if name not in self._names:
            raise fuse.failure(errno.ENOENT)
        return self._names[name]

    def _create(self, name: bytes) -> bytes:
        if name in self._names:
            raise fuse.failure(errno.EEXIST)
        node = fuse.ROOT + 1 + len(self._files)
        self._files[node] = File()
        self._names[name] = node
        return self._entry(node) + self._opened()

    def _link(self, node: int, name: bytes) -> bytes:
        if name in self._names:
            raise fuse.failure(errno.EEXIST)
        self._names[name] = node
        self._files[node].links += 1
        return self._entry(node)

    def _rename(self, names: bytes, flags: int) -> None:
        old, new = names.rstrip(b"\0").split(b"\0")
        if flags & _NOREPLACE and new in self._names:
            raise fuse.failure(errno.EEXIST)
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
        return _ENTRY.pack(node, 0, 0, fuse.FOREVER, 0, 0) + self._attributes(node)  # names may change, not so attributes

    def _attributes(self, node: int) -> bytes:
        if node == fuse.ROOT:
            return fuse.attributes(node, stat.S_IFDIR | 0o755, 4096, links=2)
        file = self._files[node]
        return fuse.attributes(node, stat.S_IFREG | 0o600, len(file.data), links=file.links, mtime_ns=file.mtime_ns)


def _text(body: bytes) -> bytes:
    return body[: body.index(b"\0")]


def main() -> None:
    """Serve the mounted directory."""
    requests, mode, syncs, stable = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    with syncs.open("r+b") as file, mmap.mmap(file.fileno(), 8) as count:
        server = Server(requests, mode, count)
        server.serve()
        with contextlib.suppress(KeyError):
            stable.write_bytes(server.stable(NAME))


if __name__ == "__main__":
    main()
