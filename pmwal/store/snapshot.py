"""Snapshot files: the whole state of a store, and which of the log's records it includes.

Invariants
----------
- A crash leaves the old snapshot or the new one: it is written under another name, synced, and takes the name in one rename. The
  name is durable when ``write`` returns, so what the snapshot includes may leave the log then.
- The holder of the log's lock writes it, so there is one writer at a time. What a crash leaves of a new one, the next overwrites.
- It has the mode and owner of the one that it replaces, a new one mode 0600, before anything is in it: it contains the whole state.
- A checksum covers all of it. A snapshot that does not match is never loaded.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from typing import NamedTuple

from pmwal.errors import FormatError
from pmwal.native.checksum import crc32c
from pmwal.storage.create import inherit
from pmwal.storage.descriptors import FILE_MODE, open_descriptor
from pmwal.storage.seam import Seam

_MAGIC = b"pmwal-snapshot1\n"
_HEAD = struct.Struct("<IH")  # checksum of all that follows it, length of the cursor
_PIECE = 1 << 20
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class Snapshot(NamedTuple):
    """The encoded state, and the cursor of the last record it includes; None before the first record."""

    state: bytes
    cursor: str | None


class SnapshotFile:
    """The snapshot of one store."""

    def __init__(self, path: str | os.PathLike[str], seam: Seam) -> None:
        self.path = os.path.realpath(os.fsdecode(path))
        self._seam = seam
        directory = os.path.dirname(self.path)
        if not os.path.isdir(directory):  # now, and not at the first checkpoint
            raise FileNotFoundError(errno.ENOENT, "no such directory for the snapshot", directory)

    def exists(self) -> bool:
        """Whether there is one. ``FormatError`` if it is not even a file."""
        fd = self._open()
        if fd is not None:
            os.close(fd)
        return fd is not None

    def read(self) -> Snapshot | None:
        """What it contains; None if there is no file. ``FormatError`` if it is damaged, or something else."""
        fd = self._open()
        if fd is None:
            return None
        with open(fd, "rb") as file:
            content = file.read()
        head = content[len(_MAGIC) : len(_MAGIC) + _HEAD.size]
        if not content.startswith(_MAGIC) or len(head) < _HEAD.size:
            raise FormatError(f"{self.path}: not a snapshot of a store")
        checksum, length = _HEAD.unpack(head)
        body = content[len(_MAGIC) + _HEAD.size :]
        if crc32c(body, length) != checksum or length > len(body):
            raise FormatError(f"{self.path}: the snapshot is damaged; restore it and the log from a backup of the same moment")
        return Snapshot(body[length:], body[:length].decode() or None)

    def _open(self) -> int | None:
        try:
            fd = open_descriptor(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise FormatError(f"{self.path}: not a snapshot of a store")
        return fd

    def write(self, snapshot: Snapshot) -> None:
        """Replace it, durably."""
        cursor = (snapshot.cursor or "").encode()
        body = cursor + snapshot.state
        content = _MAGIC + _HEAD.pack(crc32c(body, len(cursor)), len(cursor)) + body
        directory, name = os.path.split(self.path)
        directory_fd = open_descriptor(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(FileNotFoundError):
                self._seam.unlink(f"{name}.new", directory_fd)  # what a crash left
            fd = open_descriptor(f"{self.path}.new", _FLAGS, FILE_MODE)
            try:
                with contextlib.suppress(FileNotFoundError):
                    inherit(fd, os.stat(self.path))
                for offset in range(0, len(content), _PIECE):
                    self._seam.write(fd, content[offset : offset + _PIECE], offset)
                self._seam.sync_file(fd)
            finally:
                os.close(fd)
            self._seam.replace(f"{name}.new", name, directory_fd)
            self._seam.sync_file(directory_fd)
        finally:
            os.close(directory_fd)
