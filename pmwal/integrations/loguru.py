"""A sink for loguru.

.. code-block:: python

    from loguru import logger
    from pmwal.integrations.loguru import Sink

    logger.add(Sink("app.wal"), format="{level} {message}")
    logger.add(Sink("app.wal", structured=True), format="{message}")
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any

from pmwal.logs.encoder import Encode, Interrupted, encoder
from pmwal.logs.exceptions import structure
from pmwal.logs.fields import MAIN_PROCESS, current_task, stamp, text_of
from pmwal.logs.options import CorruptPolicy, SinkFullPolicy, SinkOptions
from pmwal.logs.sharing import SinkOwner
from pmwal.opening.options import Commit
from pmwal.storage.medium import MediumName


class Sink(SinkOwner):
    """A sink for ``logger.add``; the arguments are those of ``pmwal.LogHandler``.

    A record is the message as loguru formatted it (JSON with ``serialize=True``), in UTF-8 without the newline at the end; its
    ``kind`` is the number of the level. With ``structured=True`` it is JSON with the fields of ``LogHandler(structured=True)``
    instead: ``extra`` is what ``bind``, ``contextualize`` and the call itself gave, and values of local variables are not stored,
    whatever ``diagnose`` says. Use ``format="{message}"`` then, to spare loguru the work.

    Errors are raised to loguru, which reports them and continues, unless ``catch=False`` was given to ``add``. loguru closes the
    log at ``logger.remove()`` and at exit.

    >>> from pmwal.integrations.loguru import Sink
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
        commit: Commit = 1.0,
        sync_level: int | str = logging.CRITICAL,
        on_full: SinkFullPolicy = "overwrite",
        consumers: Iterable[str] = (),
        structured: bool = False,
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
        self._encode: Encode | None = encoder(on_cut=self._sink.count_cut) if structured else None

    def write(self, message: str) -> None:
        """Store a message of loguru, or a line of text with level 0. Raises what ``pmwal.Wal.append`` raises."""
        record: Any = getattr(message, "record", None)
        interrupt: BaseException | None = None
        try:
            if self._encode is None or record is None:
                line = message.removesuffix("\n").encode("utf-8", "backslashreplace")
            else:
                try:
                    line = self._encode(_document(record))
                except Interrupted as interrupted:
                    line, interrupt = interrupted.line, interrupted.__cause__
            self._sink.store(line, 0 if record is None else record["level"].no, self._sync_level)
        except Exception as error:
            self._sink.count(error)
            if interrupt is None:
                raise
        if interrupt is not None:
            raise interrupt

    def commit(self) -> None:
        """Make everything that was logged durable. Raises ``PersistError``."""
        self._sink.flush()

    def stop(self) -> None:
        """Commit and close the log. Idempotent."""
        self._share.release()


def _document(record: dict[str, Any]) -> dict[str, Any]:
    """A record of loguru with the fields of ``LogHandler(structured=True)``."""
    document: dict[str, Any] = {
        "time": stamp(record["time"].timestamp()),
        "level": record["level"].name,
        "logger": record["name"],
        "message": record["message"],
        "module": record["module"],
        "function": record["function"],
        "line": record["line"],
        "process": record["process"].id,
        "thread": record["thread"].name,
    }
    if record["process"].name not in MAIN_PROCESS:
        document["process_name"] = record["process"].name
    task = current_task()
    if task is not None:
        document["task"] = task
    if record["exception"] is not None and record["exception"].value is not None:
        document["exc"] = text_of(record["exception"])
        document["exception"] = structure(record["exception"].value, record["exception"].traceback)
    if record["extra"]:
        document["extra"] = record["extra"]
    return document
