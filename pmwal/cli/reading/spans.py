"""The selected records of one log, oldest or newest first, in pieces, while a writer may be overwriting it.

Invariants
----------
- Nothing is left out silently: records that the writer overwrote before they were read are reported, by number, and ``missed``
  says so. A gap is reported once, also one that is found piece by piece.
- The end is that at the beginning. Newest first reads backwards, no further than records are asked for, and memory use does not
  grow with the log.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import accumulate

from pmwal.cli.terminal import say
from pmwal.cli.wording import numbers_in_words
from pmwal.errors import Overrun
from pmwal.format.ring import Clock, Selected
from pmwal.reading.internals import runs_of, selected
from pmwal.reading.reader import Reader
from pmwal.reading.selection import Selection
from pmwal.records import Record

PIECE = 64  # records of the log that are read at once, newest first; at most _PIECE_MAX
_PIECE_MAX = 16384
_BYTES_MAX = 8 << 20  # of a piece's payloads; a larger one is followed by none that is larger


class Span:
    """From the first record that the selection takes to the last one that the log has now.

    ``start`` is a cursor after which it begins, None if its record is gone. ``first`` is the first number, and ``end`` the one
    after the last.
    """

    def __init__(self, path: str, reader: Reader, chosen: Selection, start: str | None = None) -> None:
        self.path = path
        self.reader = reader
        self.missed = False
        self._filter = chosen.filter
        self.start = start
        self.first, self.end = self._begin(chosen, start)

    def _begin(self, chosen: Selection, start: str | None) -> tuple[int, int]:
        while True:
            try:
                return selected(self.reader, chosen, start)
            except Overrun as error:
                self.missed = True
                say(f"{self.path}: {error}; continuing with the oldest record")
                start = self.start = None

    def narrow(self, first: int | None, last: int | None) -> None:
        """Leave out what is before the first or after the last number."""
        self.first = self.first if first is None else max(self.first, first)
        self.end = self.end if last is None else min(self.end, last + 1)

    @property
    def ends(self) -> dict[str, str]:
        """The cursor after the last record, by the log's uuid. Ask before reading: others may take the place of what was read."""
        try:
            return {self.reader.uuid: self.reader[self.end - 1].cursor}
        except (IndexError, Overrun):  # nothing is there, or it was overwritten meanwhile: all that follows is new
            return {}

    def oldest_first(self, *, report: bool = True) -> Iterator[list[Record]]:
        """The records, some at a time. Without ``report`` nothing is said about those that are gone."""
        at = self.first
        while at < self.end:
            try:
                for run in runs_of(self.reader, self._filter, Clock(0), at, self.end):
                    at = run.seq + 1
                    if run.records:
                        yield [record for record, _, _, _ in run.records]
                return
            except Overrun as error:
                following = self._after(at, error)
                if report:
                    self._miss(at, following - 1)
                at = following

    def newest_first(self) -> Iterator[list[Record]]:
        """The records in the opposite order, some at a time."""
        return (records for records, _ in self.timed_newest_first(time.time_ns()))

    def timed_newest_first(self, now: int) -> Iterator[tuple[list[Record], list[int]]]:
        """The same with the effective time of each, as far as it can be told without the records before a piece."""
        first, stop, piece, grows, limit, gap = self.first, self.end, PIECE, True, now, range(0)
        try:
            while stop > first:
                begin = max(first, stop - piece)
                runs, gaps = self._piece(Clock(now), begin, stop)
                for found in reversed(gaps):
                    gap = self._joined(found, gap)
                times = [stamp for run in runs for stamp in run.times]
                if times:
                    _, *times = accumulate(reversed(times), min, initial=limit)
                    limit = times[-1]
                    records = [record for run in runs for record, _, _, _ in run.records]
                    yield records[::-1], times
                    grows = grows and sum(len(record.data) for record in records) < _BYTES_MAX
                if gap and gap.start == begin <= self.reader.first_seq:  # nothing is left before it
                    gap, begin = range(first, gap.stop), first
                stop, piece = begin, min(2 * piece, _PIECE_MAX) if grows else piece
        finally:
            self._joined(range(0), gap)

    def _piece(self, clock: Clock, at: int, stop: int) -> tuple[list[Selected], list[range]]:
        """The runs of these numbers, and which of them are gone: archives may have a gap with records before it."""
        runs: list[Selected] = []
        gaps: list[range] = []
        while at < stop:
            try:
                for run in runs_of(self.reader, self._filter, clock, at, stop):
                    at = run.seq + 1
                    runs.append(run)
                break
            except Overrun as error:
                following = min(stop, self._after(at, error))
                gaps.append(range(at, following))
                self.missed = True
                at = following
        return runs, gaps

    def _joined(self, found: range, gap: range) -> range:
        """One gap if one is right before the other. Otherwise the later one is whole, and reported."""
        if found and found.stop == gap.start:
            return range(found.start, gap.stop)
        if gap:
            self._miss(gap.start, gap.stop - 1)
        return found

    def _after(self, at: int, error: Overrun) -> int:
        """Where to continue after records that are gone."""
        if not error.missed:
            raise error  # rolled back: what was printed is no longer in the log
        return min(at + error.missed, self.end)

    def _miss(self, first: int, last: int) -> None:
        self.missed = True
        say(f"{self.path}: {numbers_in_words(first, last)} overwritten or truncated before they were read")
