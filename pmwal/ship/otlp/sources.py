"""What a shipper reads: a named consumer of one log, or of a set, in one form.

Invariants
----------
- ``ack`` acknowledges what was handed out, durably, and by cursor: a record that was rolled back meanwhile is noticed.
- Records that were overwritten before they were handed out are counted in ``missed``, and reading continues with the oldest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from pmwal.errors import Overrun
from pmwal.events.definition import DEFINITION_KIND
from pmwal.events.entries import Entries
from pmwal.logs.log_set import LogSet
from pmwal.logs.paths import is_pattern
from pmwal.opening import open_with
from pmwal.opening.options import Options
from pmwal.reading.reader import Reader
from pmwal.records import Lag, Record, SetRecord
from pmwal.ship.otlp.encoding import Item, LogId

LINGER = 0.2
"""Seconds for which records are collected before a request is sent that is not full."""

_PAUSE_MAX = 2.0
"""Seconds between two looks at the logs of an idle set, each of which costs time for every log."""

Place = str | os.PathLike[str]


class Source(Protocol):
    """Used by one thread."""

    @property
    def position(self) -> int:
        """The last acknowledged number; 0 for a set."""

    @property
    def missed(self) -> int:
        """Records that were overwritten before they were handed out."""

    @property
    def lag(self) -> Lag:
        """What is not acknowledged."""

    @property
    def problems(self) -> Mapping[str, Exception]:
        """Why logs of a set could not be read, by path."""

    def follow(self, *, once: bool) -> Iterator[Record]:
        """The records after the last acknowledged one. It ends when there are no more, unless ``once`` after waiting for some."""

    def pause(self, *, idle: bool) -> float:
        """Seconds to wait before the next ``follow``; ``idle``: the last one had no record."""

    def item(self, record: Record) -> Item | None:
        """What is to be sent of the record handed out last; None for one that only explains others."""

    def ack(self) -> None:
        """Acknowledge all that was handed out."""

    def close(self) -> None:
        """Let another process be this consumer."""


def source_of(log: Place | Iterable[Place], consumer: str) -> Source:
    """The consumer of a log, or of the set that a directory, a pattern or a list is."""
    if isinstance(log, str | os.PathLike):
        path = os.fspath(log)
        if not os.path.isdir(path) and not is_pattern(path):
            return OneLog(path, consumer)
    return ManyLogs(log, consumer)


def _service_of(path: str, label: str | None) -> str:
    """A log without a label is named after its file; a slot, ``00.wal``, after its directory."""
    directory, name = os.path.split(os.path.abspath(path))
    stem = name.removesuffix(".wal")
    return label or (os.path.basename(directory) if stem.isdigit() else stem)


def _item(entries: Entries, log: LogId, record: Record) -> Item | None:
    entry = entries.entry(record)
    return None if record.kind == DEFINITION_KIND and entry.event is None else Item(log, entry)


class OneLog:
    """A consumer of one log, whose writer wakes it."""

    def __init__(self, path: str, consumer: str) -> None:
        reader = open_with(path, Options("r"))
        assert isinstance(reader, Reader)
        self._reader = reader
        try:
            self._consumer = reader.consumer(consumer)
        except BaseException:
            reader.close()
            raise
        self._log = LogId(reader.uuid, _service_of(path, reader.label))
        self._entries = Entries(reader)
        self._last: Record | None = None
        self.missed = 0

    @property
    def position(self) -> int:
        return self._consumer.position

    @property
    def lag(self) -> Lag:
        return self._consumer.lag

    @property
    def problems(self) -> Mapping[str, Exception]:
        return {}  # of one log they are raised

    def follow(self, *, once: bool) -> Iterator[Record]:
        try:
            for record in self._consumer.follow(0 if once else LINGER):
                self._last = record
                yield record
            return
        except Overrun as error:
            if not error.missed:
                raise
        if self._last is None:  # else what was handed out before the gap is to be acknowledged first
            before = self._consumer.position
            self._consumer.seek("oldest")
            self.missed += self._consumer.position - before

    def pause(self, *, idle: bool) -> float:
        return 0.0

    def item(self, record: Record) -> Item | None:
        return _item(self._entries, self._log, record)

    def ack(self) -> None:
        if self._last is not None:
            self._consumer.ack(self._last.cursor, durable=True)
            self._last = None

    def close(self) -> None:
        self._consumer.close()
        self._reader.close()


class ManyLogs:
    """A consumer of a set of logs, at which it looks from time to time.

    It does not wait for logs with records that are not durable yet, as ``LogSet.follow`` does: each log is in its order, and a
    collector has the time of each record.
    """

    position = 0

    def __init__(self, places: Place | Iterable[Place], consumer: str) -> None:
        self._logs = LogSet(places)
        try:
            self._consumer = self._logs.consumer(consumer)
        except BaseException:
            self._logs.close()
            raise
        self._entries = Entries(self._logs)
        self._known: dict[str, LogId] = {}  # by uuid
        self._acknowledged: dict[str, str] = {}
        self._pause = LINGER
        self._begun = False

    @property
    def missed(self) -> int:
        return self._logs.missed

    @property
    def lag(self) -> Lag:
        return self._consumer.lag

    @property
    def problems(self) -> Mapping[str, Exception]:
        return dict(self._logs.problems)

    def follow(self, *, once: bool) -> Iterator[Record]:
        if not self._begun:
            self._begun = True
            return self._consumer.follow(timeout=0)
        # Not after the positions: a log that was removed has none any more, and as long as it is written to it has records.
        return self._logs.follow(self._consumer.cursor, timeout=0)

    def pause(self, *, idle: bool) -> float:
        self._pause = min(2 * self._pause, _PAUSE_MAX) if idle else LINGER
        return self._pause

    def item(self, record: Record) -> Item | None:
        assert isinstance(record, SetRecord)
        if record.uuid not in self._known:
            self._known[record.uuid] = LogId(record.uuid, _service_of(record.log, self._label_of(record)))
            self._entries = Entries(self._logs)  # another log may have had the path
        return _item(self._entries, self._known[record.uuid], record)

    def _label_of(self, record: SetRecord) -> str | None:
        reader = self._logs.logs.get(record.log)
        return None if reader is None or reader.uuid != record.uuid else reader.label

    def ack(self) -> None:
        cursor = self._consumer.cursor
        new = {uuid: text for uuid, text in cursor.items() if self._acknowledged.get(uuid) != text}
        if new:  # of the others each would sync its position
            self._consumer.ack(new, durable=True)
            self._acknowledged = cursor

    def close(self) -> None:
        self._consumer.close()
        self._logs.close()
