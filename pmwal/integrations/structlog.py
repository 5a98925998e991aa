"""A logger factory for structlog.

.. code-block:: python

    import structlog
    from pmwal.integrations.structlog import LoggerFactory

    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
        logger_factory=LoggerFactory("app.wal"),
    )
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import weakref
from typing import Any, NoReturn, Self

from pmwal.logs.options import SinkOptions
from pmwal.logs.sharing import SinkOwner, refuse_pickle


class LoggerFactory(SinkOwner):
    """A factory for ``structlog.configure(logger_factory=...)``; the arguments are those of ``pmwal.LogHandler``.

    A record is the text (in UTF-8) or the bytes that the last processor returned; its ``kind`` is the number of the method's level
    in ``logging``. Errors of the log are counted and printed to stderr (unless ``logging.raiseExceptions`` is false), and not
    raised; of a closed or full log only the first one is printed. The log is closed when the factory and its loggers are gone, and
    at exit. ``copy.deepcopy`` gives the same factory and loggers.

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
        commit: str | float = 1.0,
        sync_level: int | str = logging.CRITICAL,
        on_full: str = "overwrite",
        on_corrupt: str = "set-aside",
        medium: str = "auto",
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
            on_corrupt=on_corrupt,
            medium=medium,
            max_files=max_files,
            keep=keep,
            max_total=max_total,
            file_mode=file_mode,
        )
        self._join(path, directory, options)
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
            self._sink.count(error)
            if self._sink.said(error, message):
                return
            if logging.raiseExceptions and sys.stderr is not None:
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

    def debug(self, message: str | bytes) -> None:
        """Store a message of level DEBUG."""
        self._write(message, logging.DEBUG)

    def info(self, message: str | bytes) -> None:
        """Store a message of level INFO."""
        self._write(message, logging.INFO)

    def warning(self, message: str | bytes) -> None:
        """Store a message of level WARNING."""
        self._write(message, logging.WARNING)

    def error(self, message: str | bytes) -> None:
        """Store a message of level ERROR."""
        self._write(message, logging.ERROR)

    def critical(self, message: str | bytes) -> None:
        """Store a message of level CRITICAL."""
        self._write(message, logging.CRITICAL)

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
