"""A log that takes lines from a logging library: what ``LogHandler`` and ``pmwal.integrations`` share.

Invariants
----------
- A line is in the mapped file when ``store`` returns, so it survives the death of this process. The commit policy, ``sync_level``
  and ``flush`` decide what else it survives.
- ``store`` raises. Its caller passes the error to ``count``, whether or not it re-raises it.
- A forked child stores nothing in its parent's log, and its ``flush`` and ``close`` do nothing to it.
- Nothing here takes a lock of its own: one that another thread holds during a fork would block the child for good.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from pmwal.errors import ForkedWal, WalFull, WalLocked
from pmwal.format.layout import KIND_APPLICATION_MAX
from pmwal.opening import open_with
from pmwal.opening.options import Options
from pmwal.records import SinkStats
from pmwal.writing.wal import Wal

PID_FIELD = "{pid}"


@dataclass(frozen=True, kw_only=True)
class SinkOptions(Options):
    """The options of ``LogHandler`` and the adapters that concern the log. A logging call never waits for a truncate."""

    full_policies: ClassVar[tuple[str, ...]] = ("overwrite", "raise")

    commit: str | float = 1.0
    on_full: str = "overwrite"
    sync_level: int | str = logging.CRITICAL

    def __post_init__(self) -> None:
        super().__post_init__()
        _level_number(self.sync_level)


class Sink:
    """A log opened for the lines of a logging library."""

    def __init__(self, path: str | os.PathLike[str], options: SinkOptions) -> None:
        self._sync_level = _level_number(options.sync_level)
        self._dropped = self._errors = 0
        self._pid = os.getpid()
        self.path = os.fsdecode(path).replace(PID_FIELD, str(self._pid))
        try:
            wal = open_with(self.path, options)
        except WalLocked as error:
            who = "another process" if error.pid is None else "this process" if error.pid == self._pid else f"process {error.pid}"
            raise WalLocked(
                f"{self.path}: {who} has it open, and a log has only one writer; {_advice(self.path)}", error.pid
            ) from None
        assert isinstance(wal, Wal)
        self.wal = wal
        self._append = wal.append

    def store(self, line: bytes, level: int) -> None:
        """Store one line, and commit it if its level is at least ``sync_level``. ``level`` becomes the record's ``kind``.

        Raises ``WalFull``, ``RecordTooLarge``, ``PersistError``, ``WalClosed``, ``ForkedWal``.
        """
        kind = level if 0 <= level <= KIND_APPLICATION_MAX else min(max(level, 0), KIND_APPLICATION_MAX)
        try:
            if level >= self._sync_level:
                self._append(line, kind=kind, commit=True)
            else:
                self._append(line, kind=kind)
        except ForkedWal:
            raise ForkedWal(
                f"{self.path}: it was opened by process {self._pid}, and this is its forked child {os.getpid()}, whose record was "
                f"not stored; open a log for the child after the fork; {_advice(self.path)}"
            ) from None

    def count(self, error: Exception) -> None:
        """Count a record that could not be stored, or not made durable as asked."""
        # Atomic without a lock: the interpreter switches threads only at calls and loops.
        if isinstance(error, WalFull):
            self._dropped += 1
        else:
            self._errors += 1

    def flush(self) -> None:
        """Make everything that was stored durable. On a closed log, and in a forked child, it does nothing."""
        if os.getpid() == self._pid and not self.wal.closed:
            self.wal.commit()

    def close(self) -> None:
        """Commit and close. In a forked child it only lets go of the handle. Idempotent."""
        self.wal.close()

    def stats(self) -> SinkStats:
        """The counters. A forked child has written nothing; its errors are added to those of its parent."""
        if os.getpid() != self._pid:
            return SinkStats(dropped=self._dropped, errors=self._errors)
        wal = self.wal.stats()
        return SinkStats(wal.appends, wal.overwritten, self._dropped, self._errors)


class SinkOwner:
    """The common part of everything that stores log records through a sink."""

    _sink: Sink

    @property
    def wal(self) -> Wal:
        """The open log, to read or follow the records."""
        return self._sink.wal

    def stats(self) -> SinkStats:
        """The number of records written, overwritten, dropped, and lost to errors since the log was opened.

        >>> import pmwal
        >>> handler = pmwal.LogHandler(path, size="1MiB")
        >>> handler.stats()
        SinkStats(written=0, overwritten=0, dropped=0, errors=0)
        >>> handler.close()
        """
        return self._sink.stats()

    def __reduce__(self) -> NoReturn:
        refuse_pickle(self)


def _level_number(level: int | str) -> int:
    if isinstance(level, str):
        levels = logging.getLevelNamesMapping()
        if level not in levels:
            raise ValueError(f"sync_level must be a number or one of {', '.join(levels)}, not {level!r}")
        return levels[level]
    return level


def refuse_pickle(thing: Any) -> NoReturn:
    """The ``__reduce__`` of everything that has a sink."""
    name = type(thing).__name__
    raise TypeError(
        f"a {name} cannot be sent to another process: a log has only one writer. Open a {name} there, with a path of its own; "
        "or send the records to the process of this one, for example through logging.handlers.QueueHandler"
    )


def _advice(path: str) -> str:
    stem, suffix = os.path.splitext(path)
    return f'give each process a path of its own, for example "{stem}-{PID_FIELD}{suffix}": {PID_FIELD} becomes the process id'
