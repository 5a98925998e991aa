"""Slots without a name, made in the background: to create a log takes longer than a logging call may.

Invariants
----------
- A fork waits until a spare is there that nobody has used, so of several children that are forked one after the other each finds
  one. After it a process keeps one more than the children that it has forked and that have not used one, at most ``SPARES_MAX``.
- A process that has not forked keeps none, because most never do: a spare takes as much of the medium as a slot.
- All children inherit all of them. One takes a spare by locking it and giving it a name, so no two take the same one.
- The verdict on a spare is made with it: nobody stores in it before it has a name. So a child does not have to judge it.
- A child may have closed all descriptors (a daemon does), and opened files of its own: a spare is used and closed only if its
  descriptor is still its own. Without a spare the child creates its log.
- A spare that nobody has used is gone with the last process that has it: the kernel removes it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import NamedTuple

from pmwal.format.layout import CAPACITY_DEFAULT
from pmwal.logs.keeper import Keeper
from pmwal.logs.options import SinkOptions
from pmwal.opening.files import Made, judge_made
from pmwal.recovery.judge import Judgement
from pmwal.storage.create import create_spare, is_fresh, name_spare
from pmwal.storage.descriptors import close_if_still, file_of, is_still
from pmwal.storage.seam import SYSTEM

SPARES_MAX = 8
_BYTES_MAX = 1 << 30  # of all spares together; one is kept in any case
_PAUSE_MIN, _PAUSE_MAX = 0.01, 10.0  # seconds between two looks whether children have used spares


class Spare(NamedTuple):
    """A descriptor of a spare, its file, when it was made, as the time of the last change of its inode, and the verdict on it."""

    fd: int
    file: tuple[int, int]
    made_ns: int
    judgement: Judgement

    @property
    def unused(self) -> bool:
        """Whether it never got a name."""
        return self.is_open and is_fresh(self.fd, self.made_ns)

    @property
    def is_open(self) -> bool:
        """Whether the program has left its descriptor alone."""
        return is_still(self.fd, self.file)

    def close(self) -> None:
        close_if_still(self.fd, self.file)


class Spares:
    """The spares of a directory, in one process."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._kept: list[Spare] = []
        self._children = 0  # forked of late, and not known to have used a spare
        self._options: SinkOptions | None = None
        self._keeper: Keeper | None = None
        self._pause = _PAUSE_MIN
        self._lock = threading.Lock()

    def forked(self) -> None:
        """In a forked child: the spares are there for its first record."""
        self._keeper = None
        self._children = 0
        self._lock = threading.Lock()

    def named(self, path: str, options: SinkOptions) -> Made | None:
        """A spare under this name, locked; None if there is none that suits and that no other process uses."""
        with self._lock:
            while self._kept and options == self._options:
                spare = self._kept.pop()  # the newest: children that were forked earlier do not have it
                if not spare.is_open:
                    continue
                try:
                    lock = name_spare(spare.fd, path, SYSTEM)
                except FileExistsError:  # another process was faster with the name, and this spare serves for the next one
                    self._kept.append(spare)
                    raise
                except PermissionError:  # this child has become another user
                    lock = None
                except BaseException:
                    spare.close()
                    raise
                spare.close()
                if lock is not None:
                    lock.announce()  # at once, or those that look for a free slot meanwhile would each try to lock this one
                    return Made(lock, spare.judgement)
            return None

    def keep(self, options: SinkOptions) -> None:
        """This process has a slot. Keep spares from its first fork on."""
        with self._lock:
            if self._keeper is None:
                self._drop(0)  # those that this child did not need
            self._options = options
        if self._keeper is None:
            self._keeper = Keeper(self._renew, f"pmwal-spare {self._directory}", begin=False, after_fork=self._owe)

    def _owe(self) -> None:
        """This process has forked: the child may need a spare, and so may the next one."""
        self._children = min(self._children + 1, SPARES_MAX)
        self._pause = _PAUSE_MIN

    def _renew(self) -> float | None:
        """In the background: make a spare that is missing. When to look again: soon after a fork, then less often."""
        with self._lock:
            used = [spare for spare in self._kept if not spare.unused]
            self._kept = [spare for spare in self._kept if spare not in used]
            for spare in used:
                spare.close()
            self._children = max(0, self._children - len(used))
            if used:
                self._pause = _PAUSE_MIN
            options = self._options
            assert options is not None
            size = CAPACITY_DEFAULT if options.capacity is None else options.capacity
            if len(self._kept) >= max(1, min(self._children + 1, SPARES_MAX, _BYTES_MAX // size)):
                return self._wait()
        with contextlib.suppress(OSError):  # a full disk, for example: then a child creates its log itself
            fd = create_spare(
                self._directory,
                capacity=size,
                alignment=options.align,
                medium=options.medium,
                mode=options.mode_of_file,
                seam=SYSTEM,
            )
            if fd is not None:
                try:
                    spare = Spare(fd, file_of(fd), os.fstat(fd).st_ctime_ns, judge_made(fd, self._directory))
                except BaseException:
                    os.close(fd)
                    raise
                with self._lock:
                    self._kept.append(spare)
                return 0.0
        return None

    def _wait(self) -> float | None:
        """How long to wait, with enough spares. After a long time without a fork one is enough, until the next one."""
        self._pause *= 2
        if self._pause <= _PAUSE_MAX:
            return self._pause
        self._children = 0
        self._drop(1)
        return None

    def _drop(self, left: int) -> None:
        while len(self._kept) > left:
            self._kept.pop().close()

    def close(self) -> None:
        """Keep none any more. Idempotent."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.stop()
        with self._lock:
            self._drop(0)
