"""The slots of a directory: logs named 00.wal, 01.wal, ..., of which each process has one.

Invariants
----------
- A process takes the first slot that no process has, else it makes the next one. So there are no more slots than there were
  processes at one time. The writer's lock of the log decides who has a slot.
- A slot is taken with the records that its last process left, which stay in it.
- What is not this user's, or not a log, is passed over and not changed. So is a symbolic link, wherever it leads: whoever may write
  to the directory could make a process write to any log of its user. No open of a slot follows one, so none can be put there
  in between. Only readers follow links.
- At most ``max_files`` slots are made. When no slot is free, the directory is looked at again at most once in ``_RETRY_SECONDS``.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import replace

from pmwal.errors import FormatError, WalLocked
from pmwal.logs.options import SinkOptions
from pmwal.logs.spares import Spares
from pmwal.logs.targets import open_for_lines
from pmwal.storage.descriptors import open_descriptor
from pmwal.storage.liveness import is_announced
from pmwal.storage.seam import SYSTEM
from pmwal.writing.wal import Wal

_SLOT = re.compile(r"([0-9]{2}|[1-9][0-9]{2,})\.wal")
_RETRY_SECONDS = 1.0


def slot_name(number: int) -> str:
    """The name of a slot."""
    return f"{number:02d}.wal"


def slot_numbers(directory: str) -> list[int]:
    """The numbers of the slots in a directory, in order: regular files, as far as it says so without a look at their times."""
    with os.scandir(directory) as entries:
        found = [_SLOT.fullmatch(entry.name) for entry in entries if entry.is_file(follow_symlinks=False)]
    return sorted(int(match[1]) for match in found if match)


def open_slot(path: str) -> int:
    """A descriptor of a slot, to look at it; ``OSError`` if it is a symbolic link."""
    return open_descriptor(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW)


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
        self._spares = Spares(directory)

    def open(self, options: SinkOptions) -> Wal:
        """A slot of this process's own. Raises ``WalLocked`` if all are taken, and what ``pmwal.open`` raises."""
        if self._refused is not None and time.monotonic() - self._refused[0] < _RETRY_SECONDS:
            raise WalLocked(self._refused[1])
        self._refused = None
        options = replace(options, is_slot=True)
        make_directory(self._directory)  # again, if it was removed: the next record is in a new log, as when a log is removed
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
        self._spares.keep(options)
        return wal

    def forked(self) -> None:
        """In a forked child: this process has no slot yet."""
        self._refused = None
        self._spares.forked()

    def _take(self, options: SinkOptions) -> Wal | None:
        """The first slot that no process has; None if there is none."""
        for number in slot_numbers(self._directory):
            if is_taken(self._path(number)):
                continue
            with contextlib.suppress(WalLocked, PermissionError, FormatError):
                return open_for_lines(self._path(number), options)
        return None

    def _make(self, options: SinkOptions) -> Wal | None:
        """A new slot; None if there are as many as there may be."""
        for number in range(options.max_files):
            path = self._path(number)
            if os.path.lexists(path):
                continue
            try:
                made = self._spares.named(path, options)
                return open_for_lines(path, options, made)
            except (WalLocked, FileExistsError, FormatError):  # another process was faster
                continue
            except PermissionError:
                if not os.path.lexists(path):  # else the process of another user was faster
                    raise
        return None

    def _path(self, number: int) -> str:
        return os.path.join(self._directory, slot_name(number))

    def close(self) -> None:
        """Let go of the spares. Idempotent."""
        self._spares.close()


def is_taken(path: str) -> bool:
    """Whether a slot clearly has a writer. It costs a tenth of an attempt to lock the slot, and a process may meet many."""
    try:
        fd = open_slot(path)
    except OSError:
        return False
    try:
        return is_announced(fd) is True
    finally:
        os.close(fd)
