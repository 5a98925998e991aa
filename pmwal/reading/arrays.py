"""Reading records of one length into an array: what ``Wal`` and ``Reader`` share.

Invariants
----------
- A record's checksum is taken over its bytes in the array, or in another private copy, never over bytes that may still change.
- The array is allocated for the records that fit between two positions of the ring, not for the number that a file claims.
- The native engine takes runs of whole records that lie side by side. Every other record is left to the handle's walk, which checks
  it or raises.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from pmwal.format.layout import Superblock, record_size
from pmwal.format.ring import Scan, Window, lap_seq
from pmwal.format.rows import as_dtype, empty_rows, given_rows
from pmwal.format.scan import scan_for
from pmwal.reading.walk import View
from pmwal.records import Bound, Record
from pmwal.storage.mapping import Mapping

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_IN_PLACE = 16 * 1024 * 1024  # bytes of a mapping that one call takes: between calls other threads may run
_COPIED = 256 * 1024  # bytes of a file that one call loads


class Source(NamedTuple):
    """The records of a view from number ``first`` up to, not including, ``stop``, and how their handle finds and reads them."""

    block: Superblock
    mapping: Mapping
    view: View
    first: int
    stop: int
    locate: Callable[[int], Bound]
    """Where the record with this number starts. Raises as ``read`` does."""
    walk: Callable[[Bound, int], Iterator[Record]]
    """The records from a bound up to, not including, a number. Raises as ``read`` does."""
    is_kept: Callable[[int], bool]
    """Whether the record with this number has not been truncated since. A rollback also takes the last record: the walk notices."""


class ArrayReader(ABC):
    """A handle that reads records into arrays."""

    @abstractmethod
    def _source(self, start: int | None, stop: int | None) -> Source:
        """The records that ``read(start, stop)`` would return."""

    def read_array(
        self,
        dtype: npt.DTypeLike,
        start: int | None = None,
        stop: int | None = None,
        *,
        out: npt.NDArray[Any] | None = None,
    ) -> npt.NDArray[Any]:
        """The payloads of the records from number ``start`` up to, not including, ``stop``, as an array of this dtype.

        Each record is one item; its bytes are used as they are. The array is a new one, or the front of ``out``, of the same dtype:
        reusing ``out`` avoids page faults. Raises as ``read`` does; ``ValueError`` names the first record whose length is not the
        dtype's ``itemsize``. On error the contents of ``out`` are undefined.

        >>> import numpy, pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     first, last = wal.extend_array(numpy.array([(1, 2.5), (2, 0.5)], dtype="i8, f8"))
        ...     float(wal.read_array("i8, f8")["f1"].sum())
        3.0
        """
        plain = as_dtype(dtype)
        return _read(self._source(start, stop), plain, out)


def _read(source: Source, dtype: np.dtype[Any], out: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    size = record_size(dtype.itemsize, source.block.alignment)
    room = (source.view.end.position - source.view.tail.position) // size
    wanted = max(0, source.stop - source.first)
    count = min(wanted, room)  # if more are wanted than fit, one of them has another length
    array, rows = empty_rows(count, dtype) if out is None else given_rows(out, count, dtype)
    scan = scan_for(source.block)
    seq, at = source.first, None
    while seq < source.stop:
        at = source.locate(seq) if at is None else at
        if scan is not None and source.is_kept(seq):
            copied = _copy_run(source, scan, at, rows, dtype.itemsize)
            seq, at = seq + copied, Bound(at.position + copied * size, seq + copied)
            assert seq < source.stop, "the last record is left to the walk"
            if copied and seq < source.stop - 1:
                continue
        # Without a scan this walk takes all records. With one it takes the next, which is no ordinary case, or the last of all:
        # the handle notes it, and the walk raises if it was rolled back.
        for record in source.walk(at, source.stop if scan is None else seq + 1):
            _copy_record(record, rows, seq - source.first, dtype)
            seq += 1
        at = None
    return array


def _copy_run(source: Source, scan: Scan, at: Bound, rows: memoryview, length: int) -> int:
    """Copy the payloads of whole records of this length that lie side by side from ``at`` on; how many there were.

    It leaves the last record of the source, and whatever cannot be read, to the walk.
    """
    block, mapping = source.block, source.mapping
    offset, size = at.position % block.capacity, record_size(length, block.alignment)
    wanted = source.stop - 1 - at.next_seq
    with contextlib.suppress(OSError):
        start_seq = lap_seq(block, mapping.load)
        file = mapping.window()
        if file is None:
            bytes_max = min(max(size, _COPIED // size * size), wanted * size, block.capacity - offset)
            data = memoryview(mapping.load(block.ring_offset + offset, bytes_max))
        else:
            data, offset = file[block.ring_offset : block.file_size], 0
        try:
            rules = source.view.rules(at.next_seq + min(wanted, max(1, _IN_PLACE // size)))
            return scan.scanner.rows(Window(data, offset, start_seq), at, rules, rows, at.next_seq - source.first, length)
        finally:
            data.release()
            if file is not None:
                file.release()
    return 0


def _copy_record(record: Record, rows: memoryview, index: int, dtype: np.dtype[Any]) -> None:
    length = dtype.itemsize
    if len(record.data) != length:
        raise ValueError(
            f"record {record.seq} has {len(record.data)} bytes, and an item of {dtype} has {length}; "
            "read the records before and after it separately, with start and stop"
        )
    rows[index * length : (index + 1) * length] = record.data
