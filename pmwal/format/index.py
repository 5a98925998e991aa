"""A sparse index from sequence numbers to positions, so that finding a record does not walk the whole log."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from pmwal.records import Bound

INDEX_STEP = 32 * 1024
"""Bytes of the ring between two entries, at least."""


class SparseIndex:
    """Where some records start, in order: at most one entry per ``INDEX_STEP`` bytes of the ring."""

    def __init__(self, entries: Iterable[Bound] = ()) -> None:
        self._entries = list(entries)

    @property
    def entries(self) -> list[Bound]:
        """The list itself, in order."""
        return self._entries

    def add(self, start: Bound) -> None:
        """Note where the newest record starts, if the last entry is at least ``INDEX_STEP`` before it."""
        if not self._entries or start.position - self._entries[-1].position >= INDEX_STEP:
            self._entries.append(start)

    def floor(self, seq: int, tail: Bound) -> Bound:
        """The last known start at or before this number, and never before ``tail``."""
        after = bisect_right(self._entries, seq, key=_number)
        found = self._entries[after - 1] if after else tail
        return found if found.next_seq >= tail.next_seq else tail

    def ceiling(self, seq: int, end: Bound) -> Bound:
        """The first known start after this number, and never past ``end``."""
        after = bisect_right(self._entries, seq, key=_number)
        return min(self._entries[after], end) if after < len(self._entries) else end

    def merge(self, starts: list[Bound]) -> None:
        """Add starts, in order, that all lie between two entries that follow one another, or before or after all."""
        after = bisect_right(self._entries, starts[0].next_seq, key=_number) if starts else 0
        if after and self._entries[after - 1] == starts[0]:
            starts = starts[1:]
        self._entries[after:after] = starts

    def drop_before(self, seq: int) -> None:
        """Remove the entries before this number."""
        if not self._entries or self._entries[0].next_seq >= seq:
            return
        del self._entries[: bisect_right(self._entries, seq - 1, key=_number)]

    def drop_from(self, seq: int) -> None:
        """Remove the entries from this number on."""
        del self._entries[bisect_right(self._entries, seq - 1, key=_number) :]


def _number(entry: Bound) -> int:
    return entry.next_seq
