"""A sink for loguru.

.. code-block:: python

    from loguru import logger
    from pmwal.integrations.loguru import Sink

    logger.add(Sink("app.wal"), format="{level} {message}")
"""

from __future__ import annotations

import logging
import os
from typing import Any

from pmwal.logs.options import SinkOptions
from pmwal.logs.sharing import SinkOwner


class Sink(SinkOwner):
    """A sink for ``logger.add``; the arguments are those of ``pmwal.LogHandler``.

    A record is the message as loguru formatted it (JSON with ``serialize=True``), in UTF-8 without the newline at the end; its
    ``kind`` is the number of the level. Errors are raised to loguru, which reports them and continues, unless ``catch=False`` was
    given to ``add``. loguru closes the log at ``logger.remove()`` and at exit.

    >>> sink = Sink(path, size="1MiB")
    >>> sink.write("a line\\n")
    >>> sink.stats().written
    1
    >>> sink.stop()
    """

    # loguru calls ``write`` and ``stop``. It would call ``flush`` after every line, so that method is called ``commit`` here.

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

    def write(self, message: str) -> None:
        """Store a message of loguru, or a line of text with level 0. Raises what ``pmwal.Wal.append`` raises."""
        record: Any = getattr(message, "record", None)
        try:
            line = message.removesuffix("\n").encode("utf-8", "backslashreplace")
            self._sink.store(line, 0 if record is None else record["level"].no, self._sync_level)
        except Exception as error:
            self._sink.count(error)
            raise

    def commit(self) -> None:
        """Make everything that was logged durable. Raises ``PersistError``."""
        self._sink.flush()

    def stop(self) -> None:
        """Commit and close the log. Idempotent."""
        self._share.release()
