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
from pmwal.live import living_writer
from pmwal.seam import Seam


class Ownership:
    """The right to write one log. ``fd`` holds the lock and nothing else."""

    def __init__(self, fd: int, path: str, seam: Seam) -> None:
        """Take the lock on the open file; ``WalLocked`` when somebody has it (``fd`` stays the caller's then)."""
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
            _owned[self._key] = fd

    def release(self) -> None:
        """Give the log to the next writer. In a forked child there is nothing left to give."""
        if os.getpid() != self.pid:
            return
        with _guard:
            if _owned.get(self._key) == self.fd:
                del _owned[self._key]
                with contextlib.suppress(OSError):
                    os.close(self.fd)


_guard = threading.Lock()
_owned: dict[tuple[int, int], int] = {}


def _forget_in_child() -> None:
    """In a forked child: close the copies of the lock descriptors, so that the lock dies with its owner."""
    global _guard  # noqa: PLW0603 - another thread of the parent may have held it at the fork
    _guard = threading.Lock()
    for fd in _owned.values():
        with contextlib.suppress(OSError):
            os.close(fd)
    _owned.clear()


os.register_at_fork(after_in_child=_forget_in_child)
