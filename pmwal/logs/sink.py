"""A log that takes lines from a logging library: what ``LogHandler`` and ``pmwal.integrations`` have in common.

Invariants
----------
- A line is in the mapped file when ``store`` returns: it survives the death of this process. What else it survives is up to the
  commit policy, to ``sync_level`` and to ``flush``.
- ``store`` raises. Its caller hands the error to ``count``, whether it raises it further or reports it.
- A forked child stores nothing in its parent's log, and its ``flush`` and ``close`` do nothing to it.
- Nothing here takes a lock of its own: one that is held during a fork would hang the child.
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
            raise WalLocked(f"{self.path}: {who} has it open, and a log has one writer; {_advice(self.path)}", error.pid) from None
        assert isinstance(wal, Wal)
        self.wal = wal
        self._append = wal.append

    def store(self, line: bytes, level: int) -> None:
        """Store one line, and commit at once from ``sync_level`` on. ``level`` becomes the record's ``kind``.

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
                f"{self.path}: it was opened by process {self._pid} and this is its forked child {os.getpid()}, whose record was "
                f"not stored; open a log of its own in the child, after the fork; {_advice(self.path)}"
            ) from None

    def count(self, error: Exception) -> None:
        """One record more that could not be stored, or not as asked."""
        # Whole without a lock: the interpreter changes threads at calls and loops only.
        if isinstance(error, WalFull):
            self._dropped += 1
        else:
            self._errors += 1

    def flush(self) -> None:
        """Return when all that was stored is durable. On a closed log, and in a forked child, there is nothing to do."""
        if os.getpid() == self._pid and not self.wal.closed:
            self.wal.commit()

    def close(self) -> None:
        """Commit and close. Idempotent; in a forked child it only lets go."""
        self.wal.close()

    def stats(self) -> SinkStats:
        """The counters. A forked child has written nothing; its errors go on from its parent's."""
        if os.getpid() != self._pid:
            return SinkStats(dropped=self._dropped, errors=self._errors)
        wal = self.wal.stats()
        return SinkStats(wal.appends, wal.overwritten, self._dropped, self._errors)


class SinkOwner:
    """What all have that are given log records and keep them in a sink."""

    _sink: Sink

    @property
    def wal(self) -> Wal:
        """The open log, to read or follow what was stored."""
        return self._sink.wal

    def stats(self) -> SinkStats:
        """How many records were written, overwritten, dropped, and lost to errors since the log was opened.

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
    """What ``__reduce__`` of everything with a sink does."""
    name = type(thing).__name__
    raise TypeError(
        f"a {name} cannot be sent to another process: one process writes a log. Open a {name} there, with a path of its own; "
        "or send the records to the process that has this one, for example through logging.handlers.QueueHandler"
    )


def _advice(path: str) -> str:
    stem, suffix = os.path.splitext(path)
    return f'give each process a path of its own, for example "{stem}-{PID_FIELD}{suffix}", where {PID_FIELD} becomes its id'
