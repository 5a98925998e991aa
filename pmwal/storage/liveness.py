"""Whether a log has a living writer.

Invariants
----------
- A writer of this version keeps one byte of the file locked, far past its end, by an OFD lock on the description that its flock is
  on. The kernel drops it with the last descriptor: at close, at the death of the process, however it ends. Forked children close
  their copies (lock.py). Readers test it and never take it, by a description of their own that may be read-only: it shows
  whatever the writer's pid namespace, user or mount of /proc, and under every name of the file.
- A byte that is free is final for a page that says that its writer locks it.
- A writer of version 0.1 locks no byte, and on some file systems none can be locked. Such a writer is alive if a process of
  its id and start time is, or, where another namespace or hidepid hides that, if its page has changed within ``_MOVED_SECONDS``.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time

from pmwal.format.layout import LIVE_OFFSET, LIVE_WRITER, LIVE_WRITER_OFFSET
from pmwal.format.ring import Load
from pmwal.storage.live_page import LiveWriter, process_start_time, read_writer
from pmwal.storage.mapping import Mapping
from pmwal.storage.seam import Seam

WRITER_BYTE = 1 << 62
"""The byte that a writer locks: past the end of every file, so that the locks of other programs do not reach it by accident."""

_FLOCK = struct.Struct("@hhqqi0q")  # struct flock of fcntl(2): type, whence, start, length, pid
_MOVED_SECONDS = 1.0


def announce(fd: int) -> bool:
    """Lock the writer's byte for as long as this open file description lives; False where that is not possible."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, WRITER_BYTE, 1, 0))
    except OSError:
        return False
    return True


def is_announced(fd: int) -> bool | None:
    """Whether another open file description has locked the writer's byte; None if that cannot be known."""
    try:
        found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, WRITER_BYTE, 1, 0))
    except OSError:
        return None
    kind, _, start, length, _ = _FLOCK.unpack(found)
    if kind == fcntl.F_UNLCK:
        return False
    return True if (start, length) == (WRITER_BYTE, 1) else None  # else somebody has locked the whole file


class Liveness:
    """Whether the log in one file has a living writer, asked again and again."""

    def __init__(self, mapping: Mapping, seam: Seam) -> None:
        self._mapping = mapping
        self._seam = seam
        self._seen = b""
        self._moved_at: float | None = None

    def writer(self) -> LiveWriter | None:
        """The writer that the live page names, if it is alive and writes this file."""
        load = self._mapping.load
        writer = read_writer(load)
        if not writer.named or writer.inode != self._mapping.inode:
            return None
        if writer.locked:
            announced = is_announced(self._mapping.fd)
            if announced is not None:
                return writer if announced else None
        moves = self._moves(load(LIVE_OFFSET, LIVE_WRITER_OFFSET + LIVE_WRITER.size - LIVE_OFFSET))
        return writer if moves or _is_process(writer, self._seam) else None

    def _moves(self, lines: bytes) -> bool:
        """Whether bounds or writer's line have changed lately."""
        now = time.monotonic()
        if self._seen not in (b"", lines):
            self._moved_at = now
        self._seen = lines
        return self._moved_at is not None and now - self._moved_at < _MOVED_SECONDS


def living_writer(mapping: Mapping, seam: Seam) -> LiveWriter | None:
    """The living writer of the log in this file, asked once."""
    return Liveness(mapping, seam).writer()


def visible_writer(load: Load, inode: int, seam: Seam) -> LiveWriter | None:
    """The writer that the live page names, if its process id means that process here too."""
    writer = read_writer(load)
    return writer if writer.named and writer.inode == inode and _is_process(writer, seam) else None


def _is_process(writer: LiveWriter, seam: Seam) -> bool:
    start_time = process_start_time(writer.pid)
    return start_time is not None and start_time == writer.start_time and writer.boot_id == seam.boot_id()
