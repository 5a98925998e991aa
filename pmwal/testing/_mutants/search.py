"""Broken searches past the end: look-alikes count, or records are overlooked.

Patches ``whole_records`` and ``search_past`` in ``pmwal.recovery.evidence``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from pmwal.format.layout import PAGE, RECORD
from pmwal.format.ring import RingReader
from pmwal.recovery import evidence
from pmwal.recovery.evidence import Evidence
from pmwal.recovery.search import Records
from pmwal.testing._mutants.seam import Patch, shipped

_ENOUGH = 512  # bytes


def _filtered(keep: Callable[[Any, int], Any]) -> list[Patch]:
    """Find only records at some of the positions, of which the search knows the first."""
    original = shipped(evidence, "whole_records")

    def whole_records(block: Any, load: Any, start: int, stop: int, **limits: Any) -> Iterator[Records]:
        for positions, headers in original(block, load, start, stop, **limits):
            kept = keep(positions, start)
            yield Records(positions[kept], headers[kept])

    return [Patch(evidence, "whole_records", whole_records)]


def search_gives_up() -> list[Patch]:
    """Search only the first bytes past the end."""
    return _filtered(lambda positions, start: positions < np.uint64(start + _ENOUGH))


def search_skips() -> list[Patch]:
    """Look only where a page begins."""
    return _filtered(lambda positions, start: positions % np.uint64(PAGE) == 0)


def _possible(block: Any, load: Any, start: int, stop: int) -> Iterator[int]:
    """Positions of headers that a record may have."""
    reader = RingReader(block, load)
    return (position for position in range(start, stop, block.alignment) if reader.peek(position) is not None)


def headers_believed() -> list[Patch]:
    """Take every possible header for a whole record."""

    def whole_records(
        block: Any, load: Any, start: int, stop: int, *, epoch: int, seq_min: int, newer_seq_min: int, **_: Any
    ) -> Iterator[Records]:
        for position in _possible(block, load, start, stop):
            raw = load(block.ring_offset + position % block.capacity, RECORD.size)
            headers = np.frombuffer(raw, _dtype())
            seq, found = int(headers["seq"][0]), int(headers["epoch"][0])
            if (found == epoch and seq >= seq_min) or (found > epoch and seq >= newer_seq_min):
                yield Records(np.array([position], np.uint64), headers)

    return [Patch(evidence, "whole_records", whole_records)]


def _dtype() -> Any:
    codes = {"I": "<u4", "Q": "<u8", "q": "<i8", "H": "<u2"}
    return np.dtype([(field.name, codes[field.code]) for field in RECORD.fields])


def budget_decides() -> list[Patch]:
    """Call a log damaged when the headers past its end declare more bytes than a search should read."""
    original = shipped(evidence, "search_past")

    def search_past(block: Any, load: Any, stop: Any, limit: int, *args: Any) -> Evidence:
        reader, left = RingReader(block, load), 4 * block.capacity
        for position in _possible(block, load, stop.position, limit):
            header = reader.peek(position)
            assert header is not None
            left -= header.length
        found: Evidence = original(block, load, stop, limit, *args)
        return found if left >= 0 else replace(found, acknowledged="too much looks like records", position=stop.position)

    return [Patch(evidence, "search_past", search_past)]
