"""A logger factory for structlog.

.. code-block:: python

    import structlog
    from pmwal.integrations.structlog import LoggerFactory

    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
        logger_factory=LoggerFactory("app.wal"),
    )

Without a renderer as the last processor, the adapter stores the event as JSON itself.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Iterable
from typing import Any, NoReturn, Self

from pmwal.logs.encoder import Interrupted, encoder
from pmwal.logs.exceptions import ExcInfo, Text, structure
from pmwal.logs.fields import context_of_structlog, current_task, stamp, text_of
from pmwal.logs.options import CorruptPolicy, SinkFullPolicy, SinkOptions
from pmwal.logs.sharing import SinkOwner, refuse_pickle
from pmwal.opening.options import Commit
from pmwal.storage.medium import MediumName

_CALLSITE = {
    "module": ("module", str),
    "func_name": ("function", str),
    "lineno": ("line", int),
    "process": ("process", int),
    "process_name": ("process_name", str),
    "thread_name": ("thread", str),
}
"""What ``structlog.processors.CallsiteParameterAdder`` adds -> the field, and its type: a value of another is the program's own."""


_TEXTS = {"exception": "exc", "stack": "stack"}
"""What structlog's processors make of ``exc_info`` and ``stack_info`` -> the field."""


class LoggerFactory(SinkOwner):
    """A factory for ``structlog.configure(logger_factory=...)``; the arguments are those of ``pmwal.LogHandler``.

    A record is the text (in UTF-8) or the bytes that the last processor returned; its ``kind`` is the number of the method's level
    in ``logging``. If that processor is no renderer, and so returned the event as a dict, the record is JSON with the fields of
    ``LogHandler(structured=True)``: what ``contextvars`` has bound is in it, exceptions are there as text and as data, and all that
    has no field of its own is in ``extra``.

    Errors of the log are counted and printed to stderr (unless ``logging.raiseExceptions`` is false), and not raised; of a closed
    or full log only the first one is printed. The log is closed when the factory and its loggers are gone, and at exit.
    ``copy.deepcopy`` gives the same factory and loggers.

    >>> from pmwal.integrations.structlog import LoggerFactory
    >>> factory = LoggerFactory(path, size="1MiB")
    >>> factory().warning('{"event": "late"}')
    >>> [(record.kind, record.data) for record in factory.wal]
    [(30, b'{"event": "late"}')]
    >>> factory.close()
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
        on_corrupt: CorruptPolicy = "set-aside",
        medium: MediumName = "auto",
        max_files: int = 64,
        keep: float | str | None = None,
        max_total: int | str | None = None,
        file_mode: int | str = 0o600,
    ) -> None:
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
        self._encode = encoder(on_cut=self._sink.count_cut, open_fields=("extra", "exception"))
        weakref.finalize(self, self._share.release)

    def __call__(self, *args: object) -> WalLogger:
        """A new logger. structlog passes the arguments of ``get_logger``; the first one is its ``name``."""
        return WalLogger(self, str(args[0]) if args else None)

    def write(self, message: str | bytes, level: int) -> None:
        """Store one rendered message. Errors are counted and printed."""
        try:
            line = message.encode("utf-8", "backslashreplace") if isinstance(message, str) else message
            self._sink.store(line, level, self._sync_level)
        except Exception as error:
            self._report(error, message)

    def write_event(self, event: dict[str, Any], level: int, name: str | None) -> None:
        """Store an event that no processor has rendered. Errors are counted and printed."""
        try:
            line = self._encode(_document(event, level, name))
        except Exception as error:
            self._report(error, event.get("event", ""))
            return
        except Interrupted as interrupted:
            self.write(interrupted.line, level)
            cause = interrupted.__cause__
            assert cause is not None
            raise cause from cause.__cause__
        self.write(line, level)

    def _report(self, error: Exception, message: object) -> None:
        self._sink.count(error)
        if not self._sink.said(error, message) and logging.raiseExceptions and sys.stderr is not None:
            print("--- Logging error ---", *traceback.format_exception(error), file=sys.stderr, sep="\n")

    def flush(self) -> None:
        """Make everything that was logged durable. Raises ``PersistError``."""
        self._sink.flush()

    def close(self) -> None:
        """Commit and close the log. Idempotent."""
        self._share.release()


class WalLogger:
    """The logger that structlog wraps, with a method for each level."""

    def __init__(self, factory: LoggerFactory, name: str | None) -> None:
        self._factory = factory  # keeps the log open
        self._write = factory.write
        self.name = name

    def debug(self, message: str | bytes | None = None, /, **event: Any) -> None:
        """Store a message, or an event, of level DEBUG."""
        if event or message is None:
            self._write_event(message, event, logging.DEBUG)
        else:
            self._write(message, logging.DEBUG)

    def info(self, message: str | bytes | None = None, /, **event: Any) -> None:
        """Store a message, or an event, of level INFO."""
        if event or message is None:
            self._write_event(message, event, logging.INFO)
        else:
            self._write(message, logging.INFO)

    def warning(self, message: str | bytes | None = None, /, **event: Any) -> None:
        """Store a message, or an event, of level WARNING."""
        if event or message is None:
            self._write_event(message, event, logging.WARNING)
        else:
            self._write(message, logging.WARNING)

    def error(self, message: str | bytes | None = None, /, **event: Any) -> None:
        """Store a message, or an event, of level ERROR."""
        if event or message is None:
            self._write_event(message, event, logging.ERROR)
        else:
            self._write(message, logging.ERROR)

    def critical(self, message: str | bytes | None = None, /, **event: Any) -> None:
        """Store a message, or an event, of level CRITICAL."""
        if event or message is None:
            self._write_event(message, event, logging.CRITICAL)
        else:
            self._write(message, logging.CRITICAL)

    def _write_event(self, message: str | bytes | None, event: dict[str, Any], level: int) -> None:
        self._factory.write_event(event if message is None else {"event": message} | event, level, self.name)

    msg = log = info
    warn = warning
    err = exception = failure = error
    fatal = critical

    def __copy__(self) -> Self:
        """Itself: a logger has no state of its own."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself, as ``copy.copy`` does: structlog copies bound loggers with the logger that they wrap."""
        return self

    def __reduce__(self) -> NoReturn:
        refuse_pickle(self)


def _document(event: dict[str, Any], level: int, name: str | None) -> dict[str, Any]:
    """An event of structlog with the fields of ``LogHandler(structured=True)``. The event is changed."""
    message = event.pop("event", "")
    document: dict[str, Any] = {
        "time": event.pop("timestamp") if type(event.get("timestamp")) is str else stamp(time.time()),  # from TimeStamper
        "level": event.pop("level").upper() if type(event.get("level")) is str else logging.getLevelName(level),
        "logger": event.pop("logger") if type(event.get("logger")) is str else name or "",
        "message": message if type(message) is str else Text(message),
    }
    found = {field: event.pop(key) for key, (field, kind) in _CALLSITE.items() if type(event.get(key)) is kind}
    document.update({"process": os.getpid(), "thread": threading.current_thread().name} | found)
    task = current_task()
    if task is not None:
        document["task"] = task
    exc_info = _exc_info(event.pop("exc_info", None))
    if exc_info is not None and isinstance(exc_info[1], BaseException):
        document["exc"] = text_of(exc_info)
        document["exception"] = structure(exc_info[1], exc_info[2])
    if type(event.get("exception")) is list:  # from dict_tracebacks
        document["exception"] = event.pop("exception")
    for key, field in _TEXTS.items():
        if type(event.get(key)) is str:
            document[field] = event.pop(key)
    extra = (context_of_structlog() or {}) | event
    if extra:
        document["extra"] = extra
    return document


def _exc_info(value: object) -> ExcInfo | None:
    """What structlog takes as ``exc_info``: an exception, what ``sys.exc_info`` returns, or something true for the one at hand."""
    if isinstance(value, BaseException):
        return type(value), value, value.__traceback__
    if isinstance(value, tuple):
        return value if len(value) == 3 else None
    return sys.exc_info() if value else None
