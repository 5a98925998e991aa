"""Reads a range of records while a writer may be overwriting it, for ``cat``, ``tail`` and ``export``.

Invariants
----------
- Nothing is left out silently: records that the writer overwrote first are reported on standard error, by number.
- Newest first reads the log backwards in pieces, so memory use does not grow with the log.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from pmwal.cli.inspection import running_writer
from pmwal.cli.terminal import say
from pmwal.cli.wording import numbers_in_words, torn_in_words
from pmwal.errors import Overrun
from pmwal.format.ring import Clock, Selected
from pmwal.reading.internals import runs_of, selected
from pmwal.reading.reader import Reader
from pmwal.reading.selection import Selection
from pmwal.records import Record

_PIECE, _PIECE_MAX = 64, 16384  # records read at once, newest first


class RangeReader:
    """Records between two numbers, of some kinds; ``missed`` says whether any could not be read."""

    def __init__(self, reader: Reader, path: str, chosen: Selection | None = None) -> None:
        """``chosen``: by kind, or by the records' own stamps; for other times see ``run_of_times``."""
        self.missed = False
        self._reader = reader
        self._path = path
        self._filter = (chosen or Selection()).filter

    def oldest_first(self, first: int, last: int) -> Iterator[Record]:
        """From the first to the last number."""
        for run in self._runs(first, last):
            for record, _, _, _ in run.records:
                yield record

    def newest_first(self, first: int, last: int) -> Iterator[Record]:
        """From the last to the first number."""
        return (record for _, record in self.timed_newest_first(first, last))

    def timed_newest_first(self, first: int, last: int) -> Iterator[tuple[int, Record]]:
        """From the last to the first number, each with its effective time as far as it can be told without the ones before."""
        piece, limit = _PIECE, time.time_ns()
        while last >= first:
            begin = max(first, last + 1 - piece)
            found = [
                (when, record)
                for run in self._runs(begin, last)
                for when, (record, _, _, _) in zip(run.times, run.records, strict=True)
            ]
            for when, record in reversed(found):
                limit = min(limit, when)
                yield limit, record
            last, piece = begin - 1, min(2 * piece, _PIECE_MAX)

    def _runs(self, first: int, last: int) -> Iterator[Selected]:
        at = first
        while at <= last:
            try:
                for run in runs_of(self._reader, self._filter, Clock(time.time_ns()), at, last + 1):
                    at = run.seq + 1
                    yield run
                return
            except Overrun as error:
                if not error.missed:
                    raise  # rolled back: what was printed is no longer in the log
                self.miss(at, min(at + error.missed - 1, last))
                at += error.missed

    def miss(self, first: int, last: int) -> None:
        """Report records that were overwritten or truncated before they were read."""
        self.missed = True
        say(f"{self._path}: {numbers_in_words(first, last)} overwritten or truncated before they were read")


def run_of_times(reader: Reader, chosen: Selection) -> tuple[int, int]:
    """The first and the last number of what the log has now between two times; the last is less if there is nothing."""
    first, end = selected(reader, chosen, None)
    return first, end - 1


def mention_torn_end(path: str, reader: Reader) -> None:
    """Report what a crash left unfinished at the end."""
    if running_writer(path) is None:  # a running writer's last record is unfinished, not torn
        for phrase in torn_in_words(reader.recovery):
            say(f"{path}: {phrase}")
