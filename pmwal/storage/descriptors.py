"""Descriptors of logs: opened and duplicated here alone, and never 0, 1 or 2.

Invariants
----------
- Code that writes to a standard stream writes to descriptor 0, 1 or 2: a C library, a child process, an interpreter that aborts. In
  a process that was started without one, the next file to be opened gets its number. For a log that would mean stray output
  over its superblock, or in a mapping that believes its pages are its own.
- While something of a log is opened, each free number below 3 is taken by a descriptor through which nothing can be read or written
  (O_PATH), so that not even another thread meets the log there. It is released right afterwards: a daemon expects these
  numbers to be free.
- A descriptor that is kept is used and closed later only if it is still of the file it was opened for: a daemon closes all that it
  finds, and then the number may be that of another file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator

from pmwal.errors import PersistError
from pmwal.storage.platform import check_platform

FILE_MODE = 0o600
"""The mode of a new log, unless another is asked for."""

NO_REGULAR_FILE = (errno.ELOOP, errno.ENXIO, errno.EISDIR)
"""With these an open to write fails that follows no links: at a link, a socket, a directory."""

_FIRST = 3  # after the standard streams


def open_descriptor(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    """``os.open``, but never 0, 1 or 2. ``UnsupportedMedium`` on a platform that has no O_PATH."""
    check_platform()
    with _standard_streams_taken():
        return os.open(path, flags, mode, dir_fd=dir_fd)


def duplicate(fd: int) -> int:
    """``os.dup``, but never 0, 1 or 2."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST)


def map_file(fd: int, size: int, flags: int, protection: int) -> mmap.mmap:
    """``mmap.mmap``, which keeps a duplicate of the descriptor, but never as 0, 1 or 2.

    ``PersistError`` if the file has become shorter than ``size``.
    """
    with _standard_streams_taken():
        try:
            return mmap.mmap(fd, size, flags=flags, prot=protection)
        except ValueError as error:  # mmap compares the size once more
            raise PersistError(errno.EIO, f"the file was shortened to less than {size} bytes while it was opened") from error


def file_of(fd: int) -> tuple[int, int]:
    """What tells the file of a descriptor from all others."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def is_still(fd: int, file: tuple[int, int]) -> bool:
    """Whether this descriptor is still of the file that it was opened for."""
    try:
        return file_of(fd) == file
    except OSError:
        return False


def close_if_still(fd: int, file: tuple[int, int]) -> None:
    """``os.close``, unless the program has closed the descriptor and the number may be that of another file."""
    with contextlib.suppress(OSError):
        if is_still(fd, file):
            os.close(fd)


@contextlib.contextmanager
def kept_free(count: int) -> Iterator[None]:
    """Let what is opened in the block leave this many numbers free: where there are not so many, it gets EMFILE."""
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while len(taken) < count:
                taken.append(open_descriptor("/", os.O_PATH | os.O_CLOEXEC))
        yield
    finally:
        for fd in taken:
            os.close(fd)


@contextlib.contextmanager
def _standard_streams_taken() -> Iterator[None]:
    taken = []
    try:
        while True:
            fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
            if fd >= _FIRST:
                os.close(fd)
                break
            taken.append(fd)
        yield
    finally:
        for fd in taken:
            os.close(fd)
