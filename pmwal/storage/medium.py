"""The medium under a log: what it is, how it is mapped, and what a barrier on it takes.

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
import ctypes
import errno
import mmap
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pmwal.errors import PersistError, UnsupportedMedium
from pmwal.format.layout import ALIGN_DAX, ALIGN_DEFAULT, PAGE
from pmwal.native import native
from pmwal.storage.seam import Seam

MEDIUMS = ("auto", "dax", "file", "memory", "emulated-dax")

_MAP_SHARED_VALIDATE = 0x3  # include/uapi/asm-generic/mman-common.h
_MAP_SYNC = 0x80000
_READ_AHEAD = 64 * 1024  # from this size on a load asks for its pages, and as many again, at once

_FILESYSTEMS = {  # statfs(2), linux/magic.h
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0x01021994: "tmpfs",
    0x858458F6: "ramfs",
    0x6969: "nfs",
    0x65735546: "fuse",
    0x2FC12FC1: "zfs",
    0x794C7630: "overlay",
    0xF2F52010: "f2fs",
    0x01021997: "9p",
    0xFF534D42: "cifs",
    0xFE534D42: "smb2",
    0x00C36400: "ceph",
}
_IN_MEMORY = ("tmpfs", "ramfs")
_BY_LINES = ("dax", "emulated-dax")
_COPY_ON_WRITE = "a rewritten page moves to a new place: commits cost more, and ENOSPC can come from msync"
_NETWORK = "msync is as durable as the server makes it, and flock may not be seen by other hosts"
_ASSUMPTIONS = {
    "btrfs": (_COPY_ON_WRITE,),
    "zfs": (_COPY_ON_WRITE,),
    "overlay": ("durability is that of the upper layer's file system",),
    "nfs": (_NETWORK,),
    "9p": (_NETWORK,),
    "cifs": (_NETWORK,),
    "smb2": (_NETWORK,),
    "ceph": (_NETWORK,),
    "fuse": ("durability is what the user-space file system makes of fsync",),
}


@dataclass(frozen=True, slots=True)
class Medium:
    """What a log lies on. ``kind`` is "dax", "file", "memory" or "emulated-dax"."""

    kind: str
    filesystem: str
    lines: str | None = None  # the instruction that flushes cache lines, where the engine has one

    @property
    def durability(self) -> str:
        """What an acknowledged record survives: "power" (and all less), or only the death of the "process"."""
        return "process" if self.filesystem in _IN_MEMORY else "power"

    @property
    def flush(self) -> str:
        """What a barrier does."""
        if self.kind == "memory":
            return "none"
        return self.lines if self.lines is not None and self.kind in _BY_LINES else "msync"

    @property
    def alignment(self) -> int:
        """Default alignment: on DAX no two commits flush the same cache line."""
        return ALIGN_DAX if self.kind in _BY_LINES else ALIGN_DEFAULT

    @property
    def pipelined(self) -> bool:
        """Whether ``ordering="auto"`` is pipelined: where a barrier is a device flush and not a fence."""
        return self.kind == "file"

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What this file system weakens."""
        return _ASSUMPTIONS.get(self.filesystem, ())


def check_platform() -> None:
    """``UnsupportedMedium`` where pmwal cannot work at all."""
    if not sys.platform.startswith("linux") or sys.byteorder != "little":
        raise UnsupportedMedium(f"pmwal runs on little-endian Linux, not on {sys.platform} ({sys.byteorder}-endian)")
    if mmap.PAGESIZE != PAGE:  # the format's pages are what one msync makes durable
        raise UnsupportedMedium(f"pmwal needs memory pages of {PAGE} bytes; this kernel has {mmap.PAGESIZE}")


def filesystem(fd: int) -> str:
    """The file system that holds this file, by its magic (statfs(2)); the number in hex when it has no name here."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(512)
    if libc.fstatfs(fd, buffer):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    magic = int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], "little") & 0xFFFFFFFF
    return _FILESYSTEMS.get(magic, f"{magic:#x}")


def detect(fd: int, requested: str, name: str) -> Medium:
    """What the open file lies on, by trying MAP_SYNC and by statfs; ``UnsupportedMedium`` when that is not ``requested``.

    The file needs a page at least.
    """
    system = filesystem(fd)
    if requested in ("memory", "emulated-dax"):
        if system not in _IN_MEMORY:
            raise UnsupportedMedium(
                f'{name}: medium="{requested}" needs tmpfs, ramfs or a memfd, and this is {system}; use medium="auto"'
            )
        return Medium(requested, system)
    if requested == "file":
        return Medium("file", system)
    if _maps_sync(fd):
        return Medium("dax", system)
    if requested == "dax":
        raise UnsupportedMedium(
            f'{name}: medium="dax" needs a file system mounted with -o dax on persistent memory; '
            f'MAP_SYNC is refused on this {system}; use medium="auto"'
        )
    return Medium("memory" if system in _IN_MEMORY else "file", system)


def _maps_sync(fd: int) -> bool:
    try:
        mmap.mmap(fd, PAGE, flags=_MAP_SHARED_VALIDATE | _MAP_SYNC, prot=mmap.PROT_READ).close()
    except OSError:
        return False
    return True


@cache
def flush_instruction() -> str | None:
    """The instruction by which the native engine flushes cache lines here; None without that engine, or without one.

    Where the caches are in the persistence domain (eADR) it is "eadr": nothing is flushed, and a fence orders the stores.
    """
    return None if native is None else native.setup_persistence(_caches_are_durable())


def _caches_are_durable() -> bool:
    """Whether all persistent memory here keeps what is in the caches (Linux, Documentation/ABI/testing/sysfs-bus-nd)."""
    domains = [path.read_text().strip() for path in Path("/sys/bus/nd/devices").glob("region*/persistence_domain")]
    return bool(domains) and set(domains) == {"cpu_cache"}


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
            flags = _MAP_SHARED_VALIDATE | _MAP_SYNC if medium.kind == "dax" else mmap.MAP_SHARED
            self._map = mmap.mmap(fd, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
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
