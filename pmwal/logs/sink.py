"""A log that takes lines from a logging library: what ``LogHandler`` and ``pmwal.integrations`` share.

Invariants
----------
- A line is in the mapped file when ``store`` returns, so it survives the death of this process. The commit policy, ``sync_level``
  and ``flush`` decide what else it survives. The one exception is a line that is logged while its own thread is inside a call on
  the log, from a signal handler, a ``__del__`` or a batch: it waits in memory, and is stored before that thread's next line.
- ``store`` raises. Its caller passes the error to ``count``, whether or not it re-raises it.
- A forked child stores nothing in its parent's log, and its ``flush`` and ``close`` do nothing to it.
- A log whose file was removed, renamed or replaced is given up for a new one at its path, as soon as a call notices it. What was
  stored after the file was last seen to have a name is stored again if no name is left, and the line of the call is not lost.
- ``store`` takes no lock of its own unless lines wait or the path is opened anew, and no thread takes one while it is inside a call
  on the log. A child never does: a lock that another thread holds during a fork would block the child for good.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import sys
import threading
import warnings
from collections import defaultdict, deque
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, NoReturn, Self

from pmwal.errors import (
    CorruptWal,
    ForkedWal,
    PmwalError,
    RecordTooLarge,
    ReentrantCall,
    WalClosed,
    WalFull,
    WalLocked,
    WalUnlinked,
)
from pmwal.format.layout import KIND_APPLICATION_MAX
from pmwal.logs.plain import shortened
from pmwal.logs.set_aside import set_aside
from pmwal.opening import open_with
from pmwal.opening.files import map_for_reading
from pmwal.opening.options import Options
from pmwal.records import SinkStats
from pmwal.storage.seam import SYSTEM
from pmwal.writing.internals import is_inside, nameless_from, nobody_else_stores
from pmwal.writing.wal import Wal

PID_FIELD = "{pid}"
CORRUPT_POLICIES = ("set-aside", "raise")
WAITING_MAX = 1024
"""How many lines may wait. A batch or a signal handler that logs more gets an error for each further one."""

_TRIES = 4  # opens of a log that is corrupt, or of another size, again
_SHOWN = 200  # characters of a message in a report
_ONE_IN = 4  # a line that is too large is cut to this part of the ring; the largest record is half of it, less its header


@dataclass(frozen=True, kw_only=True)
class SinkOptions(Options):
    """The options of ``LogHandler`` and the adapters that concern the log. A logging call never waits for a truncate."""

    full_policies: ClassVar[tuple[str, ...]] = ("overwrite", "raise")

    commit: str | float = 1.0
    on_full: str = "overwrite"
    sync_level: int | str = logging.CRITICAL
    on_corrupt: str = "set-aside"
    on_unlinked: str = "raise"  # to the sink, which then opens the path anew

    def __post_init__(self) -> None:
        super().__post_init__()
        _level_number(self.sync_level)
        if self.on_corrupt not in CORRUPT_POLICIES:
            raise ValueError(f"on_corrupt must be one of {', '.join(map(repr, CORRUPT_POLICIES))}, not {self.on_corrupt!r}")


class _Line(NamedTuple):
    """A line that waits, with the thread that logged it."""

    thread: int
    line: bytes
    kind: int
    sync: bool


class Sink:
    """A log opened for the lines of a logging library."""

    def __init__(self, path: str | os.PathLike[str], options: SinkOptions) -> None:
        self._options = options
        self._sync_level = _level_number(options.sync_level)
        self._dropped = self._errors = self._cut = self._queued = self._reopened = 0
        self._earlier = (0, 0)  # written and overwritten in the logs that were given up
        self._opening = threading.RLock()  # held while the path is opened anew
        self._opener: int | None = None  # the thread that does
        self._reasons: defaultdict[str, int] = defaultdict(int)
        self._said: dict[tuple[type, int], object] = {}  # errors that were reported for all that follow, by class and process
        self._full_at = 0  # next_seq when the log was last found full
        self._waiting: deque[_Line] = deque()  # appended to by any thread, shortened only by the one that has the lock
        self._lock = threading.RLock()
        self._storing: int | None = None  # the thread that has the lock
        self._has_helper = False  # a thread that stores what waits is running, or about to
        self._pid = os.getpid()
        self.path = os.fsdecode(path).replace(PID_FIELD, str(self._pid))
        try:
            wal = _open(self.path, options)
        except WalLocked as error:
            who = "another process" if error.pid is None else "this process" if error.pid == self._pid else f"process {error.pid}"
            raise WalLocked(
                f"{self.path}: {who} has it open, and a log has only one writer; {_advice(self.path)}", error.pid
            ) from None
        self.wal = wal
        self._append = wal.append

    # -- storing

    def store(self, line: bytes, level: int) -> None:
        """Store one line, and commit it if its level is at least ``sync_level``. ``level`` becomes the record's ``kind``.

        Raises ``WalFull``, ``RecordTooLarge`` (a shortened line was stored), ``PersistError``, ``WalClosed``, ``ForkedWal``, and
        ``ReentrantCall`` when no more lines can wait.
        """
        kind = level if 0 <= level <= KIND_APPLICATION_MAX else min(max(level, 0), KIND_APPLICATION_MAX)
        waiting = self._waiting
        if waiting and not self._store_mine():
            self._wait(line, kind, level >= self._sync_level)
            return
        try:
            if level >= self._sync_level:
                self._append(line, kind=kind, commit=True)
            else:
                self._append(line, kind=kind)
        except PmwalError as error:
            self._refused(error, line, kind, level >= self._sync_level)
        if waiting:
            self._store_mine()

    def _refused(self, error: PmwalError, line: bytes, kind: int, sync: bool) -> None:
        """Do what can be done for a line that ``append`` refused, or raise the error."""
        if isinstance(error, ReentrantCall):
            self._wait(line, kind, sync)
            return
        if isinstance(error, WalUnlinked):
            if self._opener == _thread.get_ident() or is_inside(self.wal):  # as in a signal handler, or in a batch
                self._wait(line, kind, sync)
                return
            self._open_anew()
        if isinstance(error, WalUnlinked) or (self._reopened and isinstance(error, WalClosed)):  # another thread gave the log up
            try:
                self._append(line, kind=kind, commit=sync or None)
            except WalClosed as closed:
                error = closed
            except PmwalError as again:
                self._refused(again, line, kind, sync)
                return
            else:
                return
        if isinstance(error, RecordTooLarge):
            cut = shortened(line, self.wal.capacity // _ONE_IN)
            self._append(cut, kind=kind, commit=sync or None)
            self._cut += 1
            raise RecordTooLarge(
                f"{self.path}: this record was stored shortened, to {len(cut)} bytes: {error}; log less in one record, or use a "
                "larger size for a new log"
            ) from None
        if isinstance(error, ForkedWal):
            raise ForkedWal(
                f"{self.path}: it was opened by process {self._pid}, and this is its forked child {os.getpid()}, whose record was "
                f"not stored; open a log for the child after the fork; {_advice(self.path)}"
            ) from None
        if isinstance(error, WalClosed):
            raise WalClosed(
                f"{self.path}: this record was not stored: the log was closed, as logging.shutdown() does at exit; "
                "close it later, or log to a new handler"
            ) from None
        raise error

    def _open_anew(self) -> None:
        """Give up a log that lost its name for a new one at the path. Raises what ``open`` raises; the next line tries again."""
        with self._opening:
            old = self.wal
            if old.closed or not old.stats().unlinked:  # another thread was faster
                return
            self._opener = _thread.get_ident()
            try:
                new = _open(self.path, self._options)
                with nobody_else_stores(old):
                    again = self._store_again(old, new)
                    counted = old.stats()
                    self._earlier = self._earlier[0] + counted.appends - again, self._earlier[1] + counted.overwritten
                    self.wal, self._append = new, new.append
                    self._reopened += 1
                    with contextlib.suppress(PmwalError):
                        old.close()
            finally:
                self._opener = None

    def _store_again(self, old: Wal, new: Wal) -> int:
        """Store what is in a file without a name only; the number of records."""
        count, first = 0, nameless_from(old)
        if first is None:
            return 0
        try:
            for record in old.read(max(first, old.first_seq)):
                try:
                    new.append(record.data, kind=record.kind, commit=False)
                    count += 1
                except WalFull as error:
                    self.count(error)
            new.commit()
        except BaseException:  # the new log fails, too: the old one is still there for the next try
            new.close()
            raise
        return count

    # -- lines that wait

    def _wait(self, line: bytes, kind: int, sync: bool) -> None:
        """Keep a line until the call on the log that this thread is inside has ended."""
        if len(self._waiting) >= WAITING_MAX:
            raise ReentrantCall(
                f"{self.path}: this record was not stored: its thread is inside a call on the log, and {WAITING_MAX} records wait "
                "for that call to end; log less in signal handlers, and outside of batches"
            )
        self._waiting.append(_Line(_thread.get_ident(), line, kind, sync))
        self._queued += 1
        self._start_helper()

    def _start_helper(self) -> None:
        """Start a thread that stores what waits, unless there is one.

        The call that was interrupted may not be one of this sink: a commit in the background, or the program's own. Then only
        another thread can wait for its end.
        """
        if not self._has_helper:
            self._has_helper = True
            try:
                _thread.start_new_thread(self._help, ())
            except RuntimeError:
                # No more threads, or the interpreter is about to end. This thread's next line, flush or close does it.
                self._has_helper = False

    def _help(self) -> None:
        try:
            self._store_waiting()
        finally:
            self._has_helper = False
            if self._waiting:  # a line that came too late for this thread, and too early to start another one
                self._start_helper()

    def _store_mine(self) -> bool:
        """Store the lines of this thread that wait, if any; False if it must not yet, so that its next line has to wait, too."""
        thread = _thread.get_ident()
        mine = any(waiting.thread == thread for waiting in tuple(self._waiting))
        return not mine or self._store_waiting()

    def _store_waiting(self) -> bool:
        """Store all lines that wait. False if this thread must not: it is inside a call on the log, opening it, or here already."""
        if os.getpid() != self._pid:
            return True  # they are the parent's
        thread = _thread.get_ident()
        if thread in (self._storing, self._opener) or is_inside(self.wal):
            return False
        with self._lock:
            self._storing = thread
            try:
                while self._waiting:
                    waiting = self._waiting[0]
                    try:
                        self._append(waiting.line, kind=waiting.kind, commit=waiting.sync or None)
                    except Exception as error:
                        self._lose(waiting, error)
                    # Removed last: an exception such as KeyboardInterrupt may then store it twice, but cannot lose it.
                    self._waiting.popleft()
            finally:
                self._storing = None
        return True

    def _lose(self, waiting: _Line, error: Exception) -> None:
        """Report a line that waited and was refused, unless something can still be done for it."""
        try:
            if not isinstance(error, PmwalError) or isinstance(error, ReentrantCall):
                raise error
            self._refused(error, waiting.line, waiting.kind, waiting.sync)
            return
        except Exception as final:
            error = final
        self.count(error)
        if not self.said(error, waiting.line):
            say(f"{type(error).__module__}.{type(error).__qualname__}: {error}. Message: {_shown(waiting.line)}")

    # -- errors

    def count(self, error: BaseException) -> None:
        """Count a record that could not be stored as it was, or not made durable as asked."""
        # Atomic without a lock: the interpreter switches threads only at calls and loops.
        self._reasons[type(error).__name__] += 1
        if isinstance(error, WalFull):
            self._dropped += 1
        else:
            self._errors += 1

    def count_cut(self) -> None:
        """Count a record of which a part was cut."""
        self._cut += 1

    def said(self, error: BaseException | None, message: object, where: str = "") -> bool:
        """Report an error of the log in one line on stderr; False for an error that the caller must report itself.

        Of errors that every later record would repeat, only the first one is reported: of a closed log and in a forked child for
        good, of a full log until it has stored a record again.
        """
        if not isinstance(error, (WalClosed, ForkedWal, WalFull, RecordTooLarge)):
            return False
        text = f"{type(error).__module__}.{type(error).__qualname__}: {error}."
        if isinstance(error, WalFull):
            if not self._newly_full():
                return True
            text += " Further ones are only counted, in stats(), until a record is stored again."
        elif not isinstance(error, RecordTooLarge):
            first = object()
            if self._said.setdefault((type(error), os.getpid()), first) is not first:
                return True
            text += " Later records are only counted, in stats()."
        say(f"{text} Message: {_shown(message)}{where and f', logged at {where}'}")
        return True

    def _newly_full(self) -> bool:
        """Whether a record was stored since the log was last found full."""
        now = self.wal.next_seq
        # Atomic without a lock, as in ``count``.
        before, self._full_at = self._full_at, now
        return before != now

    # -- the rest

    def flush(self) -> None:
        """Make everything that was stored durable. On a closed log, and in a forked child, it does nothing."""
        if os.getpid() == self._pid and not self.wal.closed:
            if self._waiting:
                self._store_waiting()
            try:
                self.wal.commit()
            except WalUnlinked:
                self._open_anew()
                self.wal.commit()

    def close(self) -> None:
        """Commit and close. In a forked child it only lets go of the handle. Idempotent."""
        if os.getpid() == self._pid and not self.wal.closed:
            if self._waiting:
                self._store_waiting()
            first = None if is_inside(self.wal) else nameless_from(self.wal)
            if first is not None and first < self.wal.next_seq:
                try:
                    self._open_anew()
                except (PmwalError, OSError) as error:
                    self.count(error)
                    lost = self.wal.next_seq - first
                    say(f"{self.path}: its file was removed, and {lost} records could not be stored again: {error}")
        with contextlib.suppress(WalUnlinked):  # nothing is lost: its file has another name, or it has nothing to store again
            self.wal.close()
        if self._waiting:
            self._store_waiting()  # counts and reports what came too late

    def stats(self) -> SinkStats:
        """The counters. A forked child has written nothing; its errors are added to those of its parent."""
        written = overwritten = 0
        if os.getpid() == self._pid:
            wal = self.wal.stats()
            written, overwritten = self._earlier[0] + wal.appends, self._earlier[1] + wal.overwritten
        return SinkStats(
            written, overwritten, self._dropped, self._errors, self._queued, self._cut, dict(self._reasons), self._reopened
        )


class SinkOwner:
    """The common part of everything that stores log records through a sink."""

    _sink: Sink

    @property
    def wal(self) -> Wal:
        """The open log, to read or follow the records."""
        return self._sink.wal

    def stats(self) -> SinkStats:
        """What became of the records, as counters that continue when the path is opened anew.

        ``errors`` also counts records that were stored shortened or not made durable as asked: see ``pmwal.records.SinkStats``.

        >>> import pmwal
        >>> handler = pmwal.LogHandler(path, size="1MiB")
        >>> handler.stats()
        SinkStats(written=0, overwritten=0, dropped=0, errors=0, queued=0, cut=0, reasons={}, reopened=0)
        >>> handler.close()
        """
        return self._sink.stats()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: a configuration or a logger that is copied with all it refers to logs into the same log."""
        return self

    def __reduce__(self) -> NoReturn:
        refuse_pickle(self)


def _open(path: str, options: SinkOptions) -> Wal:
    """Open the log; with the size that it has, or after a corrupt one was set aside: an application must be able to start."""
    asked = options
    for last in (False,) * (_TRIES - 1) + (True,):
        try:
            wal = open_with(path, asked)
        except CorruptWal as error:
            if last or options.on_corrupt == "raise":
                raise
            _set_aside(path, error)
            asked = options
        except ValueError:
            if last or not _has_other_size(path, asked):
                raise
            asked = replace(options, size=None)
        else:
            break
    assert isinstance(wal, Wal)
    if options.capacity not in (None, wal.capacity):
        try:
            warnings.warn(
                f"{path}: it exists with a size of {wal.capacity} bytes and keeps it, although size={options.size!r} was given; "
                "leave size out, or give the log a new name",
                RuntimeWarning,
                stacklevel=4,  # the caller of LogHandler
            )
        except BaseException:  # the program made an error of it
            wal.close()
            raise
    return wal


def _has_other_size(path: str, options: SinkOptions) -> bool:
    if options.size is None:
        return False
    mapping, identity = map_for_reading(path, "auto", SYSTEM)
    mapping.close()
    return identity.block.capacity != options.capacity


def _set_aside(path: str, error: CorruptWal) -> None:
    try:
        target = set_aside(path)
    except OSError as failure:
        raise CorruptWal(
            f"{error}. It could not be set aside for a new log either: {failure}; repair it, or log to another path",
            first_seq=error.first_seq,
            last_seq=error.last_seq,
            start=error.start,
            end=error.end,
            reason=f"{error.reason}; not set aside: {failure}",
        ) from failure
    if target is not None:
        warnings.warn(
            f"{path} is corrupt: {error.reason}; it was set aside as {target}, and a new log takes its place. "
            f"pmwal.open({target!r}, 'r', recover='salvage') reads every whole record of it, and pmwal repair makes it usable",
            RuntimeWarning,
            stacklevel=5,  # the caller of LogHandler
        )


def say(text: str) -> None:
    """Print a line about logging itself on stderr, unless logging.raiseExceptions is false. Raises nothing, at any time."""
    with contextlib.suppress(Exception):  # there is no other place to say it
        if logging.raiseExceptions and sys.stderr is not None:
            sys.stderr.write(f"--- Logging error --- {text}\n".encode("utf-8", "backslashreplace").decode())


def _shown(message: object) -> str:
    try:
        text = message.decode("utf-8", "backslashreplace") if isinstance(message, bytes) else message
        shown = repr(text)
        return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    except Exception as error:
        return f"<{type(error).__name__} in repr()>"


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
