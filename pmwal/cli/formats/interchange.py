"""The formats that ``export`` writes and ``import`` reads.

JSON lines and tables have sequence number, kind, time and payload, and tables may have columns of fields instead; the
length-prefixed format has the payload only. An import keeps kinds and payloads; the log assigns new numbers and times.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import PurePath
from typing import Any, BinaryIO, NamedTuple, TypeAlias

from pmwal.cli.formats import tables
from pmwal.cli.formats.columns import Layout
from pmwal.cli.formats.framing import read_items, read_lines
from pmwal.cli.formats.printing import as_json, as_length_prefixed
from pmwal.cli.formats.tables import Payloads
from pmwal.errors import RecordTooLarge
from pmwal.format.layout import KIND_MAX
from pmwal.logs.archives.lines import payload_of
from pmwal.records import Record

_ESCAPED = 6  # the most bytes of JSON that a byte of text takes: \u0000
_FRAME = 64 * 1024  # more than the rest of a line takes

Read: TypeAlias = Callable[[BinaryIO], Callable[[int, int], Payloads]]


class Interchange(NamedTuple):
    """One format. It is written by ``write`` or, if it is a table, by ``write_table``. ``read(stream)`` checks the stream; what it
    returns reads it, given the longest payload and a default kind. None: it cannot be imported."""

    read: Read | None
    noun: str
    write: Callable[[Iterable[Record], BinaryIO], None] | None = None
    write_table: Callable[[Layout[Any], Iterable[Any], BinaryIO], int] | None = None
    suffixes: tuple[str, ...] = ()
    is_text: bool = False
    has_kinds: bool = True


def form_for(name: str | None, path: str | None) -> str:
    """The format of this name, or else the one for the file's suffix, JSON lines without one. ``ValueError`` for another suffix."""
    if name is not None:
        return name
    suffix = PurePath(path or "").suffix.lower()
    known = {suffix: found for found, form in INTERCHANGES.items() for suffix in form.suffixes}
    if suffix and suffix not in known:
        raise ValueError(f"{path}: no format is known by the suffix {suffix}; use one of {', '.join(known)}, or say --format")
    return known.get(suffix, "jsonl")


def _write_json_lines(records: Iterable[Record], stream: BinaryIO) -> None:
    for record in records:
        stream.write(as_json(record))


def _read_json_lines(stream: BinaryIO) -> Callable[[int, int], Payloads]:
    return partial(_json_lines, stream)


def _json_lines(stream: BinaryIO, limit: int, kind: int) -> Payloads:
    """Read the records of JSON lines; empty lines are skipped."""
    longest = _ESCAPED * limit + _FRAME
    for number, line in enumerate(read_lines(stream, longest), 1):
        if len(line) > longest:
            raise RecordTooLarge(f"line {number} of the input: over {longest} bytes cannot fit into this log; use a larger --size")
        if line.strip():
            try:
                yield _from_json(json.loads(line), kind, line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number} of the input: {error}") from None


def _from_json(value: Any, kind: int, line: bytes) -> tuple[int, bytes]:
    """Kind and payload of an object that ``as_json`` wrote as this line; its other members are ignored."""
    if not isinstance(value, dict):
        raise ValueError('not a JSON object like {"kind": 0, "data": "text"}')
    kind = value.get("kind", kind)
    if not isinstance(kind, int) or isinstance(kind, bool) or not 0 <= kind <= KIND_MAX:
        raise ValueError(f'"kind" is not a whole number from 0 to {KIND_MAX}')
    return kind, payload_of(value, line)


def _write_items(records: Iterable[Record], stream: BinaryIO) -> None:
    for record in records:
        stream.write(as_length_prefixed(record))


def _read_items(stream: BinaryIO) -> Callable[[int, int], Payloads]:
    return partial(_items, stream)


def _items(stream: BinaryIO, limit: int, kind: int) -> Payloads:
    return ((kind, item) for item in read_items(stream, limit))


INTERCHANGES = {
    "jsonl": Interchange(_read_json_lines, "line", _write_json_lines, suffixes=(".jsonl", ".ndjson", ".json"), is_text=True),
    "length-prefixed": Interchange(_read_items, "item", _write_items, has_kinds=False),
    "csv": Interchange(None, "row", write_table=tables.write_csv, suffixes=(".csv",), is_text=True),
    "parquet": Interchange(tables.read_parquet, "row", write_table=tables.write_parquet, suffixes=(".parquet",)),
    "arrow": Interchange(tables.read_arrow, "row", write_table=tables.write_arrow, suffixes=(".arrow", ".feather")),
}
IMPORTED = tuple(name for name, form in INTERCHANGES.items() if form.read is not None)
"""The formats that can be imported."""
