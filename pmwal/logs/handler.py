"""``LogHandler``: a handler for the standard library's ``logging``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pmwal.logs.encoder import Encode, Interrupted, encoder
from pmwal.logs.fields import Fields
from pmwal.logs.options import CorruptPolicy, SinkFullPolicy, SinkOptions
from pmwal.logs.reports import say
from pmwal.logs.sharing import SinkOwner
from pmwal.opening.options import Commit
from pmwal.storage.medium import MediumName

_STACK_TO_REPORT = 150
"""Frames that a report of an error may take."""


class LogHandler(SinkOwner, logging.Handler):
    """A ``logging`` handler that stores each record in a log and does not wait for a disk. All arguments suit ``dictConfig``.

    - ``path``: the log, created or else recovered and continued. ``{pid}`` in it becomes the process id: a log has one writer, so
      each process needs a log of its own. ``size``: of the ring at creation; None means 64 MiB. A log that exists with another size
      keeps it, with a warning.
    - ``directory`` instead of ``path``: a log set, in which each process takes a log of its own, a slot: the first of ``00.wal``,
      ``01.wal``, ... that no process has, else the next one, up to ``max_files``. A slot keeps the records of the processes that
      had it before. All handlers and adapters of a process that log into one directory share its slot, and the options of the
      first. ``pmwal.LogSet`` reads the directory as one log.
    - ``keep``: how long records are kept, as seconds or text like "7 days". Every minute or sooner the process truncates older ones
      of its log, and in a directory removes slots that no process has and that have nothing newer. ``max_total``: how many bytes
      the slots of a directory may take together, as an int or text like "2GiB": the oldest that no process has are removed.
    - ``commit``: with any value a record survives the death of the process, even by SIGKILL, as soon as the logging call returns,
      as with a ``FileHandler``. A number of seconds also bounds how much a power cut can lose, and how late readers in other
      processes see a record; a background thread commits. The default of 1 suits a log that is also watched, and wakes that thread
      at most once a second. "manual" has the lowest latency: no thread, and ``sync_level``, ``flush()`` and ``close()`` commit.
      "each" makes every call return durable: on a disk it waits for the disk.
    - ``sync_level``: records of this level (number or name) and above are durable when the call returns.
    - ``on_full``: "overwrite" the oldest records; "raise": keep them, and drop the new one; or "consumed": free what all named
      consumers of the log have acknowledged, and drop the new one if that is nothing. Of those that are dropped one after another
      the first is reported, and all are counted. ``consumers``: names for whom "consumed" keeps records from the start, also before
      each of them has begun, as ``["archive"]`` for ``pmwal archive``. No logging call waits for a consumer, and ``keep`` and
      ``max_total`` remove records for their age whether they were consumed or not.
    - ``structured``: store a line of JSON with ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``, ``module``,
      ``function``, ``line``, ``process``, ``thread`` and, if present, ``process_name`` (not of the main process), ``task``, ``exc``
      and ``exception`` (as text and as data), ``stack``, and ``extra`` with what ``structlog.contextvars`` has bound, encoded by
      orjson or msgspec if one is installed. Otherwise the formatted text is stored. Both are UTF-8 without a newline at the end;
      the record's ``kind`` is the number of the level.
    - ``fmt``: which attributes of the log record a structured one has instead, up to ``thread`` above, as a format
      ("%(asctime)s %(message)s" or "{asctime} {message}") or a list of names. ``rename_fields``: field -> its name in the record.
      ``static_fields``: more fields, the same in each record. ``defaults``: fields of ``extra=`` that are beside the others rather
      than in ``extra``, each with its value for records without it.
    - ``on_corrupt``: "set-aside" renames a corrupt log to ``PATH.corrupt-TIME``, with a warning, and starts a new one, so that the
      application can start; the newest three are kept, for salvage and repair. "raise" ``CorruptWal`` instead.
    - ``medium`` and ``file_mode``: as for ``pmwal.open``, which also documents the errors that can be raised here, and only here.

    With ``directory``, or ``{pid}`` in the path, a forked child continues with a log of its own, which its first record opens. With
    any other path it has to open a handler of its own after the fork.

    A logging call raises nothing: an error is counted and passed to ``handleError``. That includes a child that finds no slot, and
    the use of a handler in a child that has no log of its own. What the program itself raises while a record is formatted, such as
    ``KeyboardInterrupt``, is no error of logging and is raised.

    Fields of ``extra`` cannot prevent that a record is stored: cycles, depth, and objects whose methods raise are cut, with a mark.
    A record that is too large for the log is stored shortened, and reported. A record that is logged while its own thread is inside
    a call on the log, by a signal handler or a ``__del__``, is stored when that call ends.

    ``copy.deepcopy`` gives the same handler.

    There is no lock around ``emit``: the log orders the records, and threads share commits. A formatter or filter with state of its
    own must protect that state.

    >>> import logging, pmwal
    >>> handler = pmwal.LogHandler(path, size="1MiB")
    >>> handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    >>> logger = logging.Logger("shop")
    >>> logger.addHandler(handler)
    >>> logger.warning("order %d is late", 7)
    >>> handler.close()
    >>> [(record.kind, record.data) for record in pmwal.open(path, "r")]
    [(30, b'WARNING order 7 is late')]
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        directory: str | os.PathLike[str] | None = None,
        size: int | str | None = None,
        commit: Commit = 1.0,
        sync_level: int | str = logging.CRITICAL,
        on_full: SinkFullPolicy = "overwrite",
        consumers: Iterable[str] = (),
        structured: bool = False,
        fmt: str | Sequence[str] | None = None,
        rename_fields: Mapping[str, str] | None = None,
        static_fields: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
        on_corrupt: CorruptPolicy = "set-aside",
        medium: MediumName = "auto",
        max_files: int = 64,
        keep: float | str | None = None,
        max_total: int | str | None = None,
        file_mode: int | str = 0o600,
        level: int | str = logging.NOTSET,
    ) -> None:
        fields = Fields(fmt, rename=rename_fields, static=static_fields, defaults=defaults)
        if not structured and any(option is not None for option in (fmt, rename_fields, static_fields, defaults)):
            raise ValueError(
                "fmt, rename_fields, static_fields and defaults are for structured=True; for text, give a logging.Formatter to "
                "setFormatter"
            )
        # The log first: if it cannot be opened, the handler must not be in logging's list of handlers to shut down.
        options = SinkOptions(
            size=size,
            commit=commit,
            sync_level=sync_level,
            on_full=on_full,
            consumers=consumers,
            on_corrupt=on_corrupt,
            medium=medium,
            max_files=max_files,
            keep=keep,
            max_total=max_total,
            file_mode=file_mode,
        )
        self._join(path, directory, options)
        try:
            super().__init__(level)
            self._fields = fields
            self._encode: Encode | None = None
            if structured:
                self._encode = encoder(on_cut=self._sink.count_cut, open_fields=fields.open_fields)
        except BaseException:
            self._share.release()
            raise

    def createLock(self) -> None:
        """Set no lock; see the class."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Filter and emit, as ``logging.Handler.handle`` does, without a lock. An exception in a filter goes to ``handleError``."""
        try:
            passed: Any = self.filter(record)
        except Exception as error:
            self._report(record, error)
            return False
        if isinstance(passed, logging.LogRecord):  # a filter's replacement (Python 3.12)
            record = passed
        if passed:
            self.emit(record)
        return passed  # type: ignore[no-any-return]

    def emit(self, record: logging.LogRecord) -> None:
        """Store one record. Never raises an ``Exception``; failures go to ``handleError``."""
        try:
            encode = self._encode
            if encode is None:
                line = self.format(record).encode("utf-8", "backslashreplace")
            else:
                line = encode(self._fields.document(record, self.formatter))
            self._sink.store(line, record.levelno or 0, self._sync_level)  # makeLogRecord may leave it None
        except Exception as error:
            self._report(record, error)
        except Interrupted as interrupted:
            try:
                self._sink.store(interrupted.line, record.levelno or 0, self._sync_level)
            except Exception as error:
                self._report(record, error)
            cause = interrupted.__cause__
            assert cause is not None
            raise cause from cause.__cause__

    def _report(self, record: logging.LogRecord, error: Exception) -> None:
        """Count the error that is handled at the moment, and pass it on."""
        self._sink.count(error)
        # At the end of the stack there is nothing left to report it with, and the program's own code will hit the limit, too.
        if not isinstance(error, RecursionError) or _has_stack():
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Report the error that is handled at the moment, as ``logging.Handler`` does.

        Errors of the log that concern one record after another take one line each: a record that was stored shortened; the first
        one that was refused by a closed log or in a forked child; and the first one that a full log refused since it last stored
        a record. ``stats()`` counts the others.
        """
        error = sys.exc_info()[1]
        if self._sink.said(error, record.msg, f"{record.pathname}:{record.lineno}"):
            return
        try:
            super().handleError(record)
        except Exception as failure:  # arguments too deep to be printed, characters that stderr cannot encode
            say(f"{type(error).__name__}, which could not be reported in full ({type(failure).__name__})")

    def flush(self) -> None:
        """Make everything that was logged durable. Raises ``PersistError``.

        On a closed handler, and in a forked child, it does nothing.

        >>> import logging, pmwal
        >>> handler = pmwal.LogHandler(path, size="1MiB")
        >>> _ = handler.handle(logging.makeLogRecord({"levelno": logging.INFO, "msg": "paid"}))
        >>> handler.flush()
        >>> handler.wal.committed_seq
        1
        >>> handler.close()
        """
        self._sink.flush()

    def close(self) -> None:
        """Commit, close the log, and leave logging's list of handlers. ``logging.shutdown`` calls it at exit. Idempotent.

        A slot of a directory is closed with the last handler that logs there.
        """
        try:
            self._share.release()
        finally:
            super().close()

    def __repr__(self) -> str:
        return f"<pmwal.LogHandler {self._sink.path!r} ({logging.getLevelName(self.level)})>"


def _has_stack() -> bool:
    """Whether enough of the stack is left to report an error."""
    depth, frame = 0, sys._getframe()
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    return depth + _STACK_TO_REPORT < sys.getrecursionlimit()
