"""Whether the path of an open log still leads to its file.

Invariants
----------
- The path is made absolute and its symbolic links are resolved once, at open. So a later chdir or another target of a link means
  nothing, and a log is found at the same place by whoever opens the path then.
- Only proof counts: the file has no link left, or the path leads nowhere, or to another file. A path that this process may not look
  up any more (EACCES after it changed its user, a server that does not answer, another root directory) proves nothing.
- No time stamp is read. After a stat(2) that reads them, the next store gives the inode a fresh one (multigrain timestamps, Linux
  6.13), which the next msync writes too: 8 more sectors for each commit on an ext4 without a journal.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import struct
from typing import NamedTuple

_AT_FDCWD, _AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH = -100, 0x100, 0x1000  # linux/fcntl.h
_STATX_NLINK, _STATX_INO = 0x4, 0x100  # linux/stat.h
_STATX = struct.Struct("<16x I 12x Q 96x II 112x")  # links; inode; device, in two parts
_ROOT = "/"


class _Identity(NamedTuple):
    """Which file it is, and how many names it has."""

    device: int
    inode: int
    links: int

    def same_file(self, other: _Identity) -> bool:
        return (self.device, self.inode) == (other.device, other.inode)


class LogName:
    """The name under which a log was opened."""

    def __init__(self, fd: int, path: str) -> None:
        """``fd`` is a descriptor of the log, and stays the caller's. A log that is opened through a descriptor has no name to lose.

        Any other path led to the log when it was locked. If it does not any more, the name was lost during the open.
        """
        self._fd = fd
        self._path = os.path.realpath(path)
        self._root: _Identity | None = None
        with contextlib.suppress(OSError):
            if not _through_descriptor(path):
                self._root = _identify(_AT_FDCWD, _ROOT)

    @property
    def path(self) -> str:
        """The path as it was at open: absolute, without symbolic links."""
        return self._path

    @property
    def watched(self) -> bool:
        """Whether the log had a name when it was opened."""
        return self._root is not None

    @property
    def removed(self) -> bool:
        """Whether no name at all leads to the file any more."""
        return self.watched and not _identify(self._fd, "").links

    def lost(self) -> str | None:
        """What became of the name, in words; None while it leads to the log, or nothing proves that it does not."""
        if self._root is None:
            return None
        try:
            opened = _identify(self._fd, "")
            if not opened.links:
                return "the file was removed"
            found = _identify(_AT_FDCWD, self._path)
        except (FileNotFoundError, NotADirectoryError):
            return "the file was renamed or removed" if self._same_root() else None
        except OSError:
            return None
        return None if found.same_file(opened) else "another file has its name"

    def _same_root(self) -> bool:
        """Whether paths still begin where they did: a daemon may have called chroot(2)."""
        try:
            return self._root is not None and self._root.same_file(_identify(_AT_FDCWD, _ROOT))
        except OSError:
            return False


def links_of(fd: int) -> int:
    """How many names a file has."""
    return _identify(fd, "").links


def _through_descriptor(path: str) -> bool:
    """Whether the path names a descriptor of a process, as /proc/self/fd/7 does, and not a place in a directory."""
    return os.path.realpath(os.path.dirname(os.path.abspath(path))).startswith("/proc/")


@functools.cache
def _libc() -> ctypes.CDLL:
    """Loaded once: that takes many times as long as a call, and every acknowledgement of a consumer makes one."""
    return ctypes.CDLL(None, use_errno=True)


def _identify(fd: int, path: str) -> _Identity:
    """The file of a path, or of ``fd`` if the path is empty."""
    libc = _libc()
    if hasattr(libc, "statx"):
        buffer = ctypes.create_string_buffer(_STATX.size)
        flags = _AT_SYMLINK_NOFOLLOW if path else _AT_EMPTY_PATH
        if not libc.statx(fd, os.fsencode(path), flags, _STATX_NLINK | _STATX_INO, buffer):
            links, inode, major, minor = _STATX.unpack(buffer.raw)
            return _Identity(os.makedev(major, minor), inode, links)
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EPERM):  # an old kernel, or a filter of system calls
            raise OSError(number, os.strerror(number), path or None)
    status = os.lstat(path) if path else os.fstat(fd)
    return _Identity(status.st_dev, status.st_ino, status.st_nlink)
