"""Limits by age and by size: which records and slots go.

Invariants
----------
- A slot is removed only under its writer's lock, so no process has it, and only after it was looked at under that lock. A process
  that waits to open it finds that its name is gone, and takes another one.
- A slot that cannot be read, or is corrupt, stays: somebody may want to repair it.
- A symbolic link is no slot: neither it nor what it leads to is counted or removed.
- A process removes records of its own log by ``truncate``, and only from its oldest end.
- A stamp past now counts as now.
- Where only consumed slots may go: in doubt a slot is not consumed, and one without a consumer never is.
"""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from typing import NamedTuple, Protocol

from pmwal.errors import FormatError, PmwalError, WalLocked
from pmwal.logs.options import Limits
from pmwal.logs.slots import is_taken, open_slot, slot_name, slot_numbers
from pmwal.opening import open_with
from pmwal.opening.files import lock_existing
from pmwal.opening.options import Options
from pmwal.reading.internals import consumers_of, created_ns
from pmwal.reading.reader import Reader
from pmwal.storage.descriptors import open_descriptor
from pmwal.storage.positions import remove_positions
from pmwal.storage.seam import SYSTEM
from pmwal.writing.wal import Wal

_READ = Options("r")
_PAUSE_MIN, _PAUSE_MAX = 1.0, 60.0  # seconds between two looks
_PART = 16  # of the time that records are kept


class Slot(NamedTuple):
    """A slot without a process: its path, its size in bytes, and the time of its newest record, or of its creation, in ns."""

    path: str
    size: int
    newest_ns: int


def prune(
    directory: str, limits: Limits, *, consumed: bool = False, dry: bool = False, refused: dict[str, OSError] | None = None
) -> list[Slot]:
    """Remove the slots that no process has and whose newest record is too old, then the oldest ones while all are too large.

    With ``consumed`` only those of which each consumer has acknowledged every record, and without limits all of those. What was
    removed, or with ``dry`` would be. ``refused`` gets why others could not be removed, by path. Raises ``OSError`` where the
    directory cannot be read.
    """
    now, total, free = time.time_ns(), 0, []
    for number in slot_numbers(directory):
        path = os.path.join(directory, slot_name(number))
        size = _size(path)
        total += size
        newest = None if size == 0 or is_taken(path) else _newest(path, now)
        if newest is not None:
            free.append(Slot(path, size, newest))
    removed = []
    for slot in sorted(free, key=lambda slot: slot.newest_ns):
        old = limits.keep_ns is not None and slot.newest_ns < now - limits.keep_ns
        large = limits.total is not None and total > limits.total
        unlimited = consumed and limits == Limits(None, None)
        if not (old or large or unlimited) or (consumed and not _is_consumed(slot.path)):
            continue
        try:
            gone = dry or _remove(slot, now)
        except OSError as error:
            if refused is not None:
                refused[slot.path] = error
            continue
        if gone:
            removed.append(slot)
            total -= slot.size
    return removed


def truncate_old(wal: Wal, keep_ns: int) -> None:
    """Free the records of a log that are older than that. Raises what ``Wal.truncate`` raises."""
    end = wal.next_seq
    record = next(wal.read(stop=end, since=max(0, time.time_ns() - keep_ns)), None)
    before = end if record is None else record.seq
    if before > wal.first_seq:
        wal.truncate(before=before)


def _size(path: str) -> int:
    """The size of a file, without a look at its times; 0 if it cannot be opened."""
    try:
        fd = open_slot(path)
    except OSError:
        return 0
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    except OSError:  # no regular file
        return 0
    finally:
        os.close(fd)


def _newest(path: str, now: int) -> int | None:
    """The time of the newest record of a log without a writer; None if it cannot be read."""
    try:
        reader = open_with(path, _READ)
    except (OSError, PmwalError):
        return None
    assert isinstance(reader, Reader)
    with reader:
        try:
            return min(reader[reader.committed_seq].time_ns if len(reader) else created_ns(reader), now)
        except (OSError, PmwalError, IndexError):
            return None


def _is_consumed(path: str) -> bool:
    """Whether a log without a writer has consumers, and each has acknowledged, and released, all records."""
    try:
        reader = open_with(path, _READ)
    except (OSError, PmwalError):
        return False
    assert isinstance(reader, Reader)
    with reader:
        try:
            last, found = reader.committed_seq, consumers_of(reader)
        except (OSError, PmwalError):
            return False
        passed = [each.position is not None and each.problem is None and each.position.released >= last for each in found]
    return bool(passed) and all(passed)


def _remove(slot: Slot, now: int) -> bool:
    """Remove a slot, unless a process has it by now, or had it in between. ``OSError`` if this process may not."""
    try:
        lock = lock_existing(slot.path, SYSTEM, follow=False)
    except (WalLocked, FormatError, FileNotFoundError):
        return False
    if lock is None:
        return False
    try:
        if _newest(slot.path, now) != slot.newest_ns:
            return False
        directory, name = os.path.split(slot.path)
        fd = open_descriptor(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            SYSTEM.unlink(name, fd)
            SYSTEM.sync_file(fd)
        finally:
            os.close(fd)
        remove_positions(slot.path, SYSTEM)  # last: they would hold the next log of this name back, but none that is there
        return True
    finally:
        lock.release()


class Kept(Protocol):
    """A sink, as retention sees it."""

    @property
    def wal(self) -> Wal:
        """The open log."""


class Retention:
    """What a process does about the limits from time to time. It does not keep the sink alive."""

    def __init__(self, sink: Kept, directory: str | None, limits: Limits) -> None:
        self._sink = weakref.ref(sink)
        self._directory = directory
        self._limits = limits

    def apply(self) -> float | None:
        """Remove what is too old or too much; the seconds until the next time."""
        keep_ns = self._limits.keep_ns
        sink = self._sink()
        if sink is None:
            return None
        with contextlib.suppress(PmwalError, OSError):  # every later call on the log reports it; the next time is soon
            if keep_ns is not None:
                truncate_old(sink.wal, keep_ns)
            if self._directory is not None:
                prune(self._directory, self._limits)
        return _PAUSE_MAX if keep_ns is None else min(_PAUSE_MAX, max(_PAUSE_MIN, keep_ns / 1e9 / _PART))
