"""Files of consumers' positions, in a directory beside the log: ``LOG.consumers/NAME``.

Invariants
----------
- The directory lies beside the real path of the log, so it is the same one for whoever opens the log through a symbolic link. A log
  with several hard links has several such places, and is refused: one would not show who reads under the other name.
- A file is whole, durable and locked before it has its name (create.py). So a file without a whole slot is damaged, and never one
  that a crash left half made.
- Only the holder of the lock stores, and never into the page of the newest slot that it knows to be durable. So if a power cut
  tears the slot that was stored last, the other one is no older than the last position that was made durable.
- After a failed sync nothing that was stored since the last good one is known to be durable, and the kernel may call it clean. The
  durable position is then stored again, so that nobody relies on a later one, and the holder stores nothing more.
- Whoever opens a file to hold it stores its position again, durably: what it reads may exist in the page cache only.
- The lock is an flock, of which one byte can be tested without taking it, as for a log's writer (lock.py, liveness.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable

from pmwal.errors import ConsumerHeld, PersistError, PositionError, WalLocked
from pmwal.format.layout import PAGE
from pmwal.format.position import (
    HOLDER_OFFSET,
    SIZE,
    Position,
    Stored,
    decode_holder,
    encode_file,
    encode_holder,
    encode_position,
    is_name,
    newest_position,
)
from pmwal.storage.create import create_locked
from pmwal.storage.descriptors import open_descriptor
from pmwal.storage.liveness import is_announced
from pmwal.storage.lock import WriterLock, close_locked, open_to_lock
from pmwal.storage.name import links_of
from pmwal.storage.seam import Seam

_SUFFIX = ".consumers"
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_AWAY = "move it away, and begin the consumer again"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_TRIES = 16  # a file that is created or removed between two steps is looked for again


def directory_of(path: str) -> str:
    """Where the positions of the consumers of the log at this path are."""
    return os.path.realpath(path) + _SUFFIX


def log_of(path: str) -> str:
    """The log to which the position in this file belongs."""
    return os.path.dirname(path).removesuffix(_SUFFIX)


def check_links(fd: int, path: str) -> None:
    """``ValueError`` for a log with several names."""
    links = links_of(fd)
    if links > 1:
        raise ValueError(
            f"{path}: its file has {links} names (hard links), and consumers under one would not be seen under another; "
            "remove all but one, or use symbolic links"
        )


def names_in(directory: str) -> list[str]:
    """The consumers that have a position there."""
    try:
        return sorted(filter(is_name, os.listdir(directory)))
    except FileNotFoundError:
        return []


class Look:
    """One position, opened to be read and to be synced; it takes no lock. ``OSError`` if it cannot be opened or read."""

    def __init__(self, directory: str, name: str) -> None:
        self.fd = open_descriptor(os.path.join(directory, name), os.O_RDONLY | _FLAGS)
        try:
            self.raw = os.pread(self.fd, SIZE, 0)
        except BaseException:
            self.close()
            raise

    @property
    def position(self) -> Position | None:
        """The position that counts; None if neither slot is whole."""
        stored = newest_position(self.raw)
        return None if stored is None else stored.position

    @property
    def holder(self) -> int | None:
        """The id of the process that holds the consumer, 0 if it cannot be known which; None if none does."""
        return decode_holder(self.raw) if is_announced(self.fd) else None

    def close(self) -> None:
        """Close it. Idempotent."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def __enter__(self) -> Look:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def remove_position(directory: str, name: str, seam: Seam) -> None:
    """Remove a consumer that nobody holds, durably. ``ConsumerHeld`` if somebody does, ``FileNotFoundError`` if there is none."""
    lock = _lock(os.path.join(directory, name), name, seam)
    try:
        fd = open_descriptor(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            seam.unlink(name, fd)
            seam.sync_file(fd)
        finally:
            os.close(fd)
    finally:
        lock.release()


def remove_positions(path: str, seam: Seam) -> None:
    """Remove the positions of the consumers of a log that was removed. One that is held ends with its holder."""
    directory = directory_of(path)
    with contextlib.suppress(OSError):
        fd = open_descriptor(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for name in names_in(directory):
                seam.unlink(name, fd)
        finally:
            os.close(fd)
        os.rmdir(directory)


class PositionFile:
    """The position of one consumer, held by this process."""

    def __init__(self, directory: str, name: str, seam: Seam, mode: int, first: Callable[[], Position] | None) -> None:
        """Hold the consumer of this name. If there is none it is made, with the position that ``first`` gives.

        ``mode``: of a new file. Raises ``ConsumerHeld``, and what ``first`` raises; without ``first``, ``FileNotFoundError``.
        """
        self.path = os.path.join(directory, name)
        self._seam = seam
        self._failed: OSError | None = None
        self.created = False
        for _ in range(_TRIES):
            try:
                self._lock = _lock(self.path, name, seam)
            except FileNotFoundError:
                if first is None:
                    raise
                try:
                    _make_directory(directory, mode, seam)
                    self._lock = create_locked(self.path, encode_file(first()), mode, seam)
                except FileExistsError:
                    continue
                except OSError as error:
                    if error.errno not in _NO_ROOM:
                        raise
                    what = f"no room for the position of consumer {name!r}; make room, and begin the consumer again"
                    reason = f"{os.strerror(error.errno)}: {what}"
                    raise OSError(error.errno, reason, self.path) from None
                self.created = True
            break
        else:
            raise FileNotFoundError(errno.ENOENT, "another process keeps creating and removing it", self.path)
        try:
            self._lock.announce()
            self._take_over()
        except BaseException:
            self._lock.release()
            raise

    def _take_over(self) -> None:
        if not self.created:
            with contextlib.suppress(OSError):  # that an earlier holder did not see; what counts is stored again
                self._seam.sync_data(self._lock.fd)
        self._stored = self._durable = newest_position(os.pread(self._lock.fd, SIZE, 0))
        self._seam.write(self._lock.fd, encode_holder(os.getpid()), HOLDER_OFFSET)

    @property
    def position(self) -> Position | None:
        """The newest position; None if the file is damaged."""
        return None if self._stored is None else self._stored.position

    @property
    def pid(self) -> int:
        """The process that holds it."""
        return self._lock.pid

    def store(self, position: Position, *, durable: bool) -> None:
        """Store a position, whose generation is ignored. ``PersistError`` if that fails: nothing more can be stored then."""
        self._refuse_failed()
        if not links_of(self._lock.fd):
            raise PositionError(f"{self.path}: the position was removed while this consumer used it; begin the consumer again")
        generation = 1 if self._stored is None else self._stored.position.generation + 1
        page = 0 if self._durable is None else 1 - self._durable.page
        try:
            self._write(Stored(position._replace(generation=generation), page))
        except OSError as error:
            raise self._fail(error) from error
        if durable:
            self.sync()

    def sync(self) -> None:
        """Make the newest position durable."""
        self._refuse_failed()
        if self._durable is not self._stored:
            stored = self._stored
            try:
                self._seam.sync_data(self._lock.fd)
            except OSError as error:
                raise self._fail(error) from error
            self._durable = stored

    def _write(self, stored: Stored) -> None:
        if not self._lock.usable:  # the program has closed the descriptor, and its number may be that of another file
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self._seam.write(self._lock.fd, encode_position(*stored), stored.page * PAGE)
        self._stored = stored

    def _fail(self, error: OSError) -> PersistError:
        self._failed = error
        if self._durable is not None and self._stored is not None:
            position = self._durable.position._replace(generation=self._stored.position.generation + 1)
            with contextlib.suppress(OSError):
                self._write(Stored(position, 1 - self._durable.page))
        return self._error(error)

    def _refuse_failed(self) -> None:
        if self._failed is not None:
            raise self._error(self._failed)

    def _error(self, error: OSError) -> PersistError:
        advice = "make room, then " if error.errno in _NO_ROOM else ""
        return PersistError(error.errno, f"{self.path}: {error.strerror}; {advice}close this consumer, and begin it again")

    def close(self) -> None:
        """Let another process hold it. What was stored stays stored. Idempotent; in a forked child it does nothing."""
        if self._lock.usable:
            with contextlib.suppress(OSError):
                self._seam.write(self._lock.fd, encode_holder(0), HOLDER_OFFSET)
        self._lock.release()


def damaged(path: str, name: str) -> PositionError:
    """The error for a position of which no slot is whole."""
    return PositionError(
        f"{path}: the position of consumer {name!r} is damaged: neither of its two slots is whole. Set it anew with "
        f"pmwal consumers {log_of(path)} --set {name}=CURSOR, or remove it with --forget {name}"
    )


def _lock(path: str, name: str, seam: Seam) -> WriterLock:
    """Lock an existing position. ``FileNotFoundError`` if there is none, or it was removed meanwhile."""
    try:
        fd = open_to_lock(path, os.O_RDWR | _FLAGS)
    except NotADirectoryError as error:
        raise OSError(error.errno, f"this is no directory of positions of consumers; {_AWAY}", os.path.dirname(path)) from None
    except IsADirectoryError as error:
        raise OSError(error.errno, f"a directory is where the position of consumer {name!r} would be; {_AWAY}", path) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        close_locked(fd)
        raise OSError(errno.EINVAL, f"no regular file is where the position of consumer {name!r} would be; {_AWAY}", path)
    try:
        lock = WriterLock(fd, path, seam)
    except WalLocked as error:
        pid = error.pid or decode_holder(os.pread(fd, SIZE, 0)) or None
        close_locked(fd)
        who = "this process" if pid == os.getpid() else "another process" if pid is None else f"process {pid}"
        raise ConsumerHeld(f"{path}: {who} has consumer {name!r}; only one at a time can be it: end that one first", pid) from None
    except BaseException:
        close_locked(fd)
        raise
    if not links_of(fd):
        lock.release()
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return lock


def _make_directory(directory: str, mode: int, seam: Seam) -> None:
    """Make the directory of the positions, durably, with the rights of the log."""
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        return
    os.chmod(directory, mode | (mode & 0o444) >> 2)
    fd = open_descriptor(os.path.dirname(directory), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        seam.sync_file(fd)
    finally:
        os.close(fd)
