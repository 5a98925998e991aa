"""Archives as Parquet: a group of records is a row group, and the summary is in the metadata of the file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO, Protocol

from pmwal.logs.archives.modules import needed
from pmwal.logs.archives.summary import Group, Rows, Summary, decode_summary
from pmwal.records import Record

_SUMMARY = b"pmwal:archive"
_COLUMNS = ["seq", "kind", "time", "data"]


class Table(Protocol):
    """How records become rows. The columns seq, kind, time (in ns) and data are among them."""

    schema: Any

    def batch(self, records: list[Record]) -> Any:
        """The rows of these records."""


class ParquetWriter:
    """Writes one file."""

    def __init__(self, stream: BinaryIO, table: Table) -> None:
        pyarrow, parquet = needed("pyarrow"), needed("pyarrow.parquet")
        self._table = table
        self._writer = parquet.ParquetWriter(
            pyarrow.PythonFile(stream, mode="w"), table.schema, compression="zstd", write_page_checksum=True
        )

    def add(self, records: list[Record], group: Group) -> Group:
        """Write a group."""
        self._writer.write_batch(self._table.batch(records), row_group_size=group.records)
        return group

    def finish(self, summary: Summary) -> None:
        """Write the end of the file."""
        self._writer.add_key_value_metadata({_SUMMARY.decode(): summary.encode().decode()})
        self._writer.close()

    def abandon(self) -> None:
        """Write no more."""
        self._writer.is_open = False  # or it would write the end of the file when it is collected


class ParquetFile:
    """Reads one file."""

    def __init__(self, stream: BinaryIO) -> None:
        needed("pyarrow")
        self._file = needed("pyarrow.parquet").ParquetFile(stream, page_checksum_verification=True)

    @property
    def summary(self) -> Summary:
        """``ValueError`` if it is damaged."""
        found = (self._file.metadata.metadata or {}).get(_SUMMARY)
        if found is None:
            raise ValueError("it has no summary, so pmwal archive did not write it")
        return decode_summary(found)

    def check(self, groups: Sequence[Group]) -> None:
        """Read the columns that other programs read, too, a row group at a time. An exception of pyarrow if one is damaged."""
        if self._file.metadata.num_row_groups != len(groups):
            raise ValueError("its row groups are not those in its summary")
        for index in range(len(groups)):
            self._file.read_row_group(index, use_threads=False)

    def rows(self, index: int, group: Group) -> Rows:
        """The records of a group."""
        del group
        table = self._file.read_row_group(index, columns=_COLUMNS, use_threads=False)
        pyarrow = needed("pyarrow")
        times = table.column("time").cast(pyarrow.int64())
        return Rows(
            table.column("seq").to_pylist(), table.column("kind").to_pylist(), times.to_pylist(), table.column("data").to_pylist()
        )
