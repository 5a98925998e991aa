"""Records as tables in Parquet and Arrow (Feather version 2) files, through pyarrow.

The columns are ``seq`` (uint64), ``kind`` (uint16), ``time`` (timestamp in ns, UTC) and ``data`` (binary).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any, BinaryIO, TypeAlias

from pmwal.records import Record

Payloads: TypeAlias = Iterator[tuple[int, bytes]]
"""Kinds and payloads."""

_ROWS, _BYTES = 8192, 16 * 1024 * 1024  # limits of a batch that is written; it has at least one row
_ROWS_READ = 1024


def write_parquet(records: Iterable[Record], stream: BinaryIO) -> None:
    """Write all records as one Parquet file."""
    pyarrow, parquet = _module("pyarrow"), _module("pyarrow.parquet")
    schema = _schema(pyarrow)
    with parquet.ParquetWriter(pyarrow.PythonFile(_Counting(stream), mode="w"), schema) as writer:
        for batch in _batches(pyarrow, schema, records):
            writer.write_batch(batch)


def read_parquet(stream: BinaryIO) -> Callable[[int, int], Payloads]:
    """Open a Parquet file; the function returned yields its rows, given the log's capacity and a kind for rows without one."""
    pyarrow, parquet = _module("pyarrow"), _module("pyarrow.parquet")
    file = parquet.ParquetFile(_seekable(stream))
    names = _columns(file.schema_arrow)
    return lambda limit, kind: _rows(pyarrow, file.iter_batches(batch_size=_ROWS_READ, columns=names), kind)


def write_arrow(records: Iterable[Record], stream: BinaryIO) -> None:
    """Write all records as one Arrow file."""
    pyarrow = _module("pyarrow")
    schema = _schema(pyarrow)
    with pyarrow.ipc.new_file(pyarrow.PythonFile(_Counting(stream), mode="w"), schema) as writer:
        for batch in _batches(pyarrow, schema, records):
            writer.write_batch(batch)


def read_arrow(stream: BinaryIO) -> Callable[[int, int], Payloads]:
    """Open an Arrow file, likewise."""
    pyarrow = _module("pyarrow")
    file = pyarrow.ipc.open_file(_seekable(stream))
    names = _columns(file.schema)
    batches = (file.get_batch(number).select(names) for number in range(file.num_record_batches))
    return lambda limit, kind: _rows(pyarrow, batches, kind)


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise ValueError("Parquet and Arrow require pyarrow, which is not installed: pip install 'pmwal[arrow]'") from None


def _schema(pyarrow: Any) -> Any:
    return pyarrow.schema(
        [
            pyarrow.field("seq", pyarrow.uint64(), nullable=False),
            pyarrow.field("kind", pyarrow.uint16(), nullable=False),
            pyarrow.field("time", pyarrow.timestamp("ns", tz="UTC"), nullable=False),
            pyarrow.field("data", pyarrow.large_binary(), nullable=False),
        ]
    )


def _batches(pyarrow: Any, schema: Any, records: Iterable[Record]) -> Iterator[Any]:
    rows: list[Record] = []
    size = 0
    for record in records:
        rows.append(record)
        size += len(record.data)
        if len(rows) >= _ROWS or size >= _BYTES:
            yield _batch(pyarrow, schema, rows)
            rows, size = [], 0
    if rows:
        yield _batch(pyarrow, schema, rows)


def _batch(pyarrow: Any, schema: Any, rows: list[Record]) -> Any:
    values = ([getattr(row, name) for row in rows] for name in ("seq", "kind", "time_ns", "data"))
    return pyarrow.record_batch([pyarrow.array(column, field.type) for column, field in zip(values, schema, strict=True)], schema)


def _columns(schema: Any) -> list[str]:
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
