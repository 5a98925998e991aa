"""Records as columns: those of every record, and one for each field of events and JSON objects.

Invariants
----------
- A column has values of one type, each as the record has it; a time with a zone is the same instant in UTC.
- What no column can take is in ``rest``, by name; where that cannot say everything either, ``data`` has the payload.
- Memory use grows with the number of different fields up to a limit, not with the number of records.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from enum import Enum, auto
from operator import attrgetter
from typing import Any, NamedTuple, Protocol, TypeVar

from pmwal.events.definition import DEFINITION_KIND, plain
from pmwal.events.entries import Entry
from pmwal.records import Record, SetRecord

COLUMNS_MAX = 200
"""Fields that get a column, unless the user says otherwise."""

_NAMES_MAX = 10_000  # different fields that are counted
_NAME_LENGTH_MAX = 256
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1
_EXACT = 1 << 53  # a float has every whole number up to this
_WRITTEN_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?(?:Z|\+00:00)")
_WRITTEN_TIME_LENGTHS = range(20, 33)


class Type(Enum):
    """The type of a column."""

    SEQ = auto()
    KIND = auto()
    NANOSECONDS = auto()  # since 1970
    BOOL = auto()
    INT = auto()
    FLOAT = auto()
    TEXT = auto()
    BYTES = auto()
    TIME = auto()  # a datetime in UTC
    LOCAL_TIME = auto()  # a datetime without a zone


class Column(NamedTuple):
    """A column of a table."""

    name: str
    type: Type
    nullable: bool = True


Item = TypeVar("Item")


class Layout(Protocol[Item]):
    """The columns of a table, and their values. ``importable``: each row has its payload."""

    importable: bool
    columns: list[Column]
    payload: Callable[[Item], bytes]

    def cells(self, rows: list[Item]) -> list[list[Any]]:
        """The values of each column for these rows."""


class PayloadLayout:
    """Sequence number, log (of several), kind, time and payload: what ``import`` can read."""

    def __init__(self, *, several: bool) -> None:
        self.importable = True
        self.payload: Callable[[Record], bytes] = attrgetter("data")
        self._several = several
        self.columns = [*_of_every_record(several), Column("data", Type.BYTES, nullable=False)]

    def cells(self, rows: list[Record]) -> list[list[Any]]:
        """The values of each column for these records."""
        return [*_cells_of_every_record(rows, self._several), [record.data for record in rows]]


def _of_every_record(several: bool) -> list[Column]:
    log = [Column("log", Type.TEXT, nullable=False)] if several else []
    return [
        Column("seq", Type.SEQ, nullable=False),
        *log,
        Column("kind", Type.KIND, nullable=False),
        Column("time", Type.NANOSECONDS, nullable=False),
    ]


def _cells_of_every_record(records: list[Record], several: bool) -> list[list[Any]]:
    logs = [[_unicode(record.log) for record in records if isinstance(record, SetRecord)]] if several else []
    return [
        [record.seq for record in records],
        *logs,
        [record.kind for record in records],
        [record.time_ns for record in records],
    ]


_ENTRY = [
    Column("level", Type.INT),
    Column("level_name", Type.TEXT),
    Column("logger", Type.TEXT),
    Column("message", Type.TEXT),
    Column("format", Type.TEXT),
    Column("traceback", Type.TEXT),
]
_TAKEN = {"seq", "log", "kind", "time", *(column.name for column in _ENTRY), "rest", "data", "data_base64"}


class Row(NamedTuple):
    """A record as an entry with its fields. ``complete``: these, the message and the entry's other texts say all that is in it."""

    entry: Entry
    fields: Mapping[str, Any]
    message: str | None
    complete: bool


def row_of(entry: Entry) -> Row:
    """The row of an entry. The members of a JSON object without a message are fields, too."""
    event, document = entry.event, entry.document
    if event is not None:
        return Row(entry, entry.fields, entry.message, event.definition is not None)
    if document is not None:
        return _row_of_document(entry, document)
    data = entry.record.data
    found = _object_in(data) if data[:1] == b"{" and entry.record.kind != DEFINITION_KIND else None
    return Row(entry, {}, _decoded(data), False) if found is None else Row(entry, found, None, True)


def _row_of_document(entry: Entry, document: Mapping[str, Any]) -> Row:
    """An entry is made for readers. What it leaves out of the document, or shows in another form, is a field here."""
    fields = {**entry.origin, **entry.fields}
    complete = len(fields) == len(entry.origin) + len(entry.fields)
    shown = [entry.message, entry.logger, entry.traceback]
    for name, value in document.items():
        if name in fields:
            continue
        if isinstance(value, str):
            if value in shown:
                shown.remove(value)  # once: another member with the same text is a field
            elif value.upper() != entry.level_name:
                fields[name] = value
        elif name == "extra" and value and isinstance(value, dict) and value.items() <= fields.items():  # its members are fields
            complete = complete and document.keys().isdisjoint(value)
        else:
            fields[name] = value
    return Row(entry, fields, entry.message, complete)


def _object_in(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _decoded(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


# -- which fields get a column, and of which type


_BOOL, _INT, _LARGE_INT, _FLOAT, _TEXT, _STAMP, _BYTES, _TIME, _LOCAL_TIME, _LABELS = range(10)
"""What a value may be stored as. A large int is not exact as a float, and a stamp is text or a time in UTC."""


class Survey:
    """Counts the values of each field of the rows, by what they may be stored as."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}

    def add(self, row: Row) -> None:
        """Count the values of a row."""
        counts = self._counts
        for name, value in row.fields.items():
            label = _label(value)
            if label is None:
                continue
            count = counts.get(name)
            if count is None:
                if len(counts) >= _NAMES_MAX or not _can_be_a_name(name):
                    continue
                count = counts[name] = [0] * _LABELS
            count[label] += 1

    def layout(self, *, several: bool, payloads: bool, limit: int = COLUMNS_MAX) -> ColumnLayout:
        """The layout for these rows: the fields with the most values get a column, in the order in which they were met."""
        chosen = {name: _type_for(count) for name, count in self._counts.items()}
        kept = set(sorted(chosen, key=lambda name: -chosen[name][1])[:limit])
        types = {name: kind for name, (kind, _) in chosen.items() if name in kept}
        return ColumnLayout(types, several=several, payloads=payloads, left_out=len(chosen) - len(kept))


def _label(value: object) -> int | None:
    """What a value may be stored as; None if no column can take it."""
    kind = type(value)
    if isinstance(value, str):
        if len(value) in _WRITTEN_TIME_LENGTHS and _time_in(value) is not None:
            return _STAMP
        return _TEXT if _is_unicode(value) else None
    if isinstance(value, int):
        if kind is bool:
            return _BOOL
        if not _INT_MIN <= value <= _INT_MAX:
            return None
        return _INT if -_EXACT <= value <= _EXACT or int(float(value)) == value else _LARGE_INT
    if isinstance(value, datetime):
        return _LOCAL_TIME if value.tzinfo is None else _TIME
    return _FLOAT if kind is float else _BYTES if kind is bytes else None


def _type_for(count: list[int]) -> tuple[Type, int]:
    """The type that takes the most of these values, and how many it takes."""
    texts, stamps = count[_TEXT], count[_STAMP]
    floats, whole = count[_FLOAT], count[_INT]
    takes = {
        Type.FLOAT: floats + whole if floats else 0,
        Type.INT: whole + count[_LARGE_INT],
        Type.TEXT: texts + stamps if texts else 0,
        Type.TIME: count[_TIME] + (0 if texts else stamps),
        Type.BOOL: count[_BOOL],
        Type.BYTES: count[_BYTES],
        Type.LOCAL_TIME: count[_LOCAL_TIME],
    }
    best = max(takes, key=takes.__getitem__)
    return best, takes[best]


def _can_be_a_name(name: str) -> bool:
    return 0 < len(name) <= _NAME_LENGTH_MAX and _is_unicode(name) and name.isprintable()


# -- values


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can say it: it has no surrogates."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unicode(text: str) -> str:
    return text if _is_unicode(text) else text.encode(errors="backslashreplace").decode()


def _time_in(text: str) -> datetime | None:
    """A time in UTC, written as RFC 3339 has it."""
    if _WRITTEN_TIME.fullmatch(text) is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # a month 13
        return None


def _as_bool(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _as_int(value: object) -> int | None:
    return value if isinstance(value, int) and type(value) is not bool and _INT_MIN <= value <= _INT_MAX else None


def _as_float(value: object) -> float | None:
    if isinstance(value, float):
        return value
    whole = _as_int(value)
    return None if whole is None or int(float(whole)) != whole else float(whole)


def _as_text(value: object) -> str | None:
    return value if isinstance(value, str) and _is_unicode(value) else None


def _as_bytes(value: object) -> bytes | None:
    return value if isinstance(value, bytes) else None


def _as_time(value: object) -> datetime | None:
    if isinstance(value, datetime):
        return None if value.tzinfo is None else _in_utc(value)
    return _time_in(value) if isinstance(value, str) else None


def _in_utc(value: datetime) -> datetime | None:
    try:
        return value.astimezone(UTC)
    except OverflowError:  # in the year 0 or 10000
        return None


def _as_local_time(value: object) -> datetime | None:
    return value if isinstance(value, datetime) and value.tzinfo is None else None


_FITTING: dict[Type, Callable[[object], Any]] = {
    Type.BOOL: _as_bool,
    Type.INT: _as_int,
    Type.FLOAT: _as_float,
    Type.TEXT: _as_text,
    Type.BYTES: _as_bytes,
    Type.TIME: _as_time,
    Type.LOCAL_TIME: _as_local_time,
}
"""For each type of a field, the value to store, or None if it is of another type."""


def _rest(fields: Mapping[str, Any]) -> str | None:
    """Fields as a JSON object; None if JSON cannot say them."""
    try:
        return json.dumps(fields, allow_nan=False, default=_in_json)
    except (ValueError, RecursionError):
        pass
    try:
        return json.dumps(_finite(fields), default=_in_json)
    except (ValueError, RecursionError):
        return None


def _in_json(value: Any) -> Any:
    return {"base64": b64encode(value).decode()} if isinstance(value, bytes) else value.isoformat()


def _finite(value: Any) -> Any:
    """The value with numbers that JSON lacks as text."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    if isinstance(value, float) and value - value != 0:  # infinite or NaN
        return str(value)
    return plain(value) if isinstance(value, int) and value.bit_length() > 64 else value


# -- the layout


class ColumnLayout:
    """The columns of every record, those of an entry, one for each of these fields, ``rest`` and ``data``.

    ``left_out``: how many fields got no column, because there are too many.
    """

    def __init__(self, types: Mapping[str, Type], *, several: bool, payloads: bool, left_out: int = 0) -> None:
        self.importable = payloads
        self.payload: Callable[[Row], bytes] = attrgetter("entry.record.data")
        self.left_out = left_out
        self._several = several
        self._fields = {name: (at, _FITTING[kind]) for at, (name, kind) in enumerate(types.items())}
        self.columns = [
            *_of_every_record(several),
            *_ENTRY,
            *(Column(_free(name), kind) for name, kind in types.items()),
            Column("rest", Type.TEXT),
            Column("data", Type.BYTES, nullable=not payloads),
        ]

    def rows(self, entries: Iterable[Entry]) -> Iterator[Row]:
        """The rows of these entries. Definitions of events have none, but for an import: what they say is in the events' rows."""
        return (row_of(entry) for entry in entries if self.importable or entry.record.kind != DEFINITION_KIND)

    def cells(self, rows: list[Row]) -> list[list[Any]]:
        """The values of each column for these rows."""
        count = len(rows)
        cells: list[list[Any]] = [_NOTHING] * len(self._fields)
        rest: list[str | None] = [None] * count
        data: list[bytes | None] = [None] * count
        for at, row in enumerate(rows):
            left = self._place(row, at, cells, count)
            if left:
                rest[at] = _rest(left)
            if self.importable or not _is_complete(row) or (left and rest[at] is None):
                data[at] = row.entry.record.data
        entries = [row.entry for row in rows]
        return [
            *_cells_of_every_record([entry.record for entry in entries], self._several),
            [entry.level or None for entry in entries],
            [_unicode(entry.level_name) or None for entry in entries],
            [_unicode(entry.logger) or None for entry in entries],
            [None if row.message is None else _unicode(row.message) for row in rows],
            [None if entry.event is None or entry.event.format is None else _unicode(entry.event.format) for entry in entries],
            [_unicode(entry.traceback) or None for entry in entries],
            *(column or [None] * count for column in cells),
            rest,
            data,
        ]

    def _place(self, row: Row, at: int, cells: list[list[Any]], count: int) -> dict[str, Any]:
        """Put the fields of a row into their columns, and return those that do not fit."""
        fields, left = self._fields, {}
        for name, value in row.fields.items():
            if value is None:
                continue
            place = fields.get(name)
            fitting = None if place is None else place[1](value)
            if place is None or fitting is None:
                left[name] = value
                continue
            column = cells[place[0]]
            if column is _NOTHING:
                column = cells[place[0]] = [None] * count
            column[at] = fitting
        return left


_NOTHING: list[Any] = []


def _is_complete(row: Row) -> bool:
    """Whether the columns have everything that the record says."""
    entry = row.entry
    return row.complete and all(map(_is_unicode, (entry.level_name, entry.logger, row.message or "", entry.traceback)))


def _free(name: str) -> str:
    """The column of a field: its own name, with an underscore more if that is taken.

    >>> _free("user"), _free("time"), _free("time_")
    ('user', 'time_', 'time__')
    """
    return name + "_" if name.rstrip("_") in _TAKEN else name
