"""The selected records of one log, oldest or newest first, in pieces.

Invariants
----------
- Nothing is left out silently: records that the writer overwrote before they were read are reported, by number, and counted.
- The end is that at the beginning. Newest first reads backwards, and no further than records are asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Protocol

from pmwal.cli.terminal import say
from pmwal.cli.wording import numbers_in_words
from pmwal.errors import Overrun
from pmwal.format.ring import Clock
from pmwal.reading.internals import runs_of, selected
from pmwal.reading.reader import Reader
from pmwal.reading.selection import Selection
from pmwal.records import Record

_PIECE, _PIECE_MAX = 64, 16384  # records of the log that are read at once, newest first
_BYTES_MAX = 8 << 20  # of a piece's payloads; a larger one is followed by none that is larger


class Losses(Protocol):
    """What counts records that are gone."""

    def __call__(self) -> None:
        """Some were reported."""


class Span:
    """From the first record after ``start``, a cursor, that the selection takes, to the last one."""

    def __init__(self, path: str, reader: Reader, chosen: Selection, start: str | None, on_loss: Losses) -> None:
        self.path = path
        self.reader = reader
        self._filter = chosen.filter
        self._on_loss = on_loss
        self.first, self.end = self._begin(chosen, start)

    def _begin(self, chosen: Selection, start: str | None) -> tuple[int, int]:
        while True:
            try:
                return selected(self.reader, chosen, start)
            except Overrun as error:
                say(f"{self.path}: {error}; continuing with the oldest record")
                self._on_loss()
                start = None

    @property
    def cursor(self) -> str | None:
        """After the last record; None if the log had none."""
        try:
            return self.reader[self.end - 1].cursor
        except (IndexError, Overrun):
            return None

    def oldest_first(self) -> Iterator[list[Record]]:
        """The records, some at a time."""
        at = self.first
        while at < self.end:
            try:
                for run in runs_of(self.reader, self._filter, Clock(0), at, self.end):
                    at = run.seq + 1
                    if run.records:
                        yield [record for record, _, _, _ in run.records]
                return
            except Overrun as error:
                at = self._miss(at, error)

    def newest_first(self) -> Iterator[list[Record]]:
        """The records in the opposite order, some at a time."""
        stop, piece, grows = self.end, _PIECE, True
        while stop > self.first:
            begin = max(self.first, stop - piece)
            try:
                runs = runs_of(self.reader, self._filter, Clock(0), begin, stop)
                records = [record for run in runs for record, _, _, _ in run.records]
            except Overrun as error:
                self.first = min(stop, self._miss(begin, error))
                continue
            if records:
                yield records[::-1]
                grows = grows and sum(len(record.data) for record in records) < _BYTES_MAX
            stop, piece = begin, min(2 * piece, _PIECE_MAX) if grows else piece

    def timed_newest_first(self) -> Iterator[tuple[int, Record]]:
        """The records newest first, each with a time that never grows: the least stamp so far, so that they stay in their order."""
        least = time.time_ns()
        for records in self.newest_first():
            for record in records:
                least = min(least, record.time_ns)
                yield least, record

    def _miss(self, at: int, error: Overrun) -> int:
        """Report records that are gone; the next number."""
        if not error.missed:
            raise error  # rolled back: what was printed is no longer in the log
        following = min(at + error.missed, self.end)
        say(f"{self.path}: {numbers_in_words(at, following - 1)} overwritten or truncated before they were read")
        self._on_loss()
        return following
