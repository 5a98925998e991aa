"""The writer's lock: one writing handle per log, across processes, paths, links and forks.

Invariants
----------
- The lock is an flock on an open file description that is used for nothing else: closing any other descriptor of the file cannot
  drop it. (A POSIX record lock vanishes when any descriptor of the file is closed.)
- No time-out breaks it. It ends when its last descriptor closes: at close, at the death of its owner, or, if the owner has forked,
  at the owner's death all the same, because the child closes its copy right after the fork. The child never unlocks: LOCK_UN would
  release the parent's lock, which shares the description.
- Readers cannot test an flock without taking it, so a writer also locks a byte of the file on the same description (liveness.py),
  but only once the live page names nobody: a byte that is locked never goes with a dead writer's page.
- On network file systems flock may be a lock per process, so the handles of one process also know each other.
- A lock is released once: by then its descriptor's number may belong to another lock.
- A descriptor is closed, here and in a child, only if it is still of the file it was opened for. The program may have closed it (a
  daemon closes all it finds), or an interrupt have come between the close and the note of it, and its number be another file's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading

from pmwal.errors import WalLocked
from pmwal.storage.descriptors import close_if_still, duplicate, file_of, is_still, open_descriptor
from pmwal.storage.liveness import announce, visible_writer
from pmwal.storage.seam import Seam


class WriterLock:
    """The right to write one log. ``fd`` holds the lock and nothing else."""

    def __init__(self, fd: int, path: str, seam: Seam) -> None:
        """Lock a file that ``open_to_lock`` opened; ``WalLocked`` when another handle has it (``fd`` stays the caller's then)."""
        self.fd = fd
        self.pid = os.getpid()
        self._key = file_of(fd)
        self._held = False
        with _guard:
            if self._key in _locked:
                raise WalLocked(
                    f'{path}: this process already has it open for writing; use that handle, or read with mode="r"', self.pid
                )
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._held = True  # before anybody knows: from here on, release() undoes all that was done
                _locked.add(self._key)
            except BlockingIOError:
                # The file may be empty, or cut short.
                writer = visible_writer(lambda at, length: os.pread(fd, length, at).ljust(length, b"\0"), self._key[1], seam)
                who = "another process" if writer is None else f"process {writer.pid}"
                raise WalLocked(
                    f'{path}: {who} has it open for writing; wait for it, or read with mode="r"',
                    None if writer is None else writer.pid,
                ) from None

    def __del__(self) -> None:
        """An interrupt in an open or a creation can come before its caller has this object: then nothing else would release it."""
        while getattr(self, "_held", False) and os.getpid() == self.pid:
            with contextlib.suppress(KeyboardInterrupt):  # which nobody would get from here
                self.release()

    @property
    def usable(self) -> bool:
        """Whether this process holds the lock, and ``fd`` is still of the file."""
        return self._held and os.getpid() == self.pid and is_still(self.fd, self._key)

    def announce(self) -> bool:
        """Let readers, in any process, know that this writer is alive for as long as the lock is held; whether that is possible."""
        return announce(self.fd)

    def release(self) -> None:
        """Let the next writer have the log. Idempotent; in a forked child, which holds no lock, it does nothing."""
        if os.getpid() != self.pid:
            return
        with _guard:
            if not self._held:
                return
            _locked.discard(self._key)
            if self.fd in _descriptors:  # else an open that was interrupted has closed it, and another file may have its number
                self._close()
            self._held = False

    def _close(self) -> None:
        with contextlib.suppress(OSError):  # the program has closed it
            if file_of(self.fd) == self._key:
                fcntl.flock(self.fd, fcntl.LOCK_UN)  # another descriptor that an interrupted creation left would keep the lock
                try:
                    os.close(self.fd)
                finally:  # an interrupt during the call comes after it
                    self._held = False
                    _descriptors.pop(self.fd, None)
        _descriptors.pop(self.fd, None)


def open_to_lock(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    """``open_descriptor`` for a descriptor that may hold a lock: a forked child closes its copy."""
    with _guard:
        fd = open_descriptor(path, flags, mode, dir_fd=dir_fd)
        _descriptors[fd] = file_of(fd)
        return fd


def duplicate_locked(fd: int) -> int:
    """A second descriptor of the same open file description, and so of its lock."""
    with _guard:
        second = duplicate(fd)
        _descriptors[second] = file_of(second)
        return second


def close_locked(fd: int) -> None:
    """Close a descriptor of ``open_to_lock`` or ``duplicate_locked``."""
    with _guard:
        file = _descriptors.pop(fd, None)
        if file is not None:
            close_if_still(fd, file)


# Held during a fork too, so that a child's copy of these is consistent.
_guard = threading.RLock()
_locked: set[tuple[int, int]] = set()
_descriptors: dict[int, tuple[int, int]] = {}
"""Each descriptor that may hold a lock, and its file."""


def _forget_in_child() -> None:
    """In a forked child: close the copies of the locks' descriptors, so that each lock dies with its owner."""
    for fd, file in _descriptors.items():
        close_if_still(fd, file)
    _descriptors.clear()
    _locked.clear()
    _guard.release()


os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_forget_in_child)
