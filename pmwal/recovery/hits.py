"""What a search has found, as arrays: the positions of whole records, and their headers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pmwal.format.layout import HEADER, RECORD, Superblock
from pmwal.format.ring import Load

Words = npt.NDArray[np.uint64]
Headers = npt.NDArray[np.void]
"""An array of record headers; its columns have the names of ``RECORD``'s fields."""

_CODES = {"I": "<u4", "Q": "<u8", "q": "<i8", "H": "<u2"}
_HEADERS = np.dtype([(field.name, _CODES[field.code]) for field in RECORD.fields])

assert _HEADERS.itemsize == HEADER


class Records(NamedTuple):
    """Whole records in order of their positions."""

    positions: Words
    headers: Headers


def placed_records(block: Superblock, load: Load, found: bytes, base: int, piece: int) -> Iterator[Records]:
    """The records at these ring offsets, raw words in any order, of the lap that begins at ``base``, from
    loads of about ``piece`` bytes."""
    for offsets, headers in _headers_at(block, load, _sorted(found), piece):
        yield Records(offsets + np.uint64(base), headers)


def nearest_records(block: Superblock, load: Load, found: bytes, piece: int) -> Iterator[Records]:
    """The records at these ring offsets, raw words in any order, each of the lap that its ``durable`` tells."""
    for offsets, headers in _headers_at(block, load, _sorted(found), piece):
        yield Records(nearest(headers["durable"], offsets, block.capacity), headers)


def _sorted(found: bytes) -> Words:
    offsets = np.frombuffer(found, "<u8").copy()
    offsets.sort()
    return offsets


def nearest(durable: Words, offsets: Words, capacity: int) -> Words:
    """The first positions from ``durable`` on at these ring offsets."""
    lap = np.uint64(capacity)
    return (durable + (offsets + (lap - durable % lap)) % lap).astype(np.uint64)


def _headers_at(block: Superblock, load: Load, offsets: Words, piece: int) -> Iterator[tuple[Words, Headers]]:
    """The headers at these ring offsets, which are in order; from a few loads."""
    first = 0
    while first < len(offsets):
        start = int(offsets[first])
        last = int(np.searchsorted(offsets, start + piece))
        chosen = offsets[first:last]
        raw = load(block.ring_offset + start, int(chosen[-1]) + HEADER - start)
        words = np.frombuffer(raw, "<u8")
        rows = ((chosen - np.uint64(start)) // np.uint64(8)).astype(np.intp)
        yield chosen, words[rows[:, None] + np.arange(HEADER // 8)].view(_HEADERS).reshape(-1)
        first = last
