"""The slots of a directory: logs named 00.wal, 01.wal, ..., of which each process has one.

Invariants
----------
- A process takes the first slot that no process has, else it makes the next one. So there are no more slots than there were
  processes at one time. The writer's lock of the log decides who has a slot.
- A slot is taken with the records that its last process left, which stay in it.
- What is not this user's, or not a log, is passed over and not changed.
- At most ``max_files`` slots are made. When no slot is free, the directory is looked at again at most once in ``_RETRY_SECONDS``.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time

from pmwal.errors import FormatError, WalLocked
from pmwal.format.layout import CAPACITY_DEFAULT
from pmwal.logs.keeper import Keeper
from pmwal.logs.options import SinkOptions
from pmwal.logs.targets import open_for_lines
from pmwal.storage.create import create_spare, is_named, name_spare
from pmwal.storage.descriptors import open_descriptor
from pmwal.storage.liveness import is_announced
from pmwal.storage.lock import WriterLock
from pmwal.storage.seam import SYSTEM
from pmwal.writing.wal import Wal

_SLOT = re.compile(r"([0-9]{2}|[1-9][0-9]{2,})\.wal")
_RETRY_SECONDS = 1.0
_PAUSE_MIN, _PAUSE_MAX = 0.01, 10.0  # seconds between two looks whether a child has used the spare


def slot_name(number: int) -> str:
    """The name of a slot."""
    return f"{number:02d}.wal"


def slot_numbers(directory: str) -> list[int]:
    """The numbers of the slots in a directory, in order."""
    found = (_SLOT.fullmatch(name) for name in os.listdir(directory))
    return sorted(int(match[1]) for match in found if match)


def make_directory(directory: str) -> None:
    """Create a directory and those above it, durably. Nothing if it exists."""
    above = os.path.dirname(directory)
    if os.path.isdir(directory):
        return
    if above != directory:
        make_directory(above)
    with contextlib.suppress(FileExistsError):  # another process was faster; if it is a file, the caller notices
        os.mkdir(directory)
    fd = open_descriptor(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        SYSTEM.sync_file(fd)
    finally:
        os.close(fd)


class SlotTarget:
    """A slot of a directory, for each process."""

    renewable = True

    def __init__(self, directory: str) -> None:
        self.directory: str | None = directory
        self._directory = directory
        self._refused: tuple[float, str] | None = None  # when all slots were taken, and what was said
        self._spare = Spare(directory)

    def open(self, options: SinkOptions) -> Wal:
        """A slot of this process's own. Raises ``WalLocked`` if all are taken, and what ``pmwal.open`` raises."""
        if self._refused is not None and time.monotonic() - self._refused[0] < _RETRY_SECONDS:
            raise WalLocked(self._refused[1])
        self._refused = None
        wal = self._take(options)
        if wal is None:
            wal = self._make(options)
        if wal is None:
            text = (
                f"{self._directory}: all {options.max_files} slots are taken, so this process cannot log; end processes that have "
                "one, or use a larger max_files"
            )
            self._refused = time.monotonic(), text
            raise WalLocked(text)
        self._spare.keep(options)
        return wal

    def forked(self) -> None:
        """In a forked child: this process has no slot yet."""
        self._refused = None
        self._spare.forked()

    def _take(self, options: SinkOptions) -> Wal | None:
        """The first slot that no process has; None if there is none."""
        for number in slot_numbers(self._directory):
            if is_taken(self._path(number)):
                continue
            with contextlib.suppress(WalLocked, PermissionError, FormatError, IsADirectoryError):
                return open_for_lines(self._path(number), options)
        return None

    def _make(self, options: SinkOptions) -> Wal | None:
        """A new slot; None if there are as many as there may be."""
        for number in range(options.max_files):
            path = self._path(number)
            if os.path.lexists(path):
                continue
            try:
                made = self._spare.named(path, options)
                return open_for_lines(path, options, made)
            except (WalLocked, FileExistsError):  # another process was faster
                continue
            except PermissionError:
                if not os.path.lexists(path):  # else the process of another user was faster
                    raise
        return None

    def _path(self, number: int) -> str:
        return os.path.join(self._directory, slot_name(number))

    def close(self) -> None:
        """Let go of the spare. Idempotent."""
        self._spare.close()


def is_taken(path: str) -> bool:
    """Whether a slot clearly has a writer. It costs a tenth of an attempt to lock the slot, and a process may meet many."""
    try:
        fd = open_descriptor(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return is_announced(fd) is True
    finally:
        os.close(fd)


class Spare:
    """A slot without a name, made in the background: to create a log takes longer than a logging call may.

    It is for the next child that this process forks, which inherits it. So a process keeps one that was not forked itself, or
    that has forked. The kernel removes a spare that was not used, with the last process that has it.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._fd: int | None = None
        self._options: SinkOptions | None = None
        self._keeper: Keeper | None = None
        self._pause = _PAUSE_MIN
        self._inherited = False
        self._lock = threading.Lock()

    def forked(self) -> None:
        """In a forked child: the spare is here for its first record."""
        self._inherited = True
        self._keeper = None
        self._lock = threading.Lock()

    def named(self, path: str, options: SinkOptions) -> WriterLock | None:
        """The spare under this name, locked; None if there is none that suits, or another process uses it."""
        with self._lock:
            if self._fd is None or options != self._options:
                return None
            try:
                lock = name_spare(self._fd, path, SYSTEM)
            except PermissionError:  # this child has become another user
                lock = None
            self._drop()
            return lock

    def keep(self, options: SinkOptions) -> None:
        """This process has a slot. Keep a spare from now on; if it was forked, from its own first fork on."""
        if self._inherited:
            self._drop()  # if this child did not need it
        self._options = options
        if self._keeper is None:
            self._keeper = Keeper(self._renew, f"pmwal-spare {self._directory}", begin=not self._inherited)

    def _renew(self) -> float | None:
        """In the background: make a spare unless there is one. When to look again: soon after a fork, then less often."""
        with self._lock:
            if self._fd is not None and is_named(self._fd):
                self._drop()
            if self._fd is not None:
                self._pause *= 2
                return self._pause if self._pause <= _PAUSE_MAX else None
        self._pause = _PAUSE_MIN
        options = self._options
        assert options is not None
        with contextlib.suppress(OSError):  # a full disk, for example: then a child creates its log itself
            fd = create_spare(
                self._directory,
                capacity=CAPACITY_DEFAULT if options.capacity is None else options.capacity,
                alignment=options.align,
                medium=options.medium,
                mode=options.mode_of_file,
                seam=SYSTEM,
            )
            with self._lock:
                self._fd = fd
        return None if self._fd is None else self._pause

    def _drop(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Keep none any more. Idempotent."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.stop()
        with self._lock:
            self._drop()
