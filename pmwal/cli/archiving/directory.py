"""The directory that archives are written to.

Invariants
----------
- One process at a time writes there: it holds a lock, on a file that stays. So whatever has the hidden name of an unfinished file
  is what a killed process left, and is removed.
- A file gets its name when all of it is durable, never over another one, and the name is durable when ``writing`` ends. A crash at
  any step leaves no file, or the whole file.
- The names that are there are durable once the directory is open: a process that was killed may have given one and not synced it.
- Nothing is removed but archives, by age or size, and hidden files of this program; all of them regular files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, cast

from pmwal.errors import PmwalError, WalLocked
from pmwal.logs.archives.file import other_than_file
from pmwal.logs.archives.names import order_of
from pmwal.logs.paths import ARCHIVE_LOCK, ArchiveName, archives_in, parse_name
from pmwal.storage.descriptors import open_descriptor
from pmwal.storage.seam import Seam

_HIDDEN, _PART = ".pmwal-archive-", ".part"
_BUFFER = 1 << 20
_NO_RENAME = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Kept(NamedTuple):
    """An archive that is there."""

    path: str
    name: ArchiveName
    size: int
    written: float


class Other(NamedTuple):
    """Something that has the name of an archive and is none, and what to do about it."""

    path: str
    reason: str


class ArchiveDirectory:
    """The directory, locked. ``OSError`` if it cannot be written to, ``WalLocked`` if another process writes there."""

    def __init__(self, path: str, seam: Seam) -> None:
        self.path = os.path.normpath(path)
        self._seam = seam
        if os.path.lexists(path) and not os.path.isdir(path):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory; archives are several files, so name a directory", path)
        try:
            os.mkdir(path, 0o700)
            _sync_directory(os.path.dirname(os.path.abspath(path)), seam)
        except FileExistsError:
            pass
        except FileNotFoundError:
            parent = os.path.dirname(self.path)
            reason = (
                f"the directory it would be in, {parent}, does not exist; make that first, or check whether a disk is mounted there"
            )
            raise FileNotFoundError(errno.ENOENT, reason, path) from None
        self._fd = open_descriptor(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lock = -1
        try:
            self._lock = _lock(path, self._fd)
            self._remove_unfinished()
            self._seam.sync_file(self._fd)
        except OSError as error:
            self.close()
            raise OSError(error.errno, error.strerror, self.path) from None
        except BaseException:
            self.close()
            raise

    def _remove_unfinished(self) -> None:
        with os.scandir(self.path) as entries:
            names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
        for name in names:
            if name.startswith(_HIDDEN) and name.endswith(_PART):
                self._seam.unlink(name, self._fd)

    def files(self) -> list[ArchiveName]:
        """The archives that are there now: regular files."""
        paths = [path for path in archives_in(self.path) if other_than_file(path) is None]
        return [name for name in map(parse_name, map(os.path.basename, paths)) if name is not None]

    def others(self) -> list[Other]:
        """What has the name of an archive and is no regular file."""
        found = ((path, other_than_file(path)) for path in archives_in(self.path))
        return [Other(path, other.strerror or str(other)) for path, other in found if other is not None]

    def path_of(self, name: ArchiveName) -> str:
        """The path of an archive."""
        return os.path.join(self.path, str(name))

    def is_of(self, error: Exception) -> bool:
        """Whether it is an error of writing here, and so of all logs."""
        place = str(error.filename or "") if isinstance(error, OSError) else ""
        return place == self.path or (os.path.dirname(place) == self.path and parse_name(os.path.basename(place)) is not None)

    @contextlib.contextmanager
    def writing(self, name: ArchiveName) -> Iterator[BinaryIO]:
        """What the block writes becomes this file when the block ends without an exception."""
        hidden = f"{_HIDDEN}{os.urandom(8).hex()}{_PART}"
        fd = open_descriptor(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
        named = False
        try:
            raw = _Positioned(fd, self._seam)
            stream = io.BufferedWriter(raw, _BUFFER)
            try:
                yield cast("BinaryIO", stream)
                stream.flush()
                self._seam.sync_file(fd)
                self._give_name(hidden, str(name))
                named = True
            except BaseException:
                raw.dropped = True  # or the buffer would be written when it is closed
                raise
            finally:
                stream.close()
            self._seam.sync_file(self._fd)
        except OSError as error:
            if isinstance(error, PmwalError):  # of the log
                raise
            raise _explained(raw.error or error, self.path_of(name)) from None
        finally:
            os.close(fd)
            if not named:
                with contextlib.suppress(OSError):
                    self._seam.unlink(hidden, self._fd)

    def _give_name(self, hidden: str, name: str) -> None:
        try:
            self._seam.rename_new(hidden, name, self._fd)
        except OSError as error:
            if error.errno not in _NO_RENAME:
                raise
            self._seam.link(hidden, name, self._fd)
            self._seam.unlink(hidden, self._fd)

    def prune(self, keep: float | None, total: int | None) -> list[Kept]:
        """Remove the archives that are older, by their times of modification, than ``keep`` seconds, and the oldest ones while all
        together are larger than ``total``; those that were removed.

        Of each log they go in the order of its archives. A time of modification may be wrong, and then one stays for longer.
        """
        there = self._there() if keep is not None or total is not None else []
        size, now, removed = sum(each.size for each in there), time.time(), []
        staying: set[str] = set()  # logs of which an archive stays
        for each in there:
            old = keep is not None and now - each.written > keep
            if each.name.uuid in staying or (not old and (total is None or size <= total)):
                staying.add(each.name.uuid)
                continue
            self._seam.unlink(os.path.basename(each.path), self._fd)
            size -= each.size
            removed.append(each)
        if removed:
            self._seam.sync_file(self._fd)
        return removed

    def _there(self) -> list[Kept]:
        """All archives, the oldest first: those of a log in its order, and the logs by the times of modification."""
        by_log: dict[str, list[Kept]] = {}
        for name in sorted(self.files(), key=order_of, reverse=True):
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(self.path_of(name))
                by_log.setdefault(name.uuid, []).append(Kept(self.path_of(name), name, status.st_size, status.st_mtime))
        found: list[tuple[float, Kept]] = []
        for files in by_log.values():
            earliest = float("inf")
            for each in files:  # the newest first: none counts as newer than those after it
                earliest = min(earliest, each.written)
                found.append((earliest, each))
        return [each for _, each in sorted(found, key=lambda pair: (pair[0], pair[1].name.uuid, order_of(pair[1].name)))]

    def close(self) -> None:
        """Let another process write there. Idempotent."""
        for fd in (self._lock, self._fd):
            if fd >= 0:
                os.close(fd)
        self._lock = self._fd = -1


def _explained(error: OSError, path: str) -> OSError:
    """An error of writing a file, with what to do."""
    if error.errno in _FULL:
        reason = (
            f"{os.strerror(error.errno)}: no room for the next archive; its records stay in the log, and are not acknowledged. "
            "Make room, or remove old archives with --keep or --max-total"
        )
    elif error.errno == errno.EEXIST:
        reason = "another program made this file while its archive was written; move it away"
    else:
        reason = error.strerror or str(error)
    return OSError(error.errno, reason, path)


def _lock(path: str, directory_fd: int) -> int:
    fd = open_descriptor(ARCHIVE_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=directory_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise WalLocked(
            f"{path}: another pmwal archive writes into this directory; name all logs in one command, or use another directory"
        ) from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _sync_directory(path: str, seam: Seam) -> None:
    fd = open_descriptor(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        seam.sync_file(fd)
    finally:
        os.close(fd)


class _Positioned(io.RawIOBase):
    """Writes through the seam, one piece after the other. A library that writes may make other errors of its ``error``."""

    def __init__(self, fd: int, seam: Seam) -> None:
        self._fd = fd
        self._seam = seam
        self._at = 0
        self.dropped = False
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        piece = bytes(data)
        if not self.dropped:
            try:
                self._seam.write(self._fd, piece, self._at)
            except OSError as error:
                self.error = error
                raise
        self._at += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._at
