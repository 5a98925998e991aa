"""Storing events: ``Logger`` makes calls of formats, and each call is one record.

Invariants
----------
- Before an event is stored, a copy of its definition is in the log or goes into the same batch. Definitions are retained records
  (``pmwal/writing/retained.py``): a copy stays in the log as long as an event needs it.
- Definitions that an earlier process left in the log are retained too: the first logger of a handle searches for them.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

from pmwal.errors import ForkedWal, PersistError, WalClosed, WalUnlinked
from pmwal.events.arguments import pack
from pmwal.events.definition import DEFINITION_KIND, EVENT_KIND, NUMBER_SIZE, Definition
from pmwal.logs.options import CorruptPolicy, SinkFullPolicy, SinkOptions
from pmwal.logs.sharing import Share, share
from pmwal.logs.sink import Sink
from pmwal.native import native
from pmwal.opening.options import Commit
from pmwal.records import Record
from pmwal.storage.medium import MediumName
from pmwal.writing.internals import append_needing, retain, retain_found
from pmwal.writing.retained import RetainedRecord
from pmwal.writing.wal import Wal

_CALLED = "definitions of events"
_ANOTHER_LOG = (ForkedWal, WalClosed, WalUnlinked, PersistError)  # after these a sink may have another log


class Logger:
    """Makes calls that store events in a log opened for writing. ``name`` goes with each event, like the name of a logger.

    Any number of loggers may share a log. The first one reads the log once, to find the definitions of events in it.

    With ``directory`` instead of a log it logs into a log set, as ``pmwal.LogHandler(directory=...)`` does and with its options:
    each process has a log of its own there, and in a forked child the first event opens one. Close such a logger when no more
    events come; dropping it and its calls closes it, too.

    >>> import pmwal
    >>> from pmwal import events
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     fill = events.Logger(wal, name="orders").event("order {id} filled {qty} @ {px}")
    ...     seq = fill(17, qty=5, px=1.25)
    ...     [event.text for event in events.read(wal)]
    ['order 17 filled 5 @ 1.25']
    """

    def __init__(
        self,
        wal: Wal | None = None,
        *,
        name: str = "",
        directory: str | os.PathLike[str] | None = None,
        size: int | str | None = None,
        commit: Commit = 1.0,
        on_full: SinkFullPolicy = "overwrite",
        consumers: Iterable[str] = (),
        on_corrupt: CorruptPolicy = "set-aside",
        medium: MediumName = "auto",
        max_files: int = 64,
        keep: float | str | None = None,
        max_total: int | str | None = None,
        file_mode: int | str = 0o600,
    ) -> None:
        self._name = name
        self._share: Share | None = None
        if directory is None:
            if not isinstance(wal, Wal):
                raise TypeError(f"events are stored in a log opened for writing, a pmwal.Wal, not in a {type(wal).__name__}")
            self._wal = wal
            retain_found(wal, _definitions, _CALLED)
        else:
            if wal is not None:
                raise TypeError("give either a log or a directory, in which each process gets a log of its own")
            options = SinkOptions(
                size=size,
                commit=commit,
                on_full=on_full,
                consumers=consumers,
                on_corrupt=on_corrupt,
                medium=medium,
                max_files=max_files,
                keep=keep,
                max_total=max_total,
                file_mode=file_mode,
            )
            self._share = share(None, directory, options)
            weakref.finalize(self, self._share.release)

    def event(self, format: str, *, level: int = logging.INFO) -> Callable[..., int]:
        """A call that stores one event and returns its sequence number.

        ``format`` is like that of ``str.format``, with fields that are names, positions or ``{}``; ``ValueError`` for attributes,
        items, nested fields and widths of more than three digits. The call takes one argument for each field, by position, or by
        name where the field has one: int, float, bool, str, bytes, None, datetime, subclasses of these, and integers of numpy (any
        object with ``__index__``). It raises ``TypeError``, naming the event, for other arguments, and what ``Wal.append`` raises;
        it commits as the log was opened to. ``event`` itself raises ``WalFull`` when the definitions would fill the ring.

        >>> import pmwal
        >>> from pmwal import events
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     started = events.Logger(wal).event("{} started", level=10)
        ...     started()
        Traceback (most recent call last):
        TypeError: event '{} started' misses 0
        """
        if not isinstance(format, str) or isinstance(level, bool) or not isinstance(level, int):
            raise TypeError("the format of an event is a str, its level an int")
        definition = Definition(format, int(level), self._name)
        return _call(self._wal, definition) if self._share is None else _SlotCall(self, self._share.sink, definition)

    @property
    def wal(self) -> Wal:
        """The open log, to read the events; in a forked child it is the parent's until the first event."""
        return self._wal if self._share is None else self._share.sink.wal

    def close(self) -> None:
        """End a logger of a directory: commit, and close the log with the last one that logs there. Idempotent.

        A log that was given to the logger is not closed.
        """
        if self._share is not None:
            self._share.release()


def _call(wal: Wal, definition: Definition) -> Callable[..., int]:
    """A call that stores this event in this log."""
    retained = retain(wal, DEFINITION_KIND, definition.payload)
    emitter = Emitter(wal, definition, retained)
    if native is None or not isinstance(wal, native.Handle):
        return emitter
    positional = definition.positional
    return native.Emitter(
        wal,
        retained,
        emitter,
        definition.number,
        EVENT_KIND,
        positional,
        definition.parameters[positional:],
        datetime,
        UTC,
    )


class Emitter:
    """One event as a call, in Python."""

    def __init__(self, wal: Wal, definition: Definition, retained: RetainedRecord) -> None:
        self._wal = wal
        self._definition = definition
        self._retained = retained
        self._number = definition.number.to_bytes(NUMBER_SIZE, "little")

    def __call__(self, /, *args: object, **keywords: object) -> int:
        definition = self._definition
        parts = [self._number]
        for name, value in zip(definition.parameters, definition.bind(args, keywords), strict=True):
            try:
                parts.append(pack(value))
            except TypeError:
                raise TypeError(
                    f"{definition}: {name} is of type {type(value).__name__}; an event stores int, float, bool, str, bytes, None "
                    "and datetime, so convert it first, for example with str()"
                ) from None
        return append_needing(self._wal, self._retained, b"".join(parts), EVENT_KIND)

    def __repr__(self) -> str:
        return f"<pmwal.events call {self._definition.format!r}>"


class _SlotCall:
    """One event as a call that stores in the log that its process has in a directory."""

    def __init__(self, logger: Logger, sink: Sink, definition: Definition) -> None:
        self._logger = logger  # which releases the log when it is gone
        self._sink = sink
        self._definition = definition
        self._bind(sink.wal)

    def _bind(self, wal: Wal) -> Callable[..., int]:
        """Make the call for this log, or for the one that has taken its place."""
        while True:
            try:
                retain_found(wal, _definitions, _CALLED)
                call = _call(wal, self._definition)
            except _ANOTHER_LOG as error:
                wal = self._sink.renewed(wal, error)
            else:
                self._bound = wal, call
                return call

    def __call__(self, /, *args: object, **keywords: object) -> int:
        wal, call = self._bound
        try:
            return call(*args, **keywords)
        except _ANOTHER_LOG as error:
            return self._bind(self._sink.renewed(wal, error))(*args, **keywords)

    def __repr__(self) -> str:
        return repr(self._bound[1])


def _definitions(records: Iterator[Record]) -> list[RetainedRecord]:
    """The definitions among these records, those with the latest events first."""
    first_used: dict[bytes, int] = {}
    last_used: dict[bytes, int] = {}
    newest: dict[bytes, RetainedRecord] = {}
    for record in records:
        if record.kind == EVENT_KIND:
            number = record.data[:NUMBER_SIZE]
            first_used.setdefault(number, record.seq)
            last_used[number] = record.seq
        elif record.kind == DEFINITION_KIND:
            definition = Definition.decode(record.data)
            if definition is not None:
                number = definition.number.to_bytes(NUMBER_SIZE, "little")
                newest.setdefault(number, RetainedRecord(DEFINITION_KIND, record.data)).seq = record.seq
                first_used.setdefault(number, record.seq)
    for number, retained in newest.items():
        retained.first_used = first_used[number]
        retained.last_used = last_used.get(number, 0)
    return sorted(newest.values(), key=lambda retained: retained.last_used, reverse=True)
