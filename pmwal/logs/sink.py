"""A log that takes lines from a logging library: what ``LogHandler`` and ``pmwal.integrations`` share.

Invariants
----------
- A line is in the mapped file when ``store`` returns, so it survives the death of this process. The commit policy, ``sync_level``
  and ``flush`` decide what else it survives. The one exception is a line that is logged while its own thread is inside a call on
  the log, from a signal handler, a ``__del__`` or a batch: it waits in memory, and is stored before that thread's next line.
- ``store`` raises. Its caller passes the error to ``count``, whether or not it re-raises it.
- A forked child stores nothing in its parent's log, and its ``flush`` and ``close`` do nothing to it. If each process has a log of
  its own, the child's first line opens one; nothing else of the child does.
- A log whose file was removed, renamed or replaced is given up for a new one at its path, as soon as a call notices it. What was
  stored after the file was last seen to have a name is stored again if no name is left, and the line of the call is not lost.
- So is one whose file was shortened or whose medium failed, but it is closed first: the path may lead to the same file. A medium
  that fails again within ``_REOPEN_SECONDS`` is not tried again until they have passed.
- Every line that is not stored is counted. Each change of state is said once: the path cannot be opened, it can be again.
- ``store`` takes no lock of its own unless lines wait or the path is opened anew, and no thread takes one while it is inside a call
  on the log. A child never does: a lock that another thread holds during a fork would block the child for good.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import threading
import time
from collections import defaultdict, deque
from typing import NamedTuple

from pmwal.errors import (
    ForkedWal,
    PersistError,
    PmwalError,
    RecordTooLarge,
    ReentrantCall,
    WalClosed,
    WalFull,
    WalUnlinked,
)
from pmwal.format.layout import KIND_APPLICATION_MAX
from pmwal.logs.keeper import Keeper
from pmwal.logs.options import SinkOptions
from pmwal.logs.plain import shortened
from pmwal.logs.reports import say, shown
from pmwal.logs.retention import Retention
from pmwal.logs.targets import Target, advice
from pmwal.records import SinkStats
from pmwal.writing.internals import (
    end_of,
    is_elsewhere,
    is_inside,
    is_same_log,
    is_shortened,
    is_unusable,
    nameless_from,
    nobody_else_stores,
    seen_to,
)
from pmwal.writing.wal import Wal

WAITING_MAX = 1024
"""How many lines may wait. A batch or a signal handler that logs more gets an error for each further one."""

_REOPEN_SECONDS = 1.0  # between two opens because the medium failed
_AT_THE_PATH = "_pmwal_at_the_path"  # an attribute of exceptions that came out of an attempt to open the path anew
_ONE_IN = 4  # a line that is too large is cut to this part of the ring; the largest record is half of it, less its header


class _GivenUp(NamedTuple):
    """A log that was closed because it could take no more: why, its next record when it was last seen whole, and at the end."""

    why: str
    seen_to: int
    end: int


class _Line(NamedTuple):
    """A line that waits, with the thread that logged it."""

    thread: int
    line: bytes
    kind: int
    sync: bool


class Sink:
    """A log opened for the lines of a logging library."""

    def __init__(self, target: Target, options: SinkOptions, key: tuple[int, int] | None = None) -> None:
        """``key``: of the directory, if others of this process may share this sink."""
        self.options = options
        self.key = key
        self.owners: set[object] = set()
        self._target = target
        self._begin()
        self.wal = wal = target.open(options)
        self._append = wal.append
        self._watch()

    def _begin(self) -> None:
        """What begins with each process."""
        self._pid = os.getpid()
        self._inherited = False  # whether the log is that of the parent process
        self._dropped = self._errors = self._cut = self._queued = self._reopened = 0
        self._earlier = (0, 0)  # written and overwritten in the logs that were given up
        self._opening = threading.RLock()  # held while the path is opened anew
        self._opener: int | None = None  # the thread that does
        self._opened_at = 0.0  # when it was last opened anew
        self._given_up: _GivenUp | None = None  # what is known of the closed log, until its path is opened anew
        self._failing_from: int | None = None  # errors counted before the path could not be opened anew; None while it can
        self._lost = 0
        self._reasons: defaultdict[str, int] = defaultdict(int)
        self._said: dict[tuple[type, int], object] = {}  # errors that were reported for all that follow, by class and process
        self._state: object = None  # the error that was said last, and where the log ended
        self._waiting: deque[_Line] = deque()  # appended to by any thread, shortened only by the one that has the lock
        self._lock = threading.RLock()
        self._storing: int | None = None  # the thread that has the lock
        self._has_helper = False  # a thread that stores what waits is running, or about to
        self._keeper: Keeper | None = None

    def _watch(self) -> None:
        """Begin to apply the limits by age and size, if there are any."""
        limits = self.options.limits
        if any(limit is not None for limit in limits):
            self._keeper = Keeper(Retention(self, self._target.directory, limits).apply, f"pmwal-retention {self.path}")

    def forked(self) -> None:
        """In a forked child, before anything else: begin anew, if the child can have a log of its own."""
        if self._target.renewable:
            self._begin()
            self._inherited = True
            self._target.forked()

    @property
    def path(self) -> str:
        """The path of the log."""
        return self.wal.path

    # -- storing

    def store(self, line: bytes, level: int, sync_level: int) -> None:
        """Store one line, and commit it if its level is at least ``sync_level``. ``level`` becomes the record's ``kind``.

        Raises ``WalFull``, ``RecordTooLarge`` (a shortened line was stored), ``PersistError``, ``WalClosed``, ``ForkedWal``, and
        ``ReentrantCall`` when no more lines can wait.
        """
        kind = level if 0 <= level <= KIND_APPLICATION_MAX else min(max(level, 0), KIND_APPLICATION_MAX)
        waiting = self._waiting
        if waiting and not self._store_mine():
            self._wait(line, kind, level >= sync_level)
            return
        try:
            if level >= sync_level:
                self._append(line, kind=kind, commit=True)
            else:
                self._append(line, kind=kind)
        except PmwalError as error:
            self._refused(error, line, kind, level >= sync_level)
        if waiting:
            self._store_mine()

    def _refused(self, error: PmwalError, line: bytes, kind: int, sync: bool) -> None:
        """Do what can be done for a line that ``append`` refused, or raise the error."""
        if isinstance(error, ReentrantCall):
            self._wait(line, kind, sync)
            return
        gone = isinstance(error, (WalUnlinked, PersistError)) or (self._given_up is not None and isinstance(error, WalClosed))
        if gone:
            if self._opener == _thread.get_ident() or is_inside(self.wal):  # as in a signal handler, or in a batch
                self._wait(line, kind, sync)
                return
            self._open_anew()
        if gone or (self._reopened and isinstance(error, WalClosed)):  # another thread gave the log up
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
        if isinstance(error, ForkedWal) and self._target.renewable:
            if not self.wal.closed:
                self._store_as_child(line, kind, sync)
                return
            error = WalClosed()
        if isinstance(error, ForkedWal):
            raise ForkedWal(
                f"{self.path}: it was opened by process {self._pid}, and this is its forked child {os.getpid()}, whose record was "
                f"not stored; open a log for the child after the fork; {advice(self.path)}"
            ) from None
        if isinstance(error, WalClosed):
            raise WalClosed(
                f"{self.path}: this record was not stored: the log was closed, as logging.shutdown() does at exit; "
                "close it later, or log to a new handler"
            ) from None
        raise error

    def _open_own(self) -> None:
        """In a forked child: open its log, unless another thread has."""
        with self._opening:
            if self._inherited:
                self._opener = _thread.get_ident()
                try:
                    self.wal = wal = self._target.open(self.options)
                    self._append = wal.append
                    self._inherited = False
                    self._watch()
                except Exception as error:
                    setattr(error, _AT_THE_PATH, True)
                    raise
                finally:
                    self._opener = None

    def renewed(self, wal: Wal, error: PmwalError) -> Wal:
        """The log to use instead of this one, which refused a call with this error; raises the error if there is no other."""
        with self._opening:
            if self.wal is wal:
                if wal.closed or self._opener == _thread.get_ident():
                    raise error
                if isinstance(error, ForkedWal) and self._inherited:
                    self._open_own()
                elif isinstance(error, (WalUnlinked, PersistError)) and not is_inside(wal):
                    self._open_anew()
                if self.wal is wal:
                    raise error
            return self.wal

    def _store_as_child(self, line: bytes, kind: int, sync: bool) -> None:
        """Store a line in the log of this forked child, which the first one opens."""
        if self._opener == _thread.get_ident():  # a signal handler, while its thread opens it
            self._wait(line, kind, sync)
            return
        self._open_own()
        try:
            self._append(line, kind=kind, commit=sync or None)
        except PmwalError as error:
            self._refused(error, line, kind, sync)

    def _open_anew(self) -> None:
        """Give up a log that can take no more for the one at the path. Raises what ``open`` raises; the next line tries again."""
        with self._opening:
            old = self.wal
            if self._given_up is None and (old.closed or not (is_unusable(old) or old.stats().unlinked)):
                return  # another thread was faster
            self._opener = _thread.get_ident()
            try:
                if self._given_up is None and not is_elsewhere(old):
                    self._give_up(old)
                new = self._target.open(self.options)
                with nobody_else_stores(old):
                    again, lost = self._rescue(old, new)
                    counted = old.stats()
                    self._earlier = self._earlier[0] + counted.appends - again, self._earlier[1] + counted.overwritten
                    self.wal, self._append = new, new.append
                    self._reopened += 1
                    self._opened_at = time.monotonic()
                    with contextlib.suppress(PmwalError):
                        old.close()
                given_up, self._given_up = self._given_up, None
                self._say_reopened(given_up, lost)
            except Exception as error:
                setattr(error, _AT_THE_PATH, True)
                if self._failing_from is None:
                    self._failing_from = self._errors
                raise
            finally:
                self._opener = None

    def _give_up(self, old: Wal) -> None:
        """Close a log that is still under its path, or again, so that it can be opened anew."""
        shortened, unusable = is_shortened(old), is_unusable(old)
        if unusable and not shortened and time.monotonic() - self._opened_at < _REOPEN_SECONDS:
            old.commit()  # raises why it failed
        why = "its file was shortened" if shortened else "the medium failed" if unusable else "its file has its name again"
        with nobody_else_stores(old):
            self._given_up = _GivenUp(why, seen_to(old), end_of(old))
            with contextlib.suppress(PmwalError):
                old.close()

    def _rescue(self, old: Wal, new: Wal) -> tuple[int, int]:
        """Store again what is in a file without a name only; how many records that are, and how many are lost."""
        given_up = self._given_up
        if given_up is not None:
            kept = new.recovery.last_seq + 1 if is_same_log(old, new) else given_up.seen_to
            return 0, max(0, given_up.end - kept)
        first = nameless_from(old)
        if first is None:
            return 0, end_of(old) - seen_to(old) if is_shortened(old) else 0
        return self._store_again(old, new, max(first, old.first_seq))

    def _store_again(self, old: Wal, new: Wal, first: int) -> tuple[int, int]:
        count, read, records = 0, 0, old.read(first)
        try:
            while True:
                try:
                    record = next(records, None)
                except (PmwalError, OSError):  # that file was shortened, too
                    break
                if record is None:
                    break
                read += 1
                try:
                    new.append(record.data, kind=record.kind, commit=False)
                    count += 1
                except WalFull as error:
                    self.count(error)
            new.commit()
        except BaseException:  # the new log fails, too: the old one is still there for the next try
            new.close()
            raise
        return count, end_of(old) - first - read

    def _say_reopened(self, given_up: _GivenUp | None, lost: int) -> None:
        """Say what has changed, unless the log was only renamed or removed and nothing is lost."""
        since, self._failing_from = self._failing_from, None
        self._lost += lost
        said = [] if given_up is None else [given_up.why]
        if lost:
            said.append(f"up to {lost} records of the last second before that was noticed are lost")
        if since is not None:
            said.append(f"{self._errors - since} records could not be stored meanwhile")
        if said:
            say(f"{self.path}: the log was opened anew: {'; '.join(said)}.")

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
        if thread in (self._storing, self._opener) or (not self._inherited and is_inside(self.wal)):
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
            say(f"{type(error).__module__}.{type(error).__qualname__}: {error}. Message: {shown(waiting.line)}")

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
        good; of a full log, a medium that fails or a path that cannot be opened, until a record is stored again or the error is
        another one.
        """
        again = isinstance(error, (WalFull, PersistError)) or getattr(error, _AT_THE_PATH, False)
        if not again and not isinstance(error, (WalClosed, ForkedWal, RecordTooLarge)):
            return False
        text = f"{type(error).__module__}.{type(error).__qualname__}: {error}."
        if again:
            if not self._newly(error):
                return True
            text += " Further ones are only counted, in stats(), until a record is stored again."
        elif not isinstance(error, RecordTooLarge):
            first = object()
            if self._said.setdefault((type(error), os.getpid()), first) is not first:
                return True
            text += " Later records are only counted, in stats()."
        say(f"{text} Message: {shown(message)}{where and f', logged at {where}'}")
        return True

    def _newly(self, error: BaseException | None) -> bool:
        """Whether this is not the error that was said last, or a record was stored since."""
        now = type(error), getattr(error, "errno", None), self._reopened, end_of(self.wal)
        # Atomic without a lock, as in ``count``.
        before, self._state = self._state, now
        return before != now

    # -- the rest

    def flush(self) -> None:
        """Make everything that was stored durable. On a closed log, and in a forked child, it does nothing."""
        if os.getpid() == self._pid and not (self.wal.closed and self._given_up is None):
            if self._waiting:
                self._store_waiting()
            if self._inherited:
                return
            try:
                self.wal.commit()
            except (WalUnlinked, PersistError, WalClosed) as error:
                if is_inside(self.wal):  # the body of a batch on it
                    raise
                try:
                    self._open_anew()
                    self.wal.commit()
                except Exception as final:
                    self.said(final, f"flush() after {type(error).__name__}")  # logging.shutdown() passes over an OSError
                    raise

    def close(self) -> None:
        """Commit and close. In a forked child it only lets go of the handle. Idempotent."""
        if self._keeper is not None and os.getpid() == self._pid:
            self._keeper.stop()
        if os.getpid() == self._pid and not self.wal.closed:
            if self._waiting:
                self._store_waiting()
            if not self._inherited:
                self._save_last()
        with contextlib.suppress(WalUnlinked):  # nothing is lost: its file has another name, or it has nothing to store again
            self.wal.close()
        self._given_up = None
        if os.getpid() == self._pid:
            self._target.close()
        if self._waiting:
            self._store_waiting()  # counts and reports what came too late

    def _save_last(self) -> None:
        """Before the end: store again what is in a file without a name only, and notice that the file was shortened."""
        wal = self.wal
        if wal.closed or is_inside(wal):
            return
        unusable, first = is_unusable(wal), nameless_from(wal)
        if not unusable and (first is None or first >= wal.next_seq):
            return
        try:
            self._open_anew()
        except (PmwalError, OSError) as error:
            self.count(error)
            first, why = (seen_to(wal), "can take no more") if first is None else (first, "was removed")
            self._lost += end_of(wal) - first
            say(f"{self.path}: its file {why}, and {end_of(wal) - first} records could not be stored again: {error}")

    def stats(self) -> SinkStats:
        """The counters. A forked child without a log of its own has written nothing; its errors are added to its parent's."""
        written = overwritten = 0
        if os.getpid() == self._pid and not self._inherited:
            wal = self.wal.stats()
            written, overwritten = self._earlier[0] + wal.appends, self._earlier[1] + wal.overwritten
        return SinkStats(
            written,
            overwritten,
            self._dropped,
            self._errors,
            self._queued,
            self._cut,
            dict(self._reasons),
            self._reopened,
            self._lost,
        )
