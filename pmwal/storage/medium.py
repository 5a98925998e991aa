"""The medium under a log: what it is, what a barrier on it takes, and which assumptions its file system weakens.

Invariants
----------
- A medium is "dax" only where the kernel has accepted MAP_SYNC. MAP_SHARED_VALIDATE makes it refuse that where DAX is not real;
  MAP_SHARED would ignore it, and cache-line flushes without MAP_SYNC make nothing durable.
- No option gives a disk less than msync: "memory" and "emulated-dax" are refused outside tmpfs and ramfs.
- ``durability`` follows from the file system and from no option of pmwal: tmpfs, ramfs and an overlay mounted volatile never claim
  to survive a power cut, and for FUSE nothing is claimed.
- A write with RWF_DSYNC counts as a barrier only on file systems that were seen to flush the disk for it as they do for msync
  (``python -m tools filesystems``). FUSE with direct I/O and a volatile overlay return from it without a sync.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from pmwal.errors import UnsupportedMedium
from pmwal.format.layout import ALIGN_DAX, ALIGN_DEFAULT, PAGE
from pmwal.native import native
from pmwal.native.choice import STREAM
from pmwal.storage.descriptors import map_file

MediumName: TypeAlias = Literal["auto", "dax", "file", "memory", "emulated-dax"]
MEDIUMS: tuple[str, ...] = get_args(MediumName)

MAP_SYNC_OR_FAIL = 0x3 | 0x80000
"""MAP_SHARED_VALIDATE, MAP_SYNC (include/uapi/asm-generic/mman-common.h)."""

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
_SYNCED_WRITES = ("ext4", "xfs", "btrfs")
_CACHED_WRITES = (*_SYNCED_WRITES, *_IN_MEMORY, "f2fs", "overlay")
_VOLATILE = {"volatile", "fsync=volatile"}  # overlay's option, as older and newer kernels show it
_BY_LINES = ("dax", "emulated-dax")
_MEASURED = ("AuthenticAMD", "HygonGenuine")  # all others write lines back: Optane was for Intel's
_CLEARLY = 0.9  # by noise, neither way is that much faster
_COPY_ON_WRITE = "a rewritten page moves to a new place: commits cost more, and ENOSPC can come from msync"
_NETWORK = "msync is as durable as the server makes it, and flock may not be seen by other hosts"
_ASSUMPTIONS = {
    "btrfs": (_COPY_ON_WRITE,),
    "zfs": (_COPY_ON_WRITE,),
    "overlay": ("durability is that of the upper layer's file system, and none if the overlay is mounted volatile",),
    "nfs": (_NETWORK,),
    "9p": (_NETWORK,),
    "cifs": (_NETWORK,),
    "smb2": (_NETWORK,),
    "ceph": (_NETWORK,),
    "fuse": ("durability is what the user-space file system makes of fsync",),
}


@dataclass(frozen=True, slots=True)
class Medium:
    """What a log is stored on. ``kind`` is "dax", "file", "memory" or "emulated-dax"."""

    kind: str
    filesystem: str
    lines: str | None = None  # how the engine makes cache lines durable, if it can: see ``flush_method``
    volatile: bool | None = False  # whether its mount makes every sync return without one; None if that cannot be told

    @property
    def durability(self) -> str:
        """What an acknowledged record survives: a "power" cut, only the death of the "process", or "unknown"."""
        if self.volatile or self.filesystem in _IN_MEMORY:
            return "process"
        return "unknown" if self.filesystem == "fuse" or self.volatile is None else "power"

    @property
    def on_disk(self) -> bool:
        """Whether the pages of the file are a cache of what lies elsewhere."""
        return self.kind == "file" and self.filesystem not in _IN_MEMORY

    @property
    def allocates_zeros(self) -> bool:
        """Whether allocated blocks are pages of zeros, and no extents that the first write has to convert."""
        return self.filesystem in _IN_MEMORY

    @property
    def synced_writes(self) -> bool:
        """Whether a write with RWF_DSYNC makes its bytes as durable as msync would."""
        return self.on_disk and self.filesystem in _SYNCED_WRITES

    @property
    def cached_writes(self) -> bool:
        """Whether write(2) and the mapping use the same pages; FUSE with direct I/O, 9p and cifs may write past them."""
        return self.filesystem in _CACHED_WRITES

    @property
    def flush(self) -> str:
        """How stores become durable: "msync", what ``flush_method`` says for cache lines, or "none"."""
        if self.kind == "memory":
            return "none"
        return self.lines if self.lines is not None and self.kind in _BY_LINES else "msync"

    @property
    def alignment(self) -> int:
        """Default alignment: on DAX no two commits flush the same cache line."""
        return ALIGN_DAX if self.kind in _BY_LINES else ALIGN_DEFAULT

    @property
    def pipelined(self) -> bool:
        """Whether ``ordering="auto"`` is pipelined: a barrier is a device flush, not a fence."""
        return self.kind == "file"

    @property
    def map_flags(self) -> int:
        """The flags of mmap(2)."""
        return MAP_SYNC_OR_FAIL if self.kind == "dax" else mmap.MAP_SHARED

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What this file system weakens, in words."""
        return _ASSUMPTIONS.get(self.filesystem, ())


def filesystem(fd: int) -> str:
    """Name of the file system of this file, by its magic number (statfs(2)); the number in hex if it is not known here."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(512)
    if libc.fstatfs(fd, buffer):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    magic = int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], "little") & 0xFFFFFFFF
    return _FILESYSTEMS.get(magic, f"{magic:#x}")


def detect(fd: int, requested: str, name: str) -> Medium:
    """The medium of an open file of at least one page, by trying MAP_SYNC and by statfs(2).

    ``UnsupportedMedium`` if it cannot be the ``requested`` one.
    """
    system = filesystem(fd)
    if requested in ("memory", "emulated-dax"):
        if system not in _IN_MEMORY:
            raise UnsupportedMedium(
                f'{name}: medium="{requested}" needs tmpfs, ramfs or a memfd, and this is {system}; use medium="auto"'
            )
        return Medium(requested, system)
    if requested == "file":
        return Medium("file", system, volatile=_is_volatile(fd, system))
    if _maps_sync(fd):
        return Medium("dax", system)
    if requested == "dax":
        raise UnsupportedMedium(
            f'{name}: medium="dax" needs a file system mounted with -o dax on persistent memory; '
            f'MAP_SYNC is refused on this {system}; use medium="auto"'
        )
    return Medium("memory" if system in _IN_MEMORY else "file", system, volatile=_is_volatile(fd, system))


def _is_volatile(fd: int, system: str) -> bool | None:
    """Whether this file is on an overlay that drops syncs and reports success ("volatile"); None if /proc does not say."""
    if system != "overlay":
        return False
    try:
        return volatile_mount(Path(f"/proc/self/fdinfo/{fd}").read_text(), Path("/proc/self/mountinfo").read_text(errors="replace"))
    except OSError:
        return None


def volatile_mount(fdinfo: str, mountinfo: str) -> bool | None:
    """Whether the mount of a descriptor has overlay's option "volatile", from texts of /proc/self; None if they lack it."""
    number = next((line.split()[1] for line in fdinfo.splitlines() if line.startswith("mnt_id:")), None)
    mounts = (line.split() for line in mountinfo.splitlines())
    return next((not _VOLATILE.isdisjoint(mount[-1].split(",")) for mount in mounts if mount[0] == number), None)


def check_mappable(fd: int, name: str) -> None:
    """``UnsupportedMedium`` if an open file of at least one page cannot be mapped for writing."""
    try:
        map_file(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        raise UnsupportedMedium(
            f"{name}: this file system ({filesystem(fd)}) cannot map a file for writing, as FUSE with direct I/O often cannot; "
            "mount it without direct I/O, or keep the log on another file system"
        ) from error


def _maps_sync(fd: int) -> bool:
    try:
        map_file(fd, PAGE, MAP_SYNC_OR_FAIL, mmap.PROT_READ).close()
    except OSError:
        return False
    return True


def flush_method(stores: str) -> str | None:
    """How the native engine makes cache lines durable on this CPU: "stream", or the instruction that writes them back.

    "eadr" where the caches are in the persistence domain: nothing is flushed, and a fence orders the stores. None without such an
    instruction, or without that engine. ``stores``: what ``Seam.stores`` says.
    """
    instruction = _instruction()
    return STREAM if instruction is not None and (stores == STREAM or (not stores and _streams_are_faster())) else instruction


@cache
def _instruction() -> str | None:
    return None if native is None else native.setup_persistence(_caches_are_durable())


@cache
def _streams_are_faster() -> bool:
    """Whether records and slots are better stored past the cache than written back; measured once for the process.

    On DRAM, which says nothing of persistent memory that has buffers of its own: so it is measured only on processors whose
    persistent memory, if any, is DRAM with a battery, and counts only where the difference is clear.
    """
    if native is None or native.VENDOR not in _MEASURED or _instruction() == "eadr":
        return False
    streamed, written_back = native.time_stores()
    return streamed < _CLEARLY * written_back


def _caches_are_durable() -> bool:
    """Whether a power cut keeps the CPU caches for all persistent memory here (Documentation/ABI/testing/sysfs-bus-nd)."""
    domains = [path.read_text().strip() for path in Path("/sys/bus/nd/devices").glob("region*/persistence_domain")]
    return bool(domains) and set(domains) == {"cpu_cache"}
