"""Who may write: one handle per log, across processes, paths, links and forks.

Invariants
----------
- The lock is an flock on an open file description that is used for nothing else: closing any other descriptor of the
  file cannot drop it (POSIX record locks vanish so).
- No time-out steals it. It ends when its last descriptor closes: at close, at the death of the owner, or when an owner
  that forked dies, because the child closes its copy right after the fork and never unlocks (LOCK_UN would unlock the
  parent, which shares the description).
- flock may be a per-process lock on network file systems, so handles of one process also know each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading

from pmwal.errors import WalLocked
from pmwal.storage.live_page import living_writer
from pmwal.storage.seam import Seam


class Ownership:
    """The right to write one log. ``fd`` holds the lock and nothing else."""

    def __init__(self, fd: int, path: str, seam: Seam) -> None:
        """Take the lock on a file opened by ``open_to_lock``; ``WalLocked`` when somebody has it (``fd`` stays the caller's)."""
        status = os.fstat(fd)
        self.fd = fd
        self.pid = os.getpid()
        self._key = (status.st_dev, status.st_ino)
        with _guard:
            if self._key in _owned:
                raise WalLocked(f"{path}: this process already has it open for writing", os.getpid())
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                writer = living_writer(lambda offset, length: os.pread(fd, length, offset), status.st_ino, seam)
                who = "another process" if writer is None else f"process {writer.pid}"
                raise WalLocked(
                    f'{path}: {who} has it open for writing; wait for it, or read with mode="r"',
                    None if writer is None else writer.pid,
                ) from None
            _owned.add(self._key)

    def release(self) -> None:
        """Give the log to the next writer. In a forked child there is nothing left to give."""
        if os.getpid() != self.pid:
            return
        with _guard:
            if self._key in _owned and self.fd in _descriptors:
                _owned.discard(self._key)
                close_locked(self.fd)


def open_to_lock(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    """``os.open`` for a descriptor that may hold a lock: no forked child keeps it."""
    with _guard:
        fd = os.open(path, flags, mode, dir_fd=dir_fd)
        _descriptors.add(fd)
        return fd


def duplicate_locked(fd: int) -> int:
    """A second descriptor of the same open file description, and so of its lock."""
    with _guard:
        second = os.dup(fd)
        _descriptors.add(second)
        return second


def close_locked(fd: int) -> None:
    """Close a descriptor of ``open_to_lock`` or ``duplicate_locked``."""
    with _guard:
        _descriptors.discard(fd)
        with contextlib.suppress(OSError):
            os.close(fd)


# Held during a fork too, so that a child's copy of these tables is whole.
_guard = threading.RLock()
_owned: set[tuple[int, int]] = set()
_descriptors: set[int] = set()


def _forget_in_child() -> None:
    """In a forked child: close the copies of the lock descriptors, so that the lock dies with its owner."""
    for fd in _descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)
    _descriptors.clear()
    _owned.clear()
    _guard.release()


os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_forget_in_child)
