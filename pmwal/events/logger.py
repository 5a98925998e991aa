"""Storing events: ``Logger`` makes calls of formats, and each call is one record.

Invariants
----------
- Before an event is stored, a copy of its definition is in the log or goes into the same batch. Definitions are retained records
  (``pmwal/writing/retained.py``): a copy stays in the log as long as an event needs it.
- Definitions that an earlier process left in the log are retained too: the first logger of a handle searches for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from pmwal.events.arguments import pack
from pmwal.events.definition import DEFINITION_KIND, EVENT_KIND, NUMBER_SIZE, Definition
from pmwal.native import native
from pmwal.records import Record
from pmwal.writing.internals import append_needing, retain, retain_found
from pmwal.writing.retained import RetainedRecord
from pmwal.writing.wal import Wal


class Logger:
    """Makes calls that store events in a log opened for writing. ``name`` goes with each event, like the name of a logger.

    Any number of loggers may share a log. The first one reads the log once, to find the definitions of events in it.

    >>> import pmwal
    >>> from pmwal import events
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     fill = events.Logger(wal, name="orders").event("order {id} filled {qty} @ {px}")
    ...     seq = fill(17, qty=5, px=1.25)
    ...     [event.text for event in events.read(wal)]
    ['order 17 filled 5 @ 1.25']
    """

    def __init__(self, wal: Wal, *, name: str = "") -> None:
        if not isinstance(wal, Wal):
            raise TypeError(f"events are stored in a log opened for writing, a pmwal.Wal, not in a {type(wal).__name__}")
        self._wal = wal
        self._name = name
        retain_found(wal, _definitions, "definitions of events")

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
        wal = self._wal
        definition = Definition(format, int(level), self._name)
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
