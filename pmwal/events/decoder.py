"""Reading events, each with its definition, wherever in the log that is.

Invariants
----------
- A definition is identified by its own checksum, so a wrong one cannot explain an event.
- An event without a definition is still handed out, with its arguments.
- No record is searched for definitions twice, however many events lack theirs: a definition never changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pmwal.errors import Overrun
from pmwal.events.arguments import Value, unpack
from pmwal.events.definition import DEFINITION_KIND, EVENT_KIND, NUMBER_SIZE, Definition, plain
from pmwal.reading.reader import Reader
from pmwal.records import Record

if TYPE_CHECKING:
    from pmwal.writing.wal import Wal

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Event:
    """One event: ``values`` are its arguments, ``definition`` their meaning, or None when the log does not define it.

    >>> import pmwal
    >>> from pmwal import events
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     seq = events.Logger(wal).event("{user} left", level=30)("ada")
    ...     event = next(events.read(wal))
    >>> event.text, event.arguments, event.level
    ('ada left', {'user': 'ada'}, 30)
    """

    seq: int
    time_ns: int
    number: int
    definition: Definition | None
    values: tuple[Value, ...]

    @property
    def name(self) -> str:
        """The name of the logger; empty when unknown."""
        return "" if self.definition is None else self.definition.name

    @property
    def level(self) -> int:
        """The level, as in ``logging``; 0 when unknown."""
        return 0 if self.definition is None else self.definition.level

    @property
    def format(self) -> str | None:
        """The format; None when unknown."""
        return None if self.definition is None else self.definition.format

    @property
    def arguments(self) -> dict[str, Value]:
        """The arguments by name; those without a name, or all when the definition is unknown, by position: "0", "1", ..."""
        names = map(str, range(len(self.values))) if self.definition is None else self.definition.parameters
        return dict(zip(names, self.values, strict=True))

    @property
    def text(self) -> str:
        """The format filled in; without a definition, the number and the arguments."""
        if self.definition is None:
            return f"event {self.number:016x}, which the log does not define: {', '.join(map(plain, self.values))}"
        return self.definition.text(self.values)

    @property
    def time(self) -> datetime:
        """When it was stored, in UTC, by the wall clock."""
        return _EPOCH + timedelta(microseconds=self.time_ns // 1000)


class Decoder:
    """Makes events of the records of a log: for ``follow()``, and for programs that read records anyway.

    It learns the definitions that pass through it. For an event that none of these explains it reads the log itself: the records
    before the event, then those after it.

    >>> import pmwal
    >>> from pmwal import events
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     seq = events.Logger(wal).event("{user} left")("ada")
    ...     decoder = events.Decoder(wal)
    ...     [event.text for event in map(decoder.decode, wal.follow(timeout=0)) if event is not None]
    ['ada left']
    """

    def __init__(self, source: Wal | Reader) -> None:
        self._source = source
        self._known: dict[int, Definition] = {}
        self._searched = 0  # all records up to this number were searched for definitions

    def decode(self, record: Record) -> Event | None:
        """The event in a record; None when the record is a definition or something else."""
        self._learn(record)
        if record.kind != EVENT_KIND or len(record.data) < NUMBER_SIZE:
            return None
        number = int.from_bytes(record.data[:NUMBER_SIZE], "little")
        try:
            values = unpack(record.data[NUMBER_SIZE:])
        except ValueError:
            return None
        for stop in (record.seq, None):
            if number not in self._known:
                self._search(stop)
        definition = self._known.get(number)
        if definition is not None and len(definition.parameters) != len(values):
            definition = None
        return Event(record.seq, record.time_ns, number, definition, values)

    def _learn(self, record: Record) -> None:
        if record.seq == self._searched + 1:
            self._searched = record.seq
        if record.kind == DEFINITION_KIND:
            definition = Definition.decode(record.data)
            if definition is not None:
                self._known[definition.number] = definition

    def _search(self, stop: int | None) -> None:
        """Learn the definitions before this number, or all; what is truncated meanwhile is not needed."""
        with contextlib.suppress(Overrun):
            for record in self._source.read(max(self._searched + 1, self._source.first_seq), stop):
                self._learn(record)
                self._searched = record.seq


def read(source: Wal | Reader, start: int | str | None = None, stop: int | None = None) -> Iterator[Event]:
    """The events among the records of ``source.read(start, stop)``. Raises what that raises.

    >>> import pmwal
    >>> from pmwal import events
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     seq = events.Logger(wal).event("{user} left")("ada")
    ...     seq = wal.append(b"something else")
    ...     [event.text for event in events.read(wal)]
    ['ada left']
    """
    decoder = Decoder(source)
    return (event for event in map(decoder.decode, source.read(start, stop)) if event is not None)
