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

from pmwal.logs.sink import Sink as _Sink
from pmwal.logs.sink import SinkOptions, SinkOwner


class Sink(SinkOwner):
    """What ``logger.add`` takes; the arguments are those of ``pmwal.LogHandler``.

    A record is what loguru formatted (JSON with ``serialize=True``), in UTF-8 without the newline at its end; its ``kind`` is the
    level's number. Errors are raised to loguru, which reports them and goes on, unless it was told ``catch=False``. loguru closes
    the log at ``logger.remove()`` and at exit.

    >>> sink = Sink(path, size="1MiB")
    >>> sink.write("a line\\n")
    >>> sink.stats().written
    1
    >>> sink.stop()
    """

    # loguru looks for ``write`` and ``stop``. It would call a ``flush`` after every line: the barrier is called ``commit`` here.

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        size: int | str | None = None,
        commit: str | float = 1.0,
        sync_level: int | str = logging.CRITICAL,
        on_full: str = "overwrite",
        medium: str = "auto",
    ) -> None:
        options = SinkOptions(size=size, commit=commit, sync_level=sync_level, on_full=on_full, medium=medium)
        self._sink = _Sink(path, options)

    def write(self, message: str) -> None:
        """Store one message of loguru, or a line of text as level 0. Raises as ``pmwal.Wal.append`` does."""
        record: Any = getattr(message, "record", None)
        try:
            line = message.removesuffix("\n").encode("utf-8", "backslashreplace")
            self._sink.store(line, 0 if record is None else record["level"].no)
        except Exception as error:
            self._sink.count(error)
            raise

    def commit(self) -> None:
        """The durability barrier: what was logged before is durable when this returns. Raises ``PersistError``."""
        self._sink.flush()

    def stop(self) -> None:
        """Commit and close the log. Idempotent."""
        self._sink.close()
