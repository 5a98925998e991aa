"""Records as tables in Parquet and Arrow (Feather version 2) files, through pyarrow, and in CSV.

What the columns are is up to a layout of ``pmwal.cli.formats.columns``.
"""

from __future__ import annotations

import csv
import io
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from itertools import chain
from typing import Any, BinaryIO, TypeAlias

from pmwal.cli.formats.columns import Column, Layout, Type
from pmwal.cli.times import utc_text

Payloads: TypeAlias = Iterator[tuple[int, bytes]]
"""Kinds and payloads."""

_ROWS, _BYTES = 8192, 16 * 1024 * 1024  # limits of a batch that is written; it has at least one row
_GROUP_ROWS, _GROUP_BYTES = 65536, 64 * 1024 * 1024  # of a group of rows, of which readers skip those that they do not need
_ROWS_READ = 1024
_LAYOUT = b"pmwal:layout"  # in the metadata of a schema
_NOT_IMPORTABLE = b"columns"


def write_parquet(layout: Layout[Any], rows: Iterable[Any], stream: BinaryIO) -> int:
    """Write all rows as one Parquet file; how many these are."""
    pyarrow, parquet = _module("pyarrow"), _module("pyarrow.parquet")
    schema = _schema(pyarrow, layout)
    count = 0
    with parquet.ParquetWriter(pyarrow.PythonFile(_Counting(stream), mode="w"), schema) as writer:
        for group in _groups(_record_batches(schema, layout, rows)):
            table = pyarrow.Table.from_batches(group, schema)
            writer.write_table(table, row_group_size=_GROUP_ROWS)
            count += table.num_rows
    return count


def read_parquet(stream: BinaryIO) -> Callable[[int, int], Payloads]:
    """Open a Parquet file; the function returned yields its rows, given the log's capacity and a kind for rows without one."""
    pyarrow, parquet = _module("pyarrow"), _module("pyarrow.parquet")
    file = parquet.ParquetFile(_seekable(stream))
    names = _columns(file.schema_arrow)
    return lambda limit, kind: _rows(pyarrow, file.iter_batches(batch_size=_ROWS_READ, columns=names), kind)


def write_arrow(layout: Layout[Any], rows: Iterable[Any], stream: BinaryIO) -> int:
    """Write all rows as one Arrow file; how many these are."""
    pyarrow = _module("pyarrow")
    schema = _schema(pyarrow, layout)
    count = 0
    with pyarrow.ipc.new_file(pyarrow.PythonFile(_Counting(stream), mode="w"), schema) as writer:
        for batch in _record_batches(schema, layout, rows):
            writer.write_batch(batch)
            count += batch.num_rows
    return count


def read_arrow(stream: BinaryIO) -> Callable[[int, int], Payloads]:
    """Open an Arrow file, likewise."""
    pyarrow = _module("pyarrow")
    file = pyarrow.ipc.open_file(_seekable(stream))
    names = _columns(file.schema)
    batches = (file.get_batch(number).select(names) for number in range(file.num_record_batches))
    return lambda limit, kind: _rows(pyarrow, batches, kind)


def write_csv(layout: Layout[Any], rows: Iterable[Any], stream: BinaryIO) -> int:
    """Write all rows as CSV (RFC 4180) in UTF-8 with a line of names; how many these are.

    A payload that is not UTF-8 is in ``data_base64``.
    """
    columns, count = layout.columns, 0
    text = io.TextIOWrapper(stream, "utf-8", newline="")
    try:
        writer = csv.writer(text)
        writer.writerow(chain.from_iterable(_csv_names(column) for column in columns))
        for batch in _batches(layout, rows):
            writer.writerows(zip(*chain.from_iterable(map(_as_csv, columns, layout.cells(batch))), strict=True))
            count += len(batch)
        text.flush()
    finally:
        text.detach()
    return count


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise ValueError("Parquet and Arrow require pyarrow, which is not installed: pip install 'pmwal[arrow]'") from None


# -- writing through pyarrow


def _schema(pyarrow: Any, layout: Layout[Any]) -> Any:
    types = {
        Type.SEQ: pyarrow.uint64(),
        Type.KIND: pyarrow.uint16(),
        Type.NANOSECONDS: pyarrow.timestamp("ns", tz="UTC"),
        Type.BOOL: pyarrow.bool_(),
        Type.INT: pyarrow.int64(),
        Type.FLOAT: pyarrow.float64(),
        Type.TEXT: pyarrow.large_utf8(),
        Type.BYTES: pyarrow.large_binary(),
        Type.TIME: pyarrow.timestamp("us", tz="UTC"),
        Type.LOCAL_TIME: pyarrow.timestamp("us"),
    }
    fields = [pyarrow.field(column.name, types[column.type], nullable=column.nullable) for column in layout.columns]
    return pyarrow.schema(fields, None if layout.importable else {_LAYOUT: _NOT_IMPORTABLE})


def _batches(layout: Layout[Any], rows: Iterable[Any]) -> Iterator[list[Any]]:
    payload = layout.payload
    batch: list[Any] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(payload(row))
        if len(batch) >= _ROWS or size >= _BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def schema_of(layout: Layout[Any]) -> Any:
    """The schema of a table."""
    return _schema(_module("pyarrow"), layout)


def batch_of(schema: Any, layout: Layout[Any], rows: list[Any]) -> Any:
    """These rows as one batch of that schema."""
    pyarrow = _module("pyarrow")
    cells = zip(layout.cells(rows), schema, strict=True)
    return pyarrow.record_batch([pyarrow.array(column, field.type) for column, field in cells], schema)


def _record_batches(schema: Any, layout: Layout[Any], rows: Iterable[Any]) -> Iterator[Any]:
    for batch in _batches(layout, rows):
        yield batch_of(schema, layout, batch)


def _groups(batches: Iterable[Any]) -> Iterator[list[Any]]:
    group: list[Any] = []
    count = size = 0
    for batch in batches:
        group.append(batch)
        count += batch.num_rows
        size += batch.nbytes
        if count >= _GROUP_ROWS or size >= _GROUP_BYTES:
            yield group
            group, count, size = [], 0, 0
    if group:
        yield group


class _Counting(io.RawIOBase):
    """A stream that counts the bytes written to it: both formats ask for the position, which a pipe does not know."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._count = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._count += self._stream.write(data)
        return len(data)

    def tell(self) -> int:
        return self._count


# -- CSV


def _csv_names(column: Column) -> tuple[str, ...]:
    return (column.name, f"{column.name}_base64") if _is_payload(column) else (column.name,)


def _as_csv(column: Column, values: list[Any]) -> tuple[list[Any], ...]:
    """The values as the csv module takes them; payloads in two columns."""
    if _is_payload(column):
        texts = [None if value is None else _text_or_none(value) for value in values]
        pairs = zip(values, texts, strict=True)
        return texts, [None if value is None or text is not None else b64encode(value).decode() for value, text in pairs]
    form = _CSV_FORMS.get(column.type)
    return (values if form is None else [None if value is None else form(value) for value in values],)


def _is_payload(column: Column) -> bool:
    return column.name == "data"


def _text_or_none(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


_CSV_FORMS: dict[Type, Callable[[Any], str]] = {
    Type.NANOSECONDS: utc_text,
    Type.BOOL: lambda value: "true" if value else "false",
    Type.BYTES: lambda value: b64encode(value).decode(),
    Type.TIME: lambda value: value.isoformat().replace("+00:00", "Z"),
    Type.LOCAL_TIME: lambda value: value.isoformat(),
}
"""The text of a value, for types that the csv module does not write so."""


# -- reading


def _columns(schema: Any) -> list[str]:
    if (schema.metadata or {}).get(_LAYOUT) == _NOT_IMPORTABLE:
        raise ValueError(
            "the input was exported as columns, which cannot be made into records again; export the log with --payloads or --raw"
        )
    if "data" not in schema.names:
        raise ValueError(f'the input has no column "data", only {", ".join(schema.names)}')
    return [name for name in ("kind", "data") if name in schema.names]


def _rows(pyarrow: Any, batches: Iterable[Any], kind: int) -> Payloads:
    count = 0
    for batch in batches:
        payloads = batch.column("data").cast(pyarrow.large_binary())
        kinds = batch.column("kind").cast(pyarrow.uint16()) if "kind" in batch.schema.names else [None] * len(payloads)
        for payload, found in zip(payloads, kinds, strict=True):
            count += 1
            data, own_kind = payload.as_py(), None if found is None else found.as_py()
            if data is None:
                raise ValueError(f"row {count} of the input has no data")
            yield kind if own_kind is None else own_kind, data


def _seekable(stream: BinaryIO) -> BinaryIO:
    """Refuse a pipe: these formats have their table of contents at the end."""
    if not stream.seekable():
        raise ValueError("Parquet and Arrow files cannot be read from a pipe: name the file with -i FILE")
    return stream
