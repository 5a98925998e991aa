"""``LogHandler``: the standard library's ``logging`` into a log."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from typing import Any

from pmwal.logs.encoder import Encode, encoder
from pmwal.logs.sink import Sink, SinkOptions, SinkOwner

_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
"""Attributes that a ``LogRecord`` has by itself; all others came with ``extra=`` or from a filter."""
_PLAIN = logging.Formatter()


class LogHandler(SinkOwner, logging.Handler):
    """A ``logging`` handler that stores each record in a log, without waiting for a disk. All arguments are plain, for dictConfig.

    - ``path``: the log; created, or recovered and continued. ``{pid}`` in it becomes the process id: a log has one writer, so each
      process needs one of its own. ``size``: of the ring when it is created, 64 MiB when None.
    - ``commit``: whatever it is, a record survives the death of the process, SIGKILL too, as soon as the logging call returns, as
      with a ``FileHandler``. A number of seconds bounds what a power cut can take, and how late readers in other processes see a
      record, with a thread in the background. The default is 1: what people expect of a log that they also want to watch, at the
      price of waking that thread once a second at most. "manual" has no thread and leaves both to ``sync_level``, ``flush()`` and
      ``close()``: the least latency. "each" makes every call return durable: on a disk it waits for the disk.
    - ``sync_level``: records of this level (number or name) and above are durable when the call returns.
    - ``on_full``: "overwrite" the oldest records, or "raise": keep the old ones, and drop and report the new one.
    - ``structured``: store a line of JSON with ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``, and, where there are
      any, ``exc``, ``stack`` and ``extra``, by orjson or msgspec when one is installed. Otherwise the formatted text is stored.
      Both are UTF-8 without a newline at the end; the record's ``kind`` is the level's number.
    - ``medium``: as for ``pmwal.open``, which says what else can be raised here, and only here.

    A logging call raises nothing: what goes wrong is counted and goes to ``handleError``. That includes the use of a handler in a
    forked child of the process that opened it. The child opens a handler of its own after the fork.

    There is no lock around ``emit``: the log orders the records, and threads share commits. So a formatter or filter that keeps
    state of its own must protect it itself.

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
        path: str | os.PathLike[str],
        *,
        size: int | str | None = None,
        commit: str | float = 1.0,
        sync_level: int | str = logging.CRITICAL,
        on_full: str = "overwrite",
        structured: bool = False,
        medium: str = "auto",
        level: int | str = logging.NOTSET,
    ) -> None:
        # The log first: a handler that could not open it must not be left in logging's list of handlers to shut down.
        options = SinkOptions(size=size, commit=commit, sync_level=sync_level, on_full=on_full, medium=medium)
        self._sink = Sink(path, options)
        try:
            super().__init__(level)
            self._encode: Encode | None = encoder() if structured else None
        except BaseException:
            self._sink.close()
            raise

    def createLock(self) -> None:
        """No lock: see the class."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Filter and emit, as ``logging.Handler.handle`` does, without a lock."""
        passed: Any = self.filter(record)
        if isinstance(passed, logging.LogRecord):  # a filter's replacement (Python 3.12)
            record = passed
        if passed:
            self.emit(record)
        return passed  # type: ignore[no-any-return]

    def emit(self, record: logging.LogRecord) -> None:
        """Store one record. Never raises an ``Exception``; failures go to ``handleError``."""
        try:
            encode = self._encode
            line = self.format(record).encode("utf-8", "backslashreplace") if encode is None else encode(self._document(record))
            self._sink.store(line, record.levelno)
        except RecursionError as error:
            self._sink.count(error)  # no stack is left to report it on, and the program that ran out of it will say so itself
        except Exception as error:
            self._sink.count(error)
            self.handleError(record)

    def _document(self, record: logging.LogRecord) -> dict[str, Any]:
        """A record as a dict of what JSON can hold, as far as its extra fields can."""
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info and not record.exc_text:
            record.exc_text = (self.formatter or _PLAIN).formatException(record.exc_info)
        if record.exc_text:
            document["exc"] = record.exc_text
        if record.stack_info:
            document["stack"] = record.stack_info
        extra = {name: value for name, value in vars(record).items() if name not in _USUAL}
        if extra:
            document["extra"] = extra
        return document

    def flush(self) -> None:
        """The durability barrier: what was logged before is durable when this returns. Raises ``PersistError``.

        On a closed handler, and in a forked child, there is nothing to do.

        >>> import logging, pmwal
        >>> handler = pmwal.LogHandler(path, size="1MiB")
        >>> handler.handle(logging.makeLogRecord({"levelno": logging.INFO, "msg": "paid"}))
        True
        >>> handler.flush()
        >>> handler.wal.committed_seq
        1
        >>> handler.close()
        """
        self._sink.flush()

    def close(self) -> None:
        """Commit, close the log, and leave logging's list of handlers. Idempotent; ``logging.shutdown`` calls it at exit."""
        try:
            self._sink.close()
        finally:
            super().close()

    def __repr__(self) -> str:
        return f"<pmwal.LogHandler {self._sink.path!r} ({logging.getLevelName(self.level)})>"
