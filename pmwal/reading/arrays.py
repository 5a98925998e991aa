"""Reading records of one length into an array: what ``Wal`` and ``Reader`` share.

Invariants
----------
- A record's checksum is taken over its bytes in the array, or in another private copy, never over what may still change.
- The array is allocated for what can lie between two positions of the ring, not for what a file says that it holds.
- The native engine takes runs of whole records, side by side; whatever else comes next the walk of the handle judges.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pmwal.format.layout import HEADER, Superblock, decode_header, record_size
from pmwal.format.ring import Scan
from pmwal.format.rows import as_dtype, empty_rows, given_rows
from pmwal.format.scan import scan_for
from pmwal.reading.walk import View
from pmwal.records import Bound, Record
from pmwal.storage.mapping import Mapping

_IN_PLACE = 16 * 1024 * 1024  # bytes of a mapping that are taken at once: other threads may go on in between
_COPIED = 256 * 1024  # bytes of a file that are loaded at once


class Source(NamedTuple):
    """The records from number ``first`` up to, not including, ``stop`` of a view, and how a handle gets at them."""

    block: Superblock
    mapping: Mapping
    view: View
    first: int
    stop: int
    locate: Callable[[int], Bound]
    """Where the record with this number starts; raises what ``read`` raises."""
    walk: Callable[[Bound, int], Iterator[Record]]
    """The records from a bound up to, not including, a number; raises what ``read`` raises."""
    is_kept: Callable[[int], bool]
    """Whether the record with this number was not truncated since. A rollback takes the last record, too: the walk tells."""


class ArrayReader(ABC):
    """A handle that reads records into arrays."""

    @abstractmethod
    def _source(self, start: int | None, stop: int | None) -> Source:
        """What ``read(start, stop)`` would hand out."""

    def read_array(
        self,
        dtype: npt.DTypeLike,
        start: int | None = None,
        stop: int | None = None,
        *,
        out: npt.NDArray[Any] | None = None,
    ) -> npt.NDArray[Any]:
        """The payloads of the records from number ``start`` up to, not including, ``stop``, as an array of this dtype.

        Each record is one item, whose bytes are taken as they are. The array is a new one, or the front of ``out``, of the same
        dtype: memory that is used again costs nothing to get. Raises as ``read`` does; ``ValueError`` names the first record
        whose length is not the dtype's ``itemsize``. ``out`` holds anything then.

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
    count = min(wanted, room)  # with more wanted than there is room for, one has another length
    array, rows = empty_rows(count, dtype) if out is None else given_rows(out, count, dtype)
    scan = scan_for(source.block)
    seq, at = source.first, None
    while seq < source.stop:
        at = source.locate(seq) if at is None else at
        if scan is not None and source.is_kept(seq):
            taken = _take(source, scan, at, rows, dtype.itemsize)
            seq, at = seq + taken, Bound(at.position + taken * size, seq + taken)
            if taken and seq < source.stop - 1:
                continue
        # Without a scan all of them; else the one that is no ordinary case, and the last, so that the handle knows it.
        for record in source.walk(at, source.stop if scan is None else seq + 1):
            _put(rows, seq - source.first, record, dtype)
            seq += 1
        at = None
    return array


def _take(source: Source, scan: Scan, at: Bound, rows: memoryview, length: int) -> int:
    """How many records from here on were whole, side by side and of this length: their payloads are in ``rows`` now.

    It leaves the last one. What cannot be read is left, too: the walk says why.
    """
    block, mapping, view = source.block, source.mapping, source.view
    offset, size = at.position % block.capacity, record_size(length, block.alignment)
    count = source.stop - 1 - at.next_seq
    with contextlib.suppress(OSError):
        lap_number = decode_header(mapping.load(block.ring_offset, HEADER)).seq
        whole = mapping.window()
        if whole is None:
            bytes_max = min(max(size, _COPIED // size * size), count * size, block.capacity - offset)
            window = memoryview(mapping.load(block.ring_offset + offset, bytes_max))
        else:
            window, offset = whole[block.ring_offset : block.file_size], 0
        try:
            return scan.scanner.rows(
                window,
                offset,
                *at,
                min(count, max(1, _IN_PLACE // size)),
                view.end.position,
                view.epoch,
                view.epoch_first_seq,
                lap_number,
                rows,
                at.next_seq - source.first,
                length,
            )
        finally:
            window.release()
            if whole is not None:
                whole.release()
    return 0


def _put(rows: memoryview, place: int, record: Record, dtype: np.dtype[Any]) -> None:
    length = dtype.itemsize
    if len(record.data) != length:
        raise ValueError(
            f"record {record.seq} has {len(record.data)} bytes, and an item of {dtype} has {length}; "
            "read the records before and after it by themselves, with start and stop"
        )
    rows[place * length : (place + 1) * length] = record.data
